"""Both stages end to end on the tiny configuration: they learn, they stop, they resume to the bit."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision

from train import checkpoint as ckpt
from train import loop
from train import run as run_module
from train.config import LoopConfig, TrainConfig, load_train_config
from train.data import data_digest, split_digest, training_pairs
from train.s2ldm import train_autoencoder as one
from train.s2ldm import train_diffusion as two
from train.s2ldm import train_joint as three

ABLATION = Path(__file__).resolve().parents[2] / "config" / "train" / "ablation"


def changed(config: TrainConfig, steps: int, **autoencoder: Any) -> TrainConfig:
    """The same run with another length (𝒯), and changes to stage 1."""
    values = config.model_dump()
    for stage in ("autoencoder", "diffusion"):
        values[stage]["loop"] |= {"steps": steps, "validation_crops": 1}
    values["autoencoder"] |= autoencoder
    return TrainConfig.model_validate(values)


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Ask the process to end, as systemd would, when ``steps`` steps are done."""
    real, done = loop.one_step, []

    def step(run: loop.Run) -> dict[str, torch.Tensor]:
        done.append(1)
        if len(done) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run)

    monkeypatch.setattr(loop, "one_step", step)


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, through nested dictionaries and lists."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def latest(folder: Path) -> dict[str, float]:
    card = json.loads((folder / "run.json").read_text())
    assert card["finished"]
    return card["latest"]


def test_stage_one_learns_to_carry_the_enhancement(trained: Any) -> None:
    figures = latest(trained.stage_one)
    assert figures["psnr/rebuilt"] > figures["psnr/identity"] + 1.0


def test_the_whole_model_beats_the_source_as_it_is(trained: Any) -> None:
    figures = latest(trained.stage_two)
    assert figures["psnr/model"] > figures["psnr/identity"] + 1.0


def test_the_run_card_names_what_was_run_and_no_machine(trained: Any) -> None:
    card = json.loads((trained.stage_two / "run.json").read_text())
    assert card["config"] == json.loads(trained.config.model_dump_json())
    assert card["stage_one"]["steps"] == trained.config.autoencoder.loop.steps
    assert card["steps"] == trained.config.diffusion.loop.steps
    assert os.uname().nodename not in json.dumps(card) or len(os.uname().nodename) < 4
    assert card["seeds"]["loop"] == trained.config.diffusion.loop.seed
    assert card["machine"]["torch"] == torch.__version__
    assert card["data"]["digest"] == data_digest(trained.config.data)
    assert card["data"]["split_digest"] == split_digest(trained.config.data)
    assert card["seconds_a_step"] > 0
    assert card["peak_memory"]["process_gib"] > 0
    assert list((trained.stage_two / "tensorboard").iterdir())
    assert not (trained.stage_two / "pictures").exists()


def test_the_commit_is_named_inside_a_work_tree_and_absent_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setattr(run_module, "__file__", str(inside / "run.py"))
    assert run_module.commit() is None
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "m"]):
        subprocess.run(["git", *words], cwd=inside, check=True)
    assert re.fullmatch("[0-9a-f]{40}", run_module.commit() or "")


def test_a_run_leaves_pictures_where_they_are_asked_for(trained: Any, tmp_path: Path) -> None:
    values = changed(trained.config, 2).model_dump() | {"record": {"picture_minutes": 5.0}}
    one.train_autoencoder(TrainConfig.model_validate(values), tmp_path / "one", trained.cache)
    assert [f.name for f in (tmp_path / "one" / "pictures").iterdir()] == ["step-0000002.png"]


def test_pictures_by_steps_change_no_number_and_no_digest(trained: Any, tmp_path: Path) -> None:
    plain = changed(trained.config, 4)
    values = plain.model_dump() | {"record": {"picture_minutes": 0, "picture_steps": 2}}
    config = TrainConfig.model_validate(values)
    assert config.digest("autoencoder") == plain.digest("autoencoder")
    found = [
        ckpt.load(one.train_autoencoder(each, tmp_path / name, trained.cache)).states
        for name, each in (("shown", config), ("plain", plain))
    ]
    assert same(*found)
    shown = sorted(file.name for file in (tmp_path / "shown" / "pictures").iterdir())
    assert shown == ["step-0000002.png", "step-0000004.png"]
    assert not (tmp_path / "plain" / "pictures").exists()


def in_half_precision() -> Fabric:
    """fp16 with its gradient scaler, which Fabric by itself offers on GPUs alone."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    return Fabric(accelerator="cpu", plugins=MixedPrecision("16-mixed", "cpu", scaler))


def scaled(network: torch.nn.Module) -> tuple[Fabric, Any, Any]:
    """A network and its optimiser under it."""
    fabric = in_half_precision()
    network, optimiser = fabric.setup(network, torch.optim.AdamW(network.parameters(), lr=0.1))
    return fabric, network, optimiser


def test_the_scaler_of_fp16_comes_down_after_an_overflow_and_training_goes_on() -> None:
    fabric, network, optimiser = scaled(torch.nn.Linear(1, 1, bias=False))
    weight = network.module.weight.detach().clone()
    for factor, skipped in ((float("inf"), 1.0), (1.0, 0.0)):
        optimiser.zero_grad()
        fabric.backward(network(torch.ones(1, 1)).float().sum() * factor)
        assert float(loop.descend(fabric, network, optimiser, clip=1.0)) == skipped
        assert torch.equal(network.module.weight, weight) == bool(skipped)
    assert fabric.strategy.precision.state_dict()["scale"] == 2.0**15


def test_stage_one_stays_bit_equal_in_stage_two(trained: Any) -> None:
    before = ckpt.load(trained.stage_one / ckpt.NAME).states["ema"]
    after = ckpt.load(trained.stage_two / ckpt.NAME).states["autoencoder"]
    assert after.keys() == {k.removeprefix("module.") for k in before if k != "n_averaged"}
    assert all(torch.equal(before[f"module.{k}"], v) for k, v in after.items())


def test_latents_are_scaled_to_unit_deviation(trained: Any) -> None:
    states = ckpt.load(trained.stage_two / ckpt.NAME).states
    fabric = loop.start(trained.config.diffusion.loop)
    frozen, _ = two.load_frozen(trained.stage_one, trained.config)
    pairs = training_pairs(trained.config.data, trained.cache)
    again = two.latent_scale(trained.config, fabric, frozen, pairs)
    assert states["scale"] == pytest.approx(again, rel=1e-6)


def test_a_stage_in_fp16_resumes_to_the_bit_with_its_scaler(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(settings: LoopConfig) -> Fabric:
        fabric = in_half_precision()
        fabric.seed_everything(settings.seed, verbose=False)
        fabric.launch()
        return fabric

    monkeypatch.setattr(loop, "start", start)
    values = changed(trained.config, 4).model_dump()
    values["autoencoder"]["loop"] |= {"precision": "16-mixed", "batch": 1}
    config = TrainConfig.model_validate(values)

    def run(out: str, resume: bool = False) -> Path:
        return one.train_autoencoder(config, tmp_path / out, trained.cache, resume)

    straight, halves = resumed(run, monkeypatch)
    assert same(straight.states, halves.states)
    assert straight.extras["precision"]["scale"] < 2.0**16
    assert straight.extras == halves.extras
    assert latest(tmp_path / "halves")["psnr/rebuilt"] > 0


@pytest.mark.parametrize("adversarial", [0.0, 0.1])
def test_stage_one_resumes_to_the_bit(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adversarial: float
) -> None:
    critic = {"weight": adversarial, "start": 0.0, "channels": 8, "layers": 1}
    config = changed(trained.config, 4, adversarial=critic)

    def run(out: str, resume: bool = False) -> Path:
        return one.train_autoencoder(config, tmp_path / out, trained.cache, resume)

    straight, halves = resumed(run, monkeypatch)
    assert ("discriminator" in straight.states) == (adversarial > 0)
    assert same(straight.states, halves.states)
    assert same(straight.rng, halves.rng)


def test_stage_two_resumes_to_the_bit(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = changed(trained.config, 4)
    config = trained.config.model_copy(update={"diffusion": short.diffusion})

    def run(out: str, resume: bool = False) -> Path:
        return two.train_diffusion(config, trained.stage_one, tmp_path / out, trained.cache, resume)

    straight, halves = resumed(run, monkeypatch)
    assert same(straight.states, halves.states)
    assert straight.total_steps == halves.total_steps == 4


@pytest.mark.parametrize("phase", ["venous", "both"])
def test_stage_three_resumes_to_the_bit(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    joint = {"loop": {"steps": 4, "validation_crops": 1}}
    config = TrainConfig.model_validate(trained.config.model_dump() | {"joint": joint})
    stage_two = trained.stage_two
    if phase == "both":
        config = for_both(changed(config, 1))
        one.train_autoencoder(config, tmp_path / "one", trained.cache)
        stage_two = two.train_diffusion(config, tmp_path / "one", tmp_path / "two", trained.cache)

    def run(out: str, resume: bool = False) -> Path:
        return three.train_joint(config, stage_two, tmp_path / out, trained.cache, resume)

    straight, halves = resumed(run, monkeypatch)
    assert same(straight.states, halves.states)


def for_both(config: TrainConfig) -> TrainConfig:
    """The same with one network for both phases."""
    values = config.model_dump()
    values["data"] |= {"phase": "both"}
    values["diffusion"] |= {"phase_condition": True}
    return TrainConfig.model_validate(values)


def resumed(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> tuple[ckpt.Checkpoint, ckpt.Checkpoint]:
    """4 steps in one go, and 2, a stop by signal, 2 more."""
    straight = ckpt.load(run("straight"))
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert ckpt.load(run("halves")).step == 2
    halves = ckpt.load(run("halves", resume=True))
    assert straight.step == halves.step == 4
    return straight, halves


def test_the_checkpoint_is_there_before_anything_is_measured(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(run: loop.Run, count: int) -> list[Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "held_out_samples", killed)
    with pytest.raises(KeyboardInterrupt):
        one.train_autoencoder(changed(trained.config, 2), tmp_path / "run", trained.cache)
    assert ckpt.load(tmp_path / "run" / ckpt.NAME).step == 2


def test_resuming_under_another_length_is_refused(trained: Any) -> None:
    with pytest.raises(ckpt.CheckpointUnusable, match="another configuration"):
        one.train_autoencoder(changed(trained.config, 7), trained.stage_one, trained.cache, resume=True)


def test_nothing_is_overwritten_and_nothing_is_resumed_from_nothing(trained: Any, tmp_path: Path) -> None:
    with pytest.raises(ckpt.CheckpointUnusable, match="exists already"):
        one.train_autoencoder(trained.config, trained.stage_one, trained.cache)
    with pytest.raises(ckpt.CheckpointUnusable, match="no such file"):
        one.train_autoencoder(trained.config, tmp_path / "none", trained.cache, resume=True)


def test_stage_two_refuses_a_stage_one_of_another_configuration(trained: Any, tmp_path: Path) -> None:
    other = changed(trained.config, 9)
    with pytest.raises(ckpt.CheckpointUnusable, match="another configuration"):
        two.train_diffusion(other, trained.stage_one, tmp_path / "two", trained.cache)


@pytest.mark.parametrize(
    ("formulation", "sampler"),
    [
        ("conditional", {"name": "ddim", "steps": 2}),
        ("literal", {"name": "dpm_solver", "steps": 2, "strength": 0.5}),
    ],
)
def test_every_formulation_trains(
    trained: Any, tmp_path: Path, formulation: str, sampler: dict[str, Any]
) -> None:
    values = changed(trained.config, 2).model_dump()
    values["autoencoder"] = trained.config.autoencoder.model_dump()
    values["diffusion"] |= {"formulation": formulation, "sampler": sampler}
    config = TrainConfig.model_validate(values)
    two.train_diffusion(config, trained.stage_one, tmp_path / "two", trained.cache)
    assert latest(tmp_path / "two")["psnr/model"] > 0


def test_the_adaptive_adversary_trains_in_half_precision(trained: Any, tmp_path: Path) -> None:
    critic = {"weight": 0.1, "start": 0.0, "channels": 8, "layers": 1}
    values = changed(trained.config, 2, adversarial=critic).model_dump()
    values["autoencoder"]["loop"] |= {"precision": "bf16-mixed", "batch": 1, "log_steps": 1}
    one.train_autoencoder(TrainConfig.model_validate(values), tmp_path / "half", trained.cache)
    assert math.isfinite(latest(tmp_path / "half")["loss/adversarial"])


def test_the_papers_ablations_train(trained: Any, tmp_path: Path) -> None:
    plain = changed(trained.config, 2, syncretic=False, source_skip="none")
    one.train_autoencoder(plain, tmp_path / "plain", trained.cache)
    unsharp = trained.config.autoencoder.loss.model_dump() | {"x_f": "unsharp", "sim": 0.0, "translate": 1.0}
    config = changed(trained.config, 2, loss=unsharp)
    one.train_autoencoder(config, tmp_path / "unsharp", trained.cache)
    figures = latest(tmp_path / "unsharp")
    assert "loss/sim" not in figures


@pytest.mark.parametrize("row", ["a", "b", "c", "d", "full"])
def test_every_row_of_table_2_trains_through_both_stages(trained: Any, tmp_path: Path, row: str) -> None:
    values = load_train_config(ABLATION / f"{row}.toml").model_dump()
    values |= {"data": trained.config.data.model_dump(), "record": {"picture_minutes": 0}}
    for stage in ("autoencoder", "diffusion"):
        values[stage]["loop"] |= {"steps": 1, "validation_crops": 1, "log_steps": 1}
    config = TrainConfig.model_validate(values)
    one.train_autoencoder(config, tmp_path / "one", trained.cache)
    two.train_diffusion(config, tmp_path / "one", tmp_path / "two", trained.cache)
    assert ("loss/sim" in latest(tmp_path / "one")) == (row in {"c", "full"})
    assert math.isfinite(latest(tmp_path / "two")["loss/diff"])
