"""Instances are kept while they are still coming in: the disk works while the network does.

An association has two threads of pynetdicom's, one for the network and one that looks every millisecond for a
whole message. Here it gets a third, which hands each piece of a data set on as soon as it was heard. When the
last one came the file is written and its digest known; what is left is what the disk has to promise.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import TYPE_CHECKING, Final, TypeVar

from node.receive import Answer, Arrival, BrokenOff

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

T = TypeVar("T")

POLL_S: Final = 0.2
"""Seconds between two looks whether the association is still there while nothing comes of it."""


class Incoming(BytesIO):
    """A data set on its way from the thread that hears it to the one that keeps it.

    A BytesIO because pynetdicom takes no other; but it remembers nothing: a piece is in memory until it was
    read.
    """

    def __init__(self, sop_class_uid: str, sop_instance_uid: str, is_heard: Callable[[], bool]) -> None:
        super().__init__()
        self.sop_class_uid = sop_class_uid
        self.sop_instance_uid = sop_instance_uid
        self._is_heard = is_heard
        self._pieces: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._answer: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self._bytes = self._put = self._taken = 0
        self._is_whole = False
        self._is_over = False

    def write(self, data: ReadableBuffer, /) -> int:
        """Take the next piece; how many bytes that is."""
        piece = bytes(data)
        self._bytes += len(piece)
        if piece and not self._is_over:
            self._put += len(piece)
            self._pieces.put(piece)
        return len(piece)

    def tell(self) -> int:
        """Bytes that have come."""
        return self._bytes

    @property
    def unkept(self) -> int:
        """Bytes that are in memory: they came, are wanted, and were not read yet."""
        return 0 if self._is_over else self._put - self._taken

    def end(self, *, is_whole: bool) -> None:
        """Nothing more comes: that was all, or the rest is not wanted."""
        self._is_whole = is_whole
        self._pieces.put(None)

    def pieces(self) -> Iterator[bytes]:
        """Each piece, as soon as it has come; raises BrokenOff where the last one never does."""
        while piece := _next(self._pieces, self._is_heard):
            yield piece
            self._taken += len(piece)
        if not self._is_whole:
            raise BrokenOff("the sender went away before the end")

    def answered(self, answer: Answer | None) -> None:
        """The answer to the sender, None where there is none; whatever still comes is not kept."""
        self._is_over = True
        self._pieces = queue.SimpleQueue()
        self._answer.put(answer)

    def answer(self) -> Answer:
        """The answer, once the instance is kept; raises RuntimeError where none was found."""
        answer = self._answer.get()
        if answer is None:
            raise RuntimeError("an instance got no answer")
        return answer


class Keeper(threading.Thread):
    """Hands the instances of one association to ``store``, one after the other, while they are coming in.

    Ends with the association: when ``is_heard`` says that nothing can come any more and all was handed on.
    """

    def __init__(self, store: Callable[[Arrival], Answer], is_heard: Callable[[], bool]) -> None:
        super().__init__(name="keeper", daemon=True)
        self._store = store
        self._is_heard = is_heard
        self._arrivals: queue.SimpleQueue[tuple[Arrival, Incoming]] = queue.SimpleQueue()
        self._open: list[Incoming] = []

    def begin(
        self, *, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, calling_ae: str
    ) -> Incoming:
        """The data set that follows this C-STORE request; its pieces are to be written into what is given."""
        incoming = Incoming(sop_class_uid, sop_instance_uid, self._is_heard)
        arrival = Arrival(sop_class_uid, sop_instance_uid, transfer_syntax_uid, calling_ae, incoming.pieces())
        self._open.append(incoming)
        self._arrivals.put((arrival, incoming))
        return incoming

    @property
    def unkept(self) -> int:
        """Bytes of this association that are in memory and not on the disk yet."""
        return sum(incoming.unkept for incoming in self._open.copy())

    def run(self) -> None:
        """Keep what comes."""
        while found := _next(self._arrivals, self._is_heard):
            arrival, incoming = found
            answer = None
            try:
                answer = self._store(arrival)
            finally:
                incoming.answered(answer)
                self._open.remove(incoming)


def _next(waiting: queue.SimpleQueue[T], is_heard: Callable[[], bool]) -> T | None:
    """What comes next, None where the association ended before."""
    while True:
        is_open = is_heard()  # asked first: what was put in before the end is still found
        try:
            return waiting.get(timeout=POLL_S)
        except queue.Empty:
            if not is_open:
                return None
