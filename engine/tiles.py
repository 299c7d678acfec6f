"""A volume in overlapping tiles of one size, and their results blended into one.

Weights are products of one-dimensional raised cosines that sum to 1 at every voxel, so that what the tiles
agree on comes through unchanged. Tiles are worked through in layers of slices; finished slices are handed on
and forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil

import numpy as np
from numpy.typing import NDArray

from engine.volume import Float32, Shape3

Translate = Callable[[Float32, Shape3], Float32]
"""``translate(tile, start)``: a tile's result, of its shape; ``start`` is its first voxel."""


@dataclass(frozen=True, slots=True)
class TiledAxis:
    """Tiles along one axis: where each begins and how much each voxel of it counts."""

    tile: int
    starts: tuple[int, ...]
    weights: tuple[Float32, ...]

    @property
    def padded(self) -> int:
        """Where the last tile ends: at least the axis' length."""
        return self.starts[-1] + self.tile


@dataclass(frozen=True, slots=True)
class TilePlan:
    """The tiles of a volume of ``shape``."""

    shape: Shape3
    axes: tuple[TiledAxis, TiledAxis, TiledAxis]

    @property
    def tile(self) -> Shape3:
        """The one tile size."""
        slices, rows, columns = (axis.tile for axis in self.axes)
        return (slices, rows, columns)

    @property
    def padded(self) -> Shape3:
        """The shape that the tiles cover together."""
        slices, rows, columns = (axis.padded for axis in self.axes)
        return (slices, rows, columns)

    @property
    def count(self) -> int:
        """How many tiles there are."""
        return len(self.axes[0].starts) * len(self.axes[1].starts) * len(self.axes[2].starts)


def plan_tiles(shape: Shape3, tile: Shape3, overlap: float, quantum: Shape3 = (1, 1, 1)) -> TilePlan:
    """Tiles over ``shape`` that share at least ``overlap`` of themselves with the next one.

    Every tile begins at a multiple of ``quantum`` (the latent factor), so that the latent cells of all tiles
    are cells of one grid. ValueError where ``tile`` is not a multiple of ``quantum``.
    """
    if any(t % q for t, q in zip(tile, quantum, strict=True)):
        raise ValueError(f"tile {tile} is not a multiple of {quantum}")
    slices, rows, columns = (
        _plan_axis(n, t, overlap, q) for n, t, q in zip(shape, tile, quantum, strict=True)
    )
    return TilePlan(shape, (slices, rows, columns))


def blend(
    x: Float32, plan: TilePlan, translate: Translate, progress: Callable[[float], None]
) -> Iterator[tuple[slice, Float32]]:
    """``(slices, result)`` from the first slice to the last: the blended tiles of ``x``.

    ``x`` has ``plan.shape``; where the tiles reach past it they see its edge repeated. One layer of tiles is
    held at a time.
    """
    depth, rows, columns = plan.axes
    layer = np.zeros((depth.tile, rows.padded, columns.padded), dtype=np.float32)
    done = 0
    for k, z in enumerate(depth.starts):
        for (i, y), (j, c) in product(enumerate(rows.starts), enumerate(columns.starts)):
            result = translate(_cut(x, (z, y, c), plan.tile), (z, y, c))
            weight = depth.weights[k][:, None, None] * rows.weights[i][:, None] * columns.weights[j]
            layer[:, y : y + rows.tile, c : c + columns.tile] += result * weight
            done += 1
            progress(done / plan.count)
        stop = min(depth.starts[k + 1] if k + 1 < len(depth.starts) else depth.padded, plan.shape[0])
        yield slice(z, stop), layer[: stop - z, : plan.shape[1], : plan.shape[2]].copy()
        layer[: depth.tile - (stop - z)] = layer[stop - z :]
        layer[depth.tile - (stop - z) :] = 0


def _plan_axis(length: int, tile: int, overlap: float, quantum: int) -> TiledAxis:
    """The fewest tiles with the overlap asked for, spread evenly."""
    padded = max(tile, ceil(length / quantum) * quantum)
    stride = max(quantum, int(tile * (1 - overlap)) // quantum * quantum)
    gaps = ceil((padded - tile) / stride)
    starts = (
        tuple(i * (padded - tile) // (gaps * quantum) * quantum for i in range(gaps + 1)) if gaps else (0,)
    )
    return TiledAxis(tile, starts, _partition(tile, starts))


def _partition(tile: int, starts: tuple[int, ...]) -> tuple[Float32, ...]:
    """One weight a tile and voxel; over the tiles that cover a voxel they sum to 1."""
    total = np.zeros(starts[-1] + tile)
    raw = []
    for k, start in enumerate(starts):
        before = starts[k - 1] + tile - start if k else 0
        after = start + tile - starts[k + 1] if k + 1 < len(starts) else 0
        raw.append(_rise(tile, before) * _rise(tile, after)[::-1])
        total[start : start + tile] += raw[-1]
    return tuple(
        (weight / total[start : start + tile]).astype(np.float32)
        for start, weight in zip(starts, raw, strict=True)
    )


def _rise(tile: int, overlap: int) -> NDArray[np.float64]:
    """sin² from nearly 0 to 1 over the first ``overlap`` voxels, then 1."""
    rise = np.ones(tile)
    rise[:overlap] = np.sin(np.pi / 2 * (np.arange(overlap) + 0.5) / max(overlap, 1)) ** 2
    return rise


def _cut(x: Float32, start: Shape3, tile: Shape3) -> Float32:
    """The tile at ``start``, its missing part filled with the volume's edge."""
    cut = x[tuple(slice(s, s + t) for s, t in zip(start, tile, strict=True))]
    missing = [(0, t - n) for t, n in zip(tile, cut.shape, strict=True)]
    if not any(after for _, after in missing):
        return np.ascontiguousarray(cut)
    return np.pad(cut, missing, mode="edge")
