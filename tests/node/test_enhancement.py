from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset

from config.intake import IntakeSettings
from engine.phantom import Phantom, PhantomOptions, make_phantom
from engine.volume import Geometry, Volume
from node.enhancement import measure_enhancement
from node.errors import SeriesRejected
from node.intake import enhanced, examine_series
from node.series import SourceSeries, read_series

RULES = IntakeSettings()
SMALL = PhantomOptions(shape=(20, 128, 128), spacing_mm=(6.0, 3.0, 3.0))


@pytest.fixture(scope="module", params=[1, 2])
def phantom(request: pytest.FixtureRequest) -> Phantom:
    return make_phantom(request.param, SMALL)


def looks_enhanced(volume: Volume) -> bool:
    return enhanced(measure_enhancement(volume), RULES) is not None


def test_the_unenhanced_phase_of_a_phantom_passes(phantom: Phantom) -> None:
    assert not looks_enhanced(Volume(phantom.phases["ncct"], phantom.geometry))


@pytest.mark.parametrize("phase", ["arterial", "venous"])
def test_an_enhanced_phase_of_a_phantom_is_seen(phantom: Phantom, phase: str) -> None:
    assert looks_enhanced(Volume(phantom.phases[phase], phantom.geometry))


@pytest.mark.parametrize("phase", ["ncct", "arterial"])
def test_the_verdict_survives_noise_and_thicker_slices(phantom: Phantom, phase: str) -> None:
    hu = phantom.phases[phase]
    noisy = hu + np.random.default_rng(3).normal(0, 25, hu.shape).astype(np.float32)
    thick = hu.reshape(10, 2, *hu.shape[1:]).mean(axis=1)
    coarser = replace(phantom.geometry, shape=thick.shape, spacing_mm=(12.0, 3.0, 3.0))
    for volume in (Volume(noisy, phantom.geometry), Volume(thick, coarser)):
        assert looks_enhanced(volume) == (phase != "ncct")


def test_rows_that_grow_towards_the_front_are_turned(phantom: Phantom) -> None:
    geometry = replace(phantom.geometry, directions=((0.0, 0.0, 1.0), (0.0, -1.0, 0.0), (1.0, 0.0, 0.0)))
    hu = phantom.phases["venous"]
    upright = measure_enhancement(Volume(hu, phantom.geometry))
    assert measure_enhancement(Volume(np.ascontiguousarray(hu[:, ::-1]), geometry)) == upright


@pytest.mark.parametrize("hu", [-1000.0, 40.0, 300.0, 2000.0])
def test_what_is_no_body_has_shares_all_the_same(hu: float) -> None:
    volume = Volume(np.full((5, 40, 40), hu, np.float32), Geometry((5, 40, 40), (5.0, 2.0, 2.0)))
    measured = measure_enhancement(volume)
    assert 0 <= measured.enhanced_share <= 1
    assert measured.vessel_mm2 >= 0


def test_a_single_slice_is_measured(phantom: Phantom) -> None:
    for phase, hu in phantom.phases.items():
        one = Volume(hu[10:11], replace(phantom.geometry, shape=(1, 128, 128)))
        assert looks_enhanced(one) == (phase != "ncct")


def test_an_enhanced_series_is_rejected_with_numbers(phantom: Phantom) -> None:

    series = SourceSeries((Dataset(),), Volume(phantom.phases["venous"], phantom.geometry))
    with pytest.raises(SeriesRejected, match="of the soft tissue is above 80 HU") as caught:
        examine_series(series, RULES)
    assert caught.value.code == "HAS-CONTRAST"


# --- real series --------------------------------------------------------------------------------

REAL = [
    ("ncct_abdomen_ge_acrin001", False),
    ("cect_portalvenous_ge_crlm1004", True),
    ("cect_arterial_ge_cmbcrc", True),
    ("vol_totalsegmentator/example_ct_dicom", True),
]


@pytest.mark.parametrize(("name", "is_enhanced"), REAL)
def test_real_series_are_judged_by_their_pixels_alone(ct_dir: Path, name: str, is_enhanced: bool) -> None:
    paths = [path for path in sorted((ct_dir / name).iterdir()) if path.suffix != ".txt"]
    measured = measure_enhancement(read_series(paths, RULES.limits).volume)
    assert (enhanced(measured, RULES) is not None) == is_enhanced
    if is_enhanced:
        assert measured.enhanced_share > 3 * RULES.max_enhanced_share
    else:
        assert measured.enhanced_share < RULES.max_enhanced_share / 3


@pytest.mark.parametrize(
    ("name", "is_enhanced"),
    [("example_ct.nii.gz", False), ("example_ct_sm.nii.gz", False), ("aorta_report/ct_cropped.nii.gz", True)],
)
def test_real_volumes_are_judged_by_their_pixels_alone(ct_dir: Path, name: str, is_enhanced: bool) -> None:
    path = ct_dir / "vol_totalsegmentator" / name
    image: Any = sitk.DICOMOrient(sitk.ReadImage(str(path), sitk.sitkFloat32), "LPS")
    column, row, step = image.GetSpacing()
    hu = sitk.GetArrayFromImage(image)
    assert looks_enhanced(Volume(hu, Geometry(hu.shape, (step, row, column)))) == is_enhanced
