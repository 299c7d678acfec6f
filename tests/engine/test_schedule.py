from __future__ import annotations

import numpy as np
import pytest

from engine.schedule import CLEAN, scaled_linear, split, timesteps


def test_the_schedule_is_the_published_one() -> None:
    schedule = scaled_linear()
    assert schedule.T == 1000
    assert schedule.at(0) == pytest.approx(0.9985)
    assert schedule.at(999) == pytest.approx(np.prod(1 - np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2))
    assert schedule.at(CLEAN) == 1.0
    assert np.all(np.diff(schedule.alpha_bar) < 0)
    assert schedule.time(250) == 0.25


def test_timesteps_fall_evenly_from_the_top_and_stop_above_clean() -> None:
    assert timesteps(4, 1000) == [999, 749, 499, 249]
    assert timesteps(2, 1000, strength=0.2) == [199, 99]
    assert timesteps(5, 1000, strength=0.002) == [1, 0]
    assert timesteps(5, 1000, strength=0.0) == []


@pytest.mark.parametrize("tau", [0, 500, 999])
def test_both_predictions_give_back_the_clean_value_and_the_noise(tau: int) -> None:
    rng = np.random.default_rng(1)
    z_0, epsilon = rng.standard_normal((2, 50)).astype(np.float32)
    schedule = scaled_linear()
    a = schedule.at(tau)
    z = schedule.add_noise(z_0, epsilon, tau)
    v = a**0.5 * epsilon - (1 - a) ** 0.5 * z_0
    for prediction, output in (("epsilon", epsilon), ("v", v)):
        found_z_0, found_epsilon = split(prediction, output, z, a)  # type: ignore[arg-type]
        assert found_z_0.dtype == np.float32
        np.testing.assert_allclose(found_z_0, z_0, atol=2e-4)
        np.testing.assert_allclose(found_epsilon, epsilon, atol=2e-4)
