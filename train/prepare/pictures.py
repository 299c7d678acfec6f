"""One registered pair as a picture: before, after, checkerboards, differences in HU, the field in mm."""

from __future__ import annotations

import io

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its usual name
from numpy.typing import NDArray

from engine.volume import Float32
from train.prepare.register import Alignment, Scans, displacement, moved

SHOWN_HU, DIFFERENCE_HU, FIELD_MM = (-160.0, 240.0), 200.0, 30.0
"""Windows of the grey pictures, of the differences (± this) and of the deformation (from 0)."""
TITLES = (
    "NCCT", "phase before", "phase after", "checkerboard before", "checkerboard after", "difference before",
    "difference after", "deformation",
)  # fmt: skip
"""Panels from left to right; the upper row is axial, the lower coronal, through the middle of the body."""
SQUARE_MM = 32.0
PIXEL_MM = 2.0
GAP = 4

Colours = NDArray[np.uint8]


def draw_pair(pair: Scans, alignment: Alignment) -> bytes:
    """PNG: the panels of ``TITLES`` in equal columns."""
    from matplotlib.image import imsave  # noqa: PLC0415

    grid, fixed = pair.fixed.geometry, pair.fixed.hu
    before, after = (moved(pair.moving, t, grid) for t in (sitk.Transform(), alignment.whole))
    stray = displacement(alignment.whole, grid) - displacement(alignment.rigid, grid)
    length = np.linalg.norm(stray, axis=-1).astype(np.float32)
    grey = [fixed, before, after, *(_checkerboard(fixed, v, grid.spacing_mm[0]) for v in (before, after))]
    panels = [
        *((volume, "gray", SHOWN_HU) for volume in grey),
        *((volume - fixed, "RdBu_r", (-DIFFERENCE_HU, DIFFERENCE_HU)) for volume in (before, after)),
        (length, "viridis", (0.0, FIELD_MM)),
    ]
    middle, row = (int(np.median(np.nonzero(pair.body)[axis])) for axis in (0, 1))
    times = max(1, round(grid.spacing_mm[0] / PIXEL_MM))
    rows = [
        np.hstack([_coloured(cut(volume), times, name, window) for volume, name, window in panels])
        for cut in (lambda v: v[middle], lambda v: v[::-1, row])
    ]
    file = io.BytesIO()
    imsave(file, np.vstack(rows), format="png", metadata={"Software": None})
    return file.getvalue()


def _coloured(image: Float32, times: int, name: str, window: tuple[float, float]) -> Colours:
    """(rows, columns, RGB), every voxel ``times`` pixels wide, a white gap at its end."""
    from matplotlib import colormaps  # noqa: PLC0415

    low, high = window
    shares = np.clip((image - low) / (high - low), 0, 1).repeat(times, 0).repeat(times, 1)
    colours = np.asarray(colormaps[name](shares, bytes=True), np.uint8)[..., :3]
    return np.pad(colours, ((0, GAP), (0, GAP), (0, 0)), constant_values=255)


def _checkerboard(one: Float32, other: Float32, voxel_mm: float) -> Float32:
    side = max(2, round(SQUARE_MM / voxel_mm))
    squares = sum(index // side for index in np.indices(one.shape))
    return np.where(np.asarray(squares) % 2 == 0, one, other).astype(np.float32)
