"""Stage 1 from top to bottom.

``s2node train autoencoder --config config/train/demo.toml --phase venous --out runs/venous-1``

Eq. 2: L_auto = λ_r L_rec(x_F, D(E_c)) + λ_q L_quan + λ_s L_sim(E_c, E_n), with the patch adversary the text
names and ``translate`` · L1(D(E_n), x_c), each by its weight in the configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from train.config import AdversarialConfig, TrainConfig
from train.data import Pairs
from train.loop import Parts, Plan, count_parameters, descend, measuring_gradients, set_rate, train
from train.recompute import recompute
from train.s2ldm import losses
from train.s2ldm.autoencoder import StageOne, SyncreticAutoencoder
from train.s2ldm.perceptual import PerceptualLoss, load_perceptual
from train.s2ldm.quantizer import perplexity
from train.s2ldm.similarity import body_mask, cosine, l_sim

STAGE = "autoencoder"


def train_autoencoder(config: TrainConfig, out: Path, cache: Path, resume: bool = False) -> Path:
    """Train stage 1 until its budget is spent or a stop is asked for; returns the checkpoint's path."""
    plan = Plan(STAGE, config, config.autoencoder.loop)
    return train(plan, lambda fabric: build(config, fabric), out, cache, resume)


def build(config: TrainConfig, fabric: Fabric) -> AutoencoderTraining:
    """Networks, their average and their optimisers."""
    this, o = config.autoencoder, config.autoencoder.optimiser
    autoencoder = SyncreticAutoencoder(this).to(memory_format=torch.channels_last_3d)
    optimiser = AdamW(autoencoder.parameters(), o.lr, o.betas, weight_decay=o.weight_decay)
    ema = AveragedModel(autoencoder, multi_avg_fn=get_ema_multi_avg_fn(this.loop.ema))
    if this.loop.recompute:
        recompute([*autoencoder.encoder.blocks, *autoencoder.decoder.blocks])
    autoencoder, optimiser = fabric.setup(autoencoder, optimiser)
    critic, critic_optimiser = None, None
    if this.adversarial.weight > 0:
        critic = build_critic(this.adversarial)
        moves = AdamW(critic.parameters(), this.adversarial.lr, o.betas)
        critic, critic_optimiser = fabric.setup(critic, moves)
    ema, perceptual = fabric.to_device(ema), None
    if this.perceptual.weight > 0:
        file = Path(this.perceptual.weights_file)
        perceptual = fabric.to_device(load_perceptual(file, this.perceptual.slices))
    return AutoencoderTraining(
        config, fabric, autoencoder, ema, optimiser, critic, critic_optimiser, perceptual
    )


def build_critic(config: AdversarialConfig) -> nn.Module:
    """MONAI's patch discriminator."""
    return PatchDiscriminator(
        spatial_dims=3, channels=config.channels, in_channels=1, num_layers_d=config.layers, norm="INSTANCE"
    )


@dataclass(slots=True)
class AutoencoderTraining(Parts):
    """Everything stage 1 moves, and how (``train.loop.Method``)."""

    parts = ("autoencoder", "ema", "optimiser", "discriminator", "discriminator_optimiser")
    config: TrainConfig
    fabric: Fabric
    autoencoder: nn.Module
    ema: AveragedModel
    optimiser: Optimizer
    discriminator: nn.Module | None
    discriminator_optimiser: Optimizer | None
    perceptual: PerceptualLoss | None

    def begin(self, pairs: Pairs, resumed: bool) -> Pairs:
        """Nothing to prepare."""
        return pairs

    def step(self, progress: float, x_n: Tensor, x_c: Tensor, *_: Tensor) -> dict[str, Tensor]:
        """One optimiser step of the autoencoder and, once it has started, one of the discriminator.

        Which phase x_c is of need not be told: E_c shows it.
        """
        this = self.config.autoencoder
        rate = set_rate(self.optimiser, this.optimiser, progress)
        self.autoencoder.train()
        out = self.autoencoder(x_n, x_c)
        terms = stage_one_terms(self.config, out, x_n, x_c, progress)
        if self.perceptual is not None:
            terms["loss/perceptual"] = this.perceptual.weight * self.perceptual(out.from_c, x_c)
        total = torch.stack([value for name, value in terms.items() if name.startswith("loss/")]).sum()
        adversarial = self.discriminator is not None and progress >= this.adversarial.start
        if adversarial:
            terms["loss/adversarial"] = self.adversarial_term(out, terms["loss/rec"])
            total = total + terms["loss/adversarial"]
        self.optimiser.zero_grad(set_to_none=True)
        self.fabric.backward(total)
        skipped = descend(self.fabric, self.autoencoder, self.optimiser, this.optimiser.clip)
        self.ema.update_parameters(self.autoencoder.module)
        if adversarial:
            terms["discriminator"] = self.discriminator_step(out, x_c)
        return {name: value.detach() for name, value in terms.items()} | {"lr": rate, "skipped": skipped}

    def adversarial_term(self, out: StageOne, rec: Tensor) -> Tensor:
        """Weight · λ · the generator's loss on D(E_c)."""
        a = self.config.autoencoder.adversarial
        assert self.discriminator is not None
        fooled = losses.generator_loss(self.discriminator(out.from_c)[-1].float(), a.kind)
        last = self.autoencoder.module.exit.last.weight
        if not a.adaptive:
            return a.weight * fooled
        with measuring_gradients():
            return a.weight * losses.adaptive_weight(rec, fooled, last) * fooled

    def discriminator_step(self, out: StageOne, x_c: Tensor) -> Tensor:
        """One step of the patch discriminator on x_c against D(E_c)."""
        assert self.discriminator is not None
        assert self.discriminator_optimiser is not None
        on_real = self.discriminator(x_c)[-1].float()
        on_fake = self.discriminator(out.from_c.detach())[-1].float()
        loss = losses.discriminator_loss(on_real, on_fake, self.config.autoencoder.adversarial.kind)
        self.discriminator_optimiser.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        self.discriminator_optimiser.step()
        return loss

    def show(self, x_n: Tensor, x_c: Tensor, seed: int, *_: Tensor) -> dict[str, Tensor]:
        """D(E_n), stage 1's own translation, and D(E_c), what it can rebuild."""
        average = self.ema.module.eval()
        with self.fabric.autocast():
            stage1, rebuilt = (average.decode(average.encode(x), x_n).float() for x in (x_n, x_c))
        return {"stage1": stage1, "rebuilt": rebuilt}

    def facts(self) -> dict[str, Any]:
        """For the run card."""
        parameters = {"parameters": count_parameters({"autoencoder": self.autoencoder})}
        return parameters | ({"perceptual": self.perceptual.sha256} if self.perceptual else {})


def stage_one_terms(
    config: TrainConfig, out: StageOne, x_n: Tensor, x_c: Tensor, progress: float
) -> dict[str, Tensor]:
    """The weighted terms of eq. 2 (names ``loss/…``, to be summed) and what is worth watching."""
    this, weigh = config.autoencoder, config.autoencoder.loss
    target = losses.high_frequency_target(x_c, weigh.x_f)
    low, high = config.data.window_hu
    voxels = losses.enhancement_weight(x_n, x_c, weigh.enhancement, high - low, this.local)
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
