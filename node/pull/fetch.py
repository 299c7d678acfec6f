"""What `s2node fetch` does: list a study or a series at an archive, and have what is not here sent here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node.errors import NodeError
from node.ledger import Ledger
from node.pull.query import Conversation, Listed
from node.pull.retrieve import Wanted, retrieve
from node.receive import Answer, Arrival


class NotListed(NodeError):
    """The archive lists nothing under the UID."""


@dataclass(frozen=True, slots=True)
class Found:
    """One series of the archive. ``skipped`` says why it is not fetched, empty where it is."""

    series: Listed
    listed: frozenset[str]
    missing: frozenset[str]
    skipped: str = ""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What became of one series: instances at the archive, asked for, refused on the way, here now.

    ``note`` says why nothing was fetched, or what is not here although it was sent.
    """

    series_instance_uid: str
    modality: str
    listed: int
    asked: int
    failed: int
    here: int
    note: str
    is_complete: bool


def look(talk: Conversation, ledger: Ledger, uid: str, study: str, most: int) -> list[Found]:
    """Every series of the study ``uid``, or the series ``uid``; raises NotListed where there is neither.

    ``study`` is the study of a series where somebody knows it: archives may insist on it (PS3.4 C.4.1.1.3.1).
    """
    listed = [] if study else talk.series(uid)
    if not listed:
        known = next((job.study_instance_uid for job in ledger.find_jobs(uid)), "")
        listed = talk.series(study or known, uid)
    if not listed:
        raise NotListed(
            f"{talk.archive.name} lists no study and no series of this UID. Some archives find a series only "
            "within its study: name it with --study"
        )
    return [_found(talk, ledger, series, most) for series in listed]


def _found(talk: Conversation, ledger: Ledger, series: Listed, most: int) -> Found:
    if series.modality not in {"CT", ""}:
        return Found(series, frozenset(), frozenset(), f"{series.modality} is not translated")
    if ledger.is_own_series(series.series_instance_uid):
        return Found(series, frozenset(), frozenset(), "made by this node")
    listed = talk.instances(series.study_instance_uid, series.series_instance_uid, most)
    missing = frozenset(uid for uid in listed if ledger.kept_instance(uid) is None)
    return Found(series, listed, missing, "" if missing else "everything is here")


def fetch(
    talk: Conversation,
    ledger: Ledger,
    found: Found,
    store: Callable[[Arrival], Answer],
    progress: Callable[[int], None] = lambda done: None,
) -> Fetched:
    """Have the missing instances of one series sent here, and look what came.

    Raises DestinationUnreachable or DestinationRefused; what came before that is kept.
    """
    uid, modality = found.series.series_instance_uid, found.series.modality
    if found.skipped:
        count = len(found.listed)
        return Fetched(uid, modality, count, 0, 0, count, found.skipped, is_complete=True)
    wanted = Wanted(found.series.study_instance_uid, uid, found.listed, found.missing)
    done = retrieve(talk, wanted, store, progress)
    here = sum(ledger.kept_instance(one) is not None for one in found.listed)
    lacking = len(found.listed) - here
    is_complete = not lacking or (done.failed == 0 and done.completed >= len(found.missing))
    if not lacking:
        note = ""
    elif is_complete:
        note = f"{lacking} were sent and dropped: they say that they are synthetic"
    else:
        note = f"{done.failed} failed, {lacking} are not here: see the archive's log and ours"
    return Fetched(uid, modality, len(found.listed), len(found.missing), done.failed, here, note, is_complete)
