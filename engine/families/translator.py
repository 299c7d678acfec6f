"""One graph from source to synthesis: the GANs, plain regression, or stage 1 alone."""

from __future__ import annotations

from collections.abc import Mapping

from engine.bundle import Manifest
from engine.noise import NoiseField
from engine.session import Runs
from engine.volume import Float32, Shape3

INPUTS = {"translator": frozenset({"x"})}


def translate(
    manifest: Manifest, graphs: Mapping[str, Runs], noise: NoiseField, x: Float32, start: Shape3
) -> Float32:
    """x_c = T(x), both (1, 1, slice, row, column) in [-1, 1]; nothing here is random."""
    return graphs["translator"](x=x)
