"""For torchrun: ``two_ranks.py CONFIG_JSON OUT CACHE`` trains the stages of an S²LDM, each in two halves too.

``two_ranks.py FOLDER OUT CACHE`` trains the comparison methods whose configurations are FOLDER/<name>.json.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from train import loop
from train.config import TrainConfig
from train.methods import METHODS
from train.s2ldm.train_autoencoder import train_autoencoder
from train.s2ldm.train_diffusion import train_diffusion
from train.s2ldm.train_joint import train_joint

HALF = 2


def in_halves(run: Callable[[bool], object]) -> None:
    """The last rank alone is told to end after ``HALF`` steps; then all resume."""
    real, done = loop.one_step, []

    def step(started: loop.Run) -> dict:
        done.append(1)
        if len(done) == HALF and dist.get_rank() == dist.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(started)

    loop.one_step = step
    run(False)
    loop.one_step = real
    assert len(done) == HALF
    run(True)


def stages(config: TrainConfig, out: Path, cache: Path) -> None:
    """One after the other, straight and in halves."""
    train_autoencoder(config, out / "one", cache)
    train_diffusion(config, out / "one", out / "two", cache)
    train_joint(config, out / "two", out / "three", cache)
    in_halves(lambda resume: train_autoencoder(config, out / "halves-one", cache, resume))
    in_halves(lambda resume: train_diffusion(config, out / "one", out / "halves-two", cache, resume))
    in_halves(lambda resume: train_joint(config, out / "two", out / "halves-three", cache, resume))


def methods(folder: Path, out: Path, cache: Path) -> None:
    """Every method of the folder."""
    for file in sorted(folder.glob("*.json")):
        entry = METHODS[file.stem]
        entry.trainer()(entry.config_class().model_validate_json(file.read_text()), out / file.stem, cache)


if __name__ == "__main__":
    asked, *places = map(Path, sys.argv[1:])
    if asked.is_dir():
        methods(asked, *places)
    else:
        stages(TrainConfig.model_validate_json(asked.read_text()), *places)
