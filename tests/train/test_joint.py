"""Stage 3: the whole model learns from what it paints; encoder and codebook stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from engine import samplers
from engine.volume import Float32
from node.cli import app
from train import checkpoint as ckpt
from train.config import TrainConfig
from train.s2ldm import train_joint as three
from train.s2ldm.formulation import sampler_spec

REPOSITORY = Path(__file__).resolve().parents[2]


def joint(config: TrainConfig, steps: int) -> TrainConfig:
    """``config`` with a stage 3 of this length."""
    shared = {"steps": steps, "validation_crops": 4, "log_steps": 1}
    widened = {"soft_window": True, "fine_blocks": 1, "contrast": 10.0}
    return TrainConfig.model_validate(config.model_dump() | {"joint": {"loop": shared, **widened}})


def test_stage_three_improves_what_is_painted_and_leaves_encoder_and_codebook(
    trained: Any, tmp_path: Path
) -> None:
    config = joint(trained.config, 40)
    before = three.load_translator(trained.stage_two, config)[0].state_dict()
    out = three.train_joint(config, trained.stage_two, tmp_path / "three", trained.cache)
    after = {k.removeprefix("module."): v for k, v in ckpt.load(out).states["ema"].items()}
    frozen = {k for k in before if k.startswith(("autoencoder.encoder.", "autoencoder.quantizer."))}
    assert frozen
    assert all(torch.equal(before[k], after[k]) for k in frozen)
    for moving in ("denoiser.", "autoencoder.decoder.", "autoencoder.exit."):
        assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith(moving))
    assert figure(tmp_path / "three") > figure(trained.stage_two)


def test_a_finished_stage_three_learns_on(trained: Any, tmp_path: Path) -> None:
    first, on, config = tmp_path / "three", tmp_path / "on", tmp_path / "still.toml"
    three.train_joint(trained.config, trained.stage_two, first, trained.cache)
    tiny = REPOSITORY / "config" / "train" / "tiny.toml"
    config.write_text(f'extends = "{tiny}"\n[joint]\noptimiser = {{ lr = 1e-12 }}\nloop = {{ steps = 2 }}\n')

    def learn_on(run: Path) -> Result:
        words = ["train", "joint", "--config", str(config), "--from", str(run), "--out", str(on)]
        return CliRunner().invoke(app, [*words, "--cache", str(trained.cache)])

    done = learn_on(first)
    assert done.exit_code == 0, done.output
    before, after = (ckpt.load(ckpt.file_of(run)) for run in (first, on))
    assert (before.step, after.step) == (40, 2)
    for name, weights in before.states["translator"].items():
        torch.testing.assert_close(after.states["translator"][name], weights, rtol=0, atol=1e-6)
    refused = learn_on(trained.stage_two)
    assert refused.exit_code == 1
    assert "of stage 'diffusion', not 'joint'" in refused.output


def figure(folder: Path) -> float:
    card = json.loads((folder / "run.json").read_text())
    return float(card["latest"]["psnr/model"])


def test_what_the_exit_gains_begins_as_nothing_and_is_learnt(trained: Any, tmp_path: Path) -> None:
    config = joint(trained.config, 3)
    translator, _ = three.load_translator(trained.stage_two, config)
    plain, _ = three.load_translator(trained.stage_two, trained.config)
    x_n = torch.rand(1, 1, *config.data.crop) * 2 - 1
    with torch.no_grad():
        assert torch.equal(translator.eval()(x_n)[0], plain.eval()(x_n)[0])
    out = three.train_joint(config, trained.stage_two, tmp_path / "three", trained.cache)
    learnt = ckpt.load(out).states["ema"]
    for gained in ("soft.weight", "fine.layers.0.weight", "fine.layers.3.weight"):
        assert learnt[f"module.autoencoder.exit.{gained}"].any()


def test_it_samples_as_the_engine_does(trained: Any) -> None:
    translator, _ = three.load_translator(trained.stage_two, trained.config)
    translator.eval()
    x_n = torch.rand(1, 1, *trained.config.data.crop) * 2 - 1

    def predict(z: Float32, source: Float32, t: float) -> Float32:
        answer = translator.denoiser(torch.from_numpy(z), torch.from_numpy(source), torch.full((1,), t), x_n)
        return answer.numpy()

    with torch.no_grad():
        e_n = translator.encode(x_n)
        spec = sampler_spec(trained.config.diffusion)
        wanted = samplers.sample(spec, predict, e_n.numpy(), np.zeros((0, *e_n.shape), np.float32))
        painted, z = translator(x_n)
        decoded = translator.autoencoder.decode(z / translator.scale, x_n)
    assert np.allclose(z.numpy(), wanted, atol=1e-5)
    assert torch.allclose(painted, decoded, atol=1e-5)


def test_stage_three_takes_the_bridge_without_noise_alone(trained: Any, tmp_path: Path) -> None:
    values = trained.config.model_dump()
    values["diffusion"] |= {"sigma": 0.5}
    noisy = TrainConfig.model_validate(values)
    found = ckpt.load(trained.stage_two / ckpt.NAME)
    states = {name: getattr(found, name) for name in found.__slots__} | {"digest": noisy.digest("diffusion")}
    ckpt.save(tmp_path / ckpt.NAME, ckpt.Checkpoint(**states))
    with pytest.raises(ckpt.CheckpointUnusable, match=r"sigma 0\.5; stage 3 takes the bridge"):
        three.load_translator(tmp_path, noisy)
