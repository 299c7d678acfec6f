"""Starts ``s2node train refresh`` when it is due and sees how it ended; the learning is another process's.

A model of one phase after another. Each has a folder under ``data_dir/refresh`` with its log, the comparison
and, if the new model was not worse, its bundle and the checkpoint that the next refresh goes on from.
Whatever goes wrong is a line in the log: translating does not depend on any of it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

import structlog
from apscheduler.triggers.cron import CronTrigger  # type: ignore[import-untyped]

from config.settings import Settings
from engine.bundle import read_bundle
from node.flow import Failure, attempt
from node.models import ModelStore

log = structlog.get_logger(__name__)

CHECK_S = 5.0
"""Seconds between two looks at the clock and at the process."""
GRACE_S = 20.0
"""Seconds a refresh has to write its checkpoint when the node stops; then it is killed."""
REFRESH = (sys.executable, "-m", "node.background", sys.executable, "-m", "train.cli", "refresh")
FOLDER = "refresh"
"""Under the data folder."""


def local_now() -> datetime:
    """The wall clock, with its zone."""
    return datetime.now().astimezone()


@dataclass(frozen=True, slots=True)
class Started:
    """A refresh that runs: of which phase, in which folder, since when (monotonic seconds)."""

    phase: str
    out: Path
    process: subprocess.Popen[bytes]
    since: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the new model was accepted, and by how many organs it was judged."""

    accepted: bool
    organs: int


class RefreshLane:
    """The lane of ``[refresh]``: ``run`` every few seconds, in a ``with``: no process is left behind."""

    def __init__(
        self,
        settings: Settings,
        now: Callable[[], datetime] = local_now,
        command: Sequence[str] = REFRESH,
    ) -> None:
        self._settings = settings
        self._models = ModelStore(settings)
        self._folder = settings.storage.data_dir / FOLDER
        self._now = now
        self._command = command
        self._trigger = CronTrigger.from_crontab(settings.refresh.schedule)
        self._next = self._after(now())
        self._waiting: list[str] = []
        self._started: Started | None = None

    def __enter__(self) -> RefreshLane:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def run(self) -> None:
        """Look at the process and at the clock; start what is due. Nothing is raised."""
        outcome = attempt(self._step)
        if isinstance(outcome, Failure):
            self._waiting.clear()
            log.error("refresh failed", trace=outcome.trace)

    def stop(self) -> None:
        """End the process: it may write a checkpoint first."""
        started, self._started = self._started, None
        if started is None:
            return
        started.process.send_signal(signal.SIGTERM)
        try:
            started.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            started.process.kill()
            started.process.wait()
        log.info("refresh stopped", phase=started.phase)

    def _step(self) -> None:
        if self._started is not None and self._started.process.poll() is not None:
            started, self._started = self._started, None
            self._ended(started)
        now = self._now()
        if now >= self._next:
            self._next = self._after(now)
            self._due()
        if self._started is None and self._waiting:
            self._start(self._waiting.pop(0), now)

    def _due(self) -> None:
        if self._started is not None or self._waiting:
            log.warning("refresh is due and the last one still runs")
            return
        self._waiting = list(self._settings.refresh.phases)

    def _after(self, moment: datetime) -> datetime:
        """The next time of the schedule after ``moment``; the end of time where there is none."""
        found: datetime | None = self._trigger.get_next_fire_time(moment, moment)
        return found or datetime.max.replace(tzinfo=moment.tzinfo)

    def _start(self, phase: str, now: datetime) -> None:
        out = self._folder / f"{now:%Y%m%d-%H%M%S}-{phase}"
        out.mkdir(parents=True, mode=0o700)
        words = [*self._command, *self._options(phase, out)]
        with (out / "refresh.log").open("wb") as sink:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=self._environment(),
            )
        self._started = Started(phase, out, process, time.monotonic())
        log.info("refresh started", phase=phase, folder=out.name)

    def _options(self, phase: str, out: Path) -> list[str]:
        chosen = self._settings.refresh
        places = [self._folder, *([Path(chosen.checkpoints)] if chosen.checkpoints else [])]
        words = ["--from", str(self._models.active()[phase]), "--cases", str(chosen.cases), "--out", str(out)]
        words += ["--cache", str(self._folder / "cache"), "--minutes", str(chosen.minutes)]
        words += ["--rate", str(chosen.rate), "--threads", str(chosen.threads)]
        words += ["--provider", "cpu" if chosen.device == "cpu" else self._settings.engine.provider]
        return words + [word for place in places for word in ("--checkpoint", str(place))]

    def _environment(self) -> dict[str, str]:
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if self._settings.refresh.device == "cpu" else {}
        return {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"} | hidden

    def _ended(self, started: Started) -> None:
        """Log what came of it, and put an accepted model to use where that is wanted."""
        verdict = read_verdict(started.out)
        seconds = round(time.monotonic() - started.since, 1)
        facts = {"phase": started.phase, "folder": started.out.name, "seconds": seconds}
        if verdict is None:
            log.error("refresh failed", exit_code=started.process.returncode, **facts)
        elif not verdict.accepted:
            (started.out / "run" / "checkpoint.pt").unlink(missing_ok=True)
            log.warning("refreshed model is worse and was not exported", **facts)
        else:
            activate = self._settings.refresh.activate and verdict.organs > 0
            log.info("refreshed model was exported", activated=activate, organs=verdict.organs, **facts)
            if activate:
                self._models.activate(started.out / "bundle")


def lacking(settings: Settings, module: str = "torch") -> Iterator[tuple[str, str]]:
    """What a refresh would fail for, and what to do; ``module`` is what the extra `train` brings."""
    if find_spec(module) is None:
        yield "the extra train is not installed", "pip install 's2node[train]'"
    listed = Path(settings.refresh.cases) / "pairs.tsv"
    if not listed.is_file():
        yield f"no pairs at {listed}", "s2node train prepare CASES PAIRS, and name PAIRS in refresh.cases"
    active = ModelStore(settings).active()
    for phase in settings.refresh.phases:
        if phase not in active:
            yield f"no {phase} model is active", "s2node models activate, or leave it out of refresh.phases"
        elif "checkpoint_sha256" not in read_bundle(active[phase]).manifest.run:
            yield (
                f"the active {phase} model does not say which checkpoint it was exported from",
                "s2node export CHECKPOINT FOLDER with this version, and activate that",
            )


def read_verdict(out: Path) -> Verdict | None:
    """What ``out`` says; None where nothing was decided, or the bundle of what was accepted is not there."""
    try:
        said = json.loads((out / "verdict.json").read_text())
        verdict = Verdict(bool(said["accepted"]), int(said["organs"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if verdict.accepted and not (out / "bundle").is_dir() else verdict
