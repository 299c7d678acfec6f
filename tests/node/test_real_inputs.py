"""Every real input ends in a result or a stable code; the table of docs/real-inputs.md is made of these."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from config.settings import Settings
from node.build import read_examined
from node.errors import REJECTION_CODES, SeriesRejected
from node.models import ModelStore
from node.series import read_series
from node.states import State
from node.translate import find_series, translate

TABLE = Path(__file__).with_name("real_inputs.toml")
EXPECTED: dict[str, dict[str, Any]] = {
    row["series"]: row for row in tomllib.loads(TABLE.read_text(encoding="utf-8"))["input"]
}
UNDECODABLE = {"JPEGProcess10_12", "JPEGProcess6_8", "PMSCT_RLE1"}
"""Parts of the names of files no decoder here reads."""

SETTINGS = Settings()
CONTRAST_TAGS = ("ContrastBolusAgent", "ContrastBolusRoute", "ContrastBolusVolume", "ContrastFlowRate")


def code_of(step: Callable[[], object]) -> str | None:
    try:
        step()
    except SeriesRejected as rejected:
        return rejected.code
    return None


def shape_or_code(paths: tuple[Path, ...]) -> str:
    try:
        return "×".join(str(size) for size in read_series(paths, SETTINGS.intake.limits).volume.hu.shape)
    except SeriesRejected as rejected:
        return rejected.code


def test_every_real_series_ends_in_what_the_table_says(ct_dir: Path) -> None:
    groups, strays = find_series(ct_dir, SETTINGS.intake.limits)
    assert {stray.code for stray in strays} == {"NOT-DICOM"}
    got = {}
    for group in groups:
        code = code_of(lambda: read_examined(group.paths, SETTINGS.intake))  # noqa: B023
        assert code is None or code in REJECTION_CODES
        got[str(group.paths[0].relative_to(ct_dir))] = (code, shape_or_code(group.paths))
    assert got == {name: (row.get("code"), row["reader"]) for name, row in EXPECTED.items()}


def test_every_real_file_decodes_or_ends_in_a_code(ct_dir: Path) -> None:
    groups, _ = find_series(ct_dir, SETTINGS.intake.limits)
    for path in (path for group in groups for path in group.paths):
        verdict = shape_or_code((path,))
        expected = any(part in path.name for part in UNDECODABLE)
        assert (verdict == "UNDECODABLE") == expected, path.name


def test_the_main_real_input_is_translated_slice_by_slice(
    ct_dir: Path, tmp_path: Path, translator_bundle: Callable[..., Path]
) -> None:
    settings = Settings.model_validate(
        {"storage": {"data_dir": str(tmp_path / "data")}, "engine": {"provider": "cpu", "threads": 1}}
    )
    for phase in ("arterial", "venous"):
        ModelStore(settings).activate(translator_bundle(phase))
    rows = translate(ct_dir / "ncct_abdomen_ge_acrin001", tmp_path / "out", settings)
    (row,) = [row for row in rows if row.series_instance_uid]
    assert row.state is State.BUILT
    assert [(output.phase, output.instances) for output in row.outputs] == [("arterial", 19), ("venous", 19)]
    source = [dcmread(p) for p in sorted((ct_dir / "ncct_abdomen_ge_acrin001").glob("*.dcm"))]
    places = {tuple(ds.ImagePositionPatient) for ds in source}
    for output in row.outputs:
        made = [dcmread(path) for path in sorted(output.folder.iterdir())]
        assert {tuple(ds.ImagePositionPatient) for ds in made} == places
        for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "Rows", "Columns"):
            assert {ds[keyword].value for ds in made} == {source[0][keyword].value}


@pytest.mark.parametrize("name", ["cect_portalvenous_ge_crlm1004", "vol_totalsegmentator/example_ct_dicom"])
def test_an_enhanced_series_that_claims_nothing_is_caught_by_its_pixels(
    ct_dir: Path, tmp_path: Path, name: str
) -> None:
    paths = []
    for number, path in enumerate(p for p in sorted((ct_dir / name).iterdir()) if p.suffix != ".txt"):
        ds = dcmread(path)
        for keyword in (*CONTRAST_TAGS, "SeriesDescription"):
            if keyword in ds:
                delattr(ds, keyword)
        ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.3.4.{number}"
        ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", "1.2.3.4"
        paths.append(tmp_path / f"{number:03d}.dcm")
        ds.save_as(paths[-1])
    with pytest.raises(SeriesRejected, match="soft tissue is above") as caught:
        read_examined(paths, SETTINGS.intake)
    assert caught.value.code == "HAS-CONTRAST"
