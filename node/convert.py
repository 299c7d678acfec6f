"""Write the series of a folder as NIfTI volumes for training, with the node's own reader.

The cases and their list are those of ``engine.cases``. No header value of the patient, no UID and no date
goes along, but pixels stay pixels: a face in a head scan is still a face. ``patient`` and ``study`` of the
list are pseudonyms: HMAC-SHA256 of the identifiers with a key that is drawn once and kept in
``.pseudonym-key``, readable by its owner alone. Series converted later with the same key get the same
pseudonyms; who has the list and not the key cannot try identifiers.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydicom.dataset import Dataset

from config.intake import IntakeSettings
from engine.cases import UNKNOWN, CaseRow, add_case, list_case
from node import tags
from node.build import read_examined
from node.flow import Failure, attempt
from node.phase import phase_of
from node.series import SourceSeries, read_series
from node.translate import Group, Progress, find_series, no_progress

KEY = ".pseudonym-key"
KEY_BYTES = 32
DIGITS = 12
"""Hexadecimal digits of a pseudonym: among ten thousand patients two share one once in five million lists."""


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
    key = pseudonym_key(out_dir)
    read = _examined if examine else _any_grid
    for number, group in enumerate(groups):
        outcome = attempt(partial(_convert_one, group, out_dir, rules, read, key))
        rows.append(_row(group, outcome))
        progress(number, len(groups), 1.0)
    return rows


def pseudonym_key(folder: Path) -> bytes:
    """The key of ``folder``, drawn where there is none yet. Raises OSError."""
    file = folder / KEY
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return bytes.fromhex(file.read_text(encoding="ascii"))
    key = secrets.token_bytes(KEY_BYTES)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(key.hex())
    return key


def _pseudonym(key: bytes, kind: str, *identifiers: str) -> str:
    text = "\0".join((kind, *identifiers))
    return kind[0] + hmac.digest(key, text.encode(), "sha256").hex()[:DIGITS]


def _patient(key: bytes, header: Dataset) -> str:
    """Of PatientID and its issuer; else of name and birth date; else of the study alone."""
    for keywords in (("PatientID", "IssuerOfPatientID"), ("PatientName", "PatientBirthDate")):
        identifiers = [tags.text(header, keyword) for keyword in keywords]
        if identifiers[0]:
            return _pseudonym(key, "patient", *identifiers)
    return _pseudonym(key, "patient", *_study_identifiers(header))


def _study_identifiers(header: Dataset) -> list[str]:
    """StudyInstanceUID, or what else tells one examination from another."""
    uid = tags.text(header, "StudyInstanceUID")
    others = ("StudyDate", "StudyTime", "AccessionNumber", "PatientID", "SeriesInstanceUID")
    return [uid] if uid else [tags.text(header, keyword) for keyword in others]


def _examined(group: Group, rules: IntakeSettings) -> SourceSeries:
    return read_examined(group.paths, rules)


def _any_grid(group: Group, rules: IntakeSettings) -> SourceSeries:
    return read_series(group.paths, rules.limits)


def _convert_one(
    group: Group,
    out_dir: Path,
    rules: IntakeSettings,
    read: Callable[[Group, IntakeSettings], SourceSeries],
    key: bytes,
) -> CaseResult:
    series = read(group, rules)
    header = series.headers[0]
    phase, told_by = phase_of(series, rules)
    study = _pseudonym(key, "study", *_study_identifiers(header))
    folder = add_case(out_dir, series.volume)
    list_case(out_dir, CaseRow(folder.name, _patient(key, header), study, phase, told_by))
    return CaseResult(group.source, folder, phase=phase)


def _row(group: Group, outcome: CaseResult | Failure) -> CaseResult:
    if isinstance(outcome, Failure):
        return CaseResult(group.source, None, outcome.disposition.code, outcome.reason)
    return outcome
