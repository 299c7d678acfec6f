"""`s2node purge`: make room by letting the files of old jobs go."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from node.commands.jobs import open_ledger
from node.commands.options import AsJson, ConfigFile, settings_of
from node.commands.screen import progress_bar, say, show_json, show_table
from node.purge import Tally, Weight, purge_quarantine, weigh, weigh_quarantine
from node.purge import purge as remove
from node.spool import Spool
from node.states import PURGEABLE, State

UNITS: Mapping[str, float] = {"d": 86_400.0, "h": 3_600.0, "min": 60.0}
NAMES = ", ".join(PURGEABLE)


def seconds(text: str) -> float:
    """``30d``, ``12h`` or ``45min`` in seconds."""
    found = re.fullmatch(r"(\d{1,6})\s*(d|h|min)", text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no age: write 30d, 12h or 45min")
    return int(found[1]) * UNITS[found[2]]


def purgeable(states: list[State]) -> list[State]:
    """The states; an error for one whose jobs are still on their way."""
    for state in states:
        if state not in PURGEABLE:
            raise typer.BadParameter(f"{state} cannot be purged, only {NAMES}")
    return states


def purge(
    older_than: Annotated[
        str,
        typer.Option(
            "--older-than",
            metavar="AGE",
            callback=lambda text: (seconds(text), text)[1],
            help="Jobs that have stood where they stand for longer than this: 30d, 12h, 45min.",
        ),
    ],
    state: Annotated[
        list[State] | None,
        typer.Option(
            "--state",
            metavar="STATE",
            callback=lambda states: purgeable(states or []),
            help=f"Jobs in this state; may be repeated. One of {NAMES}.  [default: COMMITTED]",
        ),
    ] = None,
    quarantine: Annotated[
        bool,
        typer.Option("--quarantine", help="What is in quarantine; jobs only where --state names some too."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it only say what would go.")] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Remove the files of old jobs; their history stays.

    The received and the made files go; the ledger keeps the jobs.

    Only what a destination has committed to keep (COMMITTED) goes, unless other states are named. Says what
    would go, and removes it with --yes. May run beside the node.
    """
    settings = settings_of(config)
    states = state or ([] if quarantine else [State.COMMITTED])
    before = time.time() - seconds(older_than)
    with open_ledger(settings) as ledger:
        weights = weigh(ledger, states, before)
        aside = weigh_quarantine(ledger, before) if quarantine else Tally(0, 0)
        if yes:
            spool = Spool(settings.storage.data_dir)
            with progress_bar("purging", len(weights)) as done:
                weights = remove(ledger, spool, states, before, time.time, done)
            if quarantine:
                aside = purge_quarantine(ledger, spool, before, time.time)
    if as_json:
        jobs = [asdict(weight) for weight in weights]
        show_json({"removed": yes, "jobs": jobs} | ({"quarantine": asdict(aside)} if quarantine else {}))
        return
    rows = _rows(weights) + ([("quarantine", "", aside.files, f"{aside.bytes:,}")] if quarantine else [])
    show_table(("state", "jobs", "files", "bytes"), rows)
    say("removed" if yes else "nothing was removed: add --yes")


def _rows(weights: Sequence[Weight]) -> list[tuple[object, ...]]:
    """One row a state."""
    rows: list[tuple[object, ...]] = []
    for state in dict.fromkeys(weight.state for weight in weights):
        those = [weight for weight in weights if weight.state is state]
        size = f"{sum(each.bytes for each in those):,}"
        rows.append((state, len(those), sum(each.files for each in those), size))
    return rows
