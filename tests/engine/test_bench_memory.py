from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import bench_memory
from engine.bench_memory import main, measure_memory
from engine.bundle import Bundle

MakeBundle = Callable[..., Bundle]


def test_the_measure_sees_the_source_the_result_and_little_else(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(tile=(16, 64, 64), lift=0.1)
    memory = measure_memory(bundle.folder, (64, 128, 128), (1.5, 1.2, 1.2), threads=1)
    assert memory.source_bytes == 64 * 128 * 128 * 4
    assert 2 * memory.source_bytes < memory.peak_bytes < 700e6
    assert set(memory.stages) == {"body", "resample", "encoder", "denoiser", "decoder", "tiles", "compose"}
    assert sum(memory.stages.values()) <= memory.seconds


def test_the_command_prints_the_measure_as_json(
    make_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(make_bundle().folder), "16", "40", "40", "3.0", "1.5", "1.5", "1"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["source_bytes"] == 16 * 40 * 40 * 4
    assert printed["peak_bytes"] > 50e6


def test_without_proc_the_peak_is_what_getrusage_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_memory, "PROC_STATUS", Path("/nowhere"))
    assert bench_memory.peak_bytes() <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.slow
def test_a_volume_of_512_by_512_by_400_takes_at_most_three_gigabytes(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(tile=(32, 128, 128), lift=0.1)
    assert measure_memory(bundle.folder).peak_bytes <= 3e9
