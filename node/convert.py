"""Write the series of a folder as NIfTI volumes for training, with the node's own reader.

The cases and their list are those of ``engine.cases``. No header value of the patient, no UID and no date
goes along, but pixels stay pixels: a face in a head scan is still a face. ``patient`` and ``study`` of the
list are pseudonyms (``node.pseudonyms``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from config.intake import IntakeSettings
from engine.cases import UNKNOWN, CaseRow, add_case, list_case
from node.build import read_examined
from node.flow import Failure, attempt
from node.phase import phase_of
from node.pseudonyms import PatientUnclear, Pseudonyms
from node.series import SourceSeries, read_series
from node.translate import Group, Progress, find_series, no_progress

UNCLEAR = "PATIENT-UNCLEAR"
"""The code of a series that may be one of several patients'."""


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What became of one series or stray file: ``folder`` of the case, or ``code`` and ``reason`` why not."""

    source: Path
    folder: Path | None
    code: str | None = None
    reason: str | None = None
    phase: str = UNKNOWN


def convert(
    in_dir: Path,
    out_dir: Path,
    rules: IntakeSettings,
    progress: Progress = no_progress,
    *,
    examine: bool = False,
) -> list[CaseResult]:
    """Write every series under ``in_dir`` that reads as a volume; one row a series or stray file.

    With ``examine`` only what the node itself would translate is written (so: unenhanced); without it all
    that is a regular grid in HU, since training wants enhanced series too. Numbers go on after those there.
    """
    groups, strays = find_series(in_dir, rules.limits, skip=out_dir)
    rows = [CaseResult(stray.source, None, stray.code, stray.reason) for stray in strays]
    out_dir.mkdir(parents=True, exist_ok=True)
    pseudonyms = Pseudonyms(out_dir)
    read = _examined if examine else _any_grid
    for number, group in enumerate(groups):
        outcome = attempt(partial(_convert_one, group, out_dir, rules, read, pseudonyms))
        rows.append(_row(group, outcome))
        progress(number, len(groups), 1.0)
    return rows


def _examined(group: Group, rules: IntakeSettings) -> SourceSeries:
    return read_examined(group.paths, rules)


def _any_grid(group: Group, rules: IntakeSettings) -> SourceSeries:
    return read_series(group.paths, rules.limits)


def _convert_one(
    group: Group,
    out_dir: Path,
    rules: IntakeSettings,
    read: Callable[[Group, IntakeSettings], SourceSeries],
    pseudonyms: Pseudonyms,
) -> CaseResult:
    series = read(group, rules)
    header = series.headers[0]
    phase, told_by = phase_of(series, rules)
    try:
        patient, study = pseudonyms.patient(header), pseudonyms.study(header)
    except PatientUnclear as error:
        return CaseResult(group.source, None, UNCLEAR, str(error))
    folder = add_case(out_dir, series.volume)
    list_case(out_dir, CaseRow(folder.name, patient, study, phase, told_by))
    return CaseResult(group.source, folder, phase=phase)


def _row(group: Group, outcome: CaseResult | Failure) -> CaseResult:
    if isinstance(outcome, Failure):
        return CaseResult(group.source, None, outcome.disposition.code, outcome.reason)
    return outcome
