"""Painting: enhancement put on a real unenhanced scan by organ label, so that real textures are learnt from.

    phase(x) = ncct(x) + Σ_organs w(x) (hu[phase][tissue] − hu[ncct][tissue])

with hu drawn from the phantom's own table (``engine.phantom.enhancement``), and w the organ's label, softened
inwards by half a voxel as partial volume softens it, 0 in fat and gas within the label and in calcification.
No voxel outside a label changes; noise and texture within stay the source's own. So source and target share
their noise, unlike two acquisitions; vessels without a label (those of the liver) enhance as their organ.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its usual name
from numpy.typing import NDArray

from engine.body import find_body
from engine.cases import CaseRow, add_case, list_case
from engine.phantom.body import TYPICAL_FAT_MM, WALL_HALF_DEPTH_MM, WALL_HALF_WIDTH_MM
from engine.phantom.enhancement import PHASES, TISSUES, Enhancement, draw_enhancement
from engine.phantom.labels import LABELS
from engine.volume import Float32, Geometry, Volume
from train.real import PairsUnusable, read_upright, same_place, to_image

Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]

TOTALSEGMENTATOR: dict[int, str] = {
    1: "spleen", 2: "kidney", 3: "kidney", 4: "gallbladder", 5: "liver", 6: "stomach", 7: "pancreas",
    8: "adrenal", 9: "adrenal", 10: "lung", 11: "lung", 12: "lung", 13: "lung", 14: "lung", 18: "bowel",
    19: "bowel", 20: "bowel", 51: "heart", 52: "aorta", 63: "ivc", 64: "portal_vein", 65: "arteries",
    66: "arteries", 67: "ivc_infrarenal", 68: "ivc_infrarenal", 80: "muscle", 81: "muscle", 82: "muscle",
    83: "muscle", 84: "muscle", 85: "muscle", 86: "muscle", 87: "muscle", 88: "muscle", 89: "muscle",
}  # fmt: skip
"""Classes of TotalSegmentator's task "total", version 2."""
SCHEMES: dict[str, dict[int, str]] = {
    "totalsegmentator": TOTALSEGMENTATOR,
    "phantom": {number: name for name, number in LABELS.items()},
}
"""Known meanings of label numbers; a file with two columns (number, tissue) is another."""
SHELLS_MM: dict[str, tuple[tuple[float, str], ...]] = {
    "kidney": ((9.0, "renal_cortex"), (np.inf, "renal_medulla")),
    "stomach": ((4.0, "stomach"),),
    "bowel": ((3.0, "bowel"),),
}
"""Labels that are several tissues, by depth under their surface; deeper than the last is content."""
MIXED: dict[str, tuple[tuple[str, float], ...]] = {
    "ivc": (("ivc_infrarenal", 0.35), ("ivc_suprarenal", 0.65))
}
"""Labels whose rise is a mean, as in the phantom."""
STILL = {"lesion", "table", "air"}
"""Phantom labels that have no row of their own in the table; they are left as they are."""
FAT_HU, CALCIFIED_HU = (-30.0, 0.0), (110.0, 160.0)
"""From where to where fat fades in and calcification fades out."""
SOFTNESS_VOXELS = 0.5


class LabelsUnusable(PairsUnusable):
    """Labels do not fit the scan, or their numbers have no meaning; says which and how to mend it."""


@dataclass(frozen=True, slots=True)
class Painting:
    """Both enhanced phases of one scan as drawn, and the draw."""

    phases: Mapping[str, Volume]
    enhancement: Enhancement


def paint(ncct: Volume, labels: Labels, scheme: Mapping[int, str], seed: int) -> Painting:
    """The scan as an arterial and a venous phase; ``seed`` draws level, timing, each tissue's scatter."""
    drawn = draw_enhancement(np.random.default_rng([seed, 11]), relative_size(ncct))
    spared = soft_tissue(ncct.hu)
    hu = {phase: ncct.hu.copy() for phase in PHASES[1:]}
    for name in sorted(set(scheme.values()) - STILL):
        label = np.isin(labels, [number for number, meant in scheme.items() if meant == name])
        if not label.any():
            continue
        for tissue, part in tissue_parts(name, label, ncct.geometry):
            weight = _softened(label, part) * spared
            for phase in hu:
                hu[phase] += weight * np.float32(rise(drawn, phase, tissue))
    return Painting({phase: ncct.with_array(image) for phase, image in hu.items()}, drawn)


def rise(drawn: Enhancement, phase: str, tissue: str) -> float:
    """HU that a tissue gains in a phase."""
    parts = MIXED.get(tissue, ((tissue, 1.0),))
    return sum(share * (drawn.hu[phase][name] - drawn.hu["ncct"][name]) for name, share in parts)


def relative_size(ncct: Volume) -> float:
    """The body's cross-section against a typical one, as in the phantom: a bigger body dilutes the dose."""
    body = find_body(ncct)
    pixel = np.prod([s * step for s, step in zip(ncct.geometry.spacing_mm, body.step, strict=True)][1:])
    area = float(np.median(body.mask.sum((1, 2)))) * float(pixel)
    typical = (WALL_HALF_WIDTH_MM + TYPICAL_FAT_MM) * (WALL_HALF_DEPTH_MM + TYPICAL_FAT_MM) * np.pi
    return float(np.clip(area / typical, 0.5, 2.0))


def read_labels(file: Path, grid: Geometry) -> Labels:
    """Label numbers on the (upright) scan's grid. Raises LabelsUnusable for another grid."""
    volume = read_upright(file)
    if not same_place(volume.geometry, grid):
        raise LabelsUnusable(
            f"{file}: {volume.geometry.shape} voxels, or another place, than the scan's {grid.shape}; "
            "labels have to lie on the scan's own grid"
        )
    return np.rint(volume.hu).astype(np.int64)


def read_scheme(name: str) -> dict[int, str]:
    """What numbers mean: a name of ``SCHEMES``, or a file of number, tab, tissue. Raises LabelsUnusable."""
    if name in SCHEMES:
        return SCHEMES[name]
    known = sorted({*TISSUES, *SHELLS_MM, *MIXED})
    try:
        with Path(name).open(newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.reader(stream, delimiter="\t") if row]
        scheme = {int(number): tissue.strip() for number, tissue in rows}
    except OSError as error:
        choice = ", ".join(sorted(SCHEMES))
        raise LabelsUnusable(f"labels {name!r}: neither {choice} nor a file ({error.strerror})") from None
    except ValueError as error:
        raise LabelsUnusable(f"{name}: not lines of number, tab, tissue: {error}") from None
    if unknown := sorted(set(scheme.values()) - set(known)):
        raise LabelsUnusable(f"{name}: {unknown[0]!r} is no tissue; known are {', '.join(known)}")
    return scheme


def paint_cases(
    ncct: Volume,
    labels: Labels,
    scheme: Mapping[int, str],
    out: Path,
    patient: str,
    seeds: range,
    progress: Callable[[float], None] = lambda fraction: None,
) -> int:
    """Write the scan once and its phases for every seed as cases of one patient, a study a draw.

    Returns how many labelled voxels were painted. Raises LabelsUnusable where no label means a tissue that
    enhances, ValueError for a patient's name that cannot be a folder's.
    """
    CaseRow("case", patient, "draw", "ncct")
    known = [number for number, name in scheme.items() if name not in STILL]
    painted = int(np.isin(labels, known).sum())
    if not painted:
        raise LabelsUnusable("no voxel has a label that means a tissue: another --labels-are is needed")
    source = add_case(out, ncct).name
    for number, seed in enumerate(seeds):
        study = f"draw-{seed:04d}"
        list_case(out, CaseRow(source, patient, study, "ncct", "painted"))
        for phase, volume in paint(ncct, labels, scheme, seed).phases.items():
            list_case(out, CaseRow(add_case(out, volume).name, patient, study, phase, "painted"))
        progress((number + 1) / len(seeds))
    return painted


def tissue_parts(name: str, label: Mask, grid: Geometry) -> list[tuple[str, Mask]]:
    """Tissues of a label and where in it each is."""
    if name not in SHELLS_MM:
        return [(name, label)]
    depth = _depth_mm(label, grid)
    parts, above = [], 0.0
    for deepest, tissue in SHELLS_MM[name]:
        parts.append((tissue, label & (depth > above) & (depth <= deepest)))
        above = deepest
    return parts


def _depth_mm(label: Mask, grid: Geometry) -> Float32:
    image = sitk.GetImageFromArray(label.astype(np.uint8))
    image.CopyInformation(to_image(Volume(np.zeros(grid.shape, np.float32), grid)))
    inside = sitk.SignedMaurerDistanceMap(image, True, False, True)
    return np.asarray(sitk.GetArrayFromImage(inside), np.float32) + min(grid.spacing_mm) / 2


def _softened(label: Mask, part: Mask) -> Float32:
    """1 in the part, less near the label's edge, 0 outside; parts of a label add up to it."""
    image = sitk.GetImageFromArray(label.astype(np.float32))
    soft = sitk.DiscreteGaussian(image, SOFTNESS_VOXELS**2)
    weight: Float32 = sitk.GetArrayFromImage(soft) * part
    return weight


def soft_tissue(hu: Float32) -> Float32:
    """0 in fat, gas and calcification, 1 in soft tissue, by the scan without most of its noise."""
    image = sitk.DiscreteGaussian(sitk.GetImageFromArray(hu), 1.0)
    smooth: Float32 = sitk.GetArrayFromImage(image)
    return _step(smooth, *FAT_HU) * (1 - _step(smooth, *CALCIFIED_HU))


def _step(values: Float32, low: float, high: float) -> Float32:
    share = np.clip((values - low) / (high - low), 0, 1)
    return np.asarray(share * share * (3 - 2 * share), np.float32)
