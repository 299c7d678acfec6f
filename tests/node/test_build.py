from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from threading import Event, Timer
from typing import Any

import numpy as np
import pytest
from pydicom.uid import UID

from config.settings import Settings
from engine.pipeline import Engine, open_engine
from engine.session import SessionPolicy
from engine.synthesis import Synthesis
from node.build import build, read_examined
from node.errors import SeriesRejected
from node.models import SHIPPED
from node.outputs.context import context_of
from node.outputs.encoding import Instance
from node.spool import SpoolFull
from node.worker import HandedBack

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
    made: dict[tuple[str, str], list[Instance]] = {}
    syntheses = build(
        paths,
        engines=engines,
        context=CONTEXT,
        rules=SETTINGS.intake,
        progress=told.append,
        kinds=("ct_series", "enhancement_map"),
        made=lambda phase, kind, instance: made.setdefault((phase, kind), []).append(instance),
    )
    assert list(made) == [
        (phase, kind) for phase in ("arterial", "venous") for kind in ("ct_series", "enhancement_map")
    ]
    assert [synthesis.phase for synthesis in syntheses] == ["arterial", "venous"]
    assert all(len(made[phase, "ct_series"]) == len(paths) == 10 for phase in ("arterial", "venous"))
    assert len({each.series_instance_uid for instances in made.values() for each in instances}) == 4
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_equal_arguments_give_equal_bytes(paths: list[Path], engines: Mapping[str, Engine]) -> None:
    def once() -> list[bytes]:
        made: list[bytes] = []
        build(
            paths,
            engines=engines,
            context=CONTEXT,
            rules=SETTINGS.intake,
            made=lambda _phase, _kind, instance: made.append(instance.data),
        )
        return made

    first = once()
    assert len(first) == 20
    assert first == once()


def test_phases_with_one_encoder_encode_once_and_others_each_for_itself(paths: list[Path]) -> None:
    policy = SessionPolicy(provider="cpu", threads=1)
    arterial, venous, again = (
        open_engine(SHIPPED / phase, policy) for phase in ("arterial", "venous", "venous")
    )

    def built(second: Engine) -> tuple[Synthesis, ...]:
        engines = {"arterial": second, "venous": venous}
        return build(paths, engines=engines, context=CONTEXT, rules=SETTINGS.intake)

    apart, shared = built(arterial), built(again)
    assert [("encoder" in made.seconds) for made in apart] == [True, True]
    assert [("encoder" in made.seconds) for made in shared] == [True, False]
    for made in shared:
        np.testing.assert_array_equal(made.volume.hu, apart[1].volume.hu)


def test_what_fails_while_it_is_written_is_heard_before_the_next_phase_is_done(
    paths: list[Path], engines: Mapping[str, Engine]
) -> None:
    failed = Event()

    def full(_phase: str, _kind: str, _instance: Instance) -> None:
        failed.set()
        raise SpoolFull("no room")

    told: list[float] = []

    def progress(fraction: float) -> None:
        told.append(fraction)
        if fraction > 0.526:  # the second of two phases
            assert failed.wait(60)
            time.sleep(0.2)  # until the thread is done with it

    with pytest.raises(SpoolFull):
        build(paths, engines=engines, context=CONTEXT, rules=SETTINGS.intake, progress=progress, made=full)
    assert max(told) < 1.0


def test_work_that_is_handed_back_leaves_off_making_outputs(
    paths: list[Path], engines: Mapping[str, Engine]
) -> None:
    begun, made = Event(), set()

    def slow(phase: str, kind: str, _instance: Instance) -> None:
        made.add((phase, kind))
        assert begun.wait(60)

    def progress(fraction: float) -> None:
        if fraction > 0.526:
            Timer(0.2, begun.set).start()
            raise HandedBack

    kinds = ("ct_series", "enhancement_map")
    with pytest.raises(HandedBack):
        build(
            paths,
            engines=engines,
            context=CONTEXT,
            rules=SETTINGS.intake,
            progress=progress,
            kinds=kinds,
            made=slow,
        )
    assert made <= {("arterial", "ct_series")}


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
