"""``s2node train refresh``."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from engine.errors import BundleInvalid, ProviderMissing
from engine.session import SessionPolicy
from train.checkpoint import CheckpointUnusable
from train.config import TrainConfigInvalid
from train.real import PairsUnusable

EXIT_FAILED, EXIT_CONFIG = 1, 78


def refresh(
    cases: Annotated[
        Path, typer.Option("--cases", help="Folder that `s2node train prepare` wrote: pairs.tsv and volumes.")
    ],
    bundle: Annotated[Path, typer.Option("--from", help="Folder of the bundle to go on from.")],
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            "--checkpoint",
            help="The checkpoint the bundle was exported from, or a folder to look for it in; may be given"
            " again. Default: runs. Where it is not found the weights in the bundle's graphs go on.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the refresh.")] = Path("runs/refresh"),
    cache: Annotated[
        Path, typer.Option("--cache", help="Where prepared cases are kept between runs.")
    ] = Path("runs/cache"),
    minutes: Annotated[float, typer.Option("--minutes", min=0.01, help="How long to train at most.")] = 60.0,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="And at most so many steps. Default: the model's own."),
    ] = None,
    rate: Annotated[
        float, typer.Option("--rate", min=1e-6, max=10, help="Share of the rates the model was trained with.")
    ] = 0.1,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="TOML with keys to change in the model's own training configuration."),
    ] = None,
    provider: Annotated[
        str, typer.Option("--provider", help="For measuring: auto, cuda, tensorrt, openvino or cpu.")
    ] = "auto",
    threads: Annotated[
        int, typer.Option("--threads", min=0, help="CPU threads for measuring; 0 is every core.")
    ] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the refresh in --out.")] = False,
    activate: Annotated[
        bool,
        typer.Option(
            "--activate",
            help="Have the node use the new bundle if it was accepted and at least one organ was judged.",
        ),
    ] = False,
) -> None:
    """Let a model in use learn on from your own pairs; export it only if no organ got worse.

    Old and new are measured on the test side of the pairs: OUT/comparison.html and OUT/verdict.json. The new
    bundle is OUT/bundle; `s2node models activate OUT/bundle` puts it to use. Exit 1 if it was not accepted,
    or was to be activated and no organ was judged.
    """
    from train.refresh.run import RefreshFailed, Request  # noqa: PLC0415
    from train.refresh.run import refresh as run  # noqa: PLC0415

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    policy = SessionPolicy.model_validate({"provider": provider, "threads": threads})
    request = Request(
        bundle, cases, out, cache, checkpoint or [Path("runs")], minutes, rate, policy, steps, config, resume
    )
    try:
        verdict = run(request)
    except (TrainConfigInvalid, BundleInvalid, ProviderMissing) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_CONFIG) from None
    except (RefreshFailed, CheckpointUnusable, PairsUnusable) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_FAILED) from None
    typer.echo(f"{verdict.sentence} See {out / 'comparison.html'}")
    if not verdict.accepted:
        raise typer.Exit(EXIT_FAILED)
    if activate and verdict.organs:
        words = [sys.executable, "-m", "node.cli", "models", "activate", str(request.new_bundle)]
        raise typer.Exit(subprocess.run(words, check=False).returncode)
    typer.echo(f"s2node models activate {request.new_bundle}")
    if activate:
        raise typer.Exit(EXIT_FAILED)
