"""From the scanner's grid to the model's and back, slab by slab.

The model grid has the source's directions and the bundle's spacing, and covers the box around the body.
Both grids are described in millimetres from the box's first edge along each axis, so that no direction cosine
enters the sums: voxel i of spacing s lies at (i + ½) s on either grid, and equal spacings coincide exactly.

Both ways are separable: along an axis every voxel is a weighted sum of a few, smoothing and interpolation in
one. The sums are made in one order whatever the machine, so that the bytes do not depend on its threads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import numpy as np
from numpy.typing import NDArray

from engine.volume import Float32, Geometry, Shape3, Vec3

Box = tuple[slice, slice, slice]

SAME_SPACING = 0.01
"""Spacings relatively this near each other are taken as one: voxels are copied, not interpolated."""
FWHM_PER_SIGMA = 2.355
SLAB = 4
"""Slices resampled at a time: few enough that what is summed up stays in a processor's cache."""
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


def to_model(hu: Float32, grid: Grid, threads: int = 1) -> Float32:
    """``hu`` on the source grid → the model grid, smoothed before where the model's voxels are larger."""
    if grid.coincides:
        return hu[grid.box].copy()
    deep, down, across = (
        _taps(box.stop - box.start, source, count, model, antialias_sigma_mm(source, model))
        for box, source, count, model in zip(
            grid.box, grid.source.spacing_mm, grid.model.shape, grid.model.spacing_mm, strict=True
        )
    )
    source, result = hu[grid.box], np.empty(grid.model.shape, dtype=np.float32)

    def resample(start: int, stop: int) -> None:
        slab = deep.along_slices(source, start, stop)
        result[start:stop] = across.in_plane(down.in_plane(slab, 1), 2)

    slab_by_slab(resample, len(result), SLAB, threads)
    return result


def to_source(values: Float32, grid: Grid, start: int, stop: int) -> Float32:
    """``values`` on the model grid → slices ``start:stop`` of the box on the source grid, linearly."""
    if grid.coincides:
        return values[start:stop]
    deep, down, across = (
        _taps(count, model, wanted, source, 0.0)
        for count, model, wanted, source in zip(
            values.shape, grid.model.spacing_mm, grid.box_shape, grid.source.spacing_mm, strict=True
        )
    )
    return down.in_plane(across.in_plane(deep.along_slices(values, start, stop), 2), 1)


def slab_by_slab(work: Callable[[int, int], None], slices: int, slab: int, threads: int) -> None:
    """``work(start, stop)`` for every slab of ``slices``, in any order, by as many threads."""
    starts = range(0, slices, slab)
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda start: work(start, min(start + slab, slices)), starts):
            pass


def antialias_sigma_mm(source_mm: float, model_mm: float) -> float:
    """σ of the Gaussian that widens a voxel of ``source_mm`` to ``model_mm`` (full width at half maximum)."""
    return float(max(model_mm**2 - source_mm**2, 0.0) ** 0.5) / FWHM_PER_SIGMA


@dataclass(frozen=True, slots=True)
class _Taps:
    """What is summed up along an axis: ``weight[t, i]`` times voxel ``index[t, i]``, over t, is voxel i."""

    index: NDArray[np.int64]
    weight: Float32

    def along_slices(self, values: Float32, start: int, stop: int) -> Float32:
        """The sums ``start:stop`` along the first axis, a slice at a time; ``values`` may be a view."""
        columns = zip(self.index.T[start:stop], self.weight.T[start:stop], strict=True)
        return np.stack([_weighted(values, index, weight) for index, weight in columns])

    def in_plane(self, values: Float32, axis: int) -> Float32:
        """The sums along another axis."""
        shape = [1] * values.ndim
        shape[axis] = -1
        total: Float32 = np.take(values, self.index[0], axis=axis)
        total *= self.weight[0].reshape(shape)
        for index, weight in zip(self.index[1:], self.weight[1:], strict=True):
            tap = np.take(values, index, axis=axis)
            tap *= weight.reshape(shape)
            total += tap
        return total


def _weighted(values: Float32, index: NDArray[np.int64], weight: Float32) -> Float32:
    """Σ weight[t] · values[index[t]]."""
    total: Float32 = values[index[0]] * weight[0]
    tap = np.empty_like(total)
    for i, w in zip(index[1:], weight[1:], strict=True):
        total += np.multiply(values[i], w, out=tap)
    return total


@lru_cache(maxsize=32)
def _taps(count: int, spacing_mm: float, wanted: int, wanted_mm: float, sigma_mm: float) -> _Taps:
    """From ``count`` voxels, smoothed by a Gaussian, linearly to ``wanted`` ones.

    The first edges of both coincide; past the ends the last voxel is repeated. Weights sum to 1.
    """
    position = np.clip((np.arange(wanted) + 0.5) * wanted_mm / spacing_mm - 0.5, 0, count - 1)
    below = np.floor(position).astype(np.int64)
    share = position - below
    reach = ceil(SIGMAS * sigma_mm / spacing_mm)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * spacing_mm / (sigma_mm or 1.0)) ** 2)
    kernel = np.pad(kernel / kernel.sum(), 1)
    offsets = np.arange(-reach, reach + 2)[:, None]
    weight = kernel[1:, None] * (1 - share) + kernel[:-1, None] * share
    return _Taps(np.clip(below + offsets, 0, count - 1), weight.astype(np.float32))


def _three(values: tuple[float, ...]) -> Vec3:
    a, b, c = values
    return (a, b, c)


def _three_counts(values: tuple[int, ...]) -> Shape3:
    a, b, c = values
    return (a, b, c)
