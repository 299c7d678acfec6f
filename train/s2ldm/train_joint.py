"""Stage 3 from top to bottom; the paper has two.

``s2node train joint --config config/train/demo.toml --diffusion runs/venous-2 --out runs/venous-3``

Stage 1's decoder has painted from E_c alone, and stage 2 is judged in latents, where a thin vessel counts no
more than a cell of fat. Here ẑ is sampled as in service, and L_rec(D(Q(ẑ)), x_c) of eq. 2 moves denoiser and
decoder; encoder and codebook stay as they are. It takes the bridge with σ = 0, whose few Euler steps can be
followed back.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from train import checkpoint as ckpt
from train.config import TrainConfig
from train.data import Pairs
from train.loop import Parts, Plan, count_parameters, descend, require_same_patients, set_rate, train
from train.recompute import recompute
from train.s2ldm import losses
from train.s2ldm.autoencoder import SyncreticAutoencoder
from train.s2ldm.denoiser import Denoiser, split_phase
from train.s2ldm.train_diffusion import STAGE as STAGE_TWO

STAGE = "joint"


def train_joint(config: TrainConfig, diffusion: Path, out: Path, cache: Path, resume: bool = False) -> Path:
    """Train stage 3 on the stage 2 checkpoint ``diffusion``; returns the new checkpoint's path."""
    plan = Plan(STAGE, config, config.joint.loop)
    return train(plan, lambda fabric: build(config, fabric, diffusion), out, cache, resume)


def build(config: TrainConfig, fabric: Fabric, diffusion: Path) -> JointTraining:
    """The whole model of stage 2, its average and its optimiser. Raises CheckpointUnusable."""
    return assemble(config, fabric, *load_translator(diffusion, config))


def assemble(
    config: TrainConfig, fabric: Fabric, translator: LatentTranslator, origin: dict[str, Any]
) -> JointTraining:
    """A model with its average and its optimiser; ``origin`` says where it comes from."""
    this, o = config.joint, config.joint.optimiser
    translator = translator.to(memory_format=torch.channels_last_3d)
    scale = translator.scale
    ema = AveragedModel(translator, multi_avg_fn=get_ema_multi_avg_fn(this.loop.ema))
    moving = [p for p in translator.parameters() if p.requires_grad]
    optimiser = AdamW(moving, lr=o.lr, betas=o.betas, weight_decay=o.weight_decay)
    if this.loop.recompute:
        unet = translator.denoiser.unet
        recompute([*unet.down_blocks, *unet.up_blocks, *translator.autoencoder.decoder.blocks])
    network, optimiser = fabric.setup(translator, optimiser)
    return JointTraining(config, fabric, network, fabric.to_device(ema), optimiser, scale, origin)


class LatentTranslator(nn.Module):
    """x_n (B, 1, D, H, W) in [-1, 1] to x_c, as the engine does it: E, the bridge's Euler steps, Q, D.

    Where the denoiser is told the phase, ``phase`` (B,) has each row's place in ``train.config.PHASES``.
    """

    def __init__(self, config: TrainConfig, scale: float) -> None:
        super().__init__()
        self.denoiser = Denoiser(config)
        window = config.soft_window if config.joint.soft_window else None
        self.autoencoder = SyncreticAutoencoder(config.autoencoder, window, config.joint.fine_blocks)
        self.steps, self.scale = config.diffusion.sampler.steps, scale
        self.autoencoder.encoder.requires_grad_(False)

    def forward(self, x_n: Tensor, phase: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The painted x_c and ẑ, scaled; Q is passed straight through by gradients."""
        z = self.sample(self.encode(x_n), x_n, phase)
        latent = z / self.scale
        if self.autoencoder.quantizer is not None and self.autoencoder.config.quantizer.quantize_at_decode:
            latent = latent + (self.autoencoder.quantizer.lookup(latent) - latent).detach()
        return self.autoencoder.paint(latent, x_n).float(), z

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """E(x), scaled to unit deviation, fp32."""
        return self.autoencoder.encode(x).float() * self.scale

    def sample(self, e_n: Tensor, x_n: Tensor, phase: Tensor | None = None) -> Tensor:
        """ẑ: ``engine.samplers.bridge`` with σ = 0."""
        z, seen = e_n, self.denoiser.look(x_n)
        for k in range(self.steps):
            t = torch.full((len(z),), k / self.steps, device=z.device)
            z = z + self.denoiser.answer(z, e_n, t, seen, phase).float() / self.steps
        return z


def load_translator(folder: Path, config: TrainConfig) -> tuple[LatentTranslator, dict[str, Any]]:
    """Stage 2's model with averaged weights, and what its checkpoint says. Raises CheckpointUnusable."""
    file = ckpt.file_of(folder)
    found = ckpt.load(file, STAGE_TWO)
    ckpt.require_same(file, found, config.digest(STAGE_TWO))
    require_same_patients(file, found, config.data)
    if config.diffusion.formulation != "bridge" or config.diffusion.sigma > 0:
        formulation, sigma = config.diffusion.formulation, config.diffusion.sigma
        raise ckpt.CheckpointUnusable(
            file, f"is {formulation!r} with sigma {sigma:g}; stage 3 takes the bridge with sigma 0"
        )
    translator = LatentTranslator(config, float(found.states["scale"]))
    translator.denoiser.load_state_dict(ckpt.averaged(found.states["ema"]))
    begun = translator.autoencoder.state_dict()
    translator.autoencoder.load_state_dict(begun | found.states["autoencoder"])
    return translator, found.facts()


@dataclass(slots=True)
class JointTraining(Parts):
    """Everything stage 3 moves, and how (``train.loop.Method``)."""

    parts = ("translator", "ema", "optimiser")
    numbers = ("scale",)

    config: TrainConfig
    fabric: Fabric
    translator: nn.Module
    ema: AveragedModel
    optimiser: Optimizer
    scale: float
    stage_two: dict[str, Any]

    def begin(self, pairs: Pairs, resumed: bool) -> Pairs:
        """Nothing to prepare."""
        return pairs

    def step(self, progress: float, x_n: Tensor, *rest: Tensor) -> dict[str, Tensor]:
        """Translate, compare, one optimiser step of denoiser and decoder.

        ``rest`` is x_c, then the phases where both are learnt.
        """
        this = self.config.joint
        rate = set_rate(self.optimiser, this.optimiser, progress)
        (x_c,), phase = split_phase(self.config, x_n, rest)
        painted, z = self.translator(x_n, phase)
        with self.fabric.autocast():
            e_c = self.ema.module.encode(x_c)
        terms = {
            "loss/rec": self.painted_loss(painted, x_n, x_c),
            "loss/latent": this.latent * F.l1_loss(z, e_c),
        }
        self.optimiser.zero_grad(set_to_none=True)
        self.fabric.backward(terms["loss/rec"] + terms["loss/latent"])
        skipped = descend(self.fabric, self.translator, self.optimiser, this.optimiser.clip)
        self.ema.update_parameters(self.translator.module)
        return {name: value.detach() for name, value in terms.items()} | {"lr": rate, "skipped": skipped}

    def painted_loss(self, painted: Tensor, x_n: Tensor, x_c: Tensor) -> Tensor:
        """L_rec as stage 1 weighs it, with ``joint.local`` and ``joint.contrast``, against x_c itself."""
        this, weigh = self.config.joint, self.config.autoencoder.loss
        low, high = self.config.data.window_hu
        voxels = losses.enhancement_weight(x_n, x_c, weigh.enhancement, high - low, this.local)
        painted_loss = losses.reconstruction(painted, x_c, voxels, weigh.square)
        if this.contrast:
            painted_loss = painted_loss + this.contrast * losses.contrast_error(painted, x_c, voxels)
        return painted_loss

    def show(self, x_n: Tensor, x_c: Tensor, seed: int, *phase: Tensor) -> dict[str, Tensor]:
        """The whole model as it runs in service; σ = 0 asks for no noise."""
        with self.fabric.autocast():
            painted, _ = self.ema.module.eval()(x_n, split_phase(self.config, x_n, phase)[1])
        return {"model": painted}

    def facts(self) -> dict[str, Any]:
        """For the run card."""
        parts = {"denoiser": self.ema.module.denoiser, "autoencoder": self.ema.module.autoencoder}
        return {"parameters": count_parameters(parts), "stage_two": self.stage_two}
