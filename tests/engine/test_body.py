from __future__ import annotations

import numpy as np
import pytest

from engine.body import body_weight, find_body
from engine.errors import VolumeUnsupported
from engine.grid import model_grid
from engine.volume import Geometry, Volume

GEOMETRY = Geometry((20, 120, 120), (3.0, 2.0, 2.0))


def patient_on_a_table() -> Volume:
    """A column of tissue, 60 mm in radius, around row 50 and column 60, a lung in it, a table at row 85."""
    rows, columns = np.indices((120, 120))
    plane = np.where(np.hypot(rows - 50, columns - 60) < 30, 40, -1000)
    plane[np.hypot(rows - 50, columns - 60) < 8] = -850
    plane[85:87, 10:110] = 100
    return Volume(np.repeat(plane[None], 20, axis=0).astype(np.float32), GEOMETRY)


def test_the_box_is_around_the_body_and_leaves_the_table_out() -> None:
    slices, rows, columns = find_body(patient_on_a_table()).box
    assert (slices.start, slices.stop) == (0, 20)
    assert 14 <= rows.start <= 20
    assert 80 <= rows.stop <= 88
    assert 24 <= columns.start <= 30
    assert 90 <= columns.stop <= 98


def test_the_weight_is_one_in_the_body_and_its_lungs_and_nothing_on_the_table() -> None:
    volume = patient_on_a_table()
    body = find_body(volume)
    grid = model_grid(GEOMETRY, (slice(2, 18), slice(10, 110), slice(20, 100)), (4.0, 1.5, 1.5))
    parts = [body_weight(body, grid, a, b) for a, b in ((0, 5), (5, grid.model.shape[0]))]
    weight = np.concatenate(parts)
    rows = 10 - 0.5 + (np.arange(weight.shape[1]) + 0.5) * 1.5 / 2
    columns = 20 - 0.5 + (np.arange(weight.shape[2]) + 0.5) * 1.5 / 2
    radius = np.hypot(rows[:, None] - 50, columns[None, :] - 60)
    assert weight.shape == grid.model.shape
    assert weight[:, radius < 29.5].min() == 1
    assert weight[:, rows > 84.5].max() == 0
    assert weight[:, radius > 39].max() == 0


@pytest.mark.parametrize("thickness", [1.0, 2.5, 5.0])
def test_the_weight_is_one_in_the_first_and_the_last_slices_of_a_body_that_ends_in_the_volume(
    thickness: float,
) -> None:
    first, last = 17, 44
    hu = np.full((60, 120, 120), -1000, np.float32)
    hu[first : last + 1] = patient_on_a_table().hu[0]
    geometry = Geometry(hu.shape, (thickness, 2.0, 2.0))
    whole = (slice(0, 60), slice(0, 120), slice(0, 120))
    body = find_body(Volume(hu, geometry))
    weight = body_weight(body, model_grid(geometry, whole, geometry.spacing_mm), 0, 60)
    rows, columns = np.indices((120, 120))
    inside = np.hypot(rows - 50, columns - 60) < 29.5
    assert weight[first : last + 1, inside].min() == 1
    reach = 2 * body.step[0]
    assert weight[: first - reach].max() == weight[last + reach + 1 :].max() == 0


def test_air_has_no_body() -> None:
    with pytest.raises(VolumeUnsupported, match="no body"):
        find_body(Volume(np.full(GEOMETRY.shape, -1000, np.float32), GEOMETRY))
