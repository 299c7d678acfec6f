"""The audit of one node: two lanes, one that writes and one that sends. Neither stops the node."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from random import Random
from typing import Final

from prometheus_client.core import Metric

from config.settings import Settings
from node.alarm import Alert
from node.audit.account import Account
from node.audit.sink import FIRST, Sink, Trouble
from node.audit.syslog import frame_of, send
from node.audit.trail import AuditFile, Queue
from node.flow import Failure, attempt, retry_delay_s
from node.ledger import Ledger
from node.watch.figures import by_name, counter, gauge

AT_ONCE: Final = 100
"""Messages sent over one connection: as many may come twice if it breaks."""


class Auditor:
    """Writes and sends what an auditor has to know; ``write`` and ``send`` are steps of lanes, never raise.

    The file and the queue for the repository are two sinks: neither waits for the other. Making one raises
    OSError where the folder cannot be had.
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
        self._open = ExitStack()
        self._account = Account(settings, ledger)
        self._queue = Queue(settings.audit, settings.storage.data_dir)
        self._sinks = self._make_sinks()
        self._rng = Random()
        self._failures = 0
        self._rests_until = float("-inf")
        self._sent = 0
        self.sending = Trouble("sent")

    def _make_sinks(self) -> dict[str, Sink]:
        """The places the settings ask for, by what is done to messages there; the file comes first."""
        audit, sinks = self._settings.audit, {}
        if audit.to_file:
            file = AuditFile(audit, self._settings.storage.data_dir)
            self._open.callback(file.close)
            sinks["written"] = self._sink(FIRST, "written", lambda xml, _now: file.write(xml))
        if audit.syslog_host:
            queue = self._queue
            sinks["queued"] = self._sink(
                "audit repository", "queued", lambda xml, now: queue.put(frame_of(xml, now), now)
            )
        return sinks

    def _sink(self, mark: str, what: str, keep: Callable[[bytes, float], None]) -> Sink:
        return Sink(mark, what, keep, self._account, self._clock, self._elapsed)

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
        self._open.close()

    def alarm(self, alert: Alert) -> None:
        """Take an alert; from any thread."""
        for sink in self._sinks.values():
            sink.alarm(alert)

    def write(self) -> None:
        """Write what the ledger and the listener have told since."""
        for sink in self._sinks.values():
            sink.write()

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

    def troubles(self) -> dict[str, str]:
        """Why each step fails now; nothing where it does not."""
        found = {what: sink.trouble.reason for what, sink in self._sinks.items()}
        return {**found, self.sending.what: self.sending.reason}

    def figures(self) -> Iterable[Metric]:
        """For monitoring: how much was written, queued and sent, what waits, what fails."""
        done = {what: sink.kept for what, sink in self._sinks.items()} | {self.sending.what: self._sent}
        yield counter("s2node_audit_messages", "Audit messages.", ["outcome"], by_name(done))
        words = "Audit messages that wait for the repository."
        yield gauge("s2node_audit_waiting", words, [], {(): self._queue.count})
        failing = {what: bool(reason) for what, reason in self.troubles().items()}
        words = "Whether audit messages cannot be written, queued or sent now."
        yield gauge("s2node_audit_failing", words, ["step"], by_name(failing))

    def _delay_s(self) -> float:
        return retry_delay_s(self._failures, self._settings.retry, self._rng)

    def _last_words(self, *, starts: bool) -> None:
        for sink in self._sinks.values():
            sink.say(self._account.activity(self._clock(), starts=starts))

    def _send(self) -> None:
        while batch := list(self._queue.first(AT_ONCE)):
            send(self._settings.audit, self._settings.tls, (path.read_bytes() for path in batch))
            for path in batch:
                self._queue.sent(path)
            self._sent += len(batch)
