"""Look at everything a node depends on, and say what is wrong and what to do about it.

Every finding that is not OK has a cure. Nothing is changed: the ledger is opened for reading only, peers are
asked by C-ECHO.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from itertools import product
from threading import Event

from config.settings import ArchivePeer, FolderDestination, Settings, StoreDestination
from engine.bundle import read_bundle
from engine.errors import EngineError
from engine.session import open_graphs, situation
from node import certificates, scu, watchdog
from node.audit import syslog, trail
from node.commitment.report import peer_of
from node.errors import NodeError
from node.ledger import LEDGER_FILE, notes
from node.ledger.schema import MIGRATIONS, version_of
from node.models import ModelStore
from node.pull import query
from node.refresh import lacking
from node.supervisor import on_its_gpu
from node.watch import site
from node.worker import policy_of


class Level(StrEnum):
    """How bad a finding is."""

    OK = "OK"
    WARNING = "WARNING"
    """The node works; somebody should know."""
    PROBLEM = "PROBLEM"
    """The node does not work, or loses time."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; ``cure`` is empty only where all is well."""

    check: str
    level: Level
    what: str
    cure: str = ""


Found = Iterator[tuple[Level, str, str]]
OLDEST_NOW = 1.75e9
"""A time before this (2025) is a clock that was never set."""
AHEAD_S = 120.0
"""Seconds the newest event of the ledger may lie in the future."""


def examine(settings: Settings, now: Callable[[], float] = time.time) -> list[Finding]:
    """Every check in turn; one that cannot be made is a finding too."""
    return [finding for name in CHECKS for finding in check(name, settings, now())]


def check(name: str, settings: Settings, now: float) -> list[Finding]:
    """One check of :data:`CHECKS`; an error that it raises is a finding."""
    try:
        return [Finding(name, *found) for found in CHECKS[name](settings, now)]
    except (NodeError, EngineError, OSError, sqlite3.Error) as error:
        return [Finding(name, Level.PROBLEM, str(error), CURES[name])]


def _disk(settings: Settings, _now: float) -> Found:
    storage = settings.storage
    folder, least = storage.data_dir, storage.min_free_bytes
    if not folder.is_dir():
        yield Level.WARNING, f"{folder} is not there yet", "start the node once, or create it for its user"
        return
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield Level.PROBLEM, f"{folder} cannot be written by this user", "sudo -u s2node s2node doctor"
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    words = f"{free:,} bytes are free and {least:,} must stay free"
    if free < least:
        yield Level.PROBLEM, f"{words}: senders get 0xA700", "s2node purge, or a larger disk"
    elif free < least * storage.new_series_factor:
        yield Level.WARNING, f"{words}: new series get 0xA700", "s2node purge, or a larger disk"
    elif free < least * storage.resume_factor:
        yield Level.WARNING, words, "s2node purge, or a larger disk"
    else:
        yield Level.OK, words, ""


def _ledger(settings: Settings, _now: float) -> Found:
    with closing(_reading(settings)) as db:
        version = version_of(db)
        if version > len(MIGRATIONS):
            cure = "start the newer s2node that wrote it, or restore the copy made before the update"
            yield Level.PROBLEM, f"schema version {version}, this s2node knows {len(MIGRATIONS)}", cure
            return
        if version < len(MIGRATIONS):
            yield Level.WARNING, f"schema version {version}", "nothing: the next start brings it up to date"
        parked = db.execute("SELECT count(*) FROM job WHERE state = 'PARKED'").fetchone()[0]
        gone = _gone(settings, db) if version == len(MIGRATIONS) else {}
    for name, jobs in gone.items():
        what = (
            f"results of {jobs} jobs are at {name}, which the settings do not name: they cannot be recalled"
        )
        yield Level.WARNING, what, f"add [[destinations]] of the name {name}; see the runbook, Recall"
    if parked:
        cure = "s2node jobs list --state PARKED, mend the cause, s2node jobs retry --parked"
        yield Level.WARNING, f"{parked} jobs are parked", cure
    if version == len(MIGRATIONS) and not parked and not gone:
        yield Level.OK, f"schema version {version}, no job is parked", ""


def _gone(settings: Settings, db: sqlite3.Connection) -> dict[str, int]:
    """Destinations of old that results are at, and of how many jobs."""
    names = {each.name for each in settings.destinations}
    return {name: jobs for name, jobs in notes.places(db).items() if name not in names}


def _clock(settings: Settings, now: float) -> Found:
    if now < OLDEST_NOW:
        yield Level.PROBLEM, "the clock was never set", CURES["clock"]
        return
    if not (settings.storage.data_dir / LEDGER_FILE).exists():
        yield Level.OK, "set", ""
        return
    with closing(_reading(settings)) as db:
        newest = db.execute("SELECT max(at) FROM event").fetchone()[0] or 0.0
    if newest > now + AHEAD_S:
        yield Level.PROBLEM, f"the newest event lies {newest - now:.0f} s in the future", CURES["clock"]
    else:
        yield Level.OK, "set, and not behind the ledger", ""


def _models(settings: Settings, _now: float) -> Found:
    for row in ModelStore(settings).list():
        name = row.model_id or row.folder.name
        if row.problem is None:
            yield Level.OK, f"{name}: every digest is right", ""
        elif row.active:
            yield Level.PROBLEM, f"{name}: {row.problem}", CURES["models"]
        else:
            yield Level.WARNING, f"{name}, not active: {row.problem}", f"remove {row.folder}"


def _provider(settings: Settings, _now: float) -> Found:
    models = ModelStore(settings).active()
    for worker, (phase, folder) in product(range(_gpus_in_use(settings)), models.items()):
        policy = policy_of(on_its_gpu(settings, worker), settings.worker.count)
        opened = open_graphs(read_bundle(folder), policy)
        variant = f" as {opened.variant}" if opened.variant else ""
        runs = f"{phase} runs{variant} on {situation(opened.provider, policy)}"
        if opened.fallback is None:
            yield Level.OK, runs, ""
        else:
            yield Level.WARNING, f"{runs}. {opened.fallback}", CURES["provider"]


def _gpus_in_use(settings: Settings) -> int:
    """As many workers as have a GPU of their own."""
    return min(settings.worker.count, len(settings.engine.devices))


def _certificates(settings: Settings, now: float) -> Found:
    if not settings.tls.is_filled:
        yield Level.OK, "TLS is not used", ""
        return
    flaws = list(certificates.flaws(settings.tls, now))
    for flaw in flaws:
        yield Level.PROBLEM if flaw.is_fatal else Level.WARNING, flaw.what, flaw.cure
    if not flaws:
        days = certificates.days_left(settings.tls, now)
        yield Level.OK, f"the node's certificate is valid for {days:.0f} days", ""


def _listener(settings: Settings, _now: float) -> Found:
    listen = settings.listen
    where = f"{listen.host}:{listen.port}"
    if listen.port == 0:
        yield Level.WARNING, "listen.port = 0 takes another port at every start", "write a port"
    elif watchdog.answers(listen, listen.port, settings.tls):
        yield Level.OK, f"{listen.ae_title} answers at {where}", ""
    else:
        yield Level.PROBLEM, f"nobody answers at {where}", CURES["listener"]


def _peers(settings: Settings, _now: float) -> Found:
    for destination in settings.destinations:
        if isinstance(destination, FolderDestination):
            yield _folder(destination)
        else:
            yield _echo(destination.name, destination, Level.PROBLEM)
    for requester in settings.requesters:
        name = f"requester {requester.ae_title}"
        yield _echo(name, peer_of(requester, settings.listen.ae_title), Level.WARNING)
    if not settings.destinations:
        yield Level.WARNING, "there is no destination: results stay in the outbox", "add [[destinations]]"


def _folder(destination: FolderDestination) -> tuple[Level, str, str]:
    if os.access(destination.path, os.W_OK | os.X_OK):
        return Level.OK, f"{destination.name}: the folder can be written", ""
    cure = f"create {destination.path} for the node's user, or mount its share"
    return Level.PROBLEM, f"{destination.name}: the folder is not there or cannot be written", cure


def _echo(name: str, peer: StoreDestination, level: Level) -> tuple[Level, str, str]:
    try:
        scu.echo(peer)
    except NodeError as error:
        return level, f"{name}: {error}", CURES["peers"]
    return Level.OK, f"{name}: answers a C-ECHO", ""


def _archives(settings: Settings, _now: float) -> Found:
    for archive in settings.archives:
        try:
            yield from _archive(settings, archive)
        except NodeError as error:
            yield Level.WARNING, f"{archive.name}: {error}", CURES["archives"]
    if not settings.archives:
        yield Level.OK, "none to fetch from: [[archives]]", ""


def _archive(settings: Settings, archive: ArchivePeer) -> Found:
    """Whether the archive takes our questions; whether it would send to us only a C-MOVE can tell."""
    listen, is_move = settings.listen, archive.retrieve == "move"
    scu.echo(query.peer_of(archive))
    with query.conversation(archive, listen.ae_title, Event(), settings.storage.max_instance_bytes) as talk:
        for model in (query.FIND, query.MOVE if is_move else query.GET):
            talk.require(model)
    if not is_move:
        yield Level.OK, f"{archive.name}: answers a C-ECHO, offers C-FIND and C-GET", ""
        return
    words = f"whether it knows {listen.ae_title} as a move destination only `s2node fetch` shows"
    yield Level.OK, f"{archive.name}: answers a C-ECHO, offers C-FIND and C-MOVE; {words}", ""
    for name in ("allow_ae_titles", "store_ae_titles"):
        allowed = getattr(listen, name)
        if allowed and archive.ae_title not in allowed:
            what = f"{archive.name}: listen.{name} lacks {archive.ae_title}, which would send to us"
            yield Level.WARNING, what, f'add {archive.ae_title} to it, or write retrieve = "get"'


def _watch(settings: Settings, _now: float) -> Found:
    watch = settings.watch
    where = f"http://{watch.host}:{watch.port}"
    if not watch.enabled:
        yield Level.OK, "no figures are served: watch.enabled", ""
        return
    try:
        status, text = site.ask(watch, "/readyz")
    except ConnectionRefusedError:
        yield Level.OK, f"{where} is free; the node serves it when it runs", ""
        return
    if status == HTTPStatus.OK:
        yield Level.OK, f"{where}: the node is ready", ""
    elif status == HTTPStatus.SERVICE_UNAVAILABLE:
        yield Level.WARNING, f"{where}: {'; '.join(text.splitlines())}", "see the log: journalctl -u s2node"
    else:
        yield Level.PROBLEM, f"{where} is another program's", CURES["watch"]


def _audit(settings: Settings, _now: float) -> Found:
    audit, folder = settings.audit, settings.storage.data_dir / trail.FOLDER
    if not audit.is_wanted:
        yield Level.OK, "no audit messages are kept: audit.to_file, audit.syslog_host", ""
        return
    if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
        yield Level.PROBLEM, f"{folder} cannot be written by this user", CURES["audit"]
    if audit.syslog_host:
        syslog.send(audit, settings.tls, [])
        yield Level.OK, f"{audit.syslog_host}:{audit.syslog_port} takes messages over TLS", ""
    waiting = trail.waiting(settings.storage.data_dir)
    if waiting:
        yield Level.WARNING, f"{waiting} audit messages wait for the repository", CURES["audit"]
    else:
        yield Level.OK, "no audit message waits", ""


def _reading(settings: Settings) -> sqlite3.Connection:
    """The ledger for reading; raises FileNotFoundError where no node has run yet."""
    path = (settings.storage.data_dir / LEDGER_FILE).absolute()
    if not path.exists():
        raise FileNotFoundError(f"no ledger at {path}")
    return sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=10)


def _refresh(settings: Settings, _now: float) -> Found:
    schedule = settings.refresh.schedule
    wrong = list(lacking(settings)) if schedule else []
    yield from ((Level.WARNING, what, cure) for what, cure in wrong)
    if not wrong:
        yield Level.OK, f"at {schedule}" if schedule else "off", ""


Check = Callable[[Settings, float], Found]
CHECKS: Mapping[str, Check] = {
    "disk": _disk,
    "ledger": _ledger,
    "clock": _clock,
    "models": _models,
    "refresh": _refresh,
    "provider": _provider,
    "certificates": _certificates,
    "listener": _listener,
    "peers": _peers,
    "archives": _archives,
    "watch": _watch,
    "audit": _audit,
}
"""Every check, in the order they are made; the configuration was valid before the first."""

CURES: Mapping[str, str] = {
    "disk": "look at the disk: df -h, dmesg, and the permissions of storage.data_dir",
    "ledger": "start the node once, or name the --config it runs with; else restore storage.data_dir",
    "clock": "switch on time synchronisation: timedatectl set-ntp true",
    "models": "s2node models rollback PHASE, or activate a whole bundle",
    "refresh": "s2node models verify, and the permissions of refresh.cases",
    "provider": "install what engine.provider asks for, or choose another one",
    "certificates": "name PEM files that its user may read, and a key without a pass phrase",
    "listener": "systemctl status s2node; journalctl -u s2node -n 50",
    "archives": "check host, port and AE titles here and there, and what the archive lets us retrieve",
    "peers": "check host, port and AE titles here and there, the firewall, and whether the peer is up",
    "watch": "write another watch.port, or stop the program that has it: ss -ltnp",
    "audit": "check audit.syslog_host and its certificate, and that the node's user may write data_dir/audit",
}
"""What to do where a check itself fails."""
