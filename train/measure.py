"""Everything that is measured of one synthetic volume of one case, as a row of plain numbers.

Metrics stand in the paper's window (−200 to 200 HU) under their plain names and in the model's window with
``_bundle_window``; an organ's are in the model's window, since the paper's cuts the arterial aorta off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.volume import Float32
from train.cases import CONTROLS, ORGANS, Case
from train.metrics import PAPER_WINDOW_HU, Comparison, Mask, seam_ratio, slice_step_hu, z_flicker

LEAST_VOXELS = 10  # fewer say nothing about contrast

Zones = Sequence[NDArray[np.bool_]]
Row = dict[str, Any]


def measure(case: Case, phase: str, made: Float32, window_hu: tuple[float, float], zones: Zones = ()) -> Row:
    """The row of ``made`` (HU, the case's grid) against the true ``phase``; see the keys below.

    body, whole: metrics in the body and in the whole volume. organs: by name, mean HU of source, truth and
    made, and metrics. controls: by name, (mean, mean absolute, true mean) change from the source. vessels:
    contrast that thin vessels gained (HU), true and made. z_flicker, slice_step_hu, seam_ratio.
    """
    truth = case.phases[phase]
    narrow = Comparison(made, truth, PAPER_WINDOW_HU)
    wide = Comparison(made, truth, window_hu)
    return {
        "case": case.name,
        "body": _both(narrow, wide, case.body),
        "whole": _both(narrow, wide, None),
        "organs": dict(_organs(case, truth, made, wide)),
        "controls": dict(_controls(case, truth, made)),
        "vessels": _vessels(case, truth, made),
        "z_flicker": z_flicker(made, truth, case.body),
        "slice_step_hu": slice_step_hu(made, truth, case.body),
        "seam_ratio": seam_ratio(made, truth, case.body, zones) if len(zones) else None,
    }


def _both(narrow: Comparison, wide: Comparison, mask: Mask | None) -> dict[str, float]:
    in_bundle_window = {f"{name}_bundle_window": value for name, value in wide.within(mask).items()}
    return narrow.within(mask) | in_bundle_window


def _organs(
    case: Case, truth: Float32, made: Float32, wide: Comparison
) -> Iterator[tuple[str, dict[str, float]]]:
    for name in ORGANS:
        where = case.region(name)
        if where is not None:
            means = {
                key: float(hu[where].mean(dtype=np.float64))
                for key, hu in (("source", case.source.hu), ("truth", truth), ("made", made))
            }
            yield name, means | wide.within(where)


def _controls(case: Case, truth: Float32, made: Float32) -> Iterator[tuple[str, tuple[float, float, float]]]:
    for name in CONTROLS:
        where = case.region(name)
        if where is not None:
            yield name, changes(case.source.hu, truth, made, where)


def changes(source: Float32, truth: Float32, made: Float32, where: Mask) -> tuple[float, float, float]:
    """Mean, and mean absolute, change of the output from the source; mean change of the truth from it."""
    change = (made[where] - source[where]).astype(np.float64)
    true = float(truth[where].mean(dtype=np.float64) - source[where].mean(dtype=np.float64))
    return float(change.mean()), float(np.abs(change).mean()), true


def _vessels(case: Case, truth: Float32, made: Float32) -> dict[str, float] | None:
    if case.thin is None or min(int(mask.sum()) for mask in case.thin) < LEAST_VOXELS:
        return None
    gained = (contrast_gained(case.source.hu, hu, *case.thin) for hu in (truth, made))
    return dict(zip(("true", "made"), gained, strict=True))


def contrast_gained(source: Float32, x: Float32, inside: Mask, around: Mask) -> float:
    """HU by which ``inside`` rose from the source to x above what ``around`` rose; 0 for the source."""
    rise = x - source
    return float(rise[inside].mean(dtype=np.float64) - rise[around].mean(dtype=np.float64))
