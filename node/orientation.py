"""Turning a volume the way models know it: slices upward, rows to the back, columns to the patient's left."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engine.volume import Geometry, Vec3, Volume

LPS_AXES = (2, 1, 0)
"""The LPS axis that slices, rows and columns of an upright axial volume grow along."""


def axes_to_flip(geometry: Geometry) -> tuple[int, ...]:
    """The array axes that run against an upright volume's: scanned prone, or written bottom up."""
    return tuple(axis for axis, lps in enumerate(LPS_AXES) if geometry.directions[axis][lps] < 0)


def is_turned(geometry: Geometry, cosine: float) -> bool:
    """Whether an axis is further than the angle of ``cosine`` from the one an axial volume has there."""
    return any(abs(geometry.directions[axis][lps]) < cosine for axis, lps in enumerate(LPS_AXES))


def flipped(volume: Volume, axes: tuple[int, ...]) -> Volume:
    """The same voxels at the same places, counted from the other end along ``axes``."""
    if not axes:
        return volume
    geometry = volume.geometry
    last = tuple(float(n - 1) if axis in axes else 0.0 for axis, n in enumerate(geometry.shape))
    directions = tuple(
        _negated(direction) if axis in axes else direction
        for axis, direction in enumerate(geometry.directions)
    )
    turned = replace(
        geometry,
        origin_mm=geometry.position_of((last[0], last[1], last[2])),
        directions=(directions[0], directions[1], directions[2]),
    )
    return Volume(np.ascontiguousarray(np.flip(volume.hu, axes)), turned)


def _negated(direction: Vec3) -> Vec3:
    x, y, z = direction
    return (-x, -y, -z)
