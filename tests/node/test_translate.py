from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from config.settings import Settings
from node.models import ModelStore
from node.states import State
from node.translate import SeriesResult, exit_code, find_series, translate
from node.verify import verify

NOW = datetime(2026, 1, 2, 3, 4, 5)


@pytest.fixture
def settings(tmp_path: Path, translator_bundle: Callable[..., Path]) -> Settings:
    made = Settings.model_validate(
        {"storage": {"data_dir": str(tmp_path / "data")}, "engine": {"provider": "cpu", "threads": 1}}
    )
    for phase in ("arterial", "venous"):
        ModelStore(made).activate(translator_bundle(phase))
    return made


@pytest.fixture
def body(ct: Any) -> Callable[..., list[Dataset]]:
    """Ten slices of a body of 40 HU in air."""
    hu = np.full((10, 40, 40), -1000, np.int16)
    hu[:, 6:34, 6:34] = 40
    return lambda **attributes: ct.slices(hu, spacing_mm=(2.5, 1.5, 1.5), SeriesNumber=3, **attributes)


def test_a_folder_of_all_sorts_gets_one_row_a_series_and_a_stray_file(
    settings: Settings, tmp_path: Path, body: Any, write_slices: Any
) -> None:
    write_slices(body(), "in/plain")
    write_slices(body(series_uid="1.2.3.5", ContrastBolusAgent="IODINE"), "in/enhanced")
    write_slices(body(series_uid="1.2.3.6")[:3], "in/short")
    (tmp_path / "in" / "notes.txt").write_text("nothing")
    told: list[tuple[int, int, float]] = []
    rows = translate(tmp_path / "in", tmp_path / "out", settings, lambda *step: told.append(step), now=NOW)
    found = {row.series_instance_uid: (row.state, row.code, len(row.outputs)) for row in rows}
    assert found == {
        None: (State.REJECTED, "NOT-DICOM", 0),
        "1.2.3.4": (State.BUILT, None, 2),
        "1.2.3.5": (State.REJECTED, "HAS-CONTRAST", 0),
        "1.2.3.6": (State.REJECTED, "TOO-FEW-SLICES", 0),
    }
    assert exit_code(rows) == 0
    assert {(number, count) for number, count, _ in told} == {(0, 3), (1, 3), (2, 3)}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1.2.3.4"]


def test_a_translated_series_lies_in_the_same_study_and_place(
    settings: Settings, tmp_path: Path, body: Any, write_slices: Any
) -> None:
    paths = write_slices(body(), "in")
    (row,) = translate(tmp_path / "in", tmp_path / "out", settings, now=NOW)
    assert [output.phase for output in row.outputs] == ["arterial", "venous"]
    for output in row.outputs:
        made = [dcmread(path) for path in sorted(output.folder.iterdir())]
        assert len(made) == output.instances == len(paths)
        assert {ds.SeriesInstanceUID for ds in made} == {output.series_instance_uid}
        for ds, source in zip(made, map(dcmread, paths), strict=True):
            for keyword in (
                "StudyInstanceUID",
                "PatientID",
                "FrameOfReferenceUID",
                "ImagePositionPatient",
                "ImageOrientationPatient",
                "PixelSpacing",
                "Rows",
                "Columns",
            ):
                assert ds[keyword].value == source[keyword].value
        assert verify(output.folder / "0001.dcm").ours


def test_the_json_row_is_what_scripts_rely_on(
    settings: Settings, tmp_path: Path, body: Any, write_slices: Any
) -> None:
    write_slices(body(), "in")
    (row,) = translate(tmp_path / "in", tmp_path / "out", settings, now=NOW)
    read = json.loads(json.dumps(row.as_json()))
    assert {"series_instance_uid", "state", "code", "reason", "outputs"} <= read.keys()
    assert (read["series_instance_uid"], read["state"], read["code"]) == ("1.2.3.4", "BUILT", None)
    assert {"phase", "series_instance_uid", "instances", "folder"} <= read["outputs"][0].keys()
    assert Path(read["outputs"][0]["folder"]).is_dir()


def test_a_repeat_replaces_the_outputs_with_the_same_bytes(
    settings: Settings, tmp_path: Path, body: Any, write_slices: Any
) -> None:
    write_slices(body(), "in")

    def once() -> dict[str, bytes]:
        translate(tmp_path / "in", tmp_path / "out", settings, now=NOW)
        files = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
        return {str(path.relative_to(tmp_path)): path.read_bytes() for path in files}

    assert once() == once()


def test_outputs_inside_the_input_are_not_translated_again(
    settings: Settings, tmp_path: Path, body: Any, write_slices: Any
) -> None:
    write_slices(body(), "in")
    for _ in range(2):
        rows = translate(tmp_path / "in", tmp_path / "in" / "out", settings, now=NOW)
        assert [row.state for row in rows] == [State.BUILT]


def test_our_own_outputs_are_synthetic(
    settings: Settings, tmp_path: Path, body: Any, write_slices: Any
) -> None:
    write_slices(body(), "in")
    translate(tmp_path / "in", tmp_path / "out", settings, now=NOW)
    rows = translate(tmp_path / "out", tmp_path / "again", settings, now=NOW)
    assert [row.code for row in rows] == ["SYNTHETIC", "SYNTHETIC"]
    assert exit_code(rows) == 3


def test_copies_of_a_file_count_once(
    settings: Settings, tmp_path: Path, body: Any, write_slices: Any
) -> None:
    paths = write_slices(body(), "in")
    (tmp_path / "in" / "copies").mkdir()
    shutil.copy(paths[4], tmp_path / "in" / "copies")
    (row,) = translate(tmp_path / "in", tmp_path / "out", settings, now=NOW)
    assert row.state is State.BUILT
    changed = dcmread(paths[4])
    changed.PixelData = bytes(len(changed.PixelData))
    changed.save_as(tmp_path / "in" / "copies" / "changed.dcm")
    (row,) = translate(tmp_path / "in", tmp_path / "out", settings, now=NOW)
    assert row.code == "IDENTITY"


def test_images_that_name_no_series_are_one_row_a_folder(
    settings: Settings, tmp_path: Path, body: Any, write_slices: Any
) -> None:
    for folder in ("in/a", "in/b"):
        slices = body()
        for ds in slices:
            del ds.SeriesInstanceUID, ds.SOPInstanceUID
        write_slices(slices, folder)
    rows = translate(tmp_path / "in", tmp_path / "out", settings, now=NOW)
    assert [(row.series_instance_uid, row.code) for row in rows] == [(None, "IDENTITY")] * 2
    assert [str(row.source) for row in rows] == ["a", "b"]


def test_a_dicomdir_and_an_object_without_an_image_are_not_dicom_images(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for name, sop_class in (("DICOMDIR", "1.2.840.10008.1.3.10"), ("odd", "1.2.840.10008.5.1.4.1.1.104.1")):
        ds = Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = sop_class, "1.2.3"
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = sop_class, "1.2.3"
        ds.save_as(tmp_path / "in" / name, enforce_file_format=True)
    rows = translate(tmp_path / "in", tmp_path / "out", settings, now=NOW)
    assert [row.code for row in rows] == ["NOT-DICOM", "NOT-DICOM"]


def test_what_fails_while_writing_is_parked_and_leaves_nothing_behind(
    settings: Settings, tmp_path: Path, body: Any, write_slices: Any
) -> None:
    write_slices(body(), "in")
    out = tmp_path / "out"
    out.write_text("in the way")
    rows = translate(tmp_path / "in", out, settings, now=NOW)
    assert [(row.state, row.code) for row in rows] == [(State.PARKED, "DISK")]
    assert exit_code(rows) == 1
    assert out.read_text() == "in the way"


def test_a_folder_that_is_none_is_an_error(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError):
        translate(tmp_path / "gone", tmp_path / "out", settings)
    with pytest.raises(NotADirectoryError):
        find_series(tmp_path / "gone", settings.intake.limits)


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ([], 3),
        ([State.REJECTED], 3),
        ([State.REJECTED, State.BUILT], 0),
        ([State.BUILT, State.PARKED], 1),
        ([State.REJECTED, State.PARKED], 1),
    ],
)
def test_the_exit_code_follows_the_states(states: list[State], code: int) -> None:
    assert exit_code(SeriesResult("1.2", state, None, None) for state in states) == code
