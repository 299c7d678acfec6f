"""Two processes with half the batch each are one process with the whole of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from train import checkpoint as ckpt
from train import ranks
from train.config import TrainConfig
from train.s2ldm.train_autoencoder import train_autoencoder
from train.s2ldm.train_diffusion import train_diffusion
from train.s2ldm.train_joint import train_joint

STEPS = 4


def short(tiny: TrainConfig, batch: int) -> TrainConfig:
    """``tiny`` with everything on whose mean depends on other cases: weights, masks, codebook, adversary."""
    values = tiny.model_dump()
    values["autoencoder"]["adversarial"] |= {"weight": 0.1, "start": 0.0, "channels": 8, "layers": 1}
    values["autoencoder"]["quantizer"] |= {"reseed_below": 0.05}
    for stage in ("autoencoder", "diffusion", "joint"):
        loop = {"steps": STEPS, "batch": batch, "log_steps": 1, "validation_crops": 1}
        values[stage]["loop"] |= loop
    return TrainConfig.model_validate(values)


def losses(run: Path) -> dict[str, float]:
    """Those of the last step, by name."""
    latest: dict[str, float] = json.loads((run / "run.json").read_text())["latest"]
    return {name: value for name, value in latest.items() if name.startswith(("loss/", "discriminator"))}


@pytest.mark.timeout(900)
def test_two_ranks_have_the_losses_of_one_at_twice_the_batch(
    tiny: TrainConfig, trained: Any, tmp_path: Path, two_ranks: Callable[..., None]
) -> None:
    one, half = short(tiny, batch=2), short(tiny, batch=1)
    (tmp_path / "half.json").write_text(half.model_dump_json())
    two_ranks(tmp_path / "half.json", tmp_path / "ranks", trained.cache)
    train_autoencoder(one, tmp_path / "alone" / "one", trained.cache)
    train_diffusion(one, tmp_path / "alone" / "one", tmp_path / "alone" / "two", trained.cache)
    train_joint(one, tmp_path / "alone" / "two", tmp_path / "alone" / "three", trained.cache)
    for stage in ("one", "two", "three"):
        together, alone = (losses(tmp_path / who / stage) for who in ("ranks", "alone"))
        assert together == pytest.approx(alone, abs=1e-5)
        assert together
        straight = ckpt.load(tmp_path / "ranks" / stage / ckpt.NAME)
        halves = ckpt.load(tmp_path / "ranks" / f"halves-{stage}" / ckpt.NAME)
        assert straight.step == halves.step == STEPS
        assert same(straight.states, halves.states), "stopped on one rank and resumed on both"
        assert same(straight.rng, halves.rng)


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, through nested dictionaries and lists."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def test_alone_every_function_is_what_its_name_says() -> None:
    x = torch.arange(6.0).reshape(3, 2)
    assert ranks.world() == 1
    assert torch.equal(ranks.mine(x), x)
    assert torch.equal(ranks.total(x), x)
    assert torch.equal(ranks.mean(x), x)
    assert torch.equal(ranks.gather(x, 1), x)
    torch.manual_seed(0)
    drawn = ranks.randn((2, 3), torch.device("cpu"))
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.randn(2, 3))
