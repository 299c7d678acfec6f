"""What other forms of the graphs would win on this machine's CPU: fewer operators behind a normalisation,
whole convolutions, two tiles a batch, channels that fill vector lanes.

``python tests/bench/fusing.py [--bundle DIR] [--rounds 21] [--json]``

Each graph of a bundle takes turns with itself (the spread of the measurement), with the same graph whose γ
and β, a product and a sum behind each normalisation, are one operator, and with the same whose convolutions
are whole; the encoder with whole convolutions takes turns with the same for two tiles. A convolution with
channels that fill no lanes takes turns with the next larger one that does. One thread, and CPU
seconds, so that other work on the machine counts for less. Told are ratios to the first of each ("lowered":
of the first to whole convolutions), and by how much the answers differ.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper

from engine.bundle import Bundle, read_bundle
from engine.session import SessionPolicy, session_options
from engine.volume import Float32
from export.graph import OPSET
from export.restore import modules_of, rebuild

BUNDLE = Path(__file__).parents[2] / "engine" / "bundles" / "venous"
ONE_THREAD = SessionPolicy(provider="cpu", threads=1)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--rounds", type=int, default=21, help="turns of each; medians are told")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    bundle = read_bundle(asked.bundle)
    found = {name: fused(bundle, name, asked.rounds) for name in bundle.manifest.graphs}
    found["encoder, whole"] = batched(bundle, asked.rounds)
    found["channels"] = lanes(asked.rounds)
    if asked.json:
        print(json.dumps(found))
        return
    for name, row in found.items():
        print(f"{name:15}", ", ".join(f"{what} {value:.4g}" for what, value in row.items()))


def fused(bundle: Bundle, name: str, rounds: int) -> dict[str, float]:
    """A graph against itself, with one operator for γ and β, and with whole convolutions."""
    data = bundle.graph_bytes(name)
    model = onnx.load_from_string(data)
    rewritten = fuse_affine(model)
    plain, again, fewer = (_session(each) for each in (data, data, model.SerializeToString()))
    sessions = {"plain": plain, "again": again, "fused": fewer, "whole": whole(bundle, name)}
    inputs = _example(plain)
    seconds = turns(sessions, dict.fromkeys(sessions, inputs), rounds)
    return {
        "normalisations": rewritten,
        "again": seconds["again"] / seconds["plain"],
        "fused": seconds["fused"] / seconds["plain"],
        "difference": float(np.abs(fewer.run(None, inputs)[0] - plain.run(None, inputs)[0]).max()),
        "lowered": seconds["plain"] / seconds["whole"],
    }


def fuse_affine(model: onnx.ModelProto) -> int:
    """Put a BatchNormalization of mean 0 and variance 1 in the place of every · γ + β; returns how many."""
    graph = model.graph
    made_by = {output: node for node in graph.node for output in node.output}
    sizes = {weight.name.removesuffix(".half"): weight.dims for weight in graph.initializer}

    def parameter(name: str) -> str | None:
        node = made_by.get(name)
        return node.input[0] if node is not None and node.op_type == "Unsqueeze" else None

    fewer: dict[str, onnx.NodeProto] = {}
    products: set[str] = set()
    for node in [node for node in graph.node if node.op_type == "Add"]:
        product, beta = made_by.get(node.input[0]), parameter(node.input[1])
        gamma = parameter(product.input[1]) if product is not None and product.op_type == "Mul" else None
        if product is None or gamma is None or beta is None:
            continue
        name = node.output[0]
        for what, fill in (("zeros", np.zeros), ("ones", np.ones)):
            graph.initializer.append(
                numpy_helper.from_array(fill(sizes[gamma], np.float32), f"{name}.{what}")
            )
        inputs = [product.input[0], gamma, beta, f"{name}.zeros", f"{name}.ones"]
        fewer[name] = helper.make_node(
            "BatchNormalization", inputs, [name], epsilon=0.0, name=f"{name}.affine"
        )
        products.add(product.output[0])
    nodes = [fewer.get(node.output[0], node) for node in graph.node if node.output[0] not in products]
    del graph.node[:]
    graph.node.extend(nodes)
    return len(fewer)


def batched(bundle: Bundle, rounds: int) -> dict[str, float]:
    """A tile of the encoder with whole convolutions: two at a time against one."""
    sessions = {name: whole(bundle, "encoder", tiles) for tiles, name in enumerate(("one", "two"), 1)}
    inputs = {name: _example(session) for name, session in sessions.items()}
    seconds = turns(sessions, inputs, rounds)
    one, two = (session.run(None, inputs[name])[0] for name, session in sessions.items())
    return {
        "two a batch, a tile": seconds["two"] / 2 / seconds["one"],
        "difference": float(np.abs(two[:1] - one).max()),
    }


def lanes(rounds: int) -> dict[str, float]:
    """Convolutions of the shipped decoder's channels against those of channels rounded up to 16."""
    found = {}
    for channels in ((32, 28), (32, 4), (36, 32), (4, 32)):
        full = tuple(-(-count // 16) * 16 for count in channels)
        sessions = {"as it is": convolution(*channels), "filled": convolution(*full)}
        seconds = turns(sessions, {name: _example(each) for name, each in sessions.items()}, rounds)
        found["{} to {} against {} to {}".format(*channels, *full)] = seconds["as it is"] / seconds["filled"]
    return found


def convolution(channels: int, filters: int) -> ort.InferenceSession:
    """A 3×3 convolution over as many planes as a lowered one of a shipped tile has."""
    weight = np.random.default_rng(0).normal(size=(filters, channels, 3, 3)).astype(np.float32)
    planes = [24, channels, 96, 96], [24, filters, 96, 96]
    taken, given = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in zip("xy", planes, strict=True)
    )
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    graph = helper.make_graph([node], "lanes", [taken], [given], [numpy_helper.from_array(weight, "w")])
    opset = [helper.make_opsetid("", OPSET)]
    return _session(helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString())


def whole(bundle: Bundle, name: str, tiles: int = 1) -> ort.InferenceSession:
    """A graph exported again for so many tiles, without lowering its convolutions."""
    inputs = _example(_session(bundle.graph_bytes(name)))
    program = torch.onnx.export(
        modules_of(bundle, rebuild(bundle))[name],
        tuple(torch.from_numpy(array.repeat(tiles, axis=0)) for array in inputs.values()),
        input_names=list(inputs),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    return _session(program.model_proto.SerializeToString())


def turns(
    sessions: Mapping[str, ort.InferenceSession], inputs: Mapping[str, Mapping[str, Float32]], rounds: int
) -> dict[str, float]:
    """Median CPU seconds of one run of each, taking turns after one that does not count."""
    found: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds + 1):
        for name, session in sessions.items():
            began = time.process_time()
            session.run(None, inputs[name])
            found[name].append(time.process_time() - began)
    return {name: statistics.median(each[1:]) for name, each in found.items()}


def _session(data: bytes) -> ort.InferenceSession:
    options = session_options(ONE_THREAD)
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _example(session: ort.InferenceSession) -> dict[str, Float32]:
    """Inputs of the session's shapes; every tile of a batch is the same."""
    rng = np.random.default_rng(0)
    return {
        each.name: np.repeat(
            rng.uniform(-1, 1, [1, *each.shape[1:]]).astype(np.float32), each.shape[0], axis=0
        )
        for each in session.get_inputs()
    }


if __name__ == "__main__":
    main()
