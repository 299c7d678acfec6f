"""A fault of oneDNN that training in bf16 on a CPU has to step around."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

UNIT_STRIDE, SAME_PADDING = (1, 1, 1), (1, 1, 1)
ONE_SLICE_BEHIND = (0, 0, 0, 0, 0, 1)


class WholeGradients(TorchFunctionMode):
    """Within it a 3-D convolution in bf16 on the CPU has the weight gradient it should have.

    oneDNN 3.12 (torch 2.13) on AVX-512 leaves the bf16 weight gradient of a 3 × 3 × 3 convolution over a
    depth of exactly two slices partly unwritten: NaN, or any number. Other depths are right, so such an input
    gets a third slice of zeros, which is what the padding would have been, and the output loses it again.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Every torch call made within comes by; only ``conv3d`` is looked at."""
        if func is not F.conv3d or not _concerned(*args[:5]):
            return func(*args, **(kwargs or {}))
        x, *rest = args
        return func(F.pad(x, ONE_SLICE_BEHIND), *rest, **(kwargs or {}))[:, :, :2]


def _concerned(x: Tensor, weight: Tensor, bias: object = None, stride: Any = 1, padding: Any = 0) -> bool:
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return (
        x.shape[2] == 2
        and x.device.type == "cpu"
        and (autocast or x.dtype == torch.bfloat16)
        and weight.shape[2:] == (3, 3, 3)
        and (stride, padding) == (UNIT_STRIDE, SAME_PADDING)
    )
