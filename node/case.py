"""One case as a tar, for support: received files, results, what the ledger knows, the settings.

Names in the tar are numbers. With ``deidentify`` files go through the profile of `node/deidentify.py`, UIDs
in the ledger's rows are replaced by the same ones, times are seconds since the job began, and workers have no
host.
"""

from __future__ import annotations

import io
import json
import os
import platform
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from config.settings import Settings
from node.deidentify import NotDeidentified, Pseudonyms, deidentified, pseudonyms
from node.ledger import Ledger
from node.ledger.moves import EXPORTED_CODE
from node.supervisor import OWNER
from node.users import user_of

LEFT_OUT: Final = "(left out)"
SECRET_KEYS: Final = frozenset(
    {
        "host",
        "addresses",
        "allow_addresses",
        "tls_name",
        "certificate",
        "key",
        "authorities",
        "revoked",
        "path",
    }
)
"""Settings whose values say where things are in a hospital's network and on its disks."""
SECRET_ENDINGS: Final = ("_addresses", "_dir", "_host", "_file", "_key", "_password")
TIME_KEYS: Final = frozenset({"at", "not_before", "leased_until", "ask_not_before", "owed_since"})


@dataclass(slots=True)
class Case:
    """What went into the tar, and what could not."""

    files: int = 0
    left_out: list[str] = field(default_factory=list)


def write_case(
    ledger: Ledger, settings: Settings, job_id: int, target: Path, *, deidentify: bool, now: float
) -> Case:
    """Write the job to ``target``, which must not exist; it is there whole or not at all.

    Its owner alone may read it, and the ledger knows who took it before it is there. Raises JobUnknown,
    FileExistsError, or OSError where the disk fails. Purged and unreadable files are left out and named in
    ``case.json``.
    """
    ledger.job(job_id)
    if target.exists():
        raise FileExistsError(f"{target} is there already: name another file")
    part = target.with_name(f".{target.name}.part")
    case = Case()
    try:
        with (
            open(part, "xb", opener=_private) as file,
            tarfile.open(fileobj=file, mode="w") as tar,
            pseudonyms() as new,
        ):
            for name, path in _files(ledger, job_id):
                data = _bytes_of(path, deidentify)
                if data is None:
                    case.left_out.append(name)
                    continue
                _add(tar, name, data, now)
                case.files += 1
            facts = _facts(ledger, job_id, case, new if deidentify else None)
            _add(tar, "case.json", json.dumps(facts, indent=1, default=str).encode(), now)
            _add(tar, "settings.json", json.dumps(log_safe(settings), indent=1, default=str).encode(), now)
        ledger.record_export(job_id, user_of(os.getuid()), now, with_patient=not deidentify)
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)
    return case


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _files(ledger: Ledger, job_id: int) -> Iterator[tuple[str, Path]]:
    """Names in the tar, and the files."""
    yield from _numbered("received", (each.path for each in ledger.instances(job_id)))
    yield from _numbered("results", (each.path for each in ledger.outputs(job_id)))
    aside = (each.path for each in ledger.set_aside() if each.job_id == job_id)
    yield from _numbered("quarantine", aside)


def _numbered(folder: str, paths: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    for number, path in enumerate(paths, start=1):
        yield f"{folder}/{number:05d}.dcm", path


def _bytes_of(path: Path, deidentify: bool) -> bytes | None:
    """The file, None where it is gone or cannot be freed of its patient."""
    try:
        return deidentified(path) if deidentify else path.read_bytes()
    except (NotDeidentified, FileNotFoundError):
        return None


def _add(tar: tarfile.TarFile, name: str, data: bytes, now: float) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = len(data), int(now), 0o600
    tar.addfile(entry, io.BytesIO(data))


def _facts(ledger: Ledger, job_id: int, case: Case, new: Pseudonyms | None) -> dict[str, Any]:
    """The rows of the ledger that are about the job; no paths, and not who exported it before.

    With ``new`` they name nobody: see the module.
    """
    job = ledger.job(job_id)
    rows: dict[str, Any] = {
        "job": asdict(job),
        "generations": [asdict(each) for each in ledger.find_jobs(job.series_instance_uid)],
        "instances": [asdict(each) for each in ledger.instances(job_id)],
        "syntheses": [asdict(each) for each in ledger.syntheses(job_id)],
        "outputs": [asdict(each) for each in ledger.outputs(job_id)],
        "deliveries": [asdict(each) for each in ledger.deliveries(job_id)],
        "answers": [asdict(each) for each in ledger.answers(job_id)],
        "quarantine": [asdict(each) for each in ledger.set_aside() if each.job_id == job_id],
        "events": [asdict(each) for each in ledger.events(job_id) if each.code != EXPORTED_CODE],
    }
    rows = _shown(rows, 0.0 if new is None else job.created_at)
    if new is not None:
        rows = _nameless(rows, new)
    return {
        "version": version("s2node"),
        "system": platform.platform(),
        "deidentified": new is not None,
        "files": case.files,
        "left_out": case.left_out,
        **rows,
    }


def _shown(value: Any, began: float) -> Any:
    """Rows without paths; points in time counted from ``began`` where that is not 0."""
    if isinstance(value, dict):
        return {key: _shown_one(key, each, began) for key, each in value.items() if key != "path"}
    return [_shown(each, began) for each in value] if isinstance(value, (list, tuple)) else value


def _shown_one(key: str, value: Any, began: float) -> Any:
    if (key in TIME_KEYS or key.endswith("_at")) and isinstance(value, float) and value and began:
        return round(value - began, 3)
    return _shown(value, began)


def _nameless(value: Any, new: Pseudonyms, key: str = "") -> Any:
    """Rows in which new UIDs stand for old ones, and no worker is called after its host."""
    if isinstance(value, dict):
        return {key: _nameless(each, new, key) for key, each in value.items()}
    if isinstance(value, list):
        return [_nameless(each, new, key) for each in value]
    if not isinstance(value, str):
        return value
    return new.uid(value) if key.endswith("_uid") else new.text(OWNER.sub(rf"{LEFT_OUT}\1", value))


def log_safe(settings: Settings) -> dict[str, Any]:
    """The settings without addresses, names of machines, files and folders."""
    safe = _safe(settings.model_dump(mode="json"))
    assert isinstance(safe, dict)
    return safe


def _safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: LEFT_OUT if each and _is_secret(key) else _safe(each) for key, each in value.items()}
    return [_safe(each) for each in value] if isinstance(value, list) else value


def _is_secret(key: str) -> bool:
    return key in SECRET_KEYS or key.endswith(SECRET_ENDINGS)
