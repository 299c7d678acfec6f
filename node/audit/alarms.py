"""Alerts on their way to the audit: the same peer at most once a minute, and not many peers.

Whoever knocks ten thousand times would else fill the disk with messages and push the older ones out.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from node.alarm import Alert

EVERY_S: Final = 60.0
"""Seconds in which an alert is told once, with how often it came."""
MOST: Final = 100
"""Different alerts told in that time; further peers are counted together."""


class Alarms:
    """Takes alerts from any thread and gives them out when they are due; ``elapsed`` is monotonic seconds."""

    def __init__(self, elapsed: Callable[[], float] = time.monotonic) -> None:
        self._elapsed = elapsed
        self._guard = threading.Lock()
        self._waiting: Counter[Alert] = Counter()
        self._told: set[Alert] = set()
        self._since = elapsed()

    def take(self, alert: Alert, times: int = 1) -> None:
        """Count the alert."""
        with self._guard:
            is_known = alert in self._waiting or alert in self._told
            if not is_known and len(self._waiting) + len(self._told) >= MOST:
                alert = replace(alert, address="", calling_ae="")
            self._waiting[alert] += times

    def due(self, *, everything: bool = False) -> list[tuple[Alert, int]]:
        """What is to be told now, and how often it came; it is not given out again."""
        with self._guard:
            if self._elapsed() - self._since >= EVERY_S:
                self._told.clear()
                self._since = self._elapsed()
            found = [each for each in self._waiting.items() if everything or each[0] not in self._told]
            for alert, _ in found:
                del self._waiting[alert]
                self._told.add(alert)
        return found

    def give_back(self, alert: Alert, times: int) -> None:
        """It could not be told after all: it is due again."""
        with self._guard:
            self._told.discard(alert)
            self._waiting[alert] += times
