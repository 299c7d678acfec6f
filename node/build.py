"""Files of one series in, finished files out: the one place used by the worker and by `translate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from config.intake import IntakeSettings
from engine.body import find_body
from engine.pipeline import Engine
from engine.synthesis import Synthesis
from node.intake import examine_headers, examine_series
from node.orientation import axes_to_flip, flipped
from node.outputs import OUTPUTS, OutputContext
from node.outputs.encoding import Instance, OutputSet
from node.series import SourceSeries, read_headers, read_series

Progress = Callable[[float], None]

Made = Callable[[str, str, Instance], None]
"""Told the phase, the kind and every instance as it is made, in their order, from another thread."""

READ_SHARE = 0.05
"""Part of the progress bar that belongs to reading; the models have the rest."""


@dataclass(frozen=True, slots=True)
class Built:
    """A source series, its syntheses, and what they became."""

    series: SourceSeries
    syntheses: tuple[Synthesis, ...]
    outputs: tuple[OutputSet, ...]


def build(
    paths: Sequence[Path],
    *,
    engines: Mapping[str, Engine],
    context: OutputContext,
    rules: IntakeSettings,
    progress: Progress = lambda fraction: None,
    kinds: Sequence[str] = ("ct_series",),
    seed: int = 0,
    made: Made = lambda phase, kind, instance: None,
) -> Built:
    """Read, examine, synthesize every phase and make every kind of output of it, while the next is at work.

    Pure but for reading ``paths`` and telling ``made``: equal arguments give equal bytes. ``progress`` is
    told fractions from 0 to 1. Raises SeriesRejected, or what the engine raises.
    """
    series = read_examined(paths, rules)
    axes = axes_to_flip(series.volume.geometry)  # models know upright patients
    upright = flipped(series.volume, axes)
    body = find_body(upright)
    progress(READ_SHARE)
    share = (1 - READ_SHARE) / max(1, len(engines))
    syntheses: list[Synthesis] = []
    outputs: list[Future[OutputSet]] = []
    with ThreadPoolExecutor(1, "outputs") as behind:
        for number, engine in enumerate(engines.values()):
            part = _part_of(progress, READ_SHARE + number * share, share)
            synthesis = engine.synthesize(upright, seed=seed, progress=part, body=body)
            turned_back = series.volume.with_array(flipped(synthesis.volume, axes).hu)
            synthesis = replace(synthesis, volume=turned_back)
            syntheses.append(synthesis)
            outputs += [behind.submit(outputs_of, series, synthesis, context, kind, made) for kind in kinds]
        finished = tuple(each.result() for each in outputs)
    progress(1.0)
    return Built(series, tuple(syntheses), finished)


def read_examined(paths: Sequence[Path], rules: IntakeSettings) -> SourceSeries:
    """The series of ``paths`` if the node may translate it; raises SeriesRejected with a stable code."""
    headers = read_headers(paths, rules.limits)
    examine_headers(headers, rules)
    series = read_series(paths, rules.limits, headers)
    return replace(series, findings=(*series.findings, *examine_series(series, rules)))


def outputs_of(
    series: SourceSeries, synthesis: Synthesis, context: OutputContext, kind: str, made: Made
) -> OutputSet:
    """One kind of output of a synthesis, as files; ``made`` is told each of them."""
    instances = []
    for ds in OUTPUTS[kind](series, synthesis, context):
        instances.append(Instance.of(ds))
        made(synthesis.phase, kind, instances[-1])
    return OutputSet(synthesis.phase, kind, instances[0].series_instance_uid, tuple(instances))


def _part_of(progress: Progress, start: float, share: float) -> Progress:
    return lambda fraction: progress(start + share * fraction)
