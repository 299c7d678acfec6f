"""S²LDM in service: E_n = E(x), c = C(x, E_n), ẑ = sampler(E_n, c), x_c = D(ẑ) or D(ẑ, x)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
OPTIONAL = {
    "condition": frozenset({"x", "e_n"}),
    "denoiser": frozenset({"x", "c"}),
    "decoder": frozenset({"x"}),
}
"""A denoiser conditioned on the source, as it is or as a graph of its own sees it once for all steps; and a
decoder that paints onto the source, D(z, x) = x + Δ(z, x)."""

ENCODERS = frozenset({"encoder", "condition"})

Draw = Callable[[Shape3], Float32]
"""``draw(cells)``: the sampler's noise fields for a latent of that size."""


def translate(
    manifest: Manifest, graphs: Mapping[str, Runs], noise: NoiseField, x: Float32, start: Shape3
) -> Float32:
    """x_c of one tile, (1, 1, slice, row, column) in [-1, 1]; S of eq. 3 is 1 in service: in no graph."""
    latent, sampler = parameters(manifest)

    def draw(cells: Shape3) -> Float32:
        return noise.block(
            samplers.noise_fields(sampler), latent.channels, latent_start(latent, start), cells
        )

    return paint(graphs, sample(sampler, graphs, x, draw), x)


def sample(sampler: SamplerSpec, graphs: Mapping[str, Runs], x: Float32, draw: Draw) -> Float32:
    """ẑ of one tile."""
    denoiser, e_n = graphs["denoiser"], graphs["encoder"](x=x)
    known = {"x": x, "e_n": e_n}
    if condition := graphs.get("condition"):
        known["c"] = condition(**{name: known[name] for name in condition.inputs})
    same = {name: known[name] for name in denoiser.inputs if name in ("x", "c")}

    def predict(z_t: Float32, e_n: Float32, t: float) -> Float32:
        return denoiser(z_t=z_t, e_n=e_n, t=np.array([t], dtype=np.float32), **same)

    return samplers.sample(sampler, predict, e_n, draw((e_n.shape[2], e_n.shape[3], e_n.shape[4])))


def paint(graphs: Mapping[str, Runs], z: Float32, x: Float32) -> Float32:
    """D(z), or D(z, x) where the decoder takes x."""
    decoder = graphs["decoder"]
    return decoder(z=z, **({"x": x} if "x" in decoder.inputs else {}))


def latent_start(latent: LatentSpec, start: Shape3) -> Shape3:
    """The latent cell of a voxel that lies on the latent grid."""
    z, y, x = (s // f for s, f in zip(start, latent.factor, strict=True))
    return (z, y, x)


def parameters(manifest: Manifest) -> tuple[LatentSpec, SamplerSpec]:
    """The two parts that a manifest of this family always has."""
    if manifest.latent is None or manifest.sampler is None:
        raise ValueError("a manifest of family 's2ldm' has latent and sampler")
    return manifest.latent, manifest.sampler
