from __future__ import annotations

import numpy as np
import pytest

from engine.volume import Geometry, Volume


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"shape": (0, 2, 2)}, "three positive counts"),
        ({"spacing_mm": (1.0, -1.0, 1.0)}, "three positive lengths"),
        ({"spacing_mm": (1.0, float("nan"), 1.0)}, "three positive lengths"),
        ({"directions": ((0, 0, 1), (0, 1, 0), (0.5, 0.5, 0))}, "right angles"),
    ],
)
def test_a_geometry_that_is_no_grid_cannot_be_made(wrong: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Geometry(**({"shape": (2, 2, 2), "spacing_mm": (1.0, 1.0, 1.0)} | wrong))  # type: ignore[arg-type]


def test_positions_follow_the_directions_in_slice_row_column_order() -> None:
    directions = ((0.0, 0.0, -1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    geometry = Geometry((4, 5, 6), (3.0, 2.0, 1.0), (10.0, 20.0, 30.0), directions)
    assert geometry.position_of((1, 2, 3)) == pytest.approx((14, 23, 27))
    assert geometry.extent_mm == (12.0, 10.0, 6.0)


def test_array_and_grid_agree_or_there_is_no_volume() -> None:
    geometry = Geometry((2, 3, 4), (1.0, 1.0, 1.0))
    volume = Volume(np.zeros((2, 3, 4), np.float32), geometry)
    assert volume.with_array(np.ones((2, 3, 4), np.float32)).hu.max() == 1
    with pytest.raises(ValueError, match="does not fit"):
        volume.with_array(np.ones((2, 3, 5), np.float32))
    with pytest.raises(ValueError, match="float32"):
        Volume(np.zeros((2, 3, 4)), geometry)
