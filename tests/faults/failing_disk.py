"""The process whose disk fails: run by test_disk.py with fault.so loaded, says what it counted as JSON.

    python failing_disk.py receive|work|lanes|without-links SLICE STEP FIRST < settings

``receive`` lets instances come, requests to answer for them, and what an archive holds more of, and lets
every call that changes a file fail once, or fail from then on, with each error; ``work`` does the same to the
worker and to a folder destination, ``lanes`` to the lanes that send, ask, take back and let go.
"""

from __future__ import annotations

import errno
import itertools
import json
import mmap
import os
import sqlite3
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from random import Random
from threading import Event
from typing import Any

from conftest import data_set, live, spool_files
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, build_context, evt
from pynetdicom.dsutils import encode

from config.settings import ArchivePeer, Settings, StoreDestination
from engine.session import SessionPolicy
from node.archive import Archive, matches
from node.breaker import Breaker
from node.commitment.ask import AskLane
from node.commitment.wire import (
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    REQUEST_ACTION,
    SYNTAXES,
    Named,
    written,
)
from node.deliver import HOUR_S, DeliverLane
from node.destinations import folder as folder_destination
from node.destinations.cstore import associated
from node.flow import BUG, Failure, attempt
from node.lane import Means
from node.ledger import LEDGER_FILE, Job, Ledger, Reference
from node.models import ModelStore
from node.outbox import put
from node.outputs.encoding import Instance
from node.pull.complete import CompleteLane, is_awaited
from node.pull.query import FIND, GET
from node.purge import DAY_S, Retention
from node.receive import COERCED, SUCCESS, Arrival, Receiver
from node.rejection.lane import NotesLane
from node.rejection.retract import Retractor
from node.scp import Scp
from node.settle import settle_due
from node.spool import Spool, inbox_name
from node.states import State
from node.worker import Engines, Worker

ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO}
EVERY_CHANGE = 1 | 2 | 4 | 8 | 16 | 32
"""Open for writing, write, sync, name, make a folder, cut; not remove."""
NAME, REMOVE = 8, 64
NO_WRITE = 0
MOST_CALLS = 400


class Fault:
    """The block that fault.so reads: see struct fault there."""

    LAYOUT = struct.Struct("7q256s")

    def __init__(self) -> None:
        with Path(os.environ["S2NODE_FAULT"]).open("r+b") as file:
            self._block = mmap.mmap(file.fileno(), self.LAYOUT.size)

    @contextmanager
    def at(self, number: int, error: int, *, lasting: bool, kinds: int = EVERY_CHANGE) -> Iterator[None]:
        """The ``number``-th change below the root fails, and all later ones with ``lasting``."""
        self.LAYOUT.pack_into(self._block, 0, kinds, number, error, lasting, 0, 0, 0, b"")
        try:
            yield
        finally:
            self._block[:8] = bytes(8)

    @property
    def calls(self) -> int:
        """How many changes there were."""
        return int(self.LAYOUT.unpack_from(self._block)[4])

    @property
    def hits(self) -> int:
        return int(self.LAYOUT.unpack_from(self._block)[5])

    @property
    def first(self) -> str:
        """The call that failed first, and on what kind of file."""
        return self.LAYOUT.unpack_from(self._block)[7].partition(b"\0")[0].decode()


@dataclass
class Tally:
    """What came of the faults, and what must not have."""

    struck: Counter[str]
    refused: int = 0
    kept_all_the_same: int = 0
    false_success: int = 0
    needed_a_person: int = 0
    not_recovered: int = 0

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "struck": dict(self.struck)}


def kind_of(first: str) -> str:
    """``write inbox``: the call and the folder or file it was about, without names."""
    call, _, path = first.partition(" ")
    return f"{call} {path.strip('/').split('/')[0]}"


def arrival_of(ds: Dataset, calling_ae: str = "CT") -> Arrival:
    """The instance as it comes over the network."""
    data = encode(ds, False, True)
    assert data is not None
    return Arrival(
        str(ds.SOPClassUID), str(ds.SOPInstanceUID), ExplicitVRLittleEndian, calling_ae, memoryview(data)
    )


def is_kept(settings: Settings, ds: Dataset) -> bool:
    """Whether somebody who opens the ledger afresh finds the instance and its bytes, whole."""
    with Ledger(settings.storage.data_dir / LEDGER_FILE) as ledger:
        jobs = ledger.find_jobs(ds.SeriesInstanceUID)
        held = {each.sop_instance_uid: each for each in ledger.instances(jobs[-1].id)} if jobs else {}
    mine = held.get(ds.SOPInstanceUID)
    return mine is not None and is_whole(mine) and mine.path.read_bytes().endswith(arrival_of(ds).data)


def is_aside(settings: Settings, ds: Dataset) -> bool:
    """The same of an instance in quarantine."""
    with Ledger(settings.storage.data_dir / LEDGER_FILE) as ledger:
        mine = [each for each in ledger.set_aside() if is_whole(each)]
    return any(each.path.read_bytes().endswith(arrival_of(ds).data) for each in mine)


def is_noted(settings: Settings, asked: Named) -> bool:
    """The same of the one request for storage commitment that is open."""
    with Ledger(settings.storage.data_dir / LEDGER_FILE) as ledger:
        found = ledger.request_due("CT", time.time())
    return found is not None and (found.transaction_uid, found.references) == (
        asked.transaction_uid,
        asked.held,
    )


class Slices:
    """Ever new slices, made of one: of a new series, of the series before, late, again, or changed."""

    def __init__(self, template: Path) -> None:
        self._template = template
        self._number = 0

    def of(self, series: int) -> Dataset:
        self._number += 1
        ds = dcmread(self._template)
        ds.SeriesInstanceUID = f"2.25.5.{series}"
        ds.StudyInstanceUID = f"2.25.6.{series}"
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"2.25.7.{self._number}"
        return ds


class Giver:
    """An archive that lists ``held`` and sends it by C-GET."""

    def __init__(self, entry: ArchivePeer) -> None:
        self.held: list[Dataset] = []
        ae = AE(ae_title=entry.ae_title)
        for model in (FIND, GET):
            ae.add_supported_context(model)
        ae.add_supported_context(CTImageStorage, ExplicitVRLittleEndian, scu_role=True, scp_role=True)
        ae.start_server(
            (entry.host, entry.port),
            block=False,
            evt_handlers=[(evt.EVT_C_FIND, self._find), (evt.EVT_C_GET, self._get)],
        )

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset]]:
        query = event.identifier
        return ((0xFF00, match) for match in matches(self.held, query, str(query.QueryRetrieveLevel)))

    def _get(self, event: evt.Event) -> Iterator[Any]:
        named = event.identifier.get("SOPInstanceUID")
        wanted = [ds for ds in self.held if ds.SOPInstanceUID == named]
        yield len(wanted)
        for ds in wanted:
            yield 0xFF00, ds


@dataclass(frozen=True)
class Coming:
    """What comes while the disk fails.

    ``comes`` says whether we then say that we have it, ``is_kept`` whether somebody who opens the ledger
    afresh finds it, whole.
    """

    comes: Callable[[], bool]
    is_kept: Callable[[], bool]


class Receives:
    """What writes because something comes; each of ``OCCASIONS`` gets ready for a series of that number."""

    def __init__(self, settings: Settings, template: Path, opened: ExitStack) -> None:
        self.settings = settings
        self.spool = Spool(settings.storage.data_dir)
        self.ledger = opened.enter_context(Ledger(settings.storage.data_dir / LEDGER_FILE))
        self.receiver = Receiver(self.spool, self.ledger, 2**24, time.time)
        self.slices = Slices(template)
        scp = opened.enter_context(Scp(settings, self.ledger, self.spool))
        self.node = StoreDestination(
            name="node", host="127.0.0.1", port=scp.port, ae_title="S2NODE", calling_ae_title="CT"
        )
        self.archive = settings.archives[0]
        self.giver = Giver(self.archive)

    def take(self, ds: Dataset, calling_ae: str = "CT") -> int:
        return self.receiver.take(arrival_of(ds, calling_ae)).status

    def instance(self, ds: Dataset) -> Coming:
        return Coming(lambda: self.take(ds) == SUCCESS, lambda: is_kept(self.settings, ds))

    def first(self, series: int) -> Coming:
        return self.instance(self.slices.of(series))

    def next_one(self, series: int) -> Coming:
        self.take(self.slices.of(series))
        return self.instance(self.slices.of(series))

    def again(self, series: int) -> Coming:
        ds = self.slices.of(series)
        self.take(ds)
        return self.instance(ds)

    def late(self, series: int) -> Coming:
        self.take(self.slices.of(series))
        self.ledger.move(self.job_of(series).id, State.SETTLED, time.time())
        return self.instance(self.slices.of(series))

    def after_a_power_cut_left_half_of_it(self, series: int) -> Coming:
        ds = self.slices.of(series)
        whole = arrival_of(ds).head + bytes(arrival_of(ds).data)
        name = inbox_name(ds.SeriesInstanceUID, ds.SOPInstanceUID, sha256(whole).hexdigest())
        path = self.spool.root / name
        path.parent.mkdir()
        path.write_bytes(whole[: len(whole) // 2])
        return self.instance(ds)

    def other_bytes_under_a_known_uid(self, series: int) -> Coming:
        ds = self.slices.of(series)
        self.take(ds)
        ds.PixelData = bytes(len(ds.PixelData))
        return Coming(lambda: self.take(ds) == COERCED, lambda: is_aside(self.settings, ds))

    def request_to_answer_for_it(self, series: int) -> Coming:
        ds = self.slices.of(series)
        while done := self.ledger.request_due("CT", time.time()):
            self.ledger.close_request(done.id, None, time.time())
        asked = Named(f"2.25.4.{series}", (Reference(ds.SOPClassUID, ds.SOPInstanceUID),))

        def comes() -> bool:
            with associated(self.node, [build_context(PUSH_MODEL, list(SYNTAXES))]) as assoc:
                answer, _ = assoc.send_n_action(
                    written(asked), REQUEST_ACTION, PUSH_MODEL, PUSH_MODEL_INSTANCE
                )
            return bool(answer.get("Status") == SUCCESS)

        return Coming(comes, lambda: is_noted(self.settings, asked))

    def what_its_archive_has_more_of(self, series: int) -> Coming:
        """We say that we have it where the series no longer waits for its archive."""
        here, there = self.slices.of(series), self.slices.of(series)
        self.take(here, self.archive.ae_title)
        self.giver.held = [here, there]
        retry, later = self.settings.retry, lambda: time.time() + HOUR_S

        def comes() -> bool:
            means = Means(self.ledger, retry, Random(1), later, time.monotonic, Event(), lambda: None)
            lane = CompleteLane(means, self.archive, self.settings, self.receiver.take)
            for _ in ("fetch it", "ask whether that is all"):
                attempt(lane.run)
            return not is_awaited(self.ledger, self.settings, self.job_of(series))

        return Coming(comes, lambda: is_kept(self.settings, here) and is_kept(self.settings, there))

    def job_of(self, series: int) -> Job:
        return self.ledger.find_jobs(f"2.25.5.{series}")[-1]

    OCCASIONS = (
        first, next_one, again, late, after_a_power_cut_left_half_of_it, other_bytes_under_a_known_uid,
        request_to_answer_for_it, what_its_archive_has_more_of,
    )  # fmt: skip


def receive(settings: Settings, template: Path, step: int, first: int) -> Tally:
    tally, fault, series = Tally(Counter()), Fault(), itertools.count(1)
    with ExitStack() as opened:
        receives = Receives(settings, template, opened)
        for prepare, error, lasting in itertools.product(receives.OCCASIONS, ERRORS.values(), (False, True)):
            for number in range(1 + first, MOST_CALLS, step):
                coming = prepare(receives, next(series))
                with fault.at(number, error, lasting=lasting):
                    is_promised = coming.comes()
                if not fault.hits:
                    break
                tally.struck[kind_of(fault.first)] += 1
                tally.kept_all_the_same += is_promised
                tally.refused += not is_promised
                tally.false_success += is_promised and not coming.is_kept()
                tally.not_recovered += not coming.comes() or not coming.is_kept()
        left = [path for path in (receives.spool.root / "tmp").iterdir() if path.is_file()]
    tally.not_recovered += len(left)
    return tally


class Works:
    """A worker and a folder destination in this process; what a supervisor starts again, it starts again."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ledger = Ledger(settings.storage.data_dir / LEDGER_FILE)
        self.spool = Spool(settings.storage.data_dir)
        self.engines = Engines(ModelStore(settings), SessionPolicy(provider="cpu", threads=1))
        self.now = time.time()

    def take(self, files: list[Dataset]) -> int:
        """Receive a series; the job's number."""
        receiver = Receiver(self.spool, self.ledger, 2**24, lambda: self.now)
        for ds in files:
            assert receiver.take(arrival_of(ds)).status == SUCCESS
        return self.ledger.find_jobs(str(files[0].SeriesInstanceUID))[-1].id

    def step(self) -> None:
        """One look of every lane, an hour after the one before; a process that dies is started again."""
        self.now += 3600
        try:
            settle_due(self.ledger, self.settings, self.now)
            Worker(
                self.settings, self.ledger, self.spool, self.engines, f"host/boot/{self.now}/1", Event(),
                Random(1), lambda: self.now,
            ).work_once()  # fmt: skip
        except (OSError, sqlite3.Error):
            pass

    def deliver(self, job_id: int) -> bool:
        """Copy the job's outputs; whether the folder answered for every one."""
        try:
            outputs = [output.path for output in self.ledger.outputs(job_id)]
            return len(list(folder_destination.deliver(self.settings.destinations[0], outputs))) == len(
                outputs
            )
        except Exception:
            return False


def work(settings: Settings, template: Path, step: int, first: int) -> Tally:
    tally, fault = Tally(Counter()), Fault()
    works = Works(settings)
    paths = sorted(template.parent.glob("*.dcm"))
    for error in ERRORS.values():
        for lasting in (False, True):
            for number in range(1 + (step // 3 + first) % step, 10 * MOST_CALLS, step):
                job_id = works.take([renamed(dcmread(path), number, error, lasting) for path in paths])
                with fault.at(number, error, lasting=lasting):
                    works.step()
                    job = works.ledger.job(job_id)
                    delivered = job.state is State.BUILT and works.deliver(job_id)
                if not fault.hits:
                    break
                tally.struck[kind_of(fault.first)] += 1
                tally.refused += not delivered
                tally.kept_all_the_same += delivered
                if job.state is State.BUILT:
                    tally.false_success += not all(
                        is_whole(output) for output in works.ledger.outputs(job_id)
                    )
                works.step()
                works.step()
                state = works.ledger.job(job_id).state
                tally.needed_a_person += state in {State.PARKED, State.REJECTED}
                tally.not_recovered += state is not State.BUILT or not works.deliver(job_id)
    return tally


def renamed(ds: Dataset, number: int, error: int, lasting: bool) -> Dataset:
    ds.SeriesInstanceUID = f"2.25.8.{number}.{error}.{int(lasting)}"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = (
        f"{ds.SeriesInstanceUID}.{ds.InstanceNumber}"
    )
    return ds


def is_whole(output: Any) -> bool:
    return output.path.is_file() and sha256(output.path.read_bytes()).hexdigest() == output.sha256


class Lanes(Works):
    """The lanes behind the worker, in this process, towards archives of ours that are well.

    One is asked by storage commitment, which comes back to a listener of the node, one by queries.
    """

    LOOKS = 3
    """A note is sent in the look after it was written, and what waits for it in the next."""
    HOLD_S = 0.5

    def __init__(self, settings: Settings, archives: dict[str, Archive], opened: ExitStack) -> None:
        super().__init__(settings)
        self.archives = archives
        scp = opened.enter_context(Scp(settings, self.ledger, self.spool, self.clock))
        for archive in archives.values():
            archive.introduce(settings.listen.ae_title, "127.0.0.1", scp.port)
        self.lanes: list[Callable[[], None]] = [NotesLane(self.means(), self.announce).run]
        breakers = {name: Breaker(self.means(), name) for name in archives}
        for each in settings.destinations:
            self.lanes.append(DeliverLane(self.means(), each, breakers[each.name]).run)
        for each in settings.destinations:
            asking = AskLane(self.means(), each, scp.commitments, breakers[each.name], self.HOLD_S)
            self.lanes.append(asking.run)
        self.lanes.append(
            Retention(settings.retention, self.ledger, self.spool, self.clock, lambda: None).run
        )

    def clock(self) -> float:
        return self.now

    def means(self) -> Means:
        return Means(
            self.ledger, self.settings.retry, Random(1), self.clock, self.clock, Event(), lambda: None
        )

    def announce(self, job: Job) -> None:
        Retractor(self.settings, self.ledger, self.spool, self.clock).announce(job)

    def look(self) -> None:
        """One look of every lane, an hour after the one before; one that fails looks again in the next."""
        self.now += HOUR_S
        for lane in self.lanes:
            outcome = attempt(lane)
            assert not isinstance(outcome, Failure) or outcome.disposition != BUG, outcome.trace

    def built(self, slices: list[Dataset]) -> int:
        """Receive the slices and have them built, without a model: the number of the job, which is BUILT."""
        job_id = self.take(slices)
        for state in (State.SETTLED, State.READY):
            self.ledger.move(job_id, state, self.now)
        assert self.ledger.lease("host/boot/1/1", self.now, HOUR_S)
        made = [self.made(job_id, each.path) for each in self.ledger.instances(job_id)]
        outputs = [
            put(self.spool, Instance.of(ds), job_id=job_id, phase="arterial", kind="ct_series") for ds in made
        ]
        self.ledger.record_built(job_id, "host/boot/1/1", outputs, [], list(self.archives), now=self.now)
        return job_id

    def made(self, job_id: int, path: Path) -> Dataset:
        ds = dcmread(path)
        ds.SeriesInstanceUID, ds.SOPInstanceUID = f"2.25.9.{job_id}", f"{ds.SOPInstanceUID}.{job_id}"
        return ds

    def comes_to(self, goal: Callable[[], bool]) -> bool:
        """Whether it is reached within a few looks."""
        for _ in range(2 * self.LOOKS):
            if goal():
                return True
            self.look()
        return goal()

    def is_shown(self, case: Case) -> bool:
        return all(case.is_shown_by(archive) for archive in self.archives.values())

    def is_empty(self) -> bool:
        """Whether everything was let go."""
        states = {job.state for job in self.ledger.jobs()}
        return states <= {State.PURGED, State.SUPERSEDED} and spool_files(self.spool.root) == 0


@dataclass
class Case:
    """A result on its way: what every archive is to show of its study in the end, and to keep in all."""

    study: str
    results: dict[str, bytes]
    files: int
    is_done: Callable[[], bool]

    def is_shown_by(self, archive: Archive) -> bool:
        """Whether it shows exactly the result, whole, and has nothing twice."""
        folder = archive.folder / self.study
        shown = {uid: data_set(path) for uid, path in live(folder).items()}
        return shown == self.results and len(list(folder.rglob("*.dcm"))) == self.files


def sent(works: Lanes, slices: list[Dataset], superseded: int = 0) -> Case:
    """A result that is to be sent and answered for."""
    job_id = works.built(slices)
    results = {each.sop_instance_uid: data_set(each.path) for each in works.ledger.outputs(job_id)}
    files = len(results) + superseded + bool(superseded)  # one note on all of these
    study = str(slices[0].StudyInstanceUID)
    return Case(study, results, files, lambda: works.ledger.job(job_id).state is State.COMMITTED)


def taken_back(works: Lanes, slices: list[Dataset]) -> Case:
    """The same, where an earlier result has to be taken back first."""
    assert works.comes_to(sent(works, slices[:-1]).is_done)
    return sent(works, slices[-1:], superseded=len(slices) - 1)


def let_go(works: Lanes, slices: list[Dataset]) -> Case:
    """A result that was superseded, its note, its successor, a file in quarantine and a stray; all old."""
    case = taken_back(works, slices)
    assert works.comes_to(case.is_done)
    other = slices[0]
    other.PixelData = bytes(len(other.PixelData))
    receiver = Receiver(works.spool, works.ledger, 2**24, works.clock)
    assert receiver.take(arrival_of(other)).status == COERCED
    stray = works.made(0, works.ledger.set_aside()[-1].path)
    put(works.spool, Instance.of(stray), job_id=0, phase="arterial", kind="ct_series")
    works.now += 2 * DAY_S
    return replace(case, is_done=works.is_empty)


def lanes(settings: Settings, template: Path, step: int, first: int) -> Tally:
    """Every ``step``-th of the writes that there are while nothing fails; those of each ``first`` < ``step``
    are others.
    """
    tally, fault, slices, rng = Tally(Counter()), Fault(), Slices(template), Random(1)
    series = itertools.count(1)
    with ExitStack() as opened:
        archives = {
            each.name: opened.enter_context(archive_of(each, settings.storage.data_dir.parent))
            for each in settings.destinations
        }
        works = Lanes(settings, archives, opened)

        def play(prepare: Callable[[Lanes, list[Dataset]], Case], *harm: int, lasting: bool = False) -> None:
            number = next(series)
            strike(works, prepare(works, [slices.of(number) for _ in range(3)]), fault, tally, *harm, lasting)

        for prepare in (sent, taken_back, let_go):
            play(prepare, NO_WRITE, errno.EIO)
            writes = fault.calls
            for error, lasting in itertools.product(ERRORS.values(), (False, True)):
                for number in range(1 + (rng.randrange(step) + first) % step, writes + 1, step):
                    play(prepare, number, error, lasting=lasting)
    return tally


def strike(
    works: Lanes, case: Case, fault: Fault, tally: Tally, number: int, error: int, lasting: bool
) -> None:
    """Let every lane look while the disk fails, then while it is well; in the end everything is let go."""
    with fault.at(number, error, lasting=lasting, kinds=EVERY_CHANGE | REMOVE):
        for _ in range(works.LOOKS):
            works.look()
    is_done = case.is_done()
    tally.false_success += is_done and not works.is_shown(case)
    if fault.hits:
        tally.struck[kind_of(fault.first)] += 1
        tally.refused += not is_done
        tally.kept_all_the_same += is_done
    works.spool.sweep()  # a disk that lets nothing be removed leaves drafts to the next start
    tally.not_recovered += not works.comes_to(case.is_done) or not works.is_shown(case)
    tally.needed_a_person += bool(works.ledger.jobs([State.PARKED, State.REJECTED]))
    works.now += 2 * DAY_S
    tally.not_recovered += not works.comes_to(works.is_empty)


def archive_of(destination: Any, folder: Path) -> Archive:
    """An archive for the destination, on a disk that is well."""
    return Archive(
        folder / destination.name, ae_title=destination.ae_title, host=destination.host, port=destination.port
    )


def without_links(settings: Settings, template: Path, _step: int, _first: int) -> Tally:
    """A filesystem that knows no second names: each file is renamed instead."""
    tally, fault, slices = Tally(Counter()), Fault(), Slices(template)
    spool = Spool(settings.storage.data_dir)
    with Ledger(settings.storage.data_dir / LEDGER_FILE) as ledger:
        receiver = Receiver(spool, ledger, 2**24, time.time)
        for error in (errno.EPERM, errno.EOPNOTSUPP):
            ds = slices.of(1)
            with fault.at(1, error, lasting=False, kinds=NAME):
                answer = receiver.take(arrival_of(ds))
            tally.struck[kind_of(fault.first)] += fault.hits
            tally.kept_all_the_same += answer.status == SUCCESS and is_kept(settings, ds)
    tally.not_recovered += len([path for path in (spool.root / "tmp").iterdir() if path.is_file()])
    return tally


if __name__ == "__main__":
    what, template, step, first = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    settings = Settings.model_validate_json(sys.stdin.readline())
    forms = {"receive": receive, "work": work, "lanes": lanes, "without-links": without_links}
    tally = forms[what](settings, template, step, first)
    sys.stdout.write(json.dumps(tally.as_json()) + "\n")
