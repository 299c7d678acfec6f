"""The node as a service: start, serve, stop.

The SCP answers in threads of its own; every lane (settle, one deliver lane a destination, one lane each for
those that are asked to commit and for those that ask us, the health check) has a thread that steps by a clock
nobody sets; each worker is a child process that a supervisor keeps alive. Everything they share is the ledger
and the spool.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from threading import Event, Lock, Thread
from types import TracebackType

import structlog

from config.settings import ArchivePeer, Destination, FolderDestination, Requester, Settings, StoreDestination
from node import log as node_log
from node import watchdog
from node.breaker import Breaker
from node.clock import SetClock
from node.commitment.ask import AskLane
from node.commitment.hear import asks
from node.commitment.report import ReportLane
from node.deliver import DeliverLane
from node.errors import NodeError
from node.flow import Failure, attempt
from node.lane import Means
from node.ledger import LEDGER_FILE, Job, Ledger, StaleLease
from node.memory import give_back_freed_memory, share_freed_memory
from node.pull.complete import CompleteLane
from node.pull.query import peer_of
from node.purge import Retention
from node.receive import Receiver
from node.refresh import CHECK_S as REFRESH_CHECK_S
from node.refresh import RefreshLane
from node.rejection.lane import NotesLane
from node.scp import Scp
from node.settle import settle_due
from node.spool import Spool
from node.states import State
from node.supervisor import EXIT_CONFIG, Supervisor, is_gone, is_of_this_boot, on_its_gpu
from node.watch.post import FOLLOW_S, Watch
from node.watch.signs import Signs, WorkerSign
from node.watchdog import Pulse

log = structlog.get_logger(__name__)

LOCK = "node.lock"
"""The file in the data folder that one node at a time has locked."""
DELIVER_CHECK_S = 0.2
"""Seconds between two looks for something to deliver, to ask about or to report."""
NOTES_CHECK_S = 1.0
"""Seconds between two looks for superseded results to announce."""
HEALTH_CHECK_S = 30.0
"""Seconds between two health checks where systemd asks for none."""
MEMORY_CHECK_S = 60.0
"""Seconds between two times that free memory is given back."""
PATIENCE_S = 60.0
"""Seconds a lane may be silent beyond what its own time-outs explain."""

WATCH_LIMIT_S = 3600.0
"""Seconds the log of moves and the audit may be busy: neither is worth a restart of the node."""


class NodeRunning(NodeError):
    """Another node works on this data folder."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A step the clock takes every ``every_s`` seconds; silent for ``limit_s`` seconds it counts as stuck."""

    name: str
    step: Callable[[], object]
    every_s: float
    limit_s: float


class Node:
    """One node on one data folder. ``start`` and ``stop``, or a ``with`` statement; not to be started twice.

    ``ended`` is set when the node cannot go on by itself; ``exit_code`` then says why.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ended = Event()
        self.exit_code = 0
        self._stopping = Event()
        self._open = ExitStack()
        self._pulses: dict[str, Pulse] = {}
        self._supervisors: list[Supervisor] = []

    def start(self) -> Node:
        """Recover what a predecessor left, then listen and work.

        Raises NodeRunning where another node has the data folder, OSError where the port is taken.
        """
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        log.info("node started", port=self.port, workers=len(self._supervisors))
        return self

    def stop(self) -> None:
        """Stop listening, let every lane finish what it is at, hand running jobs back, close everything."""
        self._stopping.set()
        self._open.close()

    def __enter__(self) -> Node:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The TCP port the node listens on."""
        return self.scp.port

    def problems(self) -> list[str]:
        """What is wrong with the node now: lanes that are stuck, workers nobody watches, a deaf listener."""
        answer = [] if self.watch.answers() else ["the listener does not answer"]
        return self.signs().ailments() + answer

    def signs(self) -> Signs:
        """What the node knows of itself now."""
        stuck = watchdog.stuck(self._pulses, time.monotonic())
        return Signs(
            lanes={name: name not in stuck for name in self._pulses},
            workers=tuple(
                WorkerSign(keeper.is_alive, keeper.pid is not None, keeper.is_ready)
                for keeper in self._supervisors
            ),
            open_associations=self.scp.open_associations,
            has_room=self.spool.has_room_for_new(),
            refused=self.scp.refused,
        )

    def _start(self) -> None:
        storage = self.settings.storage
        self.spool = Spool.of(storage)
        self._open.callback(os.close, sole_owner(storage.data_dir))
        self.spool.sweep()
        self.ledger = self._open.enter_context(Ledger(storage.data_dir / LEDGER_FILE))
        self._free_orphans()
        self.watch = self._open.enter_context(Watch(self.settings, self.ledger, self.signs, self._answers))
        self._start_workers()
        self._start_listening()
        silent = [each.name for each in self.settings.destinations if not each.rejection_notes]
        self.ledger.forgo_notes(silent, time.time())
        self.ledger.close_committed(self.scp.commitments.required, time.time())
        self._start_clock()
        self.watch.serve()

    def _answers(self) -> bool:
        """Whether the listener answers; one that turns callers away for want of a place is not deaf."""
        began = time.monotonic()
        answered = watchdog.answers(self.settings.listen, self.port, self.settings.tls)
        return answered or self.scp.turned_away_since(began)

    def _start_listening(self) -> None:
        scp = Scp(self.settings, self.ledger, self.spool, alarm=self.watch.alarm)
        self.scp = self._open.enter_context(scp)
        self._listening_since = time.monotonic()

    def _start_workers(self) -> None:
        for number in range(self.settings.worker.count):
            keeper = Supervisor(
                on_its_gpu(self.settings, number), on_death=self._worker_died, on_fatal=self._worker_unfit
            )
            keeper.start()
            self._open.callback(keeper.stop)
            self._supervisors.append(keeper)

    def _start_clock(self) -> None:
        """One thread a lane; the first step comes after the lane's own time, the last may be waited for."""
        self._set_clock, self._clock_guard, self._moved_s = SetClock(), Lock(), 0.0
        self.ledger.follow_clock(time.time())
        for lane in self._lanes():
            self._pulses[lane.name] = Pulse(lane.limit_s, time.monotonic())
            thread = Thread(target=self._turn, args=(lane,), name=lane.name, daemon=True)
            self._open.callback(thread.join)
            thread.start()

    def _turn(self, lane: Lane) -> None:
        while not self._stopping.wait(lane.every_s):
            with self._clock_guard:
                attempt(self._follow_clock)
            self._step(lane)

    def _follow_clock(self) -> None:
        """Where the clock was set, waits go on as if it had not been, and quiet counts from now on."""
        self._moved_s += self._set_clock.moved_s()
        if self._moved_s:
            self._listening_since = time.monotonic()
            self.ledger.follow_clock(time.time(), self._moved_s)
            log.warning("the clock was set", seconds=round(self._moved_s))
            self._moved_s = 0.0

    def _lanes(self) -> list[Lane]:
        settle = self.settings.settle
        lanes = [Lane("settle", self._settle, settle.check_s, settle.check_s + PATIENCE_S)]
        for destination in self.settings.destinations:
            lanes += self._lanes_towards(destination)
        lanes += [self._report_lane(requester) for requester in self.settings.requesters]
        if self.settings.refresh.schedule:
            lanes.append(self._refresh_lane())
        lanes += [self._complete_lane(each) for each in self.settings.archives if each.completes != "none"]
        lanes += [Lane(name, step, FOLLOW_S, WATCH_LIMIT_S) for name, step in self.watch.steps()]
        every_s = watchdog.feed_every_s() or HEALTH_CHECK_S
        orphans = Lane(
            "orphans",
            self._free_orphans,
            self.settings.worker.heartbeat_s,
            self.settings.worker.heartbeat_s + PATIENCE_S,
        )
        lanes += self._upkeep_lanes()
        return [*lanes, orphans, Lane("health", self._check_health, every_s, every_s + PATIENCE_S)]

    def _means(self, lane: str) -> Means:
        """What the lane of this name works with."""
        return Means(
            ledger=self.ledger,
            retry=self.settings.retry,
            rng=Random(),
            clock=time.time,
            elapsed=time.monotonic,
            stopping=self._stopping,
            beat=lambda: self._pulses[lane].beat(time.monotonic()),
        )

    def _lanes_towards(self, destination: Destination) -> list[Lane]:
        """The lanes of one destination, under one breaker: deliver, and ask where it is asked to commit."""
        limit_s = longest_silence_s(destination) + PATIENCE_S
        deliver, ask = f"deliver {destination.name}", f"ask {destination.name}"
        breaker = Breaker(self._means(deliver), destination.name)
        lane = DeliverLane(self._means(deliver), destination, breaker)
        lanes = [Lane(deliver, lane.run, DELIVER_CHECK_S, limit_s)]
        if isinstance(destination, StoreDestination) and asks(destination):
            asking = AskLane(self._means(ask), destination, self.scp.commitments, breaker)
            lanes.append(Lane(ask, asking.run, DELIVER_CHECK_S, limit_s))
        return lanes

    def _report_lane(self, requester: Requester) -> Lane:
        name = f"report {requester.ae_title}"
        lane = ReportLane(self._means(name), requester, self.settings.listen.ae_title)
        return Lane(name, lane.run, DELIVER_CHECK_S, 3 * requester.timeout_s + PATIENCE_S)

    def _complete_lane(self, archive: ArchivePeer) -> Lane:
        name = f"complete {archive.name}"
        limit = self.settings.storage.max_instance_bytes
        receiver = Receiver(self.spool, self.ledger, limit, time.time)
        lane = CompleteLane(self._means(name), archive, self.settings, receiver.take)
        limit_s = longest_silence_s(peer_of(archive)) + PATIENCE_S
        return Lane(name, partial(self._complete, lane), self.settings.settle.check_s, limit_s)

    def _upkeep_lanes(self) -> list[Lane]:
        """Rejection notes on superseded results, and what goes by itself."""
        retention = self.settings.retention
        beat = self._means("retention").beat
        step = Retention(retention, self.ledger, self.spool, time.time, beat).run
        return [
            Lane(
                "notes",
                NotesLane(self._means("notes"), self._announce).run,
                NOTES_CHECK_S,
                NOTES_CHECK_S + PATIENCE_S,
            ),
            Lane("retention", step, retention.check_s, retention.check_s + PATIENCE_S),
            Lane("memory", give_back_freed_memory, MEMORY_CHECK_S, MEMORY_CHECK_S + PATIENCE_S),
        ]

    def _announce(self, job: Job) -> None:
        from node.rejection.retract import Retractor  # noqa: PLC0415 (highdicom takes its time)

        Retractor(self.settings, self.ledger, self.spool, time.time).announce(job)

    def _refresh_lane(self) -> Lane:
        lane = self._open.enter_context(RefreshLane(self.settings))
        return Lane("refresh", lane.run, REFRESH_CHECK_S, REFRESH_CHECK_S + PATIENCE_S)

    def _step(self, lane: Lane) -> None:
        """One step of a lane; only a step that ended well is a sign of life."""
        if self._stopping.is_set():
            return
        outcome = attempt(lane.step)
        if isinstance(outcome, Failure):
            log.error("lane failed", lane=lane.name, trace=outcome.trace)
        else:
            self._pulses[lane.name].beat(time.monotonic())

    def _has_listened(self) -> bool:
        """Nothing counts as quiet before we have listened for as long: senders come back after a stop."""
        return time.monotonic() - self._listening_since >= self.settings.settle.quiet_s

    def _complete(self, lane: CompleteLane) -> None:
        if self._has_listened():
            lane.run()

    def _settle(self) -> None:
        if self._has_listened():
            settle_due(self.ledger, self.settings, time.time(), self._means("settle").beat)

    def _free_orphans(self) -> None:
        free_orphans(self.ledger, time.time())

    def _check_health(self) -> None:
        """Feed systemd's watchdog, or say why not."""
        problems = self.problems()
        if problems:
            log.error("node is not well", problems="; ".join(problems))
        else:
            watchdog.notify("WATCHDOG=1")

    def _worker_died(self, owner: str) -> None:
        free_orphans(self.ledger, time.time(), is_dead=lambda other: other == owner)

    def _worker_unfit(self) -> None:
        self.exit_code = EXIT_CONFIG
        self.ended.set()


def serve(settings: Settings) -> int:
    """Run a node until SIGTERM or SIGINT; the exit code: 0, or 78 where the models cannot run here."""
    node_log.configure(settings.log)
    share_freed_memory()
    with Node(settings) as node:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: node.ended.set())
        watchdog.notify("READY=1")
        node.ended.wait()
        watchdog.notify("STOPPING=1")
    return node.exit_code


def sole_owner(data_dir: Path) -> int:
    """A lock on the data folder that ends with this process, as a file descriptor; raises NodeRunning."""
    descriptor = os.open(data_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise NodeRunning(f"another node works on {data_dir}: stop it, or give this one a folder") from None
    return descriptor


def free_orphans(ledger: Ledger, now: float, is_dead: Callable[[str], bool] = is_gone) -> None:
    """Give back the jobs of workers that are dead, so that nobody waits for their leases to run out.

    What ended with the machine is no attempt: a job is not parked for power cuts.
    """
    for job in ledger.jobs({State.READY}):
        if job.owner is None or not is_dead(job.owner):
            continue
        with suppress(StaleLease):
            counted = is_of_this_boot(job.owner)
            reason = "the worker died" if counted else "the machine went down"
            ledger.release(job.id, job.owner, now, now, reason, counted=counted)
            log.warning("job of a dead worker freed", job=job.id, attempt=job.attempt)


def longest_silence_s(destination: Destination) -> float:
    """How long a delivery may rightly take between two signs of life."""
    if isinstance(destination, FolderDestination):
        return 0.0
    return destination.connect_timeout_s + destination.acse_timeout_s + destination.dimse_timeout_s
