"""How far one volume is from another, every variant under its own name.

All of them clip both volumes to a window first and take the window's width as data range. ``nmse`` = Σe²/Σy²
with y measured from the window's floor (in HU the sign of y would be arbitrary); ``nmae_range`` = MAE/width,
``nmae_l1`` = Σ|e|/Σy, ``nrmse`` = RMSE/width. SSIM is the mean of its map over the mask.

Of the third dimension, which a slice shown alone hides: ``z_flicker`` and ``slice_step_hu`` see slices that
do not go together, ``seam_ratio`` sees the borders of tiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from engine.volume import Float32

PAPER_WINDOW_HU = (-200.0, 200.0)
SSIM_SIGMA = 1.5
SSIM_RADIUS = 5
SSIM_K = (0.01, 0.03)

Mask = NDArray[np.bool_]


class Comparison:
    """``x`` and ``reference`` (HU, same shape) in one window; measured within any number of masks."""

    def __init__(self, x: Float32, reference: Float32, window_hu: tuple[float, float]) -> None:
        low, high = window_hu
        self.width = high - low
        x, self._y = (np.clip(v, low, high) - np.float32(low) for v in (x, reference))
        self._e = x - self._y
        self._similar = ssim_map(x, self._y, self.width)

    def within(self, mask: Mask | None = None) -> dict[str, float]:
        """Every metric inside ``mask``; everywhere without one."""
        where = ... if mask is None else mask
        return _errors(self._e[where], self._y[where], self.width) | {
            "ssim": float(self._similar[where].mean(dtype=np.float64))
        }


def compare(x: Float32, reference: Float32, mask: Mask, window_hu: tuple[float, float]) -> dict[str, float]:
    """mae_hu, rmse_hu, psnr, ssim (3-D, Gaussian 11, σ 1.5), nmae_range, nmae_l1, nrmse and nmse of x."""
    return Comparison(x, reference, window_hu).within(mask)


def _errors(error: Float32, reference: Float32, width: float) -> dict[str, float]:
    e, y = error.astype(np.float64), reference.astype(np.float64)
    mse = float(np.mean(e**2))
    mae = float(np.mean(np.abs(e)))
    return {
        "mae_hu": mae,
        "rmse_hu": mse**0.5,
        "psnr": float(10 * np.log10(width**2 / max(mse, 1e-12))),
        "nmae_range": mae / width,
        "nmae_l1": float(np.abs(e).sum() / max(y.sum(), 1e-12)),
        "nrmse": mse**0.5 / width,
        "nmse": float((e**2).sum() / max((y**2).sum(), 1e-12)),
    }


def ssim_map(x: Float32, y: Float32, data_range: float) -> Float32:
    """SSIM of every voxel (Wang 2004, eq. 13) with a 3-D Gaussian of 11 voxels; the edge is mirrored."""
    c1, c2 = ((k * data_range) ** 2 for k in SSIM_K)
    offset = np.float32(data_range / 2)  # variances of small numbers: float32 stays exact enough
    mean_x, mean_y = gaussian(x - offset), gaussian(y - offset)
    var_x = gaussian((x - offset) ** 2) - mean_x**2
    var_y = gaussian((y - offset) ** 2) - mean_y**2
    covariance = gaussian((x - offset) * (y - offset)) - mean_x * mean_y
    mean_x, mean_y = mean_x + offset, mean_y + offset
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    result: Float32 = luminance * (2 * covariance + c2) / (var_x + var_y + c2)
    return result


def gaussian(x: Float32) -> Float32:
    """Separable Gaussian of σ 1.5 over 11 voxels a side."""
    smooth: Float32 = ndimage.gaussian_filter(x, SSIM_SIGMA, mode="mirror", radius=SSIM_RADIUS)
    return smooth


def z_flicker(x: Float32, reference: Float32, mask: Mask) -> float:
    """Mean |change to the next slice| of x against the reference's: 1 as lively, below it smoother."""
    both = mask[1:] & mask[:-1]
    wanted = float(np.abs(np.diff(reference, axis=0)[both]).mean(dtype=np.float64))
    return float(np.abs(np.diff(x, axis=0)[both]).mean(dtype=np.float64)) / max(wanted, 1e-12)


def slice_step_hu(x: Float32, reference: Float32, mask: Mask) -> float:
    """Root mean square step from slice to slice of the slice's mean error (HU): whole slices too bright."""
    means = [float(a[m].mean(dtype=np.float64)) for a, m in zip(x - reference, mask, strict=True) if m.any()]
    return float(np.sqrt(np.mean(np.diff(means) ** 2))) if len(means) > 1 else 0.0


def seam_ratio(
    x: Float32, reference: Float32, mask: Mask, zones: Sequence[NDArray[np.bool_]]
) -> float | None:
    """Mean |step of the error| where tiles overlap against elsewhere: 1 shows no seam.

    ``zones`` holds for each axis, of length n − 1, whether the step from voxel i to i + 1 lies in an overlap.
    None where no step, or every step, of the mask does.
    """
    error = x - reference
    sums = np.zeros((2, 2))
    for axis, zone in enumerate(zones):
        steps = np.abs(np.diff(error, axis=axis))
        both = _first(mask, axis) & np.moveaxis(np.moveaxis(mask, axis, 0)[1:], 0, axis)
        for inside in (0, 1):
            where = both & _along(zone == bool(inside), axis)
            sums[inside] += steps[where].sum(dtype=np.float64), where.sum()
    if not sums[:, 1].all():
        return None
    elsewhere, seams = sums[:, 0] / sums[:, 1]
    return float(seams / max(elsewhere, 1e-12))


def _first(mask: Mask, axis: int) -> Mask:
    return np.moveaxis(np.moveaxis(mask, axis, 0)[:-1], 0, axis)


def _along(zone: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    shape = [1, 1, 1]
    shape[axis] = len(zone)
    return zone.reshape(shape)
