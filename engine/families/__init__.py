"""How a bundle's graphs turn a tile into a tile. Arrays only: no paths, no files.

A family is one module with ``INPUTS`` (what each graph takes) and ``translate``; :data:`FAMILIES` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from engine.bundle import Manifest
from engine.families import s2ldm, translator
from engine.noise import NoiseField
from engine.session import Runs
from engine.volume import Float32, Shape3


@dataclass(frozen=True, slots=True)
class Family:
    """One way from tile to tile."""

    inputs: Mapping[str, frozenset[str]]
    """Graph → the names of the inputs it must have."""
    translate: Callable[[Manifest, Mapping[str, Runs], NoiseField, Float32, Shape3], Float32]
    """``(manifest, graphs, noise, x, start)`` → x_c: tiles (1, 1, slice, row, column) in [-1, 1] where the
    graphs run, ``start`` in model voxels."""
    optional: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Graph → the names of the inputs it may have besides."""
    encoders: frozenset[str] = frozenset()
    """The graphs whose answer follows from the tile alone, whatever noise is drawn."""


FAMILIES: dict[str, Family] = {
    "s2ldm": Family(s2ldm.INPUTS, s2ldm.translate, s2ldm.OPTIONAL, s2ldm.ENCODERS),
    "translator": Family(translator.INPUTS, translator.translate),
}
