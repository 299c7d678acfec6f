"""The audit of one node: two lanes, one that writes and one that sends. Neither stops the node."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Final

import structlog
from prometheus_client.core import Metric

from config.settings import Settings
from node.alarm import Alert
from node.audit.account import Account
from node.audit.alarms import Alarms
from node.audit.message import Message, to_xml
from node.audit.syslog import frame_of, send
from node.audit.trail import Trail
from node.flow import Failure, attempt, retry_delay_s
from node.ledger import Followed, Ledger
from node.watch.figures import by_name, counter, gauge
from node.watch.follow import Follower

log = structlog.get_logger(__name__)

AT_ONCE: Final = 100
"""Messages sent over one connection: as many may come twice if it breaks."""


@dataclass(slots=True)
class Trouble:
    """Whether a lane of the audit fails; says it when it begins, when it changes, and when it is over."""

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


class Auditor:
    """Writes and sends what an auditor has to know; ``write`` and ``send`` are steps of lanes, never raise.

    Making one raises OSError where the folder cannot be had.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        clock: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._elapsed = elapsed
        self._account = Account(settings, ledger)
        self._trail = Trail(settings.audit, settings.storage.data_dir)
        self._alarms = Alarms(elapsed)
        self._follower = Follower(ledger, "audit", self._hear)
        self._rng = Random()
        self._failures = 0
        self._rests_until = float("-inf")
        self._written = self._sent = 0
        self.writing, self.sending = Trouble("written"), Trouble("sent")

    def start(self) -> None:
        """Say that the node starts."""
        self._last_words(starts=True)

    def stop(self) -> None:
        """Write what is left, say that the node stops, send what can be sent at once."""
        self.write()
        self._last_words(starts=False)
        if self._settings.audit.syslog_host:
            self._rests_until = float("-inf")
            self.send()
        self.close()

    def close(self) -> None:
        """Let go of the file; nothing more is said."""
        self._trail.close()

    def alarm(self, alert: Alert) -> None:
        """Take an alert; from any thread."""
        self._alarms.take(alert)

    def write(self) -> None:
        """Write what the ledger and the listener have told since."""
        outcome = attempt(self._write)
        self.writing.take(outcome if isinstance(outcome, Failure) else None)

    def send(self) -> None:
        """Send what waits for the repository, or wait after a failure as ``[retry]`` says."""
        if self._elapsed() < self._rests_until:
            return
        outcome = attempt(self._send)
        failed = isinstance(outcome, Failure)
        self._failures = self._failures + 1 if failed else 0
        if failed:
            self._rests_until = self._elapsed() + self._delay_s()
        self.sending.take(outcome if isinstance(outcome, Failure) else None)

    def figures(self) -> Iterable[Metric]:
        """For monitoring: how much was written and sent, what waits, what fails."""
        done = by_name({"written": self._written, "sent": self._sent})
        yield counter("s2node_audit_messages", "Audit messages.", ["outcome"], done)
        words = "Audit messages that wait for the repository."
        yield gauge("s2node_audit_waiting", words, [], {(): self._trail.count})
        failing = by_name({each.what: bool(each.reason) for each in (self.writing, self.sending)})
        words = "Whether audit messages cannot be written or sent now."
        yield gauge("s2node_audit_failing", words, ["step"], failing)

    def _delay_s(self) -> float:
        return retry_delay_s(self._failures, self._settings.retry, self._rng)

    def _last_words(self, *, starts: bool) -> None:
        message = self._account.activity(self._clock(), starts=starts)
        outcome = attempt(lambda: self._keep(message))
        self.writing.take(outcome if isinstance(outcome, Failure) else None)

    def _write(self) -> None:
        for alert, times in self._alarms.due():
            try:
                self._keep(self._account.alert(alert, times, self._clock()))
            except OSError:
                self._alarms.give_back(alert, times)
                raise
        self._follower.run()

    def _hear(self, followed: Followed) -> None:
        for message in self._account.of_event(followed):
            self._keep(message)

    def _keep(self, message: Message) -> None:
        now = self._clock()
        xml = to_xml(message, self._account.source)
        self._trail.keep(xml, frame_of(xml, now), now)
        self._written += 1

    def _send(self) -> None:
        while batch := list(self._trail.first(AT_ONCE)):
            send(self._settings.audit, self._settings.tls, (path.read_bytes() for path in batch))
            for path in batch:
                self._trail.sent(path)
            self._sent += len(batch)
