from __future__ import annotations

import numpy as np
import pytest

from engine import noise
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


@pytest.mark.parametrize("kept_bytes", [0, 3 * 2 * 3 * 12 * 14 * 4, 64 << 20])
def test_what_is_kept_is_bounded_in_bytes_and_changes_no_number(
    monkeypatch: pytest.MonkeyPatch, kept_bytes: int
) -> None:
    monkeypatch.setattr(noise, "KEPT_BYTES", kept_bytes)
    field = NoiseField(seed=5, plane=(12, 14))
    for start in (0, 2, 0):
        block = field.block(2, 3, (start, 1, 2), (4, 5, 6))
        for k in range(4):
            drawn = np.random.default_rng([5, start + k]).standard_normal((2, 3, 12, 14), dtype=np.float32)
            np.testing.assert_array_equal(block[:, 0, :, k], drawn[..., 1:6, 2:8])
        assert sum(each.nbytes for values in field.kept.values() for each in values) <= kept_bytes
    assert len(field.kept) == min(6, kept_bytes // (2 * 3 * 12 * 14 * 4))


def test_a_sampler_without_noise_gets_none() -> None:
    assert NoiseField(1, (4, 4)).block(0, 3, (0, 0, 0), (2, 4, 4)).shape == (0, 1, 3, 2, 4, 4)
