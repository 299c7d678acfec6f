"""The lane between quiet and settled: what an archive holds more of is fetched; no series waits for ever."""

import errno
import sqlite3
import time
from random import Random
from threading import Event, Thread

import numpy as np
import pytest
from pydicom.uid import CTImageStorage
from pynetdicom import evt
from pynetdicom.sop_class import ComprehensiveSRStorage

from config.settings import Settings
from node.errors import DestinationUnreachable
from node.flow import failure_of
from node.lane import Means
from node.ledger import Ledger
from node.outputs.encoding import to_bytes
from node.pull.complete import CompleteLane, archive_of, is_awaited
from node.pull.query import FIND
from node.receive import Arrival, Receiver
from node.scp import CT_CLASSES, Scp
from node.settle import settle_due
from node.spool import Spool
from node.states import State

QUIET_S = 10.0


class Bench:
    """A ledger, a spool and lanes under a clock that stands; arrivals go through the node's receiver."""

    def __init__(self, folder, archives, **sections):
        self.settings = Settings.model_validate(
            {
                "storage": {"data_dir": folder, "min_free_bytes": 0, "max_instance_bytes": 2**22},
                "settle": {"quiet_s": QUIET_S, "max_wait_s": 60},
                "retry": {"first_s": 15, "max_s": 100, "jitter": 0},
                "archives": archives,
                **sections,
            }
        )
        self.now = 1000.0
        self.stopping = Event()
        self.ledger = Ledger(folder / "ledger.sqlite3")
        self.spool = Spool(folder)
        self.receiver = Receiver(self.spool, self.ledger, 2**22, lambda: self.now)

    def receive(self, *datasets, calling_ae="CT"):
        for ds in datasets:
            self.receiver.take(arrival_of(ds, calling_ae))

    def lane(self, number=0):
        means = Means(
            self.ledger,
            self.settings.retry,
            Random(1),
            lambda: self.now,
            lambda: self.now,
            self.stopping,
            lambda: None,
        )
        return CompleteLane(means, self.settings.archives[number], self.settings, self.receiver.take)

    def later(self, lane, seconds=QUIET_S):
        """A step of the lane after a while."""
        self.now += seconds
        lane.run()

    def awaited(self, job_id=1):
        return is_awaited(self.ledger, self.settings, self.ledger.job(job_id))

    def notes(self, job_id=1):
        return [event.note for event in self.ledger.events(job_id) if event.note]


def arrival_of(ds, calling_ae):
    """The instance as the SCP hands it over: without preamble and file meta information."""
    whole = to_bytes(ds)
    start = 144 + int.from_bytes(whole[140:144], "little")
    return Arrival(
        str(ds.SOPClassUID),
        str(ds.SOPInstanceUID),
        str(ds.file_meta.TransferSyntaxUID),
        calling_ae,
        memoryview(whole[start:]),
    )


@pytest.fixture
def bench(tmp_path):
    made = []

    def make(*archives, **sections):
        made.append(Bench(tmp_path / f"data{len(made)}", list(archives), **sections))
        return made[-1]

    yield make
    for each in made:
        each.ledger.close()


def test_missing_slices_are_fetched_by_c_get_and_the_archive_is_asked_until_it_has_no_more(
    holder, bench, new_series
):
    series = new_series(1)
    peer = holder(series)
    node = bench(peer.entry(retrieve="get", completes="any"))
    node.receive(*series[:10])
    lane = node.lane()
    lane.run()
    assert peer.associations == 0, "a series that is still coming is left alone"
    node.later(lane)
    assert (node.ledger.job(1).instances, peer.asked, node.awaited()) == (12, ["IMAGE"], True)
    node.later(lane)
    assert (peer.queries, peer.asked, node.awaited()) == (2, ["IMAGE"], False)
    assert node.notes() == [
        "archive archive: 2 of 2 missing instances came",
        "archive archive: archive lists 12 instances, none that is not here",
    ]
    node.later(lane, 1000)
    assert peer.queries == 2, "it is asked once"
    assert [job.generation for job in node.ledger.jobs()] == [1]


def test_missing_slices_come_back_to_our_own_port_by_c_move(holder, bench, new_series):
    series = new_series(1)
    known = {}
    peer = holder(series, known=known)
    node = bench(
        peer.entry(completes="any"), listen={"port": 0, "allow_ae_titles": ["HOLDER"], "max_associations": 2}
    )
    with Scp(node.settings, node.ledger, node.spool, lambda: node.now) as scp:
        known["S2NODE"] = ("127.0.0.1", scp.port)
        peer._server.ae.ae_title = "HOLDER"
        node.receive(*series[4:])
        node.later(node.lane())
    assert node.ledger.job(1).instances == 12
    assert peer.asked == ["IMAGE"]


def test_an_archive_that_does_not_know_us_is_asked_no_more_and_the_history_has_the_cure(
    holder, bench, new_series
):
    peer = holder(new_series(1))
    node = bench(peer.entry(completes="any"))
    node.receive(*new_series(1)[:10])
    lane = node.lane()
    node.later(lane)
    assert not node.awaited()
    assert "status 0xA801" in node.notes()[-1]
    assert "register S2NODE with this machine's address and port at archive" in node.notes()[-1]
    assert node.notes()[-1].endswith("judged as it is")


def test_a_series_whose_archive_is_silent_goes_on_after_the_tries_of_the_settings(holder, bench, new_series):
    peer = holder([])
    peer.stop()
    node = bench(peer.entry(completes="any", completes_attempts=3))
    node.receive(*new_series(1)[:10], *new_series(2))
    lane = node.lane()
    node.later(lane)
    assert [node.ledger.pull(number).attempt for number in (1, 2)] == [1, 1]
    node.later(lane, 14)
    assert node.ledger.pull(1).attempt == 1, "not before the wait of [retry]"
    node.later(lane, 1)
    assert node.ledger.pull(1).attempt == 2
    node.later(node.lane(), 0)
    assert not node.awaited(1), "a restart asks at once and forgets no try"
    assert not node.awaited(2)
    assert node.notes()[-1].endswith("judged as it is")


def test_the_settle_lane_leaves_a_series_alone_until_its_archive_has_had_its_say(holder, bench, new_series):
    peer = holder([])
    peer.stop()
    node = bench(
        peer.entry(completes="any", completes_attempts=1), intake={"max_pixel_spacing_mm": 8, "min_slices": 8}
    )
    node.receive(*new_series(1))
    node.now += QUIET_S
    settle_due(node.ledger, node.settings, node.now)
    assert node.ledger.job(1).state is State.RECEIVING
    node.lane().run()
    settle_due(node.ledger, node.settings, node.now)
    assert node.ledger.job(1).state is State.READY


def test_an_archive_that_lists_more_than_it_sends_holds_nothing_up(holder, bench, new_series):
    series = new_series(1)
    peer = holder(series, keeps_back=2)
    node = bench(peer.entry(retrieve="get", completes="any", completes_attempts=2))
    node.receive(*series[:10])
    lane = node.lane()
    node.later(lane)
    assert "2 instances are missing and none came" in node.notes()[-1]
    node.later(lane, 15)
    assert not node.awaited()
    assert peer.asked == ["IMAGE", "IMAGE"]


@pytest.mark.parametrize(
    ("status", "goes_on"), [(0xA700, True), (0xC001, True), (0xA900, False), (0x0122, False)]
)
def test_what_can_pass_is_tried_again_and_what_cannot_is_not(holder, bench, new_series, status, goes_on):
    peer = holder(new_series(1), find=status)
    node = bench(peer.entry(retrieve="get", completes="any"))
    node.receive(*new_series(1)[:10])
    node.later(node.lane())
    assert node.awaited() is goes_on
    assert f"status 0x{status:04X}" in node.notes()[-1]


def test_what_passes_when_this_machine_is_well_is_no_try(holder, bench, new_series):
    node = bench(holder([]).entry(completes="any", completes_attempts=2))
    node.receive(*new_series(1)[:10])
    lane, job = node.lane(), node.ledger.job(1)
    for error in (
        OSError(errno.EIO, "Input/output error"),
        sqlite3.OperationalError("database is locked"),
    ) * 3:
        lane.count(job, failure_of(error))
        assert node.awaited()
    assert node.ledger.pull(1).attempt == 0
    for goes_on in (True, False):
        lane.count(job, failure_of(DestinationUnreachable("nobody answered")))
        assert node.awaited() is goes_on


def test_a_retrieve_that_is_refused_counts_and_the_rest_of_the_series_stays(holder, bench, new_series):
    peer = holder(new_series(1), retrieve=0xA702)
    node = bench(peer.entry(retrieve="get", completes="any"))
    node.receive(*new_series(1)[:10])
    node.later(node.lane())
    assert node.ledger.pull(1).attempt == 1
    assert "Refused: out of resources, to the C-GET" in node.notes()[-1]


def test_an_archive_that_offers_no_c_get_is_named_with_what_it_lacks(holder, bench, new_series):
    peer = holder(new_series(1), models=[FIND])
    node = bench(peer.entry(retrieve="get", completes="any"))
    node.receive(*new_series(1)[:10])
    node.later(node.lane())
    assert not node.awaited()
    assert "archive offers no C-GET in the study root model to S2NODE" in node.notes()[-1]


def test_a_slice_that_comes_later_has_the_archive_asked_again_from_the_first_try(holder, bench, new_series):
    series = new_series(1)
    peer = holder([])
    node = bench(peer.entry(retrieve="get", completes="any"))
    node.receive(*series[:10])
    lane = node.lane()
    node.later(lane)
    assert not node.awaited()
    node.receive(series[10])
    assert node.awaited()
    peer.stop()
    node.later(lane)
    assert node.ledger.pull(1).attempt == 1


def test_series_without_ct_images_are_not_asked_about(holder, bench, new_series):
    report = new_series(1)[0]
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = ComprehensiveSRStorage
    peer = holder([])
    node = bench(peer.entry(completes="any"))
    node.receive(report)
    node.later(node.lane())
    assert (peer.queries, node.awaited()) == (0, False)


def test_more_instances_than_a_series_may_have_are_not_listened_to(holder, bench, new_series):
    peer = holder(new_series(1))
    node = bench(peer.entry(completes="any"), intake={"limits": {"max_files": 5}})
    node.receive(*new_series(1)[:3])
    node.later(node.lane())
    assert not node.awaited()
    assert "archive lists more than 5" in node.notes()[-1]


def test_an_instance_longer_than_the_settings_allow_ends_the_association_and_counts(
    holder, bench, new_series
):
    series = new_series(1)
    last = series[-1]
    last.set_pixel_data(np.zeros((1024, 2048), np.int16), "MONOCHROME2", 16, generate_instance_uid=False)
    peer = holder(series)
    node = bench(
        peer.entry(retrieve="get", completes="any"),
        storage={"data_dir": "/nowhere", "min_free_bytes": 0, "max_instance_bytes": 2**20},
    )
    node.receive(*series[:11])
    node.later(node.lane())
    assert (node.ledger.job(1).instances, node.ledger.pull(1).attempt) == (11, 1)
    assert "no answer to the C-GET: timed out or aborted" in node.notes()[-1]


def test_an_archive_that_answers_a_little_now_and_then_is_not_listened_to_for_ever(holder, bench, new_series):
    series = new_series(1)
    peer = holder(series)
    peer.pause_s = 0.4
    entry = peer.entry(retrieve="get", completes="any").model_copy(update={"dimse_timeout_s": 1.0})
    node = bench(entry)
    node.receive(*series[:10])
    node.later(node.lane())
    assert node.ledger.pull(1).attempt == 1
    assert "no answer to the C-FIND" in node.notes()[-1]


def test_a_node_that_stops_waits_for_no_archive_and_counts_no_try(holder, bench, new_series):
    peer = holder(new_series(1))
    peer.hold.clear()
    node = bench(peer.entry(retrieve="get", completes="any"))
    node.receive(*new_series(1)[:10])
    node.now += QUIET_S
    running = Thread(target=node.lane().run)
    running.start()
    while not peer.associations:
        time.sleep(0.01)
    node.stopping.set()
    running.join(30)
    assert not running.is_alive()
    assert node.ledger.pull(1) is None


def test_the_first_archive_that_is_there_for_the_sender_is_the_one(holder, bench, new_series):
    first, second, third = (
        {"name": name, "host": "h", "ae_title": ae, "completes": completes}
        for name, ae, completes in (("a", "A", "none"), ("b", "B", "own"), ("c", "C", "any"))
    )
    node = bench(first, second, third)
    node.receive(new_series(1)[0], calling_ae="B")
    node.receive(new_series(2)[0], calling_ae="A")
    assert [archive_of(node.settings, node.ledger.job(number)).name for number in (1, 2)] == ["b", "c"]
    alone = bench(first, second)
    alone.receive(new_series(2)[0], calling_ae="A")
    assert archive_of(alone.settings, alone.ledger.job(1)) is None
    assert not alone.awaited()


def test_for_c_get_each_class_has_one_role_item_and_a_context_for_each_syntax(holder, bench, new_series):
    peer = holder(new_series(1))
    roles, contexts = [], []

    def look(event):
        request = event.assoc.requestor
        roles.extend(item.sop_class_uid for item in request.user_information if hasattr(item, "scp_role"))
        contexts.extend(str(context.abstract_syntax) for context in request.requested_contexts)

    peer._server.bind(evt.EVT_REQUESTED, look)
    node = bench(peer.entry(retrieve="get", completes="any"))
    node.receive(*new_series(1)[:10])
    node.later(node.lane())
    assert node.ledger.job(1).instances == 12
    assert sorted(roles) == sorted(CT_CLASSES)
    assert contexts.count(CTImageStorage) == 15
