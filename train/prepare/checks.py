"""What is measured on a registered pair, and which pairs are refused.

Agreement is Cohen's κ of gas, fat and all denser tissue, deep in the body: three kinds that contrast does not
change into each other, where another patient, or a mirrored one, differs however well the skin fits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its usual name
from numpy.typing import NDArray

from engine.errors import VolumeUnsupported
from engine.volume import Float32, Geometry, Volume
from train.prepare.config import PrepareConfig
from train.prepare.register import (
    Alignment,
    Mask,
    Scans,
    body_mask,
    covered,
    displacement,
    distance_mm,
    moved,
)

KINDS_HU = (-300.0, -40.0)
"""Gas below, fat between, all else above."""
DEEP_MM = 25.0
"""Depth under the skin where agreement is measured."""
MI_HU, MI_BINS = (-200.0, 300.0), 32
ENHANCED_PERCENTILE = 98.0
SOFT_HU = (-20.0, 150.0)

REASONS: dict[str, str] = {
    "OVERLAP": "the phase shows too little of the body that the NCCT shows",
    "OUTLINE": "after the rigid step the bodies' outlines differ: another patient, or another posture",
    "ANATOMY": "gas, fat and soft tissue deep in the body do not agree: another patient, or turned",
    "MI-GAIN": "registration lowered the mutual information",
    "FIELD": "the deformation is longer than breathing makes it",
    "FOLDED": "the deformation folds: its Jacobian determinant is not above the limit everywhere in the body",
    "NOT-ENHANCED": "the phase is hardly brighter than the NCCT: mislabelled, or exchanged",
}
"""Why a registered pair is refused."""


@dataclass(frozen=True, slots=True)
class Measures:
    """One pair's figures; the fields are those of the QC page, units in the names."""

    overlap: float
    outline_dice: float
    agreement_before: float
    agreement_rigid: float
    agreement_after: float
    mi_before: float
    mi_after: float
    field_p99_mm: float
    field_max_mm: float
    jacobian_min: float
    jacobian_max: float
    enhancement_hu: float

    @property
    def mi_gain(self) -> float:
        """Mutual information gained, as a share of what there was."""
        return (self.mi_after - self.mi_before) / max(self.mi_before, 1e-6)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a pair, or a case, is not used."""

    code: str
    reason: str


def measure(pair: Scans, alignment: Alignment) -> Measures:
    """All figures of a pair, on its registration grid."""
    grid, fixed = pair.fixed.geometry, pair.fixed.hu
    shown = covered(pair.moving.geometry, alignment.whole, grid)
    deep = pair.body & shown & (distance_mm(~pair.body, grid) > DEEP_MM)
    seen = pair.body & shown
    before, rigid, after = (
        moved(pair.moving, transform, grid)
        for transform in (sitk.Transform(), alignment.rigid, alignment.whole)
    )
    stray = displacement(alignment.whole, grid) - displacement(alignment.rigid, grid)
    length = np.linalg.norm(stray, axis=-1)[pair.body]
    determinant = jacobian_determinant(stray, grid)[pair.body]
    return Measures(
        overlap=float(seen.sum() / max(pair.body.sum(), 1)),
        outline_dice=_outline(pair, rigid, shown),
        agreement_before=agreement(fixed, before, deep),
        agreement_rigid=agreement(fixed, rigid, deep),
        agreement_after=agreement(fixed, after, deep),
        mi_before=mutual_information(fixed, before, seen),
        mi_after=mutual_information(fixed, after, seen),
        field_p99_mm=float(np.percentile(length, 99)),
        field_max_mm=float(length.max()),
        jacobian_min=float(determinant.min()),
        jacobian_max=float(determinant.max()),
        enhancement_hu=_enhancement(fixed, after, deep),
    )


def judge(measures: Measures, limits: PrepareConfig) -> Refusal | None:
    """The first reason to refuse the pair, in the order of ``REASONS``; None is a pair to train on."""
    m = measures
    checks = (
        ("OVERLAP", m.overlap >= limits.min_overlap, f"{m.overlap:.0%}, at least {limits.min_overlap:.0%}"),
        (
            "OUTLINE",
            m.outline_dice >= limits.min_outline_dice,
            f"Dice {m.outline_dice:.3f}, at least {limits.min_outline_dice:g}",
        ),
        (
            "ANATOMY",
            m.agreement_after >= limits.min_agreement
            and m.agreement_rigid >= limits.min_agreement_rigid,
            f"κ {m.agreement_rigid:.2f} rigid, {m.agreement_after:.2f} deformed; at least "
            f"{limits.min_agreement_rigid:g} and {limits.min_agreement:g}",
        ),
        ("MI-GAIN", m.mi_gain >= limits.min_mi_gain, f"{m.mi_gain:+.1%}, at least {limits.min_mi_gain:+.1%}"),
        (
            "FIELD",
            m.field_p99_mm <= limits.max_field_mm,
            f"{m.field_p99_mm:.1f} mm (99th percentile), at most {limits.max_field_mm:g} mm",
        ),
        (
            "FOLDED",
            m.jacobian_min > limits.min_jacobian,
            f"lowest {m.jacobian_min:.2f}, above {limits.min_jacobian:g} is asked for",
        ),
        (
            "NOT-ENHANCED",
            m.enhancement_hu >= limits.min_enhancement_hu,
            f"{m.enhancement_hu:.0f} HU, at least {limits.min_enhancement_hu:g} HU",
        ),
    )  # fmt: skip
    return next((Refusal(code, f"{REASONS[code]} ({fact})") for code, held, fact in checks if not held), None)


def agreement(one: Float32, other: Float32, where: Mask) -> float:
    """Cohen's κ of gas, fat and denser tissue; 1 is the same everywhere, 0 is chance."""
    if not where.any():
        return 0.0
    kinds = [np.digitize(image[where], KINDS_HU) for image in (one, other)]
    table = np.histogram2d(kinds[0], kinds[1], bins=3, range=((0, 3), (0, 3)))[0] / where.sum()
    chance = float((table.sum(0) * table.sum(1)).sum())
    return float((np.trace(table) - chance) / (1 - chance)) if chance < 1 else 1.0


def mutual_information(one: Float32, other: Float32, where: Mask) -> float:
    """Of the joint histogram of 32 bins over [−200, 300] HU, in nats."""
    low, high = MI_HU
    values = [np.clip(image[where], low, high) for image in (one, other)]
    joint = np.histogram2d(*values, bins=MI_BINS, range=(MI_HU, MI_HU))[0] / max(int(where.sum()), 1)
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    some = joint > 0
    return float((joint[some] * np.log(joint[some] / apart[some])).sum())


def jacobian_determinant(field: NDArray[np.float64], grid: Geometry) -> NDArray[np.float64]:
    """det(I + ∂u/∂x) of a displacement field (slice, row, column, xyz) in millimetres; ≤ 0 is a fold."""
    by_axis = [np.gradient(field, spacing, axis=axis) for axis, spacing in enumerate(grid.spacing_mm)]
    along = np.stack(by_axis, axis=-1)  # [..., xyz of u, axis]
    gradient = along @ grid.direction_matrix.T
    determinant: NDArray[np.float64] = np.linalg.det(np.eye(3) + gradient)
    return determinant


def _outline(pair: Scans, rigid: Float32, shown: Mask) -> float:
    try:
        other = body_mask(Volume(rigid, pair.fixed.geometry)) & shown
    except VolumeUnsupported:
        return 0.0
    body = pair.body & shown
    return float(2 * (body & other).sum() / max(body.sum() + other.sum(), 1))


def _enhancement(fixed: Float32, after: Float32, deep: Mask) -> float:
    soft = deep & (fixed > SOFT_HU[0]) & (fixed < SOFT_HU[1]) & (after > SOFT_HU[0])
    return float(np.percentile((after - fixed)[soft], ENHANCED_PERCENTILE)) if soft.any() else 0.0
