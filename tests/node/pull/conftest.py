"""An archive on loopback that answers C-FIND, C-MOVE and C-GET as told."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification

from config.settings import ArchivePeer
from node.archive import matches
from node.pull.query import FIND, GET, MOVE


class Holder:
    """A real SCP that holds ``datasets``.

    ``known`` are its move destinations; ``keeps_back`` are instances it lists and cannot send; ``find`` and
    ``retrieve`` are statuses it answers with instead of doing anything; ``echo`` is what a C-ECHO is answered
    with; ``models`` are what it offers.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        *,
        known: dict[str, tuple[str, int]] | None = None,
        keeps_back: int = 0,
        find: int | None = None,
        retrieve: int | None = None,
        echo: int = 0,
        models: Sequence[str] = (FIND, MOVE, GET),
    ) -> None:
        self.ae_title = "HOLDER"
        self.datasets = [copy.deepcopy(ds) for ds in datasets]
        self.known = known if known is not None else {}
        self.keeps_back = keeps_back
        self.find_status, self.retrieve_status = find, retrieve
        self.asked: list[str] = []
        """Levels of the retrieves, in the order they came."""
        self.queries = 0
        self.associations = 0
        self.hold = threading.Event()
        """While this is clear, after ``pause``, nothing is answered."""
        self.hold.set()
        self.pause_s = 0.0
        """Seconds between two of its answers to a C-FIND."""
        ae = AE(ae_title=self.ae_title)
        ae.add_supported_context(Verification)
        for model in models:
            ae.add_supported_context(model)
        syntaxes = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
        ae.add_supported_context(CTImageStorage, syntaxes, scu_role=True, scp_role=True)
        ae.add_requested_context(CTImageStorage, syntaxes)
        handlers: list[Any] = [
            (evt.EVT_C_ECHO, lambda _event: echo),
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_C_MOVE, self._move),
            (evt.EVT_C_GET, self._get),
            (evt.EVT_ACCEPTED, self._count),
        ]
        self._server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = int(self._server.socket.getsockname()[1])

    def stop(self) -> None:
        """Stop listening and end what is open; harmless when stopped already."""
        self.hold.set()
        if self._server.ae._servers:
            self._server.shutdown()

    def entry(self, **options: Any) -> ArchivePeer:
        """This archive as the settings name it."""
        where = {"host": "127.0.0.1", "port": self.port, "ae_title": self.ae_title, "dimse_timeout_s": 20}
        return ArchivePeer(name="archive", **where, **options)

    def _count(self, _event: evt.Event) -> None:
        self.associations += 1

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        self.hold.wait()
        self.queries += 1
        if self.find_status is not None:
            yield self.find_status, None
            return
        query = event.identifier
        for match in matches(self.datasets, query, str(query.QueryRetrieveLevel)):
            time.sleep(self.pause_s)
            yield 0xFF00, match

    def _wanted(self, event: evt.Event) -> list[Dataset]:
        identifier = event.identifier
        self.asked.append(str(identifier.QueryRetrieveLevel))
        uids = identifier.get("SOPInstanceUID") or []
        named = {str(uids)} if isinstance(uids, str) else {str(uid) for uid in uids}
        of_series = [ds for ds in self.datasets if ds.SeriesInstanceUID == identifier.SeriesInstanceUID]
        chosen = [ds for ds in of_series if not named or ds.SOPInstanceUID in named]
        return chosen[: len(chosen) - self.keeps_back]

    def _move(self, event: evt.Event) -> Iterator[Any]:
        yield self.known.get(event.move_destination, (None, None))
        yield from self._send(event)

    def _get(self, event: evt.Event) -> Iterator[Any]:
        yield from self._send(event)

    def _send(self, event: evt.Event) -> Iterator[Any]:
        wanted = self._wanted(event)
        yield len(wanted) + self.keeps_back
        if self.retrieve_status is not None:
            yield self.retrieve_status, None
            return
        for ds in wanted:
            yield 0xFF00, ds


@pytest.fixture
def holder() -> Iterator[Callable[..., Holder]]:
    """Starts archives with :class:`Holder`'s options and stops them after the test."""
    started: list[Holder] = []

    def start(*args: Any, **options: Any) -> Holder:
        started.append(Holder(*args, **options))
        return started[-1]

    yield start
    for each in started:
        each.stop()
