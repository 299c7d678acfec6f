"""`s2node jobs list | show | destinations | retry | export`: what the node works on, from its ledger."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from config.settings import Settings
from node.commands.exits import FAILED
from node.commands.options import AsJson, ConfigFile, as_owner_of, settings_of
from node.commands.screen import age, err, moment, say, show_json, show_rows, show_table
from node.destinations.answer import words_of
from node.ledger import DestinationStanding, InstanceAnswer, Job, JobUnknown, Ledger, MoveRefused
from node.states import State

LEDGER = "ledger.sqlite3"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="See and mend what the node is working on.",
)

JobNumber = Annotated[int, typer.Argument(help="Number of the job, as `s2node jobs list` shows it.")]


@app.command("list")
def list_jobs(
    config: ConfigFile = None,
    state: Annotated[
        list[State] | None, typer.Option("--state", help="Only jobs in this state; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The newest that many jobs.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List jobs, oldest first."""
    with open_ledger(settings_of(config)) as ledger:
        jobs = ledger.jobs(state or None, limit)
    if as_json:
        show_rows([asdict(job) for job in jobs])
        return
    show_table(
        ("job", "state", "code", "slices", "from", "progress", "changed", "reason"),
        [_cells(job, time.time()) for job in jobs],
    )


@app.command()
def show(number: JobNumber, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show one job: its series, its history, what was made and where it went."""
    with open_ledger(settings_of(config)) as ledger:
        facts, answers = _facts(ledger, number), ledger.answers(number)
    if as_json:
        show_json({**facts, "answers": [asdict(answer) for answer in answers]})
        return
    facts["answers"] = _in_short(answers)
    for name, value in facts["job"].items():  # type: ignore[attr-defined]
        say(f"{name:<20} {_shown(name, value)}")
    for title in ("syntheses", "outputs", "deliveries", "answers", "events"):
        rows = facts[title]
        if isinstance(rows, list) and rows:
            say("")
            show_table(list(rows[0]), [[_shown(*cell) for cell in row.items()] for row in rows], title=title)


@app.command()
def destinations(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show each destination: whether it answers, what waits for it, and since when."""
    settings = settings_of(config)
    with open_ledger(settings) as ledger:
        standing = ledger.destinations([each.name for each in settings.destinations])
    if as_json:
        rows = [asdict(each) for each in standing]
        show_rows([{**row.pop("breaker"), **row} for row in rows])
        return
    show_table(
        ("destination", "state", "failures", "jobs", "oldest", "reason"),
        [_destination_cells(each, time.time()) for each in standing],
    )


@app.command()
def retry(
    numbers: Annotated[
        list[int] | None, typer.Argument(help="Numbers of jobs that are PARKED or REJECTED.")
    ] = None,
    parked: Annotated[bool, typer.Option("--parked", help="Every job that is PARKED.")] = False,
    config: ConfigFile = None,
) -> None:
    """Send jobs on their way again: a PARKED one to where it stood, a REJECTED one to be judged again."""
    refused = False
    with open_ledger(settings_of(config)) as ledger:
        wanted = list(numbers or ()) + ([job.id for job in ledger.jobs([State.PARKED])] if parked else [])
        for number in dict.fromkeys(wanted):
            try:
                say(f"job {number}: {ledger.retry(number, time.time())}")
            except (JobUnknown, MoveRefused) as error:
                err.print(f"job {number}: {error}")
                refused = True
    if not wanted:
        say("no job to retry")
    if refused:
        raise typer.Exit(FAILED)


@app.command()
def export(
    number: JobNumber,
    target: Annotated[Path, typer.Argument(metavar="FILE.tar", help="Where to write; must not exist.")],
    deidentify: Annotated[
        bool, typer.Option("--deidentify", help="Without the patient: PS3.15 Annex E, Basic Profile.")
    ] = False,
    config: ConfigFile = None,
) -> None:
    """Write one case as a tar, for support.

    Received files, results, what the ledger knows of the job, and the settings without addresses and paths.
    Without --deidentify it names the patient. With it pixels stay as they are. Only its owner may read the
    file.
    """
    from node.case import write_case  # noqa: PLC0415 (the profile's tables take their time)

    settings = settings_of(config)
    with open_ledger(settings) as ledger:
        try:
            case = write_case(ledger, settings, number, target, deidentify=deidentify, now=time.time())
        except JobUnknown as error:
            err.print(str(error))
            raise typer.Exit(FAILED) from None
    say(f"{target}: {case.files} files")
    if case.left_out:
        err.print(f"left out, gone or unreadable: {len(case.left_out)} files")


def open_ledger(settings: Settings) -> Ledger:
    """The ledger of the node with these settings; raises FileNotFoundError where no node has run yet."""
    path = as_owner_of(settings.storage.data_dir / LEDGER)
    if not path.exists():
        raise FileNotFoundError(
            f"no ledger at {path}: has the node run, and is --config the one it runs with?"
        )
    return Ledger(path)


def _cells(job: Job, now: float) -> tuple[object, ...]:
    progress = f"{job.progress:.0%}" if job.state is State.READY else ""
    changed = f"{age(job.updated_at, now)} ago"
    reason = job.reason or (f"rejects job {job.rejects}" if job.rejects is not None else None)
    return (job.id, job.state, job.code, job.instances, job.calling_ae, progress, changed, reason)


def _destination_cells(standing: DestinationStanding, now: float) -> tuple[object, ...]:
    breaker = standing.breaker
    state = "answers" if not breaker.failures else "fails"
    if breaker.opened_at is not None:
        state = f"left alone for {age(breaker.opened_at, now)}"
    oldest = None if standing.oldest_at is None else f"{age(standing.oldest_at, now)} ago"
    return (breaker.destination, state, breaker.failures, standing.jobs, oldest, breaker.reason)


def _in_short(answers: Sequence[InstanceAnswer]) -> list[dict[str, object]]:
    """What destinations said, one row for all instances of a series that got the same answer."""
    groups: dict[tuple[str, str, str, int | None], list[InstanceAnswer]] = {}
    for each in answers:
        groups.setdefault((each.destination, each.phase, each.kind, each.status), []).append(each)
    return [
        {
            "destination": destination,
            "phase": phase,
            "kind": kind,
            "status": "none yet" if status is None else words_of(status),
            "instances": len(group),
            "at": max((each.at for each in group if each.at is not None), default=None),
        }
        for (destination, phase, kind, status), group in groups.items()
    ]


def _facts(ledger: Ledger, number: int) -> dict[str, object]:
    try:
        job = ledger.job(number)
    except JobUnknown as error:
        err.print(str(error))
        raise typer.Exit(FAILED) from None
    return {
        "job": asdict(job),
        "syntheses": [asdict(record) for record in ledger.syntheses(number)],
        "outputs": _series_of(ledger, number),
        "deliveries": [asdict(delivery) for delivery in ledger.deliveries(number)],
        "events": [asdict(event) for event in ledger.events(number)],
    }


def _series_of(ledger: Ledger, number: int) -> list[dict[str, object]]:
    """The outputs, one row a series and not one an instance."""
    rows: dict[str, dict[str, object]] = {}
    for output in ledger.outputs(number):
        row = rows.setdefault(
            output.series_instance_uid,
            {
                "phase": output.phase,
                "kind": output.kind,
                "series_instance_uid": output.series_instance_uid,
                "instances": 0,
                "folder": str(output.path.parent),
            },
        )
        row["instances"] = int(str(row["instances"])) + 1
    return list(rows.values())


def _shown(name: str, value: object) -> str:
    """A value for people: points in time as UTC, nothing for None."""
    if value is None:
        return ""
    is_time = name == "at" or name.endswith(("_at", "_until", "not_before"))
    return moment(value) if is_time and isinstance(value, (int, float)) and value else str(value)
