"""Files that are there when we say they are: what was received, what goes out, what was set aside.

Layers, each durable before the next relies on it (PS3.7 knows no "almost stored")::

    bytes -> tmp/<name>       written while they come
          -> final name       link, fsync of the file, fsync of the folder
          -> ledger           one transaction
          -> 0x0000           only now

A crash between two layers leaves a file in ``tmp`` (swept at start) or a file nobody was promised, which the
sender's next attempt replaces. After a power cut that file may be cut short too: so over a name that is taken
a file is renamed, and only after its fsync.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import mmap
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import structlog

from config.settings import StorageSettings
from node.errors import NodeError
from node.uids import is_plausible_uid

log = structlog.get_logger(__name__)

FOLDERS = ("inbox", "outbox", "quarantine", "models", "tmp")
"""The folders of ``data_dir``; every name below one is given relative to ``data_dir``."""

REMOVABLE = ("inbox", "outbox", "quarantine")
"""Folders whose files a purge may remove."""

FULL_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the operating system says when there is no room."""

NO_LINK = frozenset({errno.EEXIST, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""What the operating system says where a second name cannot be given."""

DIGEST_IN_NAME = 16
"""Hexadecimal digits of the SHA-256 in an inbox name: other bytes get another name."""

REMOVAL_LOCK = "removal.lock"
"""The file that those who receive lock together and those who remove lock alone."""

MOST_FOLDERS_KNOWN = 4096
"""Folders remembered to be on the disk; beyond that they are looked at again."""

Chunk = bytes | memoryview

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)


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


class Draft:
    """A file that is being written and has no name yet."""

    def __init__(self, spool: Spool, file: io.FileIO, temporary: Path) -> None:
        self._spool = spool
        self._file = file
        self._temporary = temporary
        self._digest = hashlib.sha256()
        self._bytes = 0
        self.is_placed = False
        """Whether it has its name: there is no temporary file any more."""

    def write(self, chunk: Chunk) -> None:
        """Write ``chunk`` behind what was written; raises SpoolFull or OSError."""
        _write(self._file, chunk)
        self._digest.update(chunk)
        self._bytes += len(chunk)

    def view(self) -> memoryview:
        """What was written so far, at least a byte, as the disk's cache has it: nothing is held in memory."""
        with self._temporary.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def sha256(self) -> str:
        """The digest of all that was written."""
        return self._digest.hexdigest()

    def place(self, relative: str | PurePosixPath) -> Placed:
        """Give the file its name; when this returns the disk has it, whole, under that name.

        A name that is free is taken at once: one commit of the filesystem's journal then holds file and name.
        One that is taken is given over only when this file is on the disk: the other may have been promised.
        """
        target = self._spool.path_of(relative)
        is_named = self._spool.link(self._temporary, target)
        os.fsync(self._file.fileno())
        if is_named:
            fsync_folder(target.parent)
        else:
            self._spool.rename(self._temporary, target)
        self.is_placed = True
        return Placed(target, self.sha256(), self._bytes)


class Spool:
    """The folders under ``data_dir``, all on one filesystem, made when the spool is.

    Below ``min_free_bytes`` nothing has room; below ``new_series_factor`` times that no new series has, until
    ``resume_factor`` times that is free again.
    """

    def __init__(
        self,
        data_dir: Path,
        min_free_bytes: int = 0,
        new_series_factor: float = 1.0,
        resume_factor: float = 1.0,
    ) -> None:
        self.root = data_dir.resolve()
        self.min_free_bytes = min_free_bytes
        self._new_series_factor = new_series_factor
        self._resume_factor = max(resume_factor, new_series_factor)
        self._is_short = False
        self._guard = threading.Lock()
        self._durable_folders: set[Path] = set()
        self._tmp, self._inbox = self.root / "tmp", self.root / "inbox"
        for name in FOLDERS:
            (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        fsync_folder(self.root)

    @classmethod
    def of(cls, storage: StorageSettings) -> Spool:
        """The spool of a node, with the marks of its settings."""
        return cls(storage.data_dir, storage.min_free_bytes, storage.new_series_factor, storage.resume_factor)

    @contextmanager
    def draft(self, chunks: Sequence[Chunk] = ()) -> Iterator[Draft]:
        """A file that begins with ``chunks``, to be written on and placed in the block.

        What is not placed before the block ends is gone. Raises SpoolFull or OSError, here or in the block.
        """
        temporary = self._tmp / f"{os.getpid()}-{secrets.token_hex(8)}"
        is_placed = False
        try:
            with _full_in_words(), temporary.open("xb", buffering=0) as file:
                draft = Draft(self, file, temporary)
                for chunk in chunks:
                    draft.write(chunk)
                yield draft
                is_placed = draft.is_placed
        finally:
            if not is_placed:
                with suppress(FileNotFoundError):
                    temporary.unlink()

    def place(self, data: bytes | Sequence[Chunk], relative: str | PurePosixPath) -> Placed:
        """Write ``data`` to ``relative``; when this returns the disk has the file, whole, under that name.

        A file already there is replaced in one step, so placing the same bytes again is harmless. Raises
        SpoolFull, NameRefused or OSError, and then leaves nothing in ``tmp``.
        """
        with self.draft((data,) if isinstance(data, bytes) else data) as draft:
            return draft.place(relative)

    def quarantine(self, placed: Placed, relative: str | PurePosixPath) -> Placed:
        """Move a placed file to ``quarantine/relative``, durably.

        Where the same bytes came twice at once the other thread has moved the one file they share.
        """
        target = self.path_of(PurePosixPath("quarantine") / relative)
        try:
            self.rename(placed.path, target)
        except FileNotFoundError:
            fsync_folder(target.parent)
            if not target.exists():
                raise
        fsync_folder(placed.path.parent)
        return Placed(target, placed.sha256, placed.bytes)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Between placing a file and recording it nothing is removed, by whatever process."""
        with self._locked(fcntl.LOCK_SH):
            yield

    @contextmanager
    def removing(self) -> Iterator[None]:
        """Between asking the ledger who holds a file and removing it none is placed and recorded."""
        with self._locked(fcntl.LOCK_EX):
            yield

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        """A lock of the whole spool; a descriptor of its own for each holder, so threads count too."""
        descriptor = os.open(self.root / REMOVAL_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)

    def remove(self, path: Path) -> int:
        """Remove a file of inbox, outbox or quarantine, and its folder with the last one; the bytes it had.

        So goes the folder in the inbox of a series of which everything was set aside.
        Nothing is done, and 0 said, for a file that is gone or lies anywhere else.
        """
        if path.parent.parent not in {self.root / name for name in REMOVABLE}:
            return 0
        try:
            size = path.lstat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        for folder in {path.parent, self._inbox / path.parent.name}:
            with suppress(OSError):  # not empty
                folder.rmdir()
        return size

    def made(self) -> Iterator[tuple[str, set[Path]]]:
        """Every series in the outbox, by the name of its folder, with the files there now."""
        for folder in sorted((self.root / "outbox").iterdir()):
            with suppress(FileNotFoundError, NotADirectoryError):
                yield folder.name, set(folder.iterdir())

    def path_of(self, relative: str | PurePosixPath) -> Path:
        """Where ``relative`` lies; raises NameRefused for what is not a plain path below one of FOLDERS."""
        parts = str(relative).split("/")
        if len(parts) < 2 or parts[0] not in FOLDERS:
            raise NameRefused(f"{parts[0]!r} is none of the spool's folders: {', '.join(FOLDERS)}")
        for part in parts:
            if _NAME.fullmatch(part) is None:
                raise NameRefused(f"{part!r} cannot name a file of the spool")
        return self.root.joinpath(*parts)

    def has_series(self, series_instance_uid: str) -> bool:
        """Whether something of the series was placed in the inbox and not all of it removed."""
        return (self._inbox / series_instance_uid).exists()

    def require_room(self, needed: int) -> None:
        """Raises SpoolFull if storing ``needed`` bytes would leave less than ``min_free_bytes``."""
        free = self.free_bytes()
        if free - needed < self.min_free_bytes:
            raise SpoolFull(f"{free} bytes are free and {self.min_free_bytes} must stay free")

    def has_room_for_new(self) -> bool:
        """Whether series that nothing has come of yet may begin; those that have begun go on."""
        free = self.free_bytes()
        with self._guard:
            was_short = self._is_short
            factor = self._resume_factor if was_short else self._new_series_factor
            self._is_short = free < factor * self.min_free_bytes
            is_short = self._is_short
        if is_short != was_short:
            event = "new series are refused" if is_short else "new series are taken again"
            log.warning(event, free_bytes=free)
        return not is_short

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

    def rename(self, source: Path, target: Path) -> None:
        """Move a durable file within the spool; when this returns the disk has the new name."""
        self._in_folder(target.parent, lambda: source.rename(target))
        fsync_folder(target.parent)

    def link(self, source: Path, target: Path) -> bool:
        """Move a file of ``tmp`` within the spool, not yet on the disk, to a name that is free.

        False where the name is taken, or the filesystem knows no links: then nothing was done.
        """
        try:
            self._in_folder(target.parent, lambda: os.link(source, target))
        except OSError as error:
            if error.errno in NO_LINK:
                return False
            raise
        source.unlink()
        return True

    def _in_folder(self, folder: Path, give_name: Callable[[], object]) -> None:
        """Give a name in ``folder``, which is made where it is missing, on the disk."""
        self._make_durable(folder)
        try:
            give_name()
        except FileNotFoundError:
            self._durable_folders.discard(folder)  # somebody removed it meanwhile
            self._make_durable(folder)
            give_name()

    def _make_durable(self, folder: Path) -> None:
        """The folder and those above it, with their names on the disk, whoever made them a moment ago."""
        if folder in self._durable_folders:
            return
        with self._guard:
            missing = [folder, *folder.parents]
            for one in reversed(missing[: missing.index(self.root)]):
                one.mkdir(exist_ok=True, mode=0o700)
                fsync_folder(one.parent)
            if len(self._durable_folders) >= MOST_FOLDERS_KNOWN:
                self._durable_folders.clear()
            self._durable_folders.add(folder)


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


@contextmanager
def _full_in_words() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in FULL_ERRORS:
            raise SpoolFull(os.strerror(error.errno)) from error
        raise


def _write(file: io.FileIO, chunk: Chunk) -> None:
    """Hand all of ``chunk`` to the system, which may take it in pieces."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]


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
