"""Write the series of a folder as NIfTI volumes for training, with the node's own reader.

A case is a folder ``case-0001`` …, numbered in the order of the series' files: ``ct.nii.gz`` (HU, float32,
the grid as the NIfTI header) and ``geometry.json``. No header value of the patient, no UID and no date goes
along, but pixels stay pixels: a face in a head scan is still a face.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import SimpleITK as sitk  # noqa: N813

from config.intake import IntakeSettings
from engine.volume import Volume
from node.build import read_examined
from node.flow import Failure, attempt
from node.series import SourceSeries, read_series
from node.translate import Group, Progress, find_series, no_progress


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What became of one series or stray file: ``folder`` of the case, or ``code`` and ``reason`` why not."""

    source: Path
    folder: Path | None
    code: str | None = None
    reason: str | None = None


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
    read = _examined if examine else _any_grid
    for number, group in enumerate(groups):
        outcome = attempt(partial(_convert_one, group, out_dir, rules, read))
        rows.append(_row(group, outcome))
        progress(number, len(groups), 1.0)
    return rows


def write_volume(folder: Path, volume: Volume) -> None:
    """``ct.nii.gz`` and ``geometry.json`` of a volume into an existing folder."""
    geometry = volume.geometry
    image = sitk.GetImageFromArray(volume.hu)
    image.SetSpacing(tuple(reversed(geometry.spacing_mm)))
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection(geometry.direction_matrix[:, ::-1].ravel().tolist())
    sitk.WriteImage(image, str(folder / "ct.nii.gz"), useCompression=True)
    described = {
        "shape": geometry.shape,
        "spacing_mm": geometry.spacing_mm,
        "origin_mm": geometry.origin_mm,
        "directions": geometry.directions,
        "axes": ["slice", "row", "column"],
        "frame": "LPS",
    }
    (folder / "geometry.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _examined(group: Group, rules: IntakeSettings) -> SourceSeries:
    return read_examined(group.paths, rules)


def _any_grid(group: Group, rules: IntakeSettings) -> SourceSeries:
    return read_series(group.paths, rules.limits)


def _convert_one(
    group: Group, out_dir: Path, rules: IntakeSettings, read: Callable[[Group, IntakeSettings], SourceSeries]
) -> Path:
    return _write_case(out_dir, read(group, rules))


def _write_case(out_dir: Path, series: SourceSeries) -> Path:
    staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=out_dir))
    try:
        write_volume(staging, series.volume)
        staging.chmod(0o755)
        target = out_dir / f"case-{_next_number(out_dir):04d}"
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _next_number(out_dir: Path) -> int:
    taken = (path.name.removeprefix("case-") for path in out_dir.glob("case-*"))
    return 1 + max((int(name) for name in taken if name.isdecimal()), default=0)


def _row(group: Group, outcome: Path | Failure) -> CaseResult:
    if isinstance(outcome, Failure):
        return CaseResult(group.source, None, outcome.disposition.code, outcome.reason)
    return CaseResult(group.source, outcome)
