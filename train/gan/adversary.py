"""The other side of the game: patch discriminator, its losses, and the pool of past fakes."""

from __future__ import annotations

from typing import Any, Literal

import torch
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Kind = Literal["bce", "least_squares"]


class Discriminator(nn.Module):
    """The 70 × 70 PatchGAN (3 layers): a logit a patch, or with ``scalar`` their mean, one an image.

    MONAI's default batch norm is wrong at batch 1. In 3-D slices are padded by 2, so that 8 of them do.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, channels: int = 64, layers: int = 3, scalar: bool = False
    ) -> None:
        super().__init__()
        self.scalar = scalar
        self.patches = PatchDiscriminator(
            spatial_dims=spatial_dims,
            channels=channels,
            in_channels=in_channels,
            num_layers_d=layers,
            norm="INSTANCE",
            padding=1 if spatial_dims == 2 else (2, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits, fp32: (B, 1, …) or with ``scalar`` (B, 1)."""
        logits = self.patches(x)[-1].float()
        return logits.flatten(2).mean(2) if self.scalar else logits


def verdict_loss(logits: Tensor, real: bool, kind: Kind) -> Tensor:
    """How far ``logits`` are from saying "real" or "fake" everywhere.

    MONAI's PatchAdversarialLoss puts an activation before least squares and a sigmoid before BCE.
    """
    target = torch.full_like(logits, 1.0 if real else 0.0)
    return F.mse_loss(logits, target) if kind == "least_squares" else bce(logits, target)


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy of logits."""
    return F.binary_cross_entropy_with_logits(logits, target)


def discriminator_loss(discriminator: nn.Module, real: Tensor, fake: Tensor, kind: Kind) -> Tensor:
    """Half the sum over ``real`` and ``fake``; no gradient reaches whoever made ``fake``."""
    on_real = verdict_loss(discriminator(real), True, kind)
    on_fake = verdict_loss(discriminator(fake.detach()), False, kind)
    return 0.5 * (on_real + on_fake)


def fooling_loss(discriminator: nn.Module, fake: Tensor, kind: Kind) -> Tensor:
    """What the generator minimises."""
    return verdict_loss(discriminator(fake), True, kind)


class ImagePool:
    """Up to ``size`` past fakes (Shrivastava et al. 2017); the discriminator sees them half of the time.

    Draws come from torch's global generator and the images are part of the checkpoint: resume is bitwise for
    one process. Of several each has a pool of its own, and the checkpoint holds that of the first.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: list[Tensor] = []

    def query(self, fakes: Tensor) -> Tensor:
        """As many images as ``fakes``: each is the new one, or an old one whose place the new one takes."""
        if self.size == 0:
            return fakes.detach()
        return torch.stack([self._swap(fake) for fake in fakes.detach()])

    def state_dict(self) -> dict[str, Any]:
        """The images held."""
        return {"images": [image.cpu() for image in self.images]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the images back."""
        self.images = list(state["images"])

    def _swap(self, fake: Tensor) -> Tensor:
        if len(self.images) < self.size:
            self.images.append(fake.clone())
            return fake
        if float(torch.rand(())) < 0.5:
            return fake
        index = int(torch.randint(len(self.images), ()))
        old = self.images[index].to(fake)
        self.images[index] = fake.clone()
        return old
