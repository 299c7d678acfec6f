"""Mean HU of labelled tissue, with the rim left out: what evaluation compares with the truth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.phantom.labels import LABELS
from engine.volume import Float32


def eroded(mask: NDArray[np.bool_], rows: int = 1, slices: int = 0) -> NDArray[np.bool_]:
    """The mask less ``rows`` voxels in the plane and ``slices`` along the body; the array border is kept."""
    kept = mask
    for axis, times in ((0, slices), (1, rows), (2, rows)):
        for _ in range(times):
            kept = kept & _shifted(kept, axis, 1) & _shifted(kept, axis, -1)
    return kept


def _shifted(mask: NDArray[np.bool_], axis: int, step: int) -> NDArray[np.bool_]:
    moved = np.roll(mask, step, axis)
    edge: list[slice] = [slice(None)] * 3
    edge[axis] = slice(0, 1) if step > 0 else slice(-1, None)
    moved[tuple(edge)] = mask[tuple(edge)]
    return moved


def organ_means(
    hu: Float32, labels: NDArray[np.uint8], *, erode: int = 1, least_voxels: int = 20
) -> dict[str, float]:
    """Mean HU by label name over label voxels eroded by ``erode`` voxels in the plane (0: all label voxels).

    Labels with fewer than ``least_voxels`` left are absent. Raises ValueError if the arrays' shapes differ.
    """
    if hu.shape != labels.shape:
        raise ValueError(f"image {hu.shape} and labels {labels.shape} differ in shape")
    means: dict[str, float] = {}
    for name, number in LABELS.items():
        kept = eroded(labels == number, erode) if erode else labels == number
        if int(kept.sum()) >= least_voxels:
            means[name] = float(hu[kept].mean(dtype=np.float64))
    return means
