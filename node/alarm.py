"""What a peer tried and may not: said once where it is noticed, for whoever keeps account of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class AlertKind(StrEnum):
    """What happened."""

    REFUSED = "association refused"
    """A peer asked for an association and is not let in."""
    TLS = "TLS failed"
    """A peer showed no certificate, a wrong one, or spoke no TLS."""
    CROWDED = "too many connections"
    """There was no place left."""
    TOO_LONG = "message too long"
    """A peer sent more than a message may have."""
    COMMITMENT = "commitment request refused"
    """A peer that is no requester asked for storage commitment."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One such event; ``words`` say why, ``calling_ae`` is what the peer calls itself, if it came so far."""

    kind: AlertKind
    words: str
    address: str = ""
    calling_ae: str = ""


Alarm = Callable[[Alert], None]
"""Takes an alert from any thread; it neither waits nor raises."""


def nobody(_alert: Alert) -> None:
    """The alarm that nobody hears."""
