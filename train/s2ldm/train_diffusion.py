"""Stage 2 from top to bottom.

``s2node train diffusion --config config/train/demo.toml --autoencoder runs/venous-1 --out runs/venous-2``

The autoencoder of stage 1 is frozen and travels inside the checkpoint, so that one file is a whole model.
Latents are divided by their standard deviation, measured once; eq. 3's 𝒯 is kept in the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from engine import samplers
from engine.volume import Float32
from train import checkpoint as ckpt
from train.ahead import Batches
from train.config import TrainConfig
from train.data import Pairs
from train.loop import Parts, Plan, count_parameters, descend, require_same_patients, set_rate, train
from train.recompute import recompute
from train.s2ldm import losses
from train.s2ldm.autoencoder import SyncreticAutoencoder
from train.s2ldm.denoiser import Denoiser, split_phase
from train.s2ldm.encoded import encoded_pairs
from train.s2ldm.formulation import loss, pose, sampler_spec
from train.s2ldm.train_autoencoder import STAGE as STAGE_ONE

STAGE = "diffusion"
SCALE_LATENTS = 64


def train_diffusion(
    config: TrainConfig, autoencoder: Path, out: Path, cache: Path, resume: bool = False
) -> Path:
    """Train stage 2 on the stage 1 checkpoint ``autoencoder``; returns the new checkpoint's path."""
    plan = Plan(STAGE, config, config.diffusion.loop)
    return train(plan, lambda fabric: build(config, fabric, autoencoder, cache), out, cache, resume)


def build(config: TrainConfig, fabric: Fabric, autoencoder: Path, cache: Path) -> DiffusionTraining:
    """The frozen stage 1 of a finished run, and what stands on it. Raises CheckpointUnusable."""
    return assemble(config, fabric, *load_frozen(autoencoder, config), cache)


def assemble(
    config: TrainConfig,
    fabric: Fabric,
    frozen: SyncreticAutoencoder,
    stage_one: dict[str, Any],
    cache: Path,
) -> DiffusionTraining:
    """The frozen stage 1, the denoiser, its average and its optimiser."""
    this, o = config.diffusion, config.diffusion.optimiser
    denoiser = Denoiser(config).to(memory_format=torch.channels_last_3d)
    optimiser = AdamW(denoiser.parameters(), lr=o.lr, betas=o.betas, weight_decay=o.weight_decay)
    ema = AveragedModel(denoiser, multi_avg_fn=get_ema_multi_avg_fn(this.loop.ema))
    if this.loop.recompute:
        recompute([*denoiser.unet.down_blocks, *denoiser.unet.up_blocks])
    denoiser, optimiser = fabric.setup(denoiser, optimiser)
    ema, frozen = fabric.to_device(ema), fabric.to_device(frozen)
    return DiffusionTraining(config, fabric, denoiser, ema, optimiser, frozen, 1.0, stage_one, cache)


def load_frozen(folder: Path, config: TrainConfig) -> tuple[SyncreticAutoencoder, dict[str, Any]]:
    """Stage 1's averaged weights, frozen, and what its checkpoint says. Raises CheckpointUnusable."""
    file = ckpt.file_of(folder)
    found = ckpt.load(file, STAGE_ONE)
    ckpt.require_same(file, found, config.digest(STAGE_ONE))
    require_same_patients(file, found, config.data)
    autoencoder = SyncreticAutoencoder(config.autoencoder)
    autoencoder.load_state_dict(ckpt.averaged(found.states["ema"]))
    return freeze(autoencoder), found.facts()


def freeze(autoencoder: SyncreticAutoencoder) -> SyncreticAutoencoder:
    """No gradient, no moving codebook."""
    autoencoder.requires_grad_(False)
    return autoencoder.eval().to(memory_format=torch.channels_last_3d)


@dataclass(slots=True)
class DiffusionTraining(Parts):
    """Everything stage 2 moves, and the frozen stage 1 with its latent scale (``train.loop.Method``)."""

    parts = ("denoiser", "ema", "optimiser", "autoencoder")
    numbers = ("scale",)
    config: TrainConfig
    fabric: Fabric
    denoiser: nn.Module
    ema: AveragedModel
    optimiser: Optimizer
    autoencoder: SyncreticAutoencoder
    scale: float
    stage_one: dict[str, Any]
    cache: Path

    def begin(self, pairs: Pairs, resumed: bool) -> Batches:
        """Measure the latents' scale, once; encode the crops where that is done once."""
        if not resumed:
            self.scale = latent_scale(self.config, self.fabric, self.autoencoder, pairs)
        if not self.config.diffusion.encoded_crops:
            return pairs
        return encoded_pairs(self.config, self.fabric, self.autoencoder, pairs, self.cache)

    def step(self, progress: float, x_n: Tensor, *rest: Tensor) -> dict[str, Tensor]:
        """Encode unless that is done, pose the question, one optimiser step of the denoiser.

        ``rest`` is x_c, or E_n and E_c of ``EncodedPairs``; then the phases where both are learnt.
        """
        this = self.config.diffusion
        rate = set_rate(self.optimiser, this.optimiser, progress)
        rest, phase = split_phase(self.config, x_n, rest)
        encoded = len(rest) == 2
        e_n, e_c = (e * self.scale for e in rest) if encoded else self.encode_pair(x_n, *rest)
        problem = pose(this, e_n, e_c, progress)
        answer = self.denoiser(problem.z_t, problem.source, problem.t, x_n, phase)
        l_diff = loss(this, answer, problem, None if encoded else self.cell_weight(x_n, *rest))
        self.optimiser.zero_grad(set_to_none=True)
        self.fabric.backward(l_diff)
        skipped = descend(self.fabric, self.denoiser, self.optimiser, this.optimiser.clip)
        self.ema.update_parameters(self.denoiser.module)
        gap = (e_c - e_n).abs().mean()
        return {"loss/diff": l_diff.detach(), "latent_gap": gap, "lr": rate, "skipped": skipped}

    def cell_weight(self, x_n: Tensor, x_c: Tensor) -> Tensor | None:
        """``diffusion.local``: the mean weight of each latent cell's voxels, (B, 1, d, h, w)."""
        low, high = self.config.data.window_hu
        voxels = losses.enhancement_weight(x_n, x_c, 0.0, high - low, self.config.diffusion.local)
        factor = self.config.autoencoder.factor
        return None if voxels is None else F.avg_pool3d(voxels, factor, factor)

    @torch.no_grad()
    def encode_pair(self, x_n: Tensor, x_c: Tensor) -> tuple[Tensor, Tensor]:
        """(E_n, E_c), scaled to unit deviation, fp32."""
        with self.fabric.autocast():
            latents = self.autoencoder.encode(torch.cat([x_n, x_c])).float() * self.scale
        return latents[: len(x_n)], latents[len(x_n) :]

    def show(self, x_n: Tensor, x_c: Tensor, seed: int, *phase: Tensor) -> dict[str, Tensor]:
        """D(E_n), stage 1 alone, and the whole model as it runs in service."""
        e_n, _ = self.encode_pair(x_n, x_c)
        z = self.translate(e_n, x_n, seed, split_phase(self.config, x_n, phase)[1])
        with self.fabric.autocast():
            stage1, model = (self.autoencoder.decode(e / self.scale, x_n).float() for e in (e_n, z))
        return {"stage1": stage1, "model": model}

    def translate(self, e_n: Tensor, x_n: Tensor, seed: int, phase: Tensor | None = None) -> Tensor:
        """Run the engine's own sampler on the averaged network."""
        denoiser = self.ema.module.eval()
        spec = sampler_spec(self.config.diffusion)

        def predict(z: Float32, source: Float32, t: float) -> Float32:
            tensors = [self.tensor(x) for x in (z, source)]
            with self.fabric.autocast():
                answer: Tensor = denoiser(*tensors, torch.full((len(z),), t, device=x_n.device), x_n, phase)
            return answer.float().cpu().numpy()

        source = e_n.cpu().numpy()
        shape = (samplers.noise_fields(spec), *source.shape)
        noise = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        return self.tensor(samplers.sample(spec, predict, source, noise))

    def tensor(self, x: Float32) -> Tensor:
        """An array of the engine on the accelerator."""
        return self.fabric.to_device(torch.from_numpy(np.ascontiguousarray(x)))

    def facts(self) -> dict[str, Any]:
        """For the run card."""
        parts = {"denoiser": self.denoiser, "autoencoder": self.autoencoder}
        return {
            "parameters": count_parameters(parts),
            "stage_one": self.stage_one,
            "latent_scale": self.scale,
        }


@torch.no_grad()
def latent_scale(config: TrainConfig, fabric: Fabric, frozen: SyncreticAutoencoder, pairs: Pairs) -> float:
    """1 / standard deviation of E_c over 64 training latents."""
    squares, count = 0.0, 0
    for i in range(SCALE_LATENTS):
        _, x_c, *_ = pairs.batch(config.diffusion.loop.seed + 1, i, 1)
        with fabric.autocast():
            e_c = frozen.encode(fabric.to_device(x_c)).double()
        squares, count = squares + float(e_c.square().sum()), count + e_c.numel()
    return float((count / squares) ** 0.5)
