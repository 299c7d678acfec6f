from __future__ import annotations

import numpy as np

from engine.noise import NoiseField


def test_blocks_that_overlap_hold_the_same_numbers() -> None:
    field = NoiseField(seed=5, plane=(12, 14))
    whole = field.block(2, 3, (0, 0, 0), (6, 12, 14))
    part = field.block(2, 3, (2, 4, 5), (3, 8, 9))
    assert part.shape == (2, 1, 3, 3, 8, 9)
    np.testing.assert_array_equal(part, whole[..., 2:5, 4:12, 5:14])


def test_the_field_is_standard_normal_and_changes_with_the_seed() -> None:
    one, other = (NoiseField(seed, (40, 40)).block(1, 4, (0, 0, 0), (10, 40, 40)) for seed in (1, 2))
    assert abs(one.mean()) < 0.01
    assert abs(one.std() - 1) < 0.01
    assert not np.array_equal(one, other)


def test_a_sampler_without_noise_gets_none() -> None:
    assert NoiseField(1, (4, 4)).block(0, 3, (0, 0, 0), (2, 4, 4)).shape == (0, 1, 3, 2, 4, 4)
