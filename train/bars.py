"""What a release has to reach, as printed rows: what is asked, what was measured, whether that is enough.

Each bar is held against the oracle, measured on the same patients, since what is not in an unenhanced scan
cannot be asked of a model: a bar that the oracle itself misses says so by its own figure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypedDict

import numpy as np

from train.cases import CONTROLS, ORGANS
from train.measure import Row

MAE_FACTOR = 1.5
VESSEL_HU = 25.0
CONTRAST_SHARE = 0.85
CLEAR_HU = 15.0
"""An organ that the oracle gives as much beyond muscle is judged by itself too."""
CONTROL_HU = 5.0
THIN_SHARE = 0.6
VESSELS = {"arterial": "aorta", "venous": "portal_vein"}
"""The vessel that a phase is judged by."""


class Bar(TypedDict):
    """One printed row; ``reached`` is the verdict."""

    aim: str
    measured: str
    reached: bool


def release_bars(phase: str, model: Sequence[Row], oracle: Sequence[Row]) -> list[Bar]:
    """The bars of one phase over rows of ``train.measure``; the rows of both are of the same patients.

    What nobody has (an organ, thin vessels) is left out. Without an oracle there are no bars.
    """
    if not model or len(model) != len(oracle):
        return []
    return [
        _body(phase, model, oracle),
        *_vessel(phase, model, oracle),
        *_contrast(phase, model, oracle),
        *_controls(phase, model),
        *_thin_vessels(phase, model, oracle),
    ]


def _body(phase: str, model: Sequence[Row], oracle: Sequence[Row]) -> Bar:
    ours, best = (_mean([r["body"]["mae_hu_bundle_window"] for r in rows]) for rows in (model, oracle))
    return {
        "aim": f"{phase}: mean absolute error in the body at most {MAE_FACTOR} × the oracle's",
        "measured": f"{ours:.1f} HU, oracle {best:.1f} HU, × {ours / best:.2f}",
        "reached": ours <= MAE_FACTOR * best,
    }


def _vessel(phase: str, model: Sequence[Row], oracle: Sequence[Row]) -> Iterator[Bar]:
    organ = VESSELS[phase]
    if not any(organ in row["organs"] for row in model):
        return
    ours, best = (organ_error(rows, organ) for rows in (model, oracle))
    yield {
        "aim": f"{phase}: {_written(organ)} within {VESSEL_HU:g} HU or {MAE_FACTOR} × the oracle's error",
        "measured": f"{ours:.1f} HU, oracle {best:.1f} HU",
        "reached": ours <= max(VESSEL_HU, MAE_FACTOR * best),
    }


def _contrast(phase: str, model: Sequence[Row], oracle: Sequence[Row]) -> Iterator[Bar]:
    """All organs as one sum, which the aorta and the cortex make; then the organ that gained least."""
    ours, best = organ_contrast(model), organ_contrast(oracle)
    if not ours:
        return
    share = sum(ours.values()) / sum(best.values())
    shares = {organ: ours[organ] / best[organ] for organ in ours if best[organ] > CONTROL_HU}
    least = min(shares, key=shares.__getitem__, default=None)
    note = f" (least: {_written(least)} {shares[least]:.0%})" if least else ""
    yield {
        "aim": f"{phase}: enhancement of organs above muscle's at least {CONTRAST_SHARE:.0%} of the oracle's",
        "measured": f"{share:.0%}{note}",
        "reached": share >= CONTRAST_SHARE,
    }
    clear = {organ: ours[organ] / best[organ] for organ in ours if best[organ] >= CLEAR_HU}
    if not clear:
        return
    least = min(clear, key=clear.__getitem__)
    hu = f"{ours[least]:.0f} HU, oracle {best[least]:.0f} HU"
    yield {
        "aim": f"{phase}: the same of every organ that the oracle gives {CLEAR_HU:g} HU above muscle or more",
        "measured": f"{_written(least)} {clear[least]:.0%} ({hu})",
        "reached": clear[least] >= CONTRAST_SHARE,
    }


def organ_contrast(rows: Sequence[Row]) -> dict[str, float]:
    """By organ: HU that it gained beyond what muscle gained, over the patients that have both."""
    gained: dict[str, list[float]] = {}
    for row in rows:
        muscle = row["controls"].get("muscle")
        for organ in ORGANS if muscle else ():
            if found := row["organs"].get(organ):
                gained.setdefault(organ, []).append(found["made"] - found["source"] - muscle[0])
    return {organ: _mean(values) for organ, values in gained.items()}


def _controls(phase: str, model: Sequence[Row]) -> Iterator[Bar]:
    """The tissue that changed most; air, fat, bone and muscle are to stay."""
    found = {
        tissue: np.mean([r["controls"][tissue] for r in model if tissue in r["controls"]], axis=0).tolist()
        for tissue in CONTROLS
        if any(tissue in row["controls"] for row in model)
    }
    if not found:
        return
    most = max(found, key=lambda tissue: abs(found[tissue][0]))
    change, _, true = found[most]
    yield {
        "aim": f"{phase}: fat, bone, air and muscle changed by less than {CONTROL_HU:g} HU",
        "measured": f"{change:+.1f} HU ({most}; the truth {true:+.1f} HU)",
        "reached": abs(change) < CONTROL_HU,
    }


def _thin_vessels(phase: str, model: Sequence[Row], oracle: Sequence[Row]) -> Iterator[Bar]:
    pairs = [
        (a["vessels"]["made"], b["vessels"]["made"])
        for a, b in zip(model, oracle, strict=True)
        if a["vessels"] and b["vessels"]
    ]
    if not pairs:
        return
    ours, best = np.mean(pairs, axis=0).tolist()
    yield {
        "aim": f"{phase}: vessels of 3 to 6 mm gain at least {THIN_SHARE:.0%} of the oracle's contrast",
        "measured": f"{ours:.0f} HU, oracle {best:.0f} HU, {ours / best:.0%}",
        "reached": ours >= THIN_SHARE * best,
    }


def organ_error(rows: Sequence[Row], organ: str) -> float:
    """Mean absolute error of the organ's mean HU over the patients that have it."""
    found = [row["organs"][organ] for row in rows if organ in row["organs"]]
    return _mean([abs(each["made"] - each["truth"]) for each in found])


def _written(organ: str) -> str:
    return organ.replace("_", " ")


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
