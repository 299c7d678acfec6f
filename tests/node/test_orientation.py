from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config.intake import IntakeSettings
from config.settings import Settings
from engine.pipeline import open_engine
from engine.session import SessionPolicy
from engine.volume import Geometry, Volume
from node.build import build
from node.orientation import axes_to_flip, flipped, is_turned
from node.outputs.context import context_of

UPRIGHT = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
SIGNS = list(product((1.0, -1.0), repeat=3))


def volume_of(signs: tuple[float, ...]) -> Volume:
    directions = tuple(tuple(sign * x for x in axis) for sign, axis in zip(signs, UPRIGHT, strict=True))
    geometry = Geometry((2, 3, 4), (2.5, 0.8, 0.7), (-5.0, 6.0, 100.0), directions, "1.2.3")
    return Volume(np.arange(24, dtype=np.float32).reshape(2, 3, 4), geometry)


@pytest.mark.parametrize("signs", SIGNS)
def test_any_axial_volume_is_turned_upright_without_moving_a_voxel(signs: tuple[float, ...]) -> None:
    volume = volume_of(signs)
    upright = flipped(volume, axes_to_flip(volume.geometry))
    assert upright.geometry.directions == pytest.approx(np.array(UPRIGHT))
    places = {upright.geometry.position_of(i): upright.hu[i] for i in np.ndindex(2, 3, 4)}
    for index in np.ndindex(2, 3, 4):
        here = volume.geometry.position_of(index)
        nearest = min(places, key=lambda place: float(np.linalg.norm(np.subtract(place, here))))
        assert nearest == pytest.approx(here)
        assert places[nearest] == volume.hu[index]


def test_an_upright_volume_is_left_alone() -> None:
    volume = volume_of((1.0, 1.0, 1.0))
    assert axes_to_flip(volume.geometry) == ()
    assert flipped(volume, ()) is volume
    assert not is_turned(volume.geometry, 0.8)


def test_a_quarter_turn_is_not_undone_but_seen() -> None:
    geometry = Geometry((2, 3, 4), (1, 1, 1), directions=(UPRIGHT[0], UPRIGHT[2], UPRIGHT[1]))
    assert is_turned(geometry, 0.8)


@pytest.mark.parametrize("orientation", [(-1, 0, 0, 0, -1, 0), (1, 0, 0, 0, -1, 0)])
def test_a_prone_series_comes_back_in_its_own_order(
    ct: Any, write_slices: Any, translator_bundle: Callable[..., Path], orientation: tuple[float, ...]
) -> None:
    hu = np.full((10, 40, 40), -1000, np.int16)
    hu[:, 6:34, 6:34] = 200 + ct.gradient(10, 28, 28) // 20
    paths = write_slices(ct.slices(hu, spacing_mm=(2.5, 1.5, 1.5), orientation=orientation))
    settings = Settings()
    rules = IntakeSettings(max_enhanced_share=1.0, max_vessel_mm2=1e6)
    engine = open_engine(translator_bundle("arterial"), SessionPolicy(provider="cpu", threads=1))
    context = context_of(settings, generation=1, created=datetime(2026, 1, 2))
    (synthesis,) = build(paths, engines={"arterial": engine}, context=context, rules=rules)
    change = synthesis.volume.hu - hu
    inside = (slice(2, 8), slice(12, 28), slice(12, 28))
    np.testing.assert_allclose(change[inside], 0.25 * (hu[inside] - 100), atol=1)
