"""Let the files of old jobs go, while the ledger keeps their rows and their history.

The ledger says PURGED first: no new generation shares the files from then on. Then they are removed, and a
purge that was cut off is finished by the next. A file goes only if no living job holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from node.ledger import Job, Ledger
from node.spool import Spool
from node.states import State


@dataclass(frozen=True, slots=True)
class Weight:
    """What the files of one job take."""

    job_id: int
    state: State
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
        if ledger.begin_purge(job.id, states, before, clock()):
            gone.append(_empty(ledger, spool, job, clock))
        progress(number)
    return gone


def _empty(ledger: Ledger, spool: Spool, job: Job, clock: Callable[[], float]) -> Weight:
    """Remove the job's files; ``state`` of the weight is where the job stood before."""
    with spool.removing():
        sizes = [spool.remove(path) for path in ledger.purged_files(job.id)]
    ledger.finish_purge(job.id, clock())
    return Weight(job.id, job.state, sum(size > 0 for size in sizes), sum(sizes))
