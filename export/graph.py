"""One torch module to one self-contained ONNX file that runs everywhere the engine does."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxscript.optimizer
import torch
from onnx import numpy_helper
from onnxscript import ir
from torch import Tensor, nn

from export.half import half_precision
from export.lower import lower

OPSET = 18
"""Above 20 the exporter writes GroupNormalization and newer operators without CUDA kernels, which would fall
to the CPU."""
HALF_FROM = 1024
"""Weights of at least this many numbers are stored in half precision; never the codebook, where a nudged code
changes which one is nearest."""


def write_graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    output: str,
    file: Path,
    half_weights: bool,
    fp16: Path | None = None,
) -> None:
    """Export with torch's dynamo exporter at fixed shapes; weights stored as fp16 if asked, run as fp32.

    Convolutions are lowered as ``export.lower`` has it. To ``fp16`` goes the same graph computing in half
    precision, its convolutions whole: a GPU's library has better ways with them.
    """
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=[output],
            opset_version=OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    weights = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    onnxscript.optimizer.optimize_ir(program.model, should_fold=partial(_folds, weights))
    model = program.model_proto
    _strip(model)
    if fp16:
        half = half_precision(copy.deepcopy(model))
        onnx.checker.check_model(half)
        fp16.write_bytes(half.SerializeToString())
    lower(model)
    if half_weights:
        halve_weights(model, {name for name, _ in module.named_parameters()})
    onnx.checker.check_model(model)
    file.write_bytes(model.SerializeToString())


def halve_weights(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Store the large ones of the named weights as fp16 behind a Cast, which ONNX Runtime folds at load."""
    casts = []
    for weight in list(model.graph.initializer):
        if weight.name not in names or np.prod(weight.dims) < HALF_FROM:
            continue
        name, values = weight.name, numpy_helper.to_array(weight)
        weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])


def weights_of(model: onnx.ModelProto) -> dict[str, Tensor]:
    """Every weight of a written graph under the name it had in torch, as fp32."""
    arrays = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    return {
        name.removesuffix(".half"): torch.from_numpy(array.astype(np.float32))
        for name, array in arrays.items()
        if array.dtype in (np.float16, np.float32)
    }


def _folds(weights: Collection[str], node: ir.Node) -> bool | None:
    """Weights keep their torch names, so that a bundle can be read back; all else may be computed now."""
    return False if any(value is not None and value.name in weights for value in node.inputs) else None


def _strip(model: onnx.ModelProto) -> None:
    """Drop source lines and inner shapes: bytes that only a debugger reads, and paths of this machine."""
    del model.graph.value_info[:]
    del model.metadata_props[:]
    model.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for part in (
        model.graph,
        *model.graph.initializer,
        *model.graph.input,
        *model.graph.output,
        *model.functions,
    ):
        part.doc_string = ""
        del part.metadata_props[:]


@contextlib.contextmanager
def _quiet():  # type: ignore[no-untyped-def]
    """The exporter prints and warns about its own parts."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
