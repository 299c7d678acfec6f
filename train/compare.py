"""``s2node compare``: every row trained for the same time, exported, measured; then the tables.

Each row and phase is a job of its own: processes of ``s2node train``, ``s2node export`` and
``train.measure_row`` in turn. Whatever is finished is kept in the folder: a stage by its run card, a bundle
by its manifest, a row by ``<row>-<phase>.json``. So the command may be stopped or killed anywhere and goes on
where it was; a stage goes on from its last checkpoint.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from train.budget import StopRequest, stop_on_signal
from train.config import TrainConfigInvalid, read_table
from train.measure_row import Spec
from train.results import write_results
from train.rows import CONFIGS, PRESETS, ROWS, S2LDM, Preset, Row

EXIT_FAILED = 1
EXIT_CONFIG = 78
CHECKPOINT = "checkpoint.pt"
POLL_S = 0.2

Say = Callable[[str], None]


class ComparisonStopped(Exception):
    """Not every row is finished; says which one stopped and why."""


class ComparisonChanged(Exception):
    """A row in the folder was made under another configuration; says which."""


@dataclass(frozen=True, slots=True)
class Job:
    """One row in one phase, and the folder that everything is kept in."""

    name: str
    row: Row
    phase: str
    preset: Preset
    folder: Path
    minutes: float
    bundle: Path | None = None
    """A finished bundle to measure instead of training one."""

    @property
    def key(self) -> str:
        """Names the job's files."""
        return f"{self.name}-{self.phase}"

    @property
    def result(self) -> Path:
        """There when the job is finished."""
        return self.folder / f"{self.key}.json"

    @property
    def config(self) -> Path:
        """The row's configuration with this comparison's budget."""
        return self.folder / "config" / f"{self.key}.toml"

    def run(self, stage: str) -> Path:
        """The folder of a stage."""
        return self.folder / "runs" / self.key / stage


@dataclass(frozen=True, slots=True)
class Step:
    """One process of a job, and how to see that it need not be run."""

    words: str
    command: Callable[[], list[str]]
    is_done: Callable[[], bool]


def compare(
    preset: Preset,
    folder: Path,
    out: Path,
    table: Mapping[str, Row] = ROWS,
    only: Collection[str] = (),
    reuse: Mapping[str, Path] | None = None,
    say: Say = lambda line: None,
) -> None:
    """Do what is not done yet of every row (or of ``only`` these), then write ``out`` and its pictures.

    ``reuse`` names rows whose bundles are there already: FOLDER/<phase>. A row's minutes are its part of the
    whole table, whichever rows are asked for. Raises ComparisonStopped where a process failed or was asked to
    stop, ComparisonChanged where the folder belongs to another comparison.
    """
    jobs = [j for j in plan(preset, folder, table, reuse or {}) if not only or j.name in only]
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder) as lock, stop_on_signal() as stop:
        for job in jobs:
            write_config(job)
        failures = _work(jobs, lambda job: _attempt(job, stop, lock, say), preset.side_by_side)
    write_results(out, folder, table, preset)
    if failures:
        raise ComparisonStopped("; ".join(failures))


def _work(jobs: Sequence[Job], attempt: Callable[[Job], str], side_by_side: int) -> list[str]:
    """What went wrong. A row that stands on another comes after all that do not."""
    failures: list[str] = []
    with ThreadPoolExecutor(side_by_side) as pool:
        for stands_on_another in (False, True):
            wave = [job for job in jobs if bool(job.row.stands_on) is stands_on_another]
            failures += [failure for failure in pool.map(attempt, wave) if failure]
    return failures


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Holds the folder's lock, which the processes of its jobs inherit; yields its descriptor."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ComparisonStopped(
                f"{folder}: another comparison, or a process that one left behind, is at work there"
            ) from None
        yield file.fileno()


def plan(preset: Preset, folder: Path, table: Mapping[str, Row], reuse: Mapping[str, Path]) -> list[Job]:
    """Every row and phase, with equal minutes for all that are trained."""
    pairs = [(name, row, phase) for name, row in table.items() for phase in row.phases]
    trained = [name for name, row, _ in pairs if sum(row.loops.values())]
    minutes = preset.minutes(len(trained), sum(row.reads == "bundle" for _, row, _ in pairs))
    return [
        Job(name, row, phase, preset, folder, minutes, reuse[name] / phase if name in reuse else None)
        for name, row, phase in pairs
    ]


def write_config(job: Job) -> None:
    """The configuration of a trained row. Raises ComparisonChanged where an older one differs."""
    if not job.row.config or job.bundle:
        return
    text = config_text(job)
    job.config.parent.mkdir(parents=True, exist_ok=True)
    if job.config.exists() and job.config.read_text() != text:
        raise ComparisonChanged(
            f"{job.config} is of another budget or another version: give another --folder, or remove it with"
            f" {job.result.name} and runs/{job.key} to make this row anew"
        )
    job.config.write_text(text)


def config_text(job: Job) -> str:
    """TOML over the row's file: what the row and the preset change, and each stage's minutes."""
    base = CONFIGS / job.row.config
    tables: dict[str, dict[str, object]] = {}
    loops = {**S2LDM, **job.row.loops} if job.row.stands_on else job.row.loops
    for stage, share in loops.items():
        budget = {"steps": job.preset.steps, "max_minutes": round(max(job.minutes * share, 0.05), 3)}
        tables.setdefault(f"{stage}.loop", {}).update(budget)
    for changes in (job.preset.changes, job.row.changes):
        for table, keys in changes.items():
            tables.setdefault(table, {}).update(keys)
    digest = hashlib.sha256(json.dumps(read_table(base), sort_keys=True).encode()).hexdigest()
    parts = [f"# {job.row.title}; the file below has sha256 {digest}", f"extends = {_toml(str(base))}"]
    for table, keys in tables.items():
        parts += ["", f"[{table}]", *(f"{key} = {_toml(value)}" for key, value in keys.items())]
    return "\n".join(parts) + "\n"


def _toml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def steps_of(job: Job) -> Iterator[Step]:
    """The processes of a job, in order."""
    bundle = job.bundle or job.folder / "bundles" / job.key
    if job.row.loops and not job.bundle:
        yield from (_training(job, stage) for stage in job.row.loops)
        last = job.run(list(job.row.loops)[-1])
        command = [sys.executable, "-m", "export.cli", str(last), str(bundle), "--replace"]
        yield Step("export", lambda: command, (bundle / "bundle.json").exists)
    yield Step("measure", lambda: _measuring(job, bundle), job.result.exists)


def _training(job: Job, stage: str) -> Step:
    run = job.run(stage)

    def command() -> list[str]:
        words = [sys.executable, "-m", "train.cli", stage, "--config", str(job.config), "--phase", job.phase]
        words += ["--out", str(run), "--cache", str(job.folder / "cache")]
        if stage == "diffusion":
            words += ["--autoencoder", str(_first_stage(job))]
        return words + (["--resume"] if (run / CHECKPOINT).exists() else [])

    return Step(f"train {stage}", command, lambda: _is_finished(run))


def _first_stage(job: Job) -> Path:
    """Stage 1 of this row, or of the row it stands on."""
    return replace(job, name=job.row.stands_on or job.name).run("autoencoder")


def _stages(job: Job) -> dict[str, Path]:
    """Where every stage of the row's model was trained."""
    first = {"autoencoder": _first_stage(job)} if job.row.stands_on else {}
    return first | {stage: job.run(stage) for stage in job.row.loops}


def _is_finished(run: Path) -> bool:
    card = run / "run.json"
    return card.exists() and bool(json.loads(card.read_text())["finished"])


def _measuring(job: Job, bundle: Path) -> list[str]:
    preset, reads = job.preset, job.row.reads
    spec = Spec(
        row=job.name, phase=job.phase, reads=reads, first_seed=preset.first_seed, cases=preset.cases,
        shape=preset.shape, spacing_mm=preset.spacing_mm, bundle=bundle if reads == "bundle" else None,
        trained={} if job.bundle else {stage: _trained(run) for stage, run in _stages(job).items()},
        out=job.result,
    )  # fmt: skip
    file = job.folder / "specs" / f"{job.key}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(spec.model_dump_json(indent=1))
    return [sys.executable, "-m", "train.measure_row", str(file)]


def _trained(run: Path) -> dict[str, Any]:
    card = json.loads((run / "run.json").read_text())
    return {key: card[key] for key in ("steps", "minutes", "parameters") if key in card}


def _attempt(job: Job, stop: StopRequest, lock: int, say: Say) -> str:
    """Do the job unless it is done; what went wrong, or nothing."""
    for step in () if job.result.exists() else steps_of(job):
        if step.is_done():
            continue
        if stop:
            return f"{job.key}: asked to stop before {step.words}"
        started = time.monotonic()
        status = _run(job, step, stop, lock)
        if status or not step.is_done():
            return f"{job.key}: {step.words} ended with {status}: see {_log(job)}"
        say(f"{job.key}: {step.words}, {(time.monotonic() - started) / 60:.1f} min")
    return ""


def _run(job: Job, step: Step, stop: StopRequest, lock: int) -> int:
    """Run one process into the job's log; a request to stop is handed on, and it may leave a checkpoint."""
    _log(job).parent.mkdir(parents=True, exist_ok=True)
    with _log(job).open("a") as log:
        process = subprocess.Popen(step.command(), stdout=log, stderr=subprocess.STDOUT, pass_fds=(lock,))
        told = False
        while (status := process.poll()) is None:
            if stop and not told:
                process.terminate()
                told = True
            time.sleep(POLL_S)
    return status


def _log(job: Job) -> Path:
    return job.folder / "logs" / f"{job.key}.log"


def command(
    preset: Annotated[str, typer.Option("--preset", help="Budget and test phantoms: cpu or toy.")] = "cpu",
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Where everything is kept. Default: runs/compare/PRESET."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The page to write. Default: results.md in the folder."),
    ] = None,
    row: Annotated[
        list[str] | None, typer.Option("--row", help="Only this row; may be given again. Default: every row.")
    ] = None,
    reuse: Annotated[
        list[str] | None,
        typer.Option("--reuse", help="ROW=FOLDER: measure the bundles FOLDER/PHASE, train none."),
    ] = None,
    hours: Annotated[
        float | None, typer.Option("--hours", help="Wall-clock budget, instead of the preset's.")
    ] = None,
    cases: Annotated[
        int | None, typer.Option("--cases", min=1, help="Test phantoms, instead of the preset's.")
    ] = None,
) -> None:
    """Train every method for the same time, measure all on the same phantoms, write the tables.

    It may be stopped anywhere: the same command goes on where it was.
    """
    try:
        chosen = _preset(preset, hours, cases)
        place = folder or Path("runs/compare") / preset
        for name in row or ():
            _known(name)
        compare(chosen, place, out or place / "results.md", ROWS, row or (), _reused(reuse), typer.echo)
    except (TrainConfigInvalid, ComparisonChanged, UnknownName) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_CONFIG) from None
    except ComparisonStopped as error:
        typer.echo(f"{error}. The same command goes on from here.", err=True)
        raise typer.Exit(EXIT_FAILED) from None


class UnknownName(Exception):
    """A preset or a row that is not in its table; says which and what there is."""


def _preset(name: str, hours: float | None, cases: int | None) -> Preset:
    if name not in PRESETS:
        raise UnknownName(f"--preset {name!r} is not one of {sorted(PRESETS)}")
    preset = PRESETS[name]
    return replace(preset, hours=hours or preset.hours, cases=cases or preset.cases)


def _reused(pairs: Sequence[str] | None) -> dict[str, Path]:
    found = {}
    for pair in pairs or ():
        name, _, folder = pair.partition("=")
        _known(name)
        found[name] = Path(folder)
    return found


def _known(name: str) -> None:
    if name not in ROWS:
        raise UnknownName(f"{name!r} is not one of the rows {list(ROWS)}")
