from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.sequence import Sequence

from node.loopguard import is_own
from node.outputs import OUTPUTS
from node.private import write_private_block


def equipment(code: str) -> Sequence:
    purpose, item = Dataset(), Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = code, "DCM"
    item.PurposeOfReferenceCodeSequence = Sequence([purpose])
    return Sequence([Dataset(), item])


def dataset(**values: object) -> Dataset:
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


@pytest.mark.parametrize(
    ("ds", "word"),
    [
        (dataset(SyntheticData="YES"), "Synthetic Data"),
        (dataset(SyntheticData="yes "), "Synthetic Data"),
        (dataset(ImageType=["DERIVED", "SECONDARY", "AXIAL", "SYNTHETIC", "VENOUS"]), "Image Type"),
        (dataset(ContributingEquipmentSequence=equipment("109100")), "Contributing Equipment"),
    ],
)
def test_every_mark_is_enough_by_itself(ds: Dataset, word: str) -> None:
    assert word in str(is_own(ds))


def test_the_private_block_is_enough_also_as_unknown_bytes() -> None:
    ds = Dataset()
    write_private_block(ds, {3: "VENOUS"})
    assert "private block" in str(is_own(ds))
    unknown = Dataset()
    unknown.add_new(0x00710011, "UN", b"S2NODE 1.0")
    assert "private block" in str(is_own(unknown))


@pytest.mark.parametrize(
    "ds",
    [
        dataset(),
        dataset(SyntheticData="NO", ImageType=["ORIGINAL", "PRIMARY", "AXIAL"]),
        dataset(ImageType="SYNTHETICALLY"),
        dataset(ContributingEquipmentSequence=equipment("109101")),
    ],
)
def test_an_acquisition_is_not_ours(ds: Dataset) -> None:
    assert is_own(ds) is None


def test_elements_that_cannot_be_read_are_no_mark_and_no_error() -> None:
    broken = struct.pack("<HH2sHL", 0x0018, 0xA001, b"SQ", 0, 4) + b"\xff\xfe\x00\x01"
    other = struct.pack("<HH2sHL", 0x0071, 0x0010, b"UN", 0, 8) + b"SOMEBODY"
    data = struct.pack("<HH2sHL", 0x0071, 0x1001, b"UN", 0, 10) + b"S2NODE 1.0"
    ds = read_dataset(BytesIO(broken + other + data), is_implicit_VR=False, is_little_endian=True)
    assert is_own(ds) is None


@pytest.mark.parametrize("kind", sorted(OUTPUTS))
def test_every_output_of_this_node_is_recognised(kit: Any, kind: str) -> None:
    source = kit.source()
    for ds in OUTPUTS[kind](source, kit.synthesis(source), kit.context()):
        assert is_own(ds) is not None
    assert all(is_own(header) is None for header in source.headers)
