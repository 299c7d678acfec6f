"""A folder of DICOM files: one folder a series, each file whole or absent.

A file is written under a hidden name beside the series' folders and renamed when it is whole. A node that
dies in between leaves that; the next try writes over it, and where there is none it goes after an hour.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from pydicom import dcmread

from config.settings import FolderDestination
from node.destinations.answer import Answer
from node.errors import DestinationUnreachable
from node.spool import fsync_folder

SUCCESS = 0x0000
STALE_S = 3600.0
"""No file takes so long to copy."""


def deliver(destination: FolderDestination, files: Sequence[Path]) -> Iterator[Answer]:
    """Copy ``files`` to ``path/<series>/<SOP instance>.dcm``; an answer means that the disk has the file.

    A file that is there already is replaced in one step. Raises DestinationUnreachable where the folder is
    not there (a share that is not mounted: it is never made) or cannot be written.
    """
    probe(destination)
    _sweep(destination.path)
    for path in files:
        header = dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID", "SOPInstanceUID"])
        target = destination.path / header.SeriesInstanceUID / f"{header.SOPInstanceUID}.dcm"
        try:
            copy_durably(path, target, destination.path / f".{header.SOPInstanceUID}.part")
        except OSError as error:
            raise DestinationUnreachable(f"cannot write: {error.strerror}") from error
        yield Answer(path, str(header.SOPInstanceUID), SUCCESS)


def probe(destination: FolderDestination) -> None:
    """Returns where the folder is there; raises DestinationUnreachable where it is not."""
    if not destination.path.is_dir():
        raise DestinationUnreachable("the folder is not there: create it, or mount its share")


def copy_durably(source: Path, target: Path, part: Path) -> None:
    """Copy a file so that ``target`` is never seen in part, and is on the disk when this returns.

    ``part`` is what it is called until then.
    """
    folder = target.parent
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)
    try:
        with source.open("rb") as reading, part.open("wb") as writing:
            shutil.copyfileobj(reading, writing)
            writing.flush()
            os.fsync(writing.fileno())
        part.replace(target)
        fsync_folder(folder)
    finally:
        with suppress(OSError):
            part.unlink()


def _sweep(folder: Path) -> None:
    """Remove what died with its writer and nobody came back for: what it was part of is superseded."""
    for part in folder.glob(".*.part"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > STALE_S:
                part.unlink()
