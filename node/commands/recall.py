"""`s2node recall`: take back what a model made."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Annotated, Any

import typer

from config.settings import Settings
from engine.bundle import read_bundle
from engine.errors import BundleInvalid
from node.commands.exits import FAILED
from node.commands.jobs import open_ledger
from node.commands.options import AsJson, ConfigFile, settings_of
from node.commands.screen import err, say, show_rows, show_table
from node.errors import NodeError
from node.models import ModelStore
from node.rejection.note import Reason
from node.rejection.retract import Found, Retractor
from node.spool import Spool


def moment_of(text: str) -> float:
    """``2026-11-23`` or ``2026-11-23T14:30`` on this machine's clock as epoch seconds."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no date: write 2026-11-23 or 2026-11-23T14:30") from None


def recall(
    model: Annotated[
        str, typer.Option("--model", metavar="ID", help="Id or digest of the model, as `jobs show` has it.")
    ],
    since: Annotated[
        str,
        typer.Option(
            "--since",
            metavar="DATE",
            callback=lambda text: (moment_of(text), text)[1],
            help="Results built since then, by this machine's clock: 2026-11-23 or 2026-11-23T14:30.",
        ),
    ],
    reason: Annotated[
        Reason,
        typer.Option(
            "--reason", help="What the note says: safety (113037), quality (113001), expired (113039)."
        ),
    ] = Reason.SAFETY,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be recalled.")] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Take back every result a model made: rejection notes go out.

    A note is a Key Object Selection (IHE IOCM) and a job of its own: the running node delivers it. What was
    not sent yet is not sent any more, and what is being made is begun anew, with the models that are active.
    Purged jobs are found too. Activate another model first.
    """
    settings = settings_of(config)
    if is_active(settings, model):
        err.print(
            f"{model} is still active and goes on making results: activate another model and run it again"
        )
    failed = 0
    rows: list[dict[str, Any]] = []
    with open_ledger(settings) as ledger:
        retractor = Retractor(settings, ledger, Spool(settings.storage.data_dir), time.time)
        if not dry_run:  # before looking: what is recorded later was begun later
            ledger.revoke_leases(time.time(), f"begun anew: model {model} is recalled")
        for found in retractor.find(model, moment_of(since)):
            rows.append(_row(found))
            step = _look if dry_run else partial(_recall, model=model, reason=reason, row=rows[-1])
            failed += not _succeeds(step, retractor, found)
    if as_json:
        show_rows(rows)
    else:
        show_table(
            ("job", "state", "series", "instances", "destinations", "note"), [_cells(row) for row in rows]
        )
        say(f"{len(rows)} jobs; nothing was recalled" if dry_run else f"{len(rows) - failed} jobs recalled")
    if failed:
        raise typer.Exit(FAILED)


def is_active(settings: Settings, model: str) -> bool:
    """Whether a model of this id or digest makes results now; False where its bundle cannot be read."""
    with suppress(BundleInvalid):
        bundles = [read_bundle(folder) for folder in ModelStore(settings).active().values()]
        return any(model in {each.manifest.model_id, each.digest} for each in bundles)
    return False


def _succeeds(step: Callable[[Retractor, Found], None], retractor: Retractor, found: Found) -> bool:
    """Whether the step could be done with one job; where not, why is said."""
    try:
        step(retractor, found)
    except NodeError as error:
        err.print(f"job {found.job.id}: {error}", markup=False)
        return False
    return True


def _look(retractor: Retractor, found: Found) -> None:
    """What of a recall can be seen beforehand."""
    retractor.require_destinations(found.job)


def _recall(retractor: Retractor, found: Found, *, model: str, reason: Reason, row: dict[str, Any]) -> None:
    """Recall one job and say so in its row."""
    made = retractor.recall(found, model, reason)
    if made is None:
        raise NodeError("it changed meanwhile; run the command again")
    row["note"] = made.note_id
    row["state"] = retractor.ledger.job(found.job.id).state


def _row(found: Found) -> dict[str, Any]:
    series = {output.series_instance_uid for output in found.outputs}
    return {
        "job": found.job.id,
        "state": found.job.state,
        "series": len(series),
        "instances": len(found.outputs),
        "destinations": found.destinations,
        "note": None,
    }


def _cells(row: dict[str, Any]) -> list[object]:
    return [" ".join(value) if isinstance(value, tuple) else value for value in row.values()]
