"""The page of benchmarks says what was measured, and marks what was not."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from docs import benchmarks
from docs.benchmarks import tables
from docs.generate import PARTS, STEPS, _measured_when
from engine.session import NVIDIA_NODES
from train.run import commit
from train.sweep import judged

ENGINE: dict[str, Any] = {
    "engine_s": 0.5, "torch_s": 1.0, "torch_compile_s": 0.8, "openvino_s": "ModuleNotFoundError: none",
    "ratio": 0.5, "machine": "m", "model_id": "toy", "flops": 34e9, "peak_flops": 100e9,
    "graphs": {"encoder": {
        "calls": 1, "flops": 6e9, "engine_s": 0.1, "torch_s": 0.2, "ratio": 0.5, "peak_share": 0.6,
    }},
}  # fmt: skip
STAGES = {"read": 1.0, "encoder": 2.0}


def job(slices: int, seconds: float) -> dict[str, Any]:
    return {
        "slices": slices, "tiles": 84, "seconds": seconds, "peak_bytes": 1.5e9, "stages": STAGES,
        "outside_s": 1.0, "outside_share": 0.05,
    }  # fmt: skip


JOBS: dict[str, Any] = {
    "machine": "m", "model_id": "toy", "side": 512, "jobs": [job(200, 60.0), job(400, 130.0)],
}  # fmt: skip


def test_aims_are_judged_by_what_was_measured() -> None:
    found = dict(tables({"engine": ENGINE, "job": JOBS}))
    _, rows = found["Against what is aimed at"]
    assert {name: reached for name, _, reached in rows} == {
        "engine at most 1.0 × torch eager": "yes",
        "engine at most 1.2 × OpenVINO": "",
        "200 slices in at most 120 s": "yes",
        "200 slices in at most 2 GB": "yes",
        "at most 10 % outside the graphs": "yes",
        "400 slices at most 2.1 × 200": "no",
    }


@pytest.mark.parametrize(
    ("openvino_s", "row"),
    [(0.42, ("1.19 ×", "yes")), (0.41, ("1.22 ×", "no")), ("no module", ("not measured", ""))],
)
def test_openvino_is_judged_where_it_was_measured(openvino_s: float | str, row: tuple[str, str]) -> None:
    _, rows = dict(tables({"engine": ENGINE | {"openvino_s": openvino_s}}))["Against what is aimed at"]
    assert rows[1:] == [("engine at most 1.2 × OpenVINO", *row)]


@pytest.mark.parametrize(
    ("venous", "reached"), [((2, 1), "yes"), ((4, 4), "yes"), ((2, 4), "no"), ((8, 8), "no"), ((8, 2), "no")]
)
def test_a_phase_s_steps_are_few_only_where_they_are_enough_by_the_rule(
    venous: tuple[int, int], reached: str
) -> None:
    def phase(taken: int, needed: int) -> dict[str, Any]:
        samplers = {"bridge": {"fewest": needed}, "other": {"fewest": 99}}
        return {"shipped": {"sampler": "bridge", "steps": taken}, "samplers": samplers}

    found = {"steps": {"phases": {"arterial": phase(4, 3), "venous": phase(*venous)}}}
    _, rows = dict(tables(found))["Against what is aimed at"]
    told = f"arterial takes 4 and needs 3, venous takes {venous[0]} and needs {venous[1]}"
    assert rows == [("at most 4 network evaluations a tile at the quality rule", told, reached)]


def test_jobs_name_their_provider_and_sections_their_commit() -> None:
    on_gpu = JOBS | {"jobs": [job(200, 6.0) | {"provider": "cuda"}], "date": "2026-11-29", "commit": "abc"}
    columns, rows = dict(tables({"job": on_gpu}))["A series from files to files, one phase"]
    assert rows[0][columns.index("provider")] == "cuda"
    assert _measured_when({"job": on_gpu, "engine": ENGINE}) == " Measured: job on 2026-11-29 at `abc`."
    assert _measured_when({"engine": ENGINE}) == ""


def test_a_measurement_knows_its_commit() -> None:
    assert re.fullmatch(r"[0-9a-f]{40}\+?|", commit() or "")


def test_the_estimate_takes_no_whole_h100() -> None:
    _, rows = dict(tables({"engine": ENGINE, "job": JOBS}))["On an H100: an estimate, not measured"]
    assert [share for *_, share, _ in rows] == ["10%", "10%"]


def test_the_estimate_counts_the_tiles_that_are_run() -> None:
    told = JOBS | {"jobs": [job(200, 60.0) | {"tiles_run": 60}, job(400, 130.0)]}
    columns, rows = dict(tables({"engine": ENGINE, "job": told}))["On an H100: an estimate, not measured"]
    assert [row[columns.index("tiles")] for row in rows] == ["60 of 84", "84 in all"]
    assert [row[columns.index("TFLOP")] for row in rows] == [f"{n * 34e9 / 1e12:.1f}" for n in (60, 84)]


def test_a_gpu_s_runs_stand_side_by_side_with_the_reason_of_those_that_failed() -> None:
    run = {"provider": "cuda", "engine_s": 0.017, "flops": 34e9, "difference_hu": 0.01, "machine": "m, H100"}
    on_gpu = {"runs": {"cuda": run, "tensorrt": "TensorRT 10 is missing"}, "jobs": JOBS, "machine": "m, H100"}
    made = dict(tables({"gpu": on_gpu}))
    _, rows = made["The same graphs on a GPU, one tile"]
    assert len(made["A series on a GPU from files to files, one phase"][1]) == len(JOBS["jobs"])
    assert rows == [
        ("cuda", "cuda", "17.0 ms", "2.0", "0.01 HU"),
        ("tensorrt", "TensorRT 10 is missing", "", "", ""),
    ]


def test_what_runs_on_a_gpu_is_kept_and_what_does_not_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that stand for the providers of a machine with CUDA and without TensorRT."""
    asked: list[tuple[str, ...]] = []

    def bench(*arguments: str, stderr: int | None = None) -> dict[str, Any]:
        asked.append(arguments)
        if "tensorrt" in arguments:
            raise subprocess.CalledProcessError(78, "s2node", stderr="install\nTensorRT 10\n")
        return {"machine": "m, H100"}

    monkeypatch.setattr(benchmarks, "_bench", bench)
    found = benchmarks.on_gpu()
    assert found == {
        "runs": {
            "cuda": {"machine": "m, H100"},
            "cuda fp16": {"machine": "m, H100"},
            "tensorrt": "TensorRT 10",
            "tensorrt fp16": "TensorRT 10",
        },
        "jobs": {"machine": "m, H100"},
        "machine": "m, H100",
    }
    assert asked.pop() == ("job",)
    assert ["--fp16" in arguments for arguments in asked] == [False, True, False, True]


@pytest.mark.skipif(any(node.exists() for node in NVIDIA_NODES), reason="a GPU may be here")
def test_without_a_gpu_nothing_is_measured_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmarks, "FILE", tmp_path / "benchmarks.json")
    benchmarks.main(["gpu"])
    said = capsys.readouterr().out
    assert said.startswith("gpu: nothing was measured. No GPU runs the graphs on this machine: ")
    assert "cuda" in said.lower()
    assert list(tmp_path.iterdir()) == []


def test_who_could_not_run_is_named_with_the_reason() -> None:
    _, rows = dict(tables({"engine": ENGINE}))["The same graphs, one tile"]
    assert ("OpenVINO", "ModuleNotFoundError: none", "") in rows
    assert ("engine (ONNX Runtime)", "0.500 s", "0.50") in rows


def test_what_was_not_measured_is_called_an_estimate() -> None:
    headings = [heading for heading, _ in tables({"engine": ENGINE, "job": JOBS})]
    assert [heading for heading in headings if "H100" in heading] == ["On an H100: an estimate, not measured"]


def test_the_page_names_machine_and_model() -> None:
    assert "Machine:" in PARTS["benchmarks"]()


def test_the_page_judges_the_shipped_models_steps_by_what_was_measured_of_them() -> None:
    phases = json.loads(STEPS.read_text(encoding="utf-8"))["phases"]
    [row] = [line for line in PARTS["benchmarks"]().splitlines() if "at the quality rule" in line]
    for phase, of in phases.items():
        swept = of["samplers"][of["shipped"]["sampler"]]
        assert swept["fewest"] == judged(swept["rows"])["fewest"]
        assert f"{phase} takes {of['shipped']['steps']} and needs {swept['fewest']}" in row
