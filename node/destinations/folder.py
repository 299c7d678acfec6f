"""A folder of DICOM files: one folder a series, each file whole or absent."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from pydicom import dcmread

from config.settings import FolderDestination
from node.destinations.answer import Answer
from node.errors import DestinationUnreachable
from node.spool import fsync_folder

SUCCESS = 0x0000


def deliver(destination: FolderDestination, files: Sequence[Path]) -> Iterator[Answer]:
    """Copy ``files`` to ``path/<series>/<SOP instance>.dcm``; an answer means that the disk has the file.

    A file that is there already is replaced in one step. Raises DestinationUnreachable where the folder is
    not there (a share that is not mounted: it is never made) or cannot be written.
    """
    probe(destination)
    for path in files:
        header = dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID", "SOPInstanceUID"])
        target = destination.path / header.SeriesInstanceUID / f"{header.SOPInstanceUID}.dcm"
        try:
            copy_durably(path, target)
        except OSError as error:
            raise DestinationUnreachable(f"cannot write: {error.strerror}") from error
        yield Answer(path, str(header.SOPInstanceUID), SUCCESS)


def probe(destination: FolderDestination) -> None:
    """Returns where the folder is there; raises DestinationUnreachable where it is not."""
    if not destination.path.is_dir():
        raise DestinationUnreachable("the folder is not there: create it, or mount its share")


def copy_durably(source: Path, target: Path) -> None:
    """Copy a file so that ``target`` is never seen in part, and is on the disk when this returns."""
    folder = target.parent
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)
    part = folder / f".{secrets.token_hex(8)}.part"
    try:
        with source.open("rb") as reading, part.open("xb") as writing:
            shutil.copyfileobj(reading, writing)
            writing.flush()
            os.fsync(writing.fileno())
        part.replace(target)
        fsync_folder(folder)
    finally:
        with suppress(OSError):
            part.unlink()
