from __future__ import annotations

from io import BytesIO

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from node import private


def with_block() -> Dataset:
    ds = Dataset()
    private.write_private_block(ds, {private.PHASE: "ARTERIAL", private.SOURCE_SERIES_UID: "1.2.3"})
    return ds


def hop(ds: Dataset, *, implicit: bool) -> Dataset:
    buffer = BytesIO()
    ds.save_as(buffer, implicit_vr=implicit, little_endian=True)
    return dcmread(buffer, force=True)


@pytest.mark.parametrize("implicit", [True, False])
def test_the_block_survives_a_hop_with_its_vrs(implicit):
    ds = hop(with_block(), implicit=implicit)
    assert private.read_private_block(ds) == {private.PHASE: "ARTERIAL", private.SOURCE_SERIES_UID: "1.2.3"}
    assert ds[0x0071, 0x1000 | private.PHASE].VR == "CS"
    assert ds[0x0071, 0x1000 | private.SOURCE_SERIES_UID].VR == "UI"


def test_elements_that_came_as_unknown_bytes_are_still_read():
    ds = with_block()
    ds.add_new((0x0071, 0x1000 | private.PHASE), "UN", b"VENOUS")
    ds.add_new((0x0071, 0x1000 | private.SOURCE_SERIES_UID), "UN", b"1.2.4\x00")
    assert private.read_private_block(ds) == {private.PHASE: "VENOUS", private.SOURCE_SERIES_UID: "1.2.4"}


def test_the_block_is_found_at_whatever_number_it_got():
    ds = Dataset()
    ds.private_block(0x0071, "SOMEBODY ELSE", create=True).add_new(1, "LO", "other")
    private.write_private_block(ds, {private.PHASE: "VENOUS"})
    assert ds[0x0071, 0x1103].value == "VENOUS"
    assert private.read_private_block(ds) == {private.PHASE: "VENOUS"}


def test_a_stripped_block_reads_as_empty():
    assert not private.has_private_block(Dataset())
    assert private.read_private_block(Dataset()) == {}


def test_an_unknown_element_is_refused():
    with pytest.raises(KeyError):
        private.write_private_block(Dataset(), {0x77: "x"})


def test_the_creator_and_the_elements_fit_their_vrs():
    assert len(private.PRIVATE_CREATOR) <= 64
    assert private.PRIVATE_GROUP % 2 == 1
    assert all(0x01 <= offset <= 0xFF for offset in private.DICTIONARY)
