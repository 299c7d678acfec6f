"""A series that is quiet and has too few slices: its archive may hold the rest, and is asked once.

Between quiet and settled stands one C-FIND. Where the archive lists instances that did not come, they are
fetched, the series becomes quiet once more, and the archive is asked again until it has no more. Tries that
lead to nothing are counted: a series whose archive is silent goes on, and its history says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from config.settings import ArchivePeer, Settings
from node.errors import DestinationUnreachable
from node.flow import Action, Failure, attempt
from node.lane import Means
from node.ledger import Job, Ledger, Pull
from node.pull.query import Conversation, conversation
from node.pull.retrieve import Wanted, retrieve
from node.receive import Answer, Arrival
from node.scp import CT_CLASSES

log = structlog.get_logger(__name__)


def archive_of(settings: Settings, job: Job) -> ArchivePeer | None:
    """The archive that completes the job's series: the first of the settings that does so for its sender."""
    for archive in settings.archives:
        is_own = archive.completes == "own" and job.calling_ae == archive.ae_title
        if is_own or archive.completes == "any":
            return archive
    return None


def is_awaited(ledger: Ledger, settings: Settings, job: Job) -> bool:
    """Whether an archive has still to say if it holds more of the job than has come."""
    archive = archive_of(settings, job)
    if archive is None:
        return False
    asked = ledger.pull(job.id)
    return asked is None or asked.archive != archive.name or asked.held != job.instances


@dataclass(slots=True)
class CompleteLane:
    """One archive's lane. ``store`` keeps what comes by C-GET; ``waits`` is when a job may be tried again."""

    means: Means
    archive: ArchivePeer
    settings: Settings
    store: Callable[[Arrival], Answer]
    waits: dict[int, float] = field(default_factory=dict)

    def run(self) -> None:
        """Ask about every series that is due, over one association, until one question fails."""
        self.means.beat()
        jobs = self.due()
        if not jobs:
            return
        outcome = attempt(lambda: self.ask(jobs))
        if isinstance(outcome, Failure):  # no association: it counts for every series that waits for one
            for job in jobs:
                self.count(job, outcome)

    def due(self) -> list[Job]:
        """The quiet series that wait for this archive, without those that were tried a moment ago."""
        now, elapsed = self.means.clock(), self.means.elapsed()
        self.waits = {job_id: until for job_id, until in self.waits.items() if until > elapsed}
        quiet = self.means.ledger.receiving(now - self.settings.settle.quiet_s, now)
        return [job for job in quiet if job.id not in self.waits and self.is_mine(job)]

    def is_mine(self, job: Job) -> bool:
        """Whether the job waits for this archive."""
        if archive_of(self.settings, job) != self.archive:
            return False
        return is_awaited(self.means.ledger, self.settings, job)

    def ask(self, jobs: Sequence[Job]) -> None:
        """Go through the jobs; one that fails ends the association. Raises where there is none."""
        us, limit = self.settings.listen.ae_title, self.settings.storage.max_instance_bytes
        with conversation(self.archive, us, self.means.stopping, limit) as talk:
            for job in jobs:
                outcome = attempt(lambda job=job: self.complete(talk, job))  # type: ignore[misc]
                if isinstance(outcome, Failure):
                    self.count(job, outcome)
                    return
                self.means.beat()

    def complete(self, talk: Conversation, job: Job) -> None:
        """Fetch what the archive lists and the job lacks; raises where nothing of it came."""
        held = {each.sop_instance_uid: each.sop_class_uid for each in self.means.ledger.instances(job.id)}
        if CT_CLASSES.keys().isdisjoint(held.values()):
            self.close(job, "no CT images: no archive is asked")
            return
        most = self.settings.intake.limits.max_files
        listed = talk.instances(job.study_instance_uid, job.series_instance_uid, most)
        self.means.beat()
        missing = listed - held.keys()
        if not missing:
            self.close(job, f"{self.archive.name} lists {len(listed)} instances, none that is not here")
            return
        wanted = Wanted(job.study_instance_uid, job.series_instance_uid, listed, missing)
        done = retrieve(talk, wanted, self.take, lambda _: self.means.beat())
        came = self.means.ledger.job(job.id).instances - job.instances
        if came <= 0:
            cure = f"see its log, and ours for refused associations of {self.archive.ae_title}"
            raise DestinationUnreachable(
                f"{len(missing)} instances are missing and none came ({done.failed} failed): {cure}"
            )
        self.keep(job, Pull(self.archive.name), f"{came} of {len(missing)} missing instances came")
        log.info("series completed", job=job.id, archive=self.archive.name, instances=came)

    def take(self, arrival: Arrival) -> Answer:
        """Keep what comes by C-GET: a sign of life, also of archives that send no pending answers."""
        answer = self.store(arrival)
        self.means.beat()
        return answer

    def count(self, job: Job, failure: Failure) -> None:
        """One try that led to nothing: again later, or the series goes on as it is.

        What passes when this machine is well again is no try.
        """
        if self.means.stopping.is_set():
            return
        asked = self.means.ledger.pull(job.id)
        goes_on = asked is not None and asked.archive == self.archive.name and asked.held is None
        action, before = failure.disposition.action, asked.attempt if asked is not None and goes_on else 0
        tries = before if action is Action.WAIT else before + 1
        is_last = action is Action.RETRY and tries >= self.archive.completes_attempts
        is_final = is_last or action in {Action.REJECT, Action.PARK}
        facts = {"job": job.id, "archive": self.archive.name, "attempt": tries, "final": is_final}
        log.warning("archive does not complete", **facts, trace=failure.trace)
        if is_final:
            self.close(job, f"{failure.reason}; judged as it is", tries)
            return
        self.waits[job.id] = self.means.elapsed() + self.means.delay_s(max(1, tries))
        self.keep(job, Pull(self.archive.name, tries), failure.reason)

    def close(self, job: Job, reason: str, attempt: int = 0) -> None:
        """Nothing more to ask for: the settle lane has the word, until another instance comes."""
        self.keep(job, Pull(self.archive.name, attempt, held=job.instances), reason)

    def keep(self, job: Job, asked: Pull, reason: str) -> None:
        """Into the ledger."""
        text = f"archive {self.archive.name}: {reason}"
        self.means.ledger.record_pull(job.id, asked, text, self.means.clock())
