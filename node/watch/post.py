"""The watch of one node: its log of moves, its figures, its audit, and the page that machines read."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.process_collector import ProcessCollector

from config.settings import Settings, is_loopback
from node.alarm import Alert, AlertKind
from node.audit.auditor import Auditor
from node.ledger import Ledger
from node.peers import REJECTIONS
from node.watch.chronicle import Chronicle
from node.watch.figures import Figures
from node.watch.follow import Follower
from node.watch.signs import Signs
from node.watch.site import Site

FOLLOW_S: Final = 1.0
"""Seconds between two looks for what is new in the ledger."""
OWN_CALL_S: Final = 10.0
"""Seconds after a call to ourselves in which a refusal of ourselves is no news."""

Step = tuple[str, Callable[[], None]]


class Watch:
    """Watches within a ``with`` statement; :meth:`serve` once there is something to see.

    ``look`` says what the node knows of itself, ``answers`` calls the node's own listener.
    """

    def __init__(
        self, settings: Settings, ledger: Ledger, look: Callable[[], Signs], answers: Callable[[], bool]
    ) -> None:
        self._settings = settings
        self._look = look
        self._calls = answers
        self._called_at = float("-inf")
        self._open = ExitStack()
        self._registry = CollectorRegistry()
        names = [destination.name for destination in settings.destinations]
        self._chronicle = Chronicle(ledger, self._registry, names)
        self._follower = Follower(ledger, "log", self._chronicle.hear)
        self._auditor = Auditor(settings, ledger) if settings.audit.is_wanted else None
        more = [self._auditor.figures] if self._auditor else []
        self._registry.register(Figures(settings, ledger, look, more))
        ProcessCollector(registry=self._registry)
        self._site: Site | None = None

    def __enter__(self) -> Watch:
        if self._auditor is not None:
            self._auditor.start()
            self._open.callback(self._auditor.stop)
        self._open.callback(self._follower.run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def serve(self) -> None:
        """Answer /metrics, /healthz and /readyz if that is wanted; raises OSError for an address taken."""
        if not self._settings.watch.enabled:
            return
        site = Site(
            self._settings.watch,
            self._registry,
            health=lambda: self._look().ailments(),
            readiness=lambda: self._look().obstacles(answers=self.answers()),
        )
        self._site = self._open.enter_context(site)

    @property
    def port(self) -> int | None:
        """The TCP port that answers, None where none does."""
        return None if self._site is None else self._site.port

    def steps(self) -> list[Step]:
        """What the clock has to call every :data:`FOLLOW_S` seconds, by name."""
        steps: list[Step] = [("log", self._follower.run)]
        if self._auditor is not None:
            steps.append(("audit", self._auditor.write))
        if self._settings.audit.syslog_host and self._auditor is not None:
            steps.append(("audit repository", self._auditor.send))
        return steps

    def answers(self) -> bool:
        """Whether our own listener answers us."""
        self._called_at = time.monotonic()
        return self._calls()

    def alarm(self, alert: Alert) -> None:
        """Take an alert from the listener; not the refusal of our own call."""
        if self._is_our_own(alert):
            return
        self._chronicle.alarm(alert)
        if self._auditor is not None:
            self._auditor.alarm(alert)

    def _is_our_own(self, alert: Alert) -> bool:
        """Our calls come from this machine, whose address and certificate need not be let in."""
        from_here = is_loopback(alert.address) or alert.address == self._settings.listen.host
        lately = time.monotonic() - self._called_at < OWN_CALL_S
        of_that_kind = alert.kind is AlertKind.TLS or alert.words == REJECTIONS["address"].words
        return from_here and lately and of_that_kind
