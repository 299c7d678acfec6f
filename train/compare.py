"""``s2node compare``: every row trained for the same time, exported, measured; then the tables.

Each row and phase is a job of its own: processes of ``s2node train``, ``s2node export`` and
``train.measure_row`` in turn. Whatever is finished is kept in the folder: a stage by its run card, a bundle
by its manifest, a row by ``<row>-<phase>.json``. So the command may be stopped or killed anywhere and goes on
where it was; a stage goes on from its last checkpoint, a measurement from its last phantom. Finished rows can
be carried to another machine in a small form (``train.kept``).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from train.budget import StopRequest, stop_on_signal
from train.config import TrainConfigInvalid, merged, read_table
from train.data import PHANTOM_VERSION
from train.kept import fetch, keep
from train.measure_row import Spec, write_json
from train.results import write_results
from train.rows import CONFIGS, PRESETS, ROWS, BudgetTooSmall, Preset, Row, is_trained

EXIT_FAILED = 1
EXIT_CONFIG = 78
CHECKPOINT = "checkpoint.pt"
POLL_S = 0.2

Say = Callable[[str], None]


class ComparisonStopped(Exception):
    """Not every row is finished; says which one stopped and why."""


class ComparisonChanged(Exception):
    """A row in the folder is of another configuration, budget or set of phantoms; says which."""


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

    @property
    def wall(self) -> Path:
        """Seconds that its processes took so far, by kind; in ``result`` once that is there."""
        return self.folder / "wall" / f"{self.key}.json"

    @property
    def log(self) -> Path:
        """What its processes say."""
        return self.folder / "logs" / f"{self.key}.log"

    def run(self, stage: str) -> Path:
        """The folder of a stage."""
        return self.folder / "runs" / self.key / stage

    @property
    def stages(self) -> dict[str, Path]:
        """Where every stage of the row's model is trained."""
        return {stage: self.run(stage) for stage in self.row.loops}

    @property
    def made_of(self) -> str:
        """Sha256 of all that its figures follow from, on whatever machine and in whatever folder."""
        preset = self.preset
        phantoms = [PHANTOM_VERSION, preset.first_seed, preset.cases, preset.shape, preset.spacing_mm]
        facts: dict[str, object] = {"reads": self.row.reads, "phase": self.phase, "phantoms": phantoms}
        if self.bundle:
            manifest = self.bundle / "bundle.json"
            facts["bundle"] = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.exists() else ""
        elif self.row.config:
            facts["config"] = merged(read_table(CONFIGS / self.row.config), nested(changes_of(self)))
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


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
    kept: Path | None = None,
    stop_after_s: float | None = None,
) -> None:
    """Do what is not done yet of every row (or of ``only`` these), then write ``out`` and its pictures.

    ``reuse`` names rows whose bundles are there already: FOLDER/<phase>. A row's minutes are those
    of the whole table, whichever rows are asked for. Rows in ``kept`` are taken from there if they are of
    this comparison, and every finished row is put there. After ``stop_after_s`` seconds it stops, and what
    cannot be done before is not begun. Raises ComparisonStopped where a process failed or was asked to stop,
    ComparisonChanged where the folder belongs to another comparison, BudgetTooSmall.
    """
    every = plan(preset, folder, table, reuse or {})
    jobs = [job for job in every if not only or job.name in only]
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder) as lock, stop_on_signal() as stop, _clock(stop, stop_after_s) as left_s:
        for job in every:
            _carry_in(job, kept, say)
        for line in describe_plan(jobs):
            say(line)
        for job in jobs:
            write_config(job)
        with ThreadPoolExecutor(preset.side_by_side) as pool:
            said = pool.map(lambda job: _attempt(job, stop, lock, say, left_s), jobs)
            failures = [failure for failure in said if failure]
        if kept:
            for job in every:
                if is_finished(job):
                    keep(job.result, kept)
    write_results(out, folder, table, preset)
    if failures:
        raise ComparisonStopped("; ".join(failures))


@contextmanager
def _clock(stop: StopRequest, after_s: float | None) -> Iterator[Callable[[], float]]:
    """Asks to stop when ``after_s`` seconds are over; yields how many are left."""
    if after_s is None:
        yield lambda: math.inf
        return
    end = time.monotonic() + after_s
    timer = threading.Timer(after_s, stop.event.set)
    timer.daemon = True
    timer.start()
    try:
        yield lambda: end - time.monotonic()
    finally:
        timer.cancel()


def _carry_in(job: Job, kept: Path | None, say: Say) -> None:
    """Take a kept row unless the folder has its own. Raises ComparisonChanged."""
    if is_finished(job) or kept is None:
        return
    found = fetch(kept, job.result, job.made_of)
    if found is False:
        say(f"{job.key}: the row in {kept} is of another budget, configuration or set of phantoms: made anew")


def is_finished(job: Job) -> bool:
    """Whether its result is here. Raises ComparisonChanged where that is of another comparison."""
    if not job.result.exists():
        return False
    if json.loads(job.result.read_text()).get("made_of") != job.made_of:
        raise ComparisonChanged(f"{job.result} is of another comparison: {_cure(job)}")
    return True


def _cure(job: Job) -> str:
    return (
        f"give another --folder, or remove {job.result.name}, config/{job.key}.toml, bundles/{job.key} and"
        f" runs/{job.key} to make this row anew"
    )


def describe_plan(jobs: Sequence[Job]) -> Iterator[str]:
    """What is to be done and how long it takes, in words."""
    if not jobs:
        return
    preset, trained = jobs[0].preset, [job for job in jobs if is_trained(job.row) and not job.bundle]
    left = [job for job in jobs if not is_finished(job)]
    each = f" for {jobs[0].minutes:.1f} minutes each" if trained else ""
    yield (
        f"{len(jobs)} rows and phases, {len(trained)} of them trained{each}, {preset.side_by_side} side by"
        f" side; measured on {preset.cases} phantoms"
    )
    for kind, of in (("all", jobs), ("left", left)):
        training, rest = (sum(f(job) for job in of) for f in (training_minutes, other_minutes))
        rest += preset.prepare_minutes if training else 0.0
        hours = [minutes / 60 / preset.side_by_side for minutes in (training, rest, training + rest)]
        yield (
            f"{kind}: {len(of)} rows and phases, {hours[0]:.1f} h of training and {hours[1]:.1f} h of exports"
            f" and measurements: about {hours[2]:.1f} h"
        )


def training_minutes(job: Job) -> float:
    """Minutes of training that are not done yet."""
    if job.bundle or is_finished(job):
        return 0.0
    left = [stage for stage, run in job.stages.items() if not _is_trained(run)]
    return sum(job.minutes * job.row.loops[stage] for stage in left)


def other_minutes(job: Job) -> float:
    """Minutes set aside for what is not training."""
    return 0.0 if is_finished(job) else job.preset.measuring_minutes(job.row)


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
    """Every row and phase, with equal minutes for all that are trained. Raises BudgetTooSmall."""
    minutes = preset.minutes(table)
    return [
        Job(name, row, phase, preset, folder, minutes, _bundle(name, row, phase, reuse))
        for name, row in table.items()
        for phase in row.phases
    ]


def _bundle(name: str, row: Row, phase: str, reuse: Mapping[str, Path]) -> Path | None:
    place = reuse.get(name, row.bundles)
    return place / phase if place else None


def write_config(job: Job) -> None:
    """The configuration of a trained row. Raises ComparisonChanged where an older one differs."""
    if not job.row.config or job.bundle:
        return
    text = config_text(job)
    job.config.parent.mkdir(parents=True, exist_ok=True)
    if job.config.exists() and job.config.read_text() != text:
        raise ComparisonChanged(f"{job.config} is of another budget or another version: {_cure(job)}")
    job.config.write_text(text)


def config_text(job: Job) -> str:
    """TOML over the row's file: what the row and the preset change, and each stage's minutes."""
    base = CONFIGS / job.row.config
    digest = hashlib.sha256(json.dumps(read_table(base), sort_keys=True).encode()).hexdigest()
    parts = [f"# {job.row.title}; the file below has sha256 {digest}", f"extends = {_toml(str(base))}"]
    for table, keys in changes_of(job).items():
        parts += ["", f"[{table}]", *(f"{key} = {_toml(value)}" for key, value in keys.items())]
    return "\n".join(parts) + "\n"


def changes_of(job: Job) -> dict[str, dict[str, object]]:
    """By table of the configuration (``a.b``), the keys that this comparison sets."""
    tables: dict[str, dict[str, object]] = {}
    for stage, share in job.row.loops.items():
        budget = {"steps": job.preset.steps, "max_minutes": round(max(job.minutes * share, 0.05), 3)}
        tables.setdefault(f"{stage}.loop", {}).update(budget)
    for changes in (job.preset.changes, job.row.changes):
        for table, keys in changes.items():
            tables.setdefault(table, {}).update(keys)
    return tables


def nested(tables: Mapping[str, Mapping[str, object]]) -> dict[str, Any]:
    """``a.b`` → keys as TOML reads it: {"a": {"b": keys}}."""
    found: dict[str, Any] = {}
    for name, keys in tables.items():
        place = found
        for part in name.split("."):
            place = place.setdefault(part, {})
        place.update(keys)
    return found


def _toml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def steps_of(job: Job) -> Iterator[Step]:
    """The processes of a job, in order."""
    bundle = job.bundle or job.folder / "bundles" / job.key
    if job.row.loops and not job.bundle:
        yield from (_training(job, stage) for stage in job.row.loops)
        last = list(job.stages.values())[-1]
        command = [sys.executable, "-m", "export.cli", str(last), str(bundle), "--replace"]
        yield Step("export", lambda: command, (bundle / "bundle.json").exists)
    yield Step("measure", lambda: _measuring(job, bundle), job.result.exists)


def _training(job: Job, stage: str) -> Step:
    run = job.run(stage)
    below = {
        "diffusion": ("--autoencoder", job.run("autoencoder")),
        "joint": ("--diffusion", job.run("diffusion")),
    }

    def command() -> list[str]:
        words = [sys.executable, "-m", "train.cli", stage, "--config", str(job.config), "--phase", job.phase]
        words += ["--out", str(run), "--cache", str(job.folder / "cache")]
        words += [str(word) for word in below.get(stage, ())]
        return words + (["--resume"] if (run / CHECKPOINT).exists() else [])

    return Step(f"train {stage}", command, lambda: _is_trained(run))


def _is_trained(run: Path) -> bool:
    card = run / "run.json"
    return card.exists() and bool(json.loads(card.read_text())["finished"])


def _measuring(job: Job, bundle: Path) -> list[str]:
    preset, reads = job.preset, job.row.reads
    spec = Spec(
        row=job.name, phase=job.phase, reads=reads, first_seed=preset.first_seed, cases=preset.cases,
        shape=preset.shape, spacing_mm=preset.spacing_mm, bundle=bundle if reads == "bundle" else None,
        trained={} if job.bundle else {stage: _trained(run) for stage, run in job.stages.items()},
        made_of=job.made_of, out=job.result,
    )  # fmt: skip
    file = job.folder / "specs" / f"{job.key}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(spec.model_dump_json(indent=1))
    return [sys.executable, "-m", "train.measure_row", str(file)]


def _trained(run: Path) -> dict[str, Any]:
    card = json.loads((run / "run.json").read_text())
    return {key: card[key] for key in ("steps", "minutes", "parameters") if key in card}


def _attempt(job: Job, stop: StopRequest, lock: int, say: Say, left_s: Callable[[], float]) -> str:
    """Do the job unless it is done; what went wrong, or nothing."""
    if is_finished(job):
        return ""
    needed = training_minutes(job) + other_minutes(job)
    if 60 * needed > left_s():
        return f"{job.key}: takes about {needed:.0f} minutes, left for the next run"
    for step in steps_of(job):
        if step.is_done():
            continue
        if stop:
            return f"{job.key}: asked to stop before {step.words}"
        started = time.monotonic()
        status = _run(job, step, stop, lock)
        _add_seconds(job, step, time.monotonic() - started)
        if status or not step.is_done():
            return f"{job.key}: {step.words} ended with {status}: see {job.log}"
        say(f"{job.key}: {step.words}, {(time.monotonic() - started) / 60:.1f} min")
    _put_seconds_into_result(job)
    return ""


def _add_seconds(job: Job, step: Step, seconds: float) -> None:
    """Count a process, finished or stopped: train, export or measure."""
    spent: dict[str, float] = json.loads(job.wall.read_text()) if job.wall.exists() else {}
    kind = step.words.split()[0]
    job.wall.parent.mkdir(parents=True, exist_ok=True)
    write_json(job.wall, spent | {kind: spent.get(kind, 0.0) + seconds})


def _put_seconds_into_result(job: Job) -> None:
    spent = json.loads(job.wall.read_text())
    write_json(job.result, json.loads(job.result.read_text()) | {"wall_seconds": spent})
    job.wall.unlink()


def _run(job: Job, step: Step, stop: StopRequest, lock: int) -> int:
    """Run one process into the job's log; a request to stop is handed on, and it may leave a checkpoint."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("a") as log:
        process = subprocess.Popen(step.command(), stdout=log, stderr=subprocess.STDOUT, pass_fds=(lock,))
        told = False
        while (status := process.poll()) is None:
            if stop and not told:
                process.terminate()
                told = True
            time.sleep(POLL_S)
    return status


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
        float | None,
        typer.Option(
            "--hours", help="Wall-clock budget of the table, instead of the preset's minutes a row."
        ),
    ] = None,
    cases: Annotated[
        int | None, typer.Option("--cases", min=1, help="Test phantoms, instead of the preset's.")
    ] = None,
    kept: Annotated[
        Path | None,
        typer.Option(
            "--kept", help="Small results of finished rows: taken from here if they fit, and put here."
        ),
    ] = None,
    stop_after: Annotated[
        float | None,
        typer.Option("--stop-after", help="Hours of this run; the budget of the table stays --hours."),
    ] = None,
    show_plan: Annotated[bool, typer.Option("--plan", help="Say what would be done; do nothing.")] = False,
) -> None:
    """Train every method for the same time, measure all on the same phantoms, write the tables.

    It may be stopped anywhere: the same command goes on where it was.
    """
    try:
        chosen = _preset(preset, hours, cases)
        place = folder or Path("runs/compare") / preset
        for name in row or ():
            _known(name)
        if show_plan:
            jobs = [j for j in plan(chosen, place, ROWS, _reused(reuse)) if not row or j.name in row]
            typer.echo("\n".join(describe_plan(jobs)))
            return
        compare(
            chosen, place, out or place / "results.md", ROWS, row or (), _reused(reuse), typer.echo, kept,
            3600 * stop_after if stop_after else None,
        )  # fmt: skip
    except (TrainConfigInvalid, ComparisonChanged, BudgetTooSmall, UnknownName) as error:
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
    return replace(preset, hours=hours, cases=cases or preset.cases)


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
