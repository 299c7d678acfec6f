"""A network with its Adam, and the one way in which every network of a game takes a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from train.gan.config import AdamConfig
from train.loop import descend_together


@dataclass(slots=True)
class Player:
    """Both are already set up by Fabric. Separate Adams for two networks are what one for both would be."""

    network: nn.Module
    optimiser: Optimizer

    @property
    def bare(self) -> nn.Module:
        """The network without Fabric around it."""
        module: nn.Module = self.network.module
        return module

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put both back; strict."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])


def enlist(fabric: Fabric, network: nn.Module, config: AdamConfig) -> Player:
    """``network`` and an Adam, set up."""
    return Player(*fabric.setup(network, Adam(network.parameters(), config.lr, config.betas)))


def average_of(fabric: Fabric, network: nn.Module, decay: float) -> AveragedModel:
    """The moving average of a network that is not yet set up; decay 0 is the network itself."""
    return fabric.to_device(AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay)))


def improve(
    fabric: Fabric, players: list[Player], loss: Tensor, config: AdamConfig, progress: float
) -> Tensor:
    """One step of every player down ``loss``; returns how many were skipped (no finite gradient)."""
    for player in players:
        for group in player.optimiser.param_groups:
            group["lr"] = rate(config, progress)
        player.optimiser.zero_grad(set_to_none=True)
    fabric.backward(loss)
    return descend_together(fabric, [(p.network, p.optimiser) for p in players], config.clip)


def rate(config: AdamConfig, progress: float) -> float:
    """The learning rate at ``progress`` of the budget."""
    falling = max(progress - config.hold, 0.0) / max(1 - config.hold, 1e-9)
    return config.lr * max(1 - falling, 0.0)


@contextmanager
def watching(fabric: Fabric, *players: Player) -> Iterator[None]:
    """What these networks' ``bare`` forms are asked in the block passes gradients on and leaves none behind.

    Bare, because DDP waits for the gradients of every network that is called through it.
    """
    for player in players:
        player.network.requires_grad_(False)
    with fabric.autocast():
        yield
    for player in players:
        player.network.requires_grad_(True)
