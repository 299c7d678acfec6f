"""Let the files of old jobs go, while the ledger keeps their rows and their history.

The ledger says PURGED first: no new generation shares the files from then on. Then they are removed, and a
purge that was cut off is finished by the next. A file goes only if no living job holds it. Patient and study
of what was made are kept in the ledger, without pixels, so that it can still be recalled.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import structlog

from config.settings import RetentionSettings
from node.flow import Failure, attempt
from node.ledger import Job, Ledger, SetAside
from node.spool import Spool
from node.states import State

log = structlog.get_logger(__name__)

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Weight:
    """What the files of one job take."""

    job_id: int
    state: State
    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Tally:
    """How many files of the quarantine there are, and their bytes."""

    files: int
    bytes: int


def weigh(ledger: Ledger, states: Collection[State], before: float) -> list[Weight]:
    """Every job in ``states`` since before then, with the files that would go; changes nothing."""
    return [_weight(ledger, job) for job in ledger.purgeable(states, before)]


def _weight(ledger: Ledger, job: Job) -> Weight:
    sizes = [path.stat().st_size for path in ledger.purged_files(job.id) if path.is_file()]
    return Weight(job.id, job.state, len(sizes), sum(sizes))


def purge(
    ledger: Ledger,
    spool: Spool,
    states: Collection[State],
    before: float,
    clock: Callable[[], float],
    progress: Callable[[int], None] = lambda done: None,
) -> list[Weight]:
    """Purge every job in ``states`` since before then; what went, job by job.

    ``progress`` hears how many jobs are done. A job that moved on meanwhile is left alone. Finishes first
    what an earlier purge left.
    """
    for job_id in ledger.unfinished_purges():
        _empty(ledger, spool, ledger.job(job_id), clock)
    gone = []
    for number, job in enumerate(ledger.purgeable(states, before), start=1):
        _keep_identity(ledger, job)
        if ledger.begin_purge(job.id, states, before, clock()):
            gone.append(_empty(ledger, spool, job, clock))
        progress(number)
    return gone


def _keep_identity(ledger: Ledger, job: Job) -> None:
    """Keep whose the job is where a rejection note may have to be written; a note needs none."""
    if job.rejects is not None or not ledger.went_to(job.id):
        return
    from node.rejection.retract import identity_in  # noqa: PLC0415 (highdicom takes its time)

    found = attempt(lambda: identity_in(ledger, job.id))
    if isinstance(found, Failure):
        log.warning("identity not kept", job=job.id, reason=found.reason)
    else:
        ledger.keep_identity(job.id, found)


def _empty(ledger: Ledger, spool: Spool, job: Job, clock: Callable[[], float]) -> Weight:
    """Remove the job's files; ``state`` of the weight is where the job stood before."""
    with spool.removing():
        sizes = [spool.remove(path) for path in ledger.purged_files(job.id)]
    ledger.finish_purge(job.id, clock())
    return Weight(job.id, job.state, sum(size > 0 for size in sizes), sum(sizes))


def weigh_quarantine(ledger: Ledger, before: float) -> Tally:
    """What a purge of the quarantine would remove."""
    aside = ledger.set_aside(before)
    return Tally(len(aside), sum(each.bytes for each in aside))


def purge_quarantine(ledger: Ledger, spool: Spool, before: float, clock: Callable[[], float]) -> Tally:
    """Remove what came into quarantine before then, and nothing that comes again meanwhile."""
    by_job: dict[int, list[SetAside]] = {}
    for each in ledger.set_aside(before):
        by_job.setdefault(each.job_id, []).append(each)
    sizes = []
    for job_id, aside in by_job.items():
        with spool.removing():
            sizes += [spool.remove(each.path) for each in aside]
            ledger.record_removed(job_id, aside, clock())
    return Tally(len(sizes), sum(sizes))


def remove_strays(ledger: Ledger, spool: Spool, before: float, beat: Callable[[], None]) -> int:
    """Remove files of the outbox from before then that no row of the ledger names; how many.

    What a running attempt has made so far has no row either: ``before`` is when the oldest of them began.
    Strays are of results that were being placed when their worker was killed, or a late slice superseded
    their job. Nobody is between placing and recording under ``spool.removing()``. What was received is never
    a stray: somebody may have been promised it.
    """
    removed = 0
    for series_instance_uid, paths in spool.made():
        beat()
        unknown = paths - ledger.made_files(series_instance_uid)
        strays = {path for path in unknown if _is_from_before(path, before)}
        if not strays:
            continue
        with spool.removing():
            strays -= ledger.made_files(series_instance_uid)
            removed += sum(spool.remove(path) > 0 for path in strays)
    return removed


def _is_from_before(path: Path, before: float) -> bool:
    """Whether a file was written before then; not one that is gone."""
    try:
        return path.lstat().st_mtime < before
    except FileNotFoundError:
        return False


@dataclass(frozen=True, slots=True)
class Retention:
    """What goes by itself: strays, and what the settings let go, on the node's clock.

    ``beat`` is called at signs of life.
    """

    settings: RetentionSettings
    ledger: Ledger
    spool: Spool
    clock: Callable[[], float]
    beat: Callable[[], None]

    def run(self) -> None:
        """Remove what nobody knows of and what has grown old."""
        strays = remove_strays(self.ledger, self.spool, self.ledger.working_since(self.clock()), self.beat)
        if strays:
            log.info("strays removed", files=strays)
        for state, days in days_of(self.settings).items():
            gone = purge(self.ledger, self.spool, [state], self.before(days), self.clock, self._tick)
            if gone:
                size = sum(weight.bytes for weight in gone)
                log.info("purged", state=state.value, jobs=len(gone), bytes=size)
        if self.settings.quarantine_days:
            before = self.before(self.settings.quarantine_days)
            removed = purge_quarantine(self.ledger, self.spool, before, self.clock)
            if removed.files:
                log.info("quarantine purged", instances=removed.files, bytes=removed.bytes)
        if self.settings.identity_days:
            self.ledger.forget_identities(self.before(self.settings.identity_days))

    def before(self, days: float) -> float:
        """The time that is so many days ago."""
        return self.clock() - days * DAY_S

    def _tick(self, _done: int) -> None:
        self.beat()


def days_of(settings: RetentionSettings) -> dict[State, float]:
    """The states whose jobs are purged by themselves, and after how many days."""
    days = {
        State.COMMITTED: settings.committed_days,
        State.DELIVERED: settings.delivered_days,
        State.REJECTED: settings.rejected_days,
        State.PARKED: settings.parked_days,
        State.RECALLED: settings.recalled_days,
        State.SUPERSEDED: settings.superseded_days,
    }
    return {state: number for state, number in days.items() if number > 0}
