"""How much of a run is spent: by steps, by minutes, whichever is further; schedules follow it."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from train.config import LoopConfig, OptimiserConfig


@dataclass(slots=True)
class Budget:
    """``step`` steps and ``elapsed_s`` seconds are done, of ``loop.steps`` and ``max_minutes``."""

    loop: LoopConfig
    step: int = 0
    elapsed_s: float = 0.0

    @property
    def progress(self) -> float:
        """τ/𝒯 in [0, 1]."""
        of_time = self.elapsed_s / (60 * self.loop.max_minutes) if self.loop.max_minutes else 0.0
        return min(1.0, max(self.step / self.loop.steps, of_time))

    @property
    def spent(self) -> bool:
        """Whether the stage is over."""
        return self.progress >= 1.0

    @property
    def left_s(self) -> float:
        """Seconds to go at the pace so far; infinite before the first step."""
        return self.elapsed_s * (1 / self.progress - 1) if self.elapsed_s and self.progress else math.inf


@dataclass(slots=True)
class Every:
    """Says yes when ``minutes`` have passed since it last did; with 0 minutes never."""

    minutes: float
    last: float = field(default_factory=time.monotonic)

    def __call__(self) -> bool:
        """Whether it is time again."""
        due = bool(self.minutes) and time.monotonic() - self.last > 60 * self.minutes
        if due:
            self.last = time.monotonic()
        return due


def learning_rate(config: OptimiserConfig, progress: float) -> float:
    """The rate at ``progress`` of the budget."""
    warm = min(1.0, (progress + 1e-3) / config.warmup) if config.warmup else 1.0
    if config.schedule == "constant":
        return config.lr * warm
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * warm * (config.final_lr + (1 - config.final_lr) * cosine)


@dataclass(slots=True)
class StopRequest:
    """Set by SIGTERM or SIGINT; the loop ends after the step it is in, with a checkpoint."""

    event: threading.Event = field(default_factory=threading.Event)

    def __bool__(self) -> bool:
        return self.event.is_set()


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into a request while the block runs; put the old handlers back after it."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(signum: int, frame: FrameType | None) -> None:
        request.event.set()

    old = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)
