"""A tiny model, trained once for all tests of the loops."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from train.config import TrainConfig, load_train_config
from train.s2ldm.train_autoencoder import train_autoencoder
from train.s2ldm.train_diffusion import train_diffusion

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Trained:
    """Both stages of ``config/train/tiny.toml``, finished."""

    config: TrainConfig
    cache: Path
    stage_one: Path
    stage_two: Path


@pytest.fixture(scope="session")
def tiny() -> TrainConfig:
    return load_train_config(REPOSITORY / "config" / "train" / "tiny.toml")


@pytest.fixture(scope="session")
def two_ranks(free_port: Callable[[], int]) -> Callable[..., None]:
    """Runs ``two_ranks.py`` with the places it is given, in two processes of one machine or of two.

    Two machines are two agents of torchrun that meet at a port.
    """
    command = [sys.executable, "-m", "torch.distributed.run"]
    script = Path(__file__).with_name("two_ranks.py")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}

    def run(*places: Path, machines: int = 1) -> None:
        where = ["--standalone", "--nproc-per-node=2"]
        if machines == 2:
            where = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=two"]
            where += [f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
        words = [*command, *where, str(script), *map(str, places)]
        agents = [
            subprocess.Popen(
                words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            for _ in range(machines)
        ]
        try:
            said = [agent.communicate(timeout=800)[1] for agent in agents]
        finally:
            for agent in agents:
                agent.kill()
        assert [agent.returncode for agent in agents] == [0] * machines, "".join(said)[-3000:]

    return run


@pytest.fixture(scope="session")
def trained(tiny: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("tiny")
    train_autoencoder(tiny, folder / "one", folder / "cache")
    train_diffusion(tiny, folder / "one", folder / "two", folder / "cache")
    return Trained(tiny, folder / "cache", folder / "one", folder / "two")
