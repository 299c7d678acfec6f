"""The node as a client: C-ECHO, C-STORE of a folder and C-FIND (PS3.4 A, B and C).

These serve people at a keyboard and the demo; what the node delivers by itself goes through
`node/destinations`, whose associations and table of statuses are used here too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from config.settings import StoreDestination
from node.destinations.answer import Verdict, store_status, words_of
from node.destinations.cstore import accepted_for, associated, contexts_for
from node.destinations.transcode import read_as
from node.errors import DestinationRefused, DestinationUnreachable

SUCCESS = 0x0000
PENDING = (0xFF00, 0xFF01)
MOST_KINDS = 40
"""Kinds of files of one association: each needs up to 3 of its 128 presentation contexts (PS3.8 9.3.2.2)."""

NO_CONTEXT = "not sent: the peer accepts no such SOP class or transfer syntax"
NO_ANSWER = "not answered: the association ended"


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of the files of a folder: DICOM instances counted by outcome, and files that are none.

    An outcome is the peer's status, or in words why there is none (:data:`NO_CONTEXT`, :data:`NO_ANSWER`).
    """

    outcomes: Mapping[int | str, int]
    not_dicom: tuple[Path, ...] = ()

    @property
    def stored(self) -> int:
        """Instances the peer has: answered with success or a warning."""
        return sum(count for outcome, count in self.outcomes.items() if is_stored(outcome))

    @property
    def is_complete(self) -> bool:
        """Whether there was a DICOM instance and the peer has every one."""
        return 0 < self.stored == sum(self.outcomes.values())


def is_stored(outcome: int | str) -> bool:
    """Whether the peer keeps the instance: success, or a warning."""
    return isinstance(outcome, int) and store_status(outcome).verdict is Verdict.DELIVERED


def outcome_words(outcome: int | str) -> str:
    """An outcome for people: ``0xA700 Refused: out of resources``."""
    return outcome if isinstance(outcome, str) else words_of(outcome)


def echo(peer: StoreDestination) -> None:
    """C-ECHO; returns on success, raises DestinationUnreachable or DestinationRefused."""
    with associated(peer, [build_context(Verification)]) as assoc:
        status = assoc.send_c_echo().get("Status")
    if status is None:
        raise DestinationUnreachable(f"{peer.name} did not answer the C-ECHO")
    if status != SUCCESS:
        raise DestinationRefused(status, f"{peer.name} answered the C-ECHO")


def send(
    peer: StoreDestination, paths: Sequence[Path], progress: Callable[[int], None] = lambda done: None
) -> Sent:
    """C-STORE every DICOM file of ``paths``; ``progress`` hears how many are done.

    Raises DestinationUnreachable or DestinationRefused where no association can be opened. A file the peer
    will not take is counted, not raised.
    """
    metas = {path: meta for path in paths if (meta := _meta_of(path)) is not None}
    outcomes: Counter[int | str] = Counter()
    for group in _groups(metas):
        with associated(peer, contexts_for([metas[path] for path in group])) as assoc:
            for path in group:
                outcomes[_store(assoc, path, metas[path])] += 1
                progress(outcomes.total())
    return Sent(dict(outcomes), tuple(path for path in paths if path not in metas))


def find(peer: StoreDestination, query: Dataset) -> list[Dataset]:
    """C-FIND in the study root model; every match. Raises DestinationUnreachable or DestinationRefused."""
    model = StudyRootQueryRetrieveInformationModelFind
    found: list[Dataset] = []
    status: int | None = None
    with associated(peer, [build_context(model)]) as assoc:
        for answer, match in assoc.send_c_find(query, model):
            status = answer.get("Status")
            if status in PENDING and match is not None:
                found.append(match)
    if status is None:
        raise DestinationUnreachable(f"{peer.name} did not answer the C-FIND")
    if status != SUCCESS:
        raise DestinationRefused(status, f"{peer.name} answered the C-FIND")
    return found


def dicom_files(folder: Path) -> list[Path]:
    """Every regular file below ``folder``, sorted; ``folder`` itself where it is a file."""
    if folder.is_file():
        return [folder]
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def _meta_of(path: Path) -> Dataset | None:
    """The file meta information, or None where the file is no DICOM instance."""
    try:
        meta = read_file_meta_info(path)
    except (InvalidDicomError, OSError, EOFError):
        return None
    return meta if "MediaStorageSOPClassUID" in meta and "TransferSyntaxUID" in meta else None


def _groups(metas: Mapping[Path, Dataset]) -> Iterator[list[Path]]:
    """The files of one association at a time, each with no more kinds than it has contexts for."""
    kinds: dict[tuple[str, str], list[Path]] = {}
    for path, meta in metas.items():
        kinds.setdefault((meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID), []).append(path)
    groups = list(kinds.values())
    for start in range(0, len(groups), MOST_KINDS):
        yield [path for group in groups[start : start + MOST_KINDS] for path in group]


def _store(assoc: Association, path: Path, meta: Dataset) -> int | str:
    """The outcome of one C-STORE."""
    if not assoc.is_established:
        return NO_ANSWER
    try:
        ds = read_as(path, accepted_for(assoc, meta.MediaStorageSOPClassUID))
        status = assoc.send_c_store(ds).get("Status")
    except ValueError:
        return NO_CONTEXT
    return NO_ANSWER if status is None else int(status)
