"""The perceptual loss that S²LDM's kin use, from a file of weights on this disk; nothing is downloaded."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from train.config import TrainConfigInvalid

BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21))
"""The convolutions of VGG-16 up to relu4_3, by their number in torchvision's ``features``."""
IMAGENET_MEAN, IMAGENET_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HOW_TO_GET_IT = (
    "get torchvision's VGG-16, file vgg16-397923af.pth, where there is a network, look at its licence, copy"
    " it here and name it in autoencoder.perceptual.weights_file; or set autoencoder.perceptual.weight = 0"
)


class PerceptualLoss(nn.Module):
    """(painted, target), each (B, 1, D, H, W) in [-1, 1], to a number: 0 where both are the same.

    L1 between the features of axial slices after each block, which are scaled to unit length over channels as
    in LPIPS (Zhang et al. 2018); all blocks count alike. Its weights never move, and gradients reach
    ``painted`` alone. ``sha256`` is the file's.
    """

    def __init__(self, weights: Mapping[str, Tensor], slices: int, sha256: str = "") -> None:
        super().__init__()
        blocks = (nn.ModuleList(_convolution(weights, number) for number in block) for block in BLOCKS)
        self.blocks = nn.ModuleList(blocks)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("sd", torch.tensor(IMAGENET_SD).reshape(1, 3, 1, 1))
        self.slices, self.sha256 = slices, sha256
        self.requires_grad_(False)

    def forward(self, painted: Tensor, target: Tensor) -> Tensor:
        """Mean over blocks, slices and places."""
        with torch.no_grad():
            wanted = self.features(target)
        apart = [F.l1_loss(a, b) * a.shape[1] for a, b in zip(self.features(painted), wanted, strict=True)]
        return torch.stack(apart).mean()

    def features(self, x: Tensor) -> list[Tensor]:
        """Of the chosen slices, (B · slices, channels, h, w) a block."""
        chosen = torch.linspace(0, x.shape[2] - 1, min(self.slices, x.shape[2])).round().long()
        planes = x[:, 0, chosen.to(x.device)].flatten(0, 1)[:, None].clamp(-1, 1)
        h = ((planes + 1) / 2 - self.mean) / self.sd
        found = []
        for number, block in enumerate(self.blocks):
            h = F.max_pool2d(h, 2) if number else h
            for convolution in block:
                h = F.relu(convolution(h))
            found.append(F.normalize(h.float(), dim=1))
        return found


def load_perceptual(file: Path, slices: int) -> PerceptualLoss:
    """The loss with the weights of ``file``. Raises TrainConfigInvalid, which says how to get them."""
    if not file.is_file():
        raise TrainConfigInvalid(file, f"there is no such file: {HOW_TO_GET_IT}")
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        return PerceptualLoss(weights, slices, digest)
    except (KeyError, TypeError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise TrainConfigInvalid(file, f"is no state of VGG-16 ({error}): {HOW_TO_GET_IT}") from None


def _convolution(weights: Mapping[str, Tensor], number: int) -> nn.Conv2d:
    weight, bias = weights[f"features.{number}.weight"], weights[f"features.{number}.bias"]
    wide, narrow = weight.shape[:2]
    convolution = nn.Conv2d(narrow, wide, kernel_size=3, padding=1)
    convolution.load_state_dict({"weight": weight, "bias": bias})
    return convolution
