"""How long a series takes from its files to those of its synthesis, stage by stage, and in how much memory.

A job is measured in a process of its own: the files of a body of 512×512×N are read, examined, translated by
one model and written to the outbox as the worker does it. The journey is a whole node: received by C-STORE,
settled, translated by every active model, and sent to an archive on this machine. Both are measured when
:data:`BEFORE` series have gone before: a worker and a node run for weeks, and what the first series take to
find memory that nobody used before is no part of what follows.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from config.intake import IntakeSettings
from config.settings import Settings, StorageSettings
from engine.bench_memory import body, peak_bytes
from engine.body import find_body
from engine.bundle import read_bundle
from engine.grid import model_grid
from engine.pipeline import Engine, open_engine, plan_for
from engine.session import SessionPolicy, cpu_threads
from engine.volume import Float32, Geometry, Volume
from node import scu
from node.archive import Archive
from node.bench import machine
from node.build import outputs_of, read_examined
from node.demo import ARCHIVE_AE, NODE_AE, QUIET_S, demo_settings, local_peer, wait_for_jobs
from node.errors import NodeError
from node.memory import keep_freed_memory
from node.models import ModelStore
from node.outbox import Outbox
from node.outputs.context import context_of
from node.outputs.encoding import to_bytes
from node.phantom_dicom import phantom_series
from node.service import Node
from node.spool import Spool
from node.states import State

SLICES = (64, 200, 400)
SIDE = 512
SPACING_MM = (1.25, 0.78125, 0.78125)
JOURNEY_SLICES = 200
JOURNEY_LIMIT_S = 3600.0
SEED = 4711
AT = datetime(2025, 1, 1, tzinfo=UTC)
"""When the outputs say they were made: a measure does not depend on the clock."""
BEFORE = 2
"""Series that go before the one that is measured."""
REACHED = ("SETTLED", "READY", "BUILT", "DELIVERED")
"""States whose first second after the last C-STORE is told."""
ROUNDED = 3


@dataclass(frozen=True, slots=True)
class Body:
    """A body as ``phantom_series`` takes it."""

    seed: int
    geometry: Geometry
    phases: Mapping[str, Float32]


class JourneyFailed(NodeError):
    """The series did not come back."""


def bench_job(
    bundle: Path,
    slices: Sequence[int] = SLICES,
    *,
    side: int = SIDE,
    threads: int = 0,
    folder: Path = Path("build"),
) -> dict[str, Any]:
    """One job for each number of ``slices``, each in its own process. CalledProcessError if one fails."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [_in_a_process(bundle, count, side, threads, folder) for count in slices]
    return {
        "model_id": read_bundle(bundle).manifest.model_id,
        "threads": cpu_threads(SessionPolicy(threads=threads)),
        "machine": machine(),
        "side": side,
        "jobs": jobs,
    }


def _in_a_process(bundle: Path, slices: int, side: int, threads: int, folder: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench-job-") as name:
        work = Path(name)
        source = work / "slices"
        write_body(source, slices, side)
        paths = [str(path.absolute()) for path in (bundle, source, work)]
        command = [sys.executable, "-m", "node.bench_job", *paths, str(threads)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def write_body(folder: Path, slices: int, side: int = SIDE, seed: int = SEED) -> list[Path]:
    """The files of a body of ``slices`` × ``side`` × ``side`` voxels, one series a seed, in slice order."""
    folder.mkdir(parents=True)
    volume = body(Geometry((slices, side, side), SPACING_MM))
    paths = []
    for number, ds in enumerate(phantom_series(Body(seed, volume.geometry, {"ncct": volume.hu})), start=1):
        paths.append(folder / f"{number:04d}.dcm")
        paths[-1].write_bytes(to_bytes(ds))
    return paths


def run_jobs(bundle: Path, source: Path, work: Path, threads: int) -> dict[str, Any]:
    """Jobs, one after the other, in this process: the last as a worker meets it that has had some before.

    Opening the model is not part of any, as a worker keeps it open. ``first_s``: seconds of the first.
    """
    keep_freed_memory()
    engine = open_engine(bundle, SessionPolicy(threads=threads))
    jobs = [_run_job(engine, source, work / str(number)) for number in range(BEFORE + 1)]
    return {**jobs[-1], "first_s": jobs[0]["seconds"], "peak_bytes": peak_bytes()}


def _run_job(engine: Engine, source: Path, work: Path) -> dict[str, Any]:
    paths, settings = sorted(source.iterdir()), Settings(storage=StorageSettings(data_dir=work))
    stages: dict[str, float] = {}
    began = time.perf_counter()
    with _timed(stages, "read"):
        series = read_examined(paths, IntakeSettings())
    synthesis = engine.synthesize(series.volume, seed=0)
    stages |= synthesis.seconds
    with _timed(stages, "write"):
        context = context_of(settings, generation=1, created=AT)
        with Outbox(Spool(work), job_id=0) as outbox:
            outputs_of(series, synthesis, context, "ct_series", outbox.put)
            outbox.outputs()
    seconds = time.perf_counter() - began
    graphs = sum(stages[name] for name in engine.bundle.manifest.graphs)
    return {
        "slices": len(paths),
        "tiles": _tiles(engine, series.volume),
        "tiles_run": synthesis.tiles,
        "seconds": round(seconds, ROUNDED),
        "provider": engine.provider,
        "stages": {name: round(value, ROUNDED) for name, value in stages.items()},
        "graphs_s": round(graphs, ROUNDED),
        "outside_s": round(seconds - graphs, ROUNDED),
        "outside_share": round(1 - graphs / seconds, 4),
    }


def _tiles(engine: Engine, volume: Volume) -> int:
    """How many tiles cover the body's box; those that hold air alone are not run."""
    manifest = engine.bundle.manifest
    grid = model_grid(volume.geometry, find_body(volume).box, manifest.spacing_mm)
    return plan_for(manifest, grid.model.shape).count


def bench_journey(
    slices: int = JOURNEY_SLICES,
    *,
    side: int = SIDE,
    phases: Sequence[str] = (),
    models: Sequence[Path] = (),
    folder: Path = Path("build"),
    limit_s: float = JOURNEY_LIMIT_S,
) -> dict[str, Any]:
    """A node's own time: from the answer to the last C-STORE to the last slice in the archive.

    ``own_s`` is what remains of it without settling (the quiet time that is configured) and without the
    models' graphs. ``models`` stand in for those that are shipped; of those only ``phases`` run, where any is
    named. Raises JourneyFailed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench-journey-") as name:
        folders = [
            write_body(Path(name) / str(seed), slices, side, seed) for seed in range(SEED, SEED + BEFORE + 1)
        ]
        return _travel(Path(name), folders, phases, models, limit_s)


def _travel(
    work: Path,
    series: Sequence[Sequence[Path]],
    phases: Sequence[str],
    models: Sequence[Path],
    limit_s: float,
) -> dict[str, Any]:
    folder = work / "archive"
    with _archive_beside(folder) as archive:
        settings = demo_settings(work / "node", archive.recv())
        engine = settings.engine.model_copy(update={"phases": tuple(phases)})
        settings = settings.model_copy(update={"engine": engine})
        for model in models:
            ModelStore(settings).activate(model)
        graphs = {
            name
            for folder in ModelStore(settings).active().values()
            for name in read_bundle(folder).manifest.graphs
        }
        with Node(settings) as node:
            archive.send(node.port)
            peer = local_peer("node", node.port, NODE_AE)
            for paths in series:
                began = time.time()
                scu.send(peer, paths)
                sent = time.time()
                job = wait_for_jobs(node, limit_s, lambda _what, _share: None)[-1]
            if job.state not in (State.DELIVERED, State.COMMITTED):
                raise JourneyFailed(f"the series ended as {job.state} ({job.code})")
            outputs, syntheses = node.ledger.outputs(job.id), node.ledger.syntheses(job.id)
            came = {str(event.to_state): event.at for event in reversed(node.ledger.events(job.id))}
            back = max(path.stat().st_mtime for path in folder.rglob("*.dcm"))
    seconds = back - sent
    graphs_s = sum(s for made in syntheses for name, s in made.seconds.items() if name in graphs)
    return {
        "slices": len(paths),
        "phases": sorted(made.phase for made in syntheses),
        "instances_back": len(outputs),
        "sending_s": round(sent - began, ROUNDED),
        "seconds": round(seconds, ROUNDED),
        "quiet_s": QUIET_S,
        "graphs_s": round(graphs_s, ROUNDED),
        "own_s": round(seconds - QUIET_S - graphs_s, ROUNDED),
        "reached_s": {state: round(came[state] - sent, ROUNDED) for state in REACHED if state in came},
        "machine": machine(),
    }


@contextmanager
def _archive_beside(folder: Path) -> Iterator[Connection]:
    """An archive in a process of its own, as in a hospital: it says its port and is told the node's."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_serve_archive, args=(folder, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join()


def _serve_archive(folder: Path, told: Connection) -> None:
    with Archive(folder, ae_title=ARCHIVE_AE) as archive, suppress(EOFError):
        told.send(archive.port)
        archive.introduce(NODE_AE, "127.0.0.1", told.recv())
        told.recv()  # until the other end is closed


@contextmanager
def _timed(stages: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    stages[stage] = time.perf_counter() - began


if __name__ == "__main__":
    json.dump(run_jobs(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])), sys.stdout)
