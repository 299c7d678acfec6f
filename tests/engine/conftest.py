"""Bundles of real, tiny ONNX graphs whose results can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.bundle import Bundle, Manifest, digest_files, read_bundle, write_manifest

FACTOR = (2, 4, 4)
CHANNELS = 32
TILE = (8, 16, 16)

MakeBundle = Callable[..., Bundle]


def value(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, ...]],
    outputs: dict[str, tuple[int, ...]],
    constants: dict[str, Any],
) -> None:
    graph = helper.make_graph(
        nodes,
        path.stem,
        [value(*item) for item in inputs.items()],
        [value(*item) for item in outputs.items()],
        [numpy_helper.from_array(np.asarray(c, np.float32), name) for name, c in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def shuffle_kernel() -> np.ndarray:
    """Moves every voxel of a 2x4x4 block into a channel of its own, so that nothing is lost."""
    return np.eye(CHANNELS, dtype=np.float32).reshape(CHANNELS, 1, *FACTOR)


def save_s2ldm(folder: Path, tile: tuple[int, ...], gain: float, lift: float) -> None:
    """Encoder and decoder invert each other; the denoiser says v = gain e_n + lift + 0 t."""
    latent = (1, CHANNELS, *(t // f for t, f in zip(tile, FACTOR, strict=True)))
    image = (1, 1, *tile)
    conv = helper.make_node("Conv", ["x", "k"], ["e_n"], strides=FACTOR)
    save(folder / "encoder.onnx", [conv], {"x": image}, {"e_n": latent}, {"k": shuffle_kernel()})
    nodes = [
        helper.make_node("Mul", ["e_n", "gain"], ["a"]),
        helper.make_node("Add", ["a", "lift"], ["b"]),
        helper.make_node("Mul", ["z_t", "zero"], ["c"]),
        helper.make_node("Mul", ["t", "zero"], ["d"]),
        helper.make_node("Add", ["b", "c"], ["e"]),
        helper.make_node("Add", ["e", "d"], ["v"]),
    ]
    constants = {"gain": gain, "lift": lift, "zero": 0.0}
    inputs = {"z_t": latent, "e_n": latent, "t": (1,)}
    save(folder / "denoiser.onnx", nodes, inputs, {"v": latent}, constants)
    back = helper.make_node("ConvTranspose", ["z", "k"], ["x_c"], strides=FACTOR)
    save(folder / "decoder.onnx", [back], {"z": latent}, {"x_c": image}, {"k": shuffle_kernel()})


def save_painting_s2ldm(folder: Path, tile: tuple[int, ...], gain: float, lift: float) -> None:
    """The same with a decoder that paints onto the source: D(z, x) = x + lift, whatever z is."""
    save_s2ldm(folder, tile, gain, lift)
    latent = (1, CHANNELS, *(t // f for t, f in zip(tile, FACTOR, strict=True)))
    image = (1, 1, *tile)
    nodes = [
        helper.make_node("ConvTranspose", ["z", "k"], ["delta"], strides=FACTOR),
        helper.make_node("Add", ["delta", "lift"], ["raised"]),
        helper.make_node("Add", ["x", "raised"], ["x_c"]),
    ]
    constants = {"k": 0 * shuffle_kernel(), "lift": lift}
    save(folder / "decoder.onnx", nodes, {"z": latent, "x": image}, {"x_c": image}, constants)


def save_conditioned_s2ldm(folder: Path, tile: tuple[int, ...], gain: float, lift: float) -> None:
    """The same with a graph that sees the source once: c = E(x) + e_n = 2 e_n, v = gain c + lift."""
    save_s2ldm(folder, tile, gain, lift)
    latent = (1, CHANNELS, *(t // f for t, f in zip(tile, FACTOR, strict=True)))
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["cells"], strides=FACTOR),
        helper.make_node("Add", ["cells", "e_n"], ["c"]),
    ]
    inputs = {"x": (1, 1, *tile), "e_n": latent}
    save(folder / "condition.onnx", nodes, inputs, {"c": latent}, {"k": shuffle_kernel()})
    nodes = [
        helper.make_node("Mul", ["c", "gain"], ["a"]),
        helper.make_node("Add", ["a", "lift"], ["b"]),
        helper.make_node("Add", ["z_t", "e_n"], ["s"]),
        helper.make_node("Add", ["s", "t"], ["u"]),
        helper.make_node("Mul", ["u", "zero"], ["nothing"]),
        helper.make_node("Add", ["b", "nothing"], ["v"]),
    ]
    inputs = {"z_t": latent, "e_n": latent, "t": (1,), "c": latent}
    save(folder / "denoiser.onnx", nodes, inputs, {"v": latent}, {"gain": gain, "lift": lift, "zero": 0.0})


def save_translator(folder: Path, tile: tuple[int, ...], gain: float, lift: float) -> None:
    """x_c = x + lift + gain * (mean of the 3x3x3 neighbourhood): zero padding, so tile borders matter."""
    image = (1, 1, *tile)
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["m"], pads=[1] * 6),
        helper.make_node("Add", ["x", "m"], ["s"]),
        helper.make_node("Add", ["s", "lift"], ["x_c"]),
    ]
    constants = {"k": np.full((1, 1, 3, 3, 3), gain / 27), "lift": lift}
    save(folder / "translator.onnx", nodes, {"x": image}, {"x_c": image}, constants)


SAVE = {
    "s2ldm": save_s2ldm, "painting": save_painting_s2ldm, "conditioned": save_conditioned_s2ldm,
    "translator": save_translator,
}  # fmt: skip


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    """``make_bundle(family, tile=, gain=, lift=, kind=, **manifest keys)`` writes and reads."""

    def make(
        family: str = "s2ldm",
        *,
        tile: tuple[int, int, int] = TILE,
        gain: float = 0.0,
        lift: float = 0.0,
        kind: str = "",
        **changes: Any,
    ) -> Bundle:
        folder = tmp_path / f"bundle-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        SAVE[kind or family](folder, tile, gain, lift)
        files = digest_files(folder)
        manifest = {
            "format": 1, "family": family, "phase": "arterial", "model_id": "toy-1", "model_name": "toy",
            "model_version": "1", "window_hu": (-200, 400), "spacing_mm": (3, 1.5, 1.5), "tile": tile,
            "overlap": 0.25, "latent": {"scale": 1.0, "channels": CHANNELS, "factor": FACTOR},
            "sampler": {"name": "bridge", "formulation": "bridge", "steps": 2},
            "composition": {"detail": 1.0, "edge_hu": 20.0},
            "graphs": {name.removesuffix(".onnx"): name for name in files}, "files": files, "parity": {},
            "metrics": {}, "run": {}, "intended_use": "tests", "licence": "none", "opset": 18,
            "created": "2026-01-01T00:00:00Z",
        }  # fmt: skip
        write_manifest(folder, Manifest.model_validate(manifest | changes))
        return read_bundle(folder)

    return make
