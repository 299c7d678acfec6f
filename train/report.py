"""An evaluation as tables for a terminal and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from engine.phantom import PhantomOptions, make_phantom
from engine.pipeline import open_engine
from engine.session import SessionPolicy
from engine.volume import Float32, Volume

METRICS = ("psnr", "ssim", "nmse", "mae_hu", "psnr_bundle_window", "ssim_bundle_window", "nmse_bundle_window")
SHOWN_HU = (-160.0, 340.0)
DIFFERENCE_HU = 150.0


def show_tables(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Tables of metrics, organs, controls and what a release has to reach, for every phase."""
    console = console or Console()
    for phase, row in result["phases"].items():
        console.print(
            f"[bold]{phase}[/bold] {row['model_id']}, {row['cases']} cases, {row['seconds']:.1f} s each"
        )
        console.print(table_of(("metric", "source as is", "oracle", "model"), _metric_rows(row)))
        console.print(
            table_of(
                ("organ", "source HU", "model HU", "true HU", "error as is", "oracle's", "error"),
                _organ_rows(row),
            )
        )
        console.print(
            table_of(("control", "mean change HU", "mean |change| HU", "true change HU"), _control_rows(row))
        )
        if row.get("bars"):
            console.print(table_of(("asked of a release", "measured", "reached"), bar_rows(row["bars"])))


def write_picture(file: Path, bundles: Sequence[Path], seed: int, policy: SessionPolicy) -> None:
    """Middle slices of one phantom: source, synthesis, truth, synthesis − truth, a row a bundle."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    phantom = make_phantom(seed, PhantomOptions())
    figure = Figure(figsize=(16, 4 * len(bundles)), layout="constrained")
    axes = figure.subplots(len(bundles), 4, squeeze=False)
    for row, folder in zip(axes, bundles, strict=True):
        engine_ = open_engine(folder, policy)
        phase = engine_.bundle.manifest.phase
        source, truth = phantom.phases["ncct"], phantom.phases[phase]
        made = engine_.synthesize(Volume(source, phantom.geometry), seed=seed).volume.hu
        for axis, (title, volume) in zip(row, _panels(phase, source, made, truth), strict=True):
            _draw(axis, title, volume[len(volume) // 2])
    figure.savefig(file, dpi=80)


def _panels(phase: str, source: Float32, made: Float32, truth: Float32) -> list[tuple[str, Float32]]:
    return [
        ("source", source),
        (f"synthetic {phase}", made),
        (f"true {phase}", truth),
        ("error", made - truth),
    ]


def _draw(axis: Any, title: str, image: Float32) -> None:
    low, high = (-DIFFERENCE_HU, DIFFERENCE_HU) if title == "error" else SHOWN_HU
    shown = axis.imshow(np.asarray(image), cmap="RdBu_r" if title == "error" else "gray", vmin=low, vmax=high)
    axis.set_title(title)
    axis.set_axis_off()
    axis.figure.colorbar(shown, ax=axis, label="HU", shrink=0.7)


def _metric_rows(row: Mapping[str, Any]) -> list[tuple[str, ...]]:
    who = (row["identity"], row.get("oracle", {}), row["model"])
    return [(m, *(f"{values[m]:.4g}" if m in values else "" for values in who)) for m in METRICS]


def _organ_rows(row: Mapping[str, Any]) -> list[tuple[str, ...]]:
    keys = ("source_hu", "model_hu", "true_hu", "identity_mae_hu", "oracle_mae_hu", "model_mae_hu")
    return [
        (organ, *(f"{values[k]:.1f}" if k in values else "" for k in keys))
        for organ, values in row["organs"].items()
    ]


def _control_rows(row: Mapping[str, Any]) -> list[tuple[str, ...]]:
    keys = ("mean_change_hu", "mean_abs_change_hu", "true_change_hu")
    return [(name, *(f"{values[k]:.1f}" for k in keys)) for name, values in row["controls"].items()]


def bar_rows(bars: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """What is asked, what was measured, yes or no."""
    return [(bar["aim"], bar["measured"], "yes" if bar["reached"] else "no") for bar in bars]


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table for a terminal, every column but the first to the right."""
    table = Table(*head)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    return table
