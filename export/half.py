"""A graph in half precision, for GPUs: their matrix units are made for it, and traffic halves."""

from __future__ import annotations

import re

import onnx
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

CHOICES = ("ArgMin", "ArgMax", "TopK")
"""Operators that choose: what leads to them stays fp32, since a nudged distance is another code."""
ANGLES = ("Sin", "Cos")
"""Operators of the time embedding: they and their arguments stay fp32, since 1000 t in 11 bits is off by up
to a quarter of a radian."""

ROUNDING = re.compile(r"graph_input_cast\d+$|.*_cast_to_fp16_node$")
"""The names of the converter's casts from fp32 to fp16."""


def half_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` computing in fp16 between inputs and outputs of fp32."""
    kept = leading_to(model, CHOICES + ANGLES)
    _part_weights(model, kept)
    half = convert_float_to_float16(
        model, keep_io_types=True, op_block_list=list(DEFAULT_OP_BLOCK_LIST), node_block_list=sorted(kept)
    )
    _spare_roundings(half)
    del half.graph.value_info[:]
    OnnxModel(half).topological_sort()  # the converter puts its casts at the end
    return half


def _spare_roundings(model: onnx.ModelProto) -> None:
    """Hand fp32 from one fp32 node to the next as it is: the converter casts it to fp16 and back on the way.

    Where several nodes take the same, it even writes the same cast for each, which no runtime loads.
    """
    graph = model.graph
    rounded = {node.output[0]: node.input[0] for node in graph.node if ROUNDING.match(node.name)}
    outputs = {output.name for output in graph.output}
    exact = {
        node.output[0]: rounded[node.input[0]]
        for node in graph.node
        if node.op_type == "Cast"
        and node.attribute[0].i == onnx.TensorProto.FLOAT
        and node.input[0] in rounded
        and node.output[0] not in outputs
    }
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = exact.get(name, name)
    used = {name for node in graph.node for name in node.input if node.output[0] not in exact} | outputs
    nodes = {node.output[0]: node for node in graph.node if used.intersection(node.output)}
    del graph.node[:]
    graph.node.extend(nodes.values())


def _part_weights(model: onnx.ModelProto, kept: set[str]) -> None:
    """What both a kept node and another one read, in a copy for each: the converter would cast it twice."""
    others = {name for node in model.graph.node if node.name not in kept for name in node.input}
    shared = {weight.name: weight for weight in model.graph.initializer if weight.name in others}
    copied: set[str] = set()
    for node in model.graph.node:
        for place, name in enumerate(node.input if node.name in kept else ()):
            if name in shared:
                node.input[place] = f"{name}.kept"
                copied.add(name)
    for name in sorted(copied):
        copy = model.graph.initializer.add()
        copy.CopyFrom(shared[name])
        copy.name = f"{name}.kept"


def leading_to(model: onnx.ModelProto, operators: tuple[str, ...]) -> set[str]:
    """The names of all nodes of these operators and of what they are computed from; nodes need names."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    found: set[str] = set()
    waiting = [node for node in model.graph.node if node.op_type in operators]
    while waiting:
        node = waiting.pop()
        if node.name not in found:
            found.add(node.name)
            waiting += [made_by[name] for name in node.input if name in made_by]
    return found
