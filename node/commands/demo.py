"""`s2node demo`: the whole journey on this machine, shown as it goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from node.commands.exits import FAILED, REJECTED
from node.commands.screen import err, say, show_table
from node.demo import DemoPlan, DemoResult, Watch, run_demo
from node.states import State


def demo(
    folder: Annotated[
        Path | None,
        typer.Option("--input", exists=True, file_okay=False, help="Folder of DICOM files to send."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for everything the demo writes.")] = Path(
        "build/demo"
    ),
    models: Annotated[
        list[Path] | None,
        typer.Option(
            "--model", exists=True, help="Bundle to use for its phase, not the shipped one; repeatable."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the phantom.")] = 9100,
    limit_s: Annotated[
        float, typer.Option("--limit", min=1, help="Seconds to wait for the series.")
    ] = 1800.0,
) -> None:
    """A study goes in by C-STORE, two synthetic series come back.

    Starts an archive and a node on this machine, sends a phantom study (or the folder given with --input) to
    the node, waits until the synthetic series are back in the archive under the same study, checks them and
    writes a picture. Exit 0 only if they really came back.
    """
    say(f"sending {folder or f'a phantom of seed {seed}'} to a node on this machine")
    plan = DemoPlan(out, folder, seed=seed, models=tuple(models or ()), limit_s=limit_s)
    with _bars() as watch:
        result = run_demo(plan, watch)
    _report(result, out)
    if result.in_state(State.PARKED):
        raise typer.Exit(FAILED)
    if not result.returned:
        say(result.in_state(State.REJECTED)[0].code or "")
        raise typer.Exit(REJECTED)


@contextmanager
def _bars() -> Iterator[Watch]:
    """One bar for what is sent and one for each series; a line for each change where there is no terminal."""
    with Progress(
        TextColumn("{task.description:<28}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(), console=err,
    ) as progress:  # fmt: skip
        bars: dict[str, TaskID] = {}
        last: dict[str, str] = {}

        def watch(what: str, share: float) -> None:
            key = " ".join(what.split()[:2]) if what.startswith("series") else what
            if key not in bars:
                bars[key] = progress.add_task(what, total=1.0)
            if not err.is_terminal and last.get(key) != what:
                err.print(f"{time.strftime('%H:%M:%S')} {what}")
            last[key] = what
            progress.update(bars[key], description=what, completed=share)

        yield watch


def _report(result: DemoResult, out: Path) -> None:
    for job in result.jobs:
        if job.state in {State.REJECTED, State.PARKED}:
            say(f"series {job.id}: {job.state} {job.code}: {job.reason}")
    if result.organs:
        show_table(
            ("phase", "organ", "source HU", "synthetic HU", "true HU"),
            [
                (
                    row.phase,
                    row.organ,
                    *(f"{hu:.0f}" for hu in (row.source_hu, row.synthetic_hu, row.true_hu)),
                )
                for row in result.organs
            ],
        )
    for back in result.returned:
        say(f"{back.phase} {back.kind}: {len(back.paths)} instances back in the archive, {back.folder}")
    if result.returned:
        say(f"committed by the archive: the results of {len(result.in_state(State.COMMITTED))} series")
        say(f"picture: {result.overview}")
        say(f"everything: {out} (archive/ what came back, node/ the node's own folder)")
        say(f"{result.seconds['journey']:.0f} s from the first C-STORE to the archive")
