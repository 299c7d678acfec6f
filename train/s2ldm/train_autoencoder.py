"""Stage 1 from top to bottom.

``s2node train autoencoder --config config/train/demo.toml --phase venous --out runs/venous-1``

Eq. 2: L_auto = λ_r L_rec(x_F, D(E_c)) + λ_q L_quan + λ_s L_sim(E_c, E_n), with the patch adversary the text
names and ``translate`` · L1(D(E_n), x_c), each by its weight in the configuration.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.fabric
import torch
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from train import checkpoint as ckpt
from train.budget import Budget, StopRequest, learning_rate, stop_on_signal
from train.config import AutoencoderConfig, TrainConfig
from train.data import Pairs, training_pairs, validation_pairs
from train.run import Monitor, machine, now_utc, write_card
from train.s2ldm import losses
from train.s2ldm.autoencoder import StageOne, SyncreticAutoencoder
from train.s2ldm.quantizer import perplexity
from train.s2ldm.similarity import body_mask, cosine, l_sim

STAGE = "autoencoder"
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Models:
    """Everything stage 1 moves."""

    autoencoder: nn.Module
    ema: AveragedModel
    optimiser: torch.optim.Optimizer
    discriminator: nn.Module | None
    discriminator_optimiser: torch.optim.Optimizer | None

    def states(self) -> dict[str, Any]:
        """State of every part, for the checkpoint."""
        parts = {name: getattr(self, name) for name in self.__slots__}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def restore(self, states: dict[str, Any]) -> None:
        """Put every part back; strict."""
        for name, state in states.items():
            getattr(self, name).load_state_dict(state)


def train_autoencoder(config: TrainConfig, out: Path, cache: Path, resume: bool = False) -> Path:
    """Train stage 1 until its budget is spent or a stop is asked for; returns the checkpoint's path."""
    this = config.autoencoder
    fabric = start(this.loop.precision, this.loop.threads, this.loop.seed)
    out.mkdir(parents=True, exist_ok=True)
    file = out / ckpt.NAME
    started = now_utc()
    models = build(this, fabric)
    budget = Budget(this.loop)
    pick_up(file, resume, STAGE, config, models, budget)
    pairs = training_pairs(config.data, cache, lambda n, of: log.info("phantom %d of %d", n, of))
    held_out = validation_pairs(config.data, cache)
    with Monitor(out, budget, f"autoencoder {config.data.phase}") as monitor, stop_on_signal() as stop:
        loop(config, fabric, models, budget, pairs, held_out, monitor, stop, file)
    parameters = {"autoencoder": sum(p.numel() for p in models.autoencoder.parameters())}
    write_card(out, card(STAGE, config, budget, monitor.latest, started, parameters, held_out))
    return file


def build(config: AutoencoderConfig, fabric: lightning.fabric.Fabric) -> Models:
    """Networks, their average and their optimisers."""
    o = config.optimiser
    autoencoder = SyncreticAutoencoder(config).to(memory_format=torch.channels_last_3d)
    optimiser = torch.optim.AdamW(autoencoder.parameters(), o.lr, o.betas, weight_decay=o.weight_decay)
    ema = AveragedModel(autoencoder, multi_avg_fn=get_ema_multi_avg_fn(config.loop.ema))
    autoencoder, optimiser = fabric.setup(autoencoder, optimiser)
    if config.adversarial.weight == 0:
        return Models(autoencoder, fabric.to_device(ema), optimiser, None, None)
    a = config.adversarial
    critic = PatchDiscriminator(
        spatial_dims=3, channels=a.channels, in_channels=1, num_layers_d=a.layers, norm="INSTANCE"
    )
    critic, critic_optimiser = fabric.setup(
        critic, torch.optim.AdamW(critic.parameters(), lr=a.lr, betas=o.betas)
    )
    return Models(autoencoder, fabric.to_device(ema), optimiser, critic, critic_optimiser)


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
    this = config.autoencoder
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
            monitor.record(validate(config, fabric, models.ema.module, held_out))
            save(file, config, models, budget)
            last_save = time.monotonic()
    monitor.record(validate(config, fabric, models.ema.module, held_out))
    save(file, config, models, budget)


def step(
    config: TrainConfig,
    fabric: lightning.fabric.Fabric,
    models: Models,
    progress: float,
    x_n: Tensor,
    x_c: Tensor,
) -> dict[str, Tensor]:
    """One optimiser step of the autoencoder and, once it has started, one of the discriminator."""
    this = config.autoencoder
    rate = learning_rate(this.optimiser, progress)
    for group in models.optimiser.param_groups:
        group["lr"] = rate
    models.autoencoder.train()
    out = models.autoencoder(x_n, x_c)
    terms = stage_one_terms(config, out, x_n, x_c, progress)
    total = torch.stack([value for name, value in terms.items() if name.startswith("loss/")]).sum()
    if models.discriminator is not None and progress >= this.adversarial.start:
        terms["loss/adversarial"] = adversarial_term(this, models, out, terms)
        total = total + terms["loss/adversarial"]
    models.optimiser.zero_grad(set_to_none=True)
    fabric.backward(total)
    skipped = descend(fabric, models.autoencoder, models.optimiser, this.optimiser.clip)
    models.ema.update_parameters(models.autoencoder.module)
    if models.discriminator is not None and progress >= this.adversarial.start:
        terms["discriminator"] = discriminator_step(this, fabric, models, out, x_c)
    return {name: value.detach() for name, value in terms.items()} | {
        "lr": torch.tensor(rate),
        "skipped": skipped,
    }


def descend(
    fabric: lightning.fabric.Fabric, network: nn.Module, optimiser: torch.optim.Optimizer, clip: float
) -> Tensor:
    """Clip and step, unless a gradient is not a number; returns 1 where the step was skipped.

    oneDNN's bf16 convolutions now and then give a weight gradient of NaN (seen with 40 channels, torch 2.13).
    """
    norm = fabric.clip_gradients(network, optimiser, max_norm=clip, error_if_nonfinite=False)
    finite = norm is None or bool(torch.isfinite(norm))
    if finite:
        optimiser.step()
    return torch.tensor(0.0 if finite else 1.0)


def stage_one_terms(
    config: TrainConfig, out: StageOne, x_n: Tensor, x_c: Tensor, progress: float
) -> dict[str, Tensor]:
    """The weighted terms of eq. 2 (names ``loss/…``, to be summed) and what is worth watching."""
    this, weigh = config.autoencoder, config.autoencoder.loss
    target = losses.high_frequency_target(x_c, weigh.x_f)
    low, high = config.data.window_hu
    voxels = losses.enhancement_weight(x_n, x_c, weigh.enhancement, high - low)
    l_rec = losses.reconstruction(out.from_c, target, voxels, weigh.square)
    terms = {"loss/rec": weigh.rec * l_rec, "loss/quan": weigh.quan * out.l_quan}
    if weigh.frequency:
        terms["loss/frequency"] = weigh.frequency * losses.frequency_loss(out.from_c, target)
    if out.from_n is not None:
        l_translate = losses.reconstruction(out.from_n, x_c, voxels, weigh.square)
        terms["loss/translate"] = weigh.translate * l_translate
    if out.e_n is not None:
        body = body_mask(x_n, this.factor) if this.similarity.body_mask else None
        warm = min(1.0, progress / this.similarity.warmup) if this.similarity.warmup else 1.0
        if weigh.sim:
            terms["loss/sim"] = weigh.sim * warm * l_sim(out.e_n, out.e_c, this.similarity, body)
        terms["cosine"] = cosine(out.e_n, out.e_c).mean()
    if out.codes is not None:
        terms["perplexity"] = perplexity(out.codes, this.quantizer.codes)
    return terms


def adversarial_term(
    this: AutoencoderConfig, models: Models, out: StageOne, terms: dict[str, Tensor]
) -> Tensor:
    """Weight · λ · the generator's loss on D(E_c)."""
    assert models.discriminator is not None
    fooled = losses.generator_loss(models.discriminator(out.from_c)[-1].float(), this.adversarial.kind)
    last = models.autoencoder.module.exit.last.weight
    balance = losses.adaptive_weight(terms["loss/rec"], fooled, last) if this.adversarial.adaptive else 1.0
    return this.adversarial.weight * balance * fooled


def discriminator_step(
    this: AutoencoderConfig, fabric: lightning.fabric.Fabric, models: Models, out: StageOne, x_c: Tensor
) -> Tensor:
    """One step of the patch discriminator on x_c against D(E_c)."""
    assert models.discriminator is not None
    assert models.discriminator_optimiser is not None
    on_real = models.discriminator(x_c)[-1].float()
    on_fake = models.discriminator(out.from_c.detach())[-1].float()
    loss = losses.discriminator_loss(on_real, on_fake, this.adversarial.kind)
    models.discriminator_optimiser.zero_grad(set_to_none=True)
    fabric.backward(loss)
    models.discriminator_optimiser.step()
    return loss


@torch.no_grad()
def validate(
    config: TrainConfig, fabric: lightning.fabric.Fabric, autoencoder: nn.Module, held_out: Pairs
) -> dict[str, float]:
    """PSNR (range = window) on fixed crops of cases never learnt from: source as is, D(E_n), D(E_c)."""
    autoencoder.eval()
    sums = torch.zeros(3)
    count = config.autoencoder.loop.validation_crops
    for i in range(count):
        x_n, x_c = (fabric.to_device(x) for x in held_out.batch(1, i, 1))
        with fabric.autocast():
            translated, rebuilt = (autoencoder.decode(autoencoder.encode(x), x_n).float() for x in (x_n, x_c))
        sums += torch.tensor([psnr(x, x_c) for x in (x_n, translated, rebuilt)])
    names = ("identity", "stage1", "rebuilt")
    return {f"psnr/{name}": float(value) for name, value in zip(names, sums / count, strict=True)}


def psnr(x: Tensor, reference: Tensor) -> float:
    """Decibels for tensors in [-1, 1]; x is clamped first."""
    return float(-10 * torch.log10((x.clamp(-1, 1) - reference).square().mean() / 4))


def start(precision: str, threads: int, seed: int) -> lightning.fabric.Fabric:
    """A Fabric on whatever accelerator there is, seeded; ``threads`` > 0 bounds the CPU's."""
    if threads:
        torch.set_num_threads(threads)
    fabric = lightning.fabric.Fabric(accelerator="auto", devices=1, precision=precision)
    fabric.seed_everything(seed, verbose=False)
    fabric.launch()
    return fabric


def pick_up(file: Path, resume: bool, stage: str, config: TrainConfig, models: Any, budget: Budget) -> None:
    """Resume from ``file``, or see that nothing there would be overwritten. Raises CheckpointUnusable."""
    if not resume:
        if file.exists():
            raise ckpt.CheckpointUnusable(file, "exists already: add --resume or choose another --out")
        return
    found = ckpt.load(file, stage)
    ckpt.require_same(file, found, config.digest(stage))
    models.restore(found.states)
    budget.step, budget.elapsed_s = found.step, found.elapsed_s
    ckpt.restore_rng(found.rng)


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


def card(
    stage: str,
    config: TrainConfig,
    budget: Budget,
    latest: dict[str, float],
    started: str,
    parameters: dict[str, int],
    held_out: Pairs,
) -> dict[str, Any]:
    """The run card: what was trained, on what, for how long, how it ended."""
    return {
        "stage": stage,
        "phase": config.data.phase,
        "config": config.model_dump(mode="json"),
        "config_digest": config.digest(stage),
        "steps": budget.step,
        "minutes": round(budget.elapsed_s / 60, 2),
        "finished": budget.spent,
        "started": started,
        "ended": now_utc(),
        "latest": latest,
        "parameters": parameters,
        "validation_cases": len(held_out.cases),
        "machine": machine(),
    }
