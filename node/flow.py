"""The journey of a series through the node. Read this page first.

::

    PACS ──C-STORE──> scp            checks the peer, the UIDs' form and the free space
                      spool.place    received bytes, written as they come: link, fsync of file and folder
                      ledger         one transaction; only then 0x0000 goes back
    complete lanes ─> pull           does its archive hold more of it? then that comes too
    settle lane ────> settle         quiet time and regular geometry            RECEIVING -> SETTLED
                      intake         is this ours?                              -> READY | REJECTED(code)
    worker process ─> build          files -> series -> synthesis -> datasets
                      spool.place    datasets into the outbox                   READY -> BUILT
    deliver lanes ──> destinations   one lane each, every answer kept           BUILT -> DELIVERED
    ask lanes ──────> commitment     does it answer for them?                   -> COMMITTED | BUILT again

``service.Node`` starts and stops all of it; ``worker`` is the child process; ``deliver`` is one lane;
``states.MOVES`` is the table of states. Every step's files are safe before its state moves, and every step
may be repeated: UIDs and times come from the source and the job, so a repeat is byte for byte the same.

Errors carry facts. Nobody who raises one decides what follows: :data:`DISPOSITIONS` does.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from random import Random
from traceback import extract_tb
from typing import TypeVar

from config.settings import RetrySettings
from engine.errors import BundleInvalid, EngineError, ProviderMissing, SynthesisFailed, VolumeUnsupported
from node.errors import DestinationRefused, DestinationUnreachable, NodeError, SeriesRejected
from node.spool import SpoolFull

T = TypeVar("T")


class Action(StrEnum):
    """What happens to a job after an error."""

    REJECT = "REJECT"
    """The series is not ours: REJECTED, final."""
    RETRY = "RETRY"
    """It may pass: again later, and PARKED after the last attempt."""
    WAIT = "WAIT"
    """It passes when the machine is well again: again later, however often, and no attempt is counted."""
    PARK = "PARK"
    """A person is needed: PARKED until `s2node jobs retry`."""


@dataclass(frozen=True, slots=True)
class Disposition:
    """What follows from an error, and the stable code that the ledger and the runbook know it by."""

    action: Action
    code: str


DISPOSITIONS: dict[type[Exception], Disposition] = {
    SeriesRejected: Disposition(Action.REJECT, "the error's own code"),
    VolumeUnsupported: Disposition(Action.REJECT, "VOLUME-UNSUPPORTED"),
    SynthesisFailed: Disposition(Action.RETRY, "SYNTHESIS-FAILED"),
    MemoryError: Disposition(Action.RETRY, "OUT-OF-MEMORY"),
    FileNotFoundError: Disposition(Action.RETRY, "DISK"),
    PermissionError: Disposition(Action.RETRY, "DISK"),
    OSError: Disposition(Action.WAIT, "DISK"),
    SpoolFull: Disposition(Action.WAIT, "DISK"),
    sqlite3.OperationalError: Disposition(Action.WAIT, "DISK"),
    BundleInvalid: Disposition(Action.PARK, "BUNDLE-INVALID"),
    ProviderMissing: Disposition(Action.PARK, "PROVIDER-MISSING"),
    DestinationUnreachable: Disposition(Action.RETRY, "DELIVERY-REFUSED"),
    DestinationRefused: Disposition(Action.PARK, "DELIVERY-REFUSED"),
}
"""From what was raised to what follows. A subclass counts as its nearest base in this table."""

BUG = Disposition(Action.PARK, "BUG")
"""Anything that no row names: parked with its traceback."""

WORKER_DIED = Disposition(Action.PARK, "WORKER-DIED")
"""A job that took its worker down at every attempt."""


PARK_CODES: dict[str, str] = {
    "SYNTHESIS-FAILED": "the runtime failed while computing, at every attempt",
    "OUT-OF-MEMORY": "the series did not fit into memory, at every attempt",
    "DISK": "files are missing or may not be read or written, at every attempt",
    "BUNDLE-INVALID": "the active model bundle is damaged or of a kind this node does not know",
    "PROVIDER-MISSING": "the execution provider that the settings ask for is not there",
    "DELIVERY-REFUSED": "a destination said no for good, or did not answer at any attempt: the reason says",
    "WORKER-DIED": "the worker process died at every attempt",
    "BUG": "an error the node does not know; the note holds where it was raised",
}
"""Codes of PARKED jobs and what they mean, one line each; `docs/runbook.md` says what to do about them."""


def disposition_of(error: Exception) -> Disposition:
    """The row for ``error``: its class or its nearest base class in :data:`DISPOSITIONS`, else BUG."""
    if isinstance(error, SeriesRejected):
        return Disposition(Action.REJECT, error.code)
    for base in type(error).__mro__:
        if issubclass(base, Exception) and base in DISPOSITIONS:
            return DISPOSITIONS[base]
    return BUG


def retry_delay_s(failures: int, retry: RetrySettings, rng: Random) -> float:
    """Seconds until the next try after ``failures`` ≥ 1 failed ones: ``first_s`` × ``factor``^(failures − 1).

    Capped at ``max_s``, then spread by ± ``jitter`` so that many nodes do not knock at once.
    """
    steps = min(failures - 1, 256)  # 10.0**256 still is a float
    wait_s = min(retry.max_s, retry.first_s * retry.factor**steps)
    return wait_s * (1.0 + retry.jitter * rng.uniform(-1.0, 1.0))


@dataclass(frozen=True, slots=True)
class Failure:
    """A step that did not end well: what follows, why in words, and where it was raised.

    ``reason`` goes to the ledger; of an error nobody foresaw it is the trace: its message may name a patient.
    """

    disposition: Disposition
    reason: str
    trace: str


def attempt(step: Callable[[], T]) -> T | Failure:
    """Run one step of a lane or of the work loop. The node's one catch-all: no job stops the queue."""
    try:
        return step()
    except Exception as error:
        return failure_of(error)


def failure_of(error: Exception) -> Failure:
    """What is kept of an error."""
    disposition, trace = disposition_of(error), trace_of(error)
    if isinstance(error, SeriesRejected):
        return Failure(disposition, error.reason, trace)
    if isinstance(error, (NodeError, EngineError)):
        return Failure(disposition, str(error), trace)
    if isinstance(error, OSError) and error.strerror:
        return Failure(disposition, error.strerror, trace)
    if isinstance(error, sqlite3.OperationalError):
        return Failure(disposition, f"the ledger: {error}", trace)
    return Failure(disposition, trace, trace)


def trace_of(error: BaseException) -> str:
    """Class and places of an error, innermost first; not its message, which may name a patient."""
    frames = extract_tb(error.__traceback__)
    places = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames)]
    return " < ".join([type(error).__name__, *places])
