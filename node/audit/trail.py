"""Where audit messages are kept: a file that rotates, and a folder of what waits for the repository.

Each knows nothing of the other: where one is full, the other goes on.
"""

from __future__ import annotations

import errno
import heapq
import logging
import os
from contextlib import suppress
from itertools import count
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final

from config.settings import AuditSettings
from node.spool import fsync_folder

FOLDER: Final = "audit"
FILE: Final = "messages.log"
WAITING: Final = "waiting"
"""Names below the data folder."""


def waiting(data_dir: Path) -> int:
    """Messages that wait for the repository."""
    folder = data_dir / FOLDER / WAITING
    if not folder.is_dir():
        return 0
    return sum(entry.name.endswith(".msg") for entry in os.scandir(folder))


class TrailFull(OSError):
    """As many messages wait for the repository as are kept."""


class Queue:
    """What waits for the repository; what is kept is on the disk. Raises OSError where that fails."""

    def __init__(self, audit: AuditSettings, data_dir: Path) -> None:
        self._folder = _private_folder(_private_folder(data_dir / FOLDER) / WAITING)
        self._most = audit.max_waiting
        self._numbers = count()
        for part in self._folder.glob("*.part"):  # of a node that was killed
            part.unlink()
        self._count = waiting(data_dir)

    @property
    def count(self) -> int:
        """Messages that wait for the repository."""
        return self._count

    def first(self, most: int) -> list[Path]:
        """The oldest messages that wait, ``most`` at most."""
        found = (entry.path for entry in os.scandir(self._folder) if entry.name.endswith(".msg"))
        return [Path(path) for path in heapq.nsmallest(most, found)]

    def sent(self, path: Path) -> None:
        """The repository has this one."""
        path.unlink()
        self._count -= 1

    def put(self, frame: bytes, now: float) -> None:
        """Keep one framed message; raises TrailFull where ``max_waiting`` do already."""
        if self._count >= self._most:
            words = f"{self._count} messages wait for the audit repository: audit.max_waiting"
            raise TrailFull(errno.ENOSPC, words)
        name = f"{int(now * 1e6):020d}-{os.getpid()}-{next(self._numbers):06d}"
        part = self._folder / f"{name}.part"
        try:
            with open(part, "xb", opener=_private) as file:
                file.write(frame)
                file.flush()
                os.fsync(file.fileno())
            part.rename(part.with_suffix(".msg"))
        finally:
            part.unlink(missing_ok=True)
        fsync_folder(self._folder)
        self._count += 1


class AuditFile(RotatingFileHandler):
    """The standard library's rotating file, readable by its owner alone, on the disk at each line."""

    def __init__(self, audit: AuditSettings, data_dir: Path) -> None:
        path = _private_folder(data_dir / FOLDER) / FILE
        super().__init__(path, maxBytes=audit.file_bytes, backupCount=audit.files, delay=True)

    def write(self, xml: bytes) -> None:
        """One whole line, or OSError and no part of it."""
        record = logging.makeLogRecord({"msg": xml.decode()})
        if self.shouldRollover(record):
            self.doRollover()
        path = Path(self.baseFilename)
        size = path.stat().st_size if path.exists() else 0
        try:
            self.handle(record)
            if self.stream is not None:
                os.fsync(self.stream.fileno())
        except OSError:
            self._forget(path, size)
            raise

    def _forget(self, path: Path, size: int) -> None:
        """Take back what was written of a line, in the file and on its way there."""
        stream, self.stream = self.stream, None
        with suppress(OSError):
            if stream is not None:
                stream.close()
        with suppress(OSError):
            os.truncate(path, size)

    def _open(self) -> Any:
        return open(self.baseFilename, "a", encoding="utf-8", opener=_private)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Let the caller have the error: an audit message is not to be lost in silence."""
        raise  # noqa: PLE0704 - called from an except clause


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _private_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path
