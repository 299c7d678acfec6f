"""Which model bundles there are, and which are active; ``active.json`` is replaced whole, never edited.

Activating copies the bundle under ``data_dir/models``, so an active model does not depend on the folder it
came from. The node asks for the active folders before every job: a change needs no restart. Where nothing was
ever activated for a phase, the bundle shipped with the engine is active.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

import engine.bundle
from config.base import Frozen
from config.settings import Settings
from engine.bundle import MANIFEST, Bundle, read_bundle
from engine.errors import BundleInvalid

SHIPPED = Path(engine.bundle.__file__).parent / "bundles"
"""The bundles that come with the engine, a folder a phase."""
PHASES = ("arterial", "venous")
ACTIVE = "active.json"


class Change(Frozen):
    """One line of the history: at ``at`` (epoch seconds) ``folder`` became the model of ``phase``."""

    at: float
    phase: str
    folder: str | None
    """Name under data_dir/models; None is the shipped bundle."""
    model_id: str | None = None
    digest: str | None = None


class ActiveModels(Frozen):
    """What ``active.json`` holds."""

    format: Literal[1] = 1
    history: tuple[Change, ...] = ()
    """Every change, oldest first."""
    active: dict[str, tuple[Change, ...]] = Field(default_factory=dict)
    """From a phase to its changes still in force, the newest last: rolling back drops the newest."""


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One bundle of a listing; ``problem`` says why it cannot be used."""

    phase: str | None
    model_id: str | None
    model_version: str | None
    family: str | None
    digest: str | None
    folder: Path
    active: bool
    problem: str | None = None


class ModelStore:
    """The bundles this node knows: shipped, under data_dir/models, and those of engine.bundles_dir."""

    def __init__(
        self, settings: Settings, *, shipped: Path = SHIPPED, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder = settings.storage.data_dir / "models"
        self._more = Path(settings.engine.bundles_dir) if settings.engine.bundles_dir else None
        self._wanted = settings.engine.phases
        self._shipped = shipped
        self._clock = clock

    def list(self) -> tuple[ModelRow, ...]:
        """Every bundle there is, the broken ones with what is wrong; reads every file of every bundle."""
        active = set(self._active().values())
        return tuple(_row(folder, folder in active) for folder in self._candidates())

    def verify(self, folder: Path) -> Bundle:
        """The bundle of a folder, every digest checked; raises BundleInvalid."""
        return read_bundle(folder)

    def find(self, name: str) -> Path:
        """The folder a person means: a path to a bundle, or the model id of one that is known."""
        if (Path(name) / MANIFEST).is_file():
            return Path(name)
        for row in self.list():
            if name in (row.model_id, row.folder.name, row.digest):
                return row.folder
        raise BundleInvalid(Path(name), "no such folder, and no known model has this id")

    def active(self) -> Mapping[str, Path]:
        """The active bundle's folder of each wanted phase; raises BundleInvalid where one has none."""
        found = self._active()
        if not found:
            raise BundleInvalid(self._shipped, "no bundle is shipped and none was activated")
        lacking = sorted(set(self._wanted) - found.keys())
        if lacking:
            reason = f"no model is active for {', '.join(lacking)}, which engine.phases asks for"
            raise BundleInvalid(self._shipped, reason)
        return {phase: folder for phase, folder in found.items() if phase in (self._wanted or found)}

    def activate(self, folder: Path) -> Bundle:
        """Verify, copy and activate a bundle for its phase; raises BundleInvalid and then changes nothing."""
        bundle = read_bundle(folder)
        name = f"{bundle.manifest.model_id}-{bundle.digest[:12]}"
        with self._locked():
            if not (self._folder / name / MANIFEST).is_file():
                self._install(folder, name)
            self._record(bundle.manifest.phase, name, bundle)
        return bundle

    def rollback(self, phase: str) -> Path:
        """Go back to the model that was active before, at last the shipped one; raises BundleInvalid."""
        with self._locked():
            state = self._read()
            chain = state.active.get(phase, ())
            if not chain:
                raise BundleInvalid(self._folder, f"no earlier model of phase {phase!r} to go back to")
            before = chain[:-1]
            target = before[-1].folder if before else None
            read_bundle(self._path_of(phase, target))
            change = Change(at=self._clock(), phase=phase, folder=target)
            self._write(
                ActiveModels(history=(*state.history, change), active={**state.active, phase: before})
            )
        return self._path_of(phase, target)

    def history(self) -> tuple[Change, ...]:
        """Every change, oldest first."""
        return self._read().history

    def _active(self) -> dict[str, Path]:
        chains = self._read().active
        chosen = {
            phase: self._path_of(phase, chains[phase][-1].folder if chains.get(phase) else None)
            for phase in sorted({*PHASES, *chains})
        }
        return {
            phase: path for phase, path in chosen.items() if chains.get(phase) or (path / MANIFEST).is_file()
        }

    def _path_of(self, phase: str, name: str | None) -> Path:
        return self._shipped / phase if name is None else self._folder / name

    def _candidates(self) -> Iterator[Path]:
        for parent in (self._shipped, self._folder, self._more):
            if parent is not None and parent.is_dir():
                yield from (p for p in sorted(parent.iterdir()) if (p / MANIFEST).is_file())

    def _install(self, source: Path, name: str) -> None:
        """Copy into a temporary folder, then rename: a bundle folder is whole or absent."""
        staging = Path(tempfile.mkdtemp(prefix=".installing-", dir=self._folder))
        try:
            shutil.copytree(source, staging / name)
            read_bundle(staging / name)
            shutil.rmtree(self._folder / name, ignore_errors=True)
            (staging / name).rename(self._folder / name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _record(self, phase: str, name: str, bundle: Bundle) -> None:
        state = self._read()
        chain = state.active.get(phase, ())
        change = Change(
            at=self._clock(),
            phase=phase,
            folder=name,
            model_id=bundle.manifest.model_id,
            digest=bundle.digest,
        )
        if not (chain and chain[-1].folder == name):
            chain = (*chain, change)
        self._write(ActiveModels(history=(*state.history, change), active={**state.active, phase: chain}))

    def _read(self) -> ActiveModels:
        try:
            return ActiveModels.model_validate_json((self._folder / ACTIVE).read_bytes())
        except FileNotFoundError:
            return ActiveModels()
        except ValidationError as error:
            raise BundleInvalid(
                self._folder, f"{ACTIVE} cannot be read: {error.error_count()} errors"
            ) from error

    def _write(self, state: ActiveModels) -> None:
        """Replace ``active.json``: temporary file, fsync, rename, fsync of the folder."""
        staging = self._folder / f".{ACTIVE}"
        with staging.open("wb") as file:
            file.write(state.model_dump_json(indent=2).encode())
            file.flush()
            os.fsync(file.fileno())
        staging.replace(self._folder / ACTIVE)
        _sync_folder(self._folder)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One change at a time, over all processes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _row(folder: Path, active: bool) -> ModelRow:
    try:
        bundle = read_bundle(folder)
    except BundleInvalid as error:
        return ModelRow(None, None, None, None, None, folder, active, error.reason)
    manifest = bundle.manifest
    return ModelRow(
        phase=manifest.phase,
        model_id=manifest.model_id,
        model_version=manifest.model_version,
        family=manifest.family,
        digest=bundle.digest,
        folder=folder,
        active=active,
    )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
