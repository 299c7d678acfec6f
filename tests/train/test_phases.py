"""One network for both phases: it is told which, and the bundles of the two share its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

from engine.bundle import read_bundle
from engine.phantom import PhantomOptions, make_phantom
from engine.pipeline import open_engine
from engine.session import Encoded, SessionPolicy
from engine.volume import Volume
from export.bundle import export_bundle
from export.graph import weights_of
from export.restore import rebuild
from node.cli import app
from train import checkpoint as ckpt
from train.config import PHASES, TrainConfig, load_config
from train.data import data_digest, training_pairs
from train.pix2pix.config import Pix2PixConfig
from train.s2ldm import train_joint as three
from train.s2ldm.denoiser import Denoiser
from train.s2ldm.go_on import go_on_with_diffusion, go_on_with_joint
from train.s2ldm.train_autoencoder import train_autoencoder
from train.s2ldm.train_diffusion import train_diffusion

CPU = SessionPolicy(provider="cpu", threads=1)


@pytest.fixture(scope="module")
def both(tiny: TrainConfig) -> TrainConfig:
    """``tiny`` for both phases, with a handful of steps."""
    values = tiny.model_dump()
    values["data"] |= {"phase": "both", "phantoms": 2}
    for stage in ("autoencoder", "diffusion", "joint"):
        values[stage]["loop"] |= {"steps": 6, "batch": 2, "validation_crops": 1}
    values["diffusion"] |= {"phase_condition": True, "encoded_crops": 4}
    return TrainConfig.model_validate(values)


@pytest.fixture(scope="module")
def checkpoint(both: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("both")
    train_autoencoder(both, folder / "one", folder / "cache")
    return train_diffusion(both, folder / "one", folder / "two", folder / "cache")


@pytest.fixture(scope="module")
def bundles(checkpoint: Path) -> dict[str, Path]:
    folders = {phase: checkpoint.parents[1] / "bundles" / phase for phase in PHASES}
    for phase, folder in folders.items():
        export_bundle(checkpoint, folder, phase=phase)
    return folders


def test_crops_of_both_phases_come_with_their_phase(both: TrainConfig, checkpoint: Path) -> None:
    pairs = training_pairs(both.data, checkpoint.parents[1] / "cache")
    drawn = [pairs.batch(0, step, 2) for step in range(8)]
    phases = torch.cat([phase for _, _, phase in drawn])
    assert set(phases.tolist()) == {0, 1}
    assert [case.phase for case in pairs.cases] == ["arterial", "arterial", "venous", "venous"]
    assert len(training_pairs(both.with_phase("venous").data, checkpoint.parents[1] / "cache").cases) == 2
    assert data_digest(both.data) != data_digest(both.with_phase("venous").data)


def test_the_answer_depends_on_the_phase_that_is_told(both: TrainConfig, checkpoint: Path) -> None:
    weights = ckpt.averaged(ckpt.load(checkpoint).states["ema"])
    told, venous = (Denoiser(both, phase) for phase in (None, "venous"))
    for denoiser in (told, venous):
        denoiser.load_state_dict(weights)
        denoiser.eval()
    z, x, t = torch.randn(2, 4, 4, 8, 8), torch.randn(2, 1, *both.data.crop), torch.full((2,), 0.5)
    with torch.no_grad():
        answers = [told(z, z, t, x, torch.full((2,), phase)) for phase in (0, 1)]
        assert not torch.allclose(*answers)
        assert torch.equal(venous(z, z, t, x), answers[1])
        with pytest.raises(ValueError, match="told the phase"):
            told(z, z, t, x)


def test_each_phase_is_a_bundle_the_engine_runs_and_their_weights_are_the_same(
    bundles: dict[str, Path],
) -> None:
    found = {phase: read_bundle(folder) for phase, folder in bundles.items()}
    assert [found[phase].manifest.phase for phase in PHASES] == list(PHASES)
    for name in ("encoder", "condition", "decoder"):
        assert len({found[phase].manifest.files[f"{name}.onnx"] for phase in PHASES}) == 1
    arterial, venous = (weights_of(onnx.load(bundles[phase] / "denoiser.onnx")) for phase in PHASES)
    shared = [name for name in arterial if name.startswith("denoiser.unet.")]
    assert "denoiser.unet.class_embedding.weight" in shared
    assert all(torch.equal(arterial[name], venous[name]) for name in shared)
    options = PhantomOptions(shape=(12, 40, 40), spacing_mm=(6.0, 8.0, 8.0), phases=("ncct",))
    phantom = make_phantom(0, options)
    source = Volume(phantom.phases["ncct"], phantom.geometry)
    engines = [open_engine(bundles[phase], CPU) for phase in PHASES]
    made = [engine.synthesize(source, seed=0) for engine in engines]
    assert [synthesis.phase for synthesis in made] == list(PHASES)
    assert not np.array_equal(made[0].volume.hu, made[1].volume.hu)

    assert engines[0].encoding == engines[1].encoding
    encoded: Encoded = {}
    again = [engine.synthesize(source, seed=0, encoded=encoded) for engine in engines]
    assert not {"encoder", "condition"} & again[1].seconds.keys()
    for one, other in zip(again, made, strict=True):
        np.testing.assert_array_equal(one.volume.hu, other.volume.hu)


def test_stage_three_hears_the_phase_of_every_crop(both: TrainConfig, checkpoint: Path) -> None:
    translator, _ = three.load_translator(checkpoint, both)
    x_n = torch.rand(2, 1, *both.data.crop, generator=torch.Generator().manual_seed(1)) * 2 - 1
    embedding = translator.denoiser.unet.class_embedding.weight
    for row in (0, 1):
        translator.zero_grad()
        painted, _ = translator(x_n, torch.tensor([0, 1]))
        painted[row].square().sum().backward()
        assert [bool(each.any()) for each in embedding.grad] == [row == 0, row == 1]
    assert not any(p.requires_grad for p in translator.autoencoder.encoder.parameters())
    with pytest.raises(ValueError, match="told the phase"):
        translator(x_n)


def test_stage_three_of_both_moves_what_it_may_and_becomes_two_bundles(
    both: TrainConfig, checkpoint: Path, tmp_path: Path
) -> None:
    cache = checkpoint.parents[1] / "cache"
    before = three.load_translator(checkpoint, both)[0].state_dict()
    out = three.train_joint(both, checkpoint, tmp_path / "three", cache)
    after = ckpt.averaged(ckpt.load(out).states["ema"])
    still = [k for k in before if k.startswith(("autoencoder.encoder.", "autoencoder.quantizer."))]
    assert all(torch.equal(before[k], after[k]) for k in still)
    assert not torch.equal(*(w["denoiser.unet.class_embedding.weight"] for w in (before, after)))
    parities = {phase: export_bundle(out, tmp_path / phase, phase=phase).parity for phase in PHASES}
    files = {phase: read_bundle(tmp_path / phase).manifest.files for phase in PHASES}
    assert files["arterial"]["decoder.onnx"] == files["venous"]["decoder.onnx"]
    assert files["arterial"]["denoiser.onnx"] != files["venous"]["denoiser.onnx"]
    assert all(found["whole"]["hu_mean"] < 0.2 for found in parities.values())


def test_one_phase_of_stage_three_learns_on(both: TrainConfig, checkpoint: Path, tmp_path: Path) -> None:
    cache = checkpoint.parents[1] / "cache"
    start = ckpt.load(three.train_joint(both, checkpoint, tmp_path / "three", cache))
    section = both.joint.model_dump() | {"optimiser": {"lr": 1e-12}}
    still = TrainConfig.model_validate(both.with_phase("arterial").model_dump() | {"joint": section})
    after = ckpt.load(go_on_with_joint(still, start, tmp_path / "on", cache))
    assert after.states["scale"] == start.states["scale"]
    for name, weight in start.states["translator"].items():
        assert torch.allclose(weight, after.states["translator"][name], atol=1e-6), name


def test_the_networks_of_a_phases_bundle_can_be_read_back(bundles: dict[str, Path]) -> None:
    model = rebuild(read_bundle(bundles["arterial"]))
    inputs = model.inputs()["denoiser"]
    with torch.no_grad():
        assert torch.isfinite(model.graphs()["denoiser"](**inputs)).all()


def test_one_phase_of_it_learns_on(both: TrainConfig, checkpoint: Path, tmp_path: Path) -> None:
    start = ckpt.load(checkpoint)
    one = both.with_phase("arterial")
    section = one.diffusion.model_dump() | {"optimiser": {"lr": 1e-12}, "encoded_crops": 0}
    still = TrainConfig.model_validate(one.model_dump() | {"diffusion": section})
    after = ckpt.load(go_on_with_diffusion(still, start, tmp_path / "on", checkpoint.parents[1] / "cache"))
    assert after.states["scale"] == start.states["scale"]
    assert after.config != start.config
    for name, weight in start.states["denoiser"].items():
        assert torch.allclose(weight, after.states["denoiser"][name], atol=1e-6), name


def test_the_export_of_a_model_for_both_has_to_name_one(
    both: TrainConfig, checkpoint: Path, tmp_path: Path
) -> None:
    runner = CliRunner()
    words = ["export", str(checkpoint), str(tmp_path / "b")]
    unnamed, wrong = (runner.invoke(app, [*words, *more]) for more in ([], ["--phase", "portal"]))
    assert unnamed.exit_code == 1
    assert "add --phase arterial or --phase venous" in unnamed.output
    assert wrong.exit_code == 78
    found = ckpt.load(checkpoint)
    states = {name: getattr(found, name) for name in found.__slots__}
    venous = both.with_phase("venous").model_dump_json()
    ckpt.save(tmp_path / ckpt.NAME, ckpt.Checkpoint(**states | {"config": venous}))
    other = runner.invoke(app, ["export", str(tmp_path), str(tmp_path / "b"), "--phase", "arterial"])
    assert other.exit_code == 1
    assert "is of phase 'venous', not 'arterial'" in other.output


def test_both_phases_are_refused_where_the_network_is_not_told(tiny: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="phase_condition"):
        tiny.with_phase("both")
    with pytest.raises(ValidationError, match="told the phase"):
        Pix2PixConfig.model_validate({"data": {"phase": "both"}})
    file = tmp_path / "plain.toml"
    file.write_text("")
    assert load_config(file, TrainConfig).data.phases == ("venous",)
    refused = CliRunner().invoke(app, ["train", "autoencoder", "--config", str(file), "--phase", "both"])
    assert refused.exit_code == 78
    assert "phase_condition" in refused.output
