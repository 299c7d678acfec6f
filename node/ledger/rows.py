"""The ledger's rows as values. Times are epoch seconds; paths are absolute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from node.states import State


@dataclass(frozen=True, slots=True)
class Job:
    """One generation of one series, all phases of it."""

    id: int
    series_instance_uid: str
    generation: int
    study_instance_uid: str
    calling_ae: str
    state: State
    code: str | None
    reason: str | None
    attempt: int
    owner: str | None
    leased_until: float | None
    not_before: float
    progress: float
    created_at: float
    updated_at: float
    last_received_at: float
    instances: int
    rejects: int | None = None
    """The job whose outputs this one, a rejection note, rejects; None for a synthesis."""


@dataclass(frozen=True, slots=True)
class ReceivedInstance:
    """What the SCP hands over once the file is safe."""

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    series_instance_uid: str
    study_instance_uid: str
    calling_ae: str
    path: Path
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of a received instance.

    ``is_new`` is False for a byte-identical repeat and for a conflict. ``conflict`` is True where the
    generation already holds this SOP Instance UID with other bytes, or one of another series does, whose job
    this is then: the first one stays, and the caller quarantines the second.
    """

    job_id: int
    generation: int
    is_new: bool
    superseded_job_id: int | None = None
    conflict: bool = False
    in_other_series: bool = False


@dataclass(frozen=True, slots=True)
class Instance:
    """One received file of a job. Later generations share the files of earlier ones."""

    job_id: int
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    path: Path
    sha256: str
    bytes: int
    received_at: float


@dataclass(frozen=True, slots=True)
class Output:
    """One file of a result, in the outbox."""

    job_id: int
    phase: str
    kind: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    path: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class SetAside:
    """An instance in quarantine; ``at`` is when it came last, ``id`` is 0 before it is recorded."""

    job_id: int
    path: Path
    sha256: str
    bytes: int
    calling_ae: str
    reason: str
    at: float = 0.0
    times: int = 1
    id: int = 0
    sop_class_uid: str = ""
    """Empty where an earlier version set it aside."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Outputs of ``job_id`` were rejected; ``note_id`` is the job that says so to ``destinations``.

    No note and no destinations where the outputs had gone nowhere.
    """

    job_id: int
    note_id: int | None
    destinations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SynthesisRecord:
    """What one phase was made with: an engine synthesis without its volume."""

    phase: str
    model_id: str
    model_digest: str
    seed: int
    sampler: str
    steps: int
    provider: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    findings: tuple[tuple[str, str], ...] = ()
    """(code, text) of each finding."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """How one destination stands with one job."""

    job_id: int
    destination: str
    attempt: int
    not_before: float
    refused: bool
    reason: str | None
    delivered: int
    outputs: int
    asked: int = 0
    """How often it was asked to commit since it has everything."""
    ask_not_before: float = 0.0
    resent: int = 0
    """How often it was sent again what it said it lacked."""
    committed: int = 0
    """Outputs it has taken responsibility for."""
    started_at: float | None = None
    """When something was first sent there."""
    owed_since: float = 0.0
    """When it was built for this destination, or sent back because it lacks something."""
    fallback_for: str | None = None
    """The destination this one stands in for."""


@dataclass(frozen=True, slots=True)
class InstanceAnswer:
    """What a destination last said about one output; ``status`` and ``at`` are None where it said nothing."""

    destination: str
    phase: str
    kind: str
    series_instance_uid: str
    sop_instance_uid: str
    status: int | None
    at: float | None


@dataclass(frozen=True, slots=True)
class BreakerRecord:
    """How a destination answers: transient failures in a row, and since when it is left alone, if it is."""

    destination: str
    failures: int = 0
    opened_at: float | None = None
    reason: str | None = None
    """Why the last attempt or probe failed."""
    changed_at: float = 0.0


@dataclass(frozen=True, slots=True)
class DestinationStanding:
    """One destination's breaker, the jobs that wait for it, and since when the oldest of them does."""

    breaker: BreakerRecord
    jobs: int
    oldest_at: float | None


class Reference(NamedTuple):
    """An instance as storage commitment names it (PS3.4 J.3.2.1.1)."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True)
class Question:
    """A storage commitment asked of a destination.

    ``is_open`` until its report came or another one was asked.
    """

    job_id: int
    destination: str
    is_open: bool


@dataclass(frozen=True, slots=True)
class CommitmentAnswer:
    """What a destination says about a job's outputs.

    ``lacking`` are to be sent again, each with the status its delivery has from now on; with ``refusal`` a
    person is needed, and so it is after ``most_resends`` times.
    """

    held: frozenset[Reference]
    lacking: Mapping[str, int] = field(default_factory=dict)
    refusal: str | None = None
    most_resends: int = 3


@dataclass(frozen=True, slots=True)
class Request:
    """A storage commitment a sender asks of us."""

    id: int
    calling_ae: str
    transaction_uid: str
    references: tuple[Reference, ...]
    attempt: int


@dataclass(frozen=True, slots=True)
class Pull:
    """How far an archive was asked for the rest of a quiet series.

    ``attempt`` counts tries that led to nothing; ``held`` is what the job held when there was nothing more to
    ask for, None until then.
    """

    archive: str
    attempt: int = 0
    held: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a job's history; a note that is no move has equal states."""

    job_id: int
    at: float
    from_state: State | None
    to_state: State
    code: str | None
    note: str | None


@dataclass(frozen=True, slots=True)
class Followed:
    """An event as a follower hears it; ``since`` is when the job came to where it was before."""

    id: int
    event: Event
    since: float | None


@dataclass(frozen=True, slots=True)
class Figures:
    """How much there is of everything, for monitoring."""

    jobs: Mapping[State, int]
    oldest: Mapping[State, float]
    """When the job that has been longest in a state came to it; only states somebody has to act on."""
    instances: int
    """Received instances of jobs whose files are kept."""
    answers: Mapping[tuple[str, int], int]
    """Instances by destination and its last answer."""
    refused: Mapping[str, int]
    """Jobs by destination that it will not take."""
