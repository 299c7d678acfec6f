"""What every sampler asks of the denoiser."""

from __future__ import annotations

from collections.abc import Callable

from engine.volume import Float32

Predict = Callable[[Float32, Float32, float], Float32]
"""``predict(z_t, e_n, t)`` with t in [0, 1]: the network's output, of z_t's shape.

Samplers add arrays and scale them by floats, no more, so that ``engine.device.Resident`` does as well.
"""
