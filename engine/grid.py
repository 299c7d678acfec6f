"""From the scanner's grid to the model's and back, slab by slab.

The model grid has the source's directions and the bundle's spacing, and covers the box around the body.
Both grids are described in millimetres from the box's first edge along each axis, so that no direction cosine
enters the sums: voxel i of spacing s lies at (i + ½) s on either grid, and equal spacings coincide exactly.

Both ways are separable: what is done along an axis is one matrix, smoothing and interpolation together, and
products with matrices are what processors do best.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import numpy as np

from engine.volume import Float32, Geometry, Shape3, Vec3

Box = tuple[slice, slice, slice]

SAME_SPACING = 0.01
"""Spacings relatively this near each other are taken as one: voxels are copied, not interpolated."""
FWHM_PER_SIGMA = 2.355
SLAB = 16
"""Slices resampled at a time: bounds the memory of a step and keeps most of it in a processor's cache."""
SIGMAS = 4
"""How far the smoothing kernel reaches."""


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
    deep, down, across = (
        _matrix(box.stop - box.start, source, count, model, antialias_sigma_mm(source, model))
        for box, source, count, model in zip(
            grid.box, grid.source.spacing_mm, grid.model.shape, grid.model.spacing_mm, strict=True
        )
    )
    result = np.empty(grid.model.shape, dtype=np.float32)
    for start in range(0, len(result), SLAB):
        slab = _through_slices(deep[start : start + SLAB], hu[grid.box[0]])
        result[start : start + SLAB] = _in_plane(down, slab[:, grid.box[1], grid.box[2]], across)
    return result


def to_source(values: Float32, grid: Grid, start: int, stop: int) -> Float32:
    """``values`` on the model grid → slices ``start:stop`` of the box on the source grid, linearly."""
    if grid.coincides:
        return values[start:stop]
    deep, down, across = (
        _matrix(count, model, wanted, source, 0.0)
        for count, model, wanted, source in zip(
            values.shape, grid.model.spacing_mm, grid.box_shape, grid.source.spacing_mm, strict=True
        )
    )
    return _in_plane(down, _through_slices(deep[start:stop], values), across)


def antialias_sigma_mm(source_mm: float, model_mm: float) -> float:
    """σ of the Gaussian that widens a voxel of ``source_mm`` to ``model_mm`` (full width at half maximum)."""
    return float(max(model_mm**2 - source_mm**2, 0.0) ** 0.5) / FWHM_PER_SIGMA


@lru_cache(maxsize=32)
def _matrix(count: int, spacing_mm: float, wanted: int, wanted_mm: float, sigma_mm: float) -> Float32:
    """(wanted, count): ``count`` voxels smoothed by a Gaussian, then linearly at those of ``wanted_mm``.

    The first edges of both coincide; past the ends the last voxel is repeated. Every row sums to 1.
    """
    position = (np.arange(wanted) + 0.5) * wanted_mm / spacing_mm - 0.5
    below = np.floor(position).astype(np.int64)
    reach = ceil(SIGMAS * sigma_mm / spacing_mm)
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets * spacing_mm / (sigma_mm or 1.0)) ** 2)
    kernel /= kernel.sum()
    matrix = np.zeros((wanted, count))
    for at, share in ((below, 1 - (position - below)), (below + 1, position - below)):
        taps = np.clip(np.clip(at, 0, count - 1)[:, None] + offsets, 0, count - 1)
        np.add.at(matrix, (np.arange(wanted)[:, None], taps), share[:, None] * kernel)
    return matrix.astype(np.float32)


def _through_slices(part: Float32, values: Float32) -> Float32:
    """part · values along the slices, of which only those are touched that ``part`` looks at."""
    columns = np.flatnonzero(part.any(axis=0))
    used = slice(int(columns[0]), int(columns[-1]) + 1)
    flat = values[used].reshape(used.stop - used.start, -1)
    mixed: Float32 = (part[:, used] @ flat).reshape(len(part), *values.shape[1:])
    return mixed


def _in_plane(down: Float32, slab: Float32, across: Float32) -> Float32:
    """Both matrices on every slice, the one first that leaves less to the other."""
    if len(across) < slab.shape[2]:
        return np.matmul(down, np.matmul(slab, across.T))
    return np.matmul(np.matmul(down, slab), across.T)


def _three(values: tuple[float, ...]) -> Vec3:
    a, b, c = values
    return (a, b, c)


def _three_counts(values: tuple[int, ...]) -> Shape3:
    a, b, c = values
    return (a, b, c)
