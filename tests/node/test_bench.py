from __future__ import annotations

from pathlib import Path

import pytest

from node.bench import bench_receive, send_timed, write_slices


def test_the_receive_benchmark_measures_one_and_four_associations_and_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    measured = bench_receive(tmp_path, slices=4, rounds=1)
    rates = {"instances_per_second", "throwaway_instances_per_second"}
    assert set(measured) == {*rates, "ratio", "four_associations", "machine"}
    four = measured["four_associations"]
    assert isinstance(four, dict) and set(four) == rates
    assert all(float(str(each[key])) > 0 for each in (measured, four) for key in rates)
    assert float(str(measured["ratio"])) > 0
    assert list(tmp_path.iterdir()) == []


def test_the_slices_are_of_the_size_that_is_promised(tmp_path: Path) -> None:
    write_slices(tmp_path / "slices", 1)
    [path] = (tmp_path / "slices").iterdir()
    assert 524_288 < path.stat().st_size < 535_000


def test_a_sender_without_a_node_says_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="refused"):
        send_timed(1, tmp_path)
