"""Every comparison method becomes a bundle that the engine runs like any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from engine.bundle import read_bundle
from engine.phantom import PhantomOptions, make_phantom
from engine.pipeline import open_engine
from engine.session import SessionPolicy
from engine.volume import Volume
from export import parity
from export.bundle import LOADERS, export_bundle, load_model
from export.parity import ParityExceeded, Tolerance
from node.cli import app
from node.demo import DemoPlan, run_demo
from node.states import State
from node.verify import verify
from train.checkpoint import NAME, CheckpointUnusable
from train.config import RunConfig
from train.methods import METHODS

CPU = SessionPolicy(provider="cpu", threads=1)
DATA: dict[str, Any] = {
    "spacing_mm": (6.0, 8.0, 8.0), "crop": (8, 32, 32), "phantom_shape": (12, 40, 40), "phantoms": 1,
    "validation_phantoms": 1,
}  # fmt: skip
RESNET: dict[str, Any] = {
    "generator": {"channels": 4, "blocks": 1},
    "discriminator": {"channels": 4, "layers": 2},
}
NETWORKS: dict[str, dict[str, Any]] = {
    "pix2pix": {"channels": 4, "discriminator": {"channels": 4, "layers": 2, "pool": 0}},
    "cyclegan": RESNET,
    "reggan": RESNET | {"registration": {"channels": (4,) * 4}},
    "ctagan": RESNET | {"registration": {"channels": (4,) * 4}},
    "aldm": {
        "vqgan": {"channels": (8, 8), "norm_groups": 8, "codes": 16},
        "spade": {"channels": (8,), "hidden": 8},
        "denoiser": {"channels": (8, 8), "norm_groups": 8, "head_channels": 8},
        "sampler": {"steps": 3, "eta": 1.0},
    },
    "unet25d": {"features": (8, 8, 8, 8, 8, 8), "view": {"neighbours": 1}},
}  # fmt: skip


Run = Callable[[str], Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """``run(name)``: the folder of a run of three steps of a method."""
    folder = tmp_path_factory.mktemp("methods")

    @cache
    def trained(name: str) -> Path:
        METHODS[name].trainer()(configured(name), folder / name, folder / "cache")
        return folder / name

    return trained


def configured(name: str, **changes: Any) -> RunConfig:
    """Three steps of a tiny network."""
    section = NETWORKS[name] | {"loop": {"steps": 3, "threads": 1, "validation_crops": 1}} | changes
    values = {"data": DATA, name: section, "record": {"picture_minutes": 0}}
    values["bundle"] = {"name": name, "composition": {"detail": 0.0}}
    return METHODS[name].config_class().model_validate(values)


@pytest.mark.parametrize("name", METHODS)
def test_its_bundle_is_verified_and_the_engine_runs_it(name: str, run: Run, tmp_path: Path) -> None:
    manifest = export_bundle(run(name), tmp_path / name)
    assert manifest.family == ("s2ldm" if name == "aldm" else "translator")
    assert manifest.model_id == f"{name}-venous-1.0.0"
    assert manifest.run["steps"] == 3
    assert manifest.run["config"] == json.loads((run(name) / "run.json").read_text())["config"]
    phantom = make_phantom(
        0, PhantomOptions(shape=(12, 40, 40), spacing_mm=(6.0, 8.0, 8.0), phases=("ncct",))
    )
    engine = open_engine(tmp_path / name, CPU)
    made = engine.synthesize(Volume(phantom.phases["ncct"], phantom.geometry), seed=0)
    assert made.volume.hu.shape == phantom.geometry.shape
    assert np.isfinite(made.volume.hu).all()
    assert not np.array_equal(made.volume.hu, phantom.phases["ncct"])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [*METHODS, "s2ldm"])
def test_its_series_comes_back_from_the_node_and_says_what_made_it(
    name: str, run: Run, checkpoint: Path, translator_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    """By C-STORE into a node, through its worker, by C-STORE back to the archive, asked after and kept."""
    manifest = export_bundle(checkpoint if name == "s2ldm" else run(name), tmp_path / name)
    abdomen = PhantomOptions(shape=(12, 128, 128), spacing_mm=(7.0, 3.0, 3.0), noise_hu=5.0)
    models = (tmp_path / name, translator_bundle("arterial"))
    plan = DemoPlan(tmp_path / "demo", seed=3, options=abdomen, models=models, limit_s=240)
    result = run_demo(plan, lambda what, share: None)
    assert [job.state for job in result.jobs] == [State.COMMITTED]
    (back,) = [series for series in result.returned if series.phase == "venous"]
    assert len(back.paths) == 12
    verified = [verify(path) for path in back.paths]
    assert all(one.ours and not one.problems for one in verified)
    assert {one.model_id for one in verified} == {manifest.model_id}


@pytest.mark.parametrize("view", [{"spatial_dims": 3}, {"neighbours": 2}], ids=["3-D", "2.5-D"])
def test_a_gan_of_any_view_trains_and_exports(view: dict[str, int], run: Run, tmp_path: Path) -> None:
    loop = {"steps": 1, "threads": 1, "validation_crops": 1}
    config = configured("pix2pix", view=view, loop=loop)
    METHODS["pix2pix"].trainer()(config, tmp_path / "run", run("pix2pix").parent / "cache")
    manifest: Any = export_bundle(tmp_path / "run", tmp_path / "b")
    assert manifest.parity["translator"]["hu_p999"] <= manifest.parity["translator"]["tolerance_hu_p999"]


def test_every_method_has_a_reader_and_every_reader_a_whole_model() -> None:
    assert set(LOADERS) == {"diffusion", "joint", *METHODS}


def test_a_translator_bundle_is_one_graph_of_the_tile_with_the_folding_inside(
    run: Run, tmp_path: Path
) -> None:
    export_bundle(run("unet25d"), tmp_path / "b")
    assert sorted(f.name for f in (tmp_path / "b").iterdir()) == ["bundle.json", "translator.onnx"]
    graph = onnx.load(tmp_path / "b" / "translator.onnx").graph
    shapes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)]
    assert shapes == [[1, 1, 8, 32, 32]] * 2
    assert not {"GroupNormalization"} & {node.op_type for node in graph.node}


def test_a_translator_beyond_its_tolerance_is_refused_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ParityExceeded, match="translator: "):
        export_bundle(run("pix2pix"), tmp_path / "b", tolerance=Tolerance(translator_hu_p999=-1.0))
    assert list(tmp_path.iterdir()) == []


def test_parity_of_a_translator_is_written_with_its_tolerance(run: Run, tmp_path: Path) -> None:
    export_bundle(run("reggan"), tmp_path / "b", half_weights=False)
    written: Any = read_bundle(tmp_path / "b").manifest.parity
    assert written["translator"]["hu_p999"] <= written["translator"]["tolerance_hu_p999"]
    assert written["whole"]["hu_mean"] < 0.05
    assert parity.MEASURES.keys() == {"s2ldm", "translator"}


def test_an_aldm_stopped_before_its_denoiser_is_refused(run: Run, tmp_path: Path) -> None:
    loop = {"steps": 1, "threads": 1, "validation_crops": 1}
    config = configured("aldm", autoencoder_share=0.9, spade_share=0.05, loop=loop)
    METHODS["aldm"].trainer()(config, tmp_path / "run", run("aldm").parent / "cache")
    with pytest.raises(CheckpointUnusable, match="resume it first"):
        load_model(tmp_path / "run" / NAME)


def test_the_command_exports_a_method_under_the_name_of_its_configuration(run: Run, tmp_path: Path) -> None:
    naming = tmp_path / "name.toml"
    naming.write_text('[bundle]\nname = "other"\nversion = "2.0.0"\n[unet25d]\nfeatures = "not read here"\n')
    out = tmp_path / "b"
    made = CliRunner().invoke(app, ["export", str(run("unet25d")), str(out), "--config", str(naming)])
    assert made.exit_code == 0, made.output
    assert "other-venous-2.0.0" in made.output
