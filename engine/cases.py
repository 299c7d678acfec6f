"""A folder of cases for training: volumes without headers, and the list that says whose they are.

A case is a folder ``case-0001`` … with ``ct.nii.gz`` (HU, the grid as the NIfTI header) and
``geometry.json``. ``cases.tsv`` beside them has one line a case::

    case       patient        study          phase     told_by
    case-0001  p3f9c1a0b77de  s910ce44b2d03  ncct      pixels
    case-0002  p3f9c1a0b77de  s910ce44b2d03  arterial  description

``phase`` is ncct, arterial, venous, or ``-`` where nothing tells; people may correct it. A case may have more
than one line: one NCCT that several studies share. A column ``labels`` may be added by hand: a file of organ
labels on the NCCT's own grid, its path relative to ``cases.tsv``.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import tempfile
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import SimpleITK as sitk  # noqa: N813 - its usual name

from engine.volume import Volume

LIST = "cases.tsv"
VOLUME = "ct.nii.gz"
UNKNOWN = "-"
PHASES = ("ncct", "arterial", "venous")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""What may become the name of a folder: no separator, no dot, no leading dash."""


class CasesUnusable(Exception):
    """A list of cases cannot be used; says which file, which line and why."""


@dataclass(frozen=True, slots=True)
class CaseRow:
    """One line of ``cases.tsv``. Raises ValueError for a name that could leave the folder, or no phase."""

    case: str
    patient: str
    study: str
    phase: str
    told_by: str = UNKNOWN
    labels: str = UNKNOWN

    def __post_init__(self) -> None:
        for field in ("case", "patient", "study"):
            if not NAME.fullmatch(getattr(self, field)):
                raise ValueError(f"{field} {getattr(self, field)!r} is not 1 to 64 letters, digits, _ or -")
        if self.phase not in (*PHASES, UNKNOWN):
            raise ValueError(f"phase {self.phase!r} is none of {', '.join(PHASES)} and {UNKNOWN}")


COLUMNS = tuple(field.name for field in fields(CaseRow))
WRITTEN = COLUMNS[:5]
"""What ``list_case`` writes; the last column is people's."""


def read_cases(folder: Path) -> list[CaseRow]:
    """The lines of ``folder/cases.tsv``; more columns than ours are let be. Raises CasesUnusable."""
    file = folder / LIST
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            lines = list(csv.DictReader(stream, delimiter="\t"))
    except OSError as error:
        raise CasesUnusable(f"{file}: {error.strerror}; s2node convert writes it") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise CasesUnusable(f"{file}: {error}") from error
    return [_row(file, number, line) for number, line in enumerate(lines, 2)]


def _row(file: Path, number: int, line: dict[str, str]) -> CaseRow:
    missing = [column for column in COLUMNS[:4] if not line.get(column)]
    if missing:
        raise CasesUnusable(f"{file}: line {number} has no {', '.join(missing)}")
    try:
        return CaseRow(**{column: (line.get(column) or UNKNOWN) for column in COLUMNS})
    except ValueError as error:
        raise CasesUnusable(f"{file}: line {number}: {error}") from None


def add_case(folder: Path, volume: Volume) -> Path:
    """Write a volume as the next case of ``folder``, whole or not at all; returns the case's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    try:
        write_volume(staging, volume)
        staging.chmod(0o755)
        target = folder / f"case-{_next_number(folder):04d}"
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def list_case(folder: Path, row: CaseRow) -> None:
    """Add a line to ``folder/cases.tsv``; the first call writes the heading too."""
    file = folder / LIST
    heading = "" if file.exists() else "\t".join(WRITTEN) + "\n"
    with file.open("a", encoding="utf-8", newline="") as stream:
        stream.write(heading + "\t".join(astuple(row)[: len(WRITTEN)]) + "\n")


def write_volume(folder: Path, volume: Volume) -> None:
    """``ct.nii.gz`` and ``geometry.json`` of a volume into an existing folder."""
    geometry = volume.geometry
    write_nifti(folder / VOLUME, volume)
    described = {
        "shape": geometry.shape,
        "spacing_mm": geometry.spacing_mm,
        "origin_mm": geometry.origin_mm,
        "directions": geometry.directions,
        "axes": ["slice", "row", "column"],
        "frame": "LPS",
    }
    (folder / "geometry.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def write_nifti(file: Path, volume: Volume) -> None:
    """One compressed NIfTI file, the numbers as they are (float32)."""
    geometry = volume.geometry
    image = sitk.GetImageFromArray(volume.hu)
    image.SetSpacing(tuple(reversed(geometry.spacing_mm)))
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection(geometry.direction_matrix[:, ::-1].ravel().tolist())
    sitk.WriteImage(image, str(file), useCompression=True)


def _next_number(folder: Path) -> int:
    taken = (path.name.removeprefix("case-") for path in folder.glob("case-*"))
    return 1 + max((int(name) for name in taken if name.isdecimal()), default=0)
