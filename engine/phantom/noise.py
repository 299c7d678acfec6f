"""Scanner noise: band-pass grain as filtered back-projection leaves it, decided by seed and voxel position.

White numbers are drawn in small blocks, each with its own seed, and passed through fixed separable kernels,
so any box of the grid has the bits of the whole. In the plane the kernel is a difference of Gaussians (the
power spectrum rises from near zero, peaks and falls); along z neighbours share some noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from engine.volume import Float32, Vec3

BLOCK = 64  # rows and columns of a block of white noise
INDEX_OFFSET = 1 << 20  # keeps seeds of indices before the grid's first voxel positive
FINE_MM, COARSE_MM = 0.65, 1.9  # SDs of the two Gaussians
COARSE_SHARE = 0.85  # 1 would leave no noise at all at frequency zero
ALONG_Z_MM = 1.2

Span = tuple[int, int]


def noise_field(seed: tuple[int, ...], box: tuple[Span, Span, Span], spacing_mm: Vec3) -> Float32:
    """Unit-SD noise for the voxels of ``box`` (absolute (first, end) along slice, row, column)."""
    planes, (y0, y1), (x0, x1) = box
    fine, coarse = _plane_kernels(spacing_mm)
    along = _gaussian(ALONG_Z_MM / spacing_mm[0])
    reach, halo = along.size // 2, coarse.size // 2
    field = np.zeros((planes[1] - planes[0], y1 - y0, x1 - x0), np.float32)
    gain = 1 / _plane_norm(fine, coarse) / float(np.sqrt((along**2).sum()))
    for z in range(planes[0] - reach, planes[1] + reach):
        white = _white(seed, z, (y0 - halo, y1 + halo), (x0 - halo, x1 + halo))
        grain = _band_pass(white, fine, coarse) * gain
        for tap, weight in enumerate(along):
            target = z - planes[0] + tap - reach
            if 0 <= target < field.shape[0]:
                field[target] += grain * float(weight)
    return field


def _gaussian(sigma: float) -> Float32:
    sigma = max(sigma, 0.3)
    radius = max(1, int(np.ceil(2.5 * sigma)))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return np.asarray(taps / taps.sum(), np.float32)


def _plane_kernels(spacing_mm: Vec3) -> tuple[Float32, Float32]:
    """Fine and coarse Gaussian, padded to one length; coarse grids bound their widths below in voxels."""
    spacing = float(np.sqrt(spacing_mm[1] * spacing_mm[2]))
    fine, coarse = _gaussian(max(FINE_MM / spacing, 0.35)), _gaussian(max(COARSE_MM / spacing, 0.9))
    return np.pad(fine, (coarse.size - fine.size) // 2), coarse


def _plane_norm(fine: Float32, coarse: Float32) -> float:
    kernel = np.outer(fine, fine) - COARSE_SHARE * np.outer(coarse, coarse)
    return float(np.sqrt((kernel.astype(np.float64) ** 2).sum()))


def _band_pass(white: Float32, fine: Float32, coarse: Float32) -> Float32:
    return np.asarray(_smooth(white, fine) - COARSE_SHARE * _smooth(white, coarse), np.float32)


def _smooth(plane: Float32, taps: Float32) -> Float32:
    """Separable convolution that keeps only what the plane's halo supports."""
    rows, columns = plane.shape[0] - taps.size + 1, plane.shape[1] - taps.size + 1
    down = _weighted_sum(plane[i : i + rows] * w for i, w in _taps(taps))
    return _weighted_sum(down[:, i : i + columns] * w for i, w in _taps(taps))


def _taps(taps: Float32) -> Iterator[tuple[int, float]]:
    return ((i, float(w)) for i, w in enumerate(taps) if w)


def _weighted_sum(terms: Iterator[Float32]) -> Float32:
    total = next(terms)
    for term in terms:
        total += term
    return total


def _white(seed: tuple[int, ...], z: int, rows: Span, columns: Span) -> Float32:
    """Standard normal numbers for part of slice ``z``, the same whatever part is asked for."""
    plane = np.empty((rows[1] - rows[0], columns[1] - columns[0]), np.float32)
    for by, bx in product(_blocks(rows), _blocks(columns)):
        words = (*seed, z + INDEX_OFFSET, by + INDEX_OFFSET, bx + INDEX_OFFSET)
        block = np.random.Generator(np.random.SFC64(words)).standard_normal((BLOCK, BLOCK), np.float32)
        (ys, yd), (xs, xd) = _overlap(by, rows), _overlap(bx, columns)
        plane[yd, xd] = block[ys, xs]
    return plane


def _blocks(span: Span) -> range:
    return range(span[0] // BLOCK, (span[1] - 1) // BLOCK + 1)


def _overlap(block: int, span: Span) -> tuple[slice, slice]:
    """Where a block meets a span: the slice within the block, and within the span."""
    first, end = max(block * BLOCK, span[0]), min((block + 1) * BLOCK, span[1])
    return slice(first - block * BLOCK, end - block * BLOCK), slice(first - span[0], end - span[0])
