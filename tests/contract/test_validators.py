"""What David Clunie's dicom3tools say of the source together with every kind of output.

Their exit codes lie (some errors end 0), so the lines are read: no line may start with Error, and only the
warnings listed here may come.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from config.intake import SeriesLimits
from node.ledger import Output
from node.outputs import OUTPUTS, to_bytes
from node.outputs.phases import PHASE_STYLES
from node.phantom_dicom import phantom_series
from node.rejection.note import Grounds, Reason, identity_of, make_note
from node.series import read_series

ALLOWED = [
    r"\(0x0071,0x10..\)  \?  - Warning - Unrecognized tag",  # the private block
    r"Warning - Unrecognized defined term <SYNTHETIC> for value 4 of attribute <Image Type>",
    # DeviceUID inside Contributing Equipment is standard; dicom3tools does not know it there yet
    r"Warning - Attribute is not present in standard DICOM IOD - \(0x0018,0x1002\) UI Device UID",
    r"Warning - Dicom dataset contains attributes not present in standard DICOM IOD",
]
"""Warnings that our outputs may cause."""

ALLOWED_OF_STRANGERS = [
    *ALLOWED,
    r"Warning - Value dubious for this VR - .* Retired Person Name form",
    # the side of a body part nobody named: empty because it is unknown
    r"Warning - is only permitted to be empty when actually unknown.*<Laterality>",
    r"Warning - Missing attribute or value that would be needed to build DICOMDIR - Study",
]
"""Warnings that come of copying a real source as it is."""


def run(tool: str, *paths: Path) -> list[str]:
    program = Path(sys.executable).parent / tool
    found = shutil.which(program) or shutil.which(tool)
    assert found, f"{tool} is missing: install the dev extra (dicom3tools)"
    done = subprocess.run([found, *map(str, paths)], capture_output=True, text=True, timeout=120, check=False)
    return (done.stdout + done.stderr).splitlines()


def complaints(paths: Sequence[Path], allowed: Sequence[str]) -> list[str]:
    """What dciodvfy says of the files, besides the allowed warnings and the name of the object."""
    lines = [line for path in paths for line in run("dciodvfy", path)]
    matters = [line for line in lines if line.startswith("Error") or "Warning" in line]
    return [line for line in matters if not any(re.match(pattern, line) for pattern in allowed)]


def entity_errors(source: Sequence[Path], made: Sequence[Path]) -> set[str]:
    """What dcentvfy finds in source and outputs together, and not in the source alone."""
    together, alone = run("dcentvfy", *source, *made), run("dcentvfy", *source)
    return {line for line in together if line.startswith("Error")} - set(alone)


def write_outputs(kit, paths: Sequence[Path]) -> list[Path]:
    """Every kind and phase made from the files at ``paths``."""
    series = read_series(paths, SeriesLimits())
    folder = kit.folder / "outputs"
    folder.mkdir()
    written = []
    for kind, make in OUTPUTS.items():
        for phase in PHASE_STYLES:
            for index, ds in enumerate(make(series, kit.synthesis(series, phase), kit.context())):
                written.append(folder / f"{kind}-{phase}-{index}.dcm")
                written[-1].write_bytes(to_bytes(ds))
    return written


def test_a_phantom_and_its_outputs_have_no_errors(kit):
    source = kit.files()
    made = write_outputs(kit, source)
    assert complaints(source, []) == []
    assert complaints(made, ALLOWED) == []
    assert run("dcentvfy", *source, *made) == []


def bare(ds: Dataset) -> None:
    """A source like many real ones: without what the standard requires but no scanner guarantees."""
    for keyword in (
        "BodyPartExamined",
        "StudyID",
        "AccessionNumber",
        "FrameOfReferenceUID",
        "PatientPosition",
    ):
        delattr(ds, keyword)
    for keyword in ("PositionReferenceIndicator", "Manufacturer", "SeriesNumber", "KVP", "SliceThickness"):
        delattr(ds, keyword)
    ds.PatientBirthDate = ds.PatientSex = ds.StudyTime = ""


def odd(ds: Dataset) -> None:
    """A source with values that are wrong or unusual."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.BodyPartExamined = "Bauch"
    ds.Laterality = "R"
    ds.LossyImageCompression = ""
    ds.RequestAttributesSequence = []
    ds.SeriesNumber = 2147483647
    ds.TimezoneOffsetFromUTC = "+0930"


@pytest.mark.parametrize("edit", [bare, odd])
def test_outputs_of_a_poor_source_have_no_errors(kit, edit):
    source = kit.files(edit)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Invalid value for VR CS")
        made = write_outputs(kit, source)
    assert complaints(made, ALLOWED_OF_STRANGERS) == []
    assert entity_errors(source, made) == set()


def test_outputs_of_a_multi_frame_source_are_valid_and_name_its_frames(kit):
    source = kit.folder / "multiframe.dcm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        legacy = [dcmread(path) for path in kit.files()]
        LegacyConvertedEnhancedCTImage(legacy, "2.25.31", 31, "2.25.32", 1).save_as(source)
    made = write_outputs(kit, [source])
    assert complaints(made, ALLOWED_OF_STRANGERS) == []
    assert entity_errors([source], made) == set()
    slices = [dcmread(path) for path in made if path.name.startswith("ct_series-arterial")]
    references = [ds.SourceImageSequence[0] for ds in slices]
    assert {item.ReferencedSOPInstanceUID for item in references} == {"2.25.32"}
    assert sorted(item.ReferencedFrameNumber for item in references) == [1, 2, 3, 4, 5, 6]
    assert len({ds.SOPInstanceUID for ds in slices}) == len(phantom_series(kit.phantom))


def test_outputs_of_a_real_series_have_no_errors(kit, ct_dir):
    source = sorted((ct_dir / "ncct_abdomen_ge_acrin001").glob("*.dcm"))[:6]
    made = write_outputs(kit, source)
    assert complaints(made, ALLOWED_OF_STRANGERS) == []
    assert entity_errors(source, made) == set()


@pytest.mark.parametrize("reason", Reason)
def test_a_rejection_note_has_no_errors(kit, tmp_path, reason):
    identity = identity_of(kit.files()[0])
    uids = [("2.25.7", f"2.25.7.{number}") for number in (1, 2)] + [("2.25.8", "2.25.8.1")]
    rejected = [Output(1, "venous", "ct_series", *each, CTImageStorage, tmp_path, "") for each in uids]
    note = make_note(identity, rejected, Grounds(reason, "A test."), kit.context())
    (tmp_path / "note.dcm").write_bytes(to_bytes(note))
    assert complaints([tmp_path / "note.dcm"], ALLOWED_OF_STRANGERS) == []
