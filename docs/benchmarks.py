"""What `make bench` measures, into docs/benchmarks.json; `docs/generate.py` makes the tables of it.

Commands run one after the other as processes, so that each measures a machine that does nothing else. What is
finished is kept: `python -m docs.benchmarks job` measures one of them again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().with_suffix(".json")
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "receive": ("receive",),
    "engine": ("engine", "--full"),
    "job": ("job",),
    "journey_one": ("journey", "--phase", "venous"),
    "journey": ("journey",),
}
"""Key of the file → arguments of ``s2node bench``."""
GPU = "gpu"
GPU_ENGINE = ("engine", "--full", "--tiles", "20", "--rounds", "5")
GPU_RUNS: Mapping[str, tuple[str, ...]] = {
    "cuda": ("--provider", "cuda"),
    "cuda fp16": ("--provider", "cuda", "--fp16"),
    "tensorrt": ("--provider", "tensorrt"),
    "tensorrt fp16": ("--provider", "tensorrt", "--fp16"),
}
"""What ``make gpu`` measures under the key :data:`GPU`, each by :data:`GPU_ENGINE` and these options."""
H100_FP32_FLOPS, H100_SHARE = 67e12, 0.1
"""NVIDIA's data sheet of the H100 SXM, fp32 without tensor cores: what the engine's fp32 graphs run on; and
the part of it that they are taken to reach. Small graphs, launched one by one, come nowhere near all."""
JOURNEYS = ("journey_one", "journey")
GB = 1e9
JOB_LIMIT_S, MEMORY_LIMIT_GB, LINEAR_LIMIT, OUTSIDE_LIMIT, OWN_LIMIT_S = 120.0, 2.0, 2.1, 0.10, 3.0
"""What is aimed at for 200 slices on two cores; time of 400 against 200 slices."""
OPENVINO_LIMIT, CALLS_LIMIT = 1.2, 4
"""The engine's time against OpenVINO's on the same graphs; a sampler's steps, each a call of the denoiser."""
RECEIVE_LIMIT = 0.8
"""The same for durable receive over one association, against an SCP that throws the data away."""

Table = tuple[Sequence[str], list[tuple[str, ...]]]


def main(arguments: Sequence[str] = ()) -> None:
    """Run the commands named, or all of :data:`COMMANDS`, and write their JSON."""
    from train.run import commit  # noqa: PLC0415 (tables are made without torch)

    measured = {"commit": commit() or "", "date": f"{date.today()}"}  # before the first of them is written
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    for key in arguments or COMMANDS:
        made = on_gpu() if key == GPU else _bench(*COMMANDS[key])
        if isinstance(made, str):
            sys.stdout.write(f"{key}: nothing was measured. {made}\n")
            continue
        found[key] = made | {"load": round(os.getloadavg()[0], 1), **measured}
        FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _bench(*arguments: str, stderr: int | None = None) -> dict[str, Any]:
    """The JSON of one ``s2node bench``. Raises CalledProcessError."""
    command = [sys.executable, "-m", "node.cli", "bench", *arguments, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=stderr, text=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def on_gpu() -> dict[str, Any] | str:
    """Each of :data:`GPU_RUNS`, or why it does not run, and series; words alone where the first does not."""
    runs: dict[str, Any] = {}
    for name, options in GPU_RUNS.items():
        try:
            runs[name] = _bench(*GPU_ENGINE, *options, stderr=subprocess.PIPE)
        except subprocess.CalledProcessError as error:
            runs[name] = (error.stderr.strip() or f"{error}").splitlines()[-1]
            if len(runs) == 1:
                return f"No GPU runs the graphs on this machine: {runs[name]}"
    return {"runs": runs, "jobs": _bench("job"), "machine": next(iter(runs.values()))["machine"]}


def tables(found: Mapping[str, Any]) -> Iterator[tuple[str, Table]]:
    """Heading and table of everything that was measured; under "steps" what `make steps` found."""
    yield "Against what is aimed at", (("aim", "measured", "reached"), list(_aims(found)))
    if "receive" in found:
        yield "Receive: 512×512 slices, durable", _receive(found["receive"])
    if "engine" in found:
        yield "The same graphs, one tile", _contestants(found["engine"])
        yield "Each graph", _graphs(found["engine"])
    if "job" in found:
        yield "A series from files to files, one phase", _jobs(found["job"])
        yield "Stages, seconds", _stages(found["job"])
    journeys = [found[key] for key in JOURNEYS if key in found]
    if journeys:
        yield "A node, from the last C-STORE to the last slice back", _journeys(journeys)
    if GPU in found:
        yield "The same graphs on a GPU, one tile", _gpu(found[GPU])
        yield "A series on a GPU from files to files, one phase", _jobs(found[GPU]["jobs"])
    if "engine" in found and "job" in found:
        yield "On an H100: an estimate, not measured", _estimate(found["engine"], found["job"])


def _aims(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    if "receive" in found:
        ratio = found["receive"]["ratio"]
        yield _aim("receive at least 0.8 × throwing away", f"{ratio:.2f} ×", ratio >= RECEIVE_LIMIT)
    if "engine" in found:
        ratio = found["engine"]["ratio"]
        yield _aim("engine at most 1.0 × torch eager", f"{ratio:.2f} ×", ratio <= 1)
        yield _openvino_aim(found["engine"])
    if "steps" in found:
        yield _steps_aim(found["steps"]["phases"])
    jobs = {row["slices"]: row for row in found.get("job", {}).get("jobs", ())}
    if 200 in jobs:
        job, gb = jobs[200], jobs[200]["peak_bytes"] / GB
        yield _aim("200 slices in at most 120 s", f"{job['seconds']:.0f} s", job["seconds"] <= JOB_LIMIT_S)
        yield _aim("200 slices in at most 2 GB", f"{gb:.2f} GB", gb <= MEMORY_LIMIT_GB)
        share = job["outside_share"]
        yield _aim("at most 10 % outside the graphs", f"{share:.1%}", share <= OUTSIDE_LIMIT)
        if 400 in jobs:
            times = jobs[400]["seconds"] / job["seconds"]
            yield _aim("400 slices at most 2.1 × 200", f"{times:.2f} ×", times <= LINEAR_LIMIT)
    for journey in (found[key] for key in JOURNEYS if key in found):
        own, back = journey["own_s"], journey["instances_back"]
        yield _aim(f"node's own time at most 3 s, {back} slices back", f"{own:.1f} s", own <= OWN_LIMIT_S)


def _openvino_aim(engine: Mapping[str, Any]) -> tuple[str, str, str]:
    name, openvino_s = "engine at most 1.2 × OpenVINO", engine.get("openvino_s")
    if not isinstance(openvino_s, float):
        return (name, "not measured", "")
    ratio = engine["engine_s"] / openvino_s
    return _aim(name, f"{ratio:.2f} ×", ratio <= OPENVINO_LIMIT)


def _steps_aim(phases: Mapping[str, Any]) -> tuple[str, str, str]:
    """Reached where every phase ships with the steps that the rule of quality asks for, and these are few."""
    taken = {phase: of["shipped"]["steps"] for phase, of in phases.items()}
    needed = {phase: of["samplers"][of["shipped"]["sampler"]]["fewest"] for phase, of in phases.items()}
    told = ", ".join(f"{phase} takes {taken[phase]} and needs {needed[phase]}" for phase in phases)
    is_reached = all(needed[phase] <= taken[phase] <= CALLS_LIMIT for phase in phases)
    return _aim("at most 4 network evaluations a tile at the quality rule", told, is_reached)


def _aim(name: str, value: str, is_reached: bool) -> tuple[str, str, str]:
    return (name, value, "yes" if is_reached else "no")


def _receive(receive: Mapping[str, Any]) -> Table:
    rows = [("one association", receive), ("four, together", receive["four_associations"])]
    return ("", "instances a second", "thrown away instead"), [
        (name, f"{each['instances_per_second']:.0f}", f"{each['throwaway_instances_per_second']:.0f}")
        for name, each in rows
    ]


def _contestants(engine: Mapping[str, Any]) -> Table:
    rows = []
    for key, name in CONTESTANTS.items():
        value = engine.get(key, "not tried")
        if isinstance(value, str):
            rows.append((name, value, ""))
        else:
            rows.append((name, f"{value:.3f} s", f"{value / engine['torch_s']:.2f}"))
    return ("", "a tile", "× torch eager"), rows


CONTESTANTS: Mapping[str, str] = {
    "engine_s": "engine (ONNX Runtime)",
    "torch_s": "torch eager",
    "torch_compile_s": "torch.compile",
    "openvino_s": "OpenVINO",
}


def _graphs(engine: Mapping[str, Any]) -> Table:
    columns = ("graph", "calls a tile", "GFLOP a call", "engine s", "torch s", "ratio", "of the matrix peak")
    rows = [
        (
            name,
            str(row["calls"]),
            f"{row['flops'] / GB:.1f}",
            f"{row['engine_s']:.3f}",
            f"{row['torch_s']:.3f}",
            f"{row['ratio']:.2f}",
            f"{row['peak_share']:.0%}" if "peak_share" in row else "",
        )
        for name, row in engine.get("graphs", {}).items()
    ]
    return columns, rows


def _jobs(job: Mapping[str, Any]) -> Table:
    rows = [
        (
            f"{job['side']}×{job['side']}×{row['slices']}",
            row.get("provider", "not noted"),
            _tiles(row),
            f"{row['seconds']:.1f} s",
            f"{row['peak_bytes'] / GB:.2f} GB",
            f"{row['outside_s']:.1f} s",
            f"{row['outside_share']:.1%}",
        )
        for row in job["jobs"]
    ]
    return ("volume", "provider", "tiles", "time", "peak memory", "outside the graphs", "share"), rows


def _stages(job: Mapping[str, Any]) -> Table:
    names = list(dict.fromkeys(name for row in job["jobs"] for name in row["stages"]))
    rows = [(name, *(f"{row['stages'].get(name, 0):.2f}" for row in job["jobs"])) for name in names]
    return ("stage", *(f"{row['slices']} slices" for row in job["jobs"])), rows


def _journeys(journeys: Sequence[Mapping[str, Any]]) -> Table:
    def row(name: str, told: Callable[[Mapping[str, Any]], str]) -> tuple[str, ...]:
        return (name, *(told(each) for each in journeys))

    def seconds(name: str, key: str) -> tuple[str, ...]:
        return row(name, lambda each: f"{each[key]:.1f} s")

    rows = [
        row("slices sent", lambda each: str(each["slices"])),
        row("slices back", lambda each: str(each["instances_back"])),
        seconds("last C-STORE to last slice back", "seconds"),
        seconds("of these quiet time", "quiet_s"),
        seconds("of these graphs", "graphs_s"),
        seconds("the node's own", "own_s"),
        *(
            row(f"{state} after", lambda each, state=state: f"{each['reached_s'][state]:.1f} s")  # type: ignore[misc]
            for state in journeys[0]["reached_s"]
        ),
    ]
    return ("", *(" and ".join(each["phases"]) for each in journeys)), rows


def _gpu(gpu: Mapping[str, Any]) -> Table:
    rows = [
        (name, run, "", "", "")
        if isinstance(run, str)
        else (
            name,
            run["provider"],
            f"{run['engine_s'] * 1e3:.1f} ms",
            f"{run['flops'] / run['engine_s'] / 1e12:.1f}",
            f"{run['difference_hu']:.2f} HU",
        )
        for name, run in gpu["runs"].items()
    ]
    return ("asked for", "ran", "a tile", "TFLOP/s", "from torch in fp32"), rows


def _estimate(engine: Mapping[str, Any], job: Mapping[str, Any]) -> Table:
    """FLOPs of the tiles that are run over a share of the data sheet's fp32 peak."""
    rows = []
    for row in job["jobs"]:
        flops = row.get("tiles_run", row["tiles"]) * engine["flops"]
        seconds = flops / (H100_FP32_FLOPS * H100_SHARE)
        figures = (f"{flops / 1e12:.1f}", f"{H100_SHARE:.0%}", f"{seconds:.2f} s")
        rows.append((str(row["slices"]), _tiles(row), *figures))
    columns = ("slices", "tiles", "TFLOP", "share of 67 TFLOP/s", "graphs, one phase (estimate)")
    return columns, rows


def _tiles(row: Mapping[str, Any]) -> str:
    """How many of a series' tiles are run, the others holding air alone; where nobody told, all of them."""
    return f"{row['tiles_run']} of {row['tiles']}" if "tiles_run" in row else f"{row['tiles']} in all"


if __name__ == "__main__":
    main(sys.argv[1:])
