"""Folding volumes into slices and back loses nothing and mixes nothing."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from train.planes import Translator, View


def numbered(batch: int = 2, depth: int = 3) -> Tensor:
    """Every slice holds its own number: 10 · case + slice."""
    slices = torch.arange(depth).float() + 10 * torch.arange(batch).float()[:, None]
    return slices[:, None, :, None, None].expand(batch, 1, depth, 4, 5).clone()


def test_slices_are_images_of_the_batch_and_come_back_in_order() -> None:
    x, view = numbered(), View()
    folded = view.fold(x)
    assert folded.shape == (6, 1, 4, 5)
    assert folded[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12]
    assert torch.equal(view.unfold(folded, 2), x)


def test_neighbours_are_channels_and_the_ends_are_repeated() -> None:
    folded = View(neighbours=2).fold_with_neighbours(numbered())
    assert folded.shape == (6, 5, 4, 5)
    assert folded[0, :, 0, 0].tolist() == [0, 0, 0, 1, 2]
    assert folded[1, :, 0, 0].tolist() == [0, 0, 1, 2, 2]
    assert folded[5, :, 0, 0].tolist() == [10, 11, 12, 12, 12]


def test_three_dimensions_stay_as_they_are() -> None:
    x, view = numbered(), View(spatial_dims=3)
    assert view.fold(x) is x
    assert view.unfold(x, 2) is x


def test_neighbours_of_a_volume_are_refused() -> None:
    with pytest.raises(ValidationError, match="neighbours 1"):
        View(spatial_dims=3, neighbours=1)


@pytest.mark.parametrize("view", [View(), View(neighbours=1), View(spatial_dims=3)])
def test_a_translator_takes_and_gives_volumes_whatever_it_sees(view: View) -> None:
    class Middle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, view.neighbours : view.neighbours + 1]

    assert torch.equal(Translator(Middle(), view)(numbered()), numbered())
    assert torch.equal(Translator(Middle(), view, residual=True)(numbered()), 2 * numbered())
