"""DDIM (Song et al. 2021, arXiv:2010.02502), eq. 12 and 16, with the noise levels it claims to have."""

from __future__ import annotations

from engine.samplers.predict import Predict
from engine.schedule import CLEAN, Prediction, Schedule, split, timesteps
from engine.volume import Float32


def noise_fields(steps: int, eta: float = 0.0) -> int:
    """How many fields ``sample`` takes from ``noise``."""
    return steps if eta > 0 else 1


def sample(
    predict: Predict,
    e_n: Float32,
    noise: Float32,
    *,
    steps: int,
    schedule: Schedule,
    prediction: Prediction = "v",
    eta: float = 0.0,
    strength: float | None = None,
) -> Float32:
    """ẑ_0, of E_n's shape, from pure noise or, with ``strength``, from E_n noised that far (0 returns E_n).

    ``noise`` is [``noise_fields(steps, eta)``, *E_n's shape], standard normal; the first field is the start.
    """
    taus = timesteps(steps, schedule.T, 1.0 if strength is None else strength)
    if not taus:
        return e_n
    z = noise[0] if strength is None else schedule.add_noise(e_n, noise[0], taus[0])
    for k, (tau, following) in enumerate(zip(taus, [*taus[1:], CLEAN], strict=True)):
        a, a_next = schedule.at(tau), schedule.at(following)
        z_0, epsilon = split(prediction, predict(z, e_n, schedule.time(tau)), z, a)
        sigma = eta * ((1 - a_next) / (1 - a) * (1 - a / a_next)) ** 0.5
        z = a_next**0.5 * z_0 + max(1 - a_next - sigma**2, 0.0) ** 0.5 * epsilon
        if sigma > 0:
            z = z + sigma * noise[k + 1]
    return z
