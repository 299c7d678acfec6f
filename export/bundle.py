"""A checkpoint becomes a bundle folder: graphs, parity, metrics, ``bundle.json`` last, then one rename."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.bundle import (
    FORMAT,
    CompositionSpec,
    Manifest,
    digest_files,
    file_sha256,
    read_bundle,
    write_manifest,
)
from engine.session import SessionPolicy
from export import aldm, s2ldm, translator
from export.graph import OPSET, write_graph
from export.model import Model
from export.parity import DEFAULT_TOLERANCE, HALF_TOLERANCE, Tolerance, measure
from train.checkpoint import CheckpointUnusable, file_of
from train.checkpoint import load as load_checkpoint
from train.config import BundleConfig, Phase
from train.evaluate import evaluate
from train.run import machine

LOADERS: dict[str, Callable[[Path], Model]] = {
    "diffusion": s2ldm.load_model,
    "joint": s2ldm.load_joint_model,
    "pix2pix": translator.load_translator,
    "cyclegan": translator.load_translator,
    "reggan": translator.load_translator,
    "ctagan": translator.load_translator,
    "unet25d": translator.load_translator,
    "aldm": aldm.load_model,
}
"""The stages whose checkpoint is a whole model, and what reads it."""


class BundleExists(Exception):
    """The folder asked for is taken."""


def export_bundle(
    checkpoint: Path,
    out: Path,
    *,
    settings: BundleConfig | None = None,
    phase: Phase | None = None,
    half_weights: bool = True,
    fp16: bool = False,
    evaluation_seeds: tuple[int, ...] = (),
    tolerance: Tolerance = DEFAULT_TOLERANCE,
    replace: bool = False,
) -> Manifest:
    """Write the bundle of a finished model's checkpoint (its file or folder) to ``out``.

    ``phase`` has to be named where the model serves both: each is a bundle of its own, with the same weights.
    With ``fp16`` it holds every graph a second time, computing in half precision, which GPUs run.
    ``settings`` replaces the checkpoint's ``[bundle]`` table; with ``evaluation_seeds`` the bundle is run on
    those phantoms and the figures go into its metrics. Raises CheckpointUnusable, ParityExceeded,
    BundleExists or BundleInvalid; then nothing is left behind.
    """
    if out.exists() and not replace:
        raise BundleExists(f"{out} exists: choose another folder or add --replace")
    file = file_of(checkpoint)
    model = load_model(file, phase)
    outputs = model.outputs()
    with _staged(out) as folder:
        files = {name: folder / f"{name}.onnx" for name in outputs}
        modules, inputs = model.graphs(), model.inputs()
        halves = {name: folder / f"{name}.fp16.onnx" for name in outputs} if fp16 else {}
        for name, target in files.items():
            half = halves.get(name)
            write_graph(modules[name], inputs[name], outputs[name], target, half_weights, half)
        parity: dict[str, Any] = {**measure(model, files, tolerance)}
        if fp16:
            parity["fp16"] = measure(model, halves, HALF_TOLERANCE)
        variants = {"fp16": {name: half.name for name, half in halves.items()}} if fp16 else {}
        manifest = describe(model, folder, settings or model.config.bundle, parity, _card(file), variants)
        write_manifest(folder, manifest)
        if evaluation_seeds:
            measured = evaluate([folder], evaluation_seeds, SessionPolicy(provider="cpu"))
            manifest = manifest.model_copy(update={"metrics": rounded(_metrics(measured, manifest.phase))})
            write_manifest(folder, manifest)
        read_bundle(folder)
    return manifest


def load_model(file: Path, phase: Phase | None = None) -> Model:
    """One phase of the model in a checkpoint. Raises CheckpointUnusable, also where it is no whole model."""
    stage = load_checkpoint(file).stage
    if stage not in LOADERS:
        raise CheckpointUnusable(file, f"is of stage {stage!r}, not one of {sorted(LOADERS)}")
    model = LOADERS[stage](file)
    trained = model.config.data.phase
    if phase is None and trained == "both":
        raise CheckpointUnusable(file, "serves both phases: add --phase arterial or --phase venous")
    if phase not in (None, trained) and trained != "both":
        raise CheckpointUnusable(file, f"is of phase {trained!r}, not {phase!r}")
    if isinstance(model, s2ldm.Model) and phase is not None:
        return s2ldm.of_phase(model, phase)
    return model


def describe(
    model: Model,
    folder: Path,
    settings: BundleConfig,
    parity: dict[str, Any],
    card: dict[str, Any],
    variants: dict[str, dict[str, str]],
) -> Manifest:
    """What ``bundle.json`` says of the graphs in ``folder``."""
    data = model.config.data
    return Manifest(
        format=FORMAT,
        family=model.family,
        phase=data.phase,
        model_id=f"{settings.name}-{data.phase}-{settings.version}",
        model_name=f"{settings.name}-{data.phase}",
        model_version=settings.version,
        window_hu=data.window_hu,
        spacing_mm=data.spacing_mm,
        tile=data.crop,
        overlap=settings.overlap,
        latent=model.latent(),
        sampler=model.sampler(),
        composition=CompositionSpec(**settings.composition.model_dump()),
        graphs={name: f"{name}.onnx" for name in model.outputs()},
        variants=variants,
        files=digest_files(folder),
        parity=parity,
        metrics={},
        run={"config": model.config.model_dump(mode="json"), "export": machine(), **model.facts, **card},
        intended_use=settings.intended_use,
        licence=settings.licence,
        opset=OPSET,
        created=datetime.now(UTC).replace(microsecond=0),
    )


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its name if the block ends well and vanishes if it does not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    staging.chmod(0o755)
    try:
        yield staging
        _sync(staging)
        if out.exists():
            old = staging.with_name(f"{staging.name}.old")
            out.rename(old)
            staging.rename(out)
            shutil.rmtree(old)
        else:
            staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _card(checkpoint: Path) -> dict[str, Any]:
    """Which checkpoint it was, and what the run's own card adds: machine, dates, figures, earlier stages."""
    digest = {"checkpoint_sha256": file_sha256(checkpoint)}
    file = checkpoint.with_name("run.json")
    if not file.is_file():
        return digest
    card = json.loads(file.read_text())
    kept = (
        "started", "ended", "machine", "parameters", "latest", "stage_one", "stage_two", "finished", "data",
    )  # fmt: skip
    return digest | {key: card[key] for key in kept if key in card}


def _metrics(measured: dict[str, Any], phase: str) -> dict[str, Any]:
    return measured["phases"][phase] | {"seeds": measured["seeds"]}


def rounded(value: Any) -> Any:
    """Figures as the manifest keeps them: four places, lists for tuples, nothing the manifest says itself."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items() if k not in ("model_digest", "model_id")}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return round(value, 4) if isinstance(value, float) else value
