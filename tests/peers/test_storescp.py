"""DCMTK's storescp as a PACS: a good one, and the bad ones its own switches make of it."""

import subprocess
import time

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from config.settings import StoreDestination
from node.destinations import cstore
from node.errors import DestinationRefused, DestinationUnreachable

pytestmark = pytest.mark.peers


@pytest.fixture
def storescp(tmp_path, free_port):
    """Starts ``storescp`` with options; gives a destination that points to it and the folder it writes to."""
    started = []

    def start(*options, **settings):
        port, folder = free_port(), tmp_path / "storescp"
        folder.mkdir()
        command = ["storescp", *options, "-aet", "PEER", "-od", str(folder), str(port)]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        wait_until_up(port)
        quick = {"connect_timeout_s": 5, "acse_timeout_s": 5, "dimse_timeout_s": 5, **settings}
        return StoreDestination(name="pacs", host="127.0.0.1", port=port, ae_title="PEER", **quick), folder

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_until_up(port):
    for _ in range(100):
        echo = subprocess.run(
            ["echoscu", "127.0.0.1", str(port)], capture_output=True, timeout=10, check=False
        )
        if b"Cannot" not in echo.stderr and b"refused" not in echo.stderr.lower():
            return
        time.sleep(0.05)
    raise TimeoutError("storescp does not listen")


def sent(destination, files):
    """Answers, and the error that ended the delivery."""
    answers = []
    try:
        for answer in cstore.deliver(destination, files):
            answers.append(answer)
    except (DestinationRefused, DestinationUnreachable) as error:
        return answers, error
    return answers, None


@pytest.mark.parametrize(
    ("option", "syntax"), [("+xe", ExplicitVRLittleEndian), ("+xi", ImplicitVRLittleEndian)]
)
def test_a_good_peer_gets_every_file_equal(storescp, ct_files, option, syntax):
    destination, folder = storescp(option)
    answers, error = sent(destination, ct_files)
    assert error is None
    assert [answer.status for answer in answers] == [0] * 4
    arrived = {ds.SOPInstanceUID: ds for ds in map(dcmread, folder.iterdir())}
    assert {ds.file_meta.TransferSyntaxUID for ds in arrived.values()} == {syntax}
    assert all(arrived[ds.SOPInstanceUID] == ds for ds in map(dcmread, ct_files))


def test_a_peer_that_refuses_every_association_is_left_for_a_person(storescp, ct_files):
    answers, error = sent(storescp("--refuse")[0], ct_files)
    assert answers == []
    assert isinstance(error, DestinationRefused)
    assert error.status is None


@pytest.mark.parametrize("option", ["--abort-after", "--abort-during"])
def test_a_peer_that_aborts_is_tried_again_later(storescp, ct_files, option):
    answers, error = sent(storescp(option)[0], ct_files)
    assert len(answers) < 4
    assert isinstance(error, DestinationUnreachable)


def test_a_peer_that_sleeps_is_given_up_in_time(storescp, ct_files):
    destination, _ = storescp("--sleep-during", "5", dimse_timeout_s=0.5)
    began = time.monotonic()
    answers, error = sent(destination, ct_files)
    assert answers == []
    assert isinstance(error, DestinationUnreachable)
    assert time.monotonic() - began < 4
