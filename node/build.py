"""Files of one series in, finished files out: the one place used by the worker and by `translate`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from config.intake import IntakeSettings
from engine.body import find_body
from engine.pipeline import Engine
from engine.session import Encoded
from engine.synthesis import Synthesis
from node.intake import examine_headers, examine_series
from node.orientation import axes_to_flip, flipped
from node.outputs import OUTPUTS, OutputContext
from node.outputs.encoding import Instance
from node.series import SourceSeries, read_headers, read_series

Progress = Callable[[float], None]

Made = Callable[[str, str, Instance], None]
"""Told the phase, the kind and every instance as it is made, in their order, from another thread."""

READ_SHARE = 0.05
"""Part of the progress bar that belongs to reading; the models have the rest."""


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
) -> tuple[Synthesis, ...]:
    """Read, examine, synthesize every phase and make every kind of output of it, while the next is at work.

    Pure but for reading ``paths`` and telling ``made``: equal arguments give equal bytes. Nobody but ``made``
    gets the outputs, so that no more of them are in memory than it keeps. ``progress`` is told fractions from
    0 to 1. Raises SeriesRejected, or what the engine raises, or, at the next step, what ``made`` raised.
    """
    series = read_examined(paths, rules)
    axes = axes_to_flip(series.volume.geometry)  # models know upright patients
    upright = flipped(series.volume, axes)
    body = find_body(upright)
    progress(READ_SHARE)
    share = (1 - READ_SHARE) / max(1, len(engines))
    asked = Counter(engine.encoding for engine in engines.values())
    encoded: dict[Hashable, Encoded] = {encoding: {} for encoding, times in asked.items() if times > 1}
    syntheses: list[Synthesis] = []
    outputs: list[Future[None]] = []
    with _behind() as behind:
        for number, engine in enumerate(engines.values()):
            part = _part_of(_hearing(outputs, progress), READ_SHARE + number * share, share)
            kept = encoded.get(engine.encoding)
            synthesis = engine.synthesize(upright, seed=seed, progress=part, body=body, encoded=kept)
            turned_back = series.volume.with_array(flipped(synthesis.volume, axes).hu)
            synthesis = replace(synthesis, volume=turned_back)
            syntheses.append(synthesis)
            outputs += [behind.submit(outputs_of, series, synthesis, context, kind, made) for kind in kinds]
        for each in outputs:
            each.result()
    progress(1.0)
    return tuple(syntheses)


def read_examined(paths: Sequence[Path], rules: IntakeSettings) -> SourceSeries:
    """The series of ``paths`` if the node may translate it; raises SeriesRejected with a stable code."""
    headers = read_headers(paths, rules.limits)
    examine_headers(headers, rules)
    series = read_series(paths, rules.limits, headers)
    return replace(series, findings=(*series.findings, *examine_series(series, rules)))


def outputs_of(
    series: SourceSeries, synthesis: Synthesis, context: OutputContext, kind: str, made: Made
) -> None:
    """Tell ``made`` every file of one kind of output of a synthesis, one after the other."""
    for ds in OUTPUTS[kind](series, synthesis, context):
        made(synthesis.phase, kind, Instance.of(ds))


@contextmanager
def _behind() -> Iterator[ThreadPoolExecutor]:
    """A thread for the outputs; where the block fails, those it has not begun are not made."""
    pool = ThreadPoolExecutor(1, "outputs")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _hearing(outputs: Sequence[Future[None]], progress: Progress) -> Progress:
    """``progress`` that raises what an output raised meanwhile: nothing more needs to be computed then."""

    def told(fraction: float) -> None:
        for each in outputs:
            if each.done():
                each.result()
        progress(fraction)

    return told


def _part_of(progress: Progress, start: float, share: float) -> Progress:
    return lambda fraction: progress(start + share * fraction)
