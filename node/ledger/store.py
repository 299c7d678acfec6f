"""Connections to the ledger's file: durable, one user at a time each, as many as are needed at once."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from node.ledger.errors import LedgerUnusable
from node.ledger.schema import migrate

T = TypeVar("T")

BUSY_TIMEOUT_S = 30.0
"""How long a transaction waits for another process's before it fails."""


class Step(Generic[T]):
    """Something to write that may share its transaction with others; alone in what becomes of it."""

    def __init__(self, write: Callable[[sqlite3.Connection], T]) -> None:
        self._write = write
        self._value: list[T] = []
        self.error: BaseException | None = None
        self.is_done = False

    def take_alone(self, db: sqlite3.Connection) -> None:
        """Write in a transaction of its own; raises what the write does, to undo all of it."""
        self._value = [self._write(db)]

    def take(self, db: sqlite3.Connection) -> None:
        """Write; what was written is undone if it raises, and nothing else is."""
        db.execute("SAVEPOINT step")
        try:
            self._value = [self._write(db)]
        except Exception as error:
            self.error = error
            db.execute("ROLLBACK TO step")
        db.execute("RELEASE step")

    def result(self) -> T:
        """What it gave; raises what it raised, or what the transaction did."""
        if self.error is not None:
            raise self.error
        return self._value[0]


class Store:
    """The file and its idle connections.

    Any thread may read and write; a connection belongs to one transaction at a time. Other processes open
    their own Store on the same file. Not to be carried over a fork.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.root = self.path.parent
        self._idle: list[sqlite3.Connection] = []
        self._guard = threading.Lock()
        self._turn = threading.Lock()
        self._waiting: list[Step[object]] = []
        self._closed = False
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        db = self._connect()
        try:
            _prepare(db, self.path)
        except BaseException:
            db.close()
            raise
        self._give_back(db)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent view of the ledger; writes nothing."""
        db = self._borrow()
        try:
            db.execute("BEGIN")
            yield db
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")
            self._give_back(db)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction alone among all writers; on the disk when the block ends, undone if it raises.

        Threads of this process wait in line: SQLite itself, for other processes, only looks again and again.
        """
        with self._turn, self._transaction() as db:
            yield db

    def together(self, write: Callable[[sqlite3.Connection], T]) -> T:
        """``write`` in one transaction with what other threads hand in meanwhile: one sync for all of them.

        On the disk when this returns; undone, and nobody else's with it, if ``write`` raises. An error of the
        transaction itself is raised to all who share it.
        """
        step = Step(write)
        with self._guard:
            self._waiting.append(step)  # type: ignore[arg-type]
        with self._turn:
            if not step.is_done:
                self._take_waiting()
        return step.result()

    def _take_waiting(self) -> None:
        with self._guard:
            steps, self._waiting = self._waiting, []
        try:
            with self._transaction() as db:
                if len(steps) == 1:
                    steps[0].take_alone(db)
                else:
                    for step in steps:
                        step.take(db)
        except BaseException as error:  # nothing of theirs is on the disk: every one must hear it
            for step in steps:
                step.error = error
        for step in steps:
            step.is_done = True

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        db = self._borrow()
        try:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")
            self._give_back(db)

    def close(self) -> None:
        """Close the idle connections; later use raises LedgerUnusable."""
        with self._guard:
            self._closed = True
            idle, self._idle = self._idle, []
        for db in idle:
            db.close()

    def _borrow(self) -> sqlite3.Connection:
        with self._guard:
            if self._closed:
                raise LedgerUnusable(self.path, "it was closed")
            if self._idle:
                return self._idle.pop()
        db = self._connect()
        _configure(db)
        return db

    def _give_back(self, db: sqlite3.Connection) -> None:
        with self._guard:
            if not self._closed:
                self._idle.append(db)
                return
        db.close()

    def _connect(self) -> sqlite3.Connection:
        try:
            db = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise LedgerUnusable(self.path, str(error)) from error
        db.row_factory = sqlite3.Row
        return db


def _configure(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA synchronous = FULL")


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    """WAL, the schema of this version, and the file's name safe in its folder."""
    try:
        _configure(db)
        journal = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if journal != "wal":
            raise LedgerUnusable(path, "its filesystem allows no write-ahead log (a network share?)")
        migrate(db, path)
    except sqlite3.DatabaseError as error:
        raise LedgerUnusable(path, str(error)) from error
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
