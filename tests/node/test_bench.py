from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engine.bundle import read_bundle
from node.bench import bench_receive, send_timed, write_slices
from node.bench_job import bench_job, bench_journey, run_jobs, write_body
from node.cli import app
from node.models import SHIPPED

VENOUS = SHIPPED / "venous"
GRAPHS = set(read_bundle(VENOUS).manifest.graphs)


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


def test_a_job_is_measured_from_files_to_files_and_its_stages_are_all_of_it(tmp_path: Path) -> None:
    write_body(tmp_path / "slices", 24, side=96)
    measured = run_jobs(VENOUS, tmp_path / "slices", tmp_path, threads=1)
    assert set(measured["stages"]) == {"read", "body", "resample", "tiles", "compose", "write"} | GRAPHS
    assert measured["slices"] == 24
    assert measured["tiles"] == measured["tiles_run"] == 1
    assert measured["graphs_s"] + measured["outside_s"] == pytest.approx(measured["seconds"], abs=0.01)
    assert sum(measured["stages"].values()) <= measured["seconds"] + 0.01
    assert measured["peak_bytes"] > 24 * 96 * 96 * 4
    assert measured["first_s"] > 0
    for number in ("0", "2"):
        assert len(list((tmp_path / number / "outbox").glob("*/*.dcm"))) == 24


def test_every_size_is_a_process_of_its_own_and_leaves_nothing_behind(tmp_path: Path) -> None:
    arguments = ["--slices", "24", "--side", "80", "--threads", "1", "--folder", str(tmp_path)]
    result = CliRunner().invoke(app, ["bench", "job", "--bundle", str(VENOUS), *arguments, "--json"])
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    assert measured["model_id"] == read_bundle(VENOUS).manifest.model_id
    assert [row["slices"] for row in measured["jobs"]] == [24]
    assert bench_job(VENOUS, [], folder=tmp_path)["jobs"] == []
    assert list(tmp_path.iterdir()) == []


def test_a_journey_is_measured_until_the_last_slice_is_in_the_archive(tmp_path: Path) -> None:
    measured = bench_journey(24, side=96, folder=tmp_path)
    assert measured["phases"] == ["arterial", "venous"]
    assert measured["instances_back"] == 48
    assert set(measured["reached_s"]) == {"SETTLED", "READY", "BUILT", "DELIVERED"}
    parts = measured["quiet_s"] + measured["graphs_s"] + measured["own_s"]
    assert parts == pytest.approx(measured["seconds"], abs=0.01)
    assert list(tmp_path.iterdir()) == []


def test_a_journey_of_one_phase_brings_back_that_one(tmp_path: Path) -> None:
    measured = bench_journey(24, side=96, phases=["venous"], folder=tmp_path)
    assert (measured["phases"], measured["instances_back"]) == (["venous"], 24)
