from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.bench_memory import measure_memory
from engine.bundle import Bundle

MakeBundle = Callable[..., Bundle]


def test_the_measure_sees_the_source_the_result_and_little_else(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(tile=(16, 64, 64), lift=0.1)
    memory = measure_memory(bundle.folder, (64, 128, 128), (1.5, 1.2, 1.2), threads=1)
    assert memory.source_bytes == 64 * 128 * 128 * 4
    assert 2 * memory.source_bytes < memory.peak_bytes < 700e6
    assert set(memory.stages) == {"prepare", "model", "compose"}
    assert sum(memory.stages.values()) <= memory.seconds


@pytest.mark.slow
def test_a_volume_of_512_by_512_by_400_takes_at_most_three_gigabytes(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(tile=(32, 128, 128), lift=0.1)
    assert measure_memory(bundle.folder).peak_bytes <= 3e9
