"""When is a series complete? When nothing came for a while and its slices form a regular grid.

The end of an association is no sign: some senders open one for every image, some split a study over two.
An irregular series waits on for the missing slices, and is judged as it is when none came for ``max_wait_s``:
intake then rejects it with a code. A slice that comes later still opens the next generation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog
from pydicom.dataset import Dataset

from config.settings import Settings, SettleSettings
from node.errors import SeriesRejected
from node.flow import Action, Failure, attempt
from node.intake import examine_headers
from node.ledger import Job, Ledger
from node.ledger.errors import MoveRefused
from node.pull.complete import is_awaited
from node.series import read_headers
from node.states import State

log = structlog.get_logger(__name__)

CURABLE: Final = frozenset({"NOT-A-GRID", "TOO-FEW-SLICES"})
"""Rejections that slices still to come may cure; any other one will not change by waiting."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a quiet series is settled, and the evidence in words."""

    settled: bool
    reason: str


def judge(
    quiet_s: float, settle: SettleSettings, headers: Sequence[Dataset], examine: Callable[[], None]
) -> Verdict:
    """Whether a series that has been quiet for ``quiet_s`` is settled; reads nothing, changes nothing.

    ``examine`` raises SeriesRejected for what is no regular series of ours.
    """
    if quiet_s < settle.quiet_s:
        return Verdict(False, "slices are still coming")
    try:
        examine()
    except SeriesRejected as rejected:
        if rejected.code not in CURABLE:
            return Verdict(True, f"quiet for {quiet_s:.0f} s; {rejected.code} will not change by waiting")
        if quiet_s < settle.max_wait_s:
            return Verdict(False, f"{len(headers)} objects are {rejected.code}: waiting for more")
        return Verdict(True, f"quiet for {quiet_s:.0f} s; still {rejected.code}, judged as it is")
    return Verdict(True, f"quiet for {quiet_s:.0f} s; {len(headers)} objects form a regular grid")


def settle_due(
    ledger: Ledger, settings: Settings, now: float, beat: Callable[[], None] = lambda: None
) -> None:
    """One step of the settle lane: RECEIVING → SETTLED what is complete, SETTLED → READY or REJECTED.

    An error of one job parks that job and stops no other. ``beat`` is called after each: headers of many
    series take their time.
    """
    for job in ledger.receiving(now - settings.settle.quiet_s, now):
        if is_awaited(ledger, settings, job):  # an archive may hold more of it: `node/pull/complete.py`
            continue
        _step(ledger, job, partial(_settle, ledger, settings, job, now), now)
        beat()
    for job in ledger.jobs([State.SETTLED]):
        _step(ledger, job, partial(_intake, ledger, settings, job, now), now)
        beat()


def _settle(ledger: Ledger, settings: Settings, job: Job, now: float) -> None:
    quiet_s = now - job.last_received_at
    instances = ledger.instances(job.id)
    try:
        headers = read_headers([instance.path for instance in instances], settings.intake.limits)
    except SeriesRejected as rejected:
        verdict = Verdict(True, f"quiet for {quiet_s:.0f} s; {rejected.code}")
    else:
        verdict = judge(quiet_s, settings.settle, headers, partial(examine_headers, headers, settings.intake))
    if not verdict.settled:
        wait_until = job.last_received_at + settings.settle.max_wait_s
        ledger.wait_on(job.id, len(instances), wait_until, verdict.reason, now)
    elif ledger.settle(job.id, len(instances), now, verdict.reason):
        log.info("series settled", job=job.id, instances=len(instances))


def _intake(ledger: Ledger, settings: Settings, job: Job, now: float) -> None:
    paths = [instance.path for instance in ledger.instances(job.id)]
    examine_headers(read_headers(paths, settings.intake.limits), settings.intake)
    ledger.move(job.id, State.READY, now)
    log.info("series accepted", job=job.id)


def _step(ledger: Ledger, job: Job, step: Callable[[], None], now: float) -> None:
    outcome = attempt(step)
    if not isinstance(outcome, Failure):
        return
    code = outcome.disposition.code
    if outcome.disposition.action is Action.WAIT:
        log.warning("series not judged yet", job=job.id, code=code, reason=outcome.reason)
        return
    state = State.REJECTED if outcome.disposition.action is Action.REJECT else State.PARKED
    with suppress(MoveRefused):  # a late slice superseded the job meanwhile
        ledger.move(job.id, state, now, code, outcome.reason)
        log.warning("series refused", job=job.id, state=state.value, code=code)
