"""From the scanner's grid to the model's and back, slab by slab, with SimpleITK.

The model grid has the source's directions and the bundle's spacing, and covers the box around the body.
Both grids are described in millimetres from the box's first edge along each axis, so that no direction cosine
enters the sums: voxel i of spacing s lies at (i + ½) s on either grid, and equal spacings coincide exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its usual name

from engine.volume import Float32, Geometry, Shape3, Vec3

Box = tuple[slice, slice, slice]

SAME_SPACING = 0.01
"""Spacings relatively this near each other are taken as one: voxels are copied, not interpolated."""
FWHM_PER_SIGMA = 2.355
SLAB = 32
"""Slices resampled at a time: bounds the memory of a step."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A box of the source's voxels and the model's grid over it."""

    source: Geometry
    box: Box
    model: Geometry

    @property
    def box_shape(self) -> Shape3:
        """Source voxels in the box."""
        slices, rows, columns = (s.stop - s.start for s in self.box)
        return (slices, rows, columns)

    @property
    def coincides(self) -> bool:
        """Whether the two grids have the same voxels."""
        return self.model.spacing_mm == self.source.spacing_mm


def whole(geometry: Geometry) -> Box:
    """The box that is all of the volume."""
    slices, rows, columns = (slice(0, n) for n in geometry.shape)
    return (slices, rows, columns)


def model_grid(source: Geometry, box: Box, spacing_mm: Vec3) -> Grid:
    """The grid of ``spacing_mm`` over ``box``, starting at its first edge and reaching its last."""
    spacing = tuple(
        s if abs(s / m - 1) < SAME_SPACING else m for s, m in zip(source.spacing_mm, spacing_mm, strict=True)
    )
    counts = [b.stop - b.start for b in box]
    extent = [n * s for n, s in zip(counts, source.spacing_mm, strict=True)]
    shape = tuple(ceil(e / m - 1e-6) for e, m in zip(extent, spacing, strict=True))
    first = tuple(b.start - 0.5 + m / s / 2 for b, m, s in zip(box, spacing, source.spacing_mm, strict=True))
    model = Geometry(
        shape=_three_counts(shape),
        spacing_mm=_three(spacing),
        origin_mm=source.position_of(_three(first)),
        directions=source.directions,
        frame_of_reference_uid=source.frame_of_reference_uid,
    )
    return Grid(source=source, box=box, model=model)


def to_model(hu: Float32, grid: Grid) -> Float32:
    """``hu`` on the source grid → the model grid, smoothed before where the model's voxels are larger."""
    if grid.coincides:
        return hu[grid.box].copy()
    result = np.empty(grid.model.shape, dtype=np.float32)
    for start in range(0, len(result), SLAB):
        stop = min(start + SLAB, len(result))
        result[start:stop] = _slab_to_model(hu, grid, start, stop)
    return result


def to_source(values: Float32, grid: Grid, start: int, stop: int) -> Float32:
    """``values`` on the model grid → slices ``start:stop`` of the box on the source grid, linearly."""
    if grid.coincides:
        return values[start:stop]
    source_z, model_z = grid.source.spacing_mm[0], grid.model.spacing_mm[0]
    low = max(0, floor((start + 0.5) * source_z / model_z - 0.5) - 1)
    high = min(len(values), ceil((stop + 0.5) * source_z / model_z) + 1)
    image = _image(values[low:high], grid.model.spacing_mm, low)
    return _resample(image, (stop - start, *grid.box_shape[1:]), grid.source.spacing_mm, start)


def antialias_sigma_mm(source_mm: float, model_mm: float) -> float:
    """σ of the Gaussian that widens a voxel of ``source_mm`` to ``model_mm`` (full width at half maximum)."""
    return float(max(model_mm**2 - source_mm**2, 0.0) ** 0.5) / FWHM_PER_SIGMA


def _slab_to_model(hu: Float32, grid: Grid, start: int, stop: int) -> Float32:
    source, model = grid.source.spacing_mm, grid.model.spacing_mm
    sigmas = [antialias_sigma_mm(s, m) for s, m in zip(source, model, strict=True)]
    reach = 4 * sigmas[0] + source[0]
    low = max(0, floor(((start + 0.5) * model[0] - reach) / source[0] - 0.5))
    high = min(grid.box_shape[0], ceil(((stop - 0.5) * model[0] + reach) / source[0] + 0.5))
    first = grid.box[0].start
    image = _image(hu[first + low : first + high, grid.box[1], grid.box[2]], source, low)
    for direction, (sigma, spacing) in enumerate(zip(sigmas[::-1], source[::-1], strict=True)):
        if sigma > 0.2 * spacing and image.GetSize()[direction] >= 4:  # ITK's recursion needs four samples
            image = sitk.RecursiveGaussian(
                image, sigma, False, sitk.RecursiveGaussianImageFilter.ZeroOrder, direction
            )
    return _resample(image, (stop - start, *grid.model.shape[1:]), model, start)


def _image(values: Float32, spacing_mm: Vec3, first_slice: int) -> sitk.Image:
    """An ITK image in the box's millimetres; ``values`` begin at ``first_slice`` of their grid."""
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(spacing_mm[::-1])
    image.SetOrigin(_first_voxel_mm(spacing_mm, first_slice))
    return image


def _resample(image: sitk.Image, shape: Shape3, spacing_mm: Vec3, first_slice: int) -> Float32:
    resampled = sitk.Resample(
        image, shape[::-1], sitk.Transform(), sitk.sitkLinear, _first_voxel_mm(spacing_mm, first_slice),
        spacing_mm[::-1], image.GetDirection(), 0.0, sitk.sitkFloat32, True,
    )  # fmt: skip
    array: Float32 = sitk.GetArrayFromImage(resampled)
    return array


def _first_voxel_mm(spacing_mm: Vec3, first_slice: int) -> Vec3:
    """(x, y, z) of the first voxel's centre."""
    return (spacing_mm[2] / 2, spacing_mm[1] / 2, (first_slice + 0.5) * spacing_mm[0])


def _three(values: tuple[float, ...]) -> Vec3:
    a, b, c = values
    return (a, b, c)


def _three_counts(values: tuple[int, ...]) -> Shape3:
    a, b, c = values
    return (a, b, c)
