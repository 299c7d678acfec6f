"""C-MOVE to our own port and C-GET (PS3.4 C.4.2, C.4.3): instances come to `node/receive.py` either way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from pydicom.dataset import Dataset
from pynetdicom import evt

from node.pull.answer import verdict_of
from node.pull.query import GET, MODELS, MOVE, Conversation
from node.receive import Answer, Arrival
from node.scp import answer_to_store

MOST_NAMED: Final = 200
"""Instances that are asked for one by one; for more of them the whole series is asked for."""

MOST_S: Final = 3600.0
"""Seconds one retrieve may take in all; what came until then is kept, and the rest is asked for again."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to come of one series: the ``missing`` ones of the ``listed`` instances."""

    study_instance_uid: str
    series_instance_uid: str
    listed: frozenset[str]
    missing: frozenset[str]


@dataclass(frozen=True, slots=True)
class Retrieved:
    """What the archive says it did: sub-operations that went well or with a warning, and that failed."""

    completed: int
    failed: int


def retrieve(
    talk: Conversation,
    wanted: Wanted,
    store: Callable[[Arrival], Answer],
    progress: Callable[[int], None] = lambda done: None,
) -> Retrieved:
    """Have the missing instances sent to us; ``progress`` hears how many sub-operations are done.

    Raises DestinationUnreachable or DestinationRefused; what came before that is kept. By C-GET ``store``
    keeps each instance before it is acknowledged, by C-MOVE the node's SCP does.
    """
    model = GET if talk.archive.retrieve == "get" else MOVE
    talk.begin(model, MOST_S)
    if model == GET:
        talk.assoc.bind(evt.EVT_C_STORE, answer_to_store, [store, talk.archive.ae_title])
        responses = talk.assoc.send_c_get(identifier_of(wanted), GET)
    else:
        responses = talk.assoc.send_c_move(identifier_of(wanted), talk.us, MOVE)
    answer = _last(talk, responses, MODELS[model], progress)
    return Retrieved(_done(answer), int(answer.get("NumberOfFailedSuboperations") or 0))


def identifier_of(wanted: Wanted) -> Dataset:
    """The keys (PS3.4 C.4.2.1.4): single instances where they are few, else the whole series."""
    identifier = Dataset()
    identifier.StudyInstanceUID = wanted.study_instance_uid
    identifier.SeriesInstanceUID = wanted.series_instance_uid
    if wanted.missing == wanted.listed or len(wanted.missing) > MOST_NAMED:
        identifier.QueryRetrieveLevel = "SERIES"
    else:
        identifier.QueryRetrieveLevel = "IMAGE"
        identifier.SOPInstanceUID = sorted(wanted.missing)
    return identifier


def _last(
    talk: Conversation,
    responses: Iterator[tuple[Dataset, Dataset | None]],
    what: str,
    progress: Callable[[int], None],
) -> Dataset:
    """The final answer; raises what its status means."""
    answer = Dataset()
    for answer, _ in responses:
        verdict_of(answer.get("Status"), what, talk.archive, talk.us)
        progress(_done(answer))
    return answer


def _done(answer: Dataset) -> int:
    """Sub-operations that ended well; the counts are optional in final answers (PS3.7 9.1.4.1.7)."""
    counts = (
        answer.get(word) or 0 for word in ("NumberOfCompletedSuboperations", "NumberOfWarningSuboperations")
    )
    return sum(int(count) for count in counts)
