"""`s2node translate`: a folder in, a folder out, no network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from node import translate as translation
from node.commands.exits import REJECTED
from node.commands.options import AsJson, ConfigFile, settings_of
from node.commands.screen import err, progress_bar, say, show_json, show_table
from node.states import State
from node.translate import SeriesResult


def translate(
    in_dir: Annotated[
        Path, typer.Argument(metavar="IN", exists=True, file_okay=False, help="Folder of DICOM files.")
    ],
    out_dir: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder to write to: OUT/SERIES/PHASE/0001.dcm …")
    ],
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Translate the series of a folder, without a network.

    One row a series found, and one for each file that is no DICOM image. Exit 0 if at least one series was
    translated, 3 if all were rejected (the last line is the code), 1 if any is parked: a person is needed.
    """
    settings = settings_of(config)
    with progress_bar("translating", total=1) as told:
        results = translation.translate(
            in_dir, out_dir, settings, lambda number, count, fraction: told((number + fraction) / count)
        )
    if as_json:
        show_json({"series": [result.as_json() for result in results]})
    else:
        show_table(("source", "state", "code", "reason or folder"), [_cells(result) for result in results])
    code = translation.exit_code(results)
    if code == REJECTED:
        (err.print if as_json else say)(codes_of(results))
    if code:
        raise typer.Exit(code)


def codes_of(results: list[SeriesResult]) -> str:
    """The last line of a rejection: the code of the series, or each code once where there are several.

    Files that are no DICOM images count only where there is nothing else.
    """
    series = [result for result in results if result.series_instance_uid] or results
    return " ".join(dict.fromkeys(result.code or "" for result in series)) or "NOT-DICOM"


def _cells(result: SeriesResult) -> tuple[object, ...]:
    folders = "\n".join(f"{out.phase}: {out.folder} ({out.instances} instances)" for out in result.outputs)
    return (
        result.source,
        result.state,
        result.code,
        folders if result.state is State.BUILT else result.reason,
    )
