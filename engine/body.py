"""Where the patient is: the box worth computing, and the mask outside which nothing is changed."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its usual name
from numpy.typing import NDArray

from engine.errors import VolumeUnsupported
from engine.grid import Box, Grid
from engine.volume import Float32, Shape3, Vec3, Volume

BODY_HU = -300.0
"""Between air or foam and the skin."""
COARSE_MM = 4.0
"""Grid on which the body is looked for."""
MARGIN_MM = 10.0
"""Air kept around the body."""
AROUND_MM = 8.0
"""Further than composition looks around a voxel."""


@dataclass(frozen=True, slots=True)
class Body:
    """The patient in a volume."""

    box: Box
    """Source voxels around the body, a margin included."""
    mask: NDArray[np.bool_]
    """The body, lungs and gas with it, two samples more in the plane and one along the slices, at every
    ``step``-th source voxel.
    """
    step: tuple[int, int, int]


def find_body(volume: Volume) -> Body:
    """The largest thing denser than :data:`BODY_HU`: not the table, not the air.

    VolumeUnsupported where there is nothing that dense.
    """
    spacing = volume.geometry.spacing_mm
    steps = [max(1, int(COARSE_MM / s)) for s in spacing]
    coarse = np.ascontiguousarray(volume.hu[:: steps[0], :: steps[1], :: steps[2]])
    largest = _largest(coarse, [step * s for step, s in zip(steps, spacing, strict=True)])
    found = [np.flatnonzero(largest.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    if not found[0].size:
        raise VolumeUnsupported(
            f"nothing in the volume is denser than {BODY_HU:g} HU: there is no body in it"
        )
    slices, rows, columns = (
        _widen(indices, step, s, n)
        for indices, step, s, n in zip(found, steps, spacing, volume.geometry.shape, strict=True)
    )
    return Body((slices, rows, columns), _wider(filled(largest)), (steps[0], steps[1], steps[2]))


def holds_body(body: Body, grid: Grid, start: Shape3, shape: Shape3) -> bool:
    """Whether the body reaches into a part of the model grid, or within :data:`AROUND_MM` of it."""
    ranges = []
    for first, count, box, model, source, step, held in zip(
        start, shape, grid.box, grid.model.spacing_mm, grid.source.spacing_mm, body.step, body.mask.shape,
        strict=True,
    ):  # fmt: skip
        sample, edge = source * step, box.start * source
        low = floor((edge + first * model - AROUND_MM) / sample) - 1
        high = ceil((edge + (first + count) * model + AROUND_MM) / sample) + 1
        ranges.append(slice(min(max(low, 0), held - 1), max(high, 1)))
    return bool(body.mask[tuple(ranges)].any())


def body_weight(body: Body, grid: Grid, start: int, stop: int) -> Float32:
    """Slices ``start:stop`` of the model grid: 1 in the body, falling to 0 within 3 coarse samples of it in
    the plane, 2 along the slices.
    """
    source, model = grid.source.spacing_mm, grid.model.spacing_mm
    image = sitk.GetImageFromArray(body.mask.astype(np.float32))
    image.SetSpacing([s * step for s, step in zip(source, body.step, strict=True)][::-1])
    image.SetOrigin([(0.5 - b.start) * s for b, s in zip(grid.box, source, strict=True)][::-1])
    size = (*grid.model.shape[:0:-1], stop - start)
    first: Vec3 = (model[2] / 2, model[1] / 2, (start + 0.5) * model[0])
    resampled = sitk.Resample(
        image, size, sitk.Transform(), sitk.sitkLinear, first, model[::-1], image.GetDirection(), 0.0,
        sitk.sitkFloat32, True,
    )  # fmt: skip
    weight: Float32 = sitk.GetArrayFromImage(resampled)
    return weight


def _largest(coarse: Float32, spacing_mm: list[float]) -> NDArray[np.bool_]:
    """The largest dense component, opened by a voxel in the plane so that the table falls off."""
    image = sitk.GetImageFromArray(coarse)
    image.SetSpacing(spacing_mm[::-1])
    smooth = sitk.DiscreteGaussian(image, COARSE_MM**2 / 4)
    dense = sitk.BinaryMorphologicalOpening(smooth > BODY_HU, [1, 1, 0])
    labels = sitk.RelabelComponent(sitk.ConnectedComponent(dense), sortByObjectSize=True)
    largest: NDArray[np.bool_] = sitk.GetArrayFromImage(labels) == 1
    return largest


def filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The holes of every slice filled: between solid planes a hole of a slice is one of the whole stack."""
    stack = np.ones((2 * len(mask) + 1, *mask.shape[1:]), dtype=np.uint8)
    stack[1::2] = mask
    whole: NDArray[np.bool_] = sitk.GetArrayFromImage(sitk.BinaryFillhole(sitk.GetImageFromArray(stack))) == 1
    return whole[1::2]


def _wider(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Two samples more in the plane, for the skin and what the opening cut off, and one along the slices: the
    body ends anywhere before the first sample without it.
    """
    image = sitk.BinaryDilate(sitk.GetImageFromArray(mask.astype(np.uint8)), [2, 2, 1])
    wide: NDArray[np.bool_] = sitk.GetArrayFromImage(image) == 1
    return wide


def _widen(indices: NDArray[np.intp], step: int, spacing_mm: float, count: int) -> slice:
    """Coarse indices → a range of source voxels with the margin around it, inside the volume."""
    margin = ceil(MARGIN_MM / spacing_mm)
    start = max(0, int(indices[0]) * step - margin)
    return slice(start, min(count, (int(indices[-1]) + 1) * step + margin))
