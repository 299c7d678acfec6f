"""Half precision, where it may be and where it may not."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.half import half_precision

FREQUENCIES = np.exp(-9.2 * np.arange(8) / 8).astype(np.float32)


def time_embedding() -> onnx.ModelProto:
    """t → [sin, cos](1000 t · frequencies), as diffusion networks begin."""
    nodes = [
        helper.make_node("Mul", ["t", "scale"], ["steps"], name="scaled"),
        helper.make_node("Mul", ["steps", "frequencies"], ["angles"], name="angled"),
        helper.make_node("Sin", ["angles"], ["sines"], name="sine"),
        helper.make_node("Cos", ["angles"], ["cosines"], name="cosine"),
        helper.make_node("Concat", ["sines", "cosines"], ["embedded"], name="joined", axis=0),
        helper.make_node("Mul", ["embedded", "frequencies2"], ["y"], name="weighed"),
    ]
    constants = {
        "scale": np.float32(1000), "frequencies": FREQUENCIES, "frequencies2": np.ones(16, np.float32),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "embedding",
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, (1,))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (16,))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("t", [0.02, 0.5, 0.983])
def test_the_time_embedding_is_as_exact_as_its_numbers(t: float) -> None:
    half = half_precision(time_embedding())
    assert TensorProto.FLOAT16 in {node.attribute[0].i for node in half.graph.node if node.op_type == "Cast"}
    told = ort.InferenceSession(half.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"t": np.array([t], np.float32)}
    )[0]
    angles = np.float32(1000) * np.float32(t) * FREQUENCIES
    np.testing.assert_allclose(told, np.concatenate([np.sin(angles), np.cos(angles)]), atol=1e-3)
