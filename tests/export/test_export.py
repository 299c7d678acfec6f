"""A checkpoint becomes a bundle the engine runs, or nothing at all."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from engine import session
from engine.bundle import read_bundle, write_manifest
from engine.phantom import PhantomOptions, make_phantom
from engine.pipeline import open_engine
from engine.session import SessionPolicy
from engine.volume import Volume
from export import parity
from export.bench import _products, compare, graphs
from export.bundle import BundleExists, export_bundle, rounded
from export.graph import OPSET, weights_of, write_graph
from export.half import ANGLES, CHOICES, leading_to
from export.parity import ParityExceeded, Tolerance
from export.restore import rebuild
from export.s2ldm import load_model
from node.cli import app
from node.models import SHIPPED
from train.checkpoint import NAME, CheckpointUnusable
from train.config import BundleConfig, TrainConfig
from train.s2ldm.train_joint import train_joint

CPU = SessionPolicy(provider="cpu", threads=1)


def test_measured_figures_go_into_the_manifest_as_json_knows_them(bundle: Path) -> None:
    figures = {"window_hu": (-200.0, 400.0), "organs": {"aorta": {"interval": [1.23456789, None]}}}
    manifest = read_bundle(bundle).manifest.model_copy(update={"metrics": rounded(figures)})
    kept = json.loads(manifest.model_dump_json())["metrics"]
    assert kept == {"window_hu": [-200.0, 400.0], "organs": {"aorta": {"interval": [1.2346, None]}}}


def test_a_third_stage_is_exported_like_the_second(
    checkpoint: Path, few_steps: TrainConfig, tmp_path: Path
) -> None:
    joint = {"loop": {"steps": 2, "validation_crops": 1}}
    config = TrainConfig.model_validate(few_steps.model_dump() | {"joint": joint})
    train_joint(config, checkpoint, tmp_path / "three", checkpoint.parent / "cache")
    manifest = export_bundle(tmp_path / "three", tmp_path / "bundle")
    assert manifest.family == "s2ldm"
    card: Any = manifest.run
    assert card["stage_two"]["steps"] == few_steps.diffusion.loop.steps
    assert {f.name for f in (tmp_path / "bundle").glob("*.onnx")} == {
        "encoder.onnx", "condition.onnx", "denoiser.onnx", "decoder.onnx",
    }  # fmt: skip


def test_the_manifest_says_what_was_trained(bundle: Path, few_steps: TrainConfig) -> None:
    manifest = read_bundle(bundle).manifest
    assert manifest.model_id == "s2ldm-tiny-venous-0.0.0"
    assert manifest.tile == few_steps.data.crop
    assert manifest.latent is not None
    assert manifest.latent.factor == few_steps.autoencoder.factor
    assert manifest.sampler is not None
    assert manifest.sampler.steps == few_steps.diffusion.sampler.steps
    assert manifest.run["config"] == json.loads(few_steps.model_dump_json())
    assert manifest.run["steps"] == 6
    assert manifest.opset == OPSET == 18


def test_parity_of_every_graph_is_written_with_its_tolerance(bundle: Path) -> None:
    written = read_bundle(bundle).manifest.parity
    assert written.keys() == {"encoder", "condition", "denoiser", "decoder", "whole"}
    assert written["encoder"]["max_abs"] <= written["encoder"]["tolerance"]
    for name in ("condition", "denoiser"):
        assert written[name]["max_abs"] <= written[name]["tolerance"]
    assert written["decoder"]["code_agreement"] >= written["decoder"]["tolerance_code_agreement"]
    assert written["whole"]["hu_mean"] < 0.2


def a_volume() -> Volume:
    options = PhantomOptions(shape=(12, 40, 40), spacing_mm=(6.0, 8.0, 8.0), phases=("ncct",))
    phantom = make_phantom(0, options)
    return Volume(phantom.phases["ncct"], phantom.geometry)


def test_the_engine_runs_it(bundle: Path) -> None:
    volume = a_volume()
    made = open_engine(bundle, CPU).synthesize(volume, seed=0)
    assert made.phase == "venous"
    assert made.volume.hu.shape == volume.geometry.shape
    assert np.isfinite(made.volume.hu).all()


def test_graphs_are_opset_18_and_fixed_and_name_nothing_of_this_machine(bundle: Path) -> None:
    for file in (*bundle.glob("*.onnx"), *SHIPPED.glob("*/*.onnx")):
        graph = onnx.load(file)
        assert {o.version for o in graph.opset_import if o.domain == ""} == {18}
        assert not {"GroupNormalization", "OneHot"} & {node.op_type for node in graph.graph.node}
        assert all(d.dim_value > 0 for i in graph.graph.input for d in i.type.tensor_type.shape.dim)
        assert str(Path(__file__).resolve().parents[2]).encode() not in file.read_bytes()


def test_what_follows_from_no_weight_is_worked_out_at_export(bundle: Path, checkpoint: Path) -> None:
    for name, module in load_model(checkpoint / NAME).graphs().items():
        weights = {weight for weight, _ in (*module.named_parameters(), *module.named_buffers())}
        graph = onnx.load(bundle / f"{name}.onnx").graph
        known = {i.name for i in graph.initializer if i.name.removesuffix(".half") not in weights}
        assert known or name == "condition"
        assert not [node.name for node in graph.node if known.issuperset(node.input)]


def test_large_weights_are_halved_and_codes_are_not(bundle: Path) -> None:
    decoder = onnx.load(bundle / "decoder.onnx")
    types = {i.name: i.data_type for i in decoder.graph.initializer}
    halved = [name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT16]
    assert len(halved) > 3
    assert types["autoencoder.quantizer.codebook"] == onnx.TensorProto.FLOAT


def test_every_weight_can_be_read_back(bundle: Path, checkpoint: Path) -> None:
    model = load_model(checkpoint / NAME)
    found = {
        k: v
        for n in ("condition", "denoiser")
        for k, v in weights_of(onnx.load(bundle / f"{n}.onnx")).items()
    }
    for name, parameter in model.denoiser.named_parameters():
        assert torch.allclose(found[f"denoiser.{name}"], parameter, atol=1e-3, rtol=1e-3), name
    again = rebuild(read_bundle(bundle))
    x = model.inputs()["encoder"]["x"]
    assert torch.allclose(again.graphs()["encoder"](x), model.graphs()["encoder"](x), atol=1e-2)


def test_each_graph_is_measured_beside_torch_with_its_flops(bundle: Path) -> None:
    measured = graphs(read_bundle(bundle), rounds=1, policy=CPU)
    rows, steps = measured["graphs"], read_bundle(bundle).manifest.sampler.steps  # type: ignore[union-attr]
    assert {name: row["calls"] for name, row in rows.items()} == {
        "encoder": 1, "condition": 1, "denoiser": steps, "decoder": 1,
    }  # fmt: skip
    assert measured["flops"] == sum(row["calls"] * row["flops"] for row in rows.values())
    condition = rows.pop("condition")
    assert condition["flops"] == 0, "the tiny model is shown its source's voxels as they are"
    assert all(row["flops"] > 1e6 and row["peak_share"] > 0 for row in rows.values())


def test_who_cannot_run_the_graphs_is_told_with_the_reason(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    measured = compare(bundle, tiles=1, rounds=1, policy=CPU, others=("openvino",))
    assert "openvino" in measured["openvino_s"]
    assert {"engine_s", "torch_s", "ratio", "provider", "machine"} <= measured.keys()


def test_a_bundle_of_another_method_is_refused_in_words(
    translator_bundle: Callable[..., Path], bundle: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    read = read_bundle(other)
    write_manifest(other, read.manifest.model_copy(update={"run": {"config": {"method": "aldm"}}}))
    for folder in (translator_bundle("venous"), other):
        result = CliRunner().invoke(app, ["bench", "engine", "--bundle", str(folder), "--full"])
        assert result.exit_code == 78
        assert "not an S²LDM by its run card" in result.output


def test_the_benchmark_says_what_runs_here_and_what_would_be_faster(bundle: Path) -> None:
    arguments = ["--bundle", str(bundle), "--tiles", "1", "--rounds", "1", "--threads", "1"]
    said = CliRunner().invoke(app, ["bench", "engine", *arguments]).output
    assert "here: cpu with 1 threads; ONNX Runtime" in said
    assert "; faster: an NVIDIA GPU" in said


def test_the_benchmark_adds_half_precision_for_a_run_and_leaves_the_bundle_alone(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file.name: file.read_bytes() for file in bundle.iterdir()}
    monkeypatch.setattr(session, "VARIANTS", {"cpu": "fp16"})
    arguments = ["--bundle", str(bundle), "--tiles", "1", "--rounds", "1", "--threads", "1"]
    plain, halved = (
        json.loads(CliRunner().invoke(app, ["bench", "engine", *arguments, *more, "--json"]).stdout)
        for more in ([], ["--fp16"])
    )
    assert (plain["provider"], halved["provider"]) == ("cpu", "cpu fp16")
    assert plain["difference_hu"] < halved["difference_hu"] < 0.5
    assert {file.name: file.read_bytes() for file in bundle.iterdir()} == before


def test_the_matrix_peak_of_some_threads_asks_nobody_who_takes_more() -> None:
    assert [len(_products(8, threads)) for threads in (0, 1)] == [3, 2]


def test_a_variant_in_half_precision_is_written_measured_and_run_where_a_provider_asks_for_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = export_bundle(checkpoint, tmp_path / "b", fp16=True)
    assert manifest.variants["fp16"].keys() == manifest.graphs.keys()
    measured: Any = manifest.parity["fp16"]
    plain: Any = manifest.parity
    for name in ("encoder", "condition", "denoiser"):
        assert measured[name]["max_abs"] <= measured[name]["tolerance"]
    assert measured["whole"]["hu_mean"] < 0.5
    assert measured["encoder"]["rms"] > plain["encoder"]["rms"] > 0
    decoder = onnx.load(tmp_path / "b" / "decoder.fp16.onnx")
    kinds = {i.name: i.data_type for i in decoder.graph.initializer}
    assert kinds["autoencoder.quantizer.codebook.kept"] == onnx.TensorProto.FLOAT
    assert onnx.TensorProto.FLOAT16 in kinds.values()
    assert {i.type.tensor_type.elem_type for i in decoder.graph.input} == {onnx.TensorProto.FLOAT}

    volume = a_volume()
    plainly = open_engine(tmp_path / "b", CPU).synthesize(volume, seed=0)
    monkeypatch.setattr(session, "VARIANTS", {"cpu": "fp16"})
    halved = open_engine(tmp_path / "b", CPU).synthesize(volume, seed=0)
    assert (plainly.provider, halved.provider) == ("cpu", "cpu fp16")
    difference = np.abs(halved.volume.hu - plainly.volume.hu)
    assert difference.max() > 0
    assert difference.mean() < 0.5


def test_what_leads_to_a_choice_stays_in_single_precision(bundle: Path) -> None:
    decoder = onnx.load(bundle / "decoder.onnx")
    kept = leading_to(decoder, CHOICES)
    made_by = {output: node for node in decoder.graph.node for output in node.output}
    choices = [node for node in decoder.graph.node if node.op_type in CHOICES]
    assert choices
    assert {node.name for node in choices} <= kept
    assert {made_by[name].name for node in choices for name in node.input if name in made_by} <= kept
    assert len(kept) < len(decoder.graph.node)


@pytest.mark.parametrize(("name", "operators"), [("decoder", CHOICES), ("denoiser", ANGLES)])
def test_nothing_on_the_way_to_a_choice_or_an_angle_is_rounded(
    checkpoint: Path, tmp_path: Path, name: str, operators: tuple[str, ...]
) -> None:
    model = load_model(checkpoint / NAME)
    files = [tmp_path / "whole.onnx", tmp_path / "half.onnx"]
    write_graph(model.graphs()[name], model.inputs()[name], model.outputs()[name], files[0], True, files[1])
    graph = onnx.load(files[1])
    before = leading_to(graph, operators)
    casts = [node for node in graph.graph.node if node.op_type == "Cast"]
    assert any(node.op_type in operators for node in graph.graph.node)
    assert any(node.attribute[0].i == onnx.TensorProto.FLOAT16 for node in casts)
    assert not [
        node for node in casts if node.name in before and node.attribute[0].i == onnx.TensorProto.FLOAT16
    ]


def test_full_weights_make_a_larger_and_closer_bundle(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    full = export_bundle(checkpoint, tmp_path / "full", half_weights=False)
    half = read_bundle(bundle).manifest
    sizes = [sum(f.stat().st_size for f in folder.glob("*.onnx")) for folder in (tmp_path / "full", bundle)]
    assert sizes[0] > 1.5 * sizes[1]
    assert full.parity["encoder"]["max_abs"] < half.parity["encoder"]["max_abs"]
    assert full.parity["encoder"]["max_abs"] < 1e-4


@pytest.mark.parametrize(
    ("tolerance", "words"),
    [
        ({"latent_max_abs": 1e-12}, "encoder: max_abs"),
        ({"decoder_hu_p999": -1.0}, "decoder: .* HU"),
        ({"code_agreement": 1.1}, "codes agree"),
        ({"whole_hu_mean": -1.0}, "whole: "),
    ],
)
def test_every_figure_beyond_its_tolerance_is_refused(
    bundle: Path, checkpoint: Path, tolerance: dict[str, float], words: str
) -> None:
    files = {name: bundle / f"{name}.onnx" for name in ("encoder", "condition", "denoiser", "decoder")}
    with pytest.raises(ParityExceeded, match=words):
        parity.measure(load_model(checkpoint / NAME), files, Tolerance(**tolerance))


class LateWrong:
    """A denoiser's session that is right but for one t."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def run(self, outputs: Any, inputs: dict[str, Any]) -> list[Any]:
        answers = self.real.run(outputs, inputs)
        return [answer + np.float32(inputs.get("t", 0.0) == np.float32(0.98)) for answer in answers]


def test_a_denoiser_that_is_right_at_one_time_only_is_refused(
    bundle: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = parity._session
    monkeypatch.setattr(parity, "_session", lambda file: LateWrong(real(file)))
    files = {name: bundle / f"{name}.onnx" for name in ("encoder", "condition", "denoiser", "decoder")}
    with pytest.raises(ParityExceeded, match=r"^denoiser: max_abs 1(\.0\d*)? over 0.02$"):
        parity.measure(load_model(checkpoint / NAME), files)


def test_of_a_long_sampler_a_few_times_are_measured() -> None:
    assert parity._few([0.25, 0.75]) == [0.25, 0.75]
    assert len(parity._few([k / 999 for k in range(999)])) == parity.FEW


def test_a_graph_that_is_another_model_leaves_no_folder(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = parity._session

    def other(file: Path) -> Any:
        graph = onnx.load(file)
        for weight in graph.graph.initializer:
            if weight.name.endswith("bias"):
                values = onnx.numpy_helper.to_array(weight)
                weight.CopyFrom(onnx.numpy_helper.from_array(values + 0.1, weight.name))
        onnx.save(graph, file)
        return real(file)

    monkeypatch.setattr(parity, "_session", other)
    with pytest.raises(ParityExceeded, match="encoder"):
        export_bundle(checkpoint, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_kept_unless_it_is_to_be_replaced(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").touch()
    with pytest.raises(BundleExists):
        export_bundle(checkpoint, tmp_path / "b")
    assert (tmp_path / "b" / "mine").exists()
    renamed = BundleConfig(name="other", version="2.0.0")
    export_bundle(checkpoint, tmp_path / "b", replace=True, settings=renamed)
    assert read_bundle(tmp_path / "b").manifest.model_id == "other-venous-2.0.0"
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_stage_one_alone_cannot_be_exported(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointUnusable, match="is of stage 'autoencoder'"):
        export_bundle(checkpoint.parent / "one", tmp_path / "b")


def test_the_command_exports_and_refuses(checkpoint: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    made = runner.invoke(app, ["export", str(checkpoint), str(tmp_path / "b")])
    assert made.exit_code == 0, made.output
    assert "s2ldm-tiny-venous-0.0.0" in made.output
    again = runner.invoke(app, ["export", str(checkpoint), str(tmp_path / "b")])
    assert again.exit_code == 1
    assert "--replace" in again.output


def test_engine_and_torch_do_the_same_work_in_the_benchmark(bundle: Path) -> None:
    result = compare(bundle, tiles=1, rounds=1, policy=CPU)
    assert result["difference_hu"] < 0.1
    assert result["ratio"] == pytest.approx(result["engine_s"] / result["torch_s"], rel=0.05)
    assert result["provider"] == "cpu"
