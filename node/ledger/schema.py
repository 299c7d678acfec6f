"""The ledger's tables, one migration a version, and how a file is brought up to date."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from node.ledger.errors import LedgerTooNew

Migration = tuple[str, ...]

MIGRATIONS: tuple[Migration, ...] = (
    (
        """
        CREATE TABLE job (
            id INTEGER PRIMARY KEY,
            series_instance_uid TEXT NOT NULL,
            generation INTEGER NOT NULL CHECK (generation >= 1),
            study_instance_uid TEXT NOT NULL,
            calling_ae TEXT NOT NULL,
            state TEXT NOT NULL,
            code TEXT,
            reason TEXT,
            attempt INTEGER NOT NULL DEFAULT 0,
            owner TEXT,
            leased_until REAL,
            not_before REAL NOT NULL DEFAULT 0,
            progress REAL NOT NULL DEFAULT 0,
            created_at REAL NOT NULL,
            updated_at REAL NOT NULL,
            last_received_at REAL NOT NULL,
            instances INTEGER NOT NULL DEFAULT 0,
            UNIQUE (series_instance_uid, generation),
            CHECK ((owner IS NULL) = (leased_until IS NULL)),
            CHECK (owner IS NULL OR state = 'READY')
        )
        """,
        # A series has one living generation, whatever races.
        "CREATE UNIQUE INDEX job_living ON job (series_instance_uid) WHERE state <> 'SUPERSEDED'",
        "CREATE INDEX job_by_state ON job (state)",
        """
        CREATE TABLE instance (
            job_id INTEGER NOT NULL REFERENCES job (id),
            sop_instance_uid TEXT NOT NULL,
            sop_class_uid TEXT NOT NULL,
            transfer_syntax_uid TEXT NOT NULL,
            path TEXT NOT NULL,
            sha256 TEXT NOT NULL,
            bytes INTEGER NOT NULL,
            received_at REAL NOT NULL,
            PRIMARY KEY (job_id, sop_instance_uid)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE output (
            id INTEGER PRIMARY KEY,
            job_id INTEGER NOT NULL REFERENCES job (id),
            phase TEXT NOT NULL,
            kind TEXT NOT NULL,
            series_instance_uid TEXT NOT NULL,
            sop_instance_uid TEXT NOT NULL UNIQUE,
            sop_class_uid TEXT NOT NULL,
            path TEXT NOT NULL,
            sha256 TEXT NOT NULL
        )
        """,
        "CREATE INDEX output_by_job ON output (job_id)",
        "CREATE INDEX output_by_series ON output (series_instance_uid)",
        """
        CREATE TABLE synthesis (
            job_id INTEGER NOT NULL REFERENCES job (id),
            phase TEXT NOT NULL,
            model_id TEXT NOT NULL,
            model_digest TEXT NOT NULL,
            seed INTEGER NOT NULL,
            sampler TEXT NOT NULL,
            steps INTEGER NOT NULL,
            provider TEXT NOT NULL,
            seconds TEXT NOT NULL,
            findings TEXT NOT NULL,
            PRIMARY KEY (job_id, phase)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE delivery (
            job_id INTEGER NOT NULL REFERENCES job (id),
            destination TEXT NOT NULL,
            attempt INTEGER NOT NULL DEFAULT 0,
            not_before REAL NOT NULL DEFAULT 0,
            refused INTEGER NOT NULL DEFAULT 0,
            reason TEXT,
            PRIMARY KEY (job_id, destination)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE delivered (
            output_id INTEGER NOT NULL REFERENCES output (id),
            destination TEXT NOT NULL,
            status INTEGER NOT NULL,
            at REAL NOT NULL,
            PRIMARY KEY (output_id, destination)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE event (
            id INTEGER PRIMARY KEY,
            job_id INTEGER NOT NULL REFERENCES job (id),
            at REAL NOT NULL,
            from_state TEXT,
            to_state TEXT NOT NULL,
            code TEXT,
            note TEXT
        )
        """,
        "CREATE INDEX event_by_job ON event (job_id)",
        "CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    ),
    (
        # Storage commitment as SCU: how often a destination was asked since it has everything, when it may be
        # asked again, and how often it was sent what it lacked.
        "ALTER TABLE delivery ADD COLUMN asked INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE delivery ADD COLUMN ask_not_before REAL NOT NULL DEFAULT 0",
        "ALTER TABLE delivery ADD COLUMN resent INTEGER NOT NULL DEFAULT 0",
        """
        CREATE TABLE question (
            transaction_uid TEXT PRIMARY KEY,
            job_id INTEGER NOT NULL REFERENCES job (id),
            destination TEXT NOT NULL,
            asked_at REAL NOT NULL,
            answered_at REAL
        ) WITHOUT ROWID
        """,
        "CREATE INDEX question_by_job ON question (job_id, destination)",
        """
        CREATE TABLE committed (
            output_id INTEGER NOT NULL REFERENCES output (id),
            destination TEXT NOT NULL,
            at REAL NOT NULL,
            PRIMARY KEY (output_id, destination)
        ) WITHOUT ROWID
        """,
        # Storage commitment as SCP: what senders ask of us. ``refs`` is a JSON list of [class, instance].
        """
        CREATE TABLE request (
            id INTEGER PRIMARY KEY,
            calling_ae TEXT NOT NULL,
            transaction_uid TEXT NOT NULL,
            refs TEXT NOT NULL,
            asked_at REAL NOT NULL,
            attempt INTEGER NOT NULL DEFAULT 0,
            not_before REAL NOT NULL DEFAULT 0,
            closed_at REAL,
            reason TEXT,
            UNIQUE (calling_ae, transaction_uid)
        )
        """,
        "CREATE INDEX instance_by_uid ON instance (sop_instance_uid)",
        """
        CREATE TABLE purge (
            job_id INTEGER PRIMARY KEY REFERENCES job (id),
            at REAL NOT NULL,
            emptied_at REAL
        )
        """,
    ),
    (
        # Rejection notes: a job that rejects another one's outputs, and which outputs were rejected.
        "ALTER TABLE job ADD COLUMN rejects INTEGER REFERENCES job (id)",
        # When something was first sent there.
        "ALTER TABLE delivery ADD COLUMN started_at REAL",
        """
        UPDATE delivery SET started_at = (SELECT updated_at FROM job WHERE job.id = delivery.job_id)
        WHERE attempt > 0 OR EXISTS (
            SELECT 1 FROM output JOIN delivered ON delivered.output_id = output.id
            WHERE output.job_id = delivery.job_id AND delivered.destination = delivery.destination
        )
        """,
        # Since when a destination is owed the job, and the destination this one stands in for.
        "ALTER TABLE delivery ADD COLUMN owed_since REAL NOT NULL DEFAULT 0",
        "ALTER TABLE delivery ADD COLUMN fallback_for TEXT",
        "UPDATE delivery SET owed_since = (SELECT updated_at FROM job WHERE job.id = delivery.job_id)",
        # A destination that failed several times in a row is left alone, but for probes, from ``opened_at``.
        """
        CREATE TABLE breaker (
            destination TEXT PRIMARY KEY,
            failures INTEGER NOT NULL,
            opened_at REAL,
            reason TEXT,
            changed_at REAL NOT NULL
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE rejected (
            output_id INTEGER PRIMARY KEY REFERENCES output (id),
            note_id INTEGER REFERENCES job (id),
            at REAL NOT NULL
        )
        """,
        "CREATE INDEX rejected_by_note ON rejected (note_id)",
        # What was superseded and replaced by an earlier version stays as it is: no notes on the past.
        """
        INSERT INTO rejected (output_id, at) SELECT output.id, job.updated_at
        FROM output JOIN job ON job.id = output.job_id WHERE job.state = 'SUPERSEDED' AND EXISTS (
            SELECT 1 FROM job AS later WHERE later.series_instance_uid = job.series_instance_uid
            AND later.generation > job.generation AND later.state IN ('DELIVERED', 'COMMITTED', 'PURGED')
        )
        """,
        # Patient and study of a purged job, as a DICOM file without pixels: a recall has to name them.
        "CREATE TABLE identity (job_id INTEGER PRIMARY KEY REFERENCES job (id), header BLOB NOT NULL)",
        """
        CREATE TABLE quarantined (
            id INTEGER PRIMARY KEY,
            job_id INTEGER NOT NULL REFERENCES job (id),
            path TEXT NOT NULL UNIQUE,
            sha256 TEXT NOT NULL,
            bytes INTEGER NOT NULL,
            calling_ae TEXT NOT NULL,
            reason TEXT NOT NULL,
            at REAL NOT NULL,
            times INTEGER NOT NULL DEFAULT 1,
            removed_at REAL
        )
        """,
        # What an archive was asked about a quiet series: tries that led to nothing, and how many instances
        # the job held when there was nothing more to ask for (NULL until then).
        """
        CREATE TABLE pull (
            job_id INTEGER PRIMARY KEY REFERENCES job (id),
            archive TEXT NOT NULL,
            attempt INTEGER NOT NULL DEFAULT 0,
            held INTEGER
        )
        """,
        # Who follows the events, and the last one each has heard.
        "CREATE TABLE follower (name TEXT PRIMARY KEY, event_id INTEGER NOT NULL) WITHOUT ROWID",
    ),
    (
        # What lanes ask for several times a second is found without a look at the years before: superseded
        # jobs that went somewhere, until their results are rejected,
        "CREATE TABLE unannounced (job_id INTEGER PRIMARY KEY REFERENCES job (id))",
        """
        INSERT INTO unannounced SELECT job.id FROM job WHERE job.state = 'SUPERSEDED'
        AND EXISTS (SELECT 1 FROM delivery WHERE delivery.job_id = job.id AND started_at IS NOT NULL)
        AND EXISTS (
            SELECT 1 FROM output WHERE output.job_id = job.id
            AND NOT EXISTS (SELECT 1 FROM rejected WHERE rejected.output_id = output.id)
        )
        """,
        # jobs that may still have to be committed (nobody is asked about notes, which stay DELIVERED),
        "CREATE INDEX job_to_commit ON job (state) WHERE state = 'DELIVERED' AND rejects IS NULL",
        # and storage commitments that are still to be reported.
        "CREATE INDEX request_open ON request (calling_ae) WHERE closed_at IS NULL",
        # What an audit has to say about an instance that goes from quarantine; empty where it is not known.
        "ALTER TABLE quarantined ADD COLUMN sop_class_uid TEXT NOT NULL DEFAULT ''",
    ),
)
"""Entry n brings a file of schema version n to n + 1. Never edit one that was released: append."""


def version_of(db: sqlite3.Connection) -> int:
    """The file's schema version, 0 for an empty file."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def migrate(db: sqlite3.Connection, path: Path, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring the file up to date, all of it or nothing of it, once however many processes start together.

    Raises LedgerTooNew, and touches nothing, where the file's version is beyond ``migrations``.
    """
    if version_of(db) == len(migrations):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        _apply(db, path, migrations)
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _apply(db: sqlite3.Connection, path: Path, migrations: Sequence[Migration]) -> None:
    found = version_of(db)
    if found > len(migrations):
        raise LedgerTooNew(path, found, len(migrations))
    for statements in migrations[found:]:
        for statement in statements:
            db.execute(statement)
    db.execute(f"PRAGMA user_version = {len(migrations)}")
