"""Storage commitment both ways, against a real archive of pynetdicom that answers as told."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, build_context, build_role, evt

from config.settings import ListenSettings, Requester, RetrySettings, Settings, StoreDestination
from node.alarm import Alert, AlertKind
from node.breaker import Breaker
from node.commitment.ask import AskLane, listed
from node.commitment.hear import Commitments, answer_of
from node.commitment.report import ReportLane
from node.commitment.wire import (
    FAILURE_REASONS,
    MOST_REFERENCES,
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    Cure,
    Named,
    NotUnderstood,
    failure_reason,
    read,
    written,
)
from node.lane import Means
from node.ledger import Job, Ledger, Output, ReceivedInstance, Reference
from node.scp import Scp
from node.spool import Spool
from node.states import State

FIND = "1.2.840.10008.5.1.4.1.2.2.1"
RETRY = RetrySettings(first_s=10, jitter=0, max_attempts=3)
NODE, PEER = "S2NODE", "PEER"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class CommitPeer:
    """An archive that lists ``has``, and for every N-ACTION does what ``on_request`` does with it.

    ``offers`` are the abstract syntaxes it accepts; ``status`` is its answer to N-ACTION.
    """

    def __init__(self, *, offers: tuple[str, ...] = (PUSH_MODEL, FIND), status: int = 0) -> None:
        self.asked: list[Dataset] = []
        self.queries = 0
        self.has: set[str] = set()
        self.on_request: Callable[[evt.Event, Dataset], None] = lambda event, ds: None
        self.find_status = 0x0000
        self.status = status
        ae = AE(ae_title=PEER)
        for uid in offers:
            ae.add_supported_context(uid)
        handlers: list[Any] = [(evt.EVT_N_ACTION, self._action), (evt.EVT_C_FIND, self._find)]
        self._server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = int(self._server.socket.getsockname()[1])

    def stop(self) -> None:
        if self._server.ae._servers:
            self._server.shutdown()

    def _action(self, event: evt.Event) -> tuple[int, None]:
        self.asked.append(event.action_information)
        self.on_request(event, event.action_information)
        return self.status, None

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        self.queries += 1
        for uid in sorted(self.has):
            match = Dataset()
            match.QueryRetrieveLevel, match.SOPInstanceUID = "IMAGE", uid
            yield 0xFF00, match
        if self.find_status:
            yield self.find_status, None


@pytest.fixture
def commit_peer() -> Iterator[Callable[..., CommitPeer]]:
    started: list[CommitPeer] = []

    def start(**options: Any) -> CommitPeer:
        started.append(CommitPeer(**options))
        return started[-1]

    yield start
    for peer in started:
        peer.stop()


@dataclass
class Site:
    """A node's ledger, spool and listener in a folder, its clock, and the lanes as a test runs them."""

    folder: Path
    destinations: tuple[StoreDestination, ...] = ()
    requesters: tuple[Requester, ...] = ()
    clock: Clock = field(default_factory=Clock)
    alerts: list[Alert] = field(default_factory=list)

    def __enter__(self) -> Site:
        self.settings = Settings(
            listen=ListenSettings(port=0),
            storage={"data_dir": self.folder, "min_free_bytes": 0},  # type: ignore[arg-type]
            destinations=self.destinations,
            requesters=self.requesters,
            retry=RETRY,
        )
        self.spool = Spool(self.folder)
        self.ledger = Ledger(self.folder / "ledger.sqlite3")
        self.scp = Scp(self.settings, self.ledger, self.spool, self.clock, self.alerts.append)
        self.scp.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.scp.__exit__(None, None, None)
        self.ledger.close()

    def means(self) -> Means:
        stopping = threading.Event()
        return Means(self.ledger, RETRY, Random(1), self.clock, self.clock, stopping, lambda: None)

    def lane(self, number: int = 0, hold_s: float = 5.0) -> AskLane:
        means, destination = self.means(), self.destinations[number]
        return AskLane(means, destination, self.scp.commitments, Breaker(means, destination.name), hold_s)

    def reports(self) -> ReportLane:
        return ReportLane(self.means(), self.requesters[0], NODE)

    def delivered(self, number: int = 1, outputs: int = 4) -> Job:
        """A job every destination has taken; its instances are files of the spool."""
        series = f"1.2.{number}"
        placed = self.spool.place(b"slice", f"inbox/{series}/{series}.1.dcm")
        received = ReceivedInstance(
            f"{series}.1",
            CTImageStorage,
            "1.2",
            series,
            "1.9",
            "CT",
            placed.path,
            placed.sha256,
            placed.bytes,
        )
        job_id = self.ledger.record_instance(received, 1.0).job_id
        self.ledger.move(job_id, State.SETTLED, 2.0)
        self.ledger.move(job_id, State.READY, 3.0)
        self.ledger.lease("worker", 4.0, 60.0)
        made = [
            Output(
                job_id,
                "arterial",
                "ct_series",
                f"2.25.{number}",
                uid,
                CTImageStorage,
                self.folder / uid,
                "00",
            )
            for uid in (f"2.25.{number}.{each}" for each in range(outputs))
        ]
        names = [destination.name for destination in self.destinations]
        self.ledger.record_built(job_id, "worker", made, [], names, now=5.0)
        self.deliver(job_id)
        return self.ledger.job(job_id)

    def deliver(self, job_id: int) -> list[str]:
        """What every deliver lane would send now; all of it is taken."""
        sent = []
        for destination in self.destinations:
            for output in self.ledger.pending_outputs(job_id, destination.name):
                self.ledger.record_delivery(output.sop_instance_uid, destination.name, 0, self.clock())
                sent.append(output.sop_instance_uid)
        return sent

    def state(self, job: Job) -> State:
        return self.ledger.job(job.id).state


def towards(peer: CommitPeer, mode: str = "request", **changes: Any) -> StoreDestination:
    base = {"name": "pacs", "host": "127.0.0.1", "port": peer.port, "ae_title": PEER, "commitment": mode}
    base |= {"commitment_wait_s": 0, "dimse_timeout_s": 5, "acse_timeout_s": 5, "commitment_timeout_s": 100}
    return StoreDestination.model_validate(base | changes)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    opened: list[Site] = []

    def start(*destinations: StoreDestination, requesters: tuple[Requester, ...] = ()) -> Site:
        opened.append(Site(tmp_path / "data", destinations, requesters).__enter__())
        return opened[-1]

    yield start
    for each in opened:
        each.__exit__()


def named_by(ds: Dataset) -> list[Reference]:
    return [
        Reference(str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
        for item in ds.ReferencedSOPSequence
    ]


def report_to(port: int, ds: Dataset, kind: int = 1, instance: str = PUSH_MODEL_INSTANCE) -> int | None:
    """N-EVENT-REPORT on an association of its own, as an archive does; the node's answer."""
    ae = AE(ae_title="ELSEWHERE")
    assoc = ae.associate(
        "127.0.0.1",
        port,
        contexts=[build_context(PUSH_MODEL)],
        ae_title=NODE,
        ext_neg=[build_role(PUSH_MODEL, scp_role=True)],
    )
    assert assoc.is_established
    status, _ = assoc.send_n_event_report(ds, kind, PUSH_MODEL, instance)
    assoc.release()
    return status.get("Status")


def report(
    asked: Dataset, failed: dict[str, int] | None = None, transaction_uid: str | None = None
) -> Dataset:
    """The report on a request: everything held but ``failed``."""
    reasons = failed or {}
    references = named_by(asked)
    held = tuple(one for one in references if one.sop_instance_uid not in reasons)
    bad = tuple((one, reasons[one.sop_instance_uid]) for one in references if one.sop_instance_uid in reasons)
    return written(Named(transaction_uid or str(asked.TransactionUID), held, bad))


# as SCU


def test_a_report_on_a_new_association_makes_a_job_committed(site, commit_peer):
    peer = commit_peer()
    here = site(towards(peer))
    job = here.delivered()
    here.lane(hold_s=0).run()
    assert here.state(job) is State.DELIVERED
    assert {one.sop_instance_uid for one in named_by(peer.asked[0])} == {f"2.25.1.{n}" for n in range(4)}
    assert report_to(here.scp.port, report(peer.asked[0])) == 0
    assert here.state(job) is State.COMMITTED
    assert here.ledger.events(job.id)[-1].note == "committed by pacs"
    assert here.ledger.deliveries(job.id)[0].committed == 4
    here.lane().run()
    assert len(peer.asked) == 1


def test_a_report_on_the_same_association_is_heard_and_answered(site, commit_peer):
    answers = []

    def soon(event, ds):
        def tell():
            time.sleep(0.05)
            status, _ = event.assoc.send_n_event_report(report(ds), 1, PUSH_MODEL, PUSH_MODEL_INSTANCE)
            answers.append(status.get("Status"))

        threading.Thread(target=tell).start()

    peer = commit_peer()
    peer.on_request = soon
    here = site(towards(peer))
    job = here.delivered()
    here.lane().run()
    assert here.state(job) is State.COMMITTED
    until(lambda: answers)
    assert answers == [0]


def test_a_report_that_comes_before_the_answer_to_the_request_counts(site, commit_peer):
    peer = commit_peer()
    here = site(towards(peer))
    answers = []
    peer.on_request = lambda event, ds: answers.append(report_to(here.scp.port, report(ds)))
    job = here.delivered()
    here.lane().run()
    assert answers == [0]
    assert here.state(job) is State.COMMITTED


def test_a_report_counts_although_the_request_was_answered_with_a_failure(site, commit_peer):
    peer = commit_peer(status=0x0110)
    here = site(towards(peer))
    peer.on_request = lambda event, ds: report_to(here.scp.port, report(ds))
    job = here.delivered()
    here.lane().run()
    assert here.state(job) is State.COMMITTED


def test_what_the_peer_lacks_is_sent_again_and_nothing_else(site, commit_peer):
    peer = commit_peer()
    here = site(towards(peer))
    job = here.delivered()
    here.lane(hold_s=0).run()
    lacking = {"2.25.1.1": 0x0112, "2.25.1.3": 0x0112}
    assert report_to(here.scp.port, report(peer.asked[0], lacking), kind=2) == 0
    assert here.state(job) is State.BUILT
    assert here.deliver(job.id) == list(lacking)
    assert here.state(job) is State.DELIVERED
    here.lane(hold_s=0).run()
    assert {one.sop_instance_uid for one in named_by(peer.asked[1])} == set(lacking)
    report_to(here.scp.port, report(peer.asked[1]))
    assert here.state(job) is State.COMMITTED


def test_a_late_report_of_an_earlier_question_sends_nothing_again(site, commit_peer):
    peer = commit_peer()
    here = site(towards(peer))
    job = here.delivered()
    here.lane(hold_s=0).run()
    here.clock.now += 200
    here.lane(hold_s=0).run()
    assert len(peer.asked) == 2
    assert report_to(here.scp.port, report(peer.asked[0], {"2.25.1.0": 0x0112}), kind=2) == 0
    assert here.state(job) is State.DELIVERED
    assert here.ledger.deliveries(job.id)[0].committed == 3
    report_to(here.scp.port, report(peer.asked[1]))
    assert here.state(job) is State.COMMITTED
    assert report_to(here.scp.port, report(peer.asked[1], {"2.25.1.0": 0x0112}), kind=2) == 0
    assert here.state(job) is State.COMMITTED


def test_a_peer_that_always_lacks_what_it_accepted_parks_the_job(site, commit_peer):
    peer = commit_peer()
    here = site(towards(peer, commitment_resends=1))
    job = here.delivered()
    for _ in range(2):
        here.lane(hold_s=0).run()
        report_to(here.scp.port, report(peer.asked[-1], {"2.25.1.2": 0x0112}), kind=2)
        here.deliver(job.id) if here.state(job) is State.BUILT else None
    parked = here.ledger.job(job.id)
    assert (parked.state, parked.code) == (State.PARKED, "DELIVERY-REFUSED")
    assert "storage commitment" in (parked.reason or "")
    assert here.ledger.retry(job.id, here.clock.now) is State.BUILT
    assert here.deliver(job.id) == ["2.25.1.2"]
    here.lane(hold_s=0).run()
    report_to(here.scp.port, report(peer.asked[-1]))
    assert here.state(job) is State.COMMITTED


def test_a_reason_that_neither_sending_nor_asking_mends_parks_the_job_at_once(site, commit_peer):
    peer = commit_peer()
    here = site(towards(peer))
    job = here.delivered()
    here.lane(hold_s=0).run()
    report_to(here.scp.port, report(peer.asked[0], {"2.25.1.2": 0x0119}), kind=2)
    parked = here.ledger.job(job.id)
    assert parked.state is State.PARKED
    assert "Class/instance conflict (1 instances)" in (parked.reason or "")


def test_a_reason_that_time_mends_is_asked_about_again(site, commit_peer):
    peer = commit_peer()
    here = site(towards(peer))
    job = here.delivered()
    here.lane(hold_s=0).run()
    report_to(here.scp.port, report(peer.asked[0], {"2.25.1.2": 0x0213}), kind=2)
    assert here.state(job) is State.DELIVERED
    here.clock.now += 200
    here.lane(hold_s=0).run()
    assert [one.sop_instance_uid for one in named_by(peer.asked[1])] == ["2.25.1.2"]


def test_a_peer_that_never_reports_is_asked_again_with_growing_waits_and_without_end(site, commit_peer):
    peer = commit_peer()
    here = site(towards(peer))
    job = here.delivered()
    waits = []
    for _ in range(4):
        here.lane(hold_s=0).run()
        waits.append(here.ledger.deliveries(job.id)[0].ask_not_before - here.clock.now)
        here.clock.now += waits[-1] - 1
        here.lane(hold_s=0).run()
        here.clock.now += 1
    assert waits == [110.0, 120.0, 140.0, 180.0]
    assert len(peer.asked) == len({str(ds.TransactionUID) for ds in peer.asked}) == 4
    assert here.state(job) is State.DELIVERED


def test_a_clock_that_is_set_back_by_a_day_keeps_no_question_waiting_for_a_day(site, commit_peer):
    peer = commit_peer()
    here = site(towards(peer))
    here.clock.now += 100_000
    here.delivered()
    here.lane(hold_s=0).run()
    here.clock.now -= 86_400
    here.lane(hold_s=0).run()
    here.lane(hold_s=0).run()
    assert len(peer.asked) == 2


def test_a_peer_that_refuses_or_is_away_is_asked_again_and_the_reason_is_kept(site, commit_peer):
    peer = commit_peer(status=0x0110)
    here = site(towards(peer, connect_timeout_s=1))
    job = here.delivered()
    lane = here.lane(hold_s=0)
    lane.run()
    lane.run()
    assert len(peer.asked) == 1
    assert "refused" in (here.ledger.deliveries(job.id)[0].reason or "")
    peer.stop()
    here.clock.now += 60
    lane.run()
    assert "nobody answered" in (here.ledger.deliveries(job.id)[0].reason or "")
    assert here.state(job) is State.DELIVERED


def test_nothing_is_asked_before_the_wait_is_over(site, commit_peer):
    peer = commit_peer()
    here = site(towards(peer, commitment_wait_s=30))
    here.delivered()
    here.clock.now += 29
    here.lane(hold_s=0).run()
    assert peer.asked == []
    here.clock.now += 1
    here.lane(hold_s=0).run()
    assert len(peer.asked) == 1


@pytest.mark.parametrize("mode", ["request", "query"])
def test_a_peer_without_storage_commitment_is_queried(site, commit_peer, mode):
    peer = commit_peer(offers=(FIND,) if mode == "request" else (FIND, PUSH_MODEL))
    here = site(towards(peer, mode))
    job = here.delivered()
    peer.has = {f"2.25.1.{n}" for n in range(4)} | {"9.9"}
    here.lane().run()
    assert here.state(job) is State.COMMITTED
    assert (peer.asked, peer.queries) == ([], 1)


def test_what_two_queries_miss_is_sent_again(site, commit_peer):
    peer = commit_peer(offers=(FIND,))
    here = site(towards(peer, "query"))
    job = here.delivered()
    peer.has = {"2.25.1.0", "2.25.1.1", "2.25.1.2"}
    here.lane().run()
    assert here.state(job) is State.DELIVERED
    assert "lists 3 of 4" in (here.ledger.deliveries(job.id)[0].reason or "")
    here.clock.now += 30
    here.lane().run()
    assert here.state(job) is State.BUILT
    assert here.deliver(job.id) == ["2.25.1.3"]
    peer.has.add("2.25.1.3")
    here.lane().run()
    assert here.state(job) is State.COMMITTED


def test_a_peer_that_offers_neither_is_said_so_and_asked_later(site, commit_peer):
    peer = commit_peer(offers=("1.2.840.10008.1.1",))
    here = site(towards(peer))
    job = here.delivered()
    here.lane().run()
    assert "no presentation context" in (here.ledger.deliveries(job.id)[0].reason or "")
    assert here.state(job) is State.DELIVERED


def test_a_query_that_fails_commits_nothing(site, commit_peer):
    peer = commit_peer(offers=(FIND,))
    peer.find_status = 0xA700
    here = site(towards(peer, "query"))
    job = here.delivered()
    here.lane().run()
    assert "C-FIND failed" in (here.ledger.deliveries(job.id)[0].reason or "")
    assert here.state(job) is State.DELIVERED


def test_a_peer_that_lists_without_end_is_not_listened_to(commit_peer):
    peer = commit_peer(offers=(FIND,))
    peer.has = {f"1.2.{number}" for number in range(1100)}
    assoc = AE(ae_title=NODE).associate("127.0.0.1", peer.port, contexts=[build_context(FIND)], ae_title=PEER)
    query = Dataset()
    query.QueryRetrieveLevel = "IMAGE"
    with pytest.raises(Exception, match="lists more"):
        listed(assoc, query, ["1.2.0"])


def test_a_job_is_committed_when_every_destination_that_is_asked_has_committed(site, commit_peer):
    one, two, silent = commit_peer(), commit_peer(), commit_peer()
    here = site(towards(one, name="a"), towards(two, name="b"), towards(silent, "none", name="c"))
    job = here.delivered()
    here.lane(0, hold_s=0).run()
    here.lane(1, hold_s=0).run()
    report_to(here.scp.port, report(one.asked[0]))
    assert here.state(job) is State.DELIVERED
    report_to(here.scp.port, report(two.asked[0], {"2.25.1.0": 0x0112}), kind=2)
    assert here.state(job) is State.BUILT
    assert here.deliver(job.id) == ["2.25.1.0"]
    here.lane(0, hold_s=0).run()
    here.lane(1, hold_s=0).run()
    assert (len(one.asked), len(two.asked)) == (1, 2)
    report_to(here.scp.port, report(two.asked[1]))
    assert here.state(job) is State.COMMITTED
    assert silent.asked == []


def test_a_destination_that_is_not_asked_any_longer_holds_nothing_up(site, commit_peer):
    one, two = commit_peer(), commit_peer()
    here = site(towards(one, name="a"), towards(two, name="b"))
    job = here.delivered()
    here.lane(0, hold_s=0).run()
    report_to(here.scp.port, report(one.asked[0]))
    here.ledger.close_committed({"a", "b"}, 2000.0)
    assert here.state(job) is State.DELIVERED
    here.ledger.close_committed(set(), 2000.0)
    assert here.state(job) is State.DELIVERED
    here.ledger.close_committed({"a"}, 2000.0)
    assert here.state(job) is State.COMMITTED


def test_a_destination_that_is_left_alone_is_not_asked_either(site, commit_peer):
    peer = commit_peer()
    here = site(towards(peer))
    here.delivered()
    lane = here.lane(hold_s=0)
    for _ in range(here.settings.retry.break_after):
        lane.breaker.failed("nobody answered")
    lane.run()
    assert peer.asked == []
    lane.breaker.answered()
    lane.run()
    assert len(peer.asked) == 1


ASK = """
import sys, threading
from random import Random
from config.settings import Settings
from node.breaker import Breaker
from node.commitment.ask import AskLane
from node.commitment.hear import Commitments
from node.lane import Means
from node.ledger import Ledger
settings = Settings.model_validate_json(sys.stdin.readline())
ledger = Ledger(settings.storage.data_dir / "ledger.sqlite3")
clock = lambda: 1000.0
heard = Commitments(settings, ledger, clock)
means = Means(ledger, settings.retry, Random(1), clock, clock, threading.Event(), lambda: None)
to = settings.destinations[0]
AskLane(means, to, heard, Breaker(means, to.name)).run()
"""


def test_a_node_that_is_killed_between_request_and_report_loses_nothing(site, commit_peer):
    peer = commit_peer()
    here = site(towards(peer))
    job = here.delivered()
    with subprocess.Popen([sys.executable, "-c", ASK], stdin=subprocess.PIPE) as asking:
        peer.on_request = lambda event, ds: asking.kill()
        asking.stdin.write(here.settings.model_dump_json().encode() + b"\n")
        asking.stdin.close()
        assert asking.wait(120) == -signal.SIGKILL
    assert here.state(job) is State.DELIVERED
    here.lane(hold_s=0).run()
    assert len(peer.asked) == 1
    assert report_to(here.scp.port, report(peer.asked[0])) == 0
    assert here.state(job) is State.COMMITTED


# hostile reports


def test_a_report_nobody_asked_for_changes_nothing(site, commit_peer):
    peer = commit_peer()
    here = site(towards(peer))
    job = here.delivered()
    here.lane(hold_s=0).run()
    forged = report(peer.asked[0], transaction_uid="2.25.666")
    assert report_to(here.scp.port, forged) == 0x0115
    assert here.state(job) is State.DELIVERED


def test_a_report_commits_only_what_was_asked_under_its_transaction(site, commit_peer):
    peer = commit_peer()
    here = site(towards(peer))
    first, second = here.delivered(1), here.delivered(2)
    here.lane(hold_s=0).run()
    mixed = report(peer.asked[1])
    mixed.TransactionUID = peer.asked[0].TransactionUID
    assert report_to(here.scp.port, mixed) == 0
    assert {here.state(first), here.state(second)} == {State.DELIVERED}
    other_class = report(peer.asked[0])
    for item in other_class.ReferencedSOPSequence:
        item.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    report_to(here.scp.port, other_class)
    assert here.state(first) is State.DELIVERED


def test_reports_of_another_kind_or_instance_or_without_content_are_refused(site, commit_peer):
    here = site(towards(commit_peer()))
    ds = Dataset()
    ds.TransactionUID = "2.25.1"
    assert report_to(here.scp.port, ds, kind=3) == 0x0113
    assert report_to(here.scp.port, ds, instance="1.2.3") == 0x0112
    assert report_to(here.scp.port, ds) == 0x0115


def test_a_node_that_asks_nobody_and_answers_nobody_does_not_offer_the_service(site, commit_peer):
    here = site(towards(commit_peer(), "none"))
    assoc = AE().associate("127.0.0.1", here.scp.port, contexts=[build_context(PUSH_MODEL)], ae_title=NODE)
    assert not assoc.is_established


def encoded(ds: Dataset) -> BytesIO:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    write_dataset(buffer, ds)
    return BytesIO(buffer.getvalue())


def referring(*uids: str) -> Dataset:
    return written(Named("2.25.1", tuple(Reference(CTImageStorage, uid) for uid in uids)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "data",
    [
        None,
        BytesIO(b""),
        BytesIO(b"\x08\x00\x99\x11SQ\x00\x00\xff\xff\xff\x7f"),
        BytesIO(b"\x08\x00\x99\x11SQ\x00\x00\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff" * 3000),
        BytesIO(b"\x08\x00\x95\x11UI\x04\x001.2\x00\x08\x00\x99\x11UI\x04\x001.2\x00"),
        encoded(written(Named("2.25.1", ()))),
        BytesIO(encoded(referring("1.2")).getvalue().replace(b"2.25.1", b"../../")),
        BytesIO(encoded(referring("1.2.3.4.5.6.7")).getvalue().replace(b"1.2.3.4.5.6.7", b"DOE^JANE/../x")),
        BytesIO(b"\x00" * 100),
        BytesIO(b"\xfe\xff\x00\xe0" * (MOST_REFERENCES + 1)),
    ],
    ids=[
        "none",
        "empty",
        "lies",
        "nested",
        "no sequence",
        "nothing",
        "no uid",
        "a name",
        "zeros",
        "many items",
    ],
)
def test_data_sets_that_cannot_be_used_are_refused_in_words_that_quote_nothing(data):
    with pytest.raises(NotUnderstood) as refused:
        read(data, ExplicitVRLittleEndian)
    assert "JANE" not in str(refused.value)


def test_what_is_written_is_read_again():
    named = Named(
        "2.25.1",
        (Reference("1.2", "1.3"),),
        ((Reference("1.2", "1.4"), 0x0112), (Reference("1.2", "1.5"), 7)),
    )
    assert read(encoded(written(named)), ExplicitVRLittleEndian) == named


@pytest.mark.parametrize("code", [*FAILURE_REASONS, 0x0000, 0xB000, 0xFFFF])
def test_no_reason_counts_as_delivered(code):
    answer = answer_of(Named("2.25.1", (), ((Reference("1.2", "1.4"), code),)), 3)
    cure = failure_reason(code).cure
    assert set(answer.lacking) == (set() if cure is Cure.ASK_AGAIN else {"1.4"})
    assert (answer.refusal is not None) == (cure is Cure.PERSON)
    assert set(answer.lacking.values()) <= {0x0112, 0x0119, 0x0122}


# as SCP


class Sender:
    """A sender that asks for storage commitment and hears reports at a port of its own."""

    def __init__(self, statuses: tuple[int, ...] = ()) -> None:
        self.reports: list[tuple[int, Dataset]] = []
        self.statuses = list(statuses)
        ae = AE(ae_title="CT1")
        ae.add_supported_context(PUSH_MODEL, scu_role=True, scp_role=True)
        handlers: list[Any] = [(evt.EVT_N_EVENT_REPORT, self._heard)]
        self._server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = int(self._server.socket.getsockname()[1])

    def stop(self) -> None:
        self._server.shutdown()

    def requester(self) -> Requester:
        return Requester(ae_title="CT1", host="127.0.0.1", port=self.port, timeout_s=60)

    def ask(self, port: int, ds: Dataset, action: int = 1, instance: str = PUSH_MODEL_INSTANCE, ae="CT1"):
        assoc = AE(ae_title=ae).associate(
            "127.0.0.1", port, contexts=[build_context(PUSH_MODEL)], ae_title=NODE
        )
        assert assoc.is_established
        status, _ = assoc.send_n_action(ds, action, PUSH_MODEL, instance)
        assoc.release()
        return status.get("Status")

    def _heard(self, event: evt.Event) -> tuple[int, None]:
        self.reports.append((event.event_type, event.event_information))
        return (self.statuses.pop(0) if self.statuses else 0), None


@pytest.fixture
def sender() -> Iterator[Sender]:
    started = Sender()
    yield started
    started.stop()


def failures(ds: Dataset) -> dict[str, int]:
    return {str(i.ReferencedSOPInstanceUID): int(i.FailureReason) for i in ds.get("FailedSOPSequence", [])}


def test_a_sender_hears_what_is_really_here(site, sender):
    here = site(requesters=(sender.requester(),))
    for number in (1, 2, 3):
        here.delivered(number)
    kept = {number: here.ledger.kept_instance(f"1.2.{number}.1") for number in (1, 2, 3)}
    kept[2].path.write_bytes(b"rot..")
    kept[3].path.unlink()
    ds = referring("1.2.1.1", "1.2.2.1", "1.2.3.1", "1.2.9.1")
    assert sender.ask(here.scp.port, ds) == 0
    here.reports().run()
    (kind, heard), *more = sender.reports
    assert (kind, heard.TransactionUID, more) == (2, "2.25.1", [])
    assert [one.sop_instance_uid for one in named_by(heard)] == ["1.2.1.1"]
    assert failures(heard) == {"1.2.2.1": 0x0110, "1.2.3.1": 0x0110, "1.2.9.1": 0x0112}
    here.reports().run()
    assert len(sender.reports) == 1


def test_everything_held_is_a_report_without_failures_and_another_class_is_none(site, sender):
    here = site(requesters=(sender.requester(),))
    here.delivered()
    sender.ask(here.scp.port, referring("1.2.1.1"))
    here.reports().run()
    other = written(Named("2.25.2", (Reference("1.2.840.10008.5.1.4.1.1.4", "1.2.1.1"),)))
    sender.ask(here.scp.port, other)
    here.reports().run()
    assert [kind for kind, _ in sender.reports] == [1, 2]
    assert "FailedSOPSequence" not in sender.reports[0][1]
    assert failures(sender.reports[1][1]) == {"1.2.1.1": 0x0119}


def test_what_was_purged_is_not_held_any_more(site, sender):
    here = site(requesters=(sender.requester(),))
    job = here.delivered()
    here.ledger.move(job.id, State.PARKED, 9.0)
    assert here.ledger.begin_purge(job.id, {State.PARKED}, 2000.0, 2000.0)
    sender.ask(here.scp.port, referring("1.2.1.1"))
    here.reports().run()
    assert failures(sender.reports[0][1]) == {"1.2.1.1": 0x0112}


def test_whom_the_settings_do_not_name_is_refused_and_told_to_the_audit(site, sender):
    here = site(requesters=(sender.requester(),))
    assert sender.ask(here.scp.port, referring("1.2.1.1"), ae="CT2") == 0x0124
    words = "AE title or address is not in requesters"
    assert here.alerts == [Alert(AlertKind.COMMITMENT, words, "127.0.0.1", "CT2")]
    here.reports().run()
    assert sender.reports == []


def test_requests_that_cannot_be_used_are_refused(site, sender):
    here = site(requesters=(sender.requester(),))
    assert sender.ask(here.scp.port, referring("1.2"), action=2) == 0x0123
    assert sender.ask(here.scp.port, referring("1.2"), instance="1.2.3") == 0x0112
    assert sender.ask(here.scp.port, referring()) == 0x0115


def test_ten_thousand_references_are_answered(site, sender):
    here = site(requesters=(sender.requester(),))
    here.delivered()
    ds = referring("1.2.1.1", *(f"1.2.3.4.{number}" for number in range(9_999)))
    assert sender.ask(here.scp.port, ds) == 0
    here.reports().run()
    _, heard = sender.reports[0]
    assert (len(heard.ReferencedSOPSequence), len(heard.FailedSOPSequence)) == (1, 9_999)


def test_a_requester_that_is_away_hears_later_and_after_the_last_attempt_not_any_more(site, sender):
    here = site(requesters=(sender.requester(),))
    sender.statuses = [0x0110, 0x0110, 0x0110]
    sender.ask(here.scp.port, referring("1.2.1.1"))
    for pause in (0, 9, 1, 20):
        here.clock.now += pause
        here.reports().run()
    assert len(sender.reports) == 3
    here.clock.now += 1000
    here.reports().run()
    assert len(sender.reports) == 3
    sender.ask(here.scp.port, referring("1.2.1.1"))
    here.reports().run()
    assert len(sender.reports) == 4


@pytest.mark.parametrize(("address", "answer"), [("127.0.0.0/8", 0), ("10.1.2.3", 0x0124)])
def test_a_sender_may_ask_from_its_own_addresses_only(site, sender, address, answer):
    asker = sender.requester().model_copy(update={"addresses": (address,)})
    here = site(requesters=(asker,))
    assert sender.ask(here.scp.port, referring("1.2.1.1")) == answer


@pytest.mark.parametrize(("limit", "most"), [("MOST_OPEN", 1), ("MOST_OPEN_BYTES", 60)])
def test_a_sender_that_asks_too_much_is_told_so(site, sender, monkeypatch, limit, most):
    monkeypatch.setattr(f"node.commitment.hear.{limit}", most)
    here = site(requesters=(sender.requester(),))
    first, second = referring("1.2.1.1"), referring("1.2.1.1")
    second.TransactionUID = "2.25.2"
    assert sender.ask(here.scp.port, first) == 0
    assert sender.ask(here.scp.port, first) == 0
    assert sender.ask(here.scp.port, second) == 0x0213


def test_more_messages_at_once_than_are_read_are_put_off(site, commit_peer):
    here = site(towards(commit_peer()))
    commitments: Commitments = here.scp.commitments
    for _ in range(8):
        commitments._room.acquire()
    ds = Dataset()
    ds.TransactionUID = "2.25.1"
    assert report_to(here.scp.port, ds) == 0x0213


def test_a_ledger_that_fails_is_a_processing_failure(site, sender):
    here = site(requesters=(sender.requester(),))
    here.ledger.close()
    assert sender.ask(here.scp.port, referring("1.2.1.1")) == 0x0110


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
