"""Weight gradients in bf16 on the CPU are those of fp32, as near as bf16 can be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.onednn import WholeGradients

BF16 = 0.02


def soil_memory() -> None:
    """What is freed here is what an operator that does not write its whole result returns."""
    soiled = [torch.full((1 << n,), float("nan")) for n in range(12, 22, 2) for _ in range(3)]
    del soiled


def gradient(conv: nn.Conv3d, x: Tensor, seed: int, half: bool) -> Tensor:
    soil_memory()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        y = conv(x)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))
    return torch.autograd.grad(y, conv.weight, upstream.to(y.dtype))[0]


@pytest.fixture
def mended() -> Iterator[None]:
    with WholeGradients():
        yield


@pytest.mark.parametrize(("kernel", "padding", "stride"), [(3, 1, 1), (4, 1, 1), (4, 2, 2), (5, 2, 1)])
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_the_weight_gradient_of_every_depth_is_whole(
    mended: Any, depth: int, kernel: int, padding: int, stride: int
) -> None:
    if depth + 2 * padding < kernel:
        return
    torch.manual_seed(0)
    conv = nn.Conv3d(32, 24, kernel, stride, padding).to(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 32, depth, 6, 6)
    true = gradient(conv, x, depth, half=False)
    for _ in range(5):
        error = (gradient(conv, x, depth, half=True) - true).abs().max()
        assert error <= BF16 * true.abs().max()


@pytest.mark.parametrize("stride", [1, 2])
def test_the_picture_of_a_thin_input_is_what_it_was(mended: Any, stride: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv3d(32, 32, 4, stride, 2)
    x = torch.randn(1, 32, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    torch.testing.assert_close(y.float(), conv(x), rtol=0.02, atol=0.02)


def test_other_convolutions_are_left_alone(mended: Any) -> None:
    x, weight = torch.randn(1, 1, 2, 6, 6), torch.randn(1, 1, 3, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert F.conv3d(x, weight, padding=1).shape == x.shape
        assert F.conv3d(F.pad(x, (1,) * 6), weight).shape == x.shape
