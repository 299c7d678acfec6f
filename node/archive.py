"""A small archive of its own: C-STORE, C-ECHO, C-FIND and storage commitment, for the demo and for tests.

It takes what it is sent, keeps the received bytes, and answers queries in the study root model at the levels
STUDY, SERIES and IMAGE (PS3.4 C.6.2). It reports storage commitment to peers it was introduced to, and sends
nothing else, routes nothing and forgets nothing. It is not a PACS.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from threading import Lock, Thread
from types import TracebackType
from typing import Any, cast

from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.dimse_primitives import N_ACTION
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)
from pynetdicom.transport import ThreadedAssociationServer

from config.settings import StoreDestination
from node.commitment.report import tell
from node.commitment.wire import NO_SUCH_INSTANCE, PUSH_MODEL, SYNTAXES, Named, NotUnderstood, read
from node.errors import DestinationRefused, DestinationUnreachable
from node.uids import is_plausible_uid

SUCCESS = 0x0000
PENDING = 0xFF00
CANCELLED = 0xFE00
NOT_IDENTIFIED = 0xC000
BAD_IDENTIFIER = 0xA900
OUT_OF_RESOURCES = 0xA700
INVALID_ARGUMENT = 0x0115
NOT_AUTHORISED = 0x0124

MAX_PDU_BYTES = 256 * 1024
"""A slice of 512 × 512 in three pieces and not in thirty, each of which pynetdicom turns over in Python."""
LAST_WORDS_S = 2.0
"""Seconds an open association has to end when the archive stops."""

LEVELS: Mapping[str, str] = {
    "STUDY": "StudyInstanceUID",
    "SERIES": "SeriesInstanceUID",
    "IMAGE": "SOPInstanceUID",
}
"""Query/Retrieve levels of the study root model and their unique keys (PS3.4 C.6.2.1)."""


class Archive:
    """The archive's server and its index. Use as a context manager, or ``start`` and ``stop``."""

    def __init__(
        self, folder: Path, *, ae_title: str = "ARCHIVE", host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.folder = folder
        self.ae_title = ae_title
        self._address = (host, port)
        self._index: dict[str, Dataset] = {}
        self._known: dict[str, StoreDestination] = {}
        self._lock = Lock()
        self._server: ThreadedAssociationServer | None = None

    def start(self) -> Archive:
        """Index the folder and listen. Raises OSError where the port is taken."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._index = {str(header.SOPInstanceUID): header for header in _headers_in(self.folder)}
        ae = AE(ae_title=self.ae_title)
        ae.require_called_aet = True
        ae.maximum_associations = 20
        ae.maximum_pdu_size = MAX_PDU_BYTES
        ae.add_supported_context(Verification)
        ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        ae.add_supported_context(PUSH_MODEL, list(SYNTAXES))
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(str(context.abstract_syntax), ALL_TRANSFER_SYNTAXES)
        handlers: list[Any] = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_N_ACTION, self._commit),
        ]
        self._server = ae.start_server(self._address, block=False, evt_handlers=handlers)
        return self

    def stop(self) -> None:
        """Stop listening, let open associations end, and abort those that do not."""
        if self._server is None:
            return
        self._server.shutdown()
        for assoc in self._server.active_associations:
            assoc.join(LAST_WORDS_S)
            if assoc.is_alive():
                assoc.abort()
        self._server = None

    def __enter__(self) -> Archive:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port it listens on; raises RuntimeError before ``start``."""
        if self._server is None:
            raise RuntimeError("the archive is not started")
        return int(self._server.server_address[1])

    def introduce(self, ae_title: str, host: str, port: int) -> None:
        """Take requests for storage commitment from this peer, and report to it there."""
        self._known[ae_title] = StoreDestination(
            name="requester", host=host, port=port, ae_title=ae_title, calling_ae_title=self.ae_title
        )

    def path_of(self, sop_instance_uid: str) -> Path:
        """The file of an instance it holds; raises KeyError for another one."""
        with self._lock:
            return _place(self.folder, self._index[sop_instance_uid])

    def _store(self, event: evt.Event) -> int:
        data = event.encoded_dataset()
        header = dcmread(BytesIO(data), stop_before_pixels=True)
        if not all(is_plausible_uid(str(header.get(key, ""))) for key in LEVELS.values()):
            return BAD_IDENTIFIER
        path = _place(self.folder, header)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".part")
            partial.write_bytes(data)
            partial.replace(path)
        except OSError:
            return OUT_OF_RESOURCES
        with self._lock:
            self._index[str(header.SOPInstanceUID)] = Dataset(header)  # a file's would hold on to its bytes
        return SUCCESS

    def _commit(self, event: evt.Event) -> tuple[int, None]:
        """Take a request for storage commitment; the report goes out on an association of its own."""
        peer = self._known.get(event.assoc.requestor.ae_title)
        if peer is None:
            return NOT_AUTHORISED, None
        try:
            request = cast(N_ACTION, event.request)
            asked = read(request.ActionInformation, str(event.context.transfer_syntax))
        except NotUnderstood:
            return INVALID_ARGUMENT, None
        Thread(target=self._report, args=(peer, asked), name="commitment", daemon=True).start()
        return SUCCESS, None

    def _report(self, peer: StoreDestination, asked: Named) -> None:
        with self._lock:
            known = {uid: str(header.SOPClassUID) for uid, header in self._index.items()}
        held = {one for one in asked.held if known.get(one.sop_instance_uid) == one.sop_class_uid}
        failed = tuple((one, NO_SUCH_INSTANCE) for one in asked.held if one not in held)
        with suppress(DestinationUnreachable, DestinationRefused):  # who missed it asks again
            tell(peer, Named(asked.transaction_uid, tuple(held), failed))

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        query = event.identifier
        level = str(query.get("QueryRetrieveLevel", ""))
        if level not in LEVELS:
            yield BAD_IDENTIFIER, None
            return
        with self._lock:
            headers = list(self._index.values())
        for match in matches(headers, query, level):
            if event.is_cancelled:
                yield CANCELLED, None
                return
            yield PENDING, match


def matches(headers: Iterable[Dataset], query: Dataset, level: str) -> Iterator[Dataset]:
    """One answer for each study, series or image whose attributes match ``query`` (PS3.4 C.2.2.2)."""
    groups: dict[str, list[Dataset]] = {}
    for header in headers:
        groups.setdefault(str(header.get(LEVELS[level], "")), []).append(header)
    for group in groups.values():
        answer = _answer(group, query, level)
        if all(_is_match(element, answer.get(element.tag)) for element in query if _is_key(element)):
            yield answer


def _answer(group: list[Dataset], query: Dataset, level: str) -> Dataset:
    """The attributes asked for, of the first instance of the group, and the counts asked for."""
    answer = Dataset()
    for element in query:
        counted = COUNTED.get(element.keyword)
        held = group[0].get(element.tag)
        value = counted(group) if counted else held.value if held is not None else None
        answer.add_new(element.tag, element.VR, value)
    answer.QueryRetrieveLevel = level
    if "SpecificCharacterSet" in group[0]:
        answer.SpecificCharacterSet = group[0].SpecificCharacterSet
    return answer


def _distinct(keyword: str) -> Callable[[list[Dataset]], Any]:
    return lambda group: len({str(header.get(keyword, "")) for header in group})


COUNTED: Mapping[str, Callable[[list[Dataset]], Any]] = {
    "NumberOfStudyRelatedSeries": _distinct("SeriesInstanceUID"),
    "NumberOfStudyRelatedInstances": len,
    "NumberOfSeriesRelatedInstances": len,
    "ModalitiesInStudy": lambda group: sorted({str(header.get("Modality", "")) for header in group}),
}
"""Attributes that are counted over a group and not read from a header (PS3.4 C.3.4)."""
NOT_KEYS = {tag_for_keyword(word) for word in ("QueryRetrieveLevel", "SpecificCharacterSet", *COUNTED)}


def _is_key(element: DataElement) -> bool:
    return element.tag not in NOT_KEYS and element.VR != "SQ"


def _is_match(wanted: DataElement, held: DataElement | None) -> bool:
    """Universal, list of UID, range and wildcard matching (PS3.4 C.2.2.2.1 to C.2.2.2.5)."""
    if wanted.is_empty:
        return True
    values = _texts(held.value if held is not None else None)
    patterns = _texts(wanted.value)
    if wanted.VR in ("DA", "TM", "DT") and "-" in patterns[0]:
        low, _, high = patterns[0].partition("-")
        return any((not low or value >= low) and (not high or value <= high) for value in values)
    if wanted.VR == "PN":
        patterns, values = [text.casefold() for text in patterns], [text.casefold() for text in values]
    return any(fnmatch.fnmatchcase(value, _glob(pattern)) for pattern in patterns for value in values)


def _texts(value: Any) -> list[str]:
    many = not isinstance(value, (str, bytes)) and isinstance(value, Iterable)
    return [str(item) for item in value] if many else ["" if value is None else str(value)]


def _glob(pattern: str) -> str:
    """A DICOM wildcard for fnmatch: ``*`` and ``?`` mean the same, a bracket is only a bracket."""
    return pattern.replace("[", "[[]")


def _place(folder: Path, header: Dataset) -> Path:
    study, series, instance = (str(header[keyword].value) for keyword in LEVELS.values())
    return folder / study / series / f"{instance}.dcm"


def _headers_in(folder: Path) -> Iterator[Dataset]:
    for path in sorted(folder.glob("*/*/*.dcm")):
        try:
            yield dcmread(path, stop_before_pixels=True)
        except InvalidDicomError:
            continue
