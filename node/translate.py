"""Translate the series of a folder without a network: the worker's own `build`, files in and files out.

Nothing is half written: a series' outputs are made in a hidden folder beside their place and renamed into it.
"""

from __future__ import annotations

import filecmp
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pydicom.dataset import Dataset

from config.intake import IntakeSettings, SeriesLimits
from config.settings import Settings
from engine.pipeline import Engine
from node import tags
from node.build import build
from node.errors import SeriesRejected
from node.flow import Action, Failure, attempt
from node.intake import examine_headers
from node.models import ModelStore
from node.outputs import OutputContext
from node.outputs.context import context_of
from node.outputs.encoding import Instance
from node.series import read_header, read_headers
from node.states import State
from node.uids import is_plausible_uid
from node.worker import Engines, policy_of

DICOMDIR = "1.2.840.10008.1.3.10"
"""Media Storage Directory: a list of files, not an image."""

TRANSLATED, PARKED, REJECTED = 0, 1, 3
"""Exit codes."""


class Progress(Protocol):
    """Told how far a folder is: series ``number`` (from 0) of ``count``, and its part that is done (0–1)."""

    def __call__(self, number: int, count: int, fraction: float) -> None: ...  # noqa: D102


def no_progress(number: int, count: int, fraction: float) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class OutputRow:
    """One output series and the folder its files are in."""

    phase: str
    kind: str
    series_instance_uid: str
    instances: int
    folder: Path


@dataclass(frozen=True, slots=True)
class SeriesResult:
    """What became of one series, or of a file that is no DICOM image (then without a UID).

    ``state`` is BUILT, REJECTED (``code`` is a key of REJECTION_CODES) or PARKED (``code`` is one of
    PARK_CODES: a person is needed). ``source`` is the file, or the folder of the files, relative to IN.
    """

    series_instance_uid: str | None
    state: State
    code: str | None
    reason: str | None
    outputs: tuple[OutputRow, ...] = ()
    source: Path = Path()

    def as_json(self) -> dict[str, Any]:
        """The row that scripts read."""
        return {
            "series_instance_uid": self.series_instance_uid,
            "state": str(self.state),
            "code": self.code,
            "reason": self.reason,
            "source": str(self.source),
            "outputs": [
                {
                    "phase": output.phase,
                    "kind": output.kind,
                    "series_instance_uid": output.series_instance_uid,
                    "instances": output.instances,
                    "folder": str(output.folder),
                }
                for output in self.outputs
            ],
        }


@dataclass(frozen=True, slots=True)
class Group:
    """Files that belong together: one series, or what lies in one folder and names no series."""

    series_instance_uid: str | None
    paths: tuple[Path, ...]
    source: Path


def translate(
    in_dir: Path,
    out_dir: Path,
    settings: Settings,
    progress: Progress = no_progress,
    *,
    now: datetime | None = None,
) -> list[SeriesResult]:
    """Translate every series under ``in_dir`` into ``out_dir``/<series UID>/<phase>; one row a series.

    ``now`` is the time outputs carry. Raises OSError where a folder cannot be used, BundleInvalid or
    ProviderMissing where the models cannot run here; whatever is wrong with a series is in its row.
    """
    groups, rows = find_series(in_dir, settings.intake.limits, skip=out_dir)
    refusals = [attempt(partial(_examine, group, settings.intake)) for group in groups]
    engines = _open_engines(settings) if None in refusals else {}
    context = context_of(settings, generation=1, created=now or datetime.now(UTC).astimezone())
    for number, (group, outcome) in enumerate(zip(groups, refusals, strict=True)):
        told = partial(progress, number, len(groups))
        if outcome is None:
            job = Job(group, out_dir, settings, engines, context, told)
            rows.append(_failed_or(group, attempt(job.run)))
        else:
            rows.append(_failed_or(group, outcome))
        told(1.0)
    return rows


def exit_code(results: Iterable[SeriesResult]) -> int:
    """1 if any series is parked, else 0 if at least one was translated, else 3."""
    states = {result.state for result in results}
    if State.PARKED in states:
        return PARKED
    return TRANSLATED if State.BUILT in states else REJECTED


def find_series(
    in_dir: Path, limits: SeriesLimits, skip: Path | None = None
) -> tuple[list[Group], list[SeriesResult]]:
    """The series under a folder, and a row for each file that is none; ``skip`` is not looked at."""
    if not in_dir.is_dir():
        raise NotADirectoryError(f"{in_dir} is not a folder")
    members: dict[tuple[str | None, Path], Members] = {}
    rows: list[SeriesResult] = []
    for path in _files(in_dir, skip):
        header = attempt(partial(_image_header, path, limits))
        if isinstance(header, Failure):
            rows.append(_failed_or(Group(None, (path,), path.relative_to(in_dir)), header))
            continue
        uid = tags.text(header, "SeriesInstanceUID") or None
        key = (uid, Path() if uid else path.parent.relative_to(in_dir))
        members.setdefault(key, Members()).add(tags.text(header, "SOPInstanceUID"), path)
    groups = [
        Group(uid, tuple(found.paths), _common_source(in_dir, found.paths))
        for (uid, _), found in members.items()
    ]
    return groups, rows


@dataclass(frozen=True, slots=True)
class Members:
    """The files of a group; a copy of a file, which exports often hold twice, is left out."""

    paths: list[Path] = field(default_factory=list)
    first_of: dict[str, Path] = field(default_factory=dict)

    def add(self, sop_instance_uid: str, path: Path) -> None:
        """Take a file unless the same instance is there in the same bytes."""
        first = self.first_of.setdefault(sop_instance_uid, path) if sop_instance_uid else path
        if first is path or not filecmp.cmp(first, path, shallow=False):
            self.paths.append(path)


def _files(in_dir: Path, skip: Path | None) -> list[Path]:
    skipped = skip.resolve() if skip else None
    found = (path for path in sorted(in_dir.rglob("*")) if path.is_file())
    return [path for path in found if skipped is None or not path.resolve().is_relative_to(skipped)]


def _image_header(path: Path, limits: SeriesLimits) -> Dataset:
    """The header of a DICOM object that belongs to a series; raises SeriesRejected."""
    header = read_header(path, limits)
    if tags.text(header.file_meta, "MediaStorageSOPClassUID") == DICOMDIR:
        raise SeriesRejected("NOT-DICOM", "a DICOMDIR, not an image")
    if not tags.text(header, "SeriesInstanceUID") and tags.number(header, "Rows") is None:
        raise SeriesRejected("NOT-DICOM", "a DICOM file, but neither of a series nor an image")
    return header


def _common_source(in_dir: Path, paths: Iterable[Path]) -> Path:
    several = list(paths)
    if len(several) == 1:
        return several[0].relative_to(in_dir)
    parents = {path.parent for path in several}
    return parents.pop().relative_to(in_dir) if len(parents) == 1 else Path()


def _examine(group: Group, rules: IntakeSettings) -> None:
    examine_headers(read_headers(group.paths, rules.limits), rules)


def _open_engines(settings: Settings) -> Mapping[str, Engine]:
    return Engines(ModelStore(settings), policy_of(settings)).active()


@dataclass(frozen=True, slots=True)
class Job:
    """One series that headers say is ours, and all it takes to translate it."""

    group: Group
    out_dir: Path
    settings: Settings
    engines: Mapping[str, Engine]
    context: OutputContext
    progress: Callable[[float], None]

    def run(self) -> SeriesResult:
        """Build and write; raises what :func:`node.build.build` raises, and OSError."""
        uid = str(self.group.series_instance_uid)
        with _written(self.out_dir, uid) as folders:
            build(
                self.group.paths,
                engines=self.engines,
                context=self.context,
                rules=self.settings.intake,
                progress=self.progress,
                kinds=self.settings.outputs.kinds,
                seed=self.settings.engine.seed,
                made=folders.put,
            )
        rows = tuple(folders.rows.values())
        return SeriesResult(uid, State.BUILT, None, None, rows, self.group.source)


@dataclass(frozen=True, slots=True)
class Folders:
    """The output series of one source, written under ``new`` as they are made, to lie in ``target``."""

    new: Path
    target: Path
    rows: dict[str, OutputRow] = field(default_factory=dict)
    """From the name of a folder to what is in it."""

    def put(self, phase: str, kind: str, instance: Instance) -> None:
        """Write the next file of its series; raises OSError."""
        name = phase if kind == "ct_series" else f"{phase}-{kind}"
        if name not in self.rows:
            (self.new / name).mkdir(parents=True)
            self.rows[name] = OutputRow(phase, kind, instance.series_instance_uid, 0, self.target / name)
        number = self.rows[name].instances + 1
        (self.new / name / f"{number:04d}.dcm").write_bytes(instance.data)
        self.rows[name] = replace(self.rows[name], instances=number)


@contextmanager
def _written(out_dir: Path, series_instance_uid: str) -> Iterator[Folders]:
    """Every output series in a folder of its own, all of them in place at once when the block ends well."""
    if not is_plausible_uid(series_instance_uid):
        raise SeriesRejected("IDENTITY", "SeriesInstanceUID is no UID")
    out_dir.mkdir(parents=True, exist_ok=True)
    target = out_dir / series_instance_uid
    staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=out_dir))
    try:
        yield Folders(staging / "new", target)
        if target.exists():
            target.rename(staging / "old")
        (staging / "new").rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _failed_or(group: Group, outcome: SeriesResult | Failure) -> SeriesResult:
    """The row of what went wrong: nobody comes back to try again, so what may pass is PARKED here."""
    if isinstance(outcome, SeriesResult):
        return outcome
    disposition = outcome.disposition
    state = State.REJECTED if disposition.action is Action.REJECT else State.PARKED
    return SeriesResult(group.series_instance_uid, state, disposition.code, outcome.reason, (), group.source)
