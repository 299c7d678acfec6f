"""Which results are retracted: those a later generation supersedes, and those of a model that is recalled.

The note's file is safe before the ledger knows it; the ledger then has note, rejected instances and where it
goes in one transaction. A note that was cut off is made again, byte for byte but for its time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from io import BytesIO

import structlog
from pydicom import dcmread

from config.settings import Settings
from node import tags
from node.errors import NodeError
from node.flow import Failure, attempt
from node.ledger import Job, Ledger, Output, Rejection
from node.outbox import put
from node.outputs.context import context_of
from node.outputs.encoding import Instance
from node.rejection.note import KIND, Grounds, Reason, identity_of, make_note
from node.spool import Spool

log = structlog.get_logger(__name__)


class NobodyKnown(NodeError):
    """No file of the job is left that says whose it is."""


class DestinationGone(NodeError):
    """The job went to a destination that the settings do not name: nobody could tell it of a rejection."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(
            f"its results went to {', '.join(names)}, and the settings do not name that destination: "
            "add [[destinations]] of that name"
        )


@dataclass(frozen=True, slots=True)
class Found:
    """A job that a recall takes back: its live outputs of the model's phases, and where it went."""

    job: Job
    outputs: tuple[Output, ...]
    destinations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Retractor:
    """Writes rejection notes; ``clock`` gives epoch seconds."""

    settings: Settings
    ledger: Ledger
    spool: Spool
    clock: Callable[[], float]

    def announce(self, job: Job) -> None:
        """Reject what is live of a superseded job; raises what :meth:`reject` does."""
        words = "Superseded: slices that came later are part of a new result of the same series."
        outputs = self.ledger.live_outputs(job.id)
        self.reject(job, outputs, Grounds(Reason.QUALITY, words), "superseded by a later generation")

    def find(self, model: str, since: float) -> Iterator[Found]:
        """What a recall of the model (id or digest) would take back; changes nothing."""
        for job in self.ledger.made_by(model, since):
            records = self.ledger.syntheses(job.id)
            phases = {each.phase for each in records if model in {each.model_id, each.model_digest}}
            outputs = self.ledger.live_outputs(job.id, phases)
            targets = [name for name in self.ledger.went_to(job.id) if name in self.told()]
            yield Found(job, tuple(outputs), tuple(targets))

    def recall(self, found: Found, model: str, reason: Reason) -> Rejection | None:
        """Take back what was found; None where it changed meanwhile."""
        words = f"Recalled: the model {model} that made these images is not to be used."
        return self.reject(found.job, found.outputs, Grounds(reason, words), f"model {model} recalled", True)

    def reject(
        self, job: Job, outputs: Sequence[Output], grounds: Grounds, words: str, recall: bool = False
    ) -> Rejection | None:
        """Write a note on these outputs of the job and record it; None where they changed meanwhile.

        Raises NobodyKnown where nothing is left that names patient and study, and DestinationGone.
        """
        self.require_destinations(job)
        now = self.clock()
        created = datetime.fromtimestamp(now, UTC).astimezone()
        context = context_of(self.settings, generation=job.generation, created=created)
        ds = make_note(self.identity(job), outputs, grounds, context)
        with self.spool.keeping():
            note = put(self.spool, Instance.of(ds), job_id=0, phase="", kind=KIND)
            made = self.ledger.reject(
                job.id,
                [each.sop_instance_uid for each in outputs],
                note,
                destinations=self.told(),
                calling_ae=self.settings.listen.ae_title,
                reason=words,
                recall=recall,
                now=now,
            )
        if made is not None:
            if made.note_id is None:
                self.spool.remove(note.path)
            log.warning("result rejected", job=job.id, note=made.note_id, instances=len(outputs))
        return made

    def require_destinations(self, job: Job) -> None:
        """Raise DestinationGone where the job went to one that the settings do not name."""
        names = {each.name for each in self.settings.destinations}
        if gone := [name for name in self.ledger.went_to(job.id) if name not in names]:
            raise DestinationGone(gone)

    def identity(self, job: Job) -> bytes:
        """Patient and study of the job, from a file it made or received, or from what a purge kept."""
        kept = self.ledger.identity(job.id)
        if kept is not None:
            return kept
        return identity_in(self.ledger, job.id)

    def told(self) -> Collection[str]:
        """Destinations that are told about rejections."""
        return {each.name for each in self.settings.destinations if each.rejection_notes}


def identity_in(ledger: Ledger, job_id: int) -> bytes:
    """Patient and study as a file of the job says them; raises NobodyKnown where none can be read."""
    paths = [each.path for each in ledger.outputs(job_id)] + [each.path for each in ledger.instances(job_id)]
    for path in paths:
        found = attempt(partial(identity_of, path))
        if not isinstance(found, Failure) and tags.text(dcmread(BytesIO(found)), "StudyInstanceUID"):
            return found
    raise NobodyKnown(f"no file of job {job_id} is left that says whose it is")
