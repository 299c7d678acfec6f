"""`s2node verify`: whether files were made by this product, from which model and which source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from node.commands.exits import FAILED
from node.commands.options import AsJson
from node.commands.screen import say, show_rows
from node.scu import dicom_files
from node.verify import Verification
from node.verify import verify as judge


def verify(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", exists=True, help="Files, or folders of files.")
    ],
    as_json: AsJson = False,
) -> None:
    """Say whether files were made by this product, and from what.

    Exit 0 if every file was and none has a problem, 1 if not.
    """
    verdicts = [judge(path) for given in files for path in dicom_files(given)]
    if as_json:
        show_rows([verdict.row() for verdict in verdicts])
    else:
        for verdict in verdicts:
            say(_line(verdict))
    if not verdicts or not all(verdict.ours and not verdict.problems for verdict in verdicts):
        raise typer.Exit(FAILED)


def _line(verdict: Verification) -> str:
    made = (
        f"{verdict.kind} {verdict.phase} by {verdict.model_id} from series {verdict.source_series_uid}"
        if verdict.ours
        else "not made by this product"
    )
    problems = "".join(f"\n  ! {problem}" for problem in verdict.problems)
    return f"{verdict.path}: {made}{problems}"
