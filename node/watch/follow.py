"""Follows the ledger's events: every one is heard, in order, whoever wrote it and whenever."""

from __future__ import annotations

from collections.abc import Callable

from node.ledger import Followed, Ledger

BATCH = 200
"""Events after which it is written down how far the follower is."""


class Follower:
    """Hands every event to ``hear`` at least once; what ``hear`` raises ends a run, which goes on there.

    The first follower of a name starts where ``like`` is, or at what is newest. The mark is kept in the
    ledger: what was written while no node ran is heard at the next start, and after a crash some events are
    heard again.
    """

    def __init__(
        self, ledger: Ledger, name: str, hear: Callable[[Followed], None], like: str | None = None
    ) -> None:
        self._ledger = ledger
        self._name = name
        self._hear = hear
        ledger.begin_following(name, like)

    def run(self) -> None:
        """Hear everything that is new."""
        while events := self._ledger.events_for(self._name, BATCH):
            heard = 0
            try:
                for event in events:
                    self._hear(event)
                    heard = event.id
            finally:
                if heard:
                    self._ledger.advance(self._name, heard)
