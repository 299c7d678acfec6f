"""The worker: a child process that turns one READY job at a time into files in the outbox.

`python -m node.worker` reads its settings as one line of JSON from standard input and works until it is told
to stop or its node is gone. A running job is a lease that a second thread renews; who dies loses it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from random import Random
from threading import Event, Thread
from types import TracebackType
from typing import IO

import structlog

from config.settings import Settings
from engine.bundle import LASTING
from engine.errors import BundleInvalid, GraphTooLarge, ProviderMissing
from engine.pipeline import Engine, open_engine
from engine.session import SessionPolicy
from engine.synthesis import Synthesis
from node import log as node_log
from node.build import build
from node.clock import SetClock
from node.flow import WORKER_DIED, Action, Disposition, Failure, attempt, retry_delay_s
from node.ledger import LEDGER_FILE, Job, Ledger, StaleLease, SynthesisRecord
from node.ledger.errors import MoveRefused
from node.memory import keep_freed_memory
from node.models import ModelStore
from node.outbox import Outbox
from node.outputs.context import context_of
from node.spool import Spool
from node.states import State
from node.supervisor import EXIT_CONFIG, owner_name, say_ready

log = structlog.get_logger("node.worker")  # not __name__: the process runs this module as __main__

IDLE_S = 0.1
"""Seconds between two looks into the ledger while there is nothing to do."""

BEATS = 2
"""Heartbeats for which nothing is taken once the clock was set: a lease holds for as many."""

STALLED_S = 1800.0
"""Seconds without progress after which a job counts as hanging: no tile and no reading takes as long."""
EXIT_STALLED = 70
"""EX_SOFTWARE of sysexits.h."""
ENGINE_CACHE = "tensorrt"
"""Folder of the data folder with what TensorRT has built; it may be removed at any time."""
EXIT_NOT_NOW = 75
"""EX_TEMPFAIL of sysexits.h: memory or disk may be there again when the worker is started again."""


class HandedBack(BaseException):
    """Let go of the job: the node stops, or the lease is not ours any more. Not an error of the job."""


class Engines:
    """The engines of the active models, opened when a model is first seen and kept while it stays active."""

    def __init__(self, models: ModelStore, policy: SessionPolicy) -> None:
        self._models = models
        self._policy = policy
        self._open: dict[str, Engine] = {}

    def active(self) -> Mapping[str, Engine]:
        """From phase to engine, as the model store says now; raises what opening a bundle raises."""
        wanted = {phase: (digest_of(folder), folder) for phase, folder in self._models.active().items()}
        self._open = {
            digest: self._open.get(digest) or open_engine(folder, self._policy)
            for digest, folder in wanted.values()
        }
        return {phase: self._open[digest] for phase, (digest, _) in wanted.items()}


def digest_of(folder: Path) -> str:
    """What tells one bundle from another: sha256 of its manifest, which holds every file's digest."""
    try:
        return sha256((folder / "bundle.json").read_bytes()).hexdigest()
    except LASTING as error:
        raise BundleInvalid(folder, error.strerror or "unreadable") from error


class Heartbeat:
    """Renews a lease in a thread of its own while the job is worked on; used in a ``with`` statement.

    Work that shows no progress for ``stalled_s`` hangs in the runtime, where nothing can stop it but the end
    of the process: that is ``on_stall``, and the node starts another worker.
    """

    def __init__(
        self,
        renew: Callable[[float], bool],
        every_s: float,
        stopping: Event,
        *,
        stalled_s: float = STALLED_S,
        on_stall: Callable[[], None] = lambda: os._exit(EXIT_STALLED),
    ) -> None:
        self._renew = renew
        self._every_s = every_s
        self._stopping = stopping
        self._stalled_s = stalled_s
        self._on_stall = on_stall
        self._advanced = time.monotonic()
        self._done = Event()
        self._lost = Event()
        self._progress = 0.0
        self._thread = Thread(target=self._run, name="heartbeat", daemon=True)

    def progress(self, fraction: float) -> None:
        """Called by the work as it advances (0–1); raises HandedBack where it should not go on."""
        self._progress, self._advanced = fraction, time.monotonic()
        if self._stopping.is_set() or self._lost.is_set():
            raise HandedBack

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(self._every_s):
            if time.monotonic() - self._advanced > self._stalled_s:
                log.error("job stands still", progress=round(self._progress, 3))
                self._on_stall()
                return
            if not self._renew(self._progress):
                self._lost.set()
                return


@dataclass(frozen=True, slots=True)
class Worker:
    """What the work loop needs; ``owner`` is unique to one start of one process. ``clock``: epoch seconds."""

    settings: Settings
    ledger: Ledger
    spool: Spool
    engines: Engines
    owner: str
    stopping: Event
    rng: Random = field(default_factory=Random)
    clock: Callable[[], float] = time.time

    def run(self) -> None:
        """Work until told to stop."""
        set_clock = SetClock(self.clock)
        while not self.stopping.is_set():
            if set_clock.moved_s():  # every lease seems to have run out, until it is renewed
                self.stopping.wait(BEATS * self.settings.worker.heartbeat_s)
            elif not self.work_once():
                self.stopping.wait(IDLE_S)

    def work_once(self) -> bool:
        """Take one job to its end; False where there was none."""
        worker = self.settings.worker
        job = self.ledger.lease(self.owner, self.clock(), worker.lease_s)
        if job is None:
            return False
        if job.attempt > worker.max_attempts:
            self.give_up(job, WORKER_DIED, f"the worker died at each of {worker.max_attempts} attempts")
            return True
        log.info("job started", job=job.id, attempt=job.attempt, instances=job.instances)
        with suppress_lost(job):
            try:
                self.work_on(job)
            except HandedBack:
                self.hand_back(job)
        return True

    def work_on(self, job: Job) -> None:
        """Build the job and judge what became of it, its lease renewed meanwhile."""
        with Heartbeat(
            lambda done: self.renew(job, done), self.settings.worker.heartbeat_s, self.stopping
        ) as heartbeat:
            outcome = attempt(lambda: self.produce(job, heartbeat.progress))
        if isinstance(outcome, Failure):
            self.conclude(job, outcome)

    def renew(self, job: Job, progress: float) -> bool:
        """Hold on to the lease; False where it is not ours any more."""
        return self.ledger.renew(job.id, self.owner, self.clock(), self.settings.worker.lease_s, progress)

    def produce(self, job: Job, progress: Callable[[float], None]) -> None:
        """Build the job's outputs, make their files safe, then record them: READY → BUILT."""
        began = self.clock()
        with Outbox(self.spool, job.id) as outbox:
            syntheses = build(
                [instance.path for instance in self.ledger.instances(job.id)],
                engines=self.engines.active(),
                context=context_of(
                    self.settings, generation=job.generation, created=local_time(job.created_at)
                ),
                rules=self.settings.intake,
                progress=progress,
                kinds=self.settings.outputs.kinds,
                seed=self.settings.engine.seed,
                made=outbox.put,
            )
            destinations = self.settings.first_destinations
            records = [record_of(synthesis) for synthesis in syntheses]
            with self.spool.keeping():
                outputs = outbox.outputs()
                self.ledger.record_built(job.id, self.owner, outputs, records, destinations, now=self.clock())
        seconds = round(self.clock() - began, 3)
        log.info("job built", job=job.id, outputs=len(outputs), seconds=seconds)

    def conclude(self, job: Job, failure: Failure) -> None:
        """What :data:`flow.DISPOSITIONS` says follows; nothing where the job is not ours any more."""
        if not self.renew(job, 0.0):
            raise StaleLease(job.id, self.owner)
        action, code = failure.disposition.action, failure.disposition.code
        if action is Action.REJECT:
            self.ledger.move(job.id, State.REJECTED, self.clock(), code, failure.reason)
            log.info("job rejected", job=job.id, code=code)
        elif action is Action.WAIT or (
            action is Action.RETRY and job.attempt < self.settings.worker.max_attempts
        ):
            self.put_off(job, failure)
        else:
            self.give_up(job, failure.disposition, failure.reason)
            log.error("job parked", job=job.id, code=code, trace=failure.trace)

    def put_off(self, job: Job, failure: Failure) -> None:
        """Later again; what only waits for the machine counts as no attempt."""
        now, delay_s = self.clock(), retry_delay_s(job.attempt, self.settings.retry, self.rng)
        counted = failure.disposition.action is not Action.WAIT
        self.ledger.release(job.id, self.owner, now, now + delay_s, failure.reason, counted=counted)
        code = failure.disposition.code
        log.warning("job put off", job=job.id, code=code, delay_s=round(delay_s, 1), trace=failure.trace)

    def give_up(self, job: Job, disposition: Disposition, reason: str) -> None:
        """PARKED: a person is needed."""
        self.ledger.move(job.id, State.PARKED, self.clock(), disposition.code, reason)

    def hand_back(self, job: Job) -> None:
        """Let another worker have the job at once; the attempt does not count."""
        now = self.clock()
        self.ledger.release(job.id, self.owner, now, now, "the worker was stopped", counted=False)
        log.info("job handed back", job=job.id)


@contextmanager
def suppress_lost(job: Job) -> Iterator[None]:
    """Let a job go that is not ours any more: superseded, taken by another worker, or by a recall."""
    try:
        yield
    except (StaleLease, MoveRefused):
        log.info("job was taken away", job=job.id)


def local_time(epoch_s: float) -> datetime:
    """A job's time on the wall clock of this machine, with its zone; dates in DICOM are local."""
    return datetime.fromtimestamp(epoch_s, UTC).astimezone()


def policy_of(settings: Settings, workers: int = 1) -> SessionPolicy:
    """Where the settings want the models to run, beside so many workers."""
    engine = settings.engine
    return SessionPolicy(
        sharers=workers,
        engine_cache=settings.storage.data_dir / ENGINE_CACHE,
        provider=engine.provider,
        threads=engine.threads,
        device=engine.devices[0],
        cuda_graph=engine.cuda_graph,
        memory_bytes=engine.memory_bytes,
    )


def record_of(synthesis: Synthesis) -> SynthesisRecord:
    """A synthesis without its volume, for the ledger."""
    return SynthesisRecord(
        phase=synthesis.phase,
        model_id=synthesis.model_id,
        model_digest=synthesis.model_digest,
        seed=synthesis.seed,
        sampler=synthesis.sampler,
        steps=synthesis.steps,
        provider=synthesis.provider,
        seconds=synthesis.seconds,
        findings=tuple((finding.code, finding.text) for finding in synthesis.findings),
    )


def end_with_parent() -> None:
    """Have Linux kill this process when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def end_with_pipe(pipe: IO[str]) -> None:
    """End this process, whatever it is doing, when the node at the other end of ``pipe`` is gone."""
    pipe.read()
    os._exit(1)


def main() -> int:
    """Run one worker process; its exit code."""
    end_with_parent()
    settings = Settings.model_validate_json(sys.stdin.readline())
    Thread(target=end_with_pipe, args=(sys.stdin,), name="parent watch", daemon=True).start()
    node_log.configure(settings.log)
    stopping = Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C in a terminal reaches the node, and the node tells us
    return serve(settings, stopping)


def serve(settings: Settings, stopping: Event) -> int:
    """Open everything, work until ``stopping``.

    Ends with 78 where the active models cannot run on this machine, with 75 where they cannot for now: memory
    is full, or the disk does not give them.
    """
    keep_freed_memory()
    root = settings.storage.data_dir
    engines = Engines(ModelStore(settings), policy_of(settings, settings.worker.count))
    try:
        engines.active()
    except (BundleInvalid, ProviderMissing) as error:
        log.error("models cannot run", reason=str(error))  # noqa: TRY400 (no traceback for a configuration)
        return EXIT_CONFIG
    except GraphTooLarge as error:
        log.error("no memory for the models", reason=str(error))  # noqa: TRY400 (the machine's, not a bug)
        return EXIT_NOT_NOW
    except OSError as error:
        log.error("models cannot be read", reason=error.strerror)  # noqa: TRY400 (the disk's, not a bug)
        return EXIT_NOT_NOW
    say_ready()
    with Ledger(root / LEDGER_FILE) as ledger:
        Worker(settings, ledger, Spool(root), engines, owner_name(os.getpid()), stopping).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
