"""DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095), algorithm 2: second order, multistep."""

from __future__ import annotations

from itertools import pairwise
from math import expm1, log

from engine.samplers.predict import Predict
from engine.schedule import Prediction, Schedule, split, timesteps
from engine.volume import Float32


def noise_fields(steps: int) -> int:
    """How many fields ``sample`` takes from ``noise``: the start."""
    return 1


def sample(
    predict: Predict,
    e_n: Float32,
    noise: Float32,
    *,
    steps: int,
    schedule: Schedule,
    prediction: Prediction = "v",
    strength: float | None = None,
) -> Float32:
    """ẑ_0, of E_n's shape, from pure noise or, with ``strength``, from E_n noised that far (0 returns E_n).

    With λ = log(√ᾱ/√(1−ᾱ)), h = λ_s − λ_t, r = h_before/h: z_s = √((1−ᾱ_s)/(1−ᾱ_t)) z_t − √ᾱ_s (e^−h − 1) D,
    D = (1 + 1/2r) ẑ_0 − 1/2r ẑ_0,before. The first and the last step are of first order.
    ``noise`` is [1, *E_n's shape], standard normal.
    """
    taus = timesteps(steps, schedule.T, 1.0 if strength is None else strength)
    if not taus:
        return e_n
    z = noise[0] if strength is None else schedule.add_noise(e_n, noise[0], taus[0])
    before: tuple[Float32, float] | None = None
    for tau, following in pairwise(taus):
        a, a_next = schedule.at(tau), schedule.at(following)
        z_0, _ = split(prediction, predict(z, e_n, schedule.time(tau)), z, a)
        h = _lambda(a_next) - _lambda(a)
        d = z_0 if before is None else z_0 + h / (2 * before[1]) * (z_0 - before[0])
        z = ((1 - a_next) / (1 - a)) ** 0.5 * z - a_next**0.5 * expm1(-h) * d
        before = z_0, h
    z_0, _ = split(prediction, predict(z, e_n, schedule.time(taus[-1])), z, schedule.at(taus[-1]))
    return z_0


def _lambda(a: float) -> float:
    return 0.5 * log(a / (1 - a))
