"""A bundle back to torch: architecture from its run card, weights from its graphs, which keep their names.

``python -m export.restore BUNDLE OUT`` writes OUT/checkpoint.pt, from which training goes on where the one
that the bundle was exported from is not to be had. It has the weights that the node serves (large ones
rounded to half precision by the export) and optimisers that begin anew. Nothing is written unless engine and
torch paint the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from lightning.fabric import Fabric
from pydantic import ValidationError
from torch import nn

from engine import samplers
from engine.bundle import Bundle, read_bundle
from engine.errors import BundleInvalid
from engine.families import s2ldm
from engine.session import SessionPolicy, open_graphs
from engine.volume import Float32, Shape3
from export.graph import weights_of
from export.model import Called
from export.parity import DEFAULT_TOLERANCE, example_tile, in_torch, whole_figures
from export.s2ldm import JOINT, STAGE, Model, as_wide_as
from train import checkpoint as ckpt
from train.config import TrainConfig
from train.loop import Parts
from train.s2ldm import train_diffusion as two
from train.s2ldm import train_joint as three
from train.s2ldm.denoiser import Denoiser

Run = Callable[..., Float32]


def restore(bundle: Bundle, out: Path) -> Path:
    """Write ``out``/checkpoint.pt of the bundle's last stage; returns it. Raises BundleInvalid."""
    model, run = rebuild(bundle), bundle.manifest.run
    _require_same(bundle, model)
    stage = JOINT if "stage_two" in run else STAGE
    loop = getattr(model.config, stage).loop
    out.mkdir(parents=True, exist_ok=True)
    ckpt.save(
        out / ckpt.NAME,
        ckpt.Checkpoint(
            stage=stage,
            config=model.config.model_dump_json(),
            digest=run["config_digest"],
            step=run["steps"],
            elapsed_s=60 * run["minutes"],
            total_steps=loop.steps,
            max_minutes=loop.max_minutes,
            states=PARTS[stage](model).states(),
            rng=ckpt.rng_state(),
            extras={"graphs_of": bundle.digest},
        ),
    )
    return out / ckpt.NAME


def _joint(model: Model) -> Parts:
    """Stage 3 as it stands before its first step, with the weights of ``model``."""
    translator = three.LatentTranslator(model.config, model.scale)
    translator.denoiser.load_state_dict(model.denoiser.state_dict())
    translator.autoencoder.load_state_dict(model.autoencoder.state_dict())
    return three.assemble(model.config, _fabric(), translator, {})


def _diffusion(model: Model) -> Parts:
    """The same of stage 2."""
    training = two.assemble(model.config, _fabric(), two.freeze(model.autoencoder), {}, Path())
    training.scale = model.scale
    for denoiser in (training.denoiser, training.ema):
        denoiser.module.load_state_dict(model.denoiser.state_dict())
    return training


PARTS: Mapping[str, Callable[[Model], Parts]] = {STAGE: _diffusion, JOINT: _joint}


def _fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def _require_same(bundle: Bundle, model: Model) -> None:
    """One tile by the engine and by torch. Raises BundleInvalid where they differ more than at export."""
    modules = modules_of(bundle, model)
    sessions = open_graphs(bundle, SessionPolicy(provider="cpu")).graphs
    inputs = {name: graph.inputs for name, graph in sessions.items()}
    x, (low, high) = example_tile(model), bundle.manifest.window_hu
    served = tile(bundle, lambda name, **given: sessions[name](**given), inputs, x)
    painted = tile(bundle, lambda name, **given: in_torch(modules[name], **given), inputs, x)
    hu = whole_figures(served, painted, (high - low) / 2)["hu_mean"]
    if not hu <= DEFAULT_TOLERANCE.whole_hu_mean:
        raise BundleInvalid(
            bundle.folder, f"torch with the weights of its graphs is {hu:.3g} HU from what they paint"
        )


def tile(bundle: Bundle, run: Run, inputs: Mapping[str, Mapping[str, Any]], x: Float32) -> Float32:
    """One tile through every graph without noise, on the host; ``inputs`` names what each of them takes."""
    latent, sampler = s2ldm.parameters(bundle.manifest)
    called = {name: Called(partial(run, name), taken) for name, taken in inputs.items()}

    def silence(cells: Shape3) -> Float32:
        return np.zeros((samplers.noise_fields(sampler), 1, latent.channels, *cells), np.float32)

    return np.asarray(s2ldm.paint(called, s2ldm.sample(sampler, called, x, silence), x))


def modules_of(bundle: Bundle, model: Model) -> dict[str, nn.Module]:
    """The networks of ``rebuild`` under the names of the bundle's graphs."""
    whole = {} if "condition" in bundle.manifest.graphs else {"denoiser": model.denoiser}
    return model.graphs() | whole


def rebuild(bundle: Bundle) -> Model:
    """The torch networks of a bundle: architecture from its run card, weights from its graphs.

    Raises BundleInvalid for another method's, and where a graph lacks a weight, as one made by other means
    would.
    """
    config = _config_of(bundle)
    found = {name: _weights(bundle, name) for name in bundle.manifest.graphs}
    autoencoder = as_wide_as(config, {name.removeprefix("autoencoder.") for name in found["decoder"]})
    _fill(bundle, autoencoder, found["encoder"] | found["decoder"], "autoencoder.")
    denoiser = Denoiser(config, bundle.manifest.phase)
    split = "condition" in found
    _fill(bundle, denoiser, found["denoiser"] | found.get("condition", {}), "denoiser." if split else "")
    assert bundle.manifest.latent is not None
    return Model(config, autoencoder.eval(), denoiser.eval(), bundle.manifest.latent.scale, {})


def _config_of(bundle: Bundle) -> TrainConfig:
    try:
        return TrainConfig.model_validate(bundle.manifest.run.get("config"))
    except ValidationError as error:
        reason = (
            f"not an S²LDM by its run card (family {bundle.manifest.family!r}): no torch network is known"
        )
        raise BundleInvalid(bundle.folder, reason) from error


def _weights(bundle: Bundle, graph: str) -> dict[str, torch.Tensor]:
    return weights_of(onnx.load_from_string(bundle.graph_bytes(graph)))


def _fill(bundle: Bundle, module: nn.Module, weights: dict[str, torch.Tensor], prefix: str) -> None:
    missing = []
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            value = weights.get(prefix + name)
            if value is None or value.numel() != parameter.numel():
                missing.append(name)
                continue
            parameter.copy_(value.reshape(parameter.shape))
        for name, buffer in module.named_buffers():
            if prefix + name in weights:
                buffer.copy_(weights[prefix + name])
    if missing:
        raise BundleInvalid(bundle.folder, f"its graphs lack the weights {', '.join(missing[:3])} …")


def main(arguments: Sequence[str]) -> None:
    """Write the checkpoint and say where it is."""
    source, out = (Path(argument) for argument in arguments)
    try:
        sys.stdout.write(f"{restore(read_bundle(source), out)}\n")
    except BundleInvalid as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
