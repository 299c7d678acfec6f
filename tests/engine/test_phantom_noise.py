"""The phantom's noise: the strength asked for, the grain of a scanner, independent between phases."""

from __future__ import annotations

import numpy as np
import pytest

from engine.phantom import PhantomOptions, draw_patient, make_phantom
from engine.phantom.noise import noise_field

SPACING = (3.0, 1.5, 1.5)


@pytest.mark.parametrize("spacing", [(3.0, 1.5, 1.5), (0.75, 0.75, 0.75), (5.0, 3.0, 3.0)])
def test_the_field_has_mean_zero_and_unit_deviation(spacing: tuple[float, float, float]) -> None:
    field = noise_field((1, 2), ((0, 12), (0, 160), (0, 160)), spacing)
    assert abs(field.mean()) < 0.02
    assert field.std() == pytest.approx(1.0, abs=0.02)


def test_the_spectrum_is_band_pass_not_white() -> None:
    field = noise_field((3, 4), ((0, 24), (0, 128), (0, 128)), (3.0, 0.75, 0.75))
    power = (np.abs(np.fft.fft2(field)) ** 2).mean(axis=0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128, 0.75), np.fft.fftfreq(128, 0.75)))
    bands = ((0.005, 0.03), (0.16, 0.24), (0.5, 0.6))  # cycles/mm
    low, middle, high = (power[(frequency >= a) & (frequency < b)].mean() for a, b in bands)
    assert middle > 5 * low
    assert middle > 2 * high


def test_neighbouring_slices_share_some_noise_at_thin_spacing() -> None:
    field = noise_field((5, 6), ((0, 12), (0, 96), (0, 96)), (1.0, 1.5, 1.5))
    assert np.corrcoef(field[:-1].ravel(), field[1:].ravel())[0, 1] > 0.3
    assert abs(np.corrcoef(field[:-6].ravel(), field[6:].ravel())[0, 1]) < 0.05


def test_a_part_of_the_field_has_the_bits_of_the_whole() -> None:
    whole = noise_field((7, 8), ((0, 9), (0, 150), (0, 150)), SPACING)
    part = noise_field((7, 8), ((2, 7), (50, 131), (63, 66)), SPACING)
    assert np.array_equal(part, whole[2:7, 50:131, 63:66])


def test_the_strength_is_the_one_asked_for_at_the_centre_and_less_at_the_rim() -> None:
    options, clean = PhantomOptions(noise_hu=20.0), PhantomOptions(noise_hu=0.0)
    centre, rim = ((40, 52), (112, 144), (112, 144)), ((40, 52), (112, 144), (0, 24))
    expected = 20.0 * draw_patient(2).build.relative_size ** 0.8
    noise = [
        make_phantom(2, options, box).phases["ncct"] - make_phantom(2, clean, box).phases["ncct"]
        for box in (centre, rim)
    ]
    assert noise[0].std() == pytest.approx(expected, rel=0.06)
    inside = noise[1][make_phantom(2, clean, rim).phases["ncct"] > -990]
    assert inside.size == 0 or inside.std() < 0.8 * noise[0].std()


def test_phases_have_noise_of_their_own() -> None:
    box = ((40, 46), (100, 140), (100, 140))
    noisy, clean = make_phantom(9, PhantomOptions(), box), make_phantom(9, PhantomOptions(noise_hu=0.0), box)
    grain = [(noisy.phases[phase] - clean.phases[phase]).ravel() for phase in ("ncct", "arterial", "venous")]
    assert np.abs(np.corrcoef(grain) - np.eye(3)).max() < 0.06
