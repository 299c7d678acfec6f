"""Samplers against what is known exactly: recorded numbers, and Gaussians with a formula for denoiser."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from engine import samplers
from engine.bundle import SamplerSpec
from engine.samplers import bridge, ddim, dpm_solver
from engine.samplers.predict import Predict
from engine.schedule import scaled_linear
from engine.volume import Float32

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "samplers.json").read_text())
SCHEDULE = scaled_linear()
MU, S = 1.5, 0.6


def toy(z: Float32, e_n: Float32, t: float) -> Float32:
    return 0.6 * z - 0.2 * e_n + 0.1 * t


def gaussian_epsilon(z: Float32, e_n: Float32, t: float) -> Float32:
    """E[ε | z] for data N(μ, s²): √(1−ᾱ)(z − √ᾱ μ)/(ᾱ s² + 1 − ᾱ)."""
    a = SCHEDULE.at(round(t * 1000))
    return (1 - a) ** 0.5 * (z - a**0.5 * MU) / (a * S**2 + 1 - a)


def gaussian_v(z: Float32, e_n: Float32, t: float) -> Float32:
    a = SCHEDULE.at(round(t * 1000))
    epsilon = gaussian_epsilon(z, e_n, t)
    z_0 = (z - (1 - a) ** 0.5 * epsilon) / a**0.5
    return a**0.5 * epsilon - (1 - a) ** 0.5 * z_0


def flow_end(start: Float32) -> Float32:
    """Where the probability flow of the Gaussian takes ``start`` from τ = 999 to no noise."""
    a = SCHEDULE.at(999)
    return MU + S * (start - a**0.5 * MU) / (a * S**2 + 1 - a) ** 0.5


def normals(*shape: int, seed: int = 3) -> Float32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", ["ddim", "dpm_solver"])
@pytest.mark.parametrize("steps", [4, 10, 50])
def test_samplers_repeat_the_recorded_numbers(name: str, steps: int) -> None:
    spec = SamplerSpec(name=name, formulation="conditional", steps=steps, prediction="epsilon")  # type: ignore[arg-type]
    start = np.array([GOLDEN["start"]], dtype=np.float32)
    z = samplers.sample(spec, toy, np.linspace(-1, 1, 6, dtype=np.float32), start)
    np.testing.assert_allclose(z, GOLDEN[f"{name}_{steps}"], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("sigma", "recorded"), [(0.0, "bridge_4"), (0.5, "bridge_4_sigma_0.5")])
def test_the_bridge_repeats_the_recorded_numbers(sigma: float, recorded: str) -> None:
    spec = SamplerSpec(name="bridge", formulation="bridge", steps=4, sigma=sigma)
    noise = np.array(GOLDEN["bridge_noise"], dtype=np.float32)[: samplers.noise_fields(spec)]
    z = samplers.sample(spec, toy, np.linspace(-1, 1, 6, dtype=np.float32), noise)
    np.testing.assert_allclose(z, GOLDEN[recorded], rtol=2e-5, atol=2e-5)


def distance(module: ModuleType, steps: int, predict: Predict, prediction: str) -> float:
    noise = normals(1, 2000)
    z = module.sample(predict, noise[0], noise, steps=steps, schedule=SCHEDULE, prediction=prediction)
    assert z.dtype == np.float32
    return float(np.abs(z - flow_end(noise[0])).mean())


@pytest.mark.parametrize("module", [ddim, dpm_solver])
@pytest.mark.parametrize(("predict", "prediction"), [(gaussian_epsilon, "epsilon"), (gaussian_v, "v")])
def test_deterministic_samplers_converge_to_the_flow_of_a_gaussian(
    module: ModuleType, predict: Predict, prediction: str
) -> None:
    coarse, fine = (distance(module, steps, predict, prediction) for steps in (50, 500))
    assert coarse < 0.04
    assert fine < coarse / 7


def test_the_second_order_solver_is_nearer_than_ddim_at_equal_steps() -> None:
    for steps in (10, 20, 50, 100):
        near, far = (distance(module, steps, gaussian_v, "v") for module in (dpm_solver, ddim))
        assert near < far
    assert near < far / 2


def test_stochastic_ddim_keeps_the_gaussian() -> None:
    noise = normals(500, 4000)
    assert ddim.noise_fields(500, 1.0) == 500
    z = ddim.sample(gaussian_v, noise[0], noise, steps=500, schedule=SCHEDULE, eta=1.0)
    assert z.mean() == pytest.approx(MU, abs=0.03)
    assert z.std() == pytest.approx(S, abs=0.03)


@pytest.mark.parametrize("module", [ddim, dpm_solver])
def test_literal_at_strength_zero_returns_the_source_and_at_little_strength_stays_near_it(
    module: ModuleType,
) -> None:
    e_n, noise = normals(100), normals(1, 100, seed=4)
    same = module.sample(gaussian_v, e_n, noise, steps=4, schedule=SCHEDULE, strength=0.0)
    near = module.sample(gaussian_v, e_n, noise, steps=4, schedule=SCHEDULE, strength=0.02)
    assert same is e_n
    assert 0 < np.abs(near - e_n).mean() < 0.3


def test_the_bridge_with_a_perfect_velocity_arrives_in_any_number_of_steps() -> None:
    e_n, e_c = normals(2, 50)
    for steps in (1, 3, 10):
        z = bridge.sample(lambda z, e, t: e_c - e, e_n, normals(0, 50), steps=steps)
        np.testing.assert_allclose(z, e_c, atol=1e-5)


def test_the_bridge_is_euler_without_noise() -> None:
    z = bridge.sample(lambda z, e, t: z * t + 1, np.zeros(1, np.float32), normals(0, 1), steps=2)
    assert z == pytest.approx([0.5 + (0.25 + 1) / 2])


def test_the_noisy_bridge_draws_from_the_posterior_of_a_gaussian() -> None:
    sigma, steps = 0.8, 200

    def velocity(z: Float32, e_n: Float32, t: float) -> Float32:
        """E[Δ | z_t] for Δ ~ N(μ, s²), z_t = e_n + tΔ + σ√(t(1−t)) ε."""
        if t == 0:
            return np.full_like(z, MU)
        return MU + S**2 * t / (t**2 * S**2 + sigma**2 * t * (1 - t)) * (z - e_n - t * MU)

    e_n = normals(4000)
    z = bridge.sample(velocity, e_n, normals(steps - 1, 4000, seed=5), steps=steps, sigma=sigma)
    assert (z - e_n).mean() == pytest.approx(MU, abs=0.04)
    assert (z - e_n).std() == pytest.approx(S, abs=0.04)


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        (SamplerSpec(name="bridge", formulation="bridge", steps=4), 0),
        (SamplerSpec(name="bridge", formulation="bridge", steps=4, sigma=0.5), 3),
        (SamplerSpec(name="ddim", formulation="conditional", steps=4), 1),
        (SamplerSpec(name="ddim", formulation="literal", steps=4, sigma=1.0, sdedit_strength=0.5), 4),
        (SamplerSpec(name="dpm_solver", formulation="literal", steps=4, sdedit_strength=0.5), 1),
    ],
)
def test_a_spec_takes_exactly_the_noise_it_asks_for(spec: SamplerSpec, count: int) -> None:
    assert samplers.noise_fields(spec) == count
    e_n = normals(2, 3, 4)
    z = samplers.sample(spec, lambda z, e, t: 0.1 * z, e_n, normals(count, 2, 3, 4))
    assert z.shape == e_n.shape
    assert z.dtype == np.float32
