from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.tiles import TilePlan, blend, plan_tiles
from engine.volume import Float32, Shape3


def collect(x: Float32, plan: TilePlan, translate) -> Float32:  # type: ignore[no-untyped-def]
    result = np.full(plan.shape, np.nan, np.float32)
    expected = 0
    for where, part in blend(x, plan, translate, lambda fraction: None):
        assert where.start == expected
        expected = where.stop
        result[where] = part
    assert expected == plan.shape[0]
    return result


sizes = st.tuples(*[st.integers(1, 40)] * 3)
tiles = st.tuples(st.sampled_from([2, 4, 8, 16]), st.sampled_from([4, 8, 16]), st.sampled_from([4, 12, 16]))


@settings(max_examples=60, deadline=None)
@given(shape=sizes, tile=tiles, overlap=st.floats(0, 0.75))
def test_the_weights_sum_to_one_at_every_voxel(shape: Shape3, tile: Shape3, overlap: float) -> None:
    plan = plan_tiles(shape, tile, overlap, (2, 4, 4))
    for axis, size in zip(plan.axes, shape, strict=True):
        total = np.zeros(axis.padded, np.float32)
        for start, weight in zip(axis.starts, axis.weights, strict=True):
            assert weight.min() >= 0
            total[start : start + axis.tile] += weight
        np.testing.assert_allclose(total, 1, atol=3e-7)
        assert axis.padded >= size


@settings(max_examples=60, deadline=None)
@given(shape=sizes, tile=tiles, overlap=st.floats(0, 0.75))
def test_tiles_start_on_the_latent_grid_and_overlap_as_asked(
    shape: Shape3, tile: Shape3, overlap: float
) -> None:
    for axis, quantum in zip(plan_tiles(shape, tile, overlap, (2, 4, 4)).axes, (2, 4, 4), strict=True):
        steps = np.diff(axis.starts)
        assert all(start % quantum == 0 for start in axis.starts)
        assert all(steps > 0)
        assert all(steps <= max(quantum, axis.tile * (1 - overlap)))


@settings(max_examples=25, deadline=None)
@given(shape=sizes, tile=tiles, overlap=st.floats(0, 0.75), seed=st.integers(0, 99))
def test_tiles_that_change_nothing_give_the_volume_back(
    shape: Shape3, tile: Shape3, overlap: float, seed: int
) -> None:
    x = np.random.default_rng(seed).normal(0, 300, shape).astype(np.float32)
    plan = plan_tiles(shape, tile, overlap, (2, 4, 4))
    np.testing.assert_allclose(collect(x, plan, lambda tile, start: tile), x, atol=5e-4)


def test_every_tile_has_the_one_size_and_sees_the_edge_repeated() -> None:
    x = np.arange(2 * 3 * 5, dtype=np.float32).reshape(2, 3, 5)
    plan = plan_tiles(x.shape, (4, 4, 4), 0.25)  # type: ignore[arg-type]
    seen = []

    def translate(tile: Float32, start: Shape3) -> Float32:
        seen.append(tile)
        return tile

    collect(x, plan, translate)
    assert len(seen) == plan.count == 2
    assert {tile.shape for tile in seen} == {(4, 4, 4)}
    np.testing.assert_array_equal(seen[0][3], seen[0][1])


def test_progress_rises_to_one() -> None:
    fractions: list[float] = []
    plan = plan_tiles((9, 9, 9), (4, 4, 4), 0.25)
    for _ in blend(np.zeros((9, 9, 9), np.float32), plan, lambda tile, start: tile, fractions.append):
        pass
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len(fractions) == plan.count


def test_a_tile_off_the_latent_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple"):
        plan_tiles((8, 8, 8), (3, 4, 4), 0.25, (2, 4, 4))
