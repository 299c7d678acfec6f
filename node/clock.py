"""Has somebody set the clock? The ledger holds times of day; waits must not follow them when they jump."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

TOLERANCE_S: Final = 1.0
"""A correction below this is none: NTP moves the clock in small steps all the time."""


class SetClock:
    """Compares the time of day with a clock that nobody sets, from one question to the next."""

    def __init__(
        self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall = wall
        self._steady = steady
        self._offset_s = wall() - steady()

    def moved_s(self) -> float:
        """Seconds the time of day was set forward (less than 0: back) since the last question; else 0."""
        before, self._offset_s = self._offset_s, self._wall() - self._steady()
        moved_s = self._offset_s - before
        return moved_s if abs(moved_s) >= TOLERANCE_S else 0.0
