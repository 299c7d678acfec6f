"""The 2.5-D U-Net with L1 from top to bottom.

``s2node train unet25d --config config/train/unet25d.toml --phase venous --out runs/unet25d``

min E |x_c − T(x_n)|, T(x) = x + Δ(slice and its neighbours): no adversary, no latent, no diffusion. What the
paper's methods add has to show beside this row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from monai.networks.nets import BasicUNet
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel

from train.data import Pairs
from train.gan.player import average_of
from train.loop import Parts, Plan, count_parameters, descend, set_rate, train
from train.planes import Translator
from train.unet25d.config import UNet25DConfig

STAGE = "unet25d"


def train_unet25d(config: UNet25DConfig, out: Path, cache: Path, resume: bool = False) -> Path:
    """Train until the budget is spent or a stop is asked for; returns the checkpoint's path."""
    plan = Plan(STAGE, config, config.unet25d.loop)
    return train(plan, lambda fabric: build(config, fabric), out, cache, resume)


def build_translator(config: UNet25DConfig) -> Translator:
    """The network as the engine calls it: the slice plus what the U-Net, begun at zero, makes of it."""
    this = config.unet25d
    group = ("group", {"num_groups": this.norm_groups})
    network = BasicUNet(
        spatial_dims=this.view.spatial_dims,
        in_channels=this.view.channels,
        out_channels=1,
        features=this.features,
        norm=group if this.norm == "group" else ("instance", {"affine": True}),
    )
    nn.init.zeros_(network.final_conv.weight)
    nn.init.zeros_(network.final_conv.bias)
    return Translator(network, this.view, residual=True)


def build(config: UNet25DConfig, fabric: Fabric) -> UNet25DTraining:
    """Network, average, optimiser."""
    this, o = config.unet25d, config.unet25d.optimiser
    network = build_translator(config)
    ema = average_of(fabric, network, this.loop.ema)
    optimiser = AdamW(network.parameters(), o.lr, o.betas, weight_decay=o.weight_decay)
    return UNet25DTraining(config, fabric, ema, *fabric.setup(network, optimiser))


@dataclass(slots=True)
class UNet25DTraining(Parts):
    """Everything that moves, and how (``train.loop.Method``)."""

    parts = ("network", "ema", "optimiser")
    config: UNet25DConfig
    fabric: Fabric
    ema: AveragedModel
    network: nn.Module
    optimiser: Optimizer

    def begin(self, pairs: Pairs, resumed: bool) -> Pairs:
        """Nothing to prepare."""
        return pairs

    def step(self, progress: float, x_n: Tensor, x_c: Tensor) -> dict[str, Tensor]:
        """One step down the mean absolute error."""
        o = self.config.unet25d.optimiser
        rate = set_rate(self.optimiser, o, progress)
        l_1 = (self.network(x_n) - x_c).abs().mean()
        self.optimiser.zero_grad(set_to_none=True)
        self.fabric.backward(l_1)
        skipped = descend(self.fabric, self.network, self.optimiser, o.clip)
        self.ema.update_parameters(self.network.module)
        return {"loss/l1": l_1.detach(), "lr": rate, "skipped": skipped}

    def show(self, x_n: Tensor, x_c: Tensor, seed: int) -> dict[str, Tensor]:
        """The translation."""
        with self.fabric.autocast():
            return {"model": self.ema.module.eval()(x_n).float()}

    def facts(self) -> dict[str, Any]:
        """For the run card."""
        return {"parameters": count_parameters({"network": self.network})}
