"""What people and scripts see of a command: tables, progress, JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

out = Console(highlight=False, soft_wrap=True)
"""Standard output: results."""
err = Console(stderr=True, highlight=False, soft_wrap=True)
"""Standard error: progress and what went wrong."""


def say(text: str) -> None:
    """One line to standard output, as it is."""
    typer.echo(text)


def show_json(value: object) -> None:
    """One JSON document to standard output."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def show_rows(rows: Sequence[Mapping[str, object]]) -> None:
    """A JSON list with one object a row, one row a line."""
    lines = [json.dumps(row, ensure_ascii=False, default=str) for row in rows]
    typer.echo("[" + ",\n ".join(lines) + "]")


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
    """A table for people; cells are written as they are."""
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    Console(highlight=False, markup=False).print(table)


@contextmanager
def progress_bar(task: str, total: float | None = None) -> Iterator[Callable[[float], None]]:
    """A progress bar on standard error; the function it gives takes how much of ``total`` is done."""
    counted = MofNCompleteColumn() if total != 1 else TextColumn("{task.percentage:>3.0f} %")
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), counted, TimeElapsedColumn()]
    with Progress(*columns, console=err, transient=False) as progress:
        bar = progress.add_task(task, total=total)
        yield lambda done: progress.update(bar, completed=done)


def age(since: float, now: float | None = None) -> str:
    """How long ago, in one unit: ``12 s``, ``5 min``, ``3 h``, ``9 d``."""
    seconds = max(0.0, (time.time() if now is None else now) - since)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


def moment(at: float) -> str:
    """A point in time in UTC, to the second."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
