"""One algorithm a file; which one runs, and with which numbers, is written in the bundle."""

from __future__ import annotations

from engine.bundle import SamplerSpec
from engine.samplers import bridge, ddim, dpm_solver
from engine.samplers.predict import Predict
from engine.schedule import scaled_linear
from engine.volume import Float32


def noise_fields(spec: SamplerSpec) -> int:
    """How many noise fields :func:`sample` takes."""
    match spec.name:
        case "bridge":
            return bridge.noise_fields(spec.steps, spec.sigma)
        case "ddim":
            return ddim.noise_fields(spec.steps, spec.sigma)
        case "dpm_solver":
            return dpm_solver.noise_fields(spec.steps)


def sample(spec: SamplerSpec, predict: Predict, e_n: Float32, noise: Float32) -> Float32:
    """ẑ of E_n's shape; ``noise`` is [``noise_fields(spec)``, *E_n's shape], standard normal."""
    if spec.name == "bridge":
        return bridge.sample(predict, e_n, noise, steps=spec.steps, sigma=spec.sigma)
    schedule = scaled_linear(spec.T, spec.beta_start, spec.beta_end)
    strength = spec.sdedit_strength if spec.formulation == "literal" else None
    if spec.name == "ddim":
        return ddim.sample(
            predict, e_n, noise, steps=spec.steps, schedule=schedule, prediction=spec.prediction,
            eta=spec.sigma, strength=strength,
        )  # fmt: skip
    return dpm_solver.sample(
        predict,
        e_n,
        noise,
        steps=spec.steps,
        schedule=schedule,
        prediction=spec.prediction,
        strength=strength,
    )
