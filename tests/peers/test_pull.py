"""Series that came without all their slices are completed from real archives, and studies are fetched there.

Orthanc and DCMTK's dcmqrscp, each by C-MOVE to the node's own port and by C-GET.
"""

import json
import socket
import subprocess
import time
from contextlib import contextmanager
from random import Random
from threading import Event

import pytest
from typer.testing import CliRunner

from node.cli import app
from node.errors import DestinationRefused, DestinationUnreachable
from node.lane import Means
from node.ledger import LEDGER_FILE, Ledger
from node.outputs.encoding import to_bytes
from node.pull.complete import CompleteLane, is_awaited
from node.receive import Receiver
from node.scp import Scp
from node.service import Node
from node.spool import Spool
from node.states import State

pytestmark = pytest.mark.peers

QRSCP = """
NetworkTCPPort = {port}
MaxPDUSize = 16384
MaxAssociations = 16
HostTable BEGIN
node = ({destination}, localhost, {node_port})
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
DCMQR {folder} RW (10, 1024mb) ANY
AETable END
"""


def until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.1)
    return condition()


class Dcmqrscp:
    """DCMTK's archive; ``destination`` is the one AE title it would move to."""

    def __init__(self, folder, node_port, port, destination="S2NODE"):
        self.ae_title, self.port = "DCMQR", port
        (folder / "db").mkdir(parents=True)
        config = folder / "dcmqrscp.cfg"
        config.write_text(
            QRSCP.format(port=port, node_port=node_port, folder=folder / "db", destination=destination)
        )
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            ["dcmqrscp", "-c", str(config)], stdout=self._log, stderr=subprocess.STDOUT
        )
        assert until(self._listens, 20), (folder / "log").read_text()

    def _listens(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self):
        self._process.terminate()
        self._process.wait(10)
        self._log.close()


@pytest.fixture
def archive(orthanc, tmp_path, free_port):
    """Starts an archive: ``archive("orthanc" or "dcmqrscp", node_port)``."""
    started = []

    def start(kind, node_port, **options):
        if kind == "orthanc":
            return orthanc(node_port, routes=False)
        started.append(Dcmqrscp(tmp_path / "dcmqrscp", node_port, free_port(), **options))
        return started[-1]

    yield start
    for each in started:
        each.stop()


def saved(folder, series):
    folder.mkdir()
    for ds in series:
        (folder / f"{ds.SOPInstanceUID}.dcm").write_bytes(to_bytes(ds))
    return folder


def storescu(folder, ae_title, port):
    command = ["storescu", "-aet", "CT", "-aec", ae_title, "127.0.0.1", str(port), "+sd", "+r", str(folder)]
    sent = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert sent.returncode == 0, sent.stderr


def entry(peer, retrieve, **options):
    """The archive in the node's settings."""
    return {
        "name": "archive",
        "host": "127.0.0.1",
        "port": peer.port,
        "ae_title": peer.ae_title,
        "retrieve": retrieve,
        **options,
    }


@contextmanager
def receiving(settings):
    """The node without its workers: what it listens with, keeps and remembers."""
    folder = settings.storage.data_dir
    spool = Spool(folder)
    with Ledger(folder / LEDGER_FILE) as ledger, Scp(settings, ledger, spool):
        yield ledger, Receiver(spool, ledger, settings.storage.max_instance_bytes, time.time).take


def lane_of(settings, ledger, store):
    """The completing lane, an hour later: everything is quiet."""
    later = lambda: time.time() + 3600.0
    means = Means(ledger, settings.retry, Random(1), later, time.monotonic, Event(), lambda: None)
    return CompleteLane(means, settings.archives[0], settings, store)


@pytest.mark.parametrize("retrieve", ["move", "get"])
@pytest.mark.parametrize("kind", ["orthanc", "dcmqrscp"])
def test_two_missing_slices_come_from_the_archive_and_nothing_else(
    archive, quick_settings, new_series, free_port, tmp_path, kind, retrieve
):
    listen = free_port()
    peer = archive(kind, listen)
    series = new_series(1)
    storescu(saved(tmp_path / "all", series), peer.ae_title, peer.port)
    settings = quick_settings(
        listen={"port": listen, "allow_ae_titles": ["CT", peer.ae_title]},
        archives=[entry(peer, retrieve, completes="any")],
    )
    with receiving(settings) as (ledger, store):
        storescu(saved(tmp_path / "some", series[:10]), "S2NODE", listen)
        lane = lane_of(settings, ledger, store)
        lane.run()
        assert is_awaited(ledger, settings, ledger.job(1)), "asked again once it is quiet"
        lane.run()
        assert not is_awaited(ledger, settings, ledger.job(1))
        notes = [event.note for event in ledger.events(1) if event.note]
        held = {instance.sop_instance_uid for instance in ledger.instances(1)}
        counters = ledger.counters()
    assert held == {ds.SOPInstanceUID for ds in series}
    assert notes == [
        "archive archive: 2 of 2 missing instances came",
        "archive archive: archive lists 12 instances, none that is not here",
    ]
    assert counters.get("repeats", 0) == 0


def test_a_series_that_came_without_two_slices_is_completed_and_processed_once(
    archive, quick_settings, new_series, free_port, tmp_path
):
    listen = free_port()
    peer = archive("orthanc", listen)
    series = new_series(1)
    storescu(saved(tmp_path / "all", series), peer.ae_title, peer.port)
    settings = quick_settings(
        listen={"port": listen},
        settle={"quiet_s": 1.0, "max_wait_s": 600, "check_s": 0.1},
        archives=[entry(peer, "move", completes="any")],
    )
    with Node(settings) as node:
        storescu(saved(tmp_path / "some", series[:10]), "S2NODE", listen)
        assert until(lambda: any(job.state is State.BUILT for job in node.ledger.jobs())), [
            event.note for event in node.ledger.events(1)
        ]
        jobs = [(job.generation, job.instances) for job in node.ledger.jobs()]
        outputs = node.ledger.outputs(1)
    assert jobs == [(1, 12)]
    assert len(outputs) == 24


@pytest.mark.parametrize(("kind", "retrieve"), [("orthanc", "get"), ("dcmqrscp", "move")])
def test_a_study_is_fetched_and_not_fetched_twice(
    archive, quick_settings, new_series, free_port, tmp_path, kind, retrieve
):
    listen = free_port()
    peer = archive(kind, listen)
    series = new_series(1)
    storescu(saved(tmp_path / "all", series), peer.ae_title, peer.port)
    settings = quick_settings(listen={"port": listen}, archives=[entry(peer, retrieve)])
    config = tmp_path / "s2node.toml"
    config.write_text(toml_of(settings))
    row = {"series_instance_uid": series[0].SeriesInstanceUID, "modality": "CT", "listed": 12, "here": 12}
    with receiving(settings) as (ledger, _):
        first = fetch(config, series[0].StudyInstanceUID)
        again = fetch(config, series[0].SeriesInstanceUID)
        jobs = [(job.calling_ae, job.instances) for job in ledger.jobs()]
    rest = {"failed": 0, "is_complete": True}
    assert first == [{**row, "asked": 12, "note": "", **rest}]
    assert again == [{**row, "asked": 0, "note": "everything is here", **rest}]
    assert jobs == [(peer.ae_title, 12)]


def toml_of(settings):
    """The sections of the settings that a command reads here."""
    dumped = settings.model_dump(mode="json")
    lines = []
    for name in ("listen", "storage"):
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in dumped[name].items()]
    for each in dumped["archives"]:
        lines.append("[[archives]]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in each.items()]
    return "\n".join(lines) + "\n"


def command(config, uid):
    return CliRunner().invoke(app, ["fetch", uid, "--from", "archive", "-c", str(config), "--json"])


def fetch(config, uid):
    ran = command(config, uid)
    assert ran.exit_code == 0, (ran.output, ran.exception)
    return json.loads(ran.stdout)


def test_what_says_that_it_is_synthetic_is_fetched_and_dropped(
    archive, quick_settings, new_series, free_port, tmp_path
):
    peer = archive("dcmqrscp", free_port())
    series = new_series(1)
    for ds in series:
        ds.SyntheticData = "YES"
    storescu(saved(tmp_path / "all", series), peer.ae_title, peer.port)
    settings = quick_settings(archives=[entry(peer, "get")])
    config = tmp_path / "s2node.toml"
    config.write_text(toml_of(settings))
    with receiving(settings) as (ledger, _):
        rows = fetch(config, series[0].StudyInstanceUID)
        assert ledger.jobs() == []
        assert ledger.counters()["own_dropped"] == 12
    assert rows[0]["note"] == "12 were sent and dropped: they say that they are synthetic"


def test_dcmqrscp_that_does_not_know_us_says_so_with_a_cure(
    archive, quick_settings, new_series, free_port, tmp_path
):
    listen = free_port()
    peer = archive("dcmqrscp", listen, destination="ELSEWHERE")
    series = new_series(1)
    storescu(saved(tmp_path / "all", series), peer.ae_title, peer.port)
    settings = quick_settings(listen={"port": listen}, archives=[entry(peer, "move")])
    config = tmp_path / "s2node.toml"
    config.write_text(toml_of(settings))
    with receiving(settings):
        ran = command(config, series[0].StudyInstanceUID)
    assert isinstance(ran.exception, DestinationRefused)
    assert ran.exception.status == 0xA801
    assert "register S2NODE with this machine's address and port at archive" in str(ran.exception)


def test_orthanc_that_does_not_know_us_names_what_to_look_at(
    archive, quick_settings, new_series, free_port, tmp_path
):
    listen = free_port()
    peer = archive("orthanc", listen)
    series = new_series(1)
    storescu(saved(tmp_path / "all", series), peer.ae_title, peer.port)
    settings = quick_settings(listen={"port": listen, "ae_title": "STRANGER"}, archives=[entry(peer, "move")])
    config = tmp_path / "s2node.toml"
    config.write_text(toml_of(settings))
    with receiving(settings):
        ran = command(config, series[0].StudyInstanceUID)
    assert isinstance(ran.exception, DestinationUnreachable)
    assert "when they do not know STRANGER or cannot reach our port" in str(ran.exception)
