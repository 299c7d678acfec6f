"""Volumes as the network sees them: whole (3-D), slice by slice (2-D), a slice with its neighbours (2.5-D).

Folding is made of indexing and reshaping alone, so it is part of the exported graph: the engine hands over a
tile (1, 1, D, H, W) whatever the network inside is.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from config.base import Frozen


class View(Frozen):
    """How much of a volume the network sees at once; a table of the configuration."""

    spatial_dims: Literal[2, 3] = 2
    """2 folds the slices into the batch."""
    neighbours: Annotated[int, Field(ge=0)] = 0
    """2-D: slices on either side that become channels (2.5-D)."""

    @model_validator(mode="after")
    def _neighbours_are_of_slices(self) -> View:
        if self.spatial_dims == 3 and self.neighbours:
            raise ValueError(f"neighbours {self.neighbours}: a 3-D network sees its neighbours anyway")
        return self

    @property
    def channels(self) -> int:
        """Channels a network sees of one volume."""
        return 2 * self.neighbours + 1

    def fold(self, x: Tensor) -> Tensor:
        """(B, 1, D, H, W) to (B·D, 1, H, W) for 2-D, unchanged for 3-D."""
        if self.spatial_dims == 3:
            return x
        b, c, d, h, w = x.shape
        return x.transpose(1, 2).reshape(b * d, c, h, w)

    def fold_with_neighbours(self, x: Tensor) -> Tensor:
        """(B, 1, D, H, W) to (B·D, 2k+1, H, W); beyond the first and last slice these are repeated."""
        if self.neighbours == 0:
            return self.fold(x)
        depth = x.shape[2]
        shifts = range(-self.neighbours, self.neighbours + 1)
        slices = [[min(max(i + shift, 0), depth - 1) for i in range(depth)] for shift in shifts]
        return self.fold(torch.cat([x[:, :, index] for index in slices], dim=1))

    def unfold(self, y: Tensor, batch: int) -> Tensor:
        """(B·D, C, H, W) to (B, C, D, H, W) for 2-D, unchanged for 3-D."""
        if self.spatial_dims == 3:
            return y
        n, c, h, w = y.shape
        return y.reshape(batch, n // batch, c, h, w).transpose(1, 2)


class Translator(nn.Module):
    """T: x_n (B, 1, D, H, W) in [-1, 1] to x_c of the same shape, by a network of any view.

    ``residual``: what the network gives is added to x_n.
    """

    def __init__(self, network: nn.Module, view: View, residual: bool = False) -> None:
        super().__init__()
        self.network, self.view, self.residual = network, view, residual

    def forward(self, x: Tensor) -> Tensor:
        """x_c."""
        y = self.view.unfold(self.network(self.view.fold_with_neighbours(x)), len(x))
        return x + y if self.residual else y
