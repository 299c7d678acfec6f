"""`s2node bench receive`, and `s2node bench engine` where the extra `train` is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from node.bench import ROUNDS, SLICES, bench_receive
from node.cli import BenchCommands
from node.commands.options import AsJson
from node.commands.screen import say, show_json

app = typer.Typer(
    add_completion=False,
    cls=BenchCommands,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure this machine.",
)


@app.callback()
def _root() -> None:
    """Measure this machine."""


@app.command()
def receive(
    folder: Annotated[Path, typer.Option("--folder", help="Folder on the disk that is meant.")] = Path(
        "build"
    ),
    slices: Annotated[int, typer.Option("--slices", min=1, help="Slices of one round.")] = SLICES,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds; medians are shown.")] = ROUNDS,
    as_json: AsJson = False,
) -> None:
    """Measure how fast instances are received durably, beside the same listener throwing them away."""
    result = bench_receive(folder, slices, rounds)
    if as_json:
        show_json(result)
        return
    say(f"receive: {_rates(result)}, ratio {result['ratio']}")
    say(f"four associations in total: {_rates(cast(dict[str, object], result['four_associations']))}")
    say(f"machine: {result['machine']}")


def _rates(result: dict[str, object]) -> str:
    durable, thrown = result["instances_per_second"], result["throwaway_instances_per_second"]
    return f"{durable} instances/s durable, {thrown} thrown away"
