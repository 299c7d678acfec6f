"""Intervals, tests and agreement on distributions whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from train.statistics import (
    bootstrap,
    limits_of_agreement,
    mean,
    paired_p,
    slope,
    summarise,
    variance_ratio,
)

RNG = np.random.default_rng(3)


def test_the_interval_of_the_mean_of_normal_numbers_is_that_of_the_textbook() -> None:
    values = RNG.normal(10, 2, 200)
    found = summarise(values)
    half = 1.96 * values.std(ddof=1) / np.sqrt(200)
    assert found["low"] == pytest.approx(values.mean() - half, abs=0.05)
    assert found["high"] == pytest.approx(values.mean() + half, abs=0.05)
    assert found["mean"] == pytest.approx(values.mean())
    assert found["sd"] == pytest.approx(np.std(values, ddof=1))
    assert found["n"] == 200


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    hits = 0
    for trial in range(60):
        low, high = bootstrap(RNG.normal(5, 1, 40), mean, trial)
        hits += low <= 5 <= high
    assert 50 <= hits <= 60


def test_the_same_values_and_seed_give_the_same_interval() -> None:
    values = RNG.normal(0, 1, 20)
    assert bootstrap(values, mean, 7) == bootstrap(values, mean, 7)
    assert bootstrap(values, mean, 7) != bootstrap(values, mean, 8)


def test_patients_are_drawn_whole_so_a_slope_keeps_its_pairs() -> None:
    wanted = RNG.normal(100, 20, 60)
    exact = np.stack([wanted, 0.3 * wanted + 5], axis=1)
    assert bootstrap(exact, slope) == pytest.approx((0.3, 0.3))
    assert bootstrap(exact, variance_ratio) == pytest.approx((0.09, 0.09))
    noisy = np.stack([wanted, 0.3 * wanted + RNG.normal(0, 5, 60)], axis=1)
    low, high = bootstrap(noisy, slope)
    assert low < stats.linregress(*noisy.T).slope < high


def test_slope_and_variance_agree_with_numpy() -> None:
    wanted, got = RNG.normal(size=(2, 30))
    assert slope(wanted, got) == pytest.approx(np.polyfit(wanted, got, 1)[0])
    assert variance_ratio(wanted, got) == pytest.approx(got.var() / wanted.var())


def test_limits_of_agreement_hold_nineteen_of_twenty_normal_differences() -> None:
    differences = RNG.normal(3, 4, 4000)
    low, high = limits_of_agreement(differences)
    assert (low, high) == (pytest.approx(3 - 1.96 * 4, abs=0.3), pytest.approx(3 + 1.96 * 4, abs=0.3))
    assert np.mean((differences > low) & (differences < high)) == pytest.approx(0.95, abs=0.01)


def test_a_shift_is_found_and_no_shift_is_not() -> None:
    a = RNG.normal(0, 1, 40)
    assert paired_p(a + 1, a + RNG.normal(0, 0.5, 40)) < 1e-4
    even = np.concatenate([np.arange(1.0, 11), -np.arange(1.0, 11)])
    assert paired_p(even, np.zeros(20)) > 0.9
    assert paired_p(a, a) == 1.0


def test_p_is_that_of_the_exact_distribution() -> None:
    """Six pairs that all rise: 2 of the 2⁶ signs are as extreme."""
    assert paired_p(np.arange(1.0, 7), np.zeros(6)) == pytest.approx(2 / 64)


def test_one_patient_has_no_spread_and_none_is_an_error() -> None:
    assert summarise([4.0]) == {"mean": 4.0, "sd": 0.0, "low": 4.0, "high": 4.0, "n": 1}
    assert limits_of_agreement([4.0]) == (4.0, 4.0)
    with pytest.raises(ValueError, match="no values"):
        summarise([])
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_p([1.0], [1.0, 2.0])
