"""Phantoms as cases, as ``s2node convert`` leaves patients: one more source for ``s2node train prepare``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine.cases import PHASES, CaseRow, add_case, list_case
from engine.phantom import PhantomOptions, make_phantom
from engine.volume import Volume


def draw_cases(
    out: Path,
    seeds: range,
    options: PhantomOptions,
    progress: Callable[[float], None] = lambda fraction: None,
) -> None:
    """Three cases a seed, one patient a seed; ``options.misregistration_mm`` moves the enhanced phases."""
    for number, seed in enumerate(seeds):
        phantom = make_phantom(seed, options)
        for phase in PHASES:
            case = add_case(out, Volume(phantom.phases[phase], phantom.geometry)).name
            list_case(out, CaseRow(case, f"phantom-{seed}", "drawn", phase, "drawn"))
        progress((number + 1) / len(seeds))
