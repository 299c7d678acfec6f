"""One field of noise for a whole volume, so that tiles draw the same numbers where they overlap."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from engine.volume import Float32, Shape3

KEPT_BYTES = 64 << 20
"""Slices of a field that are kept for the next tile; more steps mean larger slices, not more memory."""


@dataclass(frozen=True, slots=True)
class NoiseField:
    """Standard normal values at every cell of the latent grid, a function of ``seed`` and ``plane`` alone.

    ``plane`` is the (row, column) size of the latent grid that the tiles cover together.
    """

    seed: int
    plane: tuple[int, int]
    kept: OrderedDict[tuple[int, int, int], tuple[Float32, ...]] = field(
        default_factory=OrderedDict, repr=False, compare=False
    )
    """The slices drawn last, under (slice, fields, channels)."""

    def block(self, fields: int, channels: int, start: Shape3, shape: Shape3) -> Float32:
        """[fields, 1, channels, *shape] cut from the field at latent cell ``start``."""
        z, y, x = start
        block = np.empty((fields, 1, channels, *shape), dtype=np.float32)
        for k in range(shape[0]):
            for number, values in enumerate(self._slice(z + k, fields, channels)):
                block[number, 0, :, k] = values[:, y : y + shape[1], x : x + shape[2]]
        return block

    def _slice(self, index: int, fields: int, channels: int) -> Iterable[Float32]:
        """The fields on one slice of latent cells; what does not fit into what is kept is drawn anew."""
        key = (index, fields, channels)
        if key in self.kept:
            self.kept.move_to_end(key)
            return self.kept[key]
        drawn = _drawn(self.seed, index, fields, (channels, *self.plane))
        room = KEPT_BYTES // max(1, fields * channels * self.plane[0] * self.plane[1] * 4)
        if room == 0:
            return drawn
        while len(self.kept) >= room:
            self.kept.popitem(last=False)
        self.kept[key] = tuple(drawn)
        return self.kept[key]


def _drawn(seed: int, index: int, fields: int, shape: tuple[int, ...]) -> Iterator[Float32]:
    """One field after the other, as one draw of all of them would give them."""
    rng = np.random.default_rng([seed, index])
    for _ in range(fields):
        yield rng.standard_normal(shape, dtype=np.float32)
