"""RegGAN's third player: a network that says how a fake has to be bent to lie on the (misaligned) target."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from monai.networks.blocks import Warp
from monai.networks.nets import VoxelMorphUNet
from torch import Tensor, nn

FLOW_INIT_SD = 1e-5


class Registered(NamedTuple):
    """``warped`` is the moving image on the fixed one's grid; ``flow`` in voxels, axis order of the image."""

    warped: Tensor
    flow: Tensor


class Registration(nn.Module):
    """R: (moving, fixed), each (B, 1, …), to the flow; begun at almost no flow.

    ``channels`` are MONAI's pairs (down, up) a level; sizes must be multiples of 2 to half their number.
    """

    def __init__(self, spatial_dims: int, channels: Sequence[int] = (16, 32, 32, 32, 32, 32)) -> None:
        super().__init__()
        self.unet = VoxelMorphUNet(
            spatial_dims=spatial_dims,
            in_channels=2,
            unet_out_channels=channels[1],
            channels=channels,
            final_conv_channels=(channels[0],),
        )
        last = [m for m in self.unet.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)][-1]
        nn.init.normal_(last.weight, 0.0, FLOW_INIT_SD)
        nn.init.zeros_(last.bias)
        self.warp = quiet_warp()

    def forward(self, moving: Tensor, fixed: Tensor) -> Registered:
        """Flow and warped image, fp32."""
        flow = self.unet(torch.cat([moving, fixed], dim=1)).float()
        return Registered(self.warp(moving.float(), flow), flow)


def quiet_warp() -> Warp:
    """MONAI's Warp without its warning that it has no compiled extension: grid_sample is what we want."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Warp(mode="bilinear", padding_mode="border")


def smoothness(flow: Tensor) -> Tensor:
    """Mean squared gradient of the flow, summed over axes, in voxels.

    MONAI's DiffusionLoss indexes with lists, which newer torch reads as something else.
    """
    return torch.stack([flow.diff(dim=axis).square().mean() for axis in range(2, flow.ndim)]).sum()


def centre_crop(x: Tensor, share: float) -> Tensor:
    """The middle of the in-plane axes, ``share`` of each; the slice axis, if there, is kept whole."""
    rows, columns = (max(1, round(size * share)) for size in x.shape[-2:])
    top, left = (x.shape[-2] - rows) // 2, (x.shape[-1] - columns) // 2
    return x[..., top : top + rows, left : left + columns]
