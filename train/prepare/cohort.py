"""Who has what: studies from the list of cases, and one case for each phase of a study."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

import SimpleITK as sitk  # noqa: N813 - its usual name

from engine.cases import PHASES, UNKNOWN, VOLUME, CaseRow
from train.prepare.checks import Refusal

CODES: dict[str, str] = {
    "PHASE-UNKNOWN": "nothing tells the phase; write ncct, arterial or venous into cases.tsv",
    "UNREADABLE": "the volume is not there or cannot be read",
    "NO-NCCT": "the study has no unenhanced series to pair with",
    "NO-PHASE": "the study has no enhanced series to pair with",
    "REPEATED": "another series of this phase in the study fits better",
    "NO-BODY": "there is no body in the volume",
    "TOO-FEW-SLICES": "NCCT and phase share too few slices",
    "DUPLICATE": "the same unenhanced scan is listed for another patient",
}
"""Why a case never became a pair; why a registered pair is refused is in ``checks.REASONS``."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A line of ``refused.tsv``: whose, which case, and why."""

    patient: str
    study: str
    phase: str
    case: str
    code: str
    reason: str

    @classmethod
    def of(cls, row: CaseRow, why: Refusal) -> Refused:
        """The line of a case."""
        return cls(row.patient, row.study, row.phase, row.case, why.code, why.reason)


@dataclass(frozen=True, slots=True)
class Study:
    """One study with its unenhanced case and at least one enhanced case, by phase."""

    patient: str
    study: str
    ncct: CaseRow
    phases: tuple[CaseRow, ...]


def volume_file(folder: Path, row: CaseRow) -> Path:
    """The file of a case; its name was checked when the row was made."""
    return folder / row.case / VOLUME


def label_file(folder: Path, row: CaseRow) -> Path | None:
    """The file of organ labels that the list names for a case."""
    return None if row.labels == UNKNOWN else folder / row.labels


def studies_of(
    folder: Path, rows: Iterable[CaseRow], spacing_mm: tuple[float, float, float]
) -> tuple[list[Study], list[Refused]]:
    """The studies that can be paired, in the order of patient and study, and every case left over."""
    by_study: dict[tuple[str, str], list[CaseRow]] = {}
    for row in rows:
        by_study.setdefault((row.patient, row.study), []).append(row)
    studies: list[Study] = []
    refused: list[Refused] = []
    for (patient, name), members in sorted(by_study.items()):
        chosen, left = _choose(folder, members, spacing_mm)
        refused += left
        ncct = chosen.pop("ncct", None)
        if ncct and chosen:
            studies.append(Study(patient, name, ncct, tuple(chosen[p] for p in PHASES if p in chosen)))
        else:
            code = "NO-PHASE" if ncct else "NO-NCCT"
            refused += [_refused(row, code) for row in ([ncct] if ncct else chosen.values())]
    return studies, refused


def _choose(
    folder: Path, members: Sequence[CaseRow], spacing_mm: tuple[float, float, float]
) -> tuple[dict[str, CaseRow], list[Refused]]:
    """For each phase the case whose slices are nearest the wanted spacing, of these the longest."""
    ranked: dict[str, list[tuple[tuple[float, float, str], CaseRow]]] = {}
    refused: list[Refused] = []
    for row in members:
        rank = _rank(volume_file(folder, row), spacing_mm[0])
        if row.phase == UNKNOWN or rank is None:
            refused.append(_refused(row, "PHASE-UNKNOWN" if row.phase == UNKNOWN else "UNREADABLE"))
        else:
            ranked.setdefault(row.phase, []).append(((*rank, row.case), row))
    chosen = {}
    for phase, several in ranked.items():
        best, *others = [row for _, row in sorted(several, key=lambda pair: pair[0])]
        chosen[phase] = best
        refused += [_refused(row, "REPEATED") for row in others]
    return chosen, refused


def _rank(file: Path, wanted_mm: float) -> tuple[float, float] | None:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    if reader.GetDimension() != 3:
        return None
    spacing = reader.GetSpacing()[2]
    return (round(abs(log(spacing / wanted_mm)), 3), -spacing * reader.GetSize()[2])


def _refused(row: CaseRow, code: str) -> Refused:
    return Refused.of(row, Refusal(code, CODES[code]))
