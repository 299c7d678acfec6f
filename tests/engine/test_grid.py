from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.grid import antialias_sigma_mm, model_grid, to_model, to_source, whole
from engine.volume import Float32, Geometry, Vec3

TILTED = ((0.0, 0.6, 0.8), (0.0, 0.8, -0.6), (1.0, 0.0, 0.0))


def positions(geometry: Geometry) -> Float32:
    """LPS x, y, z of every voxel, last axis."""
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), axis=-1)
    matrix = geometry.affine
    return (index @ matrix[:3, :3].T + matrix[:3, 3]).astype(np.float32)


def smooth_field(geometry: Geometry) -> Float32:
    """A smooth function of the place in the patient."""
    x, y, z = np.moveaxis(positions(geometry), -1, 0)
    return (100 * np.sin(x / 15) + 80 * np.cos(y / 12) + 50 * np.sin(z / 20)).astype(np.float32)


def inner(array: Float32, n: int = 3) -> Float32:
    return array[n:-n, n:-n, n:-n]


spacings = st.tuples(st.floats(0.8, 5), st.floats(0.6, 2), st.floats(0.6, 2))


@settings(max_examples=25, deadline=None)
@given(source=spacings, model=spacings)
def test_a_smooth_field_is_the_same_in_the_patient_on_both_grids_and_after_the_way_back(
    source: Vec3, model: Vec3
) -> None:
    shape = tuple(max(12, int(60 / s)) for s in source)
    geometry = Geometry(shape, source, (10.0, -20.0, 30.0), TILTED)  # type: ignore[arg-type]
    grid = model_grid(geometry, whole(geometry), model)
    hu = smooth_field(geometry)
    there = to_model(hu, grid)
    back = to_source(there, grid, 0, shape[0])
    assert there.shape == grid.model.shape
    assert there.dtype == back.dtype == np.float32
    assert back.shape == shape
    coarse = max(*source, *model)
    assert np.abs(inner(there) - inner(smooth_field(grid.model))).max() < 4 * coarse
    assert np.abs(inner(back) - inner(hu)).max() < 6 * coarse


@settings(max_examples=20, deadline=None)
@given(source=spacings, model=spacings, value=st.floats(-1000, 1000, width=32))
def test_a_constant_stays_the_same_constant_to_the_last_edge(source: Vec3, model: Vec3, value: float) -> None:
    geometry = Geometry((9, 21, 17), source)
    grid = model_grid(geometry, whole(geometry), model)
    there = to_model(np.full(geometry.shape, value, np.float32), grid)
    np.testing.assert_allclose(there, value, atol=2e-3)
    np.testing.assert_allclose(to_source(there, grid, 0, 9), value, atol=2e-3)


def test_slabs_of_the_way_back_are_parts_of_the_whole() -> None:
    geometry = Geometry((80, 14, 15), (1.25, 0.9, 0.9))
    grid = model_grid(geometry, (slice(3, 77), slice(2, 14), slice(0, 13)), (3.0, 1.5, 1.5))
    values = np.random.default_rng(1).normal(0, 50, grid.model.shape).astype(np.float32)
    parts = [to_source(values, grid, a, min(a + 7, 74)) for a in range(0, 74, 7)]
    np.testing.assert_allclose(np.concatenate(parts), to_source(values, grid, 0, 74), atol=1e-3)


def test_the_way_there_does_not_show_where_slabs_meet() -> None:
    geometry = Geometry((150, 8, 8), (1.0, 1.5, 1.5))
    grid = model_grid(geometry, whole(geometry), (2.2, 1.5, 1.5))
    hu = np.random.default_rng(1).normal(0, 50, geometry.shape).astype(np.float32)
    shifted = hu[22:]
    part = model_grid(
        Geometry(shifted.shape, (1.0, 1.5, 1.5)),
        whole(Geometry(shifted.shape, (1.0, 1.5, 1.5))),
        (2.2, 1.5, 1.5),
    )  # type: ignore[arg-type]
    np.testing.assert_allclose(to_model(hu, grid)[20:50], to_model(shifted, part)[10:40], atol=0.2)


def test_equal_spacing_copies_the_voxels_exactly() -> None:
    geometry = Geometry((6, 20, 20), (3.0, 1.5, 1.5))
    grid = model_grid(geometry, (slice(1, 5), slice(2, 18), slice(0, 20)), (3.001, 1.5, 1.5))
    hu = np.random.default_rng(1).normal(0, 50, geometry.shape).astype(np.float32)
    assert grid.coincides
    assert grid.model.origin_mm == geometry.position_of((1, 2, 0))
    np.testing.assert_array_equal(to_model(hu, grid), hu[1:5, 2:18])
    np.testing.assert_array_equal(to_source(to_model(hu, grid), grid, 1, 3), hu[2:4, 2:18])


def test_fine_patterns_are_smoothed_away_before_they_can_alias() -> None:
    geometry = Geometry((8, 64, 64), (1.5, 0.5, 0.5))
    checkers = (np.indices(geometry.shape).sum(axis=0) % 2 * 200 - 100).astype(np.float32)
    grid = model_grid(geometry, whole(geometry), (1.5, 1.3, 1.3))
    assert np.abs(inner(to_model(checkers, grid), 2)).max() < 5
    assert antialias_sigma_mm(2.0, 1.0) == 0


def test_noise_keeps_its_mean_and_loses_variance_when_voxels_grow() -> None:
    geometry = Geometry((40, 40, 40), (1.0, 0.7, 0.7))
    noise = np.random.default_rng(1).normal(40, 30, geometry.shape).astype(np.float32)
    there = to_model(noise, model_grid(geometry, whole(geometry), (3.0, 1.5, 1.5)))
    assert there.mean() == pytest.approx(40, abs=1)
    assert there.std() < 12
