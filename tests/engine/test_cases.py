"""The list of cases: read whole or refused with the line; no name leaves the folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.cases import LIST, CaseRow, CasesUnusable, add_case, list_case, read_cases
from engine.volume import Geometry, Volume


def small() -> Volume:
    return Volume(np.zeros((2, 3, 4), np.float32), Geometry((2, 3, 4), (3.0, 2.0, 1.0)))


def test_what_is_listed_is_read(tmp_path: Path) -> None:
    folder = add_case(tmp_path / "new", small())
    rows = [CaseRow(folder.name, "p1", "s1", "ncct", "pixels"), CaseRow(folder.name, "p1", "s2", "-")]
    for row in rows:
        list_case(tmp_path / "new", row)
    assert folder.name == "case-0001"
    assert read_cases(tmp_path / "new") == rows
    assert add_case(tmp_path / "new", small()).name == "case-0002"


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "", "-dash", "a\\b", "x" * 65, "con.", "a\nb"])
def test_a_name_that_could_leave_the_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="case"):
        CaseRow(name, "p", "s", "ncct")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("../../etc\tp\ts\tncct", "line 2: case '../../etc' is not"),
        ("c\tp\ts\tdelayed", "phase 'delayed' is none of ncct, arterial, venous"),
        ("c\tp", "line 2 has no study, phase"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / LIST).write_text(f"case\tpatient\tstudy\tphase\n{line}\n")
    with pytest.raises(CasesUnusable, match=words.replace("..", r"\.\.")):
        read_cases(tmp_path)


def test_a_list_that_is_absent_or_no_text_is_said(tmp_path: Path) -> None:
    with pytest.raises(CasesUnusable, match="s2node convert writes it"):
        read_cases(tmp_path)
    (tmp_path / LIST).write_bytes(b"case\tpatient\xff\n")
    with pytest.raises(CasesUnusable, match=LIST):
        read_cases(tmp_path)
