"""A finished stage 2 or 3 learns on: the same networks and optimisers, other pairs, a budget of its own."""

from __future__ import annotations

from pathlib import Path

from lightning.fabric import Fabric

from train import checkpoint as ckpt
from train.config import TrainConfig
from train.loop import Plan, train
from train.s2ldm import train_diffusion as two
from train.s2ldm import train_joint as three
from train.s2ldm.autoencoder import SyncreticAutoencoder


def go_on_with_diffusion(
    config: TrainConfig, start: ckpt.Checkpoint, out: Path, cache: Path, resume: bool = False
) -> Path:
    """Stage 2; its stage 1 and the scale of its latents stay as they are."""
    plan = Plan(two.STAGE, config, config.diffusion.loop)
    frozen = two.freeze(SyncreticAutoencoder(config.autoencoder))

    def build(fabric: Fabric) -> two.DiffusionTraining:
        return two.assemble(config, fabric, frozen, _origin(start), cache)

    return train(plan, build, out, cache, resume, start.states)


def go_on_with_joint(
    config: TrainConfig, start: ckpt.Checkpoint, out: Path, cache: Path, resume: bool = False
) -> Path:
    """Stage 3; encoder, codebook and scale stay as they are."""
    plan = Plan(three.STAGE, config, config.joint.loop)
    translator = three.LatentTranslator(config, float(start.states["scale"]))

    def build(fabric: Fabric) -> three.JointTraining:
        return three.assemble(config, fabric, translator, _origin(start))

    return train(plan, build, out, cache, resume, start.states)


def _origin(start: ckpt.Checkpoint) -> dict[str, object]:
    known = {"steps": start.step, "config_digest": start.digest}
    return {"went_on_from": known | {k: v for k, v in start.extras.items() if k == "graphs_of"}}
