"""Every real input, what is expected of it and what it ends in: writes the table of docs/real-inputs.md.

    python tests/bench/real_inputs.py [--ct DIR] [--bundle DIR …] [--write]

Expectations are in tests/node/real_inputs.toml; `tests/node/test_real_inputs.py` holds the node to them. An
accepted series is translated with the active models, so the table shows what a user would get.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from config.settings import Settings
from node.build import read_examined
from node.errors import SeriesRejected
from node.models import ModelStore
from node.series import read_series
from node.translate import Group, SeriesResult, find_series, translate

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENT = REPOSITORY / "docs" / "real-inputs.md"
EXPECTED = REPOSITORY / "tests" / "node" / "real_inputs.toml"


def expectations() -> dict[str, dict[str, Any]]:
    """By the first file of each series."""
    return {row["series"]: row for row in tomllib.loads(EXPECTED.read_text(encoding="utf-8"))["input"]}


def reader_verdict(group: Group, settings: Settings) -> str:
    """What the reader alone makes of a series, whatever its tags say."""
    try:
        shape = read_series(group.paths, settings.intake.limits).volume.hu.shape
    except SeriesRejected as rejected:
        return rejected.code
    return "×".join(str(size) for size in shape)


def words(row: SeriesResult) -> str:
    if not row.outputs:
        return f"{row.state} {row.code}"
    return f"{row.state}: " + ", ".join(f"{output.phase} {output.instances}" for output in row.outputs)


def lines(ct: Path, settings: Settings, out: Path) -> list[str]:
    groups, _ = find_series(ct, settings.intake.limits)
    expected = expectations()
    rows = translate(ct, out, settings)
    strays = [row for row in rows if row.code == "NOT-DICOM"]
    judged = [row for row in rows if row.code != "NOT-DICOM"]
    table = []
    for group, row in zip(groups, judged, strict=True):
        first = str(group.paths[0].relative_to(ct))
        wanted = expected.get(first, {})
        table.append(
            f"| {first} | {len(group.paths)} | {wanted.get('about', '')} "
            f"| {wanted.get('code') or 'translated'} | {words(row)} "
            f"| {wanted.get('reader', '')} | {reader_verdict(group, settings)} |"
        )
    others = sorted({Path(row.source).suffix or "none" for row in strays})
    table.append(
        f"| {len(strays)} other files ({', '.join(others)}) | {len(strays)} | notes and NIfTI volumes "
        f"| NOT-DICOM | {len(strays)} rows REJECTED NOT-DICOM | | |"
    )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("S2NODE_TEST_CT", REPOSITORY.parent / "shared" / "ct")
    parser.add_argument("--ct", type=Path, default=Path(default))
    parser.add_argument(
        "--bundle", type=Path, action="append", default=[], help="in place of the shipped ones"
    )
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--expect", action="store_true", help="print what is got as new expectations")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings.model_validate({"storage": {"data_dir": f"{folder}/data"}})
        for bundle in options.bundle:
            ModelStore(settings).activate(bundle)
        if options.expect:
            print_expectations(options.ct, settings)
            return
        table = "\n".join(lines(options.ct, settings, Path(folder) / "out"))
    sys.stdout.write(f"{table}\n")
    if options.write:
        text = DOCUMENT.read_text(encoding="utf-8")
        head = text[: text.index("|---")].rstrip("\n")
        rule = text[text.index("|---") :].split("\n", 1)[0]
        DOCUMENT.write_text(f"{head}\n{rule}\n{table}\n", encoding="utf-8")


def print_expectations(ct: Path, settings: Settings) -> None:
    """A first draft of the expectations, to be read and corrected by a person."""
    for group in find_series(ct, settings.intake.limits)[0]:
        try:
            read_examined(group.paths, settings.intake)
            code = None
        except SeriesRejected as rejected:
            code = rejected.code
        first = group.paths[0].relative_to(ct)
        print(
            f'[[input]]\nseries = "{first}"\nabout = ""\n'
            + (f'code = "{code}"\n' if code else "")
            + f'reader = "{reader_verdict(group, settings)}"\n'
        )


if __name__ == "__main__":
    main()
