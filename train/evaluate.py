"""Bundles, run by the engine as in service, on phantoms that no training has seen.

Every number stands beside the identity's (the source as it is) and the oracle's (the expected image, which
no method can beat on average). Organs are compared by their mean HU over the phantom's own labels; fat, bone,
air and muscle are negative controls, which must not change.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import engine.bundle
from config.load import load_settings
from engine.body import find_body
from engine.errors import BundleInvalid, VolumeUnsupported
from engine.grid import model_grid
from engine.phantom import PhantomOptions, make_phantom
from engine.pipeline import Engine, open_engine, plan_for
from engine.session import SessionPolicy
from engine.tiles import TiledAxis
from engine.volume import Float32, Volume
from train.bars import release_bars
from train.cases import ORGANS, Case, Skip, phantom_case, refuse
from train.measure import Row, Zones, measure
from train.metrics import PAPER_WINDOW_HU, Mask
from train.statistics import (
    Statistic,
    bootstrap,
    limits_of_agreement,
    mean,
    paired_p,
    sd,
    slope,
    variance_ratio,
)

SHIPPED = Path(engine.bundle.__file__).parent / "bundles"
HEADLINE = ("psnr", "ssim", "nmse", "mae_hu")
"""Body metrics, in the paper's window, that get an interval and a paired test."""
PLANE_HU = (-200.0, 400.0)
"""What counts where the planes to show are chosen."""
SLICES = PhantomOptions().shape[0]
"""Of a whole phantom."""
FROM_SLOPE = 3
"""Patients from which on a slope is given."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Shown:
    """One plane of one case as it is shown: (row, column) HU of source, truth and model."""

    source: Float32
    truth: Float32
    made: Float32
    aspect: float
    """Height of a pixel against its width."""


@dataclass(slots=True)
class PhaseRows:
    """What was measured of one phase: a row a case and method, in the order of ``cases``."""

    facts: dict[str, Any]
    cases: list[str] = field(default_factory=list)
    identity: list[Row] = field(default_factory=list)
    oracle: list[Row] = field(default_factory=list)
    """Empty where the cases have no oracle."""
    model: list[Row] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)


def evaluate(
    bundles: Sequence[Path], seeds: Iterable[int], policy: SessionPolicy, progress: Progress | None = None
) -> dict[str, Any]:
    """The JSON of ``s2node evaluate``: {"phases": {phase: {"identity", "model", "organs", …}}, "seeds"}."""
    seeds = list(seeds)
    return as_json(run(bundles, phantom_cases(seeds), policy, progress, len(seeds))) | {"seeds": seeds}


def as_json(phases: Mapping[str, PhaseRows]) -> dict[str, Any]:
    """Means, spreads, intervals and tests over cases, by phase."""
    return {
        "phases": {phase: rows.facts | summary(rows) for phase, rows in phases.items()},
        "paper_window_hu": PAPER_WINDOW_HU,
    }


def phantom_cases(seeds: Iterable[int], slices: int = SLICES) -> Iterator[Case]:
    """Phantoms of the default grid, or of fewer slices around its middle, one at a time with its oracle."""
    options = PhantomOptions(shape=(slices, *PhantomOptions().shape[1:]))
    for seed in seeds:
        yield phantom_case(make_phantom(seed, options))


def run(
    bundles: Sequence[Path],
    cases: Iterable[Case],
    policy: SessionPolicy,
    progress: Progress | None = None,
    of: int = 0,
    skip: Skip = refuse,
) -> dict[str, PhaseRows]:
    """Every bundle on every case that has its phase. ``of`` is how many cases ``progress`` is told of.

    ``skip`` is told of a case that an engine does not take. Raises PairsUnusable if it does.
    """
    engines = one_a_phase(bundles, policy)
    found = {e.bundle.manifest.phase: PhaseRows(describe(e)) for e in engines}
    for number, case in enumerate(cases, 1):
        for engine_ in engines:
            phase = engine_.bundle.manifest.phase
            if phase in case.phases:
                try:
                    measure_case(engine_, case, found[phase])
                except VolumeUnsupported as error:
                    skip(f"{case.name}, {phase}", error)
            if progress:
                progress(phase, number, of)
    return {phase: rows for phase, rows in found.items() if rows.cases}


def one_a_phase(bundles: Sequence[Path], policy: SessionPolicy) -> list[Engine]:
    """An engine of each; BundleInvalid for a second of a phase: its rows would be taken for the first's."""
    engines: dict[str, Engine] = {}
    for folder in bundles:
        opened = open_engine(folder, policy)
        if (phase := opened.bundle.manifest.phase) in engines:
            raise BundleInvalid(folder, f"is the second of phase {phase}: measure one after the other")
        engines[phase] = opened
    return list(engines.values())


def measure_case(engine_: Engine, case: Case, rows: PhaseRows) -> Float32:
    """Run one case, add its rows, and return the synthesis in HU."""
    synthesis = engine_.synthesize(case.source, seed=case.seed)
    rows.seconds.append(sum(synthesis.seconds.values()))
    add_case(rows, case, engine_.bundle.manifest.phase, synthesis.volume.hu, overlaps(engine_, case.source))
    return synthesis.volume.hu


def add_case(rows: PhaseRows, case: Case, phase: str, made: Float32, zones: Zones = ()) -> None:
    """Measure ``made``, the source as it is and the oracle; keep two planes to show."""
    window: tuple[float, float] = rows.facts["window_hu"]
    rows.cases.append(case.name)
    rows.model.append(measure(case, phase, made, window, zones))
    rows.identity.append(measure(case, phase, case.source.hu, window, zones))
    if case.oracle is not None:
        rows.oracle.append(measure(case, phase, case.oracle.on_source[phase], window, zones))
    rows.shown += planes(case, phase, made)


def planes(case: Case, phase: str, made: Float32) -> list[Shown]:
    """The axial and the coronal plane where contrast changes most in the organs, cut to the body."""
    box = tuple(_extent(case.body.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    source, truth, x = (hu[box] for hu in (case.source.hu, case.phases[phase], made))
    rise = np.abs(np.clip(truth, *PLANE_HU) - np.clip(source, *PLANE_HU)) * _of_interest(case)[box]
    z, y = int(rise.sum(axis=(1, 2)).argmax()), int(rise.sum(axis=(0, 2)).argmax())
    along, down, across = case.source.geometry.spacing_mm
    return [
        Shown(source[z].copy(), truth[z].copy(), x[z].copy(), down / across),
        Shown(source[::-1, y].copy(), truth[::-1, y].copy(), x[::-1, y].copy(), along / across),
    ]


def _of_interest(case: Case) -> Mask:
    """The organs that are measured; where no labels are known, the body."""
    organs = [where for name in ORGANS if (where := case.region(name)) is not None]
    return np.logical_or.reduce(organs) if organs else case.body


def _extent(line: Mask) -> slice:
    """From the first to the last voxel of a line that is set; the whole line where none is."""
    where = np.flatnonzero(line)
    return slice(int(where[0]), int(where[-1]) + 1) if where.size else slice(0, line.size)


def overlaps(engine_: Engine, volume: Volume) -> list[NDArray[np.bool_]]:
    """For each axis of the source, whether the step from voxel i to i + 1 lies where tiles overlap."""
    manifest = engine_.bundle.manifest
    grid = model_grid(volume.geometry, find_body(volume).box, manifest.spacing_mm)
    plan = plan_for(manifest, grid.model.shape)
    zones = []
    for n, box, axis, fine, coarse in zip(
        volume.hu.shape, grid.box, plan.axes, volume.geometry.spacing_mm, grid.model.spacing_mm, strict=True
    ):
        middle = (np.arange(n - 1) + 1 - box.start) * fine / coarse
        zones.append(_in_overlap(axis, middle))
    return zones


def _in_overlap(axis: TiledAxis, position: NDArray[np.float64]) -> NDArray[np.bool_]:
    inside = np.zeros(position.shape, bool)
    for start, after in zip(axis.starts[:-1], axis.starts[1:], strict=True):
        inside |= (position > after) & (position < start + axis.tile)
    return inside


def summary(rows: PhaseRows) -> dict[str, Any]:
    """Means over cases, with standard deviations, intervals and paired tests of the headline metrics."""
    model, identity = _column(rows.model, "body"), _column(rows.identity, "body")
    result = {
        "identity": _means(identity),
        "model": _means(model),
        "model_sd": {k: sd([r[k] for r in model]) for k in ("psnr", "ssim", "nmse")},
        "organs": {name: _organ(rows, name) for name in _names(rows.model, "organs")},
        "controls": {name: _control(rows.model, name) for name in _names(rows.model, "controls")},
        "seconds": float(np.mean(rows.seconds or [0.0])),
        "cases": len(rows.model),
        "intervals": {k: interval([r[k] for r in model], mean) for k in HEADLINE},
        "p_against_identity": _tests(model, identity),
        "whole": {
            "identity": _means(_column(rows.identity, "whole")),
            "model": _means(_column(rows.model, "whole")),
        },
        "third_dimension": _third_dimension(rows.model),
    }
    if rows.oracle:
        oracle = _column(rows.oracle, "body")
        result |= {"oracle": _means(oracle), "p_against_oracle": _tests(model, oracle)}
        if phase := rows.facts.get("phase"):
            result["bars"] = release_bars(phase, rows.model, rows.oracle)
    vessels = thin_vessel_summary(rows)
    return result | ({"thin_vessels": vessels} if vessels else {})


def thin_vessel_summary(rows: PhaseRows) -> dict[str, float] | None:
    """HU of contrast that vessels of 3 to 6 mm gained, and the model's share of the oracle's."""
    gained = [row["vessels"] for row in rows.model]
    kept = [i for i, row in enumerate(gained) if row]
    if not kept:
        return None
    found = {
        "true_hu": float(np.mean([gained[i]["true"] for i in kept])),
        "model_hu": float(np.mean([gained[i]["made"] for i in kept])),
    }
    if rows.oracle:
        found["oracle_hu"] = float(np.mean([rows.oracle[i]["vessels"]["made"] for i in kept]))
        found["share_of_oracle"] = found["model_hu"] / max(found["oracle_hu"], 1e-9)
    return found


def _organ(rows: PhaseRows, name: str) -> dict[str, Any]:
    """One organ over the patients that have it."""
    kept = [i for i, row in enumerate(rows.model) if name in row["organs"]]
    model = [rows.model[i]["organs"][name] for i in kept]
    found: dict[str, Any] = organ_summary(np.array([[r["source"], r["truth"], r["made"]] for r in model]))
    error = np.array([r["made"] - r["truth"] for r in model])
    found["model_mae_interval_hu"] = interval(np.abs(error), mean)
    found["limits_of_agreement_hu"] = list(limits_of_agreement(error))
    if "slope" in found:
        pairs = np.array([[r["truth"] - r["source"], r["made"] - r["source"]] for r in model])
        found["slope_interval"] = interval(pairs, slope)
    if rows.oracle:
        oracle = [rows.oracle[i]["organs"][name] for i in kept]
        found["oracle_hu"] = float(np.mean([r["made"] for r in oracle]))
        found["oracle_mae_hu"] = float(np.mean([abs(r["made"] - r["truth"]) for r in oracle]))
    found["voxels"] = {
        k: float(np.mean([r[k] for r in model])) for k in ("mae_hu", "rmse_hu", "psnr", "ssim")
    }
    return found


def organ_summary(means: NDArray[np.float64]) -> dict[str, float]:
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
    if len(means) >= FROM_SLOPE and np.var(true - source) > 0:
        result["slope"] = float(slope(true - source, model - source))
        result["variance_ratio"] = float(variance_ratio(true - source, model - source))
    return result


def _control(rows: Sequence[Row], name: str) -> dict[str, float]:
    found = np.mean([row["controls"][name] for row in rows if name in row["controls"]], axis=0).tolist()
    return dict(zip(("mean_change_hu", "mean_abs_change_hu", "true_change_hu"), found, strict=True))


def _third_dimension(rows: Sequence[Row]) -> dict[str, float]:
    names = ("z_flicker", "slice_step_hu", "seam_ratio")
    values = {name: [row[name] for row in rows if row[name] is not None] for name in names}
    return {name: float(np.mean(found)) for name, found in values.items() if found}


def interval(rows: ArrayLike, statistic: Statistic) -> list[float]:
    """[low, high] of the 95 % bootstrap interval over patients."""
    return list(bootstrap(rows, statistic))


def _tests(a: Sequence[Mapping[str, float]], b: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {k: paired_p([r[k] for r in a], [r[k] for r in b]) for k in HEADLINE}


def _names(rows: Sequence[Row], group: str) -> list[str]:
    """Organs or controls that at least one case has, in their usual order."""
    return list(dict.fromkeys(name for row in rows for name in row[group]))


def _column(rows: Sequence[Row], group: str) -> list[dict[str, float]]:
    return [row[group] for row in rows]


def describe(engine_: Engine) -> dict[str, Any]:
    """Which model was measured."""
    m = engine_.bundle.manifest
    return {
        "model_id": m.model_id,
        "phase": m.phase,
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


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
