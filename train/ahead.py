"""Crops cut on the CPU while the accelerator computes."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from torch import Tensor

Key = tuple[int, int, int]


class Batches(Protocol):
    """Where steps get their tensors: ``Pairs``, or what a method makes of them in ``begin``."""

    def batch(self, seed: int, step: int, size: int) -> tuple[Tensor, ...]:
        """The same numbers for the same (seed, step); each tensor (size, …)."""
        ...


class Ahead:
    """The batches of ``batches``, the next one begun as soon as one is asked for."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="crops")
        self._begun: dict[Key, Future[tuple[Tensor, ...]]] = {}

    def batch(self, seed: int, step: int, size: int) -> tuple[Tensor, ...]:
        """What ``batches`` gives for the same arguments."""
        ready = self._begun.pop((seed, step, size), None)
        found = ready.result() if ready else self.batches.batch(seed, step, size)
        following = (seed, step + 1, size)
        self._begun = {following: self._thread.submit(self.batches.batch, *following)}
        return found
