"""Files that are there when we say they are: what was received, what goes out, what was set aside.

Layers, each durable before the next relies on it (PS3.7 knows no "almost stored")::

    bytes -> tmp/<name>       written, fsync
          -> final name       rename, fsync of the folder
          -> ledger           one transaction
          -> 0x0000           only now

A crash between two layers leaves a file in ``tmp`` (swept at start) or a file nobody was promised, which the
sender's next attempt replaces by the same bytes under the same name.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from node.errors import NodeError
from node.uids import is_plausible_uid

FOLDERS = ("inbox", "outbox", "quarantine", "models", "tmp")
"""The folders of ``data_dir``; every name below one is given relative to ``data_dir``."""

FULL_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the operating system says when there is no room."""

DIGEST_IN_NAME = 16
"""Hexadecimal digits of the SHA-256 in an inbox name: other bytes get another name."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)


class Digest(Protocol):
    """A hash being fed."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take the next bytes."""

    def hexdigest(self) -> str:
        """What came of all bytes so far."""


class SpoolFull(NodeError):
    """The disk cannot take it, or would have less room left than it must keep."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the spool is full: {reason}")


class NameRefused(NodeError):
    """A name that could leave its folder, or is no name at all."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A file that is on the disk under its final name."""

    path: Path
    sha256: str
    bytes: int


class Spool:
    """The folders under ``data_dir``, all on one filesystem, made when the spool is."""

    def __init__(self, data_dir: Path, min_free_bytes: int = 0) -> None:
        self.root = data_dir.resolve()
        self.min_free_bytes = min_free_bytes
        for name in FOLDERS:
            (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        fsync_folder(self.root)

    def place(
        self,
        data: bytes | Iterable[bytes | memoryview],
        relative: str | PurePosixPath,
        sha256: str | None = None,
    ) -> Placed:
        """Write ``data`` to ``relative``; when this returns the disk has the file, whole, under that name.

        A file already there is replaced in one step, so placing the same bytes again is harmless. A caller
        that knows the digest already gives it. Raises SpoolFull, NameRefused or OSError, and then leaves
        nothing in ``tmp``.
        """
        target = self.path_of(relative)
        chunks = (data,) if isinstance(data, bytes) else data
        temporary = self.root / "tmp" / f"{os.getpid()}-{secrets.token_hex(8)}"
        digest = None if sha256 else hashlib.sha256()
        try:
            size = _write_durably(temporary, chunks, digest)
            self._rename(temporary, target)
        except BaseException as error:
            with suppress(FileNotFoundError):
                temporary.unlink()
            if isinstance(error, OSError) and error.errno in FULL_ERRORS:
                raise SpoolFull(os.strerror(error.errno)) from error
            raise
        return Placed(target, digest.hexdigest() if digest else str(sha256), size)

    def quarantine(self, placed: Placed, relative: str | PurePosixPath) -> Placed:
        """Move a placed file to ``quarantine/relative``, durably."""
        target = self.path_of(PurePosixPath("quarantine") / relative)
        self._rename(placed.path, target)
        fsync_folder(placed.path.parent)
        return Placed(target, placed.sha256, placed.bytes)

    def path_of(self, relative: str | PurePosixPath) -> Path:
        """Where ``relative`` lies; raises NameRefused for what is not a plain path below one of FOLDERS."""
        parts = str(relative).split("/")
        if len(parts) < 2 or parts[0] not in FOLDERS:
            raise NameRefused(f"{parts[0]!r} is none of the spool's folders: {', '.join(FOLDERS)}")
        for part in parts:
            if _NAME.fullmatch(part) is None:
                raise NameRefused(f"{part!r} cannot name a file of the spool")
        return self.root.joinpath(*parts)

    def require_room(self, needed: int) -> None:
        """Raises SpoolFull if storing ``needed`` bytes would leave less than ``min_free_bytes``."""
        free = self.free_bytes()
        if free - needed < self.min_free_bytes:
            raise SpoolFull(f"{free} bytes are free and {self.min_free_bytes} must stay free")

    def free_bytes(self) -> int:
        """Bytes an ordinary user may still write on the spool's filesystem."""
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    def sweep(self) -> int:
        """Remove what dead processes left in ``tmp``; how many files that were.

        For the start of a process, before it places anything: a file named after its own number is one of
        a predecessor with that number.
        """
        leftovers = [path for path in (self.root / "tmp").iterdir() if not _writer_lives(path)]
        for path in leftovers:
            with suppress(FileNotFoundError):
                path.unlink()
        return len(leftovers)

    def _rename(self, source: Path, target: Path) -> None:
        try:
            source.rename(target)
        except FileNotFoundError:
            self._make_folder(target.parent)
            source.rename(target)
        fsync_folder(target.parent)

    def _make_folder(self, folder: Path) -> None:
        """The folder and those above it, their names on the disk."""
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True, mode=0o700)
        fsync_folder(folder.parent)


def inbox_name(series_instance_uid: str, sop_instance_uid: str, sha256: str) -> PurePosixPath:
    """``inbox/<series>/<SOP instance>.<digest>.dcm``; raises NameRefused for UIDs that are none.

    Other bytes under the same UIDs get another name, so no arrival can overwrite an earlier one.
    """
    for uid in (series_instance_uid, sop_instance_uid):
        if not is_plausible_uid(uid):
            raise NameRefused("a UID of the instance is not 1 to 64 digits and dots")
    return PurePosixPath("inbox", series_instance_uid, f"{sop_instance_uid}.{sha256[:DIGEST_IN_NAME]}.dcm")


def fsync_folder(folder: Path) -> None:
    """Put the folder's names on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_durably(path: Path, chunks: Iterable[bytes | memoryview], digest: Digest | None) -> int:
    """How many bytes were written and are on the disk; ``digest`` has seen them all."""
    size = 0
    with path.open("xb", buffering=0) as file:
        for chunk in chunks:
            size += _write_all(file, chunk)
            if digest is not None:
                digest.update(chunk)
        os.fsync(file.fileno())
    return size


def _write_all(file: io.FileIO, chunk: bytes | memoryview) -> int:
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]
    return len(chunk)


def _writer_lives(path: Path) -> bool:
    """Whether the process that named the file in ``tmp`` is still there."""
    number = path.name.partition("-")[0]
    if not number.isdecimal() or int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
