"""`s2node fetch`: have an archive send a study or a series to this node."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import accumulate
from threading import Event
from typing import Annotated

import typer

from config.settings import ArchivePeer, Settings
from node import watchdog
from node.commands.exits import FAILED
from node.commands.jobs import open_ledger
from node.commands.options import AsJson, ConfigFile, settings_of
from node.commands.screen import err, progress_bar, say, show_rows, show_table
from node.errors import NodeError
from node.ledger import Ledger
from node.pull.fetch import Fetched, Found, look
from node.pull.fetch import fetch as fetch_one
from node.pull.query import Conversation, conversation
from node.receive import Answer, Arrival, Receiver
from node.spool import Spool
from node.uids import is_plausible_uid


def checked(uid: str | None) -> str | None:
    """The UID, where it looks like one."""
    if uid is not None and not is_plausible_uid(uid):
        raise typer.BadParameter(f"{uid!r} is no UID: 1 to 64 digits and dots")
    return uid


def fetch(
    uid: Annotated[
        str,
        typer.Argument(metavar="STUDY|SERIES", callback=checked, help="Study or Series Instance UID."),
    ],
    name: Annotated[str, typer.Option("--from", metavar="ARCHIVE", help="Name of an [[archives]] entry.")],
    study: Annotated[
        str | None,
        typer.Option(
            "--study",
            metavar="UID",
            callback=checked,
            help="Study of the series; some archives insist on it.",
        ),
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Have an archive send a study or a series to this node.

    Only CT series, and of them only what is not here yet. They are received and judged like series that
    somebody sent. With retrieve = "move" the node must be running. Exit 0 if everything came, 1 if not.
    """
    settings = settings_of(config)
    archive = archive_named(settings, name)
    with open_ledger(settings) as ledger:
        require_listener(settings, archive)
        limit = settings.storage.max_instance_bytes
        with conversation(archive, settings.listen.ae_title, Event(), limit) as talk:
            found = look(talk, ledger, uid, study or "", settings.intake.limits.max_files)
            fetched = _fetch_all(talk, ledger, found, _receiver(settings, ledger))
    if as_json:
        show_rows([asdict(each) for each in fetched])
    else:
        _show(fetched)
    if not all(each.is_complete for each in fetched):
        err.print("not everything came; asking again fetches only what is missing", markup=False)
        raise typer.Exit(FAILED)


def archive_named(settings: Settings, name: str) -> ArchivePeer:
    """The archive of that name; a usage error that lists the names there are."""
    for archive in settings.archives:
        if archive.name == name:
            return archive
    names = ", ".join(archive.name for archive in settings.archives)
    raise typer.BadParameter(
        f"{name!r} is no archive: " + (f"there is {names}" if names else "add [[archives]] to the settings"),
        param_hint="--from",
    )


def require_listener(settings: Settings, archive: ArchivePeer) -> None:
    """Raise where instances would come by C-MOVE and nobody listens for them."""
    listen = settings.listen
    if archive.retrieve == "get" or watchdog.answers(listen, listen.port, settings.tls):
        return
    raise NodeError(
        f"nobody answers at {listen.host}:{listen.port}, where the archive's C-MOVE would send to: "
        'start the node, or write retrieve = "get"'
    )


def _receiver(settings: Settings, ledger: Ledger) -> Callable[[Arrival], Answer]:
    storage = settings.storage
    return Receiver(Spool.of(storage), ledger, storage.max_instance_bytes, time.time).take


def _fetch_all(
    talk: Conversation, ledger: Ledger, found: list[Found], store: Callable[[Arrival], Answer]
) -> list[Fetched]:
    """Series after series, under one bar of instances."""
    fetched: list[Fetched] = []
    asked = [0, *accumulate(len(each.missing) for each in found)]
    with progress_bar(f"from {talk.archive.name}", asked[-1]) as bar:
        for each, before in zip(found, asked, strict=False):
            fetched.append(fetch_one(talk, ledger, each, store, partial(_show_done, bar, before)))
    return fetched


def _show_done(bar: Callable[[float], None], before: int, done: int) -> None:
    bar(before + done)


def _show(fetched: list[Fetched]) -> None:
    rows = [
        (each.series_instance_uid, each.modality, each.listed, each.asked, each.failed, each.here, each.note)
        for each in fetched
    ]
    show_table(("series", "modality", "listed", "asked for", "failed", "here", "note"), rows)
    say("the node goes on with what came: s2node jobs list")
