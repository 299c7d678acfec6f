"""What every lane that talks to a peer works with, and the rule by which it rests after a failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from threading import Event

from config.settings import RetrySettings
from node.flow import retry_delay_s
from node.ledger import Ledger


@dataclass(slots=True)
class Means:
    """What a lane works with.

    ``clock`` gives epoch seconds, which the ledger keeps; ``elapsed`` gives seconds that no change of the
    clock moves, which is what a lane waits by. ``stopping`` is set when the node ends; ``beat`` is called at
    every sign of life.
    """

    ledger: Ledger
    retry: RetrySettings
    rng: Random
    clock: Callable[[], float]
    elapsed: Callable[[], float]
    stopping: Event
    beat: Callable[[], None]

    def delay_s(self, failures: int) -> float:
        """Seconds until the next try after ``failures`` ≥ 1 failed ones."""
        return retry_delay_s(failures, self.retry, self.rng)

    def latest(self, more_s: float = 0.0) -> float:
        """The latest time a wait may end that begins now and lasts at most ``more_s`` beyond ``retry.max_s``.

        What the ledger puts off beyond it was written by a clock that has been set back since: it is due.
        """
        return self.clock() + self.retry.max_s * (1.0 + self.retry.jitter) + more_s


@dataclass(slots=True)
class Rest:
    """After a failure a lane rests for at most ``retry.first_s``.

    A peer that is down is so knocked at once in that time and not once for every job that waits.
    """

    means: Means
    until: float = 0.0

    def begin(self, delay_s: float) -> None:
        """Rest as long as the job that failed waits, or for ``first_s`` where that is less."""
        self.until = self.means.elapsed() + min(delay_s, self.means.retry.first_s)

    def is_on(self) -> bool:
        """Whether the lane rests now."""
        return self.means.elapsed() < self.until
