"""The oracle is the mean over the patients that an unenhanced scan cannot tell apart."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from engine.phantom import LABELS, Phantom, PhantomOptions, draw_patient, make_phantom
from engine.phantom.anatomy import stream
from engine.phantom.body import draw_build
from engine.phantom.calibre import VESSELS, thin_vessels, vessel_share
from engine.phantom.enhancement import TISSUES, draw_enhancement
from engine.phantom.oracle import (
    ENHANCED,
    expected_enhancement,
    expected_images,
    expected_patient,
    residual_sd,
)
from engine.phantom.organ_means import eroded

ORGANS = ("aorta", "portal_vein", "liver", "renal_cortex", "spleen", "pancreas", "muscle", "fat")
COARSE = PhantomOptions(shape=(24, 72, 72), spacing_mm=(12.0, 5.0, 5.0), noise_hu=8.0)
PATIENTS = 1000


@cache
def population() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(patient, phase, organ): attenuation less its expectation, the SD that the table states; body sizes."""
    errors, sds, sizes = [], [], []
    for seed in range(PATIENTS):
        size = draw_build(stream(seed, "build")).relative_size
        drawn = draw_enhancement(stream(seed, "enhancement"), size).hu
        expected = expected_enhancement(drawn["ncct"], size).hu
        errors.append([[drawn[p][o] - expected[p][o] for o in ORGANS] for p in ENHANCED])
        sds.append([[residual_sd(o, p, size) for o in ORGANS] for p in ENHANCED])
        sizes.append(size)
    return np.array(errors), np.array(sds), np.array(sizes)


@cache
def coarse(seed: int) -> Phantom:
    return make_phantom(seed, COARSE)


def test_over_many_patients_the_mean_error_of_every_organ_is_zero_within_its_standard_error() -> None:
    errors, _, _ = population()
    standard_error = errors.std(axis=0) / np.sqrt(PATIENTS)
    assert np.all(np.abs(errors.mean(axis=0)) < 3.5 * standard_error)


def test_no_shift_of_an_organ_lowers_the_squared_error_by_more_than_chance() -> None:
    errors, _, _ = population()
    best_shift = errors.mean(axis=0)
    gained = (errors**2).mean(axis=0) - ((errors - best_shift) ** 2).mean(axis=0)
    by_chance = errors.var(axis=0) / PATIENTS  # what the best of all shifts gains on average in a sample
    assert np.all(gained < 12 * by_chance)


def test_the_residual_is_the_spread_that_the_table_states() -> None:
    errors, sds, _ = population()
    assert np.allclose((errors / sds).std(axis=0), 1, atol=0.08)
    assert residual_sd("aorta", "arterial") == pytest.approx(43, abs=1)
    assert residual_sd("bone", "arterial") == 0


def test_what_the_scan_shows_of_the_body_is_already_used() -> None:
    errors, sds, sizes = population()
    for phase, organ in np.ndindex(*errors.shape[1:]):
        seen = np.corrcoef(sizes, errors[:, phase, organ] / sds[:, phase, organ])[0, 1]
        assert abs(seen) < 3.5 / np.sqrt(PATIENTS)


def test_the_oracle_patient_has_the_same_anatomy_and_the_same_unenhanced_scan() -> None:
    patient = draw_patient(3)
    oracle = expected_patient(patient)
    assert oracle.enhancement.hu["ncct"] == patient.enhancement.hu["ncct"]
    assert [part.shape for part in oracle.parts] == [part.shape for part in patient.parts]
    assert oracle.enhancement.hu["arterial"]["bone"] == patient.enhancement.hu["ncct"]["bone"]


def test_the_image_is_the_scan_with_the_expected_rise_and_keeps_its_grain() -> None:
    phantom = coarse(5)
    images = expected_images(phantom)
    for phase in ENHANCED:
        rise = images.on_source[phase] - phantom.phases["ncct"]
        assert rise.dtype == np.float32
        assert np.abs(rise[eroded(phantom.labels == LABELS["air"], 2, 1)]).max() < 0.5
        grain = images.on_source[phase] - images.noise_free[phase]
        inside = eroded(phantom.labels == LABELS["liver"])
        assert 4 < grain[inside].std() < 12


def test_organs_of_the_image_are_off_by_what_the_patient_differs_from_the_average() -> None:
    for seed in (1, 5):
        phantom = coarse(seed)
        patient = draw_patient(seed)
        expected = expected_patient(patient).enhancement
        images = expected_images(phantom)
        for phase in ENHANCED:
            where = eroded(phantom.labels == LABELS["liver"])
            off = (images.noise_free[phase] - phantom.phases[phase])[where].mean()
            wanted = expected.hu[phase]["liver"] - patient.enhancement.hu[phase]["liver"]
            assert off == pytest.approx(wanted, abs=1.5)


def test_painting_is_linear_so_the_mean_of_the_images_is_the_image_of_the_mean() -> None:
    """Partial volume included: the rises of two images differ by one factor wherever only blood enhances."""
    still = PhantomOptions(COARSE.shape, COARSE.spacing_mm, noise_hu=0.0)
    phantom = make_phantom(7, still)
    rise = expected_images(phantom).noise_free["arterial"] - phantom.phases["ncct"]
    true = phantom.phases["arterial"] - phantom.phases["ncct"]
    patient = draw_patient(7)
    most = expected_patient(patient).enhancement.hu["arterial"]
    drawn, native = patient.enhancement.hu["arterial"], patient.enhancement.hu["ncct"]
    factors = {name: (most[name] - native[name]) / (drawn[name] - native[name]) for name in ("aorta", "fat")}
    edge = (phantom.labels == LABELS["aorta"]) & ~eroded(phantom.labels == LABELS["aorta"])
    got = rise[edge].sum() / true[edge].sum()
    assert got == pytest.approx(factors["aorta"], abs=0.03)


def test_a_box_of_a_phantom_or_one_without_its_unenhanced_phase_is_refused() -> None:
    box = make_phantom(1, COARSE, ((0, 12), (0, 72), (0, 72)))
    with pytest.raises(ValueError, match="a box of a phantom"):
        expected_images(box)
    alone = make_phantom(1, PhantomOptions(COARSE.shape, COARSE.spacing_mm, phases=("venous",)))
    with pytest.raises(ValueError, match="no ncct"):
        expected_images(alone)


def test_every_tissue_of_the_table_has_an_expectation() -> None:
    native = {name: tissue.ncct for name, tissue in TISSUES.items()}
    expected = expected_enhancement(native, 1.0)
    assert all(expected.hu[phase].keys() == TISSUES.keys() for phase in ENHANCED)


def test_thin_vessels_are_vessels_and_thick_ones_are_not_among_them() -> None:
    phantom = make_phantom(4, PhantomOptions(shape=(48, 128, 128), spacing_mm=(6.0, 2.5, 2.5), noise_hu=0.0))
    inside, around = thin_vessels(phantom)
    labels = set(np.unique(phantom.labels[inside]).tolist())
    assert inside.sum() > 30
    assert labels <= {LABELS[name] for name in VESSELS}
    assert LABELS["aorta"] not in labels
    assert not (inside & around).any()
    assert not np.isin(phantom.labels[around], [LABELS[name] for name in VESSELS]).any()
    everything = vessel_share(phantom, (0.0, 100.0)) >= 0.5
    vessel = np.isin(phantom.labels, [LABELS[name] for name in VESSELS if name != "ivc"])
    assert (everything & vessel).sum() > 0.99 * vessel.sum()
