"""Finished rows of a comparison in a small form that can be committed and carried to another machine.

Each row and phase is ``<row>-<phase>.json``: what the tables are made of, five digits a figure; and
``<row>-<phase>.npz``: one axial plane of the first phantom in steps of 4 HU, for the picture. ``made_of``
says what the figures follow from (configuration, budget, phantoms), so that rows of different comparisons do
not get into one table. A file names no path and no host.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from train.evaluate import Shown
from train.measure_row import load_planes, save_planes

BODY = ("nmse", "psnr", "ssim", "mae_hu", "mae_hu_bundle_window")
ORGAN = ("source", "truth", "made")
ROW = ("case", "controls", "vessels", "z_flicker", "seam_ratio")
DIGITS = 5
STEP_HU = 4
SHOWN_HU = (-200.0, 400.0)


def keep(result: Path, folder: Path) -> None:
    """Put the small form of a finished row into ``folder``: the planes first, then the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    planes = result.with_suffix(".npz")
    if planes.exists():
        save_planes(folder / planes.name, [_small(load_planes(planes)[0])], STEP_HU)
    text = json.dumps(slim(json.loads(result.read_text())), sort_keys=True)
    temporary = folder / f".{result.name}.tmp"
    temporary.write_text(text.replace('{"case"', '\n{"case"') + "\n")
    temporary.replace(folder / result.name)


def fetch(folder: Path, result: Path, made_of: str) -> bool | None:
    """Copy a kept row to where a finished one lies; False where it is of another comparison, None if none."""
    kept = folder / result.name
    if not kept.exists():
        return None
    if json.loads(kept.read_text()).get("made_of") != made_of:
        return False
    planes = kept.with_suffix(".npz")
    if planes.exists():
        shutil.copyfile(planes, result.with_suffix(".npz"))
    shutil.copyfile(kept, result)
    return True


def slim(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the tables need of a result of ``train.measure_row``."""
    facts = {key: value for key, value in result.items() if key not in ("bundle", "rows")}
    rows = [
        {key: row[key] for key in ROW}
        | {"body": {key: row["body"][key] for key in BODY}}
        | {"organs": {name: {key: found[key] for key in ORGAN} for name, found in row["organs"].items()}}
        for row in result["rows"]
    ]
    return facts | {"rows": [dict(_rounded(row)) | {"case": row["case"]} for row in rows]}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _small(shown: Shown) -> Shown:
    source, truth, made = (np.clip(hu, *SHOWN_HU) for hu in (shown.source, shown.truth, shown.made))
    return replace(shown, source=source, truth=truth, made=made)
