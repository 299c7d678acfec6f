"""DCMTK's storescp as a PACS: a good one, bad ones by its own switches, and one that rejects us."""

import time
from random import Random
from threading import Event

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from config.settings import RetrySettings, StoreDestination
from node.breaker import Breaker
from node.deliver import DeliverLane
from node.destinations import cstore
from node.errors import DestinationUnreachable
from node.lane import Means
from node.ledger import LEDGER_FILE, Ledger, Output, ReceivedInstance
from node.ledger.deliveries import REFUSED_CODE
from node.states import State

pytestmark = pytest.mark.peers


def towards(archive, **settings):
    quick = {"connect_timeout_s": 5, "acse_timeout_s": 5, "dimse_timeout_s": 5, **settings}
    return StoreDestination(
        name="pacs", host="127.0.0.1", port=archive.port, ae_title=archive.ae_title, **quick
    )


@pytest.mark.parametrize(
    ("option", "syntax"), [("+xe", ExplicitVRLittleEndian), ("+xi", ImplicitVRLittleEndian)]
)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_good_peer_gets_every_file_with_the_same_pixels(storescp, ct_files, option, syntax, compressed):
    originals = [dcmread(path) for path in ct_files]
    for path in ct_files if compressed else ():
        ds = dcmread(path)
        ds.compress(RLELossless, generate_instance_uid=False)
        ds.save_as(path)
    archive = storescp(option)
    assert [answer.status for answer in cstore.deliver(towards(archive), ct_files)] == [0] * 4
    arrived = {ds.SOPInstanceUID: ds for ds in archive.datasets()}
    assert {ds.file_meta.TransferSyntaxUID for ds in arrived.values()} == {syntax}
    assert all(arrived[ds.SOPInstanceUID] == ds for ds in originals)


def test_a_peer_that_sleeps_is_given_up_in_time(storescp, ct_files):
    destination = towards(storescp("--sleep-during", "5"), dimse_timeout_s=0.5)
    began = time.monotonic()
    with pytest.raises(DestinationUnreachable):
        list(cstore.deliver(destination, ct_files))
    assert time.monotonic() - began < 4


@pytest.fixture
def lane(tmp_path, ct_files):
    """``lane(archive)`` is a deliver lane towards it that hardly waits, with one job of ``ct_files``."""
    with Ledger(tmp_path / LEDGER_FILE) as ledger:

        def make(archive):
            record_built(ledger, ct_files)
            retry = RetrySettings(first_s=0.01, max_s=0.05, max_attempts=10_000, break_after=2, probe_s=0.1)
            means = Means(ledger, retry, Random(1), time.time, time.monotonic, Event(), lambda: None)
            quick = {"acse_timeout_s": 1, "dimse_timeout_s": 0.5, "network_timeout_s": 1}
            return DeliverLane(means, towards(archive, **quick), Breaker(means, "pacs"))

        yield make


def record_built(ledger, files):
    received = ReceivedInstance("1.2.1", "1.2", "1.2", "1.2", "1.3", "CT", files[0], "00", 1)
    job_id = ledger.record_instance(received, 1.0).job_id
    ledger.move(job_id, State.SETTLED, 2.0)
    ledger.move(job_id, State.READY, 3.0)
    ledger.lease("w", 4.0, 60.0)
    outputs = [
        Output(
            job_id, "arterial", "ct_series", ds.SeriesInstanceUID, ds.SOPInstanceUID, ds.SOPClassUID, path, ""
        )
        for path in files
        for ds in [dcmread(path)]
    ]
    ledger.record_built(job_id, "w", outputs, [], ["pacs"], now=5.0)


def run_until(lane, condition):
    """Run the lane as the clock does, until the condition holds."""
    end = time.monotonic() + 120
    while time.monotonic() < end and not condition():
        lane.run()
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize(
    "turn",
    [
        lambda archive: archive.become("--refuse"),
        lambda archive: archive.become("--abort-after"),
        lambda archive: archive.become("--abort-during"),
        lambda archive: archive.become("--sleep-during", "2"),
        lambda archive: archive.reject("for now"),
        lambda archive: archive.keep_unanswered(),
        lambda archive: archive.stop(),
    ],
    ids=["refuses", "aborts-after", "aborts-during", "sleeps", "rejects-for-now", "keeps", "vanishes"],
)
def test_a_bad_peer_has_everything_when_it_is_well_again_and_again_only_what_it_did_not_answer_for(
    storescp, lane, ct_files, turn
):
    archive = storescp(always=["+uf"])  # keeps every single one, also what it has
    delivering = lane(archive)
    ledger = delivering.means.ledger
    turn(archive)
    assert run_until(delivering, lambda: ledger.deliveries(1)[0].attempt >= 2)
    assert ledger.job(1).state is State.BUILT
    archive.become()
    assert run_until(delivering, lambda: ledger.job(1).state is State.DELIVERED)
    check_everything_is_there(archive, ct_files, again=unanswered(ledger))
    assert not delivering.breaker.is_open


def test_a_peer_that_rejects_us_for_good_has_everything_once_a_person_has_mended_it(storescp, lane, ct_files):
    archive = storescp(always=["+uf"])  # keeps every single one, also what it has
    delivering = lane(archive)
    ledger = delivering.means.ledger
    archive.reject("for good")
    assert run_until(delivering, lambda: ledger.job(1).state is State.PARKED)
    assert ledger.job(1).code == REFUSED_CODE
    assert "not recognised" in ledger.job(1).reason
    archive.become()
    assert ledger.retry(1, time.time()) is State.BUILT
    assert run_until(delivering, lambda: ledger.job(1).state is State.DELIVERED)
    check_everything_is_there(archive, ct_files, again=0)


def unanswered(ledger):
    """How often it is not known whether the archive has an instance, so that it is sent again."""
    return sum("no answer to C-STORE" in (event.note or "") for event in ledger.events(1))


def check_everything_is_there(archive, files, again):
    """Whole, once, and not more than ``again`` of it again."""
    sent = {ds.SOPInstanceUID: ds for ds in map(dcmread, files)}
    found = archive.datasets()
    assert {ds.SOPInstanceUID for ds in found} == sent.keys()
    assert all(ds == sent[ds.SOPInstanceUID] for ds in found)
    assert len(found) <= len(sent) + again
