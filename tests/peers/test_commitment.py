"""Storage commitment with Orthanc in both roles, and the query instead of it with DCMTK's dcmqrscp."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from random import Random

import pytest
from pydicom import dcmread
from pydicom.uid import CTImageStorage as CT

from config.settings import Requester, RetrySettings, Settings
from node.breaker import Breaker
from node.commitment.ask import AskLane
from node.commitment.report import ReportLane
from node.deliver import DeliverLane
from node.lane import Means
from node.ledger import LEDGER_FILE, Ledger, Output, ReceivedInstance
from node.scp import Scp
from node.scu import send
from node.spool import Spool
from node.states import State

pytestmark = pytest.mark.peers

RETRY = RetrySettings(first_s=0.2, max_s=1, max_attempts=50)


def until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.1)
    return condition()


class Site:
    """Ledger, spool, listener and lanes of a node, without a worker, at ``port``."""

    def __init__(self, folder, port, peer=None, requester=None):
        destinations = [] if peer is None else [{"name": "pacs", "host": "127.0.0.1", **peer}]
        self.settings = Settings.model_validate(
            {
                "listen": {"port": port},
                "storage": {"data_dir": folder, "min_free_bytes": 0},
                "destinations": destinations,
                "requesters": [] if requester is None else [requester],
            }
        )
        self.spool = Spool(folder)
        self.ledger = Ledger(folder / LEDGER_FILE)
        self.scp = Scp(self.settings, self.ledger, self.spool)
        stopping = threading.Event()
        means = Means(self.ledger, RETRY, Random(1), time.time, time.monotonic, stopping, lambda: None)
        if destinations:
            to = self.settings.destinations[0]
            breaker = Breaker(means, to.name)
            self.deliver = DeliverLane(means, to, breaker)
            self.ask = AskLane(means, to, self.scp.commitments, breaker)
        if requester is not None:
            who = Requester.model_validate(requester)
            self.report = ReportLane(means, who, "S2NODE")

    def __enter__(self):
        self.scp.__enter__()
        return self

    def __exit__(self, *_):
        self.scp.__exit__(None, None, None)
        self.ledger.close()

    def built(self, files):
        """A job whose outputs are ``files``."""
        received = ReceivedInstance("1.2.1", "1.2", "1.2", "1.2", "2.25.10", "CT", files[0], "00", 1)
        job_id = self.ledger.record_instance(received, 1.0).job_id
        self.ledger.move(job_id, State.SETTLED, 2.0)
        self.ledger.move(job_id, State.READY, 3.0)
        self.ledger.lease("worker", 4.0, 60.0)
        outputs = [
            Output(job_id, "arterial", "ct_series", one.SeriesInstanceUID, one.SOPInstanceUID, CT, path, "")
            for path in files
            for one in [dcmread(path)]
        ]
        self.ledger.record_built(job_id, "worker", outputs, [], ["pacs"], now=5.0)
        return job_id

    def reaches(self, job_id, state):
        """Run both lanes, as the clock does, until the job stands there."""

        def step():
            self.deliver.run()
            self.ask.run()
            return self.ledger.job(job_id).state is state

        return until(step)


def test_orthanc_commits_what_it_has_and_gets_again_what_it_lost(orthanc, free_port, tmp_path, ct_files):
    port = free_port()
    archive = orthanc(port, routes=False)
    peer = {"port": archive.port, "ae_title": "ORTHANC", "commitment": "request", "commitment_wait_s": 0}
    with Site(tmp_path / "data", port, peer) as here:
        job_id = here.built(ct_files)
        here.deliver.run()
        assert here.ledger.job(job_id).state is State.DELIVERED
        lost = archive.get("/instances")[0]
        uid = archive.get(f"/instances/{lost}")["MainDicomTags"]["SOPInstanceUID"]
        archive.do("DELETE", f"/instances/{lost}")
        here.ask.run()
        assert until(lambda: here.ledger.job(job_id).state is State.BUILT)
        assert [one.sop_instance_uid for one in here.ledger.pending_outputs(job_id, "pacs")] == [uid]
        assert here.reaches(job_id, State.COMMITTED), here.ledger.deliveries(job_id)
        assert len(archive.get("/instances")) == len(ct_files)


def test_orthanc_asks_the_node_and_hears_what_is_here(orthanc, free_port, tmp_path, ct_files):
    port = free_port()
    archive = orthanc(port, routes=False)
    requester = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": archive.port}
    with Site(tmp_path / "data", port, requester=requester) as here:
        to = {"name": "node", "host": "127.0.0.1", "port": here.scp.port, "ae_title": "S2NODE"}
        peer = Settings.model_validate({"destinations": [to]}).destinations[0]
        assert send(peer, ct_files).is_complete
        held = [[ds.SOPClassUID, ds.SOPInstanceUID] for ds in map(dcmread, ct_files)]
        asked = {"DicomInstances": [*held, [held[0][0], "1.2.3.4"]]}
        ticket = archive.do("POST", "/modalities/node/storage-commitment", asked)["ID"]

        def is_told():
            here.report.run()
            return archive.get(f"/storage-commitment/{ticket}")["Status"] != "Pending"

        assert until(is_told)
        heard = archive.get(f"/storage-commitment/{ticket}")
    assert heard["Status"] == "Failure"
    assert {one["SOPInstanceUID"] for one in heard["Success"]} == {uid for _, uid in held}
    (lost,) = heard["Failures"]
    assert (lost["SOPInstanceUID"], lost["FailureReason"]) == ("1.2.3.4", 0x0112)


@pytest.fixture
def dcmqrscp(tmp_path, free_port):
    """DCMTK's archive, which knows no storage commitment, at the port it gives."""
    program, port = shutil.which("dcmqrscp"), free_port()
    if program is None:
        pytest.skip("needs dcmqrscp (Debian package dcmtk)")
    folder = tmp_path / "dcmqrscp"
    folder.mkdir()
    lines = [
        f"NetworkTCPPort = {port}", "MaxPDUSize = 16384", "MaxAssociations = 16", "HostTable BEGIN",
        "HostTable END", "VendorTable BEGIN", "VendorTable END", "AETable BEGIN",
        f"QR {folder} RW (10, 1024mb) ANY", "AETable END",
    ]  # fmt: skip
    (folder / "cfg").write_text("\n".join(lines) + "\n")
    with (tmp_path / "dcmqrscp.log").open("wb") as log:
        running = subprocess.Popen([program, "-c", str(folder / "cfg")], stdout=log, stderr=log)
        yield port
        running.kill()
        running.wait()


def test_an_archive_without_storage_commitment_is_queried_instead(dcmqrscp, free_port, tmp_path, ct_files):
    peer = {"port": dcmqrscp, "ae_title": "QR", "commitment": "request", "commitment_wait_s": 0}
    with Site(tmp_path / "data", free_port(), peer) as here:
        job_id = here.built(ct_files)
        assert here.reaches(job_id, State.COMMITTED), here.ledger.deliveries(job_id)
        assert here.ledger.deliveries(job_id)[0].committed == len(ct_files)
