from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import UID

from config.settings import Settings
from engine.pipeline import Engine, open_engine
from engine.session import SessionPolicy
from node.build import build, read_examined
from node.errors import SeriesRejected
from node.outputs.context import context_of

CREATED = datetime(2026, 1, 2, 3, 4, 5)
SETTINGS = Settings()
CONTEXT = context_of(SETTINGS, generation=1, created=CREATED)


@pytest.fixture
def engines(translator_bundle: Callable[..., Path]) -> Mapping[str, Engine]:
    policy = SessionPolicy(provider="cpu", threads=1)
    return {phase: open_engine(translator_bundle(phase), policy) for phase in ("arterial", "venous")}


@pytest.fixture
def paths(ct: Any, write_slices: Any) -> list[Path]:
    """A small body of 40 HU in air, ten slices."""
    hu = np.full((10, 40, 40), -1000, np.int16)
    hu[:, 6:34, 6:34] = 40
    return write_slices(ct.slices(hu, spacing_mm=(2.5, 1.5, 1.5), SeriesNumber=3))


def test_a_series_becomes_every_kind_of_output_of_every_phase(
    paths: list[Path], engines: Mapping[str, Engine]
) -> None:
    told: list[float] = []
    built = build(
        paths,
        engines=engines,
        context=CONTEXT,
        rules=SETTINGS.intake,
        progress=told.append,
        kinds=("ct_series", "enhancement_map"),
    )
    assert [(each.phase, each.kind) for each in built.outputs] == [
        (phase, kind) for phase in ("arterial", "venous") for kind in ("ct_series", "enhancement_map")
    ]
    assert [synthesis.phase for synthesis in built.syntheses] == ["arterial", "venous"]
    series = [each for each in built.outputs if each.kind == "ct_series"]
    assert all(len(each.instances) == len(built.series.headers) == 10 for each in series)
    assert len({each.series_instance_uid for each in built.outputs}) == 4
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_equal_arguments_give_equal_bytes(paths: list[Path], engines: Mapping[str, Engine]) -> None:
    def once() -> list[bytes]:
        built = build(paths, engines=engines, context=CONTEXT, rules=SETTINGS.intake)
        return [each.data for made in built.outputs for each in made.instances]

    assert once() == once()


def test_headers_are_asked_before_the_grid(ct: Any, write_slices: Any) -> None:
    slices = ct.slices(ct.gradient(), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    del slices[3]
    with pytest.raises(SeriesRejected) as caught:
        read_examined(write_slices(slices), SETTINGS.intake)
    assert caught.value.code == "LOCALIZER"


def test_findings_of_reader_and_intake_travel_with_the_series(ct: Any, write_slices: Any) -> None:
    series = read_examined(
        write_slices(ct.slices(ct.gradient() * 0 + 40, LossyImageCompression="01")), SETTINGS.intake
    )
    assert {"LOSSY-SOURCE", "LITTLE-SOFT-TISSUE"} <= {finding.code for finding in series.findings}


def test_the_device_is_the_same_as_long_as_its_names_are() -> None:
    again = context_of(SETTINGS, generation=2, created=CREATED)
    assert again.node.device_uid == CONTEXT.node.device_uid
    assert UID(again.node.device_uid).is_valid
    other = Settings.model_validate({"outputs": {"station_name": "OTHER"}})
    assert context_of(other, generation=1, created=CREATED).node.device_uid != CONTEXT.node.device_uid
    named = Settings.model_validate({"outputs": {"device_uid": "1.2.3"}})
    assert context_of(named, generation=1, created=CREATED).node.device_uid == "1.2.3"
