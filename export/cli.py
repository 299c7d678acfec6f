"""``s2node export CHECKPOINT OUT``; loaded only when named."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engine.errors import BundleInvalid
from export.bundle import BundleExists, export_bundle
from export.parity import ParityExceeded
from train.checkpoint import CheckpointUnusable
from train.cli import EXIT_CONFIG, EXIT_FAILED, phase_of
from train.config import RunConfig, TrainConfigInvalid, load_config


class Naming(RunConfig, extra="ignore"):
    """What is read of a configuration here, whichever method it is of."""


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Folder or checkpoint.pt of a finished run.")],
    out: Annotated[Path, typer.Argument(help="Folder to make; must not exist.")],
    config: Annotated[
        Path | None, typer.Option("--config", help="Take [bundle] from this file, not from the checkpoint.")
    ] = None,
    phase: Annotated[
        str | None,
        typer.Option("--phase", help="arterial or venous: which of the two that the model serves."),
    ] = None,
    full_weights: Annotated[
        bool, typer.Option("--full-weights", help="Store weights as fp32: twice the size.")
    ] = False,
    fp16: Annotated[
        bool,
        typer.Option("--fp16", help="Add every graph in half precision, which a GPU then runs."),
    ] = False,
    cases: Annotated[
        int, typer.Option("--cases", min=0, help="Measure on this many phantoms; goes into the metrics.")
    ] = 0,
    phantom_seed: Annotated[int, typer.Option("--phantom-seed", min=0, help="First seed of --cases.")] = 9000,
    replace: Annotated[bool, typer.Option("--replace", help="Put the bundle in the place of --out.")] = False,
) -> None:
    """Turn a finished model's checkpoint into a verified bundle; over tolerance nothing is written."""
    try:
        manifest = export_bundle(
            checkpoint,
            out,
            phase=phase_of(checkpoint, phase),
            settings=None if config is None else load_config(config, Naming).bundle,
            half_weights=not full_weights,
            fp16=fp16,
            evaluation_seeds=tuple(range(phantom_seed, phantom_seed + cases)),
            replace=replace,
        )
    except TrainConfigInvalid as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_CONFIG) from None
    except (CheckpointUnusable, ParityExceeded, BundleExists, BundleInvalid) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_FAILED) from None
    whole = manifest.parity["whole"]
    typer.echo(f"{out}: {manifest.model_id}, parity {whole['hu_mean']:.3g} HU mean")  # type: ignore[index,call-overload]


if __name__ == "__main__":
    typer.run(export)
