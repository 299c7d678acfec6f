"""What models make of a real, labelled, non-contrast CT: mean HU of organs before and after, and in words.

Nobody knows this patient's true phases. What stands beside the models is the rise that the average patient of
this size has in the table that phantoms are drawn from; a patient may lie far from it. The report names no
file, no patient and no date.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from engine.errors import VolumeUnsupported
from engine.phantom.enhancement import PHASES, SIZE_POWER, TISSUES, Tissue
from engine.pipeline import open_engine
from engine.session import SessionPolicy
from engine.volume import Volume
from train.bars import CONTROL_HU
from train.cases import CONTROLS
from train.evaluate import describe
from train.painting import (
    MIXED,
    STILL,
    Labels,
    LabelsUnusable,
    Mask,
    read_labels,
    read_scheme,
    relative_size,
    soft_tissue,
    tissue_parts,
)
from train.real import read_upright

SEED = 0
ENHANCES_HU = 10.0
"""An organ whose expected rise is less is judged as one that should stay."""
STAYS_HU = 15.0
"""Further than this from its expectation, an organ that should stay did not; muscle, fat and bone did not
where they changed by what a release may not (``train.bars``)."""
WIDE = (0.5, 2.0)
"""Between these shares of the average patient's rise, a rise is one that a patient might have."""
LEAST_VOXELS = 20
SOFT = 0.5
"""Of ``soft_tissue``: half way between fat or gas and soft tissue."""


class Change(TypedDict):
    """An organ in one phase: mean HU of the synthesis, and the average patient's rise."""

    hu: float
    expected_rise_hu: float


class Organ(TypedDict):
    """One tissue of the labels: volume, mean and SD of the source's HU, and its phases by name."""

    tissue: str
    ml: float
    source_hu: float
    source_sd_hu: float
    phases: dict[str, Change]


class Model(TypedDict):
    """Which bundle made a phase."""

    model_id: str
    model_digest: str


class Scan(TypedDict):
    """What is said of the scan: its grid, and the body's cross-section against a typical one."""

    shape: list[int]
    spacing_mm: list[float]
    relative_size: float


class Report(TypedDict):
    """The whole, as JSON has it; ``words`` is one paragraph."""

    scan: Scan
    models: dict[str, Model]
    organs: list[Organ]
    words: str


def report(
    ncct: Path, labels: Path, labels_are: str, bundles: Sequence[Path], policy: SessionPolicy
) -> Report:
    """Run every bundle on the scan. Raises PairsUnusable (LabelsUnusable), BundleInvalid, ProviderMissing."""
    source = read_upright(ncct)
    parts = organ_parts(source, read_labels(labels, source.geometry), read_scheme(labels_are))
    models: dict[str, Model] = {}
    made: dict[str, Volume] = {}
    for folder in bundles:
        engine_ = open_engine(folder, policy)
        facts, phase = describe(engine_), engine_.bundle.manifest.phase
        models[phase] = {"model_id": facts["model_id"], "model_digest": facts["model_digest"]}
        try:
            made[phase] = engine_.synthesize(source, seed=SEED).volume
        except VolumeUnsupported as error:
            raise LabelsUnusable(f"{ncct}: {error}") from error
    size = relative_size(source)
    organs = [_organ(name, where, source, made, size) for name, where in parts.items()]
    spacing = [round(s, 3) for s in source.geometry.spacing_mm]
    scan: Scan = {
        "shape": list(source.geometry.shape), "spacing_mm": spacing, "relative_size": round(size, 2),
    }  # fmt: skip
    return {"scan": scan, "models": models, "organs": organs, "words": words(organs, sorted(models))}


def organ_parts(source: Volume, labels: Labels, scheme: Mapping[int, str]) -> dict[str, Mask]:
    """Where each tissue of the labels is; a kidney is cortex and medulla. Raises LabelsUnusable for none.

    Fat, gas and calcification within a label are left out, as painting leaves them.
    """
    found: dict[str, Mask] = {}
    soft = soft_tissue(source.hu) > SOFT
    for name in dict.fromkeys(tissue for tissue in scheme.values() if tissue not in STILL):
        label = np.isin(labels, [number for number, meant in scheme.items() if meant == name])
        if label.any():
            for tissue, part in tissue_parts(name, label, source.geometry):
                kept = part & soft
                found[tissue] = found[tissue] | kept if tissue in found else kept
    found = {tissue: part for tissue, part in found.items() if part.sum() >= LEAST_VOXELS}
    if not found:
        raise LabelsUnusable("no voxel has a label that means a tissue: another --labels-are is needed")
    return found


def expected_rise(name: str, phase: str, size: float) -> float:
    """HU that a tissue gains in the average patient of this size."""
    parts = MIXED.get(name, ((name, 1.0),))
    return sum(share * _rise(TISSUES[tissue], phase) for tissue, share in parts) * float(size**SIZE_POWER)


def _rise(tissue: Tissue, phase: str) -> float:
    return tissue.arterial if phase == "arterial" else tissue.venous


def _organ(name: str, where: Mask, source: Volume, made: Mapping[str, Volume], size: float) -> Organ:
    voxel_ml = float(np.prod(source.geometry.spacing_mm)) / 1000
    before = source.hu[where].astype(np.float64)
    return {
        "tissue": name,
        "ml": round(float(where.sum()) * voxel_ml, 1),
        "source_hu": round(float(before.mean()), 1),
        "source_sd_hu": round(float(before.std()), 1),
        "phases": {
            phase: {
                "hu": round(float(made[phase].hu[where].mean(dtype=np.float64)), 1),
                "expected_rise_hu": round(expected_rise(name, phase, size), 1),
            }
            for phase in PHASES
            if phase in made
        },
    }


def words(organs: Sequence[Organ], phases: Sequence[str]) -> str:
    """One paragraph that says what the figures show, good or bad."""
    told = [_phase_words(organs, phase) for phase in phases]
    off = any(" less" in text or " more" in text or "did not stay" in text for text in told)
    end = (
        "So the models, which have seen phantoms alone, do not carry over to this scan as a whole."
        if off
        else "That looks like an enhanced scan; it is no evidence that this patient would enhance so."
    )
    return " ".join([*told, end])


def _phase_words(organs: Sequence[Organ], phase: str) -> str:
    rises = {o["tissue"]: _share(o, phase) for o in organs if _expected(o, phase) >= ENHANCES_HU}
    low, high = WIDE
    less = [f"{_written(name)} {share:.0%}" for name, share in rises.items() if share < low]
    more = [f"{_written(name)} {share:.0%}" for name, share in rises.items() if share > high]
    fit = [_written(name) for name, share in rises.items() if low <= share <= high]
    text = f"{phase.capitalize()}: {len(fit)} of {len(rises)} organs that enhance gained between half and"
    text += f" twice what the average patient gains{_listed(fit)}"
    text += f"; less{_listed(less)}" if less else ""
    text += f"; more{_listed(more)}" if more else ""
    still = [organ for organ in organs if _expected(organ, phase) < ENHANCES_HU]
    for verdict, stayed in (("what should stay stayed", True), ("did not stay", False)):
        found = [_still_words(organ, phase) for organ in still if _stayed(organ, phase) == stayed]
        text += f"; {verdict}{_listed(found)}" if found else ""
    return text + "."


def _stayed(organ: Organ, phase: str) -> bool:
    if organ["tissue"] in CONTROLS:
        return abs(_gained(organ, phase)) < CONTROL_HU
    return abs(_gained(organ, phase) - _expected(organ, phase)) <= STAYS_HU


def _still_words(organ: Organ, phase: str) -> str:
    limit = CONTROL_HU if organ["tissue"] in CONTROLS else STAYS_HU
    return f"{_written(organ['tissue'])} {_gained(organ, phase):+.0f} of ±{limit:g} HU"


def _listed(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if names else ""


def _gained(organ: Organ, phase: str) -> float:
    return organ["phases"][phase]["hu"] - organ["source_hu"]


def _expected(organ: Organ, phase: str) -> float:
    return organ["phases"][phase]["expected_rise_hu"]


def _share(organ: Organ, phase: str) -> float:
    return _gained(organ, phase) / _expected(organ, phase)


def _written(tissue: str) -> str:
    return tissue.replace("_", " ")


def rows_of(found: Report) -> list[tuple[str, ...]]:
    """The table with its head: organ, volume, source, and each phase's HU, rise and the average rise."""
    phases = [phase for phase in PHASES if phase in found["models"]]
    head = ["organ", "ml", "source HU"]
    for phase in phases:
        head += [f"{phase} HU", "change", "average patient's"]
    rows = [tuple(head)]
    for organ in found["organs"]:
        cells = [_written(organ["tissue"]), f"{organ['ml']:.1f}"]
        cells.append(f"{organ['source_hu']:.0f} ± {organ['source_sd_hu']:.0f}")
        for phase in phases:
            change = organ["phases"][phase]
            cells += [f"{change['hu']:.0f}", f"{_gained(organ, phase):+.0f}"]
            cells.append(f"{change['expected_rise_hu']:+.0f}")
        rows.append(tuple(cells))
    return rows
