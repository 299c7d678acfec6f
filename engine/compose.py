"""The model's result joins the source: what the model adds, and where the source must stay as it is.

On the model grid the residual is Δ = D(ẑ) − x, with x the source cut off at the window. Of it,

    Δ_w = (1 − w) Δ + w GF(Δ),   w = ``composition.detail``,

is added to the source; GF is the guided filter of He, Sun and Tang (PAMI 2013, eq. 5, 6 and 8) with D(ẑ) as
guide. It smooths Δ where D(ẑ) is flat, which takes −(noise of x) out of Δ, so that w = 1 keeps the source's
texture, and follows D(ẑ) where that has an edge, so that enhanced vessels stay sharp. w = 0 gives D(ẑ) at the
frequencies the model grid can carry. On the source grid, out = source + g(source) Δ_w, where g falls to 0 at
both ends of the window: air, and bone above it, are the source's own values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice, repeat

import numpy as np

from engine.volume import Float32, Shape3, Vec3

RADIUS_MM = 2.0
"""Half the width of the guided filter's box: wide enough for grain, narrower than a vein in the liver."""
EPSILON_HU2 = 25.0
"""Variance of D(ẑ) in a box that counts as flat: (5 HU)², above a decoder's texture, below an edge."""


def detail_residual(residual: Float32, guide: Float32, detail: float, spacing_mm: Vec3) -> Float32:
    """Δ_w, written over ``residual`` (Δ); ``guide`` is D(ẑ) on the same grid, HU both. ``detail`` is w."""
    if detail == 0:
        return residual
    slices, rows, columns = (max(1, round(RADIUS_MM / s)) for s in spacing_mm)
    filtered = guided_filter(residual, guide, (slices, rows, columns), EPSILON_HU2)
    for number, plane in enumerate(filtered):
        residual[number] = (1 - detail) * residual[number] + detail * plane
    return residual


def guided_filter(p: Float32, guide: Float32, radius: Shape3, epsilon: float) -> Iterator[Float32]:
    """GF(p), slice by slice: a = cov(I, p)/(var(I) + ε), b = p̄ − a Ī over boxes of 2·radius + 1; q = ā I + b̄.

    Means are subtracted first: in exact numbers it changes nothing, in float32 it keeps a constant p exact.
    A slice of p is not looked at any more once that of q is there, so that it may be written over.
    """
    middle_p, middle_i = (np.float32(each.mean(dtype=np.float64)) for each in (p, guide))
    means = _box_means(_products(p, guide, middle_p, middle_i), radius)
    for i, (a, b) in zip(guide, _box_means(_lines(means, epsilon), radius), strict=True):
        yield a * (i - middle_i) + (b + middle_p)


def _products(p: Float32, guide: Float32, middle_p: np.float32, middle_i: np.float32) -> Iterator[Float32]:
    """p, I, I p and I² of every slice, as one array."""
    for p_slice, i_slice in zip(p, guide, strict=True):
        each = np.empty((4, *p_slice.shape), dtype=np.float32)
        np.subtract(p_slice, middle_p, out=each[0])
        np.subtract(i_slice, middle_i, out=each[1])
        np.multiply(each[1], each[:2], out=each[2:])
        yield each


def _lines(means: Iterable[Float32], epsilon: float) -> Iterator[Float32]:
    """a and b of every slice, as one array, of the means of what ``_products`` gives."""
    for mean_p, mean_i, mean_ip, mean_ii in means:
        variance = np.maximum(mean_ii - mean_i * mean_i, 0)
        a = (mean_ip - mean_i * mean_p) / (variance + np.float32(epsilon))
        yield np.stack([a, mean_p - a * mean_i])


def box_mean(values: Float32, radius: Shape3) -> Float32:
    """Mean over 2·radius + 1 voxels along each axis, the edge repeated."""
    return np.stack(list(_box_means(iter(values), radius)))


def _box_means(planes: Iterable[Float32], radius: Shape3) -> Iterator[Float32]:
    """Means over boxes, of slices as they come; as many are held as a box has."""
    slices, rows, columns = radius
    window: deque[Float32] = deque(maxlen=2 * slices + 1)
    for plane in _ends_repeated((_mean_along(_mean_along(p, -1, columns), -2, rows) for p in planes), slices):
        window.append(plane)
        if len(window) == window.maxlen:
            total = window[0].copy()
            for other in islice(window, 1, None):
                total += other
            total *= np.float32(1 / len(window))
            yield total


def _ends_repeated(planes: Iterable[Float32], count: int) -> Iterator[Float32]:
    for number, plane in enumerate(planes):
        yield from repeat(plane, 1 if number else count + 1)
    yield from repeat(plane, count)


def _mean_along(values: Float32, axis: int, r: int) -> Float32:
    """Mean over 2r + 1 voxels along one axis, the edge repeated."""
    total = values.copy()
    t, v = np.moveaxis(total, axis, 0), np.moveaxis(values, axis, 0)
    for shift in range(1, r + 1):
        k = min(shift, len(v))
        t[:-k] += v[k:]
        t[-k:] += v[-1]
        t[k:] += v[:-k]
        t[:k] += v[0]
    total *= np.float32(1 / (2 * r + 1))
    return total


def add_within_window(
    source: Float32, residual: Float32, window_hu: tuple[float, float], edge_hu: float
) -> Float32:
    """source + g(source) Δ_w, written over ``residual``; both on the source grid, HU."""
    residual *= window_weight(source, window_hu, edge_hu)
    residual += source
    return residual


def window_weight(source: Float32, window_hu: tuple[float, float], edge_hu: float) -> Float32:
    """g: 0 outside the window, 1 inside it by ``edge_hu`` and more, 3u² − 2u³ between."""
    low, high = window_hu
    edge = min(edge_hu, (high - low) / 2)
    depth = source - np.float32((low + high) / 2)
    np.abs(depth, out=depth)
    depth *= np.float32(-1 / edge)
    depth += np.float32((high - low) / 2 / edge)
    np.clip(depth, 0, 1, out=depth)
    weight = depth * np.float32(-2)
    weight += np.float32(3)
    weight *= depth
    weight *= depth
    return weight
