"""ONNX Runtime against torch: the same bundle, weights, tiles and threads, in one run, taking turns."""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
import typer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from engine.bundle import Bundle, digest_files, read_bundle, write_manifest
from engine.errors import BundleInvalid, GraphTooLarge, ProviderMissing
from engine.session import (
    Opened,
    ProviderName,
    SessionPolicy,
    cpu_threads,
    open_graphs,
    session_options,
    situation,
)
from engine.volume import Float32
from export.graph import OPSET, write_graph
from export.parity import in_torch
from export.restore import Run, modules_of, rebuild, tile
from train.cli import EXIT_CONFIG
from train.evaluate import active_bundles


def bench_engine(
    bundle: Annotated[Path | None, typer.Option("--bundle", help="Default: the first active one.")] = None,
    tiles: Annotated[int, typer.Option("--tiles", min=1, help="Tiles of one round.")] = 2,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds; medians are shown.")] = 3,
    threads: Annotated[int, typer.Option("--threads", min=0, help="CPU threads of both.")] = 0,
    provider: Annotated[
        ProviderName, typer.Option("--provider", help="Where the engine runs; torch stays on the CPU.")
    ] = "cpu",
    fp16: Annotated[
        bool,
        typer.Option("--fp16", help="Add every graph in half precision for this run, which a GPU then runs."),
    ] = False,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Each graph, its FLOPs and share of this machine's matrix peak, torch.compile, OpenVINO.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Time the graphs of an S²LDM's bundle in ONNX Runtime beside the same network in torch on the CPU."""
    try:
        policy = SessionPolicy(provider=provider, threads=threads)
        with _measured(bundle or active_bundles()[0], fp16) as folder:
            result = compare(folder, tiles, rounds, policy, OTHERS if full else ())
            if full:
                result |= graphs(read_bundle(folder), rounds, policy)
    except (BundleInvalid, ProviderMissing, GraphTooLarge) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_CONFIG) from None
    if as_json:
        typer.echo(json.dumps(result))
        return
    typer.echo(
        f"engine: {result['engine_s']} s, torch {result['torch_s']} s a tile, ratio {result['ratio']}"
        f" ({result['provider']}, {result['machine']})"
    )
    typer.echo(f"here: {situation(result['provider'].partition(' ')[0], policy)}")


@contextmanager
def _measured(folder: Path, fp16: bool) -> Iterator[Path]:
    """The bundle to measure: the one in ``folder``, or for as long as the block runs one with fp16 graphs."""
    if not fp16:
        yield folder
        return
    with tempfile.TemporaryDirectory() as work:
        with_halves(read_bundle(folder), Path(work) / "bundle")
        yield Path(work) / "bundle"


def with_halves(bundle: Bundle, out: Path) -> None:
    """Write the bundle of an S²LDM to ``out`` with every graph in half precision as its variant ``fp16``.

    Its graphs stay what they are, byte for byte; their parity says nothing of the variant. BundleInvalid for
    another method's.
    """
    modules = modules_of(bundle, rebuild(bundle))
    shutil.copytree(bundle.folder, out)
    halves = {name: f"{name}.fp16.onnx" for name in bundle.manifest.graphs}
    for name, half in halves.items():
        graph = onnx.load_from_string(bundle.graph_bytes(name)).graph
        inputs = {
            i.name: torch.zeros([d.dim_value for d in i.type.tensor_type.shape.dim]) for i in graph.input
        }
        with tempfile.NamedTemporaryFile(suffix=".onnx") as plain:
            write_graph(modules[name], inputs, graph.output[0].name, Path(plain.name), False, out / half)
    update = {"variants": {"fp16": halves}, "files": digest_files(out)}
    write_manifest(out, bundle.manifest.model_copy(update=update))


def compare(
    folder: Path, tiles: int, rounds: int, policy: SessionPolicy, others: Collection[str] = ()
) -> dict[str, Any]:
    """Seconds a tile of both, and engine / torch; below 1 the engine is faster.

    Raises BundleInvalid, also for a bundle of another method, and what opening graphs raises. ``others``
    names further contestants of :data:`OTHERS`; one that cannot run here is a text that says why.
    """
    bundle = read_bundle(folder)
    modules = modules_of(bundle, rebuild(bundle))
    opened = open_graphs(bundle, policy)
    sessions = opened.graphs
    torch.set_num_threads(cpu_threads(policy))
    x = _example(bundle)
    runs: dict[str, Run] = {
        "engine": lambda name, **inputs: sessions[name](**inputs),
        "torch": lambda name, **inputs: in_torch(modules[name], **inputs),
    }
    inputs = {name: graph.inputs for name, graph in sessions.items()}
    absent: dict[str, str] = {}
    for other in others:
        try:
            run = OTHERS[other](bundle, modules, cpu_threads(policy))
            tile(bundle, run, inputs, x)
            runs[other] = run
        except Exception as error:  # whatever keeps it from running is what is told
            absent[other] = f"{type(error).__name__}: {error}".splitlines()[0]
    made = {who: tile(bundle, run, inputs, x) for who, run in runs.items()}
    seconds: dict[str, list[float]] = {who: [] for who in runs}
    for _ in range(rounds):
        for who, run in runs.items():
            began = time.perf_counter()
            for _ in range(tiles):
                tile(bundle, run, inputs, x)
            seconds[who].append((time.perf_counter() - began) / tiles)
    medians = {who: statistics.median(values) for who, values in seconds.items()}
    low, high = bundle.manifest.window_hu
    return {
        **{f"{who}_s": round(value, 4) for who, value in medians.items()},
        **{f"{who}_s": words for who, words in absent.items()},
        "ratio": round(medians["engine"] / medians["torch"], 4),
        "provider": f"{opened.provider} {opened.variant}".strip(),
        "machine": _machine(opened, policy),
        "model_id": bundle.manifest.model_id,
        "tiles": tiles,
        "difference_hu": round(float(np.abs(made["engine"] - made["torch"]).mean()) * (high - low) / 2, 4),
    }


def _machine(opened: Opened, policy: SessionPolicy) -> str:
    """This machine in words, with the GPU's name where one runs the graphs."""
    words = f"{platform.machine()}, {os.cpu_count()} cpus, {cpu_threads(policy)} threads"
    if opened.device is None:
        return words
    query = ["nvidia-smi", f"--id={policy.device}", "--query-gpu=name", "--format=csv,noheader"]
    try:
        name = subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        name = "a GPU without a name"
    return f"{words}, {name}"


def graphs(bundle: Bundle, rounds: int, policy: SessionPolicy) -> dict[str, Any]:
    """Each graph by itself: calls a tile, FLOPs as trained, seconds of both, and on the CPU the share of its
    matrix peak.
    """
    modules, opened = modules_of(bundle, rebuild(bundle)), open_graphs(bundle, policy)
    sessions = opened.graphs
    torch.set_num_threads(cpu_threads(policy))
    asked: dict[str, list[dict[str, Float32]]] = {name: [] for name in sessions}

    def listen(name: str, **inputs: Float32) -> Float32:
        asked[name].append({each: np.asarray(value) for each, value in inputs.items()})
        return np.asarray(sessions[name](**inputs))

    tile(bundle, listen, {name: graph.inputs for name, graph in sessions.items()}, _example(bundle))
    peak = matrix_peak(policy.threads)
    rows = {}
    for name, calls in asked.items():
        inputs = calls[0]
        engine_s, torch_s = _medians(
            (
                lambda n=name, i=inputs: np.asarray(sessions[n](**i)),
                lambda n=name, i=inputs: in_torch(modules[n], **i),
            ),
            rounds,
        )
        flops = flops_of(modules[name], inputs)
        rows[name] = {
            "calls": len(calls),
            "flops": flops,
            "engine_s": round(engine_s, 5),
            "torch_s": round(torch_s, 5),
            "ratio": round(engine_s / torch_s, 4),
        }
        if opened.device is None:
            rows[name]["peak_share"] = round(flops / engine_s / peak, 4)
    return {
        "graphs": rows,
        "peak_flops": round(peak),
        "flops": sum(r["calls"] * r["flops"] for r in rows.values()),
    }


def _medians(runs: Collection[Callable[[], object]], rounds: int) -> list[float]:
    """Seconds of each, taking turns."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds + 1):
        for run, found in zip(runs, seconds, strict=True):
            began = time.perf_counter()
            run()
            found.append(time.perf_counter() - began)
    return [statistics.median(found[1:]) for found in seconds]


def flops_of(module: nn.Module, inputs: Mapping[str, Float32]) -> int:
    """Floating point operations of convolutions and products in one call, a product and a sum being two."""
    with FlopCounterMode(display=False) as counter:
        in_torch(module, **inputs)
    return int(counter.get_total_flops())


def matrix_peak(threads: int, size: int = 1536, tries: int = 6) -> float:
    """The most FLOP/s this machine reaches in a product of two square fp32 matrices: by whoever is fastest.

    torch, ONNX Runtime and NumPy bring libraries of their own, none of which is the best everywhere. NumPy's
    takes as many threads as it likes: it takes part only where ``threads`` is 0.
    """
    runs = _products(size, threads)
    best = float("inf")
    for _ in range(tries):
        for run in runs:
            began = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def _products(size: int, threads: int) -> list[Callable[[], object]]:
    a, b = (np.random.default_rng(seed).random((size, size), dtype=np.float32) for seed in (0, 1))
    product, (x, y) = _product(size, threads), (torch.from_numpy(a), torch.from_numpy(b))
    bound = [lambda: torch.mm(x, y), lambda: product.run(None, {"a": a, "b": b})]
    return bound if threads else [*bound, lambda: a @ b]


def _product(size: int, threads: int) -> ort.InferenceSession:
    a, b, c = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, (size, size)) for n in "abc")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["a", "b"], ["c"])], "product", [a, b], [c]
    )
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = session_options(SessionPolicy(provider="cpu", threads=threads))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _example(bundle: Bundle) -> Float32:
    return np.random.default_rng(0).uniform(-1, 1, (1, 1, *bundle.manifest.tile)).astype(np.float32)


def _compiled(bundle: Bundle, modules: Mapping[str, nn.Module], threads: int) -> Run:
    """torch.compile of every module."""
    compiled: dict[str, Any] = {name: torch.compile(module) for name, module in modules.items()}
    return lambda name, **inputs: in_torch(compiled[name], **inputs)


def _openvino(bundle: Bundle, modules: Mapping[str, nn.Module], threads: int) -> Run:
    """OpenVINO's own runtime on the bundle's graphs."""
    openvino = importlib.import_module("openvino")
    core, options = openvino.Core(), {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    models = {
        name: core.compile_model(core.read_model(bundle.graph_bytes(name)), "CPU", options)
        for name in bundle.manifest.graphs
    }
    return lambda name, **inputs: models[name](inputs)[0]


OTHERS: Mapping[str, Callable[[Bundle, Mapping[str, nn.Module], int], Run]] = {
    "torch_compile": _compiled,
    "openvino": _openvino,
}
"""Who else may run the graphs, where it is installed."""
