"""What int8 graphs would win on this machine's CPU, and what they would cost in quality.

``python tests/bench/int8.py [--bundle DIR] [--phantoms 4] [--rounds 9] [--json]``

The shipped graphs, the same with dynamically quantised weights and activations, and with statically quantised
ones (QDQ, a scale a channel, calibrated on tiles of other phantoms), take turns on the same tile; each then
translates the same held-out phantoms. A variant would be kept that is faster and whose SSIM is within 0.5 %.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from engine.bundle import Bundle, digest_files, read_bundle, write_manifest
from engine.pipeline import Engine
from engine.session import Graph, SessionPolicy
from engine.volume import Float32
from train.cases import Case
from train.evaluate import phantom_cases
from train.metrics import Comparison

BUNDLE = Path(__file__).parents[2] / "engine" / "bundles" / "venous"
CALIBRATION, HELD_OUT = range(1), 9000
TILES = 8
"""Tiles that ranges are calibrated on: quantising keeps every value of every layer for each of them."""
SSIM_LIMIT = 0.005
LINEAR = ["Conv", "MatMul", "Gemm"]

Inputs = Mapping[str, Float32]
Quantise = Callable[[str, Path, Path], None]
"""A graph's name, its file, and the file that is to be written."""


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--phantoms", type=int, default=4, help="held-out phantoms that quality is judged on")
    parser.add_argument("--rounds", type=int, default=9, help="turns on one tile; medians are told")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = trial(asked.bundle, Path(folder), asked.phantoms, asked.rounds, asked.threads)
    if asked.json:
        print(json.dumps(found))
        return
    for name, row in found.items():
        words = f"{row['tile_s']:.3f} s a tile ({row['ratio']:.2f} ×), {row['megabytes']:.1f} MB"
        kept = "" if name == "fp32" else f"; would be kept: {'yes' if row['kept'] else 'no'}"
        print(f"{name:8} {words}, SSIM {row['ssim']:.4f}, PSNR {row['psnr']:.2f} dB{kept}")


def trial(bundle: Path, work: Path, phantoms: int, rounds: int, threads: int) -> dict[str, dict[str, Any]]:
    """By variant: seconds a tile, their ratio to fp32's, size, SSIM and PSNR in the body, and the verdict."""
    plain, policy = read_bundle(bundle), SessionPolicy(provider="cpu", threads=threads)
    seen = inputs_of(Engine(plain, policy))
    engines = {
        "fp32": Engine(plain, policy),
        "dynamic": Engine(variant(plain, work / "dynamic", dynamic), policy),
        "static": Engine(variant(plain, work / "static", partial(static, seen)), policy),
    }
    seconds = turns(engines, seen, rounds)
    quality: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    for case in phantom_cases(range(HELD_OUT, HELD_OUT + phantoms)):
        for name, engine in engines.items():
            quality[name].append(judged(engine, case))
    least = statistics.fmean(each["ssim"] for each in quality["fp32"]) * (1 - SSIM_LIMIT)
    rows = {}
    for name, engine in engines.items():
        ssim, psnr = (statistics.fmean(each[key] for each in quality[name]) for key in ("ssim", "psnr"))
        ratio = seconds[name] / seconds["fp32"]
        rows[name] = {
            "tile_s": seconds[name], "ratio": ratio, "ssim": ssim, "psnr": psnr,
            "megabytes": sum(file.stat().st_size for file in engine.bundle.folder.glob("*.onnx")) / 1e6,
            "kept": ratio < 1 and ssim >= least,
        }  # fmt: skip
    return rows


def inputs_of(engine: Engine) -> dict[str, list[Inputs]]:
    """By graph, what it is given for some tiles of the phantoms for calibration, spread over the body."""
    listening = {name: Listening(graph) for name, graph in engine._graphs.items()}
    engine._graphs = listening  # type: ignore[assignment]
    for case in phantom_cases(CALIBRATION):
        engine.synthesize(case.source, seed=case.seed)
    tiles = len(listening["decoder"].heard)
    kept = range(0, tiles, -(-tiles // TILES))
    calls = {name: len(graph.heard) // tiles for name, graph in listening.items()}
    return {
        name: [graph.heard[tile * calls[name] + call] for tile in kept for call in range(calls[name])]
        for name, graph in listening.items()
    }


@dataclass(frozen=True, slots=True)
class Listening:
    """A graph that keeps what it is given."""

    graph: Graph
    heard: list[Inputs] = field(default_factory=list)

    def __call__(self, **inputs: Float32) -> Float32:
        """What the graph gives."""
        self.heard.append(inputs)
        return self.graph(**inputs)

    @property
    def inputs(self) -> Mapping[str, tuple[int | str | None, ...]]:
        """The graph's."""
        return self.graph.inputs


def variant(plain: Bundle, folder: Path, quantise: Quantise) -> Bundle:
    """A bundle with every graph quantised."""
    shutil.copytree(plain.folder, folder)
    for name in plain.manifest.graphs:
        file, folded, ready = (folder / f"{name}{end}" for end in (".onnx", ".folded", ".ready"))
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(
            folded
        )  # weights lie in half precision: a quantiser wants floats
        ort.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
        quant_pre_process(str(folded), str(ready), skip_symbolic_shape=True)
        quantise(name, ready, file)
        folded.unlink()
        ready.unlink()
    write_manifest(folder, plain.manifest.model_copy(update={"files": digest_files(folder)}))
    return read_bundle(folder)


def dynamic(_name: str, source: Path, target: Path) -> None:
    """Activations are measured at every run."""
    quantize_dynamic(str(source), str(target), op_types_to_quantize=LINEAR, per_channel=True)


def static(seen: Mapping[str, list[Inputs]], name: str, source: Path, target: Path) -> None:
    """Activations have the ranges that calibration found."""
    quantize_static(
        str(source), str(target), Tiles(seen[name]), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=LINEAR,
    )  # fmt: skip


class Tiles(CalibrationDataReader):  # type: ignore[misc]
    """The inputs of a graph, one tile after the other."""

    def __init__(self, inputs: list[Inputs]) -> None:
        self._left = iter(inputs)

    def get_next(self) -> Inputs | None:
        """The next tile's, or None."""
        return next(self._left, None)


def turns(engines: Mapping[str, Engine], seen: Mapping[str, list[Inputs]], rounds: int) -> dict[str, float]:
    """Median seconds of one tile through every graph, as often as a tile calls it, the variants in turn."""
    tiles = len(seen["decoder"])
    calls = {name: len(inputs) // tiles for name, inputs in seen.items()}
    found: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(rounds + 1):
        for name, engine in engines.items():
            began = time.perf_counter()
            for graph, count in calls.items():
                for _ in range(count):
                    engine._graphs[graph](**seen[graph][0])
            if number:
                found[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in found.items()}


def judged(engine: Engine, case: Case) -> dict[str, float]:
    """The metrics of one phantom's body in the model's window."""
    made = engine.synthesize(case.source, seed=case.seed).volume.hu
    manifest = engine.bundle.manifest
    return Comparison(made, case.phases[manifest.phase], manifest.window_hu).within(case.body)


if __name__ == "__main__":
    main()
