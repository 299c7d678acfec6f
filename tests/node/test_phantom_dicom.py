from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from config.intake import SeriesLimits
from engine.phantom import PhantomOptions, make_phantom
from node.outputs import to_bytes
from node.phantom_dicom import phantom_series
from node.series import read_series


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(3, PhantomOptions(shape=(8, 32, 32), spacing_mm=(24.0, 12.0, 12.0)))


def test_the_reader_gets_the_phantoms_numbers_and_place_back(phantom, tmp_path):
    paths = []
    for index, ds in enumerate(phantom_series(phantom)):
        paths.append(tmp_path / f"{index}.dcm")
        paths[-1].write_bytes(to_bytes(ds))
    volume = read_series(paths[::-1], SeriesLimits()).volume
    assert volume.geometry.spacing_mm == pytest.approx(phantom.geometry.spacing_mm)
    assert volume.geometry.origin_mm == pytest.approx(phantom.geometry.origin_mm, abs=1e-5)
    expected = np.clip(np.rint(phantom.phases["ncct"]), -1024, 3071)
    np.testing.assert_allclose(volume.hu, expected, atol=0.01)


def test_the_same_phantom_is_the_same_bytes(phantom):
    first, second = ([to_bytes(ds) for ds in phantom_series(phantom)] for _ in range(2))
    assert first == second


def test_phases_share_study_and_space_and_are_series_of_their_own(phantom):
    ncct, venous = (phantom_series(phantom, phase)[0] for phase in ("ncct", "venous"))
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName"):
        assert ncct[keyword].value == venous[keyword].value
    assert ncct.SeriesInstanceUID != venous.SeriesInstanceUID
    assert ncct.SeriesNumber != venous.SeriesNumber


def test_other_pixels_are_other_objects(phantom):
    noisy = replace(phantom, phases={"ncct": phantom.phases["ncct"] + np.float32(5)})
    assert phantom_series(noisy)[0].SOPInstanceUID != phantom_series(phantom)[0].SOPInstanceUID


def test_the_name_says_phantom_and_the_study_can_be_chosen(phantom):
    ds = phantom_series(phantom, study_uid="2.25.99", patient_name="PHANTOM^DEMO")[0]
    assert (ds.StudyInstanceUID, ds.PatientName) == ("2.25.99", "PHANTOM^DEMO")
    assert phantom_series(phantom)[0].PatientName == "PHANTOM^SEED0003"
    assert ds.QualityControlImage == "YES"
    assert "SyntheticData" not in ds


def test_an_unknown_phase_is_a_key_error(phantom):
    with pytest.raises(KeyError):
        phantom_series(phantom, "delayed")
