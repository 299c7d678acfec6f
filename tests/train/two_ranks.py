"""Both stages of the S²LDM, for torchrun: ``two_ranks.py CONFIG_JSON OUT CACHE``; each also in two halves."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from train import loop
from train.config import TrainConfig
from train.s2ldm.train_autoencoder import train_autoencoder
from train.s2ldm.train_diffusion import train_diffusion

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


if __name__ == "__main__":
    config = TrainConfig.model_validate_json(Path(sys.argv[1]).read_text())
    out, cache = Path(sys.argv[2]), Path(sys.argv[3])
    train_autoencoder(config, out / "one", cache)
    train_diffusion(config, out / "one", out / "two", cache)
    in_halves(lambda resume: train_autoencoder(config, out / "halves-one", cache, resume))
    in_halves(lambda resume: train_diffusion(config, out / "one", out / "halves-two", cache, resume))
