"""DIMSE over TLS with DCMTK's BCP 195 profiles and with Orthanc, both ways."""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
import trustme

from config.settings import Settings, StoreDestination
from node.errors import DestinationUnreachable
from node.ledger import LEDGER_FILE, Ledger
from node.scp import Scp
from node.scu import echo, send
from node.spool import Spool

pytestmark = pytest.mark.peers

PROFILES = ["+py", "+px", "+pz"]
"""DCMTK's names: non-downgrading BCP 195, BCP 195, extended BCP 195 (PS3.15 B.10, B.9, B.11)."""


class Site:
    """An RSA authority (the extended profile knows no other keys) with certificates for all who take part."""

    def __init__(self, authority, folder):
        self.authority = authority("ours", key_type=trustme.KeyType.RSA)
        self.node = self.authority.tls()
        self.peer = self.authority.tls(name="peer")
        self.folder = folder

    @contextmanager
    def node_listening(self, port=0):
        settings = Settings.model_validate(
            {
                "listen": {"port": port, "tls": True},
                "tls": self.node,
                "storage": {"data_dir": self.folder / "data", "min_free_bytes": 0},
            }
        )
        spool = Spool(settings.storage.data_dir)
        with Ledger(spool.root / LEDGER_FILE) as ledger, Scp(settings, ledger, spool) as scp:
            self.ledger = ledger
            yield scp

    def calls(self, port, ae_title, **changes):
        told = {"name": "peer", "host": "127.0.0.1", "port": port, "ae_title": ae_title, "tls": self.node}
        return StoreDestination.model_validate({**told, **changes})


@pytest.fixture
def site(authority, tmp_path):
    return Site(authority, tmp_path)


def dcmtk(program, port, *options, tls=None, files=()):
    secure = [] if tls is None else ["+tls", tls["key"], tls["certificate"], "+cf", tls["authorities"]]
    command = [program, *options, *secure, "-to", "10", "-aec", "S2NODE", "127.0.0.1", port, *files]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
    return done.returncode == 0, done.stdout + done.stderr


def test_dcmtk_stores_in_the_node_with_each_of_its_profiles(site, ct_files):
    with site.node_listening() as scp:
        for profile in PROFILES:
            for program, files in (("echoscu", ()), ("storescu", ct_files)):
                went_well, words = dcmtk(program, scp.port, profile, tls=site.peer, files=files)
                assert went_well, words
        [job] = site.ledger.jobs()
        assert job.instances == len(ct_files)


def test_dcmtk_is_refused_with_a_bad_certificate_or_none_or_an_old_profile(site, authority):
    yesterday = datetime.now(UTC) - timedelta(days=1)
    rogue = authority("rogue", key_type=trustme.KeyType.RSA).tls(believes=site.authority.file)
    expired = site.authority.tls(
        name="expired", not_before=yesterday - timedelta(days=1), not_after=yesterday
    )
    with site.node_listening() as scp:
        refused = {
            "rogue": dcmtk("echoscu", scp.port, tls=rogue),
            "expired": dcmtk("echoscu", scp.port, tls=expired),
            "anonymous": dcmtk("echoscu", scp.port, "+tla", "-ic"),
            "plain": dcmtk("echoscu", scp.port),
            "retired profile": dcmtk("echoscu", scp.port, "+pa", tls=site.peer),
        }
        assert [who for who, (went_well, _) in refused.items() if went_well] == []
        went_well, words = dcmtk("echoscu", scp.port, tls=site.peer)
        assert went_well, words


@pytest.fixture
def storescp(site, free_port, tmp_path):
    """Starts DCMTK's storescp with a profile and somebody's certificates; the port it listens on."""
    started = []

    def start(profile, tls):
        port, folder = free_port(), tmp_path / "storescp"
        folder.mkdir(exist_ok=True)
        secure = ["+tls", tls["key"], tls["certificate"], "+cf", tls["authorities"], profile]
        command = ["storescp", *secure, "-od", folder, "-aet", "DCMTK", port]
        started.append(subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL))
        return port

    yield start
    for process in started:
        process.kill()
        process.wait()


def until_it_listens(call, seconds=60.0):
    end = time.monotonic() + seconds
    while True:
        try:
            return call()
        except DestinationUnreachable as error:
            if "TLS" in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.2)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_node_stores_in_dcmtk_with_each_of_its_profiles(site, storescp, ct_files, profile):
    port = storescp(profile, site.peer)
    until_it_listens(lambda: echo(site.calls(port, "DCMTK")))
    assert send(site.calls(port, "DCMTK"), ct_files).stored == len(ct_files)


def test_the_node_does_not_send_to_a_dcmtk_that_is_not_who_was_called(site, storescp, authority, ct_files):
    elsewhere = storescp("+py", site.authority.tls("pacs.example.org", name="elsewhere"))
    with pytest.raises(DestinationUnreachable, match="mismatch"):
        until_it_listens(lambda: send(site.calls(elsewhere, "DCMTK"), ct_files))
    assert send(site.calls(elsewhere, "DCMTK", tls_name="pacs.example.org"), ct_files).is_complete
    rogue = storescp(
        "+py", authority("rogue", key_type=trustme.KeyType.RSA).tls(believes=site.authority.file)
    )
    with pytest.raises(DestinationUnreachable, match="not believed"):
        until_it_listens(lambda: send(site.calls(rogue, "DCMTK"), ct_files))


def test_orthanc_and_the_node_store_in_each_other_over_tls(site, orthanc, free_port, ct_files):
    port = free_port()
    node = {"AET": "S2NODE", "Host": "127.0.0.1", "Port": port, "UseDicomTls": True}
    archive = orthanc(
        port,
        routes=False,
        DicomTlsEnabled=True,
        DicomTlsCertificate=str(site.peer["certificate"]),
        DicomTlsPrivateKey=str(site.peer["key"]),
        DicomTlsTrustedCertificates=str(site.peer["authorities"]),
        DicomTlsRemoteCertificateRequired=True,
        DicomModalities={"node": node},
    )
    with site.node_listening(port):
        assert send(site.calls(archive.port, "ORTHANC"), ct_files).stored == len(ct_files)
        stored = archive.get("/instances")
        assert len(stored) == len(ct_files)
        archive.do("POST", "/modalities/node/echo", {})
        archive.do("POST", "/modalities/node/store", stored)
        [job] = site.ledger.jobs()
        assert job.instances == len(ct_files)
        with pytest.raises(DestinationUnreachable):
            echo(site.calls(archive.port, "ORTHANC", tls=False, acse_timeout_s=5))
