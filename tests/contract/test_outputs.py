"""What every kind of output promises, whatever it is: run over each entry of OUTPUTS and each phase."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from config.intake import SeriesLimits
from node.loopguard import is_own
from node.outputs import OUTPUTS, to_bytes
from node.outputs.copied import PATIENT, STUDY
from node.outputs.phases import PHASE_STYLES
from node.private import PRIVATE_CREATOR
from node.series import read_series
from node.uids import IMPLEMENTATION_CLASS_UID, is_plausible_uid
from node.verify import verify_dataset

DOSE = (
    "CTDIvol",
    "Exposure",
    "ExposureInmAs",
    "ExposureInuAs",
    "ExposureTime",
    "XRayTubeCurrent",
    "GeneratorPower",
    "IrradiationEventUID",
    "SmallestImagePixelValue",
    "LargestImagePixelValue",
    "PixelPaddingValue",
)

every_kind = pytest.mark.parametrize("kind", OUTPUTS)
every_output = pytest.mark.parametrize(("kind", "phase"), [(k, p) for k in OUTPUTS for p in PHASE_STYLES])


def decorate(ds: Dataset) -> None:
    """Give a source all that must not be copied."""
    ds.CTDIvol = 12.5
    ds.Exposure = 200
    ds.XRayTubeCurrent = 300
    ds.ExposureTime = 800
    ds.add_new("SmallestImagePixelValue", "US", 0)
    ds.add_new("PixelPaddingValue", "US", 0)
    ds.WindowCenter, ds.WindowWidth = [40, 300], [400, 1500]
    ds.WindowCenterWidthExplanation = ["SOFT", "BONE"]
    ds.OperatorsName = "OPERATOR^NAME"
    ds.private_block(0x0009, "GEMS_IDEN_01", create=True).add_new(0x02, "SH", "CT01")


def make(kit, kind, edit=decorate, phase="arterial", context=None, **changes):
    """Read back from their bytes, as an archive sees them, and the source they came from."""
    series = kit.source(edit)
    made = OUTPUTS[kind](series, kit.synthesis(series, phase, **changes), context or kit.context())
    return series, [dcmread(BytesIO(to_bytes(ds))) for ds in made]


def raw(ds: Dataset, keyword: str) -> bytes | None:
    element = ds.get_item(Tag(keyword)) if keyword in ds else None
    assert element is None or isinstance(element, RawDataElement)
    return None if element is None else element.value


def walk(ds: Dataset):
    """Every dataset inside ``ds``, itself too."""
    yield ds
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                yield from walk(item)


@every_output
def test_every_instance_says_that_it_is_synthetic(kit, kind, phase):
    _, made = make(kit, kind, phase=phase)
    assert made
    for ds in made:
        assert ds.SyntheticData == "YES"
        assert ds.SeriesDescription.startswith(f"AI-SYNTHETIC {phase.upper()}")
        assert len(ds.SeriesDescription) <= 64
        assert ds.ImageComments.startswith("NOT ACQUIRED. NO CONTRAST GIVEN")
        assert ds.ContentQualification == "RESEARCH"
        assert ds.BurnedInAnnotation == "NO"
        assert ds.ImageType[0] == "DERIVED"
        assert ds.private_block(0x0071, PRIVATE_CREATOR)


@every_kind
def test_the_node_knows_its_own_when_it_comes_back(kit, kind):
    _, made = make(kit, kind)
    assert all(is_own(ds) for ds in made)
    for ds in made:
        ds.remove_private_tags()
        ds.SeriesDescription = "ANONYMISED"
        assert is_own(ds)


@every_kind
def test_nothing_claims_contrast_or_counts_a_dose(kit, kind):
    _, made = make(kit, kind)
    for ds in made:
        for item in walk(ds):
            keywords = {element.keyword for element in item}
            assert not keywords.intersection(DOSE)
            assert not [word for word in keywords if "Contrast" in word]


@every_kind
def test_vendors_private_groups_and_the_operator_stay_behind(kit, kind):
    _, made = make(kit, kind)
    for ds in made:
        assert {element.tag.group for element in ds if element.tag.is_private} == {0x0071}
        assert "OperatorsName" not in ds


@every_kind
def test_there_is_one_window_and_its_explanation_says_synthetic(kit, kind):
    _, made = make(kit, kind)
    for ds in made:
        windows = [item for item in walk(ds) if "WindowCenter" in item]
        assert len(windows) == 1
        assert isinstance(windows[0].WindowCenterWidthExplanation, str)
        assert windows[0].WindowCenterWidthExplanation.startswith("SYNTHETIC ARTERIAL")


@every_kind
def test_references_name_the_source_images_and_nothing_else(kit, kind):
    series, made = make(kit, kind)
    sources = [header.SOPInstanceUID for header in series.headers]
    named = []
    for ds in made:
        assert [item.SeriesInstanceUID for item in ds.ReferencedSeriesSequence] == [
            series.headers[0].SeriesInstanceUID
        ]
        listed = ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        used = [item for part in walk(ds) for item in part.get("SourceImageSequence", [])]
        assert {item.ReferencedSOPInstanceUID for item in listed} == {
            item.ReferencedSOPInstanceUID for item in used
        }
        for item in used:
            assert item.SpatialLocationsPreserved == "YES"
            assert item.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
            named.append(item.ReferencedSOPInstanceUID)
    assert sorted(named) == sorted(sources)


@every_kind
def test_contributing_equipment_names_the_scanner_and_the_model(kit, kind):
    _, made = make(kit, kind)
    for ds in made:
        scanner, model = ds.ContributingEquipmentSequence
        assert scanner.PurposeOfReferenceCodeSequence[0].CodeValue == "109101"
        assert scanner.ManufacturerModelName == "PHANTOM"
        assert model.PurposeOfReferenceCodeSequence[0].CodeValue == "109100"
        assert model.ManufacturerModelName == "S2LDM test"
        assert list(model.SoftwareVersions) == ["1.0.0", "test-arterial-1.0.0", "ab" * 32]
        assert ds.Manufacturer == "S2NODE"
        assert ds.DeviceUID == "2.25.4711"
        assert model.DeviceUID != ds.DeviceUID


@every_kind
def test_patient_and_study_are_the_sources(kit, kind):
    series, made = make(kit, kind)
    for ds in made:
        for keyword in (*PATIENT, *STUDY, "FrameOfReferenceUID", "PatientPosition"):
            assert ds.get(keyword) == series.headers[0].get(keyword), keyword


CHARACTER_SETS = [
    ("ISO_IR 192", "Müller^Jürgen=山田^太郎=やまだ^たろう".encode()),
    ("GB18030", "Wang^XiaoDong=王^小东".encode("gb18030")),
    ("ISO_IR 144", "Люкceмбypг^Роза".encode("iso8859_5")),
    ("ISO_IR 100", "Müller^Jürgen".encode("latin_1")),
    (
        "\\ISO 2022 IR 87",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
    ),
    ("ISO_IR 192", b"broken \xff\xfe bytes"),
]


@every_kind
@pytest.mark.parametrize(("charset", "name"), CHARACTER_SETS)
def test_names_keep_their_bytes_in_every_character_set(kit, kind, charset, name):
    padded = name + b" " * (len(name) % 2)

    paths = kit.files()
    for path in paths:
        write_raw(path, charset, padded)
    series, source = read_series(paths, SeriesLimits()), dcmread(paths[0])
    made = OUTPUTS[kind](series, kit.synthesis(series), kit.context())
    for ds in (dcmread(BytesIO(to_bytes(one))) for one in made):
        assert raw(ds, "PatientName") == padded
        assert raw(ds, "StudyDescription") == padded
        assert ds.SpecificCharacterSet == source.SpecificCharacterSet


@every_kind
def test_a_repeat_is_byte_for_byte_the_same(kit, kind):
    first, second = (
        [to_bytes(ds) for ds in OUTPUTS[kind](series, kit.synthesis(series), kit.context())]
        for series in (kit.source(), kit.source())
    )
    assert first == second


@every_kind
def test_whatever_changes_the_pixels_changes_every_uid(kit, kind):
    series = kit.source()
    context = kit.context()
    node = replace(context.node, device_uid="2.25.4712")
    variants = [
        (kit.synthesis(series), context),
        (kit.synthesis(series, "venous"), context),
        (kit.synthesis(series, model_digest="ef" * 32), context),
        (kit.synthesis(series, seed=6), context),
        (kit.synthesis(series), kit.context(generation=2)),
        (kit.synthesis(series), kit.context(config_digest="00" * 32)),
        (kit.synthesis(series), kit.context(node=node)),
    ]
    made = [list(OUTPUTS[kind](series, synthesis, context)) for synthesis, context in variants]
    uids = [{ds.SeriesInstanceUID for ds in one} | {ds.SOPInstanceUID for ds in one} for one in made]
    assert sum(len(one) for one in uids) == len(set().union(*uids)) == len(made) * (len(made[0]) + 1)
    assert all(is_plausible_uid(uid) for one in uids for uid in one)


def test_kinds_do_not_share_uids_nor_series_numbers(kit):
    series = kit.source()
    made = [
        list(OUTPUTS[kind](series, kit.synthesis(series, phase), kit.context()))
        for kind in OUTPUTS
        for phase in PHASE_STYLES
    ]
    for keyword in ("SeriesInstanceUID", "SeriesNumber"):
        assert len({one[0][keyword].value for one in made}) == len(made)


@every_kind
def test_the_time_is_the_jobs_and_not_the_clocks(kit, kind):
    _, made = make(kit, kind)
    for ds in made:
        for moment in ("Series", "Content", "InstanceCreation"):
            assert (ds[f"{moment}Date"].value, ds[f"{moment}Time"].value) == ("20260102", "030405")


@every_kind
def test_no_uid_is_drawn_by_chance(kit, kind):
    _, made = make(kit, kind)
    _, again = make(kit, kind)
    for ds, other in zip(made, again, strict=True):
        uids = [e.value for part in walk(ds) for e in part if e.VR == "UI"]
        assert uids == [e.value for part in walk(other) for e in part if e.VR == "UI"]


def slices_of(ds: Dataset):
    """(ImagePositionPatient, referenced source, HU) of every slice of an instance, as a viewer takes them."""
    if "PerFrameFunctionalGroupsSequence" not in ds:
        hu = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        yield tuple(ds.ImagePositionPatient), ds.SourceImageSequence[0].ReferencedSOPInstanceUID, hu
        return
    mapping = ds.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    for frame, stored in zip(ds.PerFrameFunctionalGroupsSequence, ds.pixel_array, strict=True):
        position = tuple(frame.PlanePositionSequence[0].ImagePositionPatient)
        source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        yield position, source, stored * mapping.RealWorldValueSlope + mapping.RealWorldValueIntercept


@every_kind
def test_pixels_in_hounsfield_units_lie_where_their_source_lies(kit, kind):
    series, made = make(kit, kind)
    found = {position: (source, hu) for ds in made for position, source, hu in slices_of(ds)}
    expected = np.rint(kit.synthesis(series).volume.hu)
    if kind == "enhancement_map":
        expected = expected - np.rint(series.volume.hu)
    assert len(found) == len(series.headers)
    for header, hu in zip(series.headers, expected, strict=True):
        source, got = found[tuple(header.ImagePositionPatient)]
        assert source == header.SOPInstanceUID
        np.testing.assert_array_equal(got, hu)


@every_kind
def test_our_own_verify_finds_no_problem(kit, kind):
    series, made = make(kit, kind)
    for ds in made:
        found = verify_dataset(ds)
        assert found.ours
        assert (found.kind, found.phase) == (kind, "arterial")
        assert found.source_series_uid == series.headers[0].SeriesInstanceUID
        assert found.problems == ()


@every_kind
@pytest.mark.parametrize("charset", [None, "ISO_IR 100", ["", "ISO 2022 IR 87"]])
def test_a_file_is_to_the_byte_what_pydicom_writes(kit, kind, charset):
    def say(ds: Dataset) -> None:
        ds.SpecificCharacterSet = charset

    series = kit.source(say)
    for ds in OUTPUTS[kind](series, kit.synthesis(series), kit.context()):
        made, expected = to_bytes(ds), BytesIO()
        ds.preamble, ds.file_meta = bytes(128), dcmread(BytesIO(made)).file_meta
        dcmwrite(expected, ds)
        assert made == expected.getvalue()


@every_kind
def test_the_file_meta_names_our_implementation(kit, kind):
    _, made = make(kit, kind)
    for ds in made:
        assert ds.file_meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID


@every_kind
def test_a_lossy_source_stays_lossy(kit, kind):
    def compress(ds: Dataset) -> None:
        ds.LossyImageCompression = "01"
        ds.LossyImageCompressionRatio = 8
        ds.LossyImageCompressionMethod = "ISO_10918_1"

    _, made = make(kit, kind, compress)
    for ds in made:
        assert ds.LossyImageCompression == "01"
        assert ds.LossyImageCompressionRatio == 8


@every_kind
def test_a_source_without_a_frame_of_reference_gets_one_for_all_its_outputs(kit, kind):
    def strip(ds: Dataset) -> None:
        del ds.FrameOfReferenceUID

    series = kit.source(strip)
    uids = {
        ds.FrameOfReferenceUID
        for phase in PHASE_STYLES
        for ds in OUTPUTS[kind](series, kit.synthesis(series, phase), kit.context())
    }
    assert len(uids) == 1
    assert is_plausible_uid(uids.pop())


@every_kind
def test_a_synthesis_on_another_grid_is_refused(kit, kind):
    series = kit.source()
    synthesis = kit.synthesis(series)
    moved = replace(synthesis.volume.geometry, origin_mm=(0.0, 0.0, 0.0))
    wrong = replace(synthesis, volume=replace(synthesis.volume, geometry=moved))
    with pytest.raises(ValueError, match="grid"):
        OUTPUTS[kind](series, wrong, kit.context())


@every_kind
def test_numbers_that_are_not_finite_are_refused(kit, kind):
    series = kit.source()
    hu = series.volume.hu.copy()
    hu[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        list(OUTPUTS[kind](series, kit.synthesis(series, volume=series.volume.with_array(hu)), kit.context()))


@every_kind
def test_a_phase_without_a_style_is_refused(kit, kind):
    series = kit.source()
    with pytest.raises(ValueError, match="'delayed' has no style"):
        OUTPUTS[kind](series, kit.synthesis(series, "delayed"), kit.context())


def write_raw(path: Path, charset: str, value: bytes) -> None:
    """Put a character set and undecoded texts into a file."""
    ds = dcmread(path)
    ds[Tag("SpecificCharacterSet")] = element("SpecificCharacterSet", "CS", charset.encode())
    ds[Tag("PatientName")] = element("PatientName", "PN", value)
    ds[Tag("StudyDescription")] = element("StudyDescription", "LO", value)
    ds.set_original_encoding(False, True, ds._character_set)
    ds.save_as(path)


def element(keyword: str, vr: str, value: bytes) -> RawDataElement:
    padded = value + b" " * (len(value) % 2)
    return RawDataElement(Tag(keyword), vr, len(padded), padded, 0, False, True)
