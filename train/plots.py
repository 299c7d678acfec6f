"""Pictures of an evaluation: agreement of organs, enhancement over patients, planes with their difference."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from engine.volume import Float32
from train.evaluate import FROM_SLOPE, PhaseRows, Shown
from train.measure import Row
from train.statistics import limits_of_agreement, slope

SHOWN_HU = (-160.0, 340.0)
DIFFERENCE_HU = 150.0
MODEL, ORACLE, GREY = "#1f5fa8", "#d9822b", "#8a8f98"
MINUS = "\N{MINUS SIGN}"
COLUMNS = 4
WRITTEN = {"ivc": "inferior vena cava"}
DPI = 100
WORDS: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def png(figure: Figure) -> str:
    """The figure as a data URI."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def bland_altman(rows: PhaseRows) -> Figure:
    """Error of each organ's mean HU over the mean of both, with bias and limits of agreement."""
    return _grid(rows, _agreement, "mean of truth and synthesis, HU", f"synthesis {MINUS} truth, HU")


def enhancement(rows: PhaseRows) -> Figure:
    """Each patient's enhancement in the synthesis over the true one; the diagonal follows every patient."""
    return _grid(rows, _enhancement, "true enhancement, HU", "enhancement, HU")


def over_steps(result: Mapping[str, Any]) -> Figure:
    """Figures of a sweep (``train.sweep``) over sampler steps: a row a phase, a line a sampler."""
    with _style():
        phases = result["phases"]
        figure = Figure(figsize=(10.5, 2.6 * max(1, len(phases)) + 0.3), layout="constrained")
        axes = figure.subplots(max(1, len(phases)), len(STEP_FIGURES), squeeze=False)
        for line, (phase, found) in zip(axes, phases.items(), strict=False):
            for axis, (key, title) in zip(line, STEP_FIGURES.items(), strict=True):
                for name, sampler in found["samplers"].items():
                    rows = sampler["rows"]
                    axis.plot([r["steps"] for r in rows], [r[key] for r in rows], marker="o", label=name)
                    axis.axvline(sampler["fewest"], color=GREY, linewidth=0.8, linestyle="--")
                axis.set_xscale("log", base=2)
                axis.set_xticks(result["steps"], [str(steps) for steps in result["steps"]])
                axis.set_title(f"{phase}: {title}")
                axis.set_xlabel("sampler steps")
            line[0].legend(frameon=False)
    return figure


STEP_FIGURES: Mapping[str, str] = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "organ_error_hu": "error of organ means, HU",
}
"""Figures of a sweep and what they are called."""


def planes(shown: Shown) -> Figure:
    """Source, synthesis, truth and synthesis − truth of one plane."""
    rows, columns = shown.source.shape
    height = 3.2 * rows * shown.aspect / columns + 0.35
    with _style():
        figure = Figure(figsize=(14.2, height), layout="constrained")
        axes = figure.subplots(1, 4)
        images = [
            draw(axis, title, hu, shown.aspect)
            for axis, (title, hu) in zip(axes, _panels(shown), strict=True)
        ]
        scale(figure, images[2], list(axes[:3]))
        scale(figure, images[3], [axes[3]])
    return figure


def draw(axis: Axes, title: str, hu: Float32, aspect: float = 1.0) -> AxesImage:
    """One plane in grey; what is called a difference in red and blue around 0."""
    is_difference = MINUS in title
    low, high = (-DIFFERENCE_HU, DIFFERENCE_HU) if is_difference else SHOWN_HU
    colours = "RdBu_r" if is_difference else "gray"
    axis.set_title(title)
    axis.set_axis_off()
    return axis.imshow(hu, cmap=colours, vmin=low, vmax=high, aspect=aspect, interpolation="nearest")


def scale(figure: Figure, image: AxesImage, axes: list[Axes]) -> None:
    """One HU scale for planes that share it."""
    bar = figure.colorbar(image, ax=axes, shrink=0.9, pad=0.01, aspect=30, extend="both")
    bar.set_label("HU")


def _panels(shown: Shown) -> list[tuple[str, Float32]]:
    return [
        ("source", shown.source),
        ("synthesis", shown.made),
        ("truth", shown.truth),
        (f"synthesis {MINUS} truth", shown.made - shown.truth),
    ]


def _grid(rows: PhaseRows, paint: Any, x_label: str, y_label: str) -> Figure:
    """One small plot an organ, ``COLUMNS`` in a row."""
    names = list(dict.fromkeys(name for row in rows.model for name in row["organs"]))
    lines = max(1, ceil(len(names) / COLUMNS))
    with _style():
        figure = Figure(figsize=(3.1 * COLUMNS, 2.5 * lines + 0.4), layout="constrained")
        axes = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
        for axis, name in zip(axes, names, strict=False):
            note = paint(axis, _of(rows.model, name), _of(rows.oracle, name))
            axis.set_title(WRITTEN.get(name, name.replace("_", " ")) + str(note or ""))
        for axis in axes[len(names) :]:
            axis.set_axis_off()
        figure.supxlabel(x_label)
        figure.supylabel(y_label)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower right", frameon=False)
    return figure


def _agreement(axis: Axes, model: Sequence[Row], oracle: Sequence[Row]) -> None:
    for rows, colour, name in ((oracle, ORACLE, "oracle"), (model, MODEL, "synthesis")):
        if rows:
            truth, made = _values(rows, "truth"), _values(rows, "made")
            axis.scatter((truth + made) / 2, made - truth, s=13, color=colour, alpha=0.8, label=name)
    error = _values(model, "made") - _values(model, "truth")
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.axhline(error.mean(), color=MODEL, linewidth=1.2, label="bias")
    for limit in limits_of_agreement(error):
        axis.axhline(limit, color=MODEL, linewidth=0.9, linestyle="--", label="limits of agreement (95 %)")
    _one_of_each(axis)


def _enhancement(axis: Axes, model: Sequence[Row], oracle: Sequence[Row]) -> str:
    for rows, colour, name in ((oracle, ORACLE, "oracle"), (model, MODEL, "synthesis")):
        if rows:
            wanted, got = _rises(rows)
            axis.scatter(wanted, got, s=13, color=colour, alpha=0.8, label=name)
    wanted, got = _rises(model)
    ends = np.array([wanted.min(), wanted.max()])
    axis.plot(ends, ends, color=GREY, linewidth=0.8, label="truth")
    if len(wanted) < FROM_SLOPE:
        return ""
    fit = float(slope(wanted, got))
    axis.plot(ends, got.mean() + fit * (ends - wanted.mean()), color=MODEL, linewidth=1.2, label="fit")
    return f", β {fit:.2f}".replace("-", MINUS)


def _rises(rows: Sequence[Row]) -> tuple[Any, Any]:
    source = _values(rows, "source")
    return _values(rows, "truth") - source, _values(rows, "made") - source


def _of(rows: Sequence[Row], organ: str) -> list[Mapping[str, float]]:
    return [row["organs"][organ] for row in rows if organ in row["organs"]]


def _values(rows: Sequence[Mapping[str, float]], key: str) -> Any:
    return np.array([row[key] for row in rows])


def _one_of_each(axis: Axes) -> None:
    """Keep one legend entry a name."""
    seen: set[str] = set()
    for artist in axis.get_children():
        label = str(artist.get_label())
        if label in seen:
            artist.set_label("_nolegend_")
        seen.add(label)


def _style() -> Any:
    return mpl.rc_context(WORDS)
