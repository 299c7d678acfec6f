"""Stage 2 from top to bottom.

``s2node train diffusion --config config/train/demo.toml --autoencoder runs/venous-1 --out runs/venous-2``

The autoencoder of stage 1 is frozen and travels inside the checkpoint, so that one file is a whole model.
Latents are divided by their standard deviation, measured once; eq. 3's 𝒯 is kept in the checkpoint.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.fabric
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from engine import samplers
from engine.volume import Float32
from train import checkpoint as ckpt
from train.budget import Budget, StopRequest, learning_rate, stop_on_signal
from train.config import TrainConfig
from train.data import Pairs, training_pairs, validation_pairs
from train.run import Monitor, now_utc, write_card
from train.s2ldm.autoencoder import SyncreticAutoencoder
from train.s2ldm.denoiser import Denoiser
from train.s2ldm.formulation import loss, pose, sampler_spec
from train.s2ldm.train_autoencoder import STAGE as STAGE_ONE
from train.s2ldm.train_autoencoder import card, descend, pick_up, psnr, start

STAGE = "diffusion"
SCALE_LATENTS = 64
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Models:
    """Everything stage 2 moves, and the frozen stage 1 with its latent scale."""

    denoiser: nn.Module
    ema: AveragedModel
    optimiser: torch.optim.Optimizer
    autoencoder: SyncreticAutoencoder
    scale: float

    def states(self) -> dict[str, Any]:
        """State of every part, for the checkpoint."""
        moving = {"denoiser": self.denoiser, "ema": self.ema, "optimiser": self.optimiser}
        frozen = {"autoencoder": self.autoencoder}
        return {name: part.state_dict() for name, part in (moving | frozen).items()} | {"scale": self.scale}

    def restore(self, states: dict[str, Any]) -> None:
        """Put every part back; strict."""
        for name in ("denoiser", "ema", "optimiser", "autoencoder"):
            getattr(self, name).load_state_dict(states[name])
        self.scale = states["scale"]


def train_diffusion(
    config: TrainConfig, autoencoder: Path, out: Path, cache: Path, resume: bool = False
) -> Path:
    """Train stage 2 on the stage 1 checkpoint ``autoencoder``; returns the new checkpoint's path."""
    this = config.diffusion
    fabric = start(this.loop.precision, this.loop.threads, this.loop.seed)
    out.mkdir(parents=True, exist_ok=True)
    file = out / ckpt.NAME
    started = now_utc()
    frozen, stage_one = load_frozen(autoencoder, config)
    pairs = training_pairs(config.data, cache, lambda n, of: log.info("phantom %d of %d", n, of))
    held_out = validation_pairs(config.data, cache)
    models = build(config, fabric, frozen)
    budget = Budget(this.loop)
    pick_up(file, resume, STAGE, config, models, budget)
    if not resume:
        models.scale = latent_scale(config, fabric, frozen, pairs)
    with Monitor(out, budget, f"diffusion {config.data.phase}") as monitor, stop_on_signal() as stop:
        loop(config, fabric, models, budget, pairs, held_out, monitor, stop, file)
    parts = {"denoiser": models.denoiser, "autoencoder": models.autoencoder}
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    words = card(STAGE, config, budget, monitor.latest, started, parameters, held_out)
    write_card(out, words | {"stage_one": stage_one, "latent_scale": models.scale})
    return file


def load_frozen(folder: Path, config: TrainConfig) -> tuple[SyncreticAutoencoder, dict[str, Any]]:
    """Stage 1's averaged weights, frozen, and what its checkpoint says. Raises CheckpointUnusable."""
    file = folder / ckpt.NAME if folder.is_dir() else folder
    found = ckpt.load(file, STAGE_ONE)
    ckpt.require_same(file, found, config.digest(STAGE_ONE))
    autoencoder = SyncreticAutoencoder(config.autoencoder)
    weights = {k.removeprefix("module."): v for k, v in found.states["ema"].items() if k != "n_averaged"}
    autoencoder.load_state_dict(weights)
    facts = {"steps": found.step, "minutes": round(found.elapsed_s / 60, 2), "config_digest": found.digest}
    return freeze(autoencoder), facts


def freeze(autoencoder: SyncreticAutoencoder) -> SyncreticAutoencoder:
    """No gradient, no moving codebook."""
    autoencoder.requires_grad_(False)
    return autoencoder.eval().to(memory_format=torch.channels_last_3d)


def build(config: TrainConfig, fabric: lightning.fabric.Fabric, frozen: SyncreticAutoencoder) -> Models:
    """The denoiser, its average and its optimiser."""
    this, o = config.diffusion, config.diffusion.optimiser
    denoiser = Denoiser(this, config.autoencoder).to(memory_format=torch.channels_last_3d)
    optimiser = torch.optim.AdamW(denoiser.parameters(), lr=o.lr, betas=o.betas, weight_decay=o.weight_decay)
    ema = AveragedModel(denoiser, multi_avg_fn=get_ema_multi_avg_fn(this.loop.ema))
    denoiser, optimiser = fabric.setup(denoiser, optimiser)
    return Models(denoiser, fabric.to_device(ema), optimiser, fabric.to_device(frozen), 1.0)


@torch.no_grad()
def latent_scale(
    config: TrainConfig, fabric: lightning.fabric.Fabric, frozen: SyncreticAutoencoder, pairs: Pairs
) -> float:
    """1 / standard deviation of E_c over 64 training latents."""
    squares, count = 0.0, 0
    for i in range(SCALE_LATENTS):
        _, x_c = pairs.batch(config.diffusion.loop.seed + 1, i, 1)
        with fabric.autocast():
            e_c = frozen.encode(fabric.to_device(x_c)).double()
        squares, count = squares + float(e_c.square().sum()), count + e_c.numel()
    return float((count / squares) ** 0.5)


def loop(
    config: TrainConfig,
    fabric: lightning.fabric.Fabric,
    models: Models,
    budget: Budget,
    pairs: Pairs,
    held_out: Pairs,
    monitor: Monitor,
    stop: StopRequest,
    file: Path,
) -> None:
    """Steps until the budget is spent; a checkpoint every few minutes, at the end and on request."""
    this = config.diffusion
    last_save = time.monotonic()
    while not budget.spent and not stop:
        began = time.monotonic()
        x_n, x_c = (fabric.to_device(x) for x in pairs.batch(this.loop.seed, budget.step, this.loop.batch))
        values = step(config, fabric, models, budget.progress, x_n, x_c)
        budget.step += 1
        budget.elapsed_s += time.monotonic() - began
        if budget.step % this.loop.log_steps == 0:
            monitor.record({name: float(value) for name, value in values.items()})
        if time.monotonic() - last_save > 60 * this.loop.checkpoint_minutes:
            monitor.record(validate(config, fabric, models, held_out))
            save(file, config, models, budget)
            last_save = time.monotonic()
    monitor.record(validate(config, fabric, models, held_out))
    save(file, config, models, budget)


def step(
    config: TrainConfig,
    fabric: lightning.fabric.Fabric,
    models: Models,
    progress: float,
    x_n: Tensor,
    x_c: Tensor,
) -> dict[str, Tensor]:
    """Encode, pose the question, one optimiser step of the denoiser."""
    this = config.diffusion
    rate = learning_rate(this.optimiser, progress)
    for group in models.optimiser.param_groups:
        group["lr"] = rate
    e_n, e_c = encode_pair(fabric, models, x_n, x_c)
    problem = pose(this, e_n, e_c, progress)
    answer = models.denoiser(problem.z_t, problem.source, problem.t, x_n)
    l_diff = loss(this, answer, problem)
    models.optimiser.zero_grad(set_to_none=True)
    fabric.backward(l_diff)
    skipped = descend(fabric, models.denoiser, models.optimiser, this.optimiser.clip)
    models.ema.update_parameters(models.denoiser.module)
    still = (e_c - e_n).abs().mean()
    return {"loss/diff": l_diff.detach(), "latent_gap": still, "lr": torch.tensor(rate), "skipped": skipped}


@torch.no_grad()
def encode_pair(
    fabric: lightning.fabric.Fabric, models: Models, x_n: Tensor, x_c: Tensor
) -> tuple[Tensor, Tensor]:
    """(E_n, E_c), scaled to unit deviation, fp32."""
    with fabric.autocast():
        latents = models.autoencoder.encode(torch.cat([x_n, x_c])).float() * models.scale
    return latents[: len(x_n)], latents[len(x_n) :]


@torch.no_grad()
def validate(
    config: TrainConfig, fabric: lightning.fabric.Fabric, models: Models, held_out: Pairs
) -> dict[str, float]:
    """PSNR (range = window) on fixed crops never learnt from: source as is, D(E_n), the whole model."""
    denoiser = models.ema.module.eval()
    sums = torch.zeros(3)
    count = config.diffusion.loop.validation_crops
    for i in range(count):
        x_n, x_c = (fabric.to_device(x) for x in held_out.batch(1, i, 1))
        e_n, _ = encode_pair(fabric, models, x_n, x_c)
        z = translate(config, fabric, denoiser, e_n, x_n, seed=i)
        with fabric.autocast():
            painted = [models.autoencoder.decode(latent / models.scale, x_n).float() for latent in (e_n, z)]
        sums += torch.tensor([psnr(x, x_c) for x in (x_n, *painted)])
    names = ("identity", "stage1", "model")
    return {f"psnr/{name}": float(value) for name, value in zip(names, sums / count, strict=True)}


def translate(
    config: TrainConfig,
    fabric: lightning.fabric.Fabric,
    denoiser: nn.Module,
    e_n: Tensor,
    x_n: Tensor,
    seed: int,
) -> Tensor:
    """Run the engine's own sampler on this network."""
    spec = sampler_spec(config.diffusion)

    def predict(z: Float32, source: Float32, t: float) -> Float32:
        with fabric.autocast():
            tensors = (fabric.to_device(torch.from_numpy(np.ascontiguousarray(x))) for x in (z, source))
            answer: Tensor = denoiser(*tensors, torch.full((len(z),), t, device=fabric.device), x_n)
        return answer.float().cpu().numpy()

    source = e_n.cpu().numpy()
    shape = (samplers.noise_fields(spec), *source.shape)
    noise = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return fabric.to_device(torch.from_numpy(samplers.sample(spec, predict, source, noise)))


def save(file: Path, config: TrainConfig, models: Models, budget: Budget) -> None:
    """Write the checkpoint of this moment."""
    ckpt.save(
        file,
        ckpt.Checkpoint(
            stage=STAGE,
            config=config.model_dump_json(),
            digest=config.digest(STAGE),
            step=budget.step,
            elapsed_s=budget.elapsed_s,
            total_steps=budget.loop.steps,
            max_minutes=budget.loop.max_minutes,
            states=models.states(),
            rng=ckpt.rng_state(),
        ),
    )
