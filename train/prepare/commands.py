"""``s2node train prepare``, ``paint`` and ``phantoms``: cases become pairs; two more sources of cases."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from engine.cases import NAME, CasesUnusable
from engine.errors import VolumeUnsupported
from train.config import DataConfig, TrainConfigInvalid
from train.real import PairsUnusable
from train.split import PatientOnTwoSides

EXIT_FAILED, EXIT_NOTHING, EXIT_CONFIG = 1, 3, 78

CasesOut = Annotated[Path, typer.Argument(metavar="OUT", help="Folder of cases to add to.")]
FirstSeed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the first draw.")]


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise typer.BadParameter(f"{value!r} is not 1 to 64 letters, digits, _ or -")
    return value


def prepare(
    cases: Annotated[
        Path, typer.Argument(metavar="CASES", exists=True, file_okay=False, help="What s2node convert wrote.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help='What [data] source = "folder" reads.')],
    config: Annotated[
        Path | None, typer.Option("--config", help="Settings, TOML; all have defaults.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of words.")] = False,
) -> None:
    """Pair, register, check and split the cases of a folder for training.

    Writes OUT/pairs.tsv, OUT/refused.tsv (who, which case, why) and OUT/qc.html (pictures of every pair: look
    at them). Cases may be added and the command repeated: nobody changes sides, nothing is made again.
    A column labels in cases.tsv may name organ labels of an NCCT (NIfTI, on its own grid): they go along.
    Exit 0 if there is a pair to train on, 3 if none.
    """
    from train.prepare.config import load_prepare_config  # noqa: PLC0415
    from train.prepare.run import prepare as run  # noqa: PLC0415

    with _plain_errors(), _progress() as told:
        outcome = run(cases, out, load_prepare_config(config), told)
    sides = dict(Counter(pair["split"] for pair in outcome.pairs))
    codes = dict(Counter(row.code for row in outcome.refused))
    if as_json:
        typer.echo(json.dumps({"pairs": sides, "refused": codes, "advice": outcome.advice}))
    else:
        typer.echo(f"studies to train on: {_counts(sides)}; cases in no pair: {_counts(codes)}")
        typer.echo(f"look at {out / 'qc.html'}")
        if outcome.advice:
            typer.echo(outcome.advice)
    if not outcome.pairs:
        raise typer.Exit(EXIT_NOTHING)


def paint(
    ncct: Annotated[Path, typer.Argument(metavar="NCCT", help="Unenhanced scan: a NIfTI file.")],
    labels: Annotated[
        Path, typer.Argument(metavar="LABELS", help="Organ labels on the scan's grid: a NIfTI file.")
    ],
    out: CasesOut,
    patient: Annotated[
        str,
        typer.Option("--patient", callback=_name, help="Pseudonym in cases.tsv: letters, digits, _ and -."),
    ],
    labels_are: Annotated[
        str,
        typer.Option("--labels-are", help="totalsegmentator, phantom, or a file of number, tab, tissue."),
    ] = "totalsegmentator",
    draws: Annotated[int, typer.Option("--draws", min=1, help="Enhancements to draw.")] = 4,
    seed: FirstSeed = 0,
) -> None:
    """Put drawn enhancement on a real unenhanced scan by organ label, as cases of one patient.

    Only labelled organs change, by the phantom's table of enhancement; noise and texture stay. What a
    model learns of enhancement from it is that table.
    """
    from train.painting import paint_cases, read_labels, read_scheme  # noqa: PLC0415
    from train.real import read_upright  # noqa: PLC0415

    with _plain_errors(), _progress() as told:
        volume = read_upright(ncct)
        count = paint_cases(
            volume, read_labels(labels, volume.geometry), read_scheme(labels_are), out, patient,
            range(seed, seed + draws), lambda fraction: told("painting", fraction),
        )  # fmt: skip
    typer.echo(f"{draws} draws on {count} labelled voxels in {out}")


def phantoms(
    out: CasesOut,
    count: Annotated[int, typer.Option("--count", min=1, help="How many patients.")] = 4,
    seed: FirstSeed = 0,
    misregistration_mm: Annotated[
        float, typer.Option("--misregistration-mm", min=0, help="Longest breath between phases; 0 is none.")
    ] = 0.0,
    shape: Annotated[
        tuple[int, int, int], typer.Option("--shape", help="Slices, rows, columns.")
    ] = DataConfig().phantom_shape,
    spacing_mm: Annotated[
        tuple[float, float, float], typer.Option("--spacing-mm", help="Of slices, rows, columns.")
    ] = DataConfig().spacing_mm,
) -> None:
    """Draw phantoms as cases, with or without motion between phases: to try prepare without data."""
    from engine.phantom import PhantomOptions  # noqa: PLC0415
    from train.prepare.drawn import draw_cases  # noqa: PLC0415

    try:
        options = PhantomOptions(shape, spacing_mm, misregistration_mm=misregistration_mm)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    with _plain_errors(), _progress() as told:
        draw_cases(out, range(seed, seed + count), options, lambda fraction: told("drawing", fraction))
    typer.echo(f"{count} phantoms in {out}")


def _counts(numbers: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(numbers.items())) or "none"


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """A bar on standard error with the time left; takes what is being done and the share that is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda what, done: bar.update(task, description=what, completed=done)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Ends the command with a message instead of a traceback for what the user can mend."""
    try:
        yield
    except TrainConfigInvalid as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_CONFIG) from None
    except (CasesUnusable, PairsUnusable, PatientOnTwoSides, VolumeUnsupported) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_FAILED) from None
