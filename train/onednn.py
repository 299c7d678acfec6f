"""A fault of oneDNN that training in bf16 on a CPU has to step around."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

CONV3D_ARGUMENTS = 7


class WholeGradients(TorchFunctionMode):
    """Within it a 3-D convolution in bf16 on the CPU has the weight gradient it should have.

    oneDNN 3.12 (torch 2.13) on AVX-512 leaves the bf16 weight gradient of a convolution partly unwritten
    (NaN, or any number) where the input is less deep than the kernel. Such an input gets slices of zeros
    behind, which is what padding is, and the output loses what they made. Height and width are not concerned.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Every torch call made within comes by; only ``conv3d`` as ``nn.Conv3d`` calls it is looked at."""
        missing = _missing_slices(*args) if func is F.conv3d and len(args) == CONV3D_ARGUMENTS else 0
        if missing <= 0:
            return func(*args, **(kwargs or {}))
        x, weight, bias, stride, padding, *rest = args
        depth = (x.shape[2] + 2 * padding[0] - weight.shape[2]) // stride[0] + 1
        return func(F.pad(x, (0, 0, 0, 0, 0, missing)), weight, bias, stride, padding, *rest)[:, :, :depth]


def _missing_slices(x: Tensor, weight: Tensor, *_: object) -> int:
    """How many slices ``x`` has fewer than ``weight``; 0 where oneDNN's bf16 is not at work."""
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    half = autocast or x.dtype == torch.bfloat16
    return weight.shape[2] - x.shape[2] if half and x.device.type == "cpu" else 0
