from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.compose import (
    EPSILON_HU2,
    add_within_window,
    box_mean,
    detail_residual,
    guided_filter,
    window_weight,
)
from engine.volume import Float32, Shape3

WINDOW = (-200.0, 400.0)
SPACING = (3.0, 1.5, 1.5)


def noise(shape: tuple[int, ...], sd: float = 15.0, seed: int = 1) -> Float32:
    return np.random.default_rng(seed).normal(0, sd, shape).astype(np.float32)


def vessel(shape: tuple[int, ...]) -> Float32:
    """1 in a square vessel along the slices."""
    mask = np.zeros(shape, np.float32)
    mask[:, 12:17, 12:17] = 1
    return mask


@settings(max_examples=30, deadline=None)
@given(value=st.floats(-300, 300, width=32), detail=st.floats(0, 1))
def test_a_constant_residual_passes_exactly(value: float, detail: float) -> None:
    guide = 300 * vessel((6, 30, 30)) + noise((6, 30, 30))
    residual = np.full(guide.shape, value, np.float32)
    np.testing.assert_allclose(
        detail_residual(residual, guide, detail, SPACING), value, rtol=2e-7, atol=1e-30
    )


def test_box_means_repeat_the_edge() -> None:
    line = np.arange(5, dtype=np.float32).reshape(1, 1, 5)
    np.testing.assert_allclose(box_mean(line, (0, 0, 1))[0, 0], [1 / 3, 1, 2, 3, 11 / 3], rtol=1e-6)


def test_at_full_detail_the_source_s_noise_is_kept_once() -> None:
    source = 40 + noise((8, 40, 40))
    guide = np.full_like(source, 90)
    kept = source + detail_residual(guide - source, guide, 1.0, SPACING)
    assert kept.mean() == pytest.approx(90, abs=0.5)
    assert kept.std() == pytest.approx(15, rel=0.1)
    assert np.corrcoef(kept.ravel(), source.ravel())[0, 1] > 0.98


def test_at_full_detail_noise_of_the_model_is_not_added_to_the_source_s() -> None:
    source = 40 + noise((8, 40, 40))
    guide = 90 + noise(source.shape, sd=8, seed=2)
    kept = source + detail_residual(guide - source, guide, 1.0, SPACING)
    assert kept.std() < 15 * 1.1


def test_at_no_detail_the_result_is_the_model_s() -> None:
    source, guide = 40 + noise((4, 20, 20)), 90 + noise((4, 20, 20), seed=2)
    np.testing.assert_allclose(
        source + detail_residual(guide - source, guide, 0.0, SPACING), guide, atol=1e-4
    )


def test_at_full_detail_an_enhanced_vessel_keeps_its_edge_and_its_height() -> None:
    mask = vessel((8, 30, 30))
    source = 40 + noise(mask.shape, sd=10)
    guide = 40 + 260 * mask
    kept = source + detail_residual(guide - source, guide, 1.0, SPACING)
    assert kept[:, 13:16, 13:16].mean() == pytest.approx(300, abs=6)
    assert np.abs(kept[:, 12:17, 11].mean() - 40) < 15
    assert np.abs(kept[:, 12:17, 12].mean() - 300) < 15


@pytest.mark.parametrize(("width", "kept_share"), [(2, 0.85), (3, 0.9), (5, 0.97)])
def test_at_full_detail_a_branch_in_an_organ_that_enhances_too_keeps_its_height(
    width: int, kept_share: float
) -> None:
    branch = np.zeros((8, 40, 40), np.float32)
    branch[:, 15 : 15 + width, :] = 1
    source = 55 - 12 * branch + noise(branch.shape, sd=12)
    guide = 108 + 60 * branch
    kept = source + detail_residual(guide - source, guide, 1.0, SPACING)
    height = kept[branch > 0].mean() - kept[:, 25:].mean()
    assert height > kept_share * 60
    assert kept[:, 25:].std() == pytest.approx(12, rel=0.1)


def test_between_them_detail_mixes_linearly() -> None:
    source, guide = 40 + noise((4, 20, 20)), 90 + 200 * vessel((4, 20, 20))
    whole, none, half = (detail_residual(guide - source, guide, w, SPACING) for w in (1.0, 0.0, 0.5))
    np.testing.assert_allclose(half, (whole + none) / 2, atol=1e-3)


def boxes(values: Float32, radius: tuple[int, ...]) -> NDArray[np.float64]:
    """Means over boxes as one would write them down."""
    padded = np.pad(values.astype(np.float64), [(r, r) for r in radius], mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, [2 * r + 1 for r in radius])
    return windows.mean(axis=(3, 4, 5))


@pytest.mark.parametrize(("shape", "radius"), [((9, 12, 11), (1, 2, 3)), ((1, 5, 5), (2, 1, 7))])
def test_the_guided_filter_is_that_of_the_paper(shape: tuple[int, ...], radius: Shape3) -> None:
    p, guide = noise(shape, seed=3) - 40, 90 + noise(shape, sd=60)
    mean_p, mean_i = boxes(p, radius), boxes(guide, radius)
    variance = boxes(guide * guide, radius) - mean_i**2
    a = (boxes(guide * p, radius) - mean_i * mean_p) / (variance + EPSILON_HU2)
    expected = boxes(a, radius) * guide + boxes(mean_p - a * mean_i, radius)
    np.testing.assert_allclose(
        np.stack(list(guided_filter(p, guide, radius, EPSILON_HU2))), expected, atol=5e-3
    )


def test_what_is_written_over_is_not_looked_at_again() -> None:
    guide = 90 + noise((14, 9, 9), sd=60)
    residual = noise(guide.shape, seed=3)
    expected = np.stack(list(guided_filter(residual, guide, (1, 1, 1), EPSILON_HU2)))
    np.testing.assert_array_equal(detail_residual(residual.copy(), guide, 1.0, SPACING), expected)


@settings(max_examples=50, deadline=None)
@given(hu=st.floats(-1100, 3000, width=32), edge=st.floats(1, 500))
def test_outside_the_window_the_source_is_kept_to_the_bit(hu: float, edge: float) -> None:
    source = np.full((1, 1, 1), hu, np.float32)
    out = add_within_window(source, np.full_like(source, 123.0), WINDOW, edge)
    if not WINDOW[0] < hu < WINDOW[1]:
        assert out[0, 0, 0] == source[0, 0, 0]
    assert source[0, 0, 0] <= out[0, 0, 0] <= source[0, 0, 0] + 123.001


def test_the_blend_has_no_step_and_no_plateau_below_one() -> None:
    source = np.arange(-250, 450, 1, dtype=np.float32)
    weight = window_weight(source, WINDOW, 20.0)
    assert np.abs(np.diff(weight)).max() < 0.08
    assert weight[(source >= -180) & (source <= 380)].min() == 1
    assert weight[(source <= -200) | (source >= 400)].max() == 0
    assert window_weight(np.float32([100.0]), WINDOW, 5000.0)[0] == 1


def test_values_are_never_flattened_at_the_window_s_end() -> None:
    source = np.float32([350.0, 370.0]).reshape(1, 1, 2)
    out = add_within_window(source, np.full_like(source, 200.0), WINDOW, 20.0)
    np.testing.assert_allclose(out[0, 0], [550, 570])
