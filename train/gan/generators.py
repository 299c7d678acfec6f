"""ResNet-9 (Johnson et al. 2016 as used by Zhu et al. 2017) and the U-Net of pix2pix (Isola et al. 2017).

MONAI has neither; both are built on its ``Convolution``. Everything works in 2-D and 3-D.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks import Convolution
from monai.networks.utils import normal_init
from torch import Tensor, nn

INIT_SD = 0.02
REFLECT = {2: nn.ReflectionPad2d, 3: nn.ReflectionPad3d}
DROPOUT_BLOCKS = 3
"""How many of the innermost widest blocks of the U-Net drop half of their features."""


class ResNetGenerator(nn.Module):
    """7³ reflected, two strided convolutions, ``blocks`` residual blocks, two transposed ones, 7³, tanh.

    Instance norm without parameters throughout; sizes must be multiples of 4 and above 4.
    """

    def __init__(self, spatial_dims: int, in_channels: int, channels: int = 64, blocks: int = 9) -> None:
        super().__init__()
        d, n = spatial_dims, channels
        body = [ResidualBlock(d, 4 * n) for _ in range(blocks)]
        self.layers = nn.Sequential(
            *reflected(d, in_channels, n, 7, act="relu"),
            Convolution(d, n, 2 * n, strides=2, act="relu"),
            Convolution(d, 2 * n, 4 * n, strides=2, act="relu"),
            *body,
            Convolution(d, 4 * n, 2 * n, strides=2, is_transposed=True, act="relu"),
            Convolution(d, 2 * n, n, strides=2, is_transposed=True, act="relu"),
            *reflected(d, n, 1, 7, conv_only=True),
            nn.Tanh(),
        )
        self.apply(lambda module: normal_init(module, INIT_SD))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, …) to (B, 1, …) in [-1, 1]."""
        return self.layers(x)


class ResidualBlock(nn.Module):
    """x + two reflected 3³ convolutions of x, without an activation after the sum."""

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *reflected(spatial_dims, channels, channels, 3, act="relu"),
            *reflected(spatial_dims, channels, channels, 3, act=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x + self.layers(x)


def reflected(
    dims: int, inside: int, outside: int, kernel: int, **options: Any
) -> tuple[nn.Module, nn.Module]:
    """A convolution that sees its image reflected at the border instead of zeros."""
    convolution = Convolution(dims, inside, outside, kernel_size=kernel, padding=0, **options)
    return REFLECT[dims](kernel // 2), convolution


class UNetGenerator(nn.Module):
    """``len(strides)`` strided levels down and as many up, joined by skips, tanh at the end.

    Kernel 4 along an axis that is halved, 3 along one that is not. Instance norm stands for the published
    batch norm, which at batch 1 is the same; the innermost level, one voxel, has none.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        strides: Sequence[tuple[int, ...]],
        channels: int = 64,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        widths = [channels * min(2**level, 8) for level in range(len(strides))]
        last = len(strides) - 1
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, (stride, width) in enumerate(zip(strides, widths, strict=True)):
            before = widths[level - 1] if level else in_channels
            after = widths[level - 1] if level else 1
            drops = dropout if last - DROPOUT_BLOCKS <= level < last and after == width else 0.0
            self.down.append(_down(spatial_dims, before, width, stride, level, last))
            self.up.append(
                _up(spatial_dims, width * (1 if level == last else 2), after, stride, level, drops)
            )
        self.apply(lambda module: normal_init(module, INIT_SD))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, …) to (B, 1, …) in [-1, 1]."""
        features = []
        for down in self.down:
            x = down(x)
            features.append(x)
        for level in reversed(range(len(self.up))):
            x = self.up[level](x)
            if level:
                x = torch.cat([x, features[level - 1]], dim=1)
        return torch.tanh(x)


def halvings(shape: Sequence[int], downs: int) -> list[tuple[int, ...]]:
    """Strides of at most ``downs`` levels over ``shape``: an axis is halved for as long as it is even."""
    sizes, strides = list(shape), []
    for _ in range(downs):
        stride = tuple(2 if size % 2 == 0 else 1 for size in sizes)
        if max(stride) == 1:
            break
        strides.append(stride)
        sizes = [size // step for size, step in zip(sizes, stride, strict=True)]
    return strides


def _down(
    dims: int, inside: int, outside: int, stride: tuple[int, ...], level: int, last: int
) -> nn.Sequential:
    norm = "INSTANCE" if 0 < level < last else None
    convolution = Convolution(dims, inside, outside, stride, _kernel(stride), act=None, norm=norm, padding=1)
    return nn.Sequential(convolution) if level == 0 else nn.Sequential(nn.LeakyReLU(0.2), convolution)


def _up(
    dims: int, inside: int, outside: int, stride: tuple[int, ...], level: int, dropout: float
) -> nn.Sequential:
    convolution = Convolution(
        dims, inside, outside, stride, _kernel(stride), adn_ordering="ND", act=None,
        norm="INSTANCE" if level else None, dropout=dropout or None, is_transposed=True, padding=1,
        output_padding=0,
    )  # fmt: skip
    return nn.Sequential(nn.ReLU(), convolution)


def _kernel(stride: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(4 if step == 2 else 3 for step in stride)
