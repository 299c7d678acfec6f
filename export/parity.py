"""How far the written graphs are from torch, graph by graph and all together; beyond tolerance is refused.

The quantiser rounds, so a decoder is judged by the codes it agrees on and by HU, not by its largest number.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from config.base import Frozen
from engine import samplers
from engine.bundle import SamplerSpec
from engine.families import s2ldm
from engine.phantom import PhantomOptions, make_phantom
from engine.session import Runs
from engine.volume import Float32, Shape3
from export.graph import write_graph
from export.model import Called, Model
from train.data import to_unit
from train.metrics import ssim_map
from train.s2ldm.quantizer import VectorQuantizer

PARITY_SEED = 8100
TIMES = (0.02, 0.5, 0.98)
"""Where the denoiser is measured, whatever the sampler: what it makes of t is another for each."""
FEW = 8
"""Times of a sampler that are measured besides; it may take a thousand."""


class CodesGraph(nn.Module):
    """The quantiser of a decoder alone: z to the index of every row's code."""

    def __init__(self, quantizer: VectorQuantizer, scale: float) -> None:
        super().__init__()
        self.quantizer, self.scale = quantizer, scale

    def forward(self, z: Tensor) -> Tensor:
        """Indices, one a row."""
        return self.quantizer.nearest(self.quantizer.rows(z / self.scale))


class Tolerance(Frozen):
    """The most a graph may differ from torch in fp32."""

    latent_max_abs: float = 2e-2
    """Encoder, condition and denoiser; latents have unit deviation. fp16 weights cost about 1e-3."""
    decoder_hu_p999: float = 2.0
    """99.9 % of voxels."""
    code_agreement: float = 0.999
    whole_hu_mean: float = 1.0
    """Encoder, sampler and decoder together, or the translator: mean over the tile, flipped codes and all."""
    translator_hu_p999: float = 2.0
    """99.9 % of voxels."""
    whole_ssim: float = 0.995
    """At least: structure of the whole tile's answer, where a mean of HU would hide a patch that is wrong."""


DEFAULT_TOLERANCE = Tolerance()
HALF_TOLERANCE = Tolerance(
    latent_max_abs=0.1, decoder_hu_p999=5.0, code_agreement=0.99, whole_hu_mean=1.0, translator_hu_p999=5.0
)
"""Of a graph that computes in half precision: numbers of 11 bits, and in a window of 600 HU one is 0.3 HU."""


class ParityExceeded(Exception):
    """A written graph does not do what torch does: names every figure beyond its tolerance."""


def measure(
    model: Model, files: Mapping[str, Path], tolerance: Tolerance = DEFAULT_TOLERANCE
) -> dict[str, dict[str, float]]:
    """Figures and tolerances of every graph, for ``bundle.json``. Raises ParityExceeded."""
    return MEASURES[model.family](model, files, tolerance)


def measure_translator(
    model: Model, files: Mapping[str, Path], tolerance: Tolerance
) -> dict[str, dict[str, float]]:
    """The one graph, which is also the whole."""
    x = example_tile(model)
    wanted = in_torch(model.graphs()["translator"], x=x)
    whole = whole_figures(_session(files["translator"]).run(None, {"x": x})[0], wanted, _half_width(model))
    figures = {"translator": {"hu_p999": whole.pop("hu_p999")}, "whole": whole}
    figures["translator"]["tolerance_hu_p999"] = tolerance.translator_hu_p999
    _attach_whole(figures, tolerance)
    problems = _problems_of_whole(whole)
    if not figures["translator"]["hu_p999"] <= tolerance.translator_hu_p999:
        p999 = figures["translator"]["hu_p999"]
        problems.append(f"translator: {p999:.3g} HU over {tolerance.translator_hu_p999:.3g} HU")
    if problems:
        raise ParityExceeded("; ".join(problems))
    return figures


def measure_latent(
    model: Model, files: Mapping[str, Path], tolerance: Tolerance
) -> dict[str, dict[str, float]]:
    """Encoder, condition, denoiser and decoder one by one and together.

    The denoiser's figures are its worst at :data:`TIMES` and at the sampler's own.
    """
    modules = model.graphs()
    sessions = {name: _session(file) for name, file in files.items()}
    x = example_tile(model)
    runs = {name: partial(in_torch, module) for name, module in modules.items()}
    e_n = runs["encoder"](x=x)
    times: list[float] = []
    listening = runs | {"denoiser": partial(_listening, runs["denoiser"], times)}
    z = s2ldm.sample(_sampler(model), _called(model, listening), x, _noise(model))
    known = {"x": x, "e_n": e_n, "z": z} | _at(0.5, e_n, z)
    if "condition" in modules:
        known["c"] = runs["condition"](**{name: known[name] for name in model.inputs()["condition"]})
    asked = {name: {n: known[n] for n in inputs} for name, inputs in model.inputs().items()}
    got = {name: sessions[name].run(None, inputs)[0] for name, inputs in asked.items()}
    wanted = {name: in_torch(modules[name], **inputs) for name, inputs in asked.items()}
    figures = {name: _difference(got[name], wanted[name]) for name in asked}
    for t in sorted({*TIMES, *_few(times)}):
        inputs = asked["denoiser"] | {n: v for n, v in _at(t, e_n, z).items() if n in asked["denoiser"]}
        told = _difference(sessions["denoiser"].run(None, inputs)[0], runs["denoiser"](**inputs))
        figures["denoiser"] = {name: max(most, told[name]) for name, most in figures["denoiser"].items()}
    figures["decoder"] |= _decoder_figures(model, got["decoder"], wanted["decoder"], z)
    figures["whole"] = _whole_figures(model, sessions, modules, x)
    _attach(figures, tolerance)
    _refuse(figures)
    return figures


def _listening(run: Callable[..., Float32], times: list[float], **inputs: Float32) -> Float32:
    """``run``, with the t that it is asked for written down."""
    times.append(float(inputs["t"][0]))
    return run(**inputs)


def _at(t: float, e_n: Float32, z: Float32) -> dict[str, Float32]:
    """What the denoiser is told of t, on the straight way from E_n to ẑ."""
    return {"z_t": (1 - t) * e_n + t * z, "t": np.array([t], np.float32)}


def _few(times: Sequence[float]) -> Sequence[float]:
    """At most :data:`FEW` of a sampler's times, evenly chosen."""
    return times[:: max(1, -(-len(times) // FEW))]


def example_tile(model: Model) -> Float32:
    """A tile from the middle of a phantom no training has seen, (1, 1, D, H, W) in [-1, 1]."""
    data = model.config.data
    shape = tuple(max(n, t) for n, t in zip(data.phantom_shape, data.crop, strict=True))
    box = tuple(((n - t) // 2, (n - t) // 2 + t) for n, t in zip(shape, data.crop, strict=True))
    options = PhantomOptions(shape=shape, spacing_mm=data.spacing_mm, phases=("ncct",))  # type: ignore[arg-type]
    phantom = make_phantom(PARITY_SEED, options, box)  # type: ignore[arg-type]
    return to_unit(phantom.phases["ncct"], data.window_hu)[None, None]


def _called(model: Model, runs: Mapping[str, Callable[..., Float32]]) -> dict[str, Runs]:
    """``runs`` in the shape the engine's families ask for."""
    return {name: Called(run, model.inputs()[name]) for name, run in runs.items()}


def _sampler(model: Model) -> SamplerSpec:
    spec = model.sampler()
    assert spec is not None
    return spec


def _noise(model: Model) -> s2ldm.Draw:
    latent = model.latent()
    assert latent is not None
    fields, channels = samplers.noise_fields(_sampler(model)), latent.channels

    def draw(cells: Shape3) -> Float32:
        shape = (fields, 1, channels, *cells)
        return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)

    return draw


def _whole_figures(
    model: Model, sessions: Mapping[str, ort.InferenceSession], modules: Mapping[str, nn.Module], x: Float32
) -> dict[str, float]:
    painted = []
    for runs in (
        {name: partial(_first, session) for name, session in sessions.items()},
        {name: partial(in_torch, module) for name, module in modules.items()},
    ):
        called = _called(model, runs)
        painted.append(s2ldm.paint(called, s2ldm.sample(_sampler(model), called, x, _noise(model)), x))
    return whole_figures(painted[0], painted[1], _half_width(model))


def whole_figures(got: Float32, wanted: Float32, half_width: float) -> dict[str, float]:
    """How far two answers (1, 1, D, H, W) in [-1, 1] are apart: in HU and in structure."""
    e = np.abs(got - wanted) * half_width
    return {
        "hu_mean": float(e.mean()),
        "hu_p999": float(np.quantile(e, 0.999)),
        "hu_max": float(e.max()),
        "ssim": float(ssim_map(got[0, 0] + 1, wanted[0, 0] + 1, 2.0).mean(dtype=np.float64)),
    }


def _first(session: ort.InferenceSession, **inputs: Float32) -> Float32:
    answer: Float32 = session.run(None, inputs)[0]
    return answer


def _decoder_figures(model: Model, got: Float32, wanted: Float32, z: Float32) -> dict[str, float]:
    hu = np.abs(got - wanted) * _half_width(model)
    figures = {"hu_p999": float(np.quantile(hu, 0.999)), "hu_max": float(hu.max())}
    quantizer, latent = model.quantizer(), model.latent()
    if quantizer is None or latent is None:
        return figures
    codes = CodesGraph(quantizer, latent.scale)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "codes.onnx"
        write_graph(codes, {"z": torch.from_numpy(z)}, "codes", file, half_weights=False)
        found = _session(file).run(None, {"z": z})[0]
    return figures | {"code_agreement": float(np.mean(found == in_torch(codes, z=z)))}


LATENT = ("encoder", "condition", "denoiser")
"""The graphs that give latents, or what is as large."""

MEASURES = {"s2ldm": measure_latent, "translator": measure_translator}


def _attach(figures: dict[str, dict[str, float]], tolerance: Tolerance) -> None:
    for name in figures.keys() & LATENT:
        figures[name]["tolerance"] = tolerance.latent_max_abs
    figures["decoder"]["tolerance_hu_p999"] = tolerance.decoder_hu_p999
    figures["decoder"]["tolerance_code_agreement"] = tolerance.code_agreement
    _attach_whole(figures, tolerance)


def _attach_whole(figures: dict[str, dict[str, float]], tolerance: Tolerance) -> None:
    figures["whole"]["tolerance_hu_mean"] = tolerance.whole_hu_mean
    figures["whole"]["tolerance_ssim"] = tolerance.whole_ssim


def _refuse(figures: Mapping[str, Mapping[str, float]]) -> None:
    problems = [
        f"{name}: max_abs {figures[name]['max_abs']:.3g} over {figures[name]['tolerance']:.3g}"
        for name in LATENT
        if name in figures and not figures[name]["max_abs"] <= figures[name]["tolerance"]
    ]
    decoder, whole = figures["decoder"], figures["whole"]
    if not decoder["hu_p999"] <= decoder["tolerance_hu_p999"]:
        problems.append(f"decoder: {decoder['hu_p999']:.3g} HU over {decoder['tolerance_hu_p999']:.3g} HU")
    if decoder.get("code_agreement", 1.0) < decoder["tolerance_code_agreement"]:
        problems.append(f"decoder: codes agree in {decoder['code_agreement']:.4f} of rows")
    problems += _problems_of_whole(whole)
    if problems:
        raise ParityExceeded("; ".join(problems))


def _problems_of_whole(whole: Mapping[str, float]) -> list[str]:
    problems = []
    if not whole["hu_mean"] <= whole["tolerance_hu_mean"]:
        problems.append(f"whole: {whole['hu_mean']:.3g} HU over {whole['tolerance_hu_mean']:.3g} HU")
    if not whole["ssim"] >= whole["tolerance_ssim"]:
        problems.append(f"whole: SSIM {whole['ssim']:.4f} under {whole['tolerance_ssim']:.4g}")
    return problems


def _difference(got: Float32, wanted: Float32) -> dict[str, float]:
    return {"max_abs": float(np.abs(got - wanted).max()), "rms": float(np.sqrt(np.mean((got - wanted) ** 2)))}


def _half_width(model: Model) -> float:
    low, high = model.config.data.window_hu
    return (high - low) / 2


@torch.no_grad()
def in_torch(module: nn.Module, **inputs: Float32) -> Float32:
    """What ``module`` answers, array for array."""
    tensors: dict[str, Tensor] = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in inputs.items()}
    answer: Float32 = module(**tensors).numpy()
    return answer


def _session(file: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
