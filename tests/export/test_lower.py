"""A lowered convolution answers as before, with its weights where they were; what would not gain stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import export.graph
from engine.pipeline import open_engine
from engine.session import SessionPolicy
from export.bundle import export_bundle
from export.lower import F2, F4, lower, lower_bundle, transforms

CPU = SessionPolicy(provider="cpu", threads=1)
PLAIN = {"pads": [1] * 6, "strides": [1, 1, 1]}


def graph(
    x: tuple[int, ...], weights: tuple[int, ...], *, bias: bool = True, half: bool = False, **attributes: Any
) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    w = rng.normal(size=weights).astype(np.float32)
    constants = [
        numpy_helper.from_array(w.astype(np.float16), "w.half") if half else numpy_helper.from_array(w, "w")
    ]
    if bias:
        constants.append(numpy_helper.from_array(rng.normal(size=weights[0]).astype(np.float32), "b"))
    nodes = [helper.make_node("Conv", ["x", "w", *(["b"] if bias else [])], ["y"], **(PLAIN | attributes))]
    nodes[0].attribute.append(helper.make_attribute("kernel_shape", weights[2:]))
    if half:
        nodes.insert(0, helper.make_node("Cast", ["w.half"], ["w"], to=TensorProto.FLOAT))
    inputs, outputs = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", x), ("y", None))
    )
    made = helper.make_graph(nodes, "g", [inputs], [outputs], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(model: onnx.ModelProto, x: Any) -> Any:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )[0]


@pytest.mark.parametrize(
    ("shape", "weights", "more"),
    [
        ((1, 16, 8, 6, 7), (8, 16, 3, 3, 3), {}),
        ((1, 24, 4, 5, 5), (12, 24, 3, 3, 3), {"bias": False}),
        ((1, 16, 6, 6, 6), (16, 16, 3, 3, 3), {}),
        ((1, 16, 2, 9, 8), (4, 16, 3, 1, 1), {"pads": [1, 0, 0, 1, 0, 0]}),
        ((1, 16, 8, 9, 9), (4, 16, 3, 3, 3), {"strides": [1, 2, 2], "pads": [1, 0, 1, 1, 1, 0]}),
        ((1, 16, 12, 6, 6), (8, 16, 3, 3, 3), {"half": True}),
    ],
)  # fmt: skip
def test_the_answer_is_that_of_the_convolution(
    shape: tuple[int, ...], weights: tuple[int, ...], more: dict[str, Any]
) -> None:
    model = graph(shape, weights, **more)
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    wanted, kept = run(model, x), {i.name: i.SerializeToString() for i in model.graph.initializer}
    assert lower(model) == 1
    got = run(model, x)
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() < 1e-4 * wanted.std()
    now = {i.name: i.SerializeToString() for i in model.graph.initializer}
    assert kept.items() <= now.items()
    assert lower(model) == 0


@pytest.mark.parametrize(
    ("shape", "weights", "more"),
    [
        ((1, 16, 7, 6, 6), (8, 16, 3, 3, 3), {}),
        ((1, 4, 8, 6, 6), (8, 4, 3, 3, 3), {}),
        ((1, 16, 8, 6, 6), (8, 16, 1, 3, 3), {"pads": [0, 1, 1, 0, 1, 1]}),
        ((1, 16, 8, 6, 6), (8, 16, 3, 3, 3), {"strides": [2, 2, 2]}),
        ((1, 16, 8, 6, 6), (8, 16, 3, 3, 3), {"pads": [0, 1, 1, 0, 1, 1]}),
        ((1, 32, 8, 6, 6), (8, 16, 3, 3, 3), {"group": 2}),
    ],
)  # fmt: skip
def test_what_it_does_not_fit_or_would_not_gain_is_left(
    shape: tuple[int, ...], weights: tuple[int, ...], more: dict[str, Any]
) -> None:
    model = graph(shape, weights, **more)
    before = model.SerializeToString()
    assert lower(model) == 0
    assert model.SerializeToString() == before


@pytest.mark.parametrize("f", [F2, F4])
def test_the_transforms_are_a_correlation_with_three_slices(f: Any) -> None:
    rng = np.random.default_rng(2)
    x, g = rng.normal(size=2 * f.m), rng.normal(size=3)
    into, back = transforms(f, len(x))
    got = back @ (np.tile(f.g @ g, 2) * (into @ x))
    np.testing.assert_allclose(got, np.correlate(np.pad(x, 1), g, mode="valid"), atol=1e-5)


def test_a_bundle_with_whole_convolutions_is_rewritten_to_one_that_answers_alike(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.graph, "lower", lambda model: 0)
    before = export_bundle(checkpoint, tmp_path / "whole")
    after = lower_bundle(tmp_path / "whole", tmp_path / "lowered")
    counts: Any = after.run["lowered"]
    assert counts.keys() == before.graphs.keys()
    assert all(counts[name] > 0 for name in ("encoder", "denoiser", "decoder"))
    assert {file for file in after.files if after.files[file] != before.files[file]} == {
        before.graphs[name] for name, count in counts.items() if count
    }
    assert after.parity == before.parity
    whole, lowered = (open_engine(tmp_path / name, CPU)._graphs for name in ("whole", "lowered"))
    rng = np.random.default_rng(3)
    for name, plain in whole.items():
        inputs = {what: rng.uniform(-1, 1, shape).astype(np.float32) for what, shape in plain.inputs.items()}
        one, other = plain(**inputs), lowered[name](**inputs)
        assert np.abs(one - other).max() < 1e-4 * one.std()
