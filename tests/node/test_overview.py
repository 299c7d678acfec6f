"""The picture has a column for every volume and shows the planes where most has changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.volume import Geometry, Volume
from node.overview import body_box, draw_overview, on_grid, panels_of, plane_centre

SHAPE = (6, 20, 24)
GEOMETRY = Geometry(SHAPE, (5.0, 2.0, 2.0))


def body() -> np.ndarray:
    """A block of soft tissue in air."""
    hu = np.full(SHAPE, -1000.0, dtype=np.float32)
    hu[:, 4:16, 5:19] = 40.0
    return hu


def enhanced() -> np.ndarray:
    hu = body()
    hu[3, 8, 11] = 300.0
    return hu


def test_with_a_truth_each_phase_has_three_columns_and_without_two() -> None:
    source, synthesis = body(), enhanced()
    titles = [panel.title for panel in panels_of(source, {"arterial": synthesis}, {"arterial": synthesis})]
    assert titles == [
        "source (non-contrast)", "SYNTHETIC arterial", "true arterial", "synthetic − true\narterial",
    ]  # fmt: skip
    assert len(panels_of(source, {"arterial": synthesis}, {})) == 3


def test_the_planes_go_through_what_changed_most() -> None:
    assert plane_centre(body(), [enhanced()]) == (3, 8, 11)


def test_without_change_the_planes_go_through_the_body_and_without_a_body_through_the_middle() -> None:
    slices, rows, columns = plane_centre(body(), [body()])
    assert 0 <= slices < 6 and 4 <= rows < 16 and 5 <= columns < 19
    air = np.full(SHAPE, -1000.0, dtype=np.float32)
    assert plane_centre(air, [air]) == (3, 10, 12)


def test_the_picture_is_cut_to_the_body() -> None:
    assert body_box(body()) == (slice(None), slice(4, 16), slice(5, 19))
    air = np.full(SHAPE, -1000.0, dtype=np.float32)
    assert body_box(air) == (slice(None), slice(None), slice(None))


@pytest.mark.parametrize("head", [1.0, -1.0])
def test_a_png_is_written_whichever_way_the_slices_run(tmp_path: Path, head: float) -> None:
    directions = ((0.0, 0.0, head), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    geometry = Geometry(SHAPE, (5.0, 2.0, 2.0), directions=directions)
    path = tmp_path / "new" / "picture.png"
    panels = panels_of(body(), {"venous": enhanced()}, {})
    draw_overview(path, panels, geometry, plane_centre(body(), [enhanced()]), "SYNTHETIC")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_volume_on_another_grid_is_refused() -> None:
    assert on_grid(Volume(body(), GEOMETRY), GEOMETRY) is not None
    with pytest.raises(ValueError, match="not on a grid"):
        on_grid(Volume(body(), GEOMETRY), Geometry((6, 20, 25), (5.0, 2.0, 2.0)))
