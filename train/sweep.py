"""Quality over sampler steps: the same graphs and cases under every sampler that fits.

The rule for a bundle's default: the fewest steps at which no headline figure is more than 1 % worse than with
the most steps of the sweep.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from engine.bundle import SamplerSpec
from engine.pipeline import Engine
from engine.session import SessionPolicy
from train import plots
from train.cases import Case
from train.evaluate import PhaseRows, describe, measure_case, one_a_phase, summary

SamplerName = Literal["bridge", "ddim", "dpm_solver"]
FITTING: Mapping[str, tuple[SamplerName, ...]] = {
    "bridge": ("bridge",),
    "conditional": ("ddim", "dpm_solver"),
    "literal": ("ddim", "dpm_solver"),
}
"""Formulation of a bundle → the samplers that can run it."""
STEPS = (1, 2, 4, 8, 16)
TOLERANCE = 0.01
"""How much worse than with the most steps a figure may be, as a share of it."""
HIGHER_IS_BETTER: Mapping[str, bool] = {"psnr": True, "ssim": True, "mae_hu": False, "organ_error_hu": False}
"""The figures of the rule."""
COLUMNS = ("phase", "sampler", "steps", *HIGHER_IS_BETTER, "seconds")

Told = Callable[[str], None]


class StepsTooMany(Exception):
    """A bundle's sampler can take none of the numbers of steps that were asked for."""


@dataclass(frozen=True, slots=True)
class Run:
    """A bundle under one sampler and number of steps, and what was measured of it."""

    engine: Engine
    phase: str
    name: SamplerName
    steps: int
    rows: PhaseRows


def sweep(
    bundles: Sequence[Path],
    cases: Iterable[Case],
    policy: SessionPolicy,
    steps: Sequence[int] = STEPS,
    told: Told = lambda text: None,
) -> dict[str, Any]:
    """{"phases": {phase: {"model_id", "model_digest", "shipped", "samplers": {name: {"rows", "fewest",
    "reference"}}}}, "steps", "tolerance", "cases"}.

    A bundle of a family without a sampler has no phase here. One case is in memory at a time. ``told`` hears
    what is run. Raises StepsTooMany, and what opening and running a bundle raises.
    """
    wanted, count = sorted(set(steps)), 0
    engines = one_a_phase(bundles, policy)
    runs = [run for engine in engines for run in runs_of(engine, wanted)]
    for count, case in enumerate(cases, 1):  # noqa: B007
        for run in runs:
            if run.phase in case.phases:
                told(f"{case.name}, {run.phase}: {run.name}, {run.steps} steps")
                measure_case(run.engine, case, run.rows)
                run.rows.shown.clear()  # pictures, which nobody looks at here
    return {
        "phases": {
            engine.bundle.manifest.phase: _phase(engine, runs)
            for engine in engines
            if engine.bundle.manifest.sampler is not None
        },
        "steps": wanted,
        "tolerance": TOLERANCE,
        "cases": count,
    }


def fitting(spec: SamplerSpec) -> tuple[SamplerName, ...]:
    """The samplers that can run what a bundle's denoiser was trained for."""
    return FITTING[spec.formulation]


def runs_of(engine: Engine, steps: Sequence[int]) -> list[Run]:
    """Every sampler that fits a bundle under every number of steps that it can take; none without one."""
    spec = engine.bundle.manifest.sampler
    if spec is None:
        return []
    possible = [count for count in steps if count <= spec.T]
    if not possible:
        raise StepsTooMany(f"{engine.bundle.manifest.model_id} takes at most {spec.T} steps: give fewer")
    return [_run(engine, spec, name, count) for name in fitting(spec) for count in possible]


def _run(engine: Engine, spec: SamplerSpec, name: SamplerName, steps: int) -> Run:
    sigma = spec.sigma if name == spec.name else 0.0
    changed = spec.model_dump() | {"name": name, "steps": steps, "sigma": sigma}
    other = engine.with_sampler(SamplerSpec.model_validate(changed))
    return Run(other, engine.bundle.manifest.phase, name, steps, PhaseRows(describe(engine)))


def _phase(engine: Engine, runs: Sequence[Run]) -> dict[str, Any]:
    manifest = engine.bundle.manifest
    spec = manifest.sampler
    assert spec is not None
    return {
        "model_id": manifest.model_id,
        "model_digest": engine.bundle.digest,
        "shipped": {"sampler": spec.name, "steps": spec.steps},
        "samplers": {
            name: judged(
                [_row(run.steps, run.rows) for run in runs if (run.phase, run.name) == (manifest.phase, name)]
            )
            for name in fitting(spec)
        },
    }


def _row(steps: int, rows: PhaseRows) -> dict[str, Any]:
    """Means over the cases that have the phase."""
    found = summary(rows)
    organs = [organ["model_mae_hu"] for organ in found["organs"].values()]
    return {
        "steps": steps,
        "psnr": found["model"]["psnr"],
        "ssim": found["model"]["ssim"],
        "mae_hu": found["model"]["mae_hu"],
        "organ_error_hu": float(np.mean(organs)) if organs else 0.0,
        "organs": {name: organ["model_mae_hu"] for name, organ in found["organs"].items()},
        "seconds": found["seconds"],
    }


def judged(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows, the steps of the reference (the most) and the fewest that are as good by the rule."""
    reference = rows[-1]
    enough = [row["steps"] for row in rows if is_as_good(row, reference)]
    return {"rows": list(rows), "reference": reference["steps"], "fewest": enough[0]}


def is_as_good(row: Mapping[str, float], reference: Mapping[str, float]) -> bool:
    """Whether no figure of the rule is more than :data:`TOLERANCE` worse than the reference's."""
    return all(
        row[name] >= reference[name] * (1 - TOLERANCE)
        if higher
        else row[name] <= reference[name] * (1 + TOLERANCE)
        for name, higher in HIGHER_IS_BETTER.items()
    )


def table(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A line for each phase, sampler and number of steps, under :data:`COLUMNS`; * marks the fewest."""
    return [
        (
            phase,
            name,
            f"{row['steps']}{' *' if row['steps'] == found['fewest'] else ''}",
            f"{row['psnr']:.3f}",
            f"{row['ssim']:.4f}",
            f"{row['mae_hu']:.3f}",
            f"{row['organ_error_hu']:.2f}",
            f"{row['seconds']:.1f}",
        )
        for phase, of_phase in result["phases"].items()
        for name, found in of_phase["samplers"].items()
        for row in found["rows"]
    ]


def write(folder: Path, result: Mapping[str, Any]) -> None:
    """sweep.json, sweep.md and sweep.png in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    lines = [COLUMNS, ("---",) * len(COLUMNS), *table(result)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    (folder / "sweep.md").write_text(f"{text}\n\n{RULE}\n", encoding="utf-8")
    plots.over_steps(result).savefig(folder / "sweep.png", dpi=plots.DPI, metadata={"Software": None})


RULE = (
    "\\* the fewest steps at which PSNR, SSIM, mean absolute error and organ error are at most "
    f"{TOLERANCE:.0%} worse than with the most."
)
