"""Training configurations: the shipped ones load, mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.config import TrainConfig, TrainConfigInvalid, load_train_config

FOLDER = Path(__file__).resolve().parents[2] / "config" / "train"


@pytest.mark.parametrize("name", ["tiny", "demo", "paper"])
def test_every_shipped_configuration_loads(name: str) -> None:
    load_train_config(FOLDER / f"{name}.toml")


def test_the_paper_configuration_says_what_the_paper_prints() -> None:
    paper = load_train_config(FOLDER / "paper.toml")
    assert paper.data.window_hu == (-200, 200)
    assert paper.data.crop == (48, 256, 256)
    assert paper.autoencoder.optimiser.lr == 2e-6
    assert paper.autoencoder.loop.batch == 1
    assert paper.autoencoder.similarity.gamma == 1.0
    assert paper.autoencoder.source_skip == "none"
    assert paper.diffusion.mask.alpha == 2.0
    assert paper.diffusion.timesteps == 1000
    assert paper.diffusion.loop.batch == 2


def test_the_demo_fits_two_hours_and_one_thread_a_phase() -> None:
    demo = load_train_config(FOLDER / "demo.toml")
    assert demo.autoencoder.loop.max_minutes + demo.diffusion.loop.max_minutes <= 120
    assert demo.autoencoder.loop.threads == demo.diffusion.loop.threads == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[data]\nphaze = 'venous'", "data.phaze"),
        ("[autoencoder.loss]\nsim = -1.0", "autoencoder.loss.sim"),
        ("[data]\nwindow_hu = [100.0, 120.0]", "narrower than 100 HU"),
        ("[data]\ncrop = [15, 96, 96]", "multiples of"),
        ("[autoencoder]\nchannels = [12, 64]", "norm_groups"),
        ("[autoencoder]\nres_blocks = [1]", "differ in length"),
        ("[autoencoder.quantizer]\ngroups = 3", "do not split"),
        ("[diffusion]\nformulation = 'literal'", "cannot be sampled"),
        ("[data", "not TOML"),
    ],
)
def test_a_mistake_is_named_with_its_file(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    with pytest.raises(TrainConfigInvalid, match=words) as caught:
        load_train_config(file)
    assert str(file) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainConfigInvalid, match="no such file"):
        load_train_config(tmp_path / "none.toml")


def test_stage_one_does_not_depend_on_keys_of_stage_two() -> None:
    one = TrainConfig()
    other = TrainConfig.model_validate({"diffusion": {"sigma": 0.1}, "bundle": {"name": "x"}})
    assert one.digest("autoencoder") == other.digest("autoencoder")
    assert one.digest("diffusion") != other.digest("diffusion")
    assert one.digest("autoencoder") != one.with_phase("arterial").digest("autoencoder")
