"""S²LDM in service: E_n = E(x), ẑ = sampler(E_n), x_c = D(ẑ) or D(ẑ, x)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from engine import samplers
from engine.bundle import LatentSpec, Manifest, SamplerSpec
from engine.noise import NoiseField
from engine.session import Runs
from engine.volume import Float32, Shape3

INPUTS = {
    "encoder": frozenset({"x"}),
    "denoiser": frozenset({"z_t", "e_n", "t"}),
    "decoder": frozenset({"z"}),
}
OPTIONAL = {"denoiser": frozenset({"x"}), "decoder": frozenset({"x"})}
"""A denoiser conditioned on the source, and a decoder that paints onto it, D(z, x) = x + Δ(z, x)."""


def translate(
    manifest: Manifest, graphs: Mapping[str, Runs], noise: NoiseField, x: Float32, start: Shape3
) -> Float32:
    """x_c of one tile, (1, 1, slice, row, column) in [-1, 1]; S of eq. 3 is 1 in service: in no graph."""
    latent, sampler = parameters(manifest)
    denoiser, decoder = graphs["denoiser"], graphs["decoder"]
    condition, canvas = ({"x": x} if "x" in graph.inputs else {} for graph in (denoiser, decoder))

    def predict(z_t: Float32, e_n: Float32, t: float) -> Float32:
        return denoiser(z_t=z_t, e_n=e_n, t=np.array([t], dtype=np.float32), **condition)

    e_n = graphs["encoder"](x=x)
    cells = (e_n.shape[2], e_n.shape[3], e_n.shape[4])
    epsilon = noise.block(samplers.noise_fields(sampler), latent.channels, latent_start(latent, start), cells)
    z = samplers.sample(sampler, predict, e_n, epsilon)
    return decoder(z=z, **canvas)


def latent_start(latent: LatentSpec, start: Shape3) -> Shape3:
    """The latent cell of a voxel that lies on the latent grid."""
    z, y, x = (s // f for s, f in zip(start, latent.factor, strict=True))
    return (z, y, x)


def parameters(manifest: Manifest) -> tuple[LatentSpec, SamplerSpec]:
    """The two parts that a manifest of this family always has."""
    if manifest.latent is None or manifest.sampler is None:
        raise ValueError("a manifest of family 's2ldm' has latent and sampler")
    return manifest.latent, manifest.sampler
