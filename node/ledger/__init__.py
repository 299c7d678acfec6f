"""The node's memory: one SQLite file, the only record of what was received, made and delivered.

The file is in WAL mode with ``synchronous=FULL``: when a method that writes returns, the disk has it. Every
method is one transaction, safe from any number of threads and processes at once; every move of a job is a
row of ``event``. Times are epoch seconds handed in as ``now``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Sequence
from math import inf
from pathlib import Path
from types import TracebackType

from node.ledger import (
    breakers,
    commitments,
    deliveries,
    leases,
    moves,
    notes,
    pulls,
    purging,
    quarantine,
    receiving,
)
from node.ledger.errors import (
    JobUnknown,
    LedgerError,
    LedgerTooNew,
    LedgerUnusable,
    MoveRefused,
    StaleLease,
)
from node.ledger.figures import figures_of
from node.ledger.following import advance_follower, begin_following, events_after
from node.ledger.rows import (
    BreakerRecord,
    CommitmentAnswer,
    Delivery,
    DestinationStanding,
    Event,
    Figures,
    Followed,
    Instance,
    InstanceAnswer,
    Job,
    Output,
    Pull,
    Question,
    ReceivedInstance,
    Recorded,
    Reference,
    Rejection,
    Request,
    SetAside,
    SynthesisRecord,
)
from node.ledger.store import Store
from node.states import State

__all__ = [
    "LEDGER_FILE",
    "BreakerRecord",
    "CommitmentAnswer",
    "Delivery",
    "DestinationStanding",
    "Event",
    "Figures",
    "Followed",
    "Instance",
    "InstanceAnswer",
    "Job",
    "JobUnknown",
    "Ledger",
    "LedgerError",
    "LedgerTooNew",
    "LedgerUnusable",
    "MoveRefused",
    "Output",
    "Pull",
    "Question",
    "ReceivedInstance",
    "Recorded",
    "Reference",
    "Rejection",
    "Request",
    "SetAside",
    "StaleLease",
    "SynthesisRecord",
]

LEDGER_FILE = "ledger.sqlite3"
"""Name of the ledger in the data folder."""


class Ledger:
    """The ledger in ``path``, created or brought up to date when opened.

    Raises LedgerTooNew where a newer version wrote the file, LedgerUnusable where it is no ledger. File
    paths are stored relative to the ledger's folder, so the folder may be moved; they come back absolute.
    """

    def __init__(self, path: Path) -> None:
        self._store = Store(path)
        self.path = self._store.path

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the ledger is of no further use."""
        self._store.close()

    # receiving

    def record_instance(self, received: ReceivedInstance, now: float) -> Recorded:
        """Put a received instance into the living generation of its series, or open the next one.

        A late slice (the generation is past RECEIVING) opens a generation holding the old instances and
        itself, and supersedes the old one; a byte-identical repeat never does. The same SOP Instance UID with
        other bytes, or in another series that is still here, is a conflict: the first stays, nothing is
        recorded, the caller quarantines the second.
        """
        path = self._stored(received.path)
        return self._store.together(lambda db: receiving.record(db, received, path, now))

    def record_repeat(
        self, series_instance_uid: str, sop_instance_uid: str, sha256: str, now: float
    ) -> int | None:
        """The living job that already holds exactly these bytes, if one does.

        A repeat means that the sender is still at it: an open series then waits on.
        """
        with self._store.reading() as db:
            found = receiving.repeat(db, series_instance_uid, sop_instance_uid, sha256)
        if found is not None:
            with self._store.writing() as db:
                receiving.hear(db, found, now)
        return found

    def receiving(self, quiet_before: float, now: float) -> list[Job]:
        """The RECEIVING jobs to judge: nothing came since ``quiet_before``, and they need not wait on."""
        return self._jobs(
            "WHERE state = ? AND last_received_at <= ? AND not_before <= ? ORDER BY id",
            (State.RECEIVING, quiet_before, now),
        )

    def wait_on(self, job_id: int, instances: int, not_before: float, reason: str, now: float) -> None:
        """Judge a RECEIVING job again when a slice comes, or from ``not_before`` on.

        Does nothing where the job no longer holds just the ``instances`` that were judged.
        """
        with self._store.writing() as db:
            moves.wait_on(db, job_id, instances, not_before=not_before, reason=reason, now=now)

    def follow_clock(self, now: float, moved_s: float = 0.0) -> None:
        """The clock was set by ``moved_s``, or by nobody knows how much: no wait becomes longer by that.

        Series stay quiet, and destinations are owed, for as long as they were; what was put off for longer
        than now is due.
        """
        with self._store.writing() as db:
            moves.follow_clock(db, now, moved_s)

    def settle(self, job_id: int, instances: int, now: float, reason: str | None = None) -> bool:
        """RECEIVING → SETTLED, unless the job no longer holds just the ``instances`` that were judged."""
        with self._store.writing() as db:
            return moves.settle(db, job_id, instances, now, reason)

    # looking

    def job(self, job_id: int) -> Job:
        """The job; raises JobUnknown."""
        found = self._jobs("WHERE id = ?", (job_id,))
        if not found:
            raise JobUnknown(job_id)
        return found[0]

    def jobs(self, states: Iterable[State] | None = None, limit: int | None = None) -> list[Job]:
        """Jobs in these states (all without), oldest first; with ``limit`` the newest that many of them."""
        wanted = list(State) if states is None else list(states)
        marks = ", ".join("?" * len(wanted))
        newest_first = self._jobs(
            f"WHERE state IN ({marks}) ORDER BY id DESC LIMIT ?", (*wanted, -1 if limit is None else limit)
        )
        return newest_first[::-1]

    def find_jobs(self, series_instance_uid: str) -> list[Job]:
        """Every generation of the series, oldest first."""
        return self._jobs("WHERE series_instance_uid = ? ORDER BY generation", (series_instance_uid,))

    def instances(self, job_id: int) -> list[Instance]:
        """The files the job holds, in the order they came."""
        with self._store.reading() as db:
            rows = db.execute(
                "SELECT * FROM instance WHERE job_id = ? ORDER BY received_at, sop_instance_uid", (job_id,)
            ).fetchall()
        return [self._instance(row) for row in rows]

    def outputs(self, job_id: int) -> list[Output]:
        """The files made for the job, in the order they were made."""
        with self._store.reading() as db:
            rows = db.execute("SELECT * FROM output WHERE job_id = ? ORDER BY id", (job_id,)).fetchall()
        return [self._output(row) for row in rows]

    def syntheses(self, job_id: int) -> list[SynthesisRecord]:
        """What each phase of the job was made with."""
        with self._store.reading() as db:
            rows = db.execute("SELECT * FROM synthesis WHERE job_id = ? ORDER BY phase", (job_id,)).fetchall()
        return [leases.synthesis_of(row) for row in rows]

    def events(self, job_id: int) -> list[Event]:
        """The job's history, oldest first."""
        with self._store.reading() as db:
            rows = db.execute("SELECT * FROM event WHERE job_id = ? ORDER BY id", (job_id,)).fetchall()
        return [_event(row) for row in rows]

    def is_own_series(self, series_instance_uid: str) -> bool:
        """Whether this node made a series with this UID."""
        with self._store.reading() as db:
            row = db.execute(
                "SELECT 1 FROM output WHERE series_instance_uid = ? LIMIT 1", (series_instance_uid,)
            ).fetchone()
        return row is not None

    # moving

    def move(
        self, job_id: int, to: State, now: float, code: str | None = None, reason: str | None = None
    ) -> None:
        """Move the job and end its lease; raises MoveRefused for a move MOVES does not have."""
        with self._store.writing() as db:
            moves.move(db, job_id, to, now, code=code, reason=reason)

    def retry(self, job_id: int, now: float) -> State:
        """Send a PARKED job back to where it stood, or a REJECTED one to READY; attempts start again.

        Says where it went: SETTLED, READY or BUILT. Raises MoveRefused for any other job.
        """
        with self._store.writing() as db:
            return moves.retry(db, job_id, now)

    def record_export(self, job_id: int, user: str, now: float, *, with_patient: bool) -> None:
        """Keep that ``user`` takes the job's files out of the node; raises JobUnknown."""
        with self._store.writing() as db:
            moves.exported(db, job_id, user, now, with_patient=with_patient)

    # working

    def lease(self, owner: str, now: float, lease_s: float) -> Job | None:
        """Take the oldest READY job that is due and free, for ``lease_s`` seconds; attempt is one more.

        ``owner`` is unique to one start of one worker process.
        """
        with self._store.writing() as db:
            job_id = leases.lease(db, owner, now, lease_s)
        return None if job_id is None else self.job(job_id)

    def renew(self, job_id: int, owner: str, now: float, lease_s: float, progress: float) -> bool:
        """Hold on to the job and show its progress (0–1); False where it is no longer ``owner``'s."""
        with self._store.writing() as db:
            return leases.renew(db, job_id, owner, now=now, lease_s=lease_s, progress=progress)

    def release(
        self, job_id: int, owner: str, now: float, not_before: float, reason: str, *, counted: bool = True
    ) -> None:
        """Give the job back, to be tried again from ``not_before`` on; raises StaleLease.

        An attempt that is not ``counted`` was none: its worker was told to stop.
        """
        with self._store.writing() as db:
            leases.release(db, job_id, owner, now=now, not_before=not_before, reason=reason, counted=counted)

    def working_since(self, now: float) -> float:
        """When the attempt began that has been running for longest; ``now`` where nothing is running."""
        with self._store.reading() as db:
            return leases.working_since(db, now)

    def revoke_leases(self, now: float, reason: str) -> list[int]:
        """Take every running job from its worker, which can record nothing of it; their numbers.

        Whoever takes one up next begins anew, with the models that are active then.
        """
        with self._store.writing() as db:
            return leases.revoke(db, now, reason)

    def record_built(
        self,
        job_id: int,
        owner: str,
        outputs: Sequence[Output],
        syntheses: Sequence[SynthesisRecord],
        destinations: Sequence[str],
        *,
        now: float,
    ) -> None:
        """READY → BUILT with everything that was built and where it goes, in one transaction.

        Raises StaleLease, and records nothing, where the job is no longer READY and ``owner``'s. With no
        destinations the job stays BUILT.
        """
        stored = [(output, self._stored(output.path)) for output in outputs]
        with self._store.writing() as db:
            leases.record_built(
                db, job_id, owner, outputs=stored, syntheses=syntheses, destinations=destinations, now=now
            )

    # delivering

    def due(self, destination: str, now: float, latest: float = inf) -> list[Job]:
        """The BUILT jobs, oldest first, that this destination should be tried with now.

        Those put off beyond ``latest`` are among them: the clock was set back since.
        """
        with self._store.reading() as db:
            return [_job(row) for row in deliveries.due(db, destination, now, latest)]

    def pending_outputs(self, job_id: int, destination: str) -> list[Output]:
        """The job's outputs this destination does not have yet, in the order they were made."""
        with self._store.reading() as db:
            rows = deliveries.pending(db, job_id, destination)
        return [self._output(row) for row in rows]

    def begin_delivery(self, job_id: int, destination: str, now: float) -> bool:
        """Keep that something of the job is about to be sent; False where it is not BUILT any more."""
        with self._store.writing() as db:
            return deliveries.begin(db, job_id, destination, now)

    def record_delivery(self, sop_instance_uid: str, destination: str, status: int, now: float) -> bool:
        """Keep the destination's answer for one output: success and warnings (PS3.7 C) count as delivered.

        The last output to reach the last destination moves BUILT → DELIVERED in the same transaction. False
        where nothing more of the job should be sent: it was superseded or recalled meanwhile.
        """
        with self._store.writing() as db:
            return deliveries.record(db, sop_instance_uid, destination, status, now)

    def postpone(self, job_id: int, destination: str, not_before: float, reason: str, now: float) -> int:
        """Try this destination again from ``not_before`` on; how many attempts have failed by now."""
        with self._store.writing() as db:
            return deliveries.postpone(db, job_id, destination, not_before=not_before, reason=reason, now=now)

    def refuse(self, job_id: int, destination: str, reason: str, now: float) -> None:
        """This destination will not take the job: PARKED as soon as no other has anything left to take."""
        with self._store.writing() as db:
            deliveries.refuse(db, job_id, destination, reason, now)

    def deliveries(self, job_id: int) -> list[Delivery]:
        """How each destination stands with the job."""
        with self._store.reading() as db:
            rows = deliveries.standing(db, job_id)
        return [Delivery(**{**dict(row), "refused": bool(row["refused"])}) for row in rows]

    def answers(self, job_id: int) -> list[InstanceAnswer]:
        """What each destination of the job last said about each output."""
        with self._store.reading() as db:
            return [InstanceAnswer(**dict(row)) for row in deliveries.answers(db, job_id)]

    def fall_back(self, destination: str, fallback: str, owed_before: float, now: float) -> list[int]:
        """Send the jobs ``destination`` is owed since before then to ``fallback`` too; their numbers."""
        with self._store.reading() as db:
            overdue = breakers.overdue(db, destination, fallback, owed_before)
        return [job_id for job_id in overdue if self.stand_in(job_id, destination, fallback, now)]

    def stand_in(self, job_id: int, destination: str, fallback: str, now: float) -> bool:
        """Send a BUILT job to ``fallback`` too; False where it goes there already."""
        with self._store.writing() as db:
            return breakers.stand_in(db, job_id, destination, fallback, now)

    def breaker(self, destination: str) -> BreakerRecord:
        """How the destination answered so far."""
        with self._store.reading() as db:
            return breakers.read(db, destination)

    def record_breaker(self, record: BreakerRecord) -> None:
        """Keep how the destination answers."""
        with self._store.writing() as db:
            breakers.keep(db, record)

    def hasten(self, destination: str, now: float) -> None:
        """What waits for this destination waits no longer: it is back."""
        with self._store.writing() as db:
            breakers.hasten(db, destination, now)

    def destinations(self, names: Iterable[str]) -> list[DestinationStanding]:
        """How these destinations stand, and every other one that jobs wait for."""
        with self._store.reading() as db:
            waiting = breakers.waiting(db)
            return [
                DestinationStanding(breakers.read(db, name), *waiting.get(name, (0, None)))
                for name in dict.fromkeys([*names, *sorted(waiting)])
            ]

    # committing

    def commitments_due(
        self, destination: str, delivered_before: float, now: float, latest: float = inf
    ) -> list[Job]:
        """The jobs DELIVERED before then, oldest first, that this destination should be asked about now.

        Those put off beyond ``latest`` are among them: the clock was set back since.
        """
        with self._store.reading() as db:
            return [_job(row) for row in commitments.due(db, destination, delivered_before, now, latest)]

    def commitments_waiting(self, destination: str) -> tuple[int, float | None]:
        """How many jobs wait for this destination to commit them, and since when the oldest is DELIVERED."""
        with self._store.reading() as db:
            return commitments.waiting(db, destination)

    def uncommitted_outputs(self, job_id: int, destination: str) -> list[Output]:
        """The job's outputs this destination has not taken responsibility for."""
        with self._store.reading() as db:
            rows = commitments.uncommitted(db, job_id, destination)
        return [self._output(row) for row in rows]

    def record_question(
        self, transaction_uid: str, job_id: int, destination: str, *, not_before: float, now: float
    ) -> None:
        """Keep that storage commitment is about to be asked, and not again before ``not_before``."""
        with self._store.writing() as db:
            commitments.ask(db, transaction_uid, job_id, destination, not_before=not_before, now=now)

    def put_off_question(
        self, job_id: int, destination: str, not_before: float, reason: str, now: float
    ) -> None:
        """Ask this destination about the job again from ``not_before`` on."""
        with self._store.writing() as db:
            commitments.put_off(db, job_id, destination, not_before=not_before, reason=reason, now=now)

    def question(self, transaction_uid: str) -> Question | None:
        """What was asked under this transaction UID; None for one that is not ours."""
        with self._store.reading() as db:
            return commitments.question(db, transaction_uid)

    def record_report(
        self, transaction_uid: str, answer: CommitmentAnswer, required: Collection[str], now: float
    ) -> Question | None:
        """Keep the report on a question; None, and nothing kept, for a transaction UID that is not ours.

        DELIVERED → COMMITTED where all of ``required`` have committed, → BUILT where instances are lacking.
        """
        with self._store.writing() as db:
            return commitments.report(db, transaction_uid, answer, required=required, now=now)

    def record_found(
        self, job_id: int, destination: str, answer: CommitmentAnswer, required: Collection[str], now: float
    ) -> None:
        """Keep what a query found at the destination; moves the job as :meth:`record_report` does."""
        with self._store.writing() as db:
            commitments.record(db, job_id, destination, answer, required=required, now=now)

    def close_committed(self, required: Collection[str], now: float) -> None:
        """Move every DELIVERED job that ``required``, as it is now, has committed."""
        if not required:
            return
        for job in self.jobs([State.DELIVERED]):
            with self._store.writing() as db:
                commitments.close(db, job.id, required, now)

    def record_request(
        self,
        calling_ae: str,
        transaction_uid: str,
        references: Sequence[Reference],
        *,
        most_open: int,
        most_bytes: int,
        now: float,
    ) -> bool:
        """Keep a storage commitment that is asked of us.

        False where ``most_open`` others of the sender wait already, or this would make it ``most_bytes``.
        """
        with self._store.writing() as db:
            return commitments.record_request(
                db,
                calling_ae,
                transaction_uid,
                references,
                most_open=most_open,
                most_bytes=most_bytes,
                now=now,
            )

    def request_due(self, calling_ae: str, now: float, latest: float = inf) -> Request | None:
        """The next thing this sender asked of us and should hear about now; ``latest`` as for the others."""
        with self._store.reading() as db:
            return commitments.request_due(db, calling_ae, now, latest)

    def close_request(self, request_id: int, reason: str | None, now: float) -> None:
        """The sender has its report, or with a ``reason`` will not get one."""
        with self._store.writing() as db:
            commitments.close_request(db, request_id, reason, now)

    def put_off_request(self, request_id: int, not_before: float, reason: str) -> None:
        """Report again from ``not_before`` on."""
        with self._store.writing() as db:
            commitments.put_off_request(db, request_id, not_before=not_before, reason=reason)

    def kept_instance(self, sop_instance_uid: str) -> Instance | None:
        """The received instance of this UID that the node still keeps, if it does."""
        with self._store.reading() as db:
            row = commitments.kept(db, sop_instance_uid)
        return None if row is None else self._instance(row)

    # fetching from archives

    def pull(self, job_id: int) -> Pull | None:
        """How far an archive was asked for the rest of the job's series; None where none was."""
        with self._store.reading() as db:
            return pulls.pull(db, job_id)

    def record_pull(self, job_id: int, asked: Pull, reason: str, now: float) -> None:
        """Keep how far the archive was asked, and ``reason`` in the history; nothing unless RECEIVING."""
        with self._store.writing() as db:
            pulls.record(db, job_id, asked, reason, now)

    # quarantine

    def instance(self, job_id: int, sop_instance_uid: str) -> Instance | None:
        """The job's received instance of this UID, if it has one."""
        with self._store.reading() as db:
            row = db.execute(
                "SELECT * FROM instance WHERE job_id = ? AND sop_instance_uid = ?", (job_id, sop_instance_uid)
            ).fetchone()
        return None if row is None else self._instance(row)

    def record_set_aside(self, aside: SetAside, now: float) -> None:
        """Keep what was put into quarantine; the same file again counts once more."""
        with self._store.writing() as db:
            quarantine.record(db, aside, self._stored(aside.path), now)

    def set_aside(self, before: float = inf) -> list[SetAside]:
        """What is in quarantine and came before then, oldest first."""
        with self._store.reading() as db:
            rows = [dict(row) for row in quarantine.listed(db, before)]
        for row in rows:
            row["path"] = self._store.root / row["path"]
            del row["removed_at"]
        return [SetAside(**row) for row in rows]

    def record_removed(self, job_id: int, aside: Iterable[SetAside], now: float) -> None:
        """The files of what was set aside beside the job's are gone, and its history says so."""
        with self._store.writing() as db:
            quarantine.remove(db, job_id, [each.id for each in aside], now)

    def removed_classes(self, job_id: int, at: float) -> list[str]:
        """SOP class of each instance that was removed from quarantine then, as far as it is known."""
        with self._store.reading() as db:
            return quarantine.removed(db, job_id, at)

    # rejecting

    def superseded(self) -> list[Job]:
        """SUPERSEDED jobs that went somewhere and were not rejected, once a later generation was built."""
        with self._store.reading() as db:
            return [_job(row) for row in notes.superseded(db)]

    def made_by(self, model: str, since: float) -> list[Job]:
        """Jobs built since then of which the model (its id or digest) made outputs that were not rejected."""
        with self._store.reading() as db:
            return [_job(row) for row in notes.made_by(db, model, since)]

    def live_outputs(self, job_id: int, phases: Collection[str] | None = None) -> list[Output]:
        """The job's outputs of these phases (all without) that were not rejected, in their order."""
        with self._store.reading() as db:
            return [self._output(row) for row in notes.live(db, job_id, phases)]

    def went_to(self, job_id: int) -> list[str]:
        """Destinations that something of the job was sent to, or may have been."""
        with self._store.reading() as db:
            return notes.went_to(db, job_id)

    def reject(
        self,
        job_id: int,
        rejected: Collection[str],
        note: Output,
        *,
        destinations: Collection[str],
        calling_ae: str,
        reason: str,
        recall: bool,
        now: float,
    ) -> Rejection | None:
        """Reject outputs of the job by UID; ``note`` says so to those of ``destinations`` they went to.

        In one transaction the note is a BUILT job of its own, and a job whose last live outputs are recalled
        is RECALLED. None, and nothing done, where one of the UIDs is no live output of the job any more.
        """
        path = self._stored(note.path)
        with self._store.writing() as db:
            return notes.reject(
                db,
                job_id,
                rejected,
                note,
                path,
                destinations=destinations,
                calling_ae=calling_ae,
                reason=reason,
                recall=recall,
                now=now,
            )

    def forgo_notes(self, destinations: Collection[str], now: float) -> None:
        """Send open rejection notes to none of these destinations any more; nothing waits for them there."""
        with self._store.writing() as db:
            notes.forgo(db, destinations, now)

    def keep_identity(self, job_id: int, header: bytes) -> None:
        """Keep whose the job is beyond its files, for a note that may have to be written later."""
        with self._store.writing() as db:
            notes.keep_identity(db, job_id, header)

    def identity(self, job_id: int) -> bytes | None:
        """What was kept of the job's identity: a DICOM file of patient and study, without pixels."""
        with self._store.reading() as db:
            return notes.identity(db, job_id)

    def forget_identities(self, before: float) -> int:
        """Forget whose the jobs purged before then were; how many."""
        with self._store.writing() as db:
            return notes.forget_identities(db, before)

    # purging

    def purgeable(self, states: Collection[State], before: float) -> list[Job]:
        """Jobs in these states since before then whose files were not purged, oldest first."""
        with self._store.reading() as db:
            return [_job(row) for row in purging.purgeable(db, states, before)]

    def begin_purge(self, job_id: int, states: Collection[State], before: float, now: float) -> bool:
        """Move the job to PURGED; False, and nothing done, where it moved on meanwhile."""
        with self._store.writing() as db:
            return purging.begin(db, job_id, states, before, now)

    def made_files(self, series_instance_uid: str) -> set[Path]:
        """Where the outputs of this series lie, or lay before they were purged."""
        with self._store.reading() as db:
            rows = db.execute("SELECT path FROM output WHERE series_instance_uid = ?", (series_instance_uid,))
            return {self._store.root / row["path"] for row in rows}

    def purged_files(self, job_id: int) -> list[Path]:
        """The job's files that no living job holds."""
        with self._store.reading() as db:
            return [self._store.root / path for path in purging.files(db, job_id)]

    def unfinished_purges(self) -> list[int]:
        """Jobs that were purged and whose files may still be there."""
        with self._store.reading() as db:
            return purging.unfinished(db)

    def finish_purge(self, job_id: int, now: float) -> None:
        """The job's files are gone."""
        with self._store.writing() as db:
            purging.finish(db, job_id, now)

    # following

    def begin_following(self, follower: str, like: str | None = None) -> None:
        """Have ``follower`` hear what is written from now on, or what ``like``, another one, has not heard.

        One that was here before goes on there.
        """
        with self._store.writing() as db:
            begin_following(db, follower, like)

    def events_for(self, follower: str, most: int) -> list[Followed]:
        """The next events of all jobs that ``follower`` has not heard, oldest first."""
        with self._store.reading() as db:
            rows = events_after(db, follower, most)
        return [Followed(row["id"], _event(row), row["since"]) for row in rows]

    def advance(self, follower: str, event_id: int) -> None:
        """``follower`` has heard everything up to this event."""
        with self._store.writing() as db:
            advance_follower(db, follower, event_id)

    # counting

    def figures(self) -> Figures:
        """How much there is of everything, at one moment."""
        with self._store.reading() as db:
            return figures_of(db)

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter that survives restarts."""
        with self._store.writing() as db:
            db.execute(
                "INSERT INTO counter (name, value) VALUES (?, ?)"
                " ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
                (name, by),
            )

    def counters(self) -> dict[str, int]:
        """Every counter that ever counted."""
        with self._store.reading() as db:
            return {row["name"]: row["value"] for row in db.execute("SELECT * FROM counter ORDER BY name")}

    def _jobs(self, clause: str, values: Sequence[object]) -> list[Job]:
        with self._store.reading() as db:
            return [_job(row) for row in db.execute(f"SELECT * FROM job {clause}", values)]

    def _stored(self, path: Path) -> str:
        """The path as the file keeps it: relative where it lies beside the ledger."""
        return str(path.absolute()).removeprefix(f"{self._store.root}/")

    def _instance(self, row: sqlite3.Row) -> Instance:
        return Instance(**{**dict(row), "path": self._store.root / row["path"]})

    def _output(self, row: sqlite3.Row) -> Output:
        columns = {name: row[name] for name in row.keys() if name != "id"}  # noqa: SIM118
        return Output(**{**columns, "path": self._store.root / row["path"]})


def _job(row: sqlite3.Row) -> Job:
    return Job(**{**dict(row), "state": State(row["state"])})


def _event(row: sqlite3.Row) -> Event:
    before = row["from_state"]
    return Event(
        job_id=row["job_id"],
        at=row["at"],
        from_state=None if before is None else State(before),
        to_state=State(row["to_state"]),
        code=row["code"],
        note=row["note"],
    )
