from random import Random
from threading import Event, Thread

import pytest
from pydicom import dcmread

from config.settings import FolderDestination, RetrySettings, StoreDestination
from node.breaker import Breaker
from node.deliver import DeliverLane
from node.lane import Means
from node.ledger import Ledger, Output, ReceivedInstance
from node.states import State


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "data" / "ledger.sqlite3") as ledger:
        yield ledger


@pytest.fixture
def built(ledger, ct_files):
    """Records a BUILT job with ``ct_files`` under UIDs of its own as outputs, and gives its number."""

    def build(destinations, series="2.25.20"):
        received = ReceivedInstance(
            f"{series}.0", "1.2", "1.2", f"{series}.9", "1.3", "CT", path=ct_files[0], sha256="00", bytes=1
        )
        job_id = ledger.record_instance(received, 1.0).job_id
        ledger.move(job_id, State.SETTLED, 2.0)
        ledger.move(job_id, State.READY, 3.0)
        ledger.lease("worker", 4.0, 60.0)
        outputs = [outbox_file(path, series, job_id) for path in ct_files]
        ledger.record_built(job_id, "worker", outputs, [], destinations, now=5.0)
        return job_id

    return build


def outbox_file(path, series, job_id):
    ds = dcmread(path)
    ds.SeriesInstanceUID = series
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{series}.{ds.InstanceNumber}"
    target = path.with_name(f"{ds.SOPInstanceUID}.dcm")
    ds.save_as(target)
    return Output(job_id, "arterial", "ct_series", series, ds.SOPInstanceUID, ds.SOPClassUID, target, "00")


@pytest.fixture
def lane(ledger, clock):
    def make(destination, **retry):
        settings = RetrySettings(**{"first_s": 15, "jitter": 0, "max_attempts": 3, **retry})
        means = Means(ledger, settings, Random(1), clock, clock, Event(), lambda: None)
        return DeliverLane(means, destination, Breaker(means, destination.name))

    return make


def towards(peer, name="pacs"):
    return StoreDestination(name=name, host="127.0.0.1", port=peer.port, ae_title="PEER", dimse_timeout_s=5)


def test_a_built_job_is_delivered_once(store_peer, ledger, lane, built):
    peer = store_peer()
    job_id = built(["pacs"])
    pacs = lane(towards(peer))
    pacs.run()
    pacs.run()
    assert ledger.job(job_id).state is State.DELIVERED
    assert peer.uids == [output.sop_instance_uid for output in ledger.outputs(job_id)]
    assert peer.associations == 1


def test_after_a_peer_that_asked_to_wait_only_the_rest_is_sent(store_peer, ledger, lane, built, clock):
    peer = store_peer(statuses=[0, 0, 0xA700])
    job_id = built(["pacs"])
    pacs = lane(towards(peer))
    pacs.run()
    assert ledger.job(job_id).state is State.BUILT
    assert len(ledger.pending_outputs(job_id, "pacs")) == 2
    clock.now += 14.9
    pacs.run()
    assert peer.associations == 1
    clock.now += 0.2
    pacs.run()
    assert ledger.job(job_id).state is State.DELIVERED
    assert len(peer.received) == len(set(peer.uids)) == 4


def test_waits_grow_and_the_last_attempt_parks_the_job(store_peer, ledger, lane, built, clock):
    peer = store_peer(statuses=[0xA700] * 3)
    job_id = built(["pacs"])
    pacs = lane(towards(peer))
    waits = []
    for _ in range(2):
        pacs.run()
        waits.append(ledger.deliveries(job_id)[0].not_before - clock.now)
        clock.now += waits[-1]
    pacs.run()
    assert waits == [15.0, 30.0]
    job = ledger.job(job_id)
    assert (job.state, job.code) == (State.PARKED, "DELIVERY-REFUSED")
    assert "attempt 3" in job.reason


def test_a_refusal_parks_the_job_and_a_retry_by_hand_sends_only_what_was_refused(
    store_peer, ledger, lane, built, clock
):
    peer = store_peer(statuses=[0, 0xC000])
    job_id = built(["pacs"])
    pacs = lane(towards(peer))
    pacs.run()
    assert ledger.job(job_id).state is State.PARKED
    assert len(peer.received) == 3
    assert ledger.retry(job_id, clock.now) is State.BUILT
    clock.now += 60
    pacs.run()
    assert ledger.job(job_id).state is State.DELIVERED
    assert len(peer.received) == len(set(peer.uids)) == 4


def test_a_file_that_is_gone_parks_nothing_at_once_but_is_not_delivered(store_peer, ledger, lane, built):
    job_id = built(["pacs"])
    ledger.outputs(job_id)[0].path.unlink()
    lane(towards(store_peer())).run()
    job = ledger.job(job_id)
    assert job.state is State.BUILT
    assert ledger.deliveries(job_id)[0].reason == "No such file or directory"


def test_a_peer_that_is_down_is_knocked_at_once_and_not_once_a_job(store_peer, ledger, lane, built, clock):
    peer = store_peer(statuses=[0xA700] * 2)
    jobs = [built(["pacs"], series=f"2.25.3{n}") for n in range(3)]
    pacs = lane(towards(peer))
    pacs.run()
    pacs.run()
    assert peer.associations == 1
    clock.now += 15
    pacs.run()
    assert peer.associations == 2
    clock.now += 15
    pacs.run()
    clock.now += 3600
    pacs.run()
    assert {ledger.job(job_id).state for job_id in jobs} == {State.DELIVERED}


def test_a_slow_destination_does_not_hold_up_another(store_peer, ledger, lane, built, tmp_path):
    slow = store_peer(delay_s=0.5)
    quick = FolderDestination(kind="folder", name="disk", path=tmp_path / "disk")
    quick.path.mkdir()
    job_id = built(["pacs", "disk"])
    thread = Thread(target=lane(towards(slow)).run)
    thread.start()
    lane(quick).run()
    assert len(slow.received) < 4
    standing = {each.destination: each.delivered for each in ledger.deliveries(job_id)}
    assert standing["disk"] == 4
    thread.join()
    assert ledger.job(job_id).state is State.DELIVERED


def test_a_destination_that_refuses_does_not_hold_up_another(store_peer, ledger, lane, built, tmp_path):
    disk = FolderDestination(kind="folder", name="disk", path=tmp_path / "disk")
    disk.path.mkdir()
    job_id = built(["pacs", "disk"])
    lane(towards(store_peer(statuses=[0x0122] * 4))).run()
    assert ledger.job(job_id).state is State.BUILT
    lane(disk).run()
    assert ledger.job(job_id).state is State.PARKED
    assert len(list(disk.path.rglob("*.dcm"))) == 4


def test_a_node_that_stops_leaves_the_rest_for_later(store_peer, ledger, lane, built):
    peer = store_peer()
    job_id = built(["pacs"])
    pacs = lane(towards(peer))
    pacs.means.stopping.set()
    pacs.run()
    assert len(peer.received) == 1
    assert ledger.job(job_id).state is State.BUILT


def test_a_lane_shows_a_sign_of_life_with_every_answer(store_peer, ledger, lane, built):
    beats = []
    pacs = lane(towards(store_peer()))
    pacs.means.beat = lambda: beats.append(1)
    built(["pacs"])
    pacs.run()
    assert len(beats) == 5


def run_until_open(pacs, clock):
    for _ in range(3):
        clock.now += 3600
        pacs.run()
    assert pacs.breaker.is_open


def test_after_three_failures_in_a_row_a_peer_gets_a_probe_and_nothing_else(
    store_peer, ledger, lane, built, clock
):
    peer = store_peer(statuses=[0xA700] * 3)
    job_id = built(["pacs"])
    pacs = lane(towards(peer), max_attempts=50)
    run_until_open(pacs, clock)
    clock.now += 29
    pacs.run()
    assert peer.associations == 3
    assert ledger.breaker("pacs").opened_at == clock.now - 29
    assert "0xA700" in ledger.breaker("pacs").reason
    assert ledger.deliveries(job_id)[0].attempt == 3
    clock.now += 2
    pacs.run()
    assert peer.associations == 4
    assert ledger.breaker("pacs").opened_at is None


def test_a_peer_that_answers_the_first_probe_had_not_been_away_and_waits_go_on(
    store_peer, ledger, lane, built, clock
):
    peer = store_peer(statuses=[0xA700] * 3)
    job_id = built(["pacs"])
    pacs = lane(towards(peer), max_attempts=50, first_s=200)
    run_until_open(pacs, clock)
    clock.now += 31
    pacs.run()
    assert not pacs.breaker.is_open
    assert ledger.job(job_id).state is State.BUILT
    clock.now += 3600
    pacs.run()
    assert ledger.job(job_id).state is State.DELIVERED


def test_a_peer_that_comes_back_gets_at_once_what_waits_and_no_job_lost_an_attempt(
    store_peer, ledger, lane, built, clock
):
    gone = store_peer()
    gone.stop()
    jobs = [built(["pacs"], series=f"2.25.4{n}") for n in range(2)]
    pacs = lane(towards(gone), max_attempts=4, first_s=600, max_s=7200)
    run_until_open(pacs, clock)
    for _ in range(100):
        clock.now += 60
        pacs.run()
    assert {ledger.job(job_id).state for job_id in jobs} == {State.BUILT}
    assert max(ledger.deliveries(job_id)[0].attempt for job_id in jobs) <= 3
    ledger.postpone(jobs[0], "pacs", clock.now + 7000, "put off", clock.now)
    back = store_peer(port=gone.port)
    clock.now += 31
    pacs.run()
    assert {ledger.job(job_id).state for job_id in jobs} == {State.DELIVERED}
    assert len(back.uids) == len(set(back.uids)) == 8


def test_a_restart_keeps_a_breaker_open_and_probes_at_once(store_peer, ledger, lane, built, clock):
    peer = store_peer(statuses=[0xA700] * 3)
    built(["pacs"])
    run_until_open(lane(towards(peer), max_attempts=50), clock)
    again = lane(towards(peer), max_attempts=50)
    assert again.breaker.is_open
    again.run()
    assert not again.breaker.is_open
    assert peer.associations == 4


def test_a_refusal_and_a_disk_of_ours_say_nothing_against_a_peer(store_peer, ledger, lane, built, clock):
    peer = store_peer(statuses=[0xA700, 0xC000])
    built(["pacs"])
    gone = built(["pacs"], series="2.25.50")
    pacs = lane(towards(peer), max_attempts=50)
    pacs.run()
    assert ledger.breaker("pacs").failures == 1
    clock.now += 60
    pacs.run()
    assert ledger.breaker("pacs").failures == 0
    ledger.outputs(gone)[0].path.unlink()
    clock.now += 60
    pacs.run()
    assert ledger.deliveries(gone)[0].reason == "No such file or directory"
    assert ledger.breaker("pacs").failures == 0


def test_a_clock_that_is_set_back_by_a_day_delays_nothing_by_a_day(store_peer, ledger, lane, built, clock):
    peer = store_peer(statuses=[0xA700])
    job_id = built(["pacs"])
    pacs = lane(towards(peer), max_s=60)
    pacs.run()
    pacs.means.clock = lambda: clock.now - 86_400
    clock.now += 16
    pacs.run()
    assert ledger.job(job_id).state is State.DELIVERED


def test_what_a_destination_is_owed_for_hours_goes_to_its_fallback_too(
    store_peer, ledger, lane, built, clock, tmp_path
):
    peer = store_peer(statuses=[0xA700] * 2)
    disk = FolderDestination(name="disk", kind="folder", path=tmp_path / "disk")
    disk.path.mkdir()
    job_id = built(["pacs"])
    pacs = lane(towards(peer).model_copy(update={"fallback": "disk", "after_hours": 1.0}), max_attempts=50)
    pacs.run()
    assert [each.destination for each in ledger.deliveries(job_id)] == ["pacs"]
    clock.now += 3600
    pacs.run()
    pacs.run()
    lane(disk).run()
    standing = {each.destination: each for each in ledger.deliveries(job_id)}
    assert standing["disk"].fallback_for == "pacs"
    assert standing["disk"].delivered == 4
    assert ledger.job(job_id).state is State.BUILT
    assert [event.note for event in ledger.events(job_id)].count("disk stands in for pacs") == 1
    clock.now += 3600
    pacs.run()
    assert ledger.job(job_id).state is State.DELIVERED
    assert len(peer.uids) == len(set(peer.uids)) == 4


def test_what_a_destination_refuses_for_good_goes_to_its_fallback_at_once(
    store_peer, ledger, lane, built, tmp_path
):
    peer = store_peer(statuses=[0x0122] * 4)
    disk = FolderDestination(name="disk", kind="folder", path=tmp_path / "disk")
    disk.path.mkdir()
    job_id = built(["pacs"])
    lane(towards(peer).model_copy(update={"fallback": "disk"})).run()
    assert ledger.job(job_id).state is State.BUILT
    lane(disk).run()
    assert len(list(disk.path.rglob("*.dcm"))) == 4
    job = ledger.job(job_id)
    assert (job.state, job.code) == (State.PARKED, "DELIVERY-REFUSED")
    assert "pacs" in job.reason
    assert not ledger.stand_in(job_id, "pacs", "disk", 1.0)


def test_what_each_destination_said_about_each_instance_is_in_the_ledger(store_peer, ledger, lane, built):
    job_id = built(["pacs"])
    lane(towards(store_peer(statuses=[0, 0xB000, 0xA700]))).run()
    said = ledger.answers(job_id)
    assert [answer.status for answer in said] == [0, 0xB000, 0xA700, None]
    assert [answer.at is None for answer in said] == [False, False, False, True]
    pending = [output.sop_instance_uid for output in ledger.pending_outputs(job_id, "pacs")]
    assert pending == [answer.sop_instance_uid for answer in said[2:]]


def test_how_destinations_stand_can_be_read_from_the_ledger(store_peer, ledger, lane, built):
    built(["pacs", "gone"])
    lane(towards(store_peer(statuses=[0xA700]))).run()
    pacs, gone = ledger.destinations(["pacs"])
    assert (pacs.breaker.destination, pacs.breaker.failures, pacs.jobs, pacs.oldest_at) == ("pacs", 1, 1, 5.0)
    assert (gone.breaker.destination, gone.breaker.failures, gone.jobs) == ("gone", 0, 1)
    assert ledger.destinations(["new"])[0].oldest_at is None
