"""Bundles, run by the engine as in service, on phantoms that no training has seen.

Every number stands beside the identity's (the source as it is). Organs are compared by their mean HU over the
phantom's own labels; fat, bone, air and muscle are negative controls, which must not change.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import engine.bundle
from config.load import load_settings
from engine.phantom import LABELS, PhantomOptions, make_phantom
from engine.phantom.phantom import Phantom
from engine.pipeline import Engine, open_engine
from engine.session import SessionPolicy
from engine.volume import Float32, Volume
from train.metrics import PAPER_WINDOW_HU, Mask, compare

SHIPPED = Path(engine.bundle.__file__).parent / "bundles"
ORGANS = ("aorta", "portal_vein", "liver", "renal_cortex", "spleen", "pancreas", "ivc")
CONTROLS = ("fat", "bone", "air", "muscle")
OUTSIDE_BODY = ("air", "table")

Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class PhaseRows:
    """What was measured of one phase, a row a case."""

    identity: list[dict[str, float]] = field(default_factory=list)
    model: list[dict[str, float]] = field(default_factory=list)
    organs: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)
    """Mean HU of (source, truth, model)."""
    controls: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)
    """(mean change, mean absolute change, true mean change) of the model's output from the source."""
    seconds: list[float] = field(default_factory=list)


def evaluate(
    bundles: Sequence[Path], seeds: Iterable[int], policy: SessionPolicy, progress: Progress | None = None
) -> dict[str, Any]:
    """The issue's JSON: {"phases": {phase: {"identity", "model", "organs", "controls", …}}}."""
    engines = [open_engine(folder, policy) for folder in bundles]
    rows = {e.bundle.manifest.phase: PhaseRows() for e in engines}
    seeds = list(seeds)
    for done, seed in enumerate(seeds):
        phantom = make_phantom(seed, PhantomOptions())
        for engine_ in engines:
            measure(engine_, phantom, rows[engine_.bundle.manifest.phase])
            if progress:
                progress(engine_.bundle.manifest.phase, done + 1, len(seeds))
    facts = {e.bundle.manifest.phase: describe(e) for e in engines}
    return {
        "phases": {phase: facts[phase] | summary(row) for phase, row in rows.items()},
        "seeds": seeds,
        "paper_window_hu": PAPER_WINDOW_HU,
    }


def measure(engine_: Engine, phantom: Phantom, rows: PhaseRows) -> Float32:
    """Run one case, add its row, and return the synthesis in HU."""
    phase = engine_.bundle.manifest.phase
    source, truth = phantom.phases["ncct"], phantom.phases[phase]
    synthesis = engine_.synthesize(Volume(source, phantom.geometry), seed=phantom.seed)
    made = synthesis.volume.hu
    body = ~np.isin(phantom.labels, [LABELS[name] for name in OUTSIDE_BODY])
    window = engine_.bundle.manifest.window_hu
    rows.identity.append(both_windows(source, truth, body, window))
    rows.model.append(both_windows(made, truth, body, window))
    rows.seconds.append(sum(synthesis.seconds.values()))
    for organ in ORGANS:
        where = phantom.labels == LABELS[organ]
        if where.any():
            means = tuple(float(v[where].mean(dtype=np.float64)) for v in (source, truth, made))
            rows.organs.setdefault(organ, []).append(means)
    for control in CONTROLS:
        where = phantom.labels == LABELS[control]
        if where.any():
            rows.controls.setdefault(control, []).append(changes(source, truth, made, where))
    return made


def both_windows(
    x: Float32, reference: Float32, body: Mask, window_hu: tuple[float, float]
) -> dict[str, float]:
    """Metrics in the paper's window under their plain names, in the bundle's with ``_bundle_window``."""
    wide = compare(x, reference, body, window_hu)
    return compare(x, reference, body, PAPER_WINDOW_HU) | {f"{k}_bundle_window": v for k, v in wide.items()}


def changes(source: Float32, truth: Float32, made: Float32, where: Mask) -> tuple[float, float, float]:
    """Mean, and mean absolute, change of the output from the source; mean change of the truth from it."""
    change = (made[where] - source[where]).astype(np.float64)
    true = float(truth[where].mean(dtype=np.float64) - source[where].mean(dtype=np.float64))
    return float(change.mean()), float(np.abs(change).mean()), true


def summary(rows: PhaseRows) -> dict[str, Any]:
    """Means over cases, with standard deviations of the headline metrics."""
    return {
        "identity": _means(rows.identity),
        "model": _means(rows.model),
        "model_sd": {k: float(np.std([r[k] for r in rows.model])) for k in ("psnr", "ssim", "nmse")},
        "organs": {name: organ_summary(np.array(values)) for name, values in rows.organs.items()},
        "controls": {
            name: dict(zip(("mean_change_hu", "mean_abs_change_hu", "true_change_hu"), row, strict=True))
            for name, row in ((n, np.mean(v, axis=0).tolist()) for n, v in rows.controls.items())
        },
        "seconds": float(np.mean(rows.seconds)),
        "cases": len(rows.model),
    }


def organ_summary(means: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    """Of (cases, 3) mean HU of source, truth, model: errors of the mean, bias, and regression to the mean.

    ``slope`` and ``variance_ratio`` compare the model's enhancement over patients with the true one: 1
    follows every patient, 0 gives everybody the average. They are absent below three cases.
    """
    source, true, model = means.T
    result = {
        "identity_mae_hu": float(np.abs(source - true).mean()),
        "model_mae_hu": float(np.abs(model - true).mean()),
        "true_hu": float(true.mean()),
        "model_hu": float(model.mean()),
        "source_hu": float(source.mean()),
        "bias_hu": float((model - true).mean()),
    }
    if len(means) >= 3 and np.var(true - source) > 0:
        wanted, got = true - source, model - source
        result["slope"] = float(np.cov(wanted, got, bias=True)[0, 1] / np.var(wanted))
        result["variance_ratio"] = float(np.var(got) / np.var(wanted))
    return result


def describe(engine_: Engine) -> dict[str, Any]:
    """Which model was measured."""
    m = engine_.bundle.manifest
    return {
        "model_id": m.model_id,
        "model_digest": engine_.bundle.digest,
        "window_hu": m.window_hu,
        "provider": engine_.provider,
    }


def active_bundles(env: Mapping[str, str] = os.environ) -> list[Path]:
    """What the node of this environment has active: ``active.json`` of its data folder, else what is shipped.

    Raises config.load.ConfigError where the settings are wrong.
    """
    settings = load_settings(Path(env["S2NODE_CONFIG"]) if env.get("S2NODE_CONFIG") else None, env)
    models = settings.storage.data_dir / "models"
    chosen = _activated(models / "active.json")
    found = {folder.name: folder for folder in sorted(SHIPPED.iterdir()) if folder.is_dir()}
    return list((found | {phase: models / name for phase, name in chosen.items()}).values())


def _activated(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    chains = json.loads(file.read_text())["active"]
    return {phase: chain[-1]["folder"] for phase, chain in chains.items() if chain and chain[-1]["folder"]}


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
