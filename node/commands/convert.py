"""`s2node convert`: DICOM in, volumes for training out, read by the node's own reader."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from node import convert as conversion
from node.commands.exits import REJECTED
from node.commands.options import AsJson, ConfigFile, settings_of
from node.commands.screen import progress_bar, say, show_rows, show_table


def convert(
    in_dir: Annotated[
        Path, typer.Argument(metavar="IN", exists=True, file_okay=False, help="Folder of DICOM files.")
    ],
    out_dir: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder to write to: OUT/case-0001/ct.nii.gz …")
    ],
    examine: Annotated[
        bool, typer.Option("--examine", help="Only series the node would translate: non-contrast CT.")
    ] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Write the series of a folder as NIfTI volumes, for training.

    OUT/cases.tsv lists each case's patient and study, as pseudonyms, and its phase; correct the phase there.
    No name, number, UID or date of a patient goes along; pixels stay pixels. Exit 0 if at least one volume
    was written, 3 if none.
    """
    rules = settings_of(config).intake
    with progress_bar("converting", total=1) as told:
        cases = conversion.convert(
            in_dir,
            out_dir,
            rules,
            lambda number, count, fraction: told((number + fraction) / count),
            examine=examine,
        )
    if as_json:
        show_rows([asdict(case) for case in cases])
    else:
        rows = [(case.source, case.folder, case.phase, case.code, case.reason) for case in cases]
        show_table(("source", "case", "phase", "code", "reason"), rows)
    if not any(case.folder for case in cases):
        if not as_json:
            say(" ".join(dict.fromkeys(case.code or "" for case in cases)))
        raise typer.Exit(REJECTED)
