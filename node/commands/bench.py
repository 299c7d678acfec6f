"""`s2node bench receive`, `job` and `journey`, and `engine` where the extra `train` is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from node import bench_job
from node.bench import ROUNDS, SLICES, bench_receive
from node.cli import BenchCommands
from node.commands.options import AsJson
from node.commands.screen import say, show_json
from node.models import SHIPPED

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


Folder = Annotated[Path, typer.Option("--folder", help="Folder on the disk that is meant.")]
BUILD = Path("build")


@app.command()
def receive(
    folder: Folder = BUILD,
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


@app.command()
def job(
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Bundle folder. Default: the first that is shipped.")
    ] = None,
    slices: Annotated[
        list[int] | None,
        typer.Option(
            "--slices", min=8, help="Slices of a series; may be given again. Default: 64, 200, 400."
        ),
    ] = None,
    side: Annotated[
        int, typer.Option("--side", min=64, help="Rows and columns of a slice.")
    ] = bench_job.SIDE,
    threads: Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0 is every core.")] = 0,
    folder: Folder = BUILD,
    as_json: AsJson = False,
) -> None:
    """Measure series from files to files, one phase: seconds and peak memory, stage by stage."""
    chosen = bundle or min(SHIPPED.iterdir())
    result = bench_job.bench_job(
        chosen, slices or bench_job.SLICES, side=side, threads=threads, folder=folder
    )
    if as_json:
        show_json(result)
        return
    for row in result["jobs"]:
        words = ", ".join(f"{stage} {seconds} s" for stage, seconds in row["stages"].items())
        memory = f"{row['peak_bytes'] / 1e9:.2f} GB at most"
        say(f"{row['slices']} slices on {row['provider']}: {row['seconds']} s, {memory} ({words})")
        say(f"outside the graphs: {row['outside_s']} s, {row['outside_share']:.1%}")
    say(f"machine: {result['machine']}, {result['threads']} threads")


@app.command()
def journey(
    slices: Annotated[
        int, typer.Option("--slices", min=8, help="Slices of the series.")
    ] = bench_job.JOURNEY_SLICES,
    side: Annotated[
        int, typer.Option("--side", min=64, help="Rows and columns of a slice.")
    ] = bench_job.SIDE,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            "--bundle", help="Bundle to use for its phase; may be given again. Default: the shipped."
        ),
    ] = None,
    phase: Annotated[
        list[str] | None,
        typer.Option("--phase", help="Phase to make; may be given again. Default: every phase."),
    ] = None,
    folder: Folder = BUILD,
    as_json: AsJson = False,
) -> None:
    """Measure a node from the last C-STORE to the last slice in an archive, all on this machine."""
    result = bench_job.bench_journey(slices, side=side, phases=phase or (), models=model or (), folder=folder)
    if as_json:
        show_json(result)
        return
    say(f"{result['instances_back']} slices of {result['slices']} back after {result['seconds']} s")
    say(f"of these {result['quiet_s']} s quiet time, {result['graphs_s']} s graphs, own: {result['own_s']} s")
    say(f"machine: {result['machine']}")
