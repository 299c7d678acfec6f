"""A checkpoint becomes a bundle folder: graphs, parity, metrics, ``bundle.json`` last, then one rename."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.bundle import (
    FORMAT,
    CompositionSpec,
    LatentSpec,
    Manifest,
    digest_files,
    read_bundle,
    write_manifest,
)
from engine.session import SessionPolicy
from export.graph import OPSET, write_graph
from export.parity import DEFAULT_TOLERANCE, Tolerance, measure
from export.s2ldm import OUTPUTS, Model, load_model
from train.checkpoint import NAME
from train.config import BundleConfig
from train.evaluate import evaluate
from train.run import machine
from train.s2ldm.formulation import sampler_spec


class BundleExists(Exception):
    """The folder asked for is taken."""


def export_bundle(
    checkpoint: Path,
    out: Path,
    *,
    settings: BundleConfig | None = None,
    half_weights: bool = True,
    evaluation_seeds: tuple[int, ...] = (),
    tolerance: Tolerance = DEFAULT_TOLERANCE,
    replace: bool = False,
) -> Manifest:
    """Write the bundle of a stage 2 checkpoint (its file or folder) to ``out``.

    ``settings`` replaces the checkpoint's ``[bundle]`` table; with ``evaluation_seeds`` the bundle is run on
    those phantoms and the figures go into its metrics. Raises CheckpointUnusable, ParityExceeded,
    BundleExists or BundleInvalid; then nothing is left behind.
    """
    if out.exists() and not replace:
        raise BundleExists(f"{out} exists: choose another folder or add --replace")
    file = checkpoint / NAME if checkpoint.is_dir() else checkpoint
    model = load_model(file)
    with _staged(out) as folder:
        files = {name: folder / f"{name}.onnx" for name in OUTPUTS}
        modules, inputs = model.graphs(), model.inputs()
        for name, target in files.items():
            write_graph(modules[name], inputs[name], OUTPUTS[name], target, half_weights)
        parity = measure(model, files, tolerance)
        manifest = describe(model, folder, settings or model.config.bundle, parity, _card(file))
        write_manifest(folder, manifest)
        if evaluation_seeds:
            measured = evaluate([folder], evaluation_seeds, SessionPolicy(provider="cpu"))
            manifest = manifest.model_copy(update={"metrics": _rounded(_metrics(measured, manifest.phase))})
            write_manifest(folder, manifest)
        read_bundle(folder)
    return manifest


def describe(
    model: Model, folder: Path, settings: BundleConfig, parity: dict[str, Any], card: dict[str, Any]
) -> Manifest:
    """What ``bundle.json`` says of the graphs in ``folder``."""
    data, autoencoder = model.config.data, model.config.autoencoder
    return Manifest(
        format=FORMAT,
        family="s2ldm",
        phase=data.phase,
        model_id=f"{settings.name}-{data.phase}-{settings.version}",
        model_name=f"{settings.name}-{data.phase}",
        model_version=settings.version,
        window_hu=data.window_hu,
        spacing_mm=data.spacing_mm,
        tile=data.crop,
        overlap=settings.overlap,
        latent=LatentSpec(scale=model.scale, channels=autoencoder.latent_channels, factor=autoencoder.factor),
        sampler=sampler_spec(model.config.diffusion),
        composition=CompositionSpec(**settings.composition.model_dump()),
        graphs={name: f"{name}.onnx" for name in OUTPUTS},
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
    """What the run's own card adds: machine, dates, parameters, last figures, stage 1."""
    file = checkpoint.with_name("run.json")
    if not file.is_file():
        return {}
    card = json.loads(file.read_text())
    kept = ("started", "ended", "machine", "parameters", "latest", "stage_one", "finished")
    return {key: card[key] for key in kept if key in card}


def _metrics(measured: dict[str, Any], phase: str) -> dict[str, Any]:
    return measured["phases"][phase] | {"seeds": measured["seeds"]}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items() if k not in ("model_digest", "model_id")}
    return round(value, 4) if isinstance(value, float) else value
