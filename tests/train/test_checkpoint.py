"""Checkpoints are whole, safe to read, and refused where they do not belong."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from train import checkpoint as ckpt


def example(**changes: object) -> ckpt.Checkpoint:
    values = {
        "stage": "autoencoder",
        "config": "{}",
        "digest": "d" * 64,
        "step": 3,
        "elapsed_s": 1.5,
        "total_steps": 9,
        "max_minutes": None,
        "states": {"weights": {"w": torch.arange(4.0)}},
        "rng": ckpt.rng_state(),
    }
    return ckpt.Checkpoint(**(values | changes))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    ckpt.save(tmp_path / ckpt.NAME, example())
    found = ckpt.load(tmp_path / ckpt.NAME, "autoencoder")
    assert (found.step, found.elapsed_s, found.total_steps) == (3, 1.5, 9)
    assert torch.equal(found.states["weights"]["w"], torch.arange(4.0))


def test_a_crash_while_writing_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / ckpt.NAME
    ckpt.save(file, example(step=1))

    def fail(descriptor: int) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        ckpt.save(file, example(step=2))
    assert ckpt.load(file).step == 1


@pytest.mark.parametrize("cut", [0, 10, 500])
def test_a_damaged_file_is_refused(tmp_path: Path, cut: int) -> None:
    file = tmp_path / ckpt.NAME
    ckpt.save(file, example())
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ckpt.CheckpointUnusable, match="cannot be read"):
        ckpt.load(file)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    file = tmp_path / ckpt.NAME
    torch.save({"format": 1, "stage": os.getcwd}, file)
    with pytest.raises(ckpt.CheckpointUnusable, match="cannot be read"):
        ckpt.load(file)


def test_other_stages_formats_and_configurations_are_refused(tmp_path: Path) -> None:
    file = tmp_path / ckpt.NAME
    with pytest.raises(ckpt.CheckpointUnusable, match="no such file"):
        ckpt.load(file)
    ckpt.save(file, example())
    with pytest.raises(ckpt.CheckpointUnusable, match="is of stage 'autoencoder', not 'diffusion'"):
        ckpt.load(file, "diffusion")
    with pytest.raises(ckpt.CheckpointUnusable, match="another configuration"):
        ckpt.require_same(file, ckpt.load(file), "e" * 64)
    torch.save({"format": 99}, file)
    with pytest.raises(ckpt.CheckpointUnusable, match="format 1"):
        ckpt.load(file)


def test_every_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    ckpt.save(tmp_path / ckpt.NAME, example())
    first = (torch.rand(2).tolist(), random.random(), np.random.random())
    ckpt.restore_rng(ckpt.load(tmp_path / ckpt.NAME).rng)
    assert (torch.rand(2).tolist(), random.random(), np.random.random()) == first
