"""Training configurations: the shipped ones load, mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.config import TrainConfig, TrainConfigInvalid, load_train_config

FOLDER = Path(__file__).resolve().parents[2] / "config" / "train"


@pytest.mark.parametrize("name", ["tiny", "demo", "paper", "release"])
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
    pairs = {"arterial": 164, "venous": 170}[paper.data.phase] * 4 // 5
    for loop, epochs in ((paper.autoencoder.loop, 1000), (paper.diffusion.loop, 5000)):
        assert loop.steps == epochs * pairs // loop.batch


def test_the_paper_configuration_leaves_out_what_the_paper_does_not_have() -> None:
    paper = load_train_config(FOLDER / "paper.toml")
    assert paper.diffusion.source_condition == "none"
    assert paper.autoencoder.loss.translate == paper.autoencoder.loss.enhancement == 0
    assert paper.autoencoder.similarity.stop_grad == "none"
    assert not paper.autoencoder.quantizer.quantize_both
    assert paper.bundle.composition.detail == 0


def test_the_release_makes_the_choices_of_what_ships() -> None:
    release, demo = (load_train_config(FOLDER / f"{name}.toml") for name in ("release", "demo"))
    assert release.autoencoder.loss == demo.autoencoder.loss
    assert release.autoencoder.similarity == demo.autoencoder.similarity
    assert release.diffusion.formulation == demo.diffusion.formulation == "bridge"
    assert release.diffusion.mask == demo.diffusion.mask
    assert release.data.window_hu == demo.data.window_hu == (-200, 400)


@pytest.mark.parametrize(
    ("row", "parts"),
    [("a", (False, False, False)), ("b", (True, False, False)), ("c", (True, True, False)),
     ("d", (True, False, True)), ("full", (True, True, True))],
)  # fmt: skip
def test_the_rows_of_table_2_differ_in_three_switches_and_nothing_else(
    row: str, parts: tuple[bool, bool, bool]
) -> None:
    full, values = (load_train_config(FOLDER / "ablation" / f"{n}.toml").model_dump() for n in ("full", row))
    one, two = values["autoencoder"], values["diffusion"]
    assert (one["syncretic"], one["loss"]["sim"] > 0, two["mask"]["enabled"]) == parts
    one["syncretic"], one["loss"]["sim"], two["mask"]["enabled"] = True, 0.1, True
    assert values["bundle"].pop("name") == f"s2ldm-ablation-{row}"
    full["bundle"].pop("name")
    assert values == full


def test_a_file_states_only_what_differs_from_the_one_it_extends(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("[data]\nphantoms = 5\n[autoencoder.loss]\nsim = 0.3\nrec = 2.0")
    (tmp_path / "row.toml").write_text('extends = "base.toml"\n[autoencoder.loss]\nsim = 0.0')
    config = load_train_config(tmp_path / "row.toml")
    assert (config.data.phantoms, config.autoencoder.loss.sim, config.autoencoder.loss.rec) == (5, 0.0, 2.0)


def test_files_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text('extends = "two.toml"')
    (tmp_path / "two.toml").write_text('extends = "one.toml"')
    with pytest.raises(TrainConfigInvalid, match="names no other file"):
        load_train_config(tmp_path / "one.toml")


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
        ("[data]\ncrop = [16, 96, 96]\nphantom_shape = [96, 64, 96]", "is larger than phantom_shape"),
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
