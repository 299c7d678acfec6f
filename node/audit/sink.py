"""One place where audit messages are kept, with a mark of its own in the ledger: no other holds it up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from node.alarm import Alert
from node.audit.account import Account
from node.audit.alarms import Alarms
from node.audit.message import Message, to_xml
from node.flow import Failure, attempt
from node.ledger import Followed
from node.watch.follow import Follower

log = structlog.get_logger(__name__)

FIRST: Final = "audit"
"""The mark of the file, which had both places once: the other begins where it is."""


@dataclass(slots=True)
class Trouble:
    """Whether a step of the audit fails; says it when it begins, when it changes, and when it is over."""

    what: str
    reason: str = ""

    def take(self, failure: Failure | None) -> None:
        """How the last step ended."""
        reason = "" if failure is None else failure.reason
        if reason and reason != self.reason:
            log.error(f"audit messages are not {self.what}", reason=reason)
        elif self.reason and not reason:
            log.info(f"audit messages are {self.what} again")
        self.reason = reason


class Sink:
    """Has ``keep`` take every message there is to tell, as XML and in order; what cannot be kept comes again.

    ``mark`` is its name in the ledger, ``what`` what is done to messages here.
    """

    def __init__(
        self,
        mark: str,
        what: str,
        keep: Callable[[bytes, float], None],
        account: Account,
        clock: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keep = keep
        self._account = account
        self._clock = clock
        self._alarms = Alarms(elapsed)
        self._follower = Follower(account.ledger, mark, self._hear, like=FIRST)
        self.kept = 0
        self.trouble = Trouble(what)

    def alarm(self, alert: Alert) -> None:
        """Take an alert; from any thread."""
        self._alarms.take(alert)

    def write(self) -> None:
        """Keep what the ledger and the listener have told since; never raises."""
        self._try(self._write)

    def say(self, message: Message) -> None:
        """Keep one message now, or not at all; never raises."""
        self._try(lambda: self._take(message))

    def _try(self, step: Callable[[], None]) -> None:
        outcome = attempt(step)
        self.trouble.take(outcome if isinstance(outcome, Failure) else None)

    def _write(self) -> None:
        for alert, times in self._alarms.due():
            try:
                self._take(self._account.alert(alert, times, self._clock()))
            except OSError:
                self._alarms.give_back(alert, times)
                raise
        self._follower.run()

    def _hear(self, followed: Followed) -> None:
        for message in self._account.of_event(followed):
            self._take(message)

    def _take(self, message: Message) -> None:
        self._keep(to_xml(message, self._account.source), self._clock())
        self.kept += 1
