"""The noise schedule of the conditional and literal formulations, in the paper's letters.

z_τ = √ᾱ_τ z_0 + √(1−ᾱ_τ) ε for τ = 0 … T−1, with β scaled-linear between .0015 and .0195 and T = 1000
(Rombach et al. 2022, as ALDM uses it). Networks see t = τ/T in [0, 1). The schedule is float64; what
multiplies volumes is handed out as Python floats, so that float32 arrays stay float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engine.volume import Float32

Prediction = Literal["epsilon", "v"]

CLEAN = -1
"""The τ one step below 0: no noise left, ᾱ = 1."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """``alpha_bar[τ]`` = ᾱ_τ, falling from nearly 1 to nearly 0."""

    alpha_bar: NDArray[np.float64]

    @property
    def T(self) -> int:  # noqa: N802 - the paper's letter
        """Number of noise levels."""
        return len(self.alpha_bar)

    def at(self, tau: int) -> float:
        """ᾱ_τ; 1 at :data:`CLEAN`."""
        return 1.0 if tau == CLEAN else float(self.alpha_bar[tau])

    def time(self, tau: int) -> float:
        """t = τ/T, what the denoiser is told."""
        return tau / self.T

    def add_noise(self, z_0: Float32, epsilon: Float32, tau: int) -> Float32:
        """z_τ = √ᾱ_τ z_0 + √(1−ᾱ_τ) ε."""
        a = self.at(tau)
        signal, noise = a**0.5, (1 - a) ** 0.5
        z: Float32 = signal * z_0 + noise * epsilon
        return z


def scaled_linear(T: int = 1000, beta_start: float = 0.0015, beta_end: float = 0.0195) -> Schedule:  # noqa: N803
    """β_τ = (√β_start + τ/(T−1) (√β_end − √β_start))², ᾱ_τ = Π_{s≤τ} (1 − β_s)."""
    beta: NDArray[np.float64] = np.linspace(beta_start**0.5, beta_end**0.5, T) ** 2
    return Schedule(np.cumprod(1.0 - beta, dtype=np.float64))


def timesteps(steps: int, T: int, strength: float = 1.0) -> list[int]:  # noqa: N803
    """``steps`` values of τ, evenly spaced, from strength·T − 1 down to one step above :data:`CLEAN`.

    Fewer where strength·T leaves no room for as many; none at strength 0.
    """
    top = round(strength * T)
    count = min(steps, top)
    return [round(top * (count - i) / count) - 1 for i in range(count)]


def split(prediction: Prediction, output: Float32, z: Float32, a: float) -> tuple[Float32, Float32]:
    """(ẑ_0, ε̂) from the network's output at ᾱ = a.

    ``epsilon``: ẑ_0 = (z − √(1−ᾱ) ε̂)/√ᾱ. ``v`` = √ᾱ ε − √(1−ᾱ) z_0 (Salimans and Ho 2022):
    ẑ_0 = √ᾱ z − √(1−ᾱ) v, ε̂ = √ᾱ v + √(1−ᾱ) z.
    """
    signal, noise = a**0.5, (1 - a) ** 0.5
    if prediction == "epsilon":
        return (z - noise * output) / signal, output
    return signal * z - noise * output, signal * output + noise * z
