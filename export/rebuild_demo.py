"""Train and export the shipped bundles anew: ``python -m export.rebuild_demo``, under two hours on two cores.

One process a phase runs the three stages and the export of ``config/train/demo.toml``, with one thread each.
What is finished is kept, so that an interrupted rebuild goes on where it was.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from train.checkpoint import NAME
from train.evaluate import SHIPPED

PHASES = ("arterial", "venous")
CONFIG = Path(__file__).parents[1] / "config" / "train" / "demo.toml"
METRIC_CASES = 4


def commands(phase: str, runs: Path, bundles: Path, config: Path) -> list[list[str]]:
    """The commands that make the bundle of one phase, in order."""
    one, two, three = (runs / f"{phase}-{stage}" for stage in (1, 2, 3))
    cache = runs / "cache"
    shared = ["--config", str(config), "--phase", phase, "--cache", str(cache)]
    train = [sys.executable, "-m", "train.cli"]
    measured = ["--config", str(config), "--cases", str(METRIC_CASES), "--replace"]
    return [
        [*train, "autoencoder", *shared, "--out", str(one), *_resume(one)],
        [*train, "diffusion", *shared, "--autoencoder", str(one), "--out", str(two), *_resume(two)],
        [*train, "joint", *shared, "--diffusion", str(two), "--out", str(three), *_resume(three)],
        [sys.executable, "-m", "export.cli", str(three), str(bundles / phase), *measured],
    ]


def rebuild_phase(phase: str, runs: Path, bundles: Path, config: Path) -> int:
    """Run the commands of one phase; the first exit status that is not 0, or 0."""
    for command in commands(phase, runs, bundles, config):
        status = subprocess.run(command, check=False).returncode
        if status:
            return status
    return 0


def main(
    runs: Annotated[Path, typer.Option("--runs", help="Where checkpoints and logs go.")] = Path("runs/demo"),
    bundles: Annotated[Path, typer.Option("--bundles", help="Where the bundles go.")] = SHIPPED,
    config: Annotated[Path, typer.Option("--config", help="Training configuration.")] = CONFIG,
    phase: Annotated[str | None, typer.Option("--phase", help="Only this one, in this process.")] = None,
) -> None:
    """Make the bundles of both phases, side by side."""
    if phase:
        raise typer.Exit(rebuild_phase(phase, runs, bundles, config))
    options = ["--runs", str(runs), "--bundles", str(bundles), "--config", str(config)]
    started = [
        subprocess.Popen([sys.executable, "-m", "export.rebuild_demo", "--phase", name, *options])
        for name in PHASES
    ]
    raise typer.Exit(max(process.wait() for process in started))


def _resume(run: Path) -> list[str]:
    return ["--resume"] if (run / NAME).exists() else []


if __name__ == "__main__":
    typer.run(main)
