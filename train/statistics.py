"""What a number over patients is worth: mean ± SD, a bootstrap interval over patients, a paired test.

The patient is the unit: voxels of one patient are not independent, so every statistic takes one value (or one
row) a patient. Resampling is seeded: the same values give the same interval.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Float64 = NDArray[np.float64]
Statistic = Callable[..., Any]

LEVEL = 0.95
RESAMPLES = 2000
AGREEMENT = 1.96  # SDs either side of the bias that hold 95 % of normal differences (Bland and Altman 1986)


class Summary(TypedDict):
    """Over patients: mean, SD (n − 1), 95 % bootstrap interval of the mean; one patient has no spread."""

    mean: float
    sd: float
    low: float
    high: float
    n: int


def summarise(values: ArrayLike, seed: int = 0) -> Summary:
    """Of one value a patient. Raises ValueError where there are none."""
    data = np.asarray(values, np.float64)
    if not data.size:
        raise ValueError("no values to summarise: every patient lacks this measure")
    low, high = bootstrap(data, mean, seed)
    return {"mean": float(data.mean()), "sd": sd(data), "low": low, "high": high, "n": data.size}


def sd(values: ArrayLike) -> float:
    """Standard deviation (n − 1) of one value a patient; one patient has none."""
    data = np.asarray(values, np.float64)
    return float(data.std(ddof=1)) if data.size > 1 else 0.0


def bootstrap(rows: ArrayLike, statistic: Statistic, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of ``statistic(*columns, axis=-1)`` over patients drawn with replacement.

    ``rows`` is (patients,) or (patients, columns). One patient gives a point, not an interval.
    """
    data = np.asarray(rows, np.float64)
    columns = (data,) if data.ndim == 1 else tuple(data.T)
    if len(data) < 2:
        point = float(statistic(*columns, axis=-1))
        return point, point
    found = stats.bootstrap(
        columns, statistic, paired=True, vectorized=True, n_resamples=RESAMPLES, confidence_level=LEVEL,
        method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = found.confidence_interval
    return float(low), float(high)


def mean(values: Float64, axis: int = -1) -> Any:
    """The mean, as :func:`bootstrap` calls it."""
    return np.mean(values, axis=axis)


def slope(wanted: Float64, got: Float64, axis: int = -1) -> Any:
    """Least-squares slope of got over wanted: 1 follows every patient, 0 gives everybody the average."""
    centred = wanted - np.mean(wanted, axis=axis, keepdims=True)
    away = got - np.mean(got, axis=axis, keepdims=True)
    return np.sum(centred * away, axis=axis) / np.maximum(np.sum(centred**2, axis=axis), 1e-12)


def variance_ratio(wanted: Float64, got: Float64, axis: int = -1) -> Any:
    """Variance of ``got`` over patients against that of ``wanted``."""
    return np.var(got, axis=axis) / np.maximum(np.var(wanted, axis=axis), 1e-12)


def limits_of_agreement(differences: ArrayLike) -> tuple[float, float]:
    """Bias ± 1.96 SD of the differences, one a patient (Bland and Altman 1986)."""
    data = np.asarray(differences, np.float64)
    spread = AGREEMENT * sd(data)
    return float(data.mean()) - spread, float(data.mean()) + spread


def paired_p(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p of Wilcoxon's signed-rank test on one pair a patient; 1 where no pair differs.

    Raises ValueError where the two differ in length.
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.shape != y.shape:
        raise ValueError(f"{x.size} and {y.size} values cannot be paired: the patients must be the same")
    difference = x - y
    difference = difference[difference != 0]
    return float(stats.wilcoxon(difference).pvalue) if difference.size else 1.0
