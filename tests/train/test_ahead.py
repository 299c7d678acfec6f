"""Batches drawn ahead are the batches that would have been drawn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from train.ahead import Ahead


class Counted:
    """Gives back what it was asked for, and keeps a list."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    def batch(self, seed: int, step: int, size: int) -> tuple[Tensor, ...]:
        self.asked.append((seed, step, size))
        if step > 5:
            raise ValueError("no more")
        return (torch.tensor([seed, step, size]),)


def test_every_batch_is_the_one_asked_for_and_is_drawn_once() -> None:
    counted = Counted()
    ahead = Ahead(counted)
    got = [ahead.batch(7, step, 2)[0].tolist() for step in range(4)]
    assert got == [[7, step, 2] for step in range(4)]
    assert ahead.batch(7, 1, 2)[0].tolist() == [7, 1, 2]
    assert counted.asked[:4] == [(7, step, 2) for step in range(4)]


def test_a_failure_shows_at_the_step_it_belongs_to() -> None:
    ahead = Ahead(Counted())
    assert ahead.batch(0, 5, 1)[0].tolist() == [0, 5, 1]
    with pytest.raises(ValueError, match="no more"):
        ahead.batch(0, 6, 1)
