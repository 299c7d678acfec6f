"""The listening side: C-ECHO, C-STORE and storage commitment (PS3.4 A, B and J) as one application entity.

Association by association: who may associate (`peers`), what may be sent (:func:`supported_contexts`), and
every C-STORE handed to the caller's ``store``, whose answer goes back. pynetdicom speaks the protocol; what
it leaves open to a hostile peer is closed here: PDU and message lengths, half-sent PDUs, idle connections.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from types import TracebackType
from typing import Any, Final, cast

import structlog
from pydicom._uid_dict import UID_dictionary
from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.fsm import TRANSITION_TABLE, StateMachine
from pynetdicom.pdu_primitives import A_ASSOCIATE, P_DATA
from pynetdicom.presentation import (
    AllStoragePresentationContexts,
    PresentationContext,
    build_context,
)
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from config.settings import ListenSettings, Settings
from node.commitment.hear import Commitments
from node.commitment.wire import PUSH_MODEL, SYNTAXES
from node.ledger import Ledger
from node.peers import AllowList
from node.receive import SUCCESS, Answer, Arrival, Receiver
from node.spool import Spool
from node.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

log = structlog.get_logger(__name__)

VERIFICATION: Final = "1.2.840.10008.1.1"
CT_CLASSES: Final[dict[str, str]] = {
    "1.2.840.10008.5.1.4.1.1.2": "CT Image Storage",
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT Image Storage",
    "1.2.840.10008.5.1.4.1.1.2.2": "Legacy Converted Enhanced CT Image Storage",
}
"""SOP classes the node is for (PS3.4 B.5)."""

PREFERRED_SYNTAXES: Final = (
    "1.2.840.10008.1.2.1",  # Explicit VR Little Endian: private elements keep their VR
    "1.2.840.10008.1.2",  # Implicit VR Little Endian
    "1.2.840.10008.1.2.2",  # Explicit VR Big Endian
    "1.2.840.10008.1.2.1.99",  # Deflated Explicit VR Little Endian
    "1.2.840.10008.1.2.4.70",  # lossless from here on: JPEG
    "1.2.840.10008.1.2.4.80",  # JPEG-LS
    "1.2.840.10008.1.2.4.90",  # JPEG 2000
    "1.2.840.10008.1.2.4.201",  # HTJ2K
    "1.2.840.10008.1.2.5",  # RLE
)
"""What is chosen first where a sender offers several for one SOP class: nothing lost, then easy to read."""

NO_DATA_SETS: Final = frozenset(
    {
        "1.2.840.10008.1.2.6.1",  # MIME encapsulation
        "1.2.840.10008.1.2.6.2",  # XML encoding
        "1.2.840.10008.1.2.7.1",  # SMPTE ST 2110: real-time streams (PS3.22)
        "1.2.840.10008.1.2.7.2",
        "1.2.840.10008.1.2.7.3",
        "1.2.840.10008.1.20",  # Papyrus 3
    }
)
"""Transfer syntaxes of the registry (PS3.6 A) that do not carry a data set over DIMSE."""

MAX_PDU_SLACK_BYTES: Final = 1024 * 1024
"""Longest PDU that is read whatever was negotiated: association requests are longer than data PDUs."""
MAX_WAITING_MESSAGES: Final = 4
"""Requests a peer may have sent ahead of our answers; without negotiation it is one (PS3.7 D.3.3.3)."""
SPARE_CONNECTIONS: Final = 8
"""Connections beyond ``max_associations`` that are still heard, so that they can be told why not."""
DATA_STATES: Final = frozenset({"Sta6", "Sta8"})
"""States of the upper layer in which data may be sent (PS3.8 9.2.3)."""
OWN_REQUESTS: Final = frozenset({"Evt9", "Evt11", "Evt14", "Evt15"})
"""Events that are requests of the local user: send data, release, answer a release, abort (PS3.8 9.2.2)."""
POLL_S: Final = 0.2
"""Seconds between two looks whether to stop listening; a connection is heard at once."""
STOP_GRACE_S: Final = 5.0
"""Seconds associations get to end by themselves when the node stops."""

PROTOCOL_LOG: Final = (evt.EVT_DIMSE_RECV, evt.EVT_DIMSE_SENT, evt.EVT_PDU_RECV, evt.EVT_PDU_SENT)
"""Events whose handlers are pynetdicom's protocol log, taken off: it costs time and prints data sets."""


class Scp:
    """The node's SCP: what arrives is kept in ``spool`` and ``ledger``. Listens within a ``with`` statement.

    Entering raises OSError where the address cannot be had.
    """

    def __init__(
        self, settings: Settings, ledger: Ledger, spool: Spool, clock: Callable[[], float] = time.time
    ) -> None:
        limit = settings.storage.max_instance_bytes
        self.commitments = Commitments(settings, ledger, clock)
        """What peers say and ask about storage commitment; the ask lanes hear reports by it too."""
        self._listener = Listener(
            settings.listen, Receiver(spool, ledger, limit, clock).take, limit, self.commitments
        )

    def __enter__(self) -> Scp:
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.stop()

    @property
    def port(self) -> int:
        """The TCP port that is listened on."""
        return self._listener.port

    @property
    def open_associations(self) -> int:
        """Associations open now."""
        return self._listener.open_associations


class Listener:
    """An application entity that hands every received instance to ``store`` and sends its answer back.

    ``store`` is called from one thread an association and does not raise. With ``commitments`` that are
    wanted the Push Model is offered too. Listening starts with :meth:`start` and ends with :meth:`stop`.
    """

    def __init__(
        self,
        listen: ListenSettings,
        store: Callable[[Arrival], Answer],
        max_instance_bytes: int,
        commitments: Commitments | None = None,
    ) -> None:
        self.listen = listen
        self.max_instance_bytes = max_instance_bytes
        self._store = store
        self._commitments = commitments if commitments is not None and commitments.is_wanted else None
        self._allowed = AllowList(listen)
        self._server: Server | None = None

    def start(self) -> None:
        """Listen; raises OSError where the address cannot be had."""
        ae = _application_entity(self.listen)
        handlers: list[Any] = [
            (evt.EVT_REQUESTED, self._on_requested),
            (evt.EVT_REJECTED, _on_rejected),
            (evt.EVT_C_ECHO, _on_echo),
            (evt.EVT_C_STORE, self._on_store),
        ]
        contexts = supported_contexts(self.listen)
        if self._commitments is not None:
            contexts.append(push_model_context())
            handlers.append((evt.EVT_N_EVENT_REPORT, self._commitments.on_report))
            handlers.append((evt.EVT_N_ACTION, self._commitments.on_request))
        self._server = Server(ae, self.listen, contexts, handlers, self.max_instance_bytes)
        threading.Thread(target=self._server.serve_forever, args=(POLL_S,), name="scp", daemon=True).start()
        log.info("listening", port=self.port)

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Listen no more; associations that do not end within ``grace_s`` are aborted."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.shutdown()
        deadline = time.monotonic() + grace_s
        while server.active_associations and time.monotonic() < deadline:
            time.sleep(0.01)
        for assoc in server.active_associations:
            assoc.abort()

    @property
    def port(self) -> int:
        """The port that is listened on; raises RuntimeError before :meth:`start`."""
        if self._server is None:
            raise RuntimeError("the SCP is not listening")
        return int(self._server.server_address[1])

    @property
    def open_associations(self) -> int:
        """Associations open now."""
        return len(self._server.active_associations) if self._server else 0

    def _on_requested(self, event: evt.Event) -> None:
        """Refuse a peer that is not allowed, with the standard's reason (PS3.8 9.3.4)."""
        assoc = event.assoc
        request = cast(A_ASSOCIATE, assoc.requestor.primitive)
        rejection = self._allowed.rejection(
            called=request.called_ae_title, calling=request.calling_ae_title, address=assoc.requestor.address
        )
        if rejection is None:
            return
        log.warning("association refused", reason=rejection.words)
        assoc.acse.send_reject(rejection.result, rejection.source, rejection.reason)
        assoc.is_rejected = True
        assoc.kill()

    def _on_store(self, event: evt.Event) -> int | Dataset:
        request = cast(C_STORE, event.request)
        with (request.DataSet or BytesIO()).getbuffer() as data:
            answer = self._store(
                Arrival(
                    sop_class_uid=str(request.AffectedSOPClassUID),
                    sop_instance_uid=str(request.AffectedSOPInstanceUID),
                    transfer_syntax_uid=str(event.context.transfer_syntax),
                    calling_ae=event.assoc.requestor.ae_title,
                    data=data,
                )
            )
        return SUCCESS if answer.status == SUCCESS else _status(answer)


def supported_contexts(listen: ListenSettings) -> list[PresentationContext]:
    """Verification, the CT classes, and the other storage classes unless the settings refuse them."""
    syntaxes = transfer_syntaxes()
    classes = list(CT_CLASSES)
    if listen.other_classes == "store":
        known = {str(context.abstract_syntax) for context in AllStoragePresentationContexts}
        classes += sorted(known - set(classes))
    return [build_context(VERIFICATION), *(build_context(uid, list(syntaxes)) for uid in classes)]


def push_model_context() -> PresentationContext:
    """Storage commitment in both roles: a sender asks us as SCU, an archive reports as SCP (PS3.4 J.3)."""
    context = build_context(PUSH_MODEL, list(SYNTAXES))
    context.scu_role = context.scp_role = True
    return context


def transfer_syntaxes() -> tuple[str, ...]:
    """Every transfer syntax of pydicom's registry that carries data sets, the preferred ones first."""
    registered = {uid for uid, entry in UID_dictionary.items() if entry[1] == "Transfer Syntax"}
    return (*PREFERRED_SYNTAXES, *sorted(registered - NO_DATA_SETS - set(PREFERRED_SYNTAXES)))


def _application_entity(listen: ListenSettings) -> ApplicationEntity:
    ae = ApplicationEntity(listen.ae_title)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.maximum_associations = listen.max_associations
    ae.maximum_pdu_size = listen.max_pdu_bytes
    ae.network_timeout = listen.network_timeout_s
    ae.acse_timeout = listen.acse_timeout_s
    ae.dimse_timeout = listen.dimse_timeout_s
    return ae


def _on_echo(_event: evt.Event) -> int:
    return SUCCESS


def _on_rejected(_event: evt.Event) -> None:
    log.warning("association refused", reason="local limit exceeded")


def _status(answer: Answer) -> Dataset:
    """The status elements of a C-STORE-RSP (PS3.7 9.3.1.2, C.4)."""
    status = Dataset()
    status.Status = answer.status
    status.ErrorComment = answer.comment
    return status


class Server(ThreadedAssociationServer):
    """pynetdicom's server with bounded reading."""

    def __init__(
        self,
        ae: ApplicationEntity,
        listen: ListenSettings,
        contexts: list[PresentationContext],
        handlers: list[Any],
        max_instance_bytes: int,
    ) -> None:
        self.listen = listen
        self.max_instance_bytes = max_instance_bytes
        self._guard = threading.Lock()
        self._waiting = 0
        super().__init__(
            ae,
            (listen.host, listen.port),
            listen.ae_title,
            _Shared(contexts),
            evt_handlers=handlers,
            request_handler=Connection,
        )
        for event in PROTOCOL_LOG:
            self._handlers.pop(event, None)
        ae._servers.append(self)

    def is_crowded(self) -> bool:
        """Whether there are as many connections as are heard at once, associations or not yet."""
        most = self.listen.max_associations + SPARE_CONNECTIONS
        return self._waiting + len(self.active_associations) >= most

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A connection that has not said anything yet."""
        with self._guard:
            self._waiting += 1
        try:
            yield
        finally:
            with self._guard:
                self._waiting -= 1


class _Shared(list[PresentationContext]):
    """Contexts that all associations read and none changes.

    pynetdicom copies them deeply for every association: 86 ms for all storage classes.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self


class Connection(RequestHandler):
    """One accepted connection on its way to be an association."""

    server: Server

    def handle(self) -> None:
        """Hear the peer, unless there are too many already or it has nothing to say.

        A load balancer's probe connects and hangs up: it never becomes an association. The socket gets a
        time-out: a peer that stops in the middle of a PDU would hold its slot for ever.
        """
        listen = self.server.listen
        if self.server.is_crowded():
            log.warning("connection closed", reason="too many connections")
        elif self._speaks(listen.acse_timeout_s):
            self.request.settimeout(listen.network_timeout_s)
            super().handle()
            return
        self.server.shutdown_request(self.request)

    def _speaks(self, timeout_s: float) -> bool:
        """Whether the peer sends anything within ``timeout_s``."""
        self.request.settimeout(timeout_s)
        with self.server.waiting():
            try:
                return bool(self.request.recv(1, socket.MSG_PEEK))
            except OSError:
                return False

    def _create_association(self) -> Association:
        assoc = super()._create_association()
        assoc.dimse = BoundedMessages(assoc, self.server.max_instance_bytes)
        assoc.dul.state_machine = UpperLayer(assoc.dul)
        assoc.dul.socket = BoundedSocket(
            cast(AssociationSocket, assoc.dul.socket), 2 * self.server.listen.max_pdu_bytes
        )
        return assoc


class BoundedSocket(AssociationSocket):
    """Takes over an association's socket and reads no PDU beyond a length: the peer says how long it is."""

    def __init__(self, taken_over: AssociationSocket, max_pdu_bytes: int) -> None:
        vars(self).update(vars(taken_over))
        self._max_pdu_bytes = max(max_pdu_bytes, MAX_PDU_SLACK_BYTES)

    def recv(self, nr_bytes: int) -> bytearray:
        """``nr_bytes`` bytes, fewer where the peer hangs up; raises OSError for more than a PDU may have."""
        if nr_bytes > self._max_pdu_bytes:
            raise OSError(f"a PDU of {nr_bytes} bytes was announced")
        received = bytearray(nr_bytes)
        with memoryview(received) as view:
            count = 0
            while count < nr_bytes:
                read = self.socket.recv_into(view[count:]) if self.socket else 0
                if not read:
                    break
                count += read
        del received[count:]
        return received


class UpperLayer(StateMachine):
    """Drops what we asked for too late: pynetdicom's ends the reactor, and leaves the socket open, on an
    answer that was queued while the association ended."""

    def do_action(self, event: str) -> None:
        """Act on ``event``, unless it is a request of ours that the state no longer knows (PS3.8 9.2.3)."""
        if event in OWN_REQUESTS and (event, self.current_state) not in TRANSITION_TABLE:
            with suppress(queue.Empty):
                self.dul.to_provider_queue.get(block=False)
            return
        super().do_action(event)


class BoundedMessages(DIMSEServiceProvider):
    """Ends the association of a peer whose message is too long, or who does not wait for answers."""

    def __init__(self, assoc: Association, max_message_bytes: int) -> None:
        super().__init__(assoc)
        self._max_message_bytes = max_message_bytes + MAX_PDU_SLACK_BYTES

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take the next fragment, or have the association aborted (Evt19: invalid PDU, PS3.8 9.2)."""
        if self._is_too_much():
            log.warning("association aborted", reason="more data than a message may have")
            self.message = None
            self.dul.event_queue.put("Evt19")
            return
        super().receive_primitive(primitive)

    def send_msg(self, primitive: Any, context_id: int) -> None:
        """Send an answer, unless the association ended while it was made."""
        if self.dul.state_machine.current_state in DATA_STATES:
            super().send_msg(primitive, context_id)

    def _is_too_much(self) -> bool:
        if self.msg_queue.qsize() >= MAX_WAITING_MESSAGES:
            return True
        parts = (self.message.encoded_command_set, self.message.data_set) if self.message else ()
        return sum(part.tell() for part in parts if part) > self._max_message_bytes
