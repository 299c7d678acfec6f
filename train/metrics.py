"""How far one volume is from another, every variant under its own name.

All of them clip both volumes to a window first, look only inside a mask, and take the window's width as data
range. ``nmse`` = Σe²/Σy² with y measured from the window's floor (in HU the sign of y would be arbitrary).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.volume import Float32

PAPER_WINDOW_HU = (-200.0, 200.0)
SSIM_SIGMA = 1.5
SSIM_RADIUS = 5
SSIM_K = (0.01, 0.03)

Mask = NDArray[np.bool_]


def compare(x: Float32, reference: Float32, mask: Mask, window_hu: tuple[float, float]) -> dict[str, float]:
    """mae_hu, rmse_hu, psnr, ssim (3-D, Gaussian 11, σ 1.5), nmae_range, nmae_l1, nrmse and nmse of x."""
    low, high = window_hu
    width = high - low
    x, reference = (np.clip(v, low, high) - np.float32(low) for v in (x, reference))
    similar = ssim_map(x, reference, width)
    e, y = (x - reference)[mask].astype(np.float64), reference[mask].astype(np.float64)
    mse = float(np.mean(e**2))
    mae = float(np.mean(np.abs(e)))
    return {
        "mae_hu": mae,
        "rmse_hu": mse**0.5,
        "psnr": float(10 * np.log10(width**2 / max(mse, 1e-12))),
        "ssim": float(similar[mask].mean()),
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
    offsets = np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1)
    kernel = np.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for axis in range(3):
        pad = [(SSIM_RADIUS, SSIM_RADIUS) if a == axis else (0, 0) for a in range(3)]
        padded = np.moveaxis(np.pad(x, pad, mode="reflect"), axis, 0)
        n = x.shape[axis]
        total = sum(w * padded[i : i + n] for i, w in enumerate(kernel))
        x = np.moveaxis(np.asarray(total, dtype=np.float32), 0, axis)
    return x
