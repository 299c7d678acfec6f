from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from config.intake import IntakeSettings
from engine.cases import UNKNOWN, read_cases, write_volume
from engine.volume import Geometry, Volume
from node.convert import convert
from node.pseudonyms import KEY, SEEN

RULES = IntakeSettings()


def test_every_grid_becomes_a_case_and_all_else_a_reason(tmp_path: Path, ct: Any, write_slices: Any) -> None:
    hu = ct.gradient()
    write_slices(ct.slices(hu), "in/plain")
    write_slices(ct.slices(hu, series_uid="1.2.3.5", ContrastBolusAgent="IODINE"), "in/enhanced")
    write_slices(ct.slices(hu, series_uid="1.2.3.6")[::3], "in/every third")
    gap = ct.slices(hu, series_uid="1.2.3.7")
    del gap[4]
    write_slices(gap, "in/gap")
    (tmp_path / "in" / "notes.txt").write_text("nothing")
    rows = {str(row.source): row for row in convert(tmp_path / "in", tmp_path / "out", RULES)}
    assert {name: row.code for name, row in rows.items()} == {
        "notes.txt": "NOT-DICOM", "plain": None, "enhanced": None, "every third": None, "gap": "NOT-A-GRID",
    }  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        KEY, SEEN, "case-0001", "case-0002", "case-0003", "cases.tsv",
    ]  # fmt: skip
    folder = rows["plain"].folder
    assert folder is not None
    image = sitk.ReadImage(str(folder / "ct.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), hu)


def test_with_examine_only_what_the_node_takes_is_written(tmp_path: Path, ct: Any, write_slices: Any) -> None:
    hu = ct.gradient() * 0 + 40
    write_slices(ct.slices(hu), "in/plain")
    write_slices(ct.slices(hu, series_uid="1.2.3.5", ContrastBolusAgent="IODINE"), "in/enhanced")
    rows = convert(tmp_path / "in", tmp_path / "out", RULES, examine=True)
    assert sorted((str(row.source), row.code) for row in rows) == [
        ("enhanced", "HAS-CONTRAST"),
        ("plain", None),
    ]


def test_numbers_go_on_after_the_cases_there_are(tmp_path: Path, ct: Any, write_slices: Any) -> None:
    write_slices(ct.slices(ct.gradient()), "in")
    (tmp_path / "out" / "case-0007").mkdir(parents=True)
    (tmp_path / "out" / "case-other").mkdir()
    (row,) = convert(tmp_path / "in", tmp_path / "out", RULES)
    assert row.folder == tmp_path / "out" / "case-0008"


@pytest.mark.parametrize("turned", [False, True])
def test_the_image_lies_where_the_volume_does(tmp_path: Path, turned: bool) -> None:
    directions = (
        ((0.0, 0.6, 0.8), (0.0, 0.8, -0.6), (1.0, 0.0, 0.0))
        if turned
        else Geometry((1, 1, 1), (1, 1, 1)).directions
    )
    geometry = Geometry((3, 4, 5), (2.5, 0.8, 0.7), (-5.0, 6.0, 100.0), directions)
    write_volume(tmp_path, Volume(np.zeros((3, 4, 5), np.float32), geometry))
    image = sitk.ReadImage(str(tmp_path / "ct.nii.gz"))
    for index in ((0, 0, 0), (2, 1, 3)):
        here = image.TransformIndexToPhysicalPoint(tuple(reversed(index)))
        assert here == pytest.approx(geometry.position_of(index), abs=1e-4)
    described = json.loads((tmp_path / "geometry.json").read_text())
    assert described["shape"] == [3, 4, 5]
    assert described["spacing_mm"] == [2.5, 0.8, 0.7]


def test_nothing_of_the_patient_goes_along(tmp_path: Path, ct: Any, write_slices: Any) -> None:
    write_slices(ct.slices(ct.gradient(), StudyDate="20250102", AccessionNumber="ACC77"), "in")
    (row,) = convert(tmp_path / "in", tmp_path / "out", RULES)
    assert row.folder is not None
    content = b"".join(
        gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for path in row.folder.parent.rglob("*")
        if path.is_file()
    )
    for value in (b"DOE", b"ID0017", b"1.2.3.4", b"20250102", b"ACC77"):
        assert value not in content


def test_the_list_pairs_series_by_study_under_pseudonyms(tmp_path: Path, ct: Any, write_slices: Any) -> None:
    plain = ct.gradient() * 0 + 40
    write_slices(ct.slices(plain), "in/plain")
    told = {"ContrastBolusAgent": "IODINE", "SeriesDescription": "ABD ARTERIAL"}
    write_slices(ct.slices(plain + 60, series_uid="1.2.3.5", **told), "in/arterial")
    timed = {
        "ContrastBolusAgent": "IODINE",
        "ContrastBolusStartTime": "115950",
        "AcquisitionTime": "120100.5",
    }
    write_slices(ct.slices(plain + 90, series_uid="1.2.3.6", **timed), "in/timed")
    other = {"PatientID": "ID0018", "StudyInstanceUID": "1.2.9", "ContrastBolusAgent": "IODINE"}
    write_slices(ct.slices(plain + 50, series_uid="1.2.9.1", **other), "in/zzz")
    convert(tmp_path / "in", tmp_path / "out", RULES)
    by_phase = {row.phase: row for row in read_cases(tmp_path / "out")}
    assert {phase: row.told_by for phase, row in by_phase.items()} == {
        "ncct": "pixels", "arterial": "description", "venous": "delay", UNKNOWN: UNKNOWN,
    }  # fmt: skip
    one, same, elsewhere = (by_phase[phase] for phase in ("ncct", "arterial", UNKNOWN))
    assert (one.patient, one.study) == (same.patient, same.study)
    assert one.patient != elsewhere.patient and one.study != elsewhere.study
    assert (tmp_path / "out" / KEY).stat().st_mode & 0o777 == 0o600


def test_a_series_converted_later_has_the_patients_pseudonym_and_only_there(
    tmp_path: Path, ct: Any, write_slices: Any
) -> None:
    write_slices(ct.slices(ct.gradient()), "one")
    write_slices(ct.slices(ct.gradient(), series_uid="1.2.3.5", study_uid="1.2.8"), "two")
    for source in ("one", "two"):
        convert(tmp_path / source, tmp_path / "out", RULES)
    convert(tmp_path / "one", tmp_path / "elsewhere", RULES)
    first, later = read_cases(tmp_path / "out")
    (elsewhere,) = read_cases(tmp_path / "elsewhere")
    assert first.patient == later.patient
    assert first.patient != elsewhere.patient


def test_without_a_patient_number_the_name_or_the_study_stands_for_the_patient(
    tmp_path: Path, ct: Any, write_slices: Any
) -> None:
    hu = ct.gradient()
    for number, name in enumerate(("DOE^JANE", "DOE^JANE", "", "")):
        tags = {"PatientID": "", "PatientName": name, "StudyInstanceUID": f"1.2.{number // 3}"}
        write_slices(ct.slices(hu, series_uid=f"1.2.3.{number}", **tags), f"in/{number}")
    convert(tmp_path / "in", tmp_path / "out", RULES)
    rows = read_cases(tmp_path / "out")
    assert len({row.patient for row in rows}) == 3


@pytest.mark.parametrize("order", [("A", ""), ("", "A"), ("A", "", "A"), ("", "A", "B")])
def test_with_and_without_an_issuer_a_number_is_one_patients(
    tmp_path: Path, ct: Any, write_slices: Any, order: tuple[str, ...]
) -> None:
    for number, issuer in enumerate(order):
        study = {"series_uid": f"1.2.3.{number}", "study_uid": f"1.2.{number}", "IssuerOfPatientID": issuer}
        write_slices(ct.slices(ct.gradient(), **study), f"in/{number}")
        assert convert(tmp_path / "in" / str(number), tmp_path / "out", RULES)[0].code is None
    assert len({row.patient for row in read_cases(tmp_path / "out")}) == 1
    seen = tmp_path / "out" / SEEN
    assert len(seen.read_text().splitlines()) == len(set(order))
    assert seen.stat().st_mode & 0o777 == 0o600
    assert "ID0017" not in seen.read_text()


def test_one_number_of_two_issuers_is_two_patients_and_without_any_it_is_refused(
    tmp_path: Path, ct: Any, write_slices: Any
) -> None:
    for number, issuer in enumerate(("A", "B", "")):
        study = {"series_uid": f"1.2.3.{number}", "study_uid": f"1.2.{number}", "IssuerOfPatientID": issuer}
        write_slices(ct.slices(ct.gradient(), **study), f"in/{number}")
    rows = convert(tmp_path / "in", tmp_path / "out", RULES)
    assert [row.code for row in rows] == [None, None, "PATIENT-UNCLEAR"]
    one, other = read_cases(tmp_path / "out")
    assert one.patient != other.patient
    assert "ID0017" not in (rows[2].reason or "")
