"""A graph in half precision, for GPUs: their matrix units are made for it, and traffic halves."""

from __future__ import annotations

import onnx
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

CHOICES = ("ArgMin", "ArgMax", "TopK")
"""Operators that choose: what leads to them stays fp32, since a nudged distance is another code."""


def half_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` computing in fp16 between inputs and outputs of fp32."""
    kept = leading_to(model, CHOICES)
    _part_weights(model, kept)
    half = convert_float_to_float16(
        model, keep_io_types=True, op_block_list=list(DEFAULT_OP_BLOCK_LIST), node_block_list=sorted(kept)
    )
    OnnxModel(half).topological_sort()  # the converter puts its casts at the end
    return half


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
