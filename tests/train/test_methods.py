"""Every comparison method, tiny: it learns, stops, resumes to the bit, and refuses what cannot be."""

from __future__ import annotations

import json
import os
import signal
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from node.cli import app
from train import checkpoint as ckpt
from train import loop
from train.aldm.config import AldmConfig
from train.aldm.train_aldm import AldmTraining
from train.config import RunConfig, TrainConfig, TrainConfigInvalid
from train.cyclegan.train_cyclegan import Unpaired
from train.data import training_pairs
from train.methods import METHODS

REPOSITORY = Path(__file__).resolve().parents[2]
CASES = tomllib.loads(Path(__file__).with_name("four_cases.toml").read_text(encoding="utf-8"))
FAST = {"lr": 2e-3}
GENERATOR = {"channels": 8, "blocks": 1, "residual": True}
JUDGE = {"channels": 8, "layers": 2}
TOYS: dict[str, dict[str, Any]] = {
    "pix2pix": {
        "channels": 8, "downs": 3, "dropout": 0.0, "residual": True, "discriminator": JUDGE | {"pool": 0},
        "optimiser": FAST,
    },
    "cyclegan": {"generator": GENERATOR, "discriminator": JUDGE, "optimiser": FAST},
    "reggan": {
        "generator": GENERATOR, "discriminator": JUDGE, "registration": {"channels": (8,) * 4},
        "optimiser": FAST,
    },
    "ctagan": {
        "generator": GENERATOR, "discriminator": JUDGE, "registration": {"channels": (8,) * 4},
        "optimiser": FAST,
    },
    "aldm": {
        "vqgan": {"channels": (8, 16), "norm_groups": 8, "codes": 64, "optimiser": FAST | {"hold": 1.0}},
        "spade": {"channels": (8,), "hidden": 8, "optimiser": FAST | {"hold": 1.0}},
        "denoiser": {"channels": (16, 16), "norm_groups": 8, "head_channels": 8, "ema": 0.9,
                     "optimiser": FAST | {"hold": 1.0}},
        "sampler": {"steps": 4, "eta": 0.0},
    },
    "unet25d": {"features": (8, 8, 8, 8, 8, 8), "view": {"neighbours": 1}, "optimiser": {"lr": 8e-3}},
}  # fmt: skip


def toy(name: str, steps: int, **changes: Any) -> RunConfig:
    """A run of ``steps`` steps of a tiny network."""
    loops = {"steps": steps, "threads": 1, "validation_crops": 1}
    section = TOYS[name] | {"loop": loops | changes.pop("loop", {})} | changes
    values = {"data": CASES, name: section, "record": {"picture_minutes": 0}}
    return METHODS[name].config_class().model_validate(values)


def figures(folder: Path) -> dict[str, float]:
    card = json.loads((folder / "run.json").read_text())
    assert card["finished"]
    return card["latest"]


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, through nested dictionaries and lists."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cases")


@pytest.mark.parametrize("name", METHODS)
def test_its_configuration_file_is_valid_and_names_what_can_be_trained(name: str) -> None:
    config = METHODS[name].load(REPOSITORY / "config" / "train" / f"{name}.toml")
    assert config.bundle.name == name
    assert config.digest(name) != config.with_phase("arterial").digest(name)
    assert callable(METHODS[name].trainer())


def optimisers(values: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every table ``optimiser`` of a configuration by its path."""
    for key, value in values.items():
        if isinstance(value, dict):
            if key == "optimiser":
                yield f"{place}{key}", value
            yield from optimisers(value, f"{place}{key}.")


@pytest.mark.parametrize("kind", [TrainConfig, *(entry.config_class() for entry in METHODS.values())])
def test_every_optimiser_can_be_told_to_clip(kind: type[RunConfig]) -> None:
    found = dict(optimisers(kind().model_dump()))
    assert found
    assert [place for place, keys in found.items() if "clip" not in keys] == []


def test_aldms_denoiser_is_held_back_where_it_once_diverged() -> None:
    config = METHODS["aldm"].load(REPOSITORY / "config" / "train" / "aldm.toml")
    assert isinstance(config, AldmConfig)
    optimiser = config.aldm.denoiser.optimiser
    assert (optimiser.lr, optimiser.clip) == (3e-4, 1.0)


@pytest.mark.parametrize("name", METHODS)
def test_its_run_resumes_to_the_bit(
    name: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = {"autoencoder_share": 0.3, "spade_share": 0.3} if name == "aldm" else {}
    config, train = toy(name, 4, **shares), METHODS[name].trainer()
    straight = ckpt.load(train(config, tmp_path / "straight", cache))
    with monkeypatch.context() as patch:
        stop_after_two(patch)
        assert ckpt.load(train(config, tmp_path / "halves", cache)).step == 2
    halves = ckpt.load(train(config, tmp_path / "halves", cache, resume=True))
    assert straight.stage == name
    assert straight.step == halves.step == 4
    assert same(straight.states, halves.states)
    assert same(straight.rng, halves.rng)


@pytest.mark.timeout(900)
def test_two_ranks_have_the_losses_of_one_at_twice_the_batch(
    cache: Path, tmp_path: Path, two_ranks: Callable[..., None]
) -> None:
    """But for pools of past fakes and dropout, which each rank has for itself: here there are none."""
    (tmp_path / "half").mkdir()
    for name in METHODS:
        changes: dict[str, Any] = {"autoencoder_share": 0.3, "spade_share": 0.3} if name == "aldm" else {}
        if "discriminator" in TOYS[name]:
            changes["discriminator"] = JUDGE | {"pool": 0}
        whole, half = (toy(name, 3, loop={"batch": n, "log_steps": 1}, **changes) for n in (2, 1))
        METHODS[name].trainer()(whole, tmp_path / "alone" / name, cache)
        (tmp_path / "half" / f"{name}.json").write_text(half.model_dump_json())
    two_ranks(tmp_path / "half", tmp_path / "ranks", cache)
    for name in METHODS:
        together, alone = (losses(tmp_path / who / name) for who in ("ranks", "alone"))
        assert together, name
        assert together == pytest.approx(alone, abs=1e-5), name


@pytest.mark.timeout(300)
def test_two_machines_have_the_losses_of_one_at_twice_the_batch(
    cache: Path, tmp_path: Path, two_ranks: Callable[..., None]
) -> None:
    whole, half = (toy("unet25d", 3, loop={"batch": n, "log_steps": 1}) for n in (2, 1))
    METHODS["unet25d"].trainer()(whole, tmp_path / "alone", cache)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "unet25d.json").write_text(half.model_dump_json())
    two_ranks(tmp_path / "half", tmp_path / "ranks", cache, machines=2)
    together, alone = (losses(tmp_path / who) for who in ("ranks/unet25d", "alone"))
    assert json.loads((tmp_path / "ranks" / "unet25d" / "run.json").read_text())["ranks"] == 2
    assert together
    assert together == pytest.approx(alone, abs=1e-5)


def losses(folder: Path) -> dict[str, float]:
    """Those of the last step that had them, by name."""
    return {
        name: value for name, value in figures(folder).items() if name.startswith(("loss/", "discriminator"))
    }


@pytest.mark.parametrize(
    ("name", "steps"),
    [("pix2pix", 40), ("cyclegan", 200), ("reggan", 50), ("ctagan", 50), ("unet25d", 120)],
)
def test_it_learns_four_cases_by_heart_to_three_decibels_above_the_source(
    name: str, steps: int, cache: Path, tmp_path: Path
) -> None:
    METHODS[name].trainer()(toy(name, steps, loop={"validation_crops": 8, "ema": 0.0}), tmp_path, cache)
    latest = figures(tmp_path)
    assert latest["psnr/model"] > latest["psnr/identity"] + 3.0


def test_aldm_begins_to_rebuild_what_it_is_shown(cache: Path, tmp_path: Path) -> None:
    """Whether it learns all four by heart is a longer run: tests/bench/overfit.py."""
    rebuilt = []
    for steps in (4, 60):
        config = toy("aldm", steps, autoencoder_share=0.7, loop={"validation_crops": 4})
        METHODS["aldm"].trainer()(config, tmp_path / str(steps), cache)
        rebuilt.append(figures(tmp_path / str(steps))["psnr/rebuilt"])
    assert rebuilt[1] > rebuilt[0] + 1.0


def stop_after_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the process to end, as systemd would, in the second step."""
    real, done = loop.one_step, []

    def step(run: loop.Run) -> dict[str, torch.Tensor]:
        done.append(1)
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run)

    monkeypatch.setattr(loop, "one_step", step)


def test_what_a_step_of_aldm_moves_depends_on_the_share_of_the_budget(cache: Path, tmp_path: Path) -> None:
    config = toy("aldm", 3, autoencoder_share=0.3, spade_share=0.3)
    training: AldmTraining = build("aldm", config)
    pairs = training.begin(training_pairs(config.data, cache), False)
    moved = []
    for progress in (0.0, 0.4, 0.7):
        before = {part: copied(getattr(training, part).network) for part in ("vqgan", "spade", "denoiser")}
        training.step(progress, *pairs.batch(0, 0, 1))
        moved.append(
            [part for part, old in before.items() if not same(old, copied(getattr(training, part).network))]
        )
    assert moved == [["vqgan"], ["spade"], ["denoiser"]]
    assert training.scale > 0


def copied(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def build(name: str, config: RunConfig) -> Any:
    """The method's parts as the loop gets them."""
    import train.aldm.train_aldm as aldm  # noqa: PLC0415
    import train.cyclegan.train_cyclegan as cyclegan  # noqa: PLC0415

    section = getattr(config, name)
    return {"aldm": aldm, "cyclegan": cyclegan}[name].build(config, loop.start(section.loop))


def test_cyclegan_never_sees_a_pair(cache: Path) -> None:
    config = toy("cyclegan", 1)
    pairs = training_pairs(config.data, cache)
    taken_apart = [Unpaired(pairs).batch(0, step, 1) for step in range(12)]
    own = [pairs.batch(0, step, 1) for step in range(12)]
    assert all(torch.equal(apart[0], together[0]) for apart, together in zip(taken_apart, own, strict=True))
    foreign = [not torch.equal(a[1], b[1]) for a, b in zip(taken_apart, own, strict=True)]
    assert sum(foreign) > 4


@pytest.mark.parametrize(
    ("name", "data", "section", "words"),
    [
        ("cyclegan", {"crop": (8, 30, 32)}, {}, "multiples of 4"),
        ("reggan", {"crop": (8, 20, 20)}, {"registration": {"channels": (8,) * 8}}, "multiples of 16"),
        ("ctagan", {"crop": (4, 32, 32)}, {"view": {"spatial_dims": 3}}, "at least 8"),
        ("reggan", {}, {"registration": {"channels": (8, 8, 8)}}, "not pairs"),
        ("unet25d", {"crop": (8, 24, 32)}, {}, "multiples of 16"),
        ("unet25d", {}, {"features": (8, 8, 8, 8, 8, 12)}, "norm_groups"),
        ("unet25d", {}, {"view": {"spatial_dims": 3, "neighbours": 1}}, "neighbours"),
        ("aldm", {"crop": (8, 32, 20)}, {}, "multiples of"),
        ("aldm", {}, {"autoencoder_share": 0.6, "spade_share": 0.4}, "leave nothing"),
        ("pix2pix", {}, {"l2": 1.0}, "Extra inputs"),
        ("unet25d", {}, {"loop": {"recompute": True}}, "recompute"),
    ],
)
def test_what_cannot_be_is_refused_with_the_key(
    name: str, data: dict[str, Any], section: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        METHODS[name].config_class().model_validate({"data": CASES | data, name: section})


def test_the_command_trains_a_method_and_names_a_wrong_phase(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "unet25d.toml"
    keys = "\n".join(f"{key} = {json.dumps(value)}" for key, value in CASES.items())
    file.write_text(
        f"[data]\n{keys}\n[unet25d]\nfeatures = [8, 8, 8, 8, 8, 8]\nview = {{ neighbours = 1 }}\n"
        "[unet25d.loop]\nsteps = 1\nvalidation_crops = 1\n[record]\npicture_minutes = 0\n"
    )
    asked = ["train", "unet25d", "--config", str(file), "--out", str(tmp_path / "run"), "--cache", str(cache)]
    made = CliRunner().invoke(app, [*asked, "--phase", "arterial"])
    assert made.exit_code == 0, made.output
    assert json.loads((tmp_path / "run" / "run.json").read_text())["phase"] == "arterial"
    wrong = CliRunner().invoke(app, [*asked, "--phase", "portal"])
    assert wrong.exit_code == 78
    assert "'portal' is neither arterial nor venous" in wrong.output
    with pytest.raises(TrainConfigInvalid, match="no such file"):
        METHODS["unet25d"].load(tmp_path / "none.toml")
