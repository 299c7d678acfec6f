"""Connections to the ledger's file: durable, one user at a time each, as many as are needed at once."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from node.ledger.errors import LedgerUnusable
from node.ledger.schema import migrate

BUSY_TIMEOUT_S = 30.0
"""How long a transaction waits for another process's before it fails."""


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
        """A transaction alone among all writers; on the disk when the block ends, undone if it raises."""
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
