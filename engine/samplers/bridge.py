"""The bridge: from E_n at t = 0 to E_c at t = 1 along z_t = (1−t) E_n + t E_c + σ √(t(1−t)) ε.

The network gives v ≈ E[E_c − E_n | z_t, E_n].
"""

from __future__ import annotations

from engine.samplers.predict import Predict
from engine.volume import Float32


def noise_fields(steps: int, sigma: float = 0.0) -> int:
    """How many fields ``sample`` takes from ``noise``."""
    return steps - 1 if sigma > 0 else 0


def sample(predict: Predict, e_n: Float32, noise: Float32, *, steps: int, sigma: float = 0.0) -> Float32:
    """ẑ, of E_n's shape.

    σ = 0: Euler, z ← z + v dt. σ > 0: the Brownian bridge pinned at Ê_c = E_n + v,
    z_s = z + (s−t)/(1−t) (Ê_c − z) + σ √((s−t)(1−s)/(1−t)) ε; the last step has no noise.
    ``noise`` is [``noise_fields(steps, sigma)``, *E_n's shape], standard normal.
    """
    z = e_n
    for k in range(steps):
        t, s = k / steps, (k + 1) / steps
        v = predict(z, e_n, t)
        if sigma == 0:
            z = z + v * (s - t)
            continue
        z = z + (s - t) / (1 - t) * (e_n + v - z)
        if s < 1:
            z = z + sigma * ((s - t) * (1 - s) / (1 - t)) ** 0.5 * noise[k]
    return z
