"""One field of noise for a whole volume, so that tiles draw the same numbers where they overlap."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from engine.volume import Float32, Shape3


@dataclass(frozen=True, slots=True)
class NoiseField:
    """Standard normal values at every cell of the latent grid, a function of ``seed`` and ``plane`` alone.

    ``plane`` is the (row, column) size of the latent grid that the tiles cover together.
    """

    seed: int
    plane: tuple[int, int]

    def block(self, fields: int, channels: int, start: Shape3, shape: Shape3) -> Float32:
        """[fields, 1, channels, *shape] cut from the field at latent cell ``start``."""
        z, y, x = start
        block = np.empty((fields, 1, channels, *shape), dtype=np.float32)
        for k in range(shape[0]):
            values = _slice(self.seed, z + k, (fields, channels, *self.plane))
            block[:, 0, :, k] = values[..., y : y + shape[1], x : x + shape[2]]
        return block


@lru_cache(maxsize=32)
def _slice(seed: int, index: int, shape: tuple[int, ...]) -> Float32:
    """The field on one slice of latent cells."""
    return np.random.default_rng([seed, index]).standard_normal(shape, dtype=np.float32)
