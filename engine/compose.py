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

import numpy as np

from engine.volume import Float32, Vec3

RADIUS_MM = 2.0
"""Half the width of the guided filter's box: wide enough for grain, narrower than a vein in the liver."""
EPSILON_HU2 = 25.0
"""Variance of D(ẑ) in a box that counts as flat: (5 HU)², above a decoder's texture, below an edge."""
SLAB = 24
"""Slices filtered at a time, or more where the boxes reach further."""


def detail_residual(residual: Float32, guide: Float32, detail: float, spacing_mm: Vec3) -> Float32:
    """Δ_w, written over ``residual`` (Δ); ``guide`` is D(ẑ) on the same grid, HU both. ``detail`` is w."""
    if detail == 0:
        return residual
    radius = tuple(max(1, round(RADIUS_MM / s)) for s in spacing_mm)
    done: list[tuple[int, Float32]] = []
    step = max(SLAB, 2 * radius[0])
    for start in range(0, len(residual), step):
        stop = min(start + step, len(residual))
        low, high = max(0, start - 2 * radius[0]), min(len(residual), stop + 2 * radius[0])
        filtered = guided_filter(residual[low:high], guide[low:high], radius, EPSILON_HU2)[
            start - low : stop - low
        ]
        for first, slab in done:  # the slab before is written only now: this one needed its Δ
            residual[first : first + len(slab)] = slab
        done = [(start, (1 - detail) * residual[start:stop] + detail * filtered)]
    for first, slab in done:
        residual[first : first + len(slab)] = slab
    return residual


def guided_filter(p: Float32, guide: Float32, radius: tuple[int, ...], epsilon: float) -> Float32:
    """GF(p): a = cov(I, p)/(var(I) + ε), b = p̄ − a Ī over boxes of 2·radius + 1; q = ā I + b̄.

    Means are subtracted first: in exact numbers it changes nothing, in float32 it keeps a constant p exact.
    """
    middle_p, middle_i = float(p.mean(dtype=np.float64)), float(guide.mean(dtype=np.float64))
    p, guide = p - np.float32(middle_p), guide - np.float32(middle_i)
    mean_p, mean_i = box_mean(p, radius), box_mean(guide, radius)
    a = box_mean(guide * p, radius)
    a -= mean_i * mean_p
    variance = box_mean(guide * guide, radius)
    variance -= mean_i * mean_i
    a /= np.maximum(variance, 0, out=variance) + np.float32(epsilon)
    b = mean_p
    b -= a * mean_i
    q = box_mean(a, radius)
    q *= guide
    q += box_mean(b, radius)
    q += np.float32(middle_p)
    return q


def box_mean(values: Float32, radius: tuple[int, ...]) -> Float32:
    """Mean over 2·radius + 1 voxels along each axis, the edge repeated."""
    for axis, r in enumerate(radius):
        values = _mean_along(values, axis, r)
    return values


def _mean_along(values: Float32, axis: int, r: int) -> Float32:
    widths = [(r, r) if a == axis else (0, 0) for a in range(values.ndim)]
    padded = np.moveaxis(np.pad(values, widths, mode="edge"), axis, 0)
    total = padded[: values.shape[axis]].copy()
    for shift in range(1, 2 * r + 1):
        total += padded[shift : shift + values.shape[axis]]
    total *= np.float32(1 / (2 * r + 1))
    return np.moveaxis(total, 0, axis)


def add_within_window(
    source: Float32, residual: Float32, window_hu: tuple[float, float], edge_hu: float
) -> Float32:
    """source + g(source) Δ_w, written over ``residual``; both on the source grid, HU."""
    residual *= window_weight(source, window_hu, edge_hu)
    residual += source
    return residual


def window_weight(source: Float32, window_hu: tuple[float, float], edge_hu: float) -> Float32:
    """g: 0 outside the window, 1 inside it by ``edge_hu`` and more, 3u² − 2u³ between."""
    low, high = (np.float32(limit) for limit in window_hu)
    depth = np.minimum(source - low, high - source)
    depth /= np.float32(min(edge_hu, (window_hu[1] - window_hu[0]) / 2))
    np.clip(depth, 0, 1, out=depth)
    weight: Float32 = depth * depth * (3 - 2 * depth)
    return weight
