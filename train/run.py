"""The folder of a run: checkpoint, run card, TensorBoard, progress on the terminal."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from train.budget import Budget
from train.config import RecordConfig
from train.recorders import Recorder, open_recorders

PACKAGES = ("s2node", "torch", "monai", "lightning", "numpy", "SimpleITK")
log = logging.getLogger(__name__)


def machine() -> dict[str, Any]:
    """What ran, without naming the host."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    gpus = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    cpus = {"cpu": _cpu_model(), "cpus": os.cpu_count()}
    return cpus | gpus | {"python": platform.python_version()} | versions


def peak_memory() -> dict[str, float]:
    """GiB: the most this process held, and the most tensors held on the GPU where there is one."""
    peak = {"process_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}
    if torch.cuda.is_available():
        peak["gpu_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return peak


def commit() -> str | None:
    """Of the code that runs, with ``+`` where files differ from it; None outside a git work tree."""
    here = Path(__file__).parent
    try:
        revision = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
            cwd=here, capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return revision.stdout.strip()


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """``run.json`` beside the checkpoint: readable, replaced in one move."""
    temporary = folder / ".run.json.tmp"
    temporary.write_text(json.dumps(card, indent=2, sort_keys=True) + "\n")
    temporary.replace(folder / "run.json")


def now_utc() -> str:
    """ISO 8601, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(slots=True)
class Monitor:
    """Shows a stage's numbers (a bar on a terminal, else a line at times) and hands them to the recorders."""

    folder: Path
    budget: Budget
    title: str
    config: RecordConfig = field(default_factory=RecordConfig)
    speaks: bool = True
    """False on every rank but the first."""
    latest: dict[str, float] = field(default_factory=dict)
    _recorders: list[Recorder] = field(default_factory=list)
    _progress: Progress | None = None
    _last_line: float = 0.0

    def __enter__(self) -> Self:
        if not self.speaks:
            return self
        self._recorders = open_recorders(self.folder, self.config, self.title)
        console = Console(stderr=True)
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
            self._progress = Progress(*columns, TimeElapsedColumn(), console=console)
            self._progress.add_task(self.title, total=1.0, text="")
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()
        self._tell(lambda recorder: recorder.close())

    def record(self, values: Mapping[str, float]) -> None:
        """Write the numbers of this step."""
        self.latest.update(values)
        self._tell(lambda recorder: _write(recorder, values, self.budget.step))
        if self.speaks:
            self._show()

    def picture(self, file: Path) -> None:
        """Hand a drawn sample picture on."""
        self._tell(lambda recorder: recorder.picture("samples", file, self.budget.step))

    def _tell(self, what: Callable[[Recorder], None]) -> None:
        """Tell every recorder. One that fails hears nothing more: training goes on and waits for none."""
        for recorder in tuple(self._recorders):
            try:
                what(recorder)
            except Exception as error:  # whatever a disk or somebody's server answers
                self._recorders.remove(recorder)
                log.warning("nothing more is recorded by %s: %s", type(recorder).__name__, error)

    def _show(self) -> None:
        text = " ".join(f"{name.split('/')[-1]} {value:.4g}" for name, value in self.latest.items())
        head = (
            f"step {self.budget.step} · {self.budget.progress:.1%} · {self.budget.left_s / 60:.1f} min left"
        )
        if self._progress:
            self._progress.update(self._progress.task_ids[0], completed=self.budget.progress, text=head)
        elif time.monotonic() - self._last_line > 10:
            self._last_line = time.monotonic()
            log.info("%s: %s: %s", self.title, head, text)


def _write(recorder: Recorder, values: Mapping[str, float], step: int) -> None:
    for name, value in values.items():
        recorder.scalar(name, value, step)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), platform.processor()
    )
