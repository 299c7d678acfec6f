"""Convolutions in three dimensions by fewer products: a rewrite of a written graph; its answer stays.

A kernel of three slices at stride 1 is Winograd's minimal filtering F(m, 3) along the slices (Winograd 1980;
Lavin and Gray 2016, arXiv:1509.09308): m slices of the answer need m + 2 products of slices where 3 m were
needed. With x of slices d and weights g of three slices,

    y = Aᵀ [(G g) ⊙ (Bᵀ x)].

Bᵀ and Aᵀ are one matrix product each over all slices of a tile, padding included. ⊙ is a convolution in the
plane with one group for each of the m + 2 transformed slices; for these, runtimes have their fastest kernels.
G g is worked out from the stored weights when a graph is loaded: these keep names, shapes and precision.

``python -m export.lower BUNDLE OUT`` does it to the graphs of a bundle that was exported before.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from engine.bundle import Manifest, digest_files, read_bundle, write_manifest

Matrix = NDArray[np.float64]
LEAST_CHANNELS = 16
"""Input channels from which on it pays: with fewer, transforms cost as much as the products they save."""


@dataclass(frozen=True, slots=True)
class Minimal:
    """F(m, 3): Aᵀ (m, m + 2), G (m + 2, 3), Bᵀ (m + 2, m + 2)."""

    a: Matrix
    g: Matrix
    b: Matrix

    @property
    def m(self) -> int:
        """Slices of the answer that are worked out together."""
        return len(self.a)


F2 = Minimal(
    a=np.array([[1, 1, 1, 0], [0, 1, -1, -1]], float),
    g=np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], float),
    b=np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], float),
)
F4 = Minimal(
    a=np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], float),
    g=np.array(
        [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], float
    ) / 24,
    b=np.array(
        [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0],
         [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]], float,
    ),
)  # fmt: skip
"""Points 0, ±1, ±2, ∞. Larger m would save more and lose digits: here about 1e-5 of the answer is lost."""


def lower(model: onnx.ModelProto) -> int:
    """Rewrite every convolution that it pays for, in place; returns how many there were.

    The graph has fixed shapes. Its initializers stay what they are; rewriting it again changes nothing.
    """
    shapes = _shapes(model)
    nodes, rewritten = [], 0
    for node in model.graph.node:
        filtering = _filtering(node, shapes)
        if filtering is None:
            nodes.append(node)
        else:
            nodes += _lowered(model, node, filtering, shapes)
            rewritten += 1
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return rewritten


def _filtering(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> Minimal | None:
    """The filtering for a convolution; None for what is none or would not gain."""
    if node.op_type != "Conv" or len(shapes[node.input[1]]) != 5:
        return None
    attributes = _attributes(node)
    channels, kernel = shapes[node.input[1]][1], shapes[node.input[1]][2]
    along = (
        attributes["pads"][0],
        attributes["pads"][3],
        attributes["strides"][0],
        attributes["dilations"][0],
    )
    plain = attributes["group"] == 1 and attributes["auto_pad"] in (b"NOTSET", "NOTSET")
    if not plain or kernel != 3 or along != (1, 1, 1, 1) or channels < LEAST_CHANNELS:
        return None
    depth = shapes[node.input[0]][2]
    return next((f for f in (F4, F2) if depth % f.m == 0), None)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "pads": [0] * 6, "strides": [1] * 3, "dilations": [1] * 3, "group": 1, "auto_pad": "NOTSET",
    }  # fmt: skip
    return defaults | {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _lowered(
    model: onnx.ModelProto, node: onnx.NodeProto, f: Minimal, shapes: Mapping[str, tuple[int, ...]]
) -> list[onnx.NodeProto]:
    """The nodes that take the place of ``node``; its constants go into the graph."""
    x, weight, y = node.input[0], node.input[1], node.output[0]
    _, channels, depth, rows, columns = shapes[x]
    made, kept = shapes[weight][0], shapes[y][3:]
    attributes, products = _attributes(node), f.m + 2
    parts = depth // f.m
    into, back = transforms(f, depth)

    def constant(what: str, value: NDArray[Any]) -> str:
        model.graph.initializer.append(numpy_helper.from_array(value, f"{y}.{what}"))
        return f"{y}.{what}"

    def shape(what: str, *sizes: int) -> str:
        return constant(what, np.array(sizes, np.int64))

    def step(op: str, what: str, *inputs: str, **more: Any) -> str:
        nodes.append(helper.make_node(op, list(inputs), [f"{y}.{what}"], name=f"{y}.{what}", **more))
        return f"{y}.{what}"

    nodes: list[onnx.NodeProto] = []
    plane, area = attributes["kernel_shape"][1:], rows * columns
    # G g: (3, O·C·kh·kw) and back to one convolution's weights a product.
    g = step("Transpose", "slices_first", weight, perm=[2, 0, 1, 3, 4])
    g = step("Reshape", "slices", g, shape("slices_shape", 3, -1))
    g = step("MatMul", "G_g", constant("G", f.g.astype(np.float32)), g)
    g = step("Reshape", "weights", g, shape("weights_shape", products * made, channels, *plane))
    inputs = [g]
    if (
        len(node.input) > 2
    ):  # the second column of Aᵀ is all ones: what is added there is added to every slice
        before, after = (constant(f"{n}_zeros", np.zeros(n * made, np.float32)) for n in (1, products - 2))
        inputs.append(step("Concat", "bias", before, node.input[2], after, axis=0))
    # Bᵀ x, slices first.
    h = step("Reshape", "flat", x, shape("flat_shape", channels, depth, area))
    h = step("Transpose", "deep", h, perm=[1, 0, 2])
    h = step("Reshape", "rows", h, shape("rows_shape", depth, channels * area))
    h = step("MatMul", "B_x", constant("B", into), h)
    h = step("Reshape", "groups", h, shape("groups_shape", parts, products * channels, rows, columns))
    h = step(
        "Conv", "products", h, *inputs, group=products, kernel_shape=plane, strides=attributes["strides"][1:],
        dilations=attributes["dilations"][1:], pads=[attributes["pads"][i] for i in (1, 2, 4, 5)],
    )  # fmt: skip
    # Aᵀ of it, channels first.
    h = step("Reshape", "products_flat", h, shape("products_shape", parts * products, -1))
    h = step("MatMul", "A_products", constant("A", back), h)
    h = step("Reshape", "answer_deep", h, shape("answer_shape", depth, made, -1))
    h = step("Transpose", "answer_first", h, perm=[1, 0, 2])
    nodes.append(
        helper.make_node("Reshape", [h, shape("shape", 1, made, depth, *kept)], [y], name=f"{y}.back")
    )
    return nodes


def transforms(f: Minimal, depth: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Bᵀ (n·(m + 2), depth) and Aᵀ (depth, n·(m + 2)) for ``depth`` = n·m slices with zeros around them."""
    products = f.m + 2
    wide = depth // f.m * products
    into, back = np.zeros((wide, depth), np.float32), np.zeros((depth, wide), np.float32)
    for part in range(depth // f.m):
        rows = slice(part * products, (part + 1) * products)
        for tap in range(products):
            at = part * f.m + tap - 1
            if 0 <= at < depth:
                into[rows, at] = f.b[:, tap]
        back[part * f.m : (part + 1) * f.m, rows] = f.a
    return into, back


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """What every convolution takes and gives: the graph is run, as shape inference stops at reshapes."""
    asked = {
        n for node in model.graph.node if node.op_type == "Conv" for n in (*node.input[:2], node.output[0])
    }
    known = {i.name: tuple(i.dims) for i in model.graph.initializer}
    given = {i.name: tuple(d.dim_value for d in i.type.tensor_type.shape.dim) for i in model.graph.input}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    wanted = sorted(asked - known.keys() - given.keys())
    probe.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in wanted
    )
    if not wanted:
        return known | given
    session = ort.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(wanted, {name: np.zeros(size, np.float32) for name, size in given.items()})
    return known | given | {name: value.shape for name, value in zip(wanted, found, strict=True)}


def lower_bundle(folder: Path, out: Path) -> Manifest:
    """Write the bundle in ``folder`` with its graphs rewritten to ``out``, which must not exist.

    Variants are left out: they are not for a CPU. Metrics and parity stay; the model's digest is another one.
    Raises BundleInvalid.
    """
    bundle = read_bundle(folder)
    out.mkdir(parents=True)
    counts: dict[str, Any] = {}
    for name, file in bundle.manifest.graphs.items():
        model = onnx.load_from_string(bundle.graph_bytes(name))
        counts[name] = lower(model)
        onnx.checker.check_model(model)
        (out / file).write_bytes(model.SerializeToString())
    manifest = bundle.manifest.model_copy(
        update={"variants": {}, "files": digest_files(out), "run": bundle.manifest.run | {"lowered": counts}}
    )
    write_manifest(out, manifest)
    return read_bundle(out).manifest


def main(arguments: Sequence[str]) -> None:
    """Rewrite one bundle and say how many convolutions it was."""
    source, out = (Path(argument) for argument in arguments)
    counts = lower_bundle(source, out).run["lowered"]
    sys.stdout.write(f"{out}: {counts}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
