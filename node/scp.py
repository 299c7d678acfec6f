"""The listening side: C-ECHO, C-STORE and storage commitment (PS3.4 A, B and J) as one application entity.

Association by association: who may associate (`peers`), what may be sent (:func:`supported_contexts`), and
every C-STORE handed to the caller's ``store``, whose answer goes back. pynetdicom speaks the protocol; what
it leaves open to a hostile peer is closed here: PDU and message lengths, half-sent PDUs, idle connections.
"""

from __future__ import annotations

import math
import queue
import socket
import threading
import time
from collections import Counter
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
from pynetdicom.dimse_messages import C_STORE_RQ
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
from node import tags
from node.alarm import Alarm, Alert, AlertKind, nobody
from node.commitment.hear import Commitments
from node.commitment.wire import PUSH_MODEL, SYNTAXES
from node.incoming import Incoming, Keeper
from node.ledger import Ledger
from node.peers import AllowList, Role, Slots
from node.receive import NOT_THE_CLASS, SUCCESS, Answer, Arrival, Receiver
from node.spool import Spool
from node.tls import Doorkeeper, shake_hands, words_of
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

TLS_HANDSHAKE: Final = 0x16
"""First byte of a TLS connection (RFC 8446 5.1); that of an association request is 0x01 (PS3.8 9.3.2)."""
WRONG_PORT: Final[dict[bool, str]] = {
    True: "the peer speaks plain text, and this port TLS",
    False: "the peer speaks TLS, and this port plain text",
}
"""What a peer got wrong, by whether this port speaks TLS."""
MAX_PDU_SLACK_BYTES: Final = 1024 * 1024
"""Longest PDU that is read whatever was negotiated: association requests are longer than data PDUs."""
LEAST_BYTES_A_SECOND: Final = 16 * 1024
"""A message may take ``dimse_timeout_s``, and a second more for as many bytes of it: no line is slower, and
who sends a byte a minute holds no place."""
ROOM_LOOK_S: Final = 0.01
"""Seconds between two looks whether there is room in memory again."""
MAX_WAITING_MESSAGES: Final = 4
"""Requests a peer may have sent ahead of our answers; without negotiation it is one (PS3.7 D.3.3.3)."""
SPARE_CONNECTIONS: Final = 8
"""Connections beyond ``max_associations`` that are still heard, so that they can be told why not."""
STRANGERS: Final = 4
"""Connections from addresses off the list that are heard at once, so that they can be told why not. They take
nobody else's place."""
DATA_STATES: Final = frozenset({"Sta6", "Sta8"})
"""States of the upper layer in which data may be sent (PS3.8 9.2.3)."""
OWN_REQUESTS: Final = frozenset({"Evt9", "Evt11", "Evt14", "Evt15"})
"""Events that are requests of the local user: send data, release, answer a release, abort (PS3.8 9.2.2)."""
HUNG_UP: Final = "Evt17"
"""The transport connection is closed (PS3.8 9.2.2)."""
POLL_S: Final = 0.2
"""Seconds between two looks whether to stop listening; a connection is heard at once."""
STOP_GRACE_S: Final = 5.0
"""Seconds associations get to end by themselves when the node stops."""

PROTOCOL_LOG: Final = (evt.EVT_DIMSE_RECV, evt.EVT_DIMSE_SENT, evt.EVT_PDU_RECV, evt.EVT_PDU_SENT)
"""Events whose handlers are pynetdicom's protocol log, taken off: it costs time and prints data sets."""


class Scp:
    """The node's SCP: what arrives is kept in ``spool`` and ``ledger``. Listens within a ``with`` statement.

    Making one raises CertificatesUnusable, entering raises OSError where the address cannot be had.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        spool: Spool,
        clock: Callable[[], float] = time.time,
        alarm: Alarm = nobody,
    ) -> None:
        limit = settings.storage.max_instance_bytes
        self.commitments = Commitments(settings, ledger, clock, alarm)
        """What peers say and ask about storage commitment; the ask lanes hear reports by it too."""
        self._listener = Listener(
            settings.listen,
            Receiver(spool, ledger, limit, clock).take,
            limit,
            self.commitments,
            Doorkeeper(settings.tls) if settings.listen.tls else None,
            alarm,
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

    def turned_away_since(self, moment: float) -> bool:
        """Whether a connection was closed since then (monotonic seconds) because there were too many."""
        return self._listener.turned_away_since(moment)

    @property
    def refused(self) -> dict[int, int]:
        """Instances not answered with success since it was made, by status."""
        return self._listener.refused


class Listener:
    """An application entity that hands every received instance to ``store`` and sends its answer back.

    ``store`` is called from one thread an association and does not raise. With ``commitments`` that are
    wanted the Push Model is offered too; with a ``doorkeeper`` TLS is spoken and nothing else. Listening
    starts with :meth:`start` and ends with :meth:`stop`.
    """

    def __init__(
        self,
        listen: ListenSettings,
        store: Callable[[Arrival], Answer],
        max_instance_bytes: int,
        commitments: Commitments | None = None,
        doorkeeper: Doorkeeper | None = None,
        alarm: Alarm = nobody,
    ) -> None:
        self._alarm = alarm
        self.listen = listen
        self.max_instance_bytes = max_instance_bytes
        self._store = store
        self._commitments = commitments if commitments is not None and commitments.is_wanted else None
        self._doorkeeper = doorkeeper
        self._allowed = AllowList(listen)
        self._slots = Slots(listen)
        self._server: Server | None = None
        self._guard = threading.Lock()
        self._refused = Counter[int]()

    def start(self) -> None:
        """Listen; raises OSError where the address cannot be had."""
        ae = _application_entity(self.listen)
        handlers: list[Any] = [
            (evt.EVT_REQUESTED, self._on_requested),
            (evt.EVT_REJECTED, self._on_rejected),
            (evt.EVT_C_ECHO, _on_echo),
            (evt.EVT_C_STORE, self._on_store),
        ]
        contexts = supported_contexts(self.listen)
        if self._commitments is not None:
            contexts.append(push_model_context())
            handlers.append((evt.EVT_N_EVENT_REPORT, self._commitments.on_report))
            handlers.append((evt.EVT_N_ACTION, self._commitments.on_request))
        self._server = Server(ae, self.listen, contexts, handlers, self.max_instance_bytes, self._doorkeeper)
        self._server.alarm = self._alarm
        self._server.store = self._store
        self._server.allowed = self._allowed
        threading.Thread(target=self._server.serve_forever, args=(POLL_S,), name="scp", daemon=True).start()
        log.info("listening", port=self.port)

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Listen no more; associations that do not end within ``grace_s`` are aborted."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.shutdown()
        server.hang_up()
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

    def turned_away_since(self, moment: float) -> bool:
        """Whether a connection was closed since then (monotonic seconds) because there were too many."""
        return self._server is not None and self._server.turned_away_at >= moment

    @property
    def refused(self) -> dict[int, int]:
        """C-STOREs answered with another status than success, by status; warnings are among them."""
        with self._guard:
            return dict(self._refused)

    def _on_requested(self, event: evt.Event) -> None:
        """Refuse a peer that is not allowed, with the standard's reason (PS3.8 9.3.4)."""
        assoc = event.assoc
        request = cast(A_ASSOCIATE, assoc.requestor.primitive)
        calling, address = request.calling_ae_title, assoc.requestor.address
        rejection = self._allowed.rejection(
            called=request.called_ae_title, calling=calling, address=address
        ) or self._slots.rejection(assoc, calling=calling, address=address)
        if rejection is None:
            self._offer(assoc, self._allowed.roles(calling=calling, address=address))
            return
        log.warning("association refused", reason=rejection.words)
        self._alarm(Alert(AlertKind.REFUSED, rejection.words, address, calling))
        assoc.acse.send_reject(rejection.result, rejection.source, rejection.reason)
        assoc.is_rejected = True
        assoc.kill()

    def _on_rejected(self, event: evt.Event) -> None:
        log.warning("association refused", reason="local limit exceeded")
        peer = event.assoc.requestor
        self._alarm(Alert(AlertKind.CROWDED, "local limit exceeded", peer.address, peer.ae_title))

    def _offer(self, assoc: Association, roles: frozenset[Role]) -> None:
        """Take away the contexts of what this peer may not do: it hears so before it sends anything."""
        if len(roles) < len(Role):
            offered = assoc.acceptor.supported_contexts
            assoc.acceptor.supported_contexts = [cx for cx in offered if role_of(cx) in (None, *roles)]

    def _on_store(self, event: evt.Event) -> int | Dataset:
        messages = cast(BoundedMessages, event.assoc.dimse)
        with messages.serving():
            response = self._stored(event)
        if isinstance(response, Dataset):  # success is an int
            with self._guard:
                self._refused[int(response.Status)] += 1
        return response

    def _stored(self, event: evt.Event) -> int | Dataset:
        request = cast(C_STORE, event.request)
        if isinstance(request.DataSet, Incoming):
            return _response(_checked(request.DataSet, request))
        if not is_granted(event.assoc, request.AffectedSOPClassUID):
            return _response(Answer(NOT_THE_CLASS, "no presentation context was granted for this class"))
        return answer_to_store(event, self._store, event.assoc.requestor.ae_title)


def _checked(data: Incoming, request: C_STORE) -> Answer:
    """The answer to ``request``, unless it names another instance now than when its data set began."""
    answer = data.answer()
    if (data.sop_class_uid, data.sop_instance_uid) == (
        request.AffectedSOPClassUID,
        request.AffectedSOPInstanceUID,
    ):
        return answer
    return Answer(NOT_THE_CLASS, "another instance was announced before")


def answer_to_store(event: evt.Event, store: Callable[[Arrival], Answer], sender: str) -> int | Dataset:
    """Have ``store`` keep what a C-STORE of ``sender`` carries; the status of its response."""
    request = cast(C_STORE, event.request)
    with (request.DataSet or BytesIO()).getbuffer() as data:
        answer = store(
            Arrival(
                sop_class_uid=str(request.AffectedSOPClassUID),
                sop_instance_uid=str(request.AffectedSOPInstanceUID),
                transfer_syntax_uid=str(event.context.transfer_syntax),
                calling_ae=sender,
                data=data,
            )
        )
    return _response(answer)


def is_granted(assoc: Association, sop_class_uid: object) -> bool:
    """Whether the association has a presentation context for the class (PS3.8 7.1.1.13).

    pynetdicom serves a C-STORE on any context: a peer that may only echo could store on that for C-ECHO.
    """
    return any(context.abstract_syntax == sop_class_uid for context in assoc._accepted_cx.values())


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


def role_of(context: PresentationContext) -> Role | None:
    """What a peer must be allowed for this context; None for storage commitment, which has its own list."""
    uid = str(context.abstract_syntax)
    return Role.ECHO if uid == VERIFICATION else None if uid == PUSH_MODEL else Role.STORE


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


def _response(answer: Answer) -> int | Dataset:
    """The status elements of a C-STORE-RSP (PS3.7 9.3.1.2, C.4)."""
    if answer.status == SUCCESS:
        return SUCCESS
    status = Dataset()
    status.Status = answer.status
    status.ErrorComment = answer.comment
    return status


class Server(ThreadedAssociationServer):
    """pynetdicom's server with bounded reading."""

    store: Callable[[Arrival], Answer]  # set before it serves
    allowed: AllowList
    turned_away_at = -math.inf  # when a connection was last closed because there were too many
    daemon_threads = True  # a peer that is silent does not hold up the end of the process
    request_queue_size = 128  # of socketserver's 5 a crowd of senders waits for seconds

    def __init__(
        self,
        ae: ApplicationEntity,
        listen: ListenSettings,
        contexts: list[PresentationContext],
        handlers: list[Any],
        max_instance_bytes: int,
        doorkeeper: Doorkeeper | None,
    ) -> None:
        self.listen = listen
        self.doorkeeper = doorkeeper
        self.max_instance_bytes = max_instance_bytes
        self.in_flight = InFlight(max(listen.max_in_flight_bytes, max_instance_bytes + MAX_PDU_SLACK_BYTES))
        self._guard = threading.Lock()
        self._waiting: set[Connection] = set()
        self.alarm: Alarm = nobody
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

    def is_crowded(self, address: str) -> bool:
        """Whether as many connections are open as are heard at once, in all or from this address.

        Those from addresses off the list are counted by themselves.
        """
        is_known = self.allowed.knows_address(address)
        with self._guard:
            waiting = [each.client_address[0] for each in self._waiting]
        waiting = [each for each in waiting if self.allowed.knows_address(each) == is_known]
        assocs = [
            each
            for each in self.active_associations
            if self.allowed.knows_address(each.requestor.address) == is_known
        ]
        if not is_known:
            return len(waiting) + len(assocs) >= STRANGERS
        from_there = [each for each in assocs if each.requestor.address == address]
        asking = waiting.count(address) + sum(each.requestor.primitive is None for each in from_there)
        most_of_one = self.listen.max_associations_per_address
        return (
            asking >= most_of_one
            or waiting.count(address) + len(from_there) >= most_of_one + SPARE_CONNECTIONS
            or len(waiting) + len(assocs) >= self.listen.max_associations + SPARE_CONNECTIONS
        )

    @contextmanager
    def waiting(self, connection: Connection) -> Iterator[None]:
        """A connection that has not asked for an association yet."""
        with self._guard:
            self._waiting.add(connection)
        try:
            yield
        finally:
            with self._guard:
                self._waiting.discard(connection)

    def hang_up(self) -> None:
        """Send away those that have not asked for an association yet."""
        with self._guard:
            waiting = list(self._waiting)
        for connection in waiting:
            connection.hang_up()


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
        if self.server.is_crowded(self.client_address[0]):
            self.server.turned_away_at = time.monotonic()
            log.warning("connection closed", reason="too many connections")
            self._raise_alarm(AlertKind.CROWDED, "too many connections")
        elif self._is_welcome():
            self.request.settimeout(self.server.listen.network_timeout_s)
            super().handle()
            return
        self.server.shutdown_request(self.request)

    def _is_welcome(self) -> bool:
        """Whether the peer speaks, and speaks what this listener does.

        Hands are shaken here, in a thread of the connection's own: nobody waits for a peer that is silent.
        """
        with self.server.waiting(self):
            first = self._first_byte()
            if first is None:
                return False
            doorkeeper = self.server.doorkeeper
            if (first == TLS_HANDSHAKE) != (doorkeeper is not None):
                log.warning("connection closed", reason=WRONG_PORT[doorkeeper is not None])
                self._raise_alarm(AlertKind.TLS, WRONG_PORT[doorkeeper is not None])
                return False
            return doorkeeper is None or self._shake_hands(doorkeeper)

    def _first_byte(self) -> int | None:
        """What the peer says first, left where it is; None where it says nothing in time."""
        self.request.settimeout(self.server.listen.acse_timeout_s)
        try:
            return next(iter(self.request.recv(1, socket.MSG_PEEK)), None)
        except OSError:
            return None

    def _shake_hands(self, doorkeeper: Doorkeeper) -> bool:
        try:
            self.request = shake_hands(self.request, doorkeeper.context(), self.server.listen.acse_timeout_s)
        except OSError as error:
            log.warning("connection closed", reason=f"TLS: {words_of(error)}")
            self._raise_alarm(AlertKind.TLS, words_of(error))
            return False
        return True

    def _raise_alarm(self, kind: AlertKind, words: str) -> None:
        self.server.alarm(Alert(kind, words, self.client_address[0]))

    def hang_up(self) -> None:
        """End the wait for a peer that has not asked for an association yet."""
        with suppress(OSError):
            self.request.shutdown(socket.SHUT_RDWR)

    def _create_association(self) -> Association:
        assoc = super()._create_association()
        assoc.dimse = BoundedMessages(assoc, self.server)
        assoc.dul.state_machine = UpperLayer(assoc.dul)
        taken_over = cast(AssociationSocket, assoc.dul.socket)
        assoc.dul.socket = BoundedSocket(taken_over, self.server.listen)
        return assoc


class BoundedSocket(AssociationSocket):
    """Takes over an association's socket and reads no PDU beyond a length or a time; the peer sets both."""

    def __init__(self, taken_over: AssociationSocket, listen: ListenSettings) -> None:
        vars(self).update(vars(taken_over))
        self._listen = listen
        self._max_pdu_bytes = max(2 * listen.max_pdu_bytes, MAX_PDU_SLACK_BYTES)

    def recv(self, nr_bytes: int) -> bytearray:
        """``nr_bytes`` bytes, fewer where the peer hangs up.

        Raises OSError for more than a PDU may have, TimeoutError where they take longer altogether than the
        peer may be silent: a byte a minute is no sign of life.
        """
        if nr_bytes > self._max_pdu_bytes:
            raise OSError(f"a PDU of {nr_bytes} bytes was announced")
        received = bytearray(nr_bytes)
        with memoryview(received) as view:
            count = 0
            deadline = time.monotonic() + self._patience_s()
            while count < nr_bytes:
                read = self._read(view[count:], deadline)
                if not read:
                    break
                count += read
        del received[count:]
        return received

    def _patience_s(self) -> float:
        """Seconds for one PDU; those of the ACSE time-out until an association is requested."""
        has_asked = self.assoc.requestor.primitive is not None
        return self._listen.network_timeout_s if has_asked else self._listen.acse_timeout_s

    def _read(self, into: memoryview, deadline: float) -> int:
        """Some bytes, 0 where the peer hung up."""
        if self.socket is None:
            return 0
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("a PDU took too long")
        self.socket.settimeout(left)
        return self.socket.recv_into(into)


class UpperLayer(StateMachine):
    """Ends what pynetdicom's would leave open.

    An answer that was queued while the association ended would end the reactor; and a peer that hangs up
    before it asks for an association would keep its slot for the ACSE time-out.
    """

    def do_action(self, event: str) -> None:
        """Act on ``event``, unless it is a request of ours that the state no longer knows (PS3.8 9.2.3)."""
        if event in OWN_REQUESTS and (event, self.current_state) not in TRANSITION_TABLE:
            with suppress(queue.Empty):
                self.dul.to_provider_queue.get(block=False)
            return
        super().do_action(event)
        if event == HUNG_UP and self.dul.assoc.requestor.primitive is None:
            self.dul.to_user_queue.put(cast(Any, None))  # what waits for the request hears that none comes


class InFlight:
    """Bytes that are in memory and not on the disk yet, over all associations."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._guard = threading.Lock()
        self._held: dict[threading.Thread, tuple[int, Callable[[], int]]] = {}

    def hold(self, assoc: threading.Thread, message: int, unkept: Callable[[], int]) -> bool:
        """Whether all together hold no more than they may.

        ``message``: bytes of the one that ``assoc`` puts together or serves, ``unkept``: says how many there
        are of those that are being kept, whenever it is asked.
        """
        with self._guard:
            self._held[assoc] = (message, unkept)
            self._held = {one: held for one, held in self._held.items() if one.is_alive()}
            return sum(own + waiting() for own, waiting in self._held.values()) <= self._most_bytes


class BoundedMessages(DIMSEServiceProvider):
    """Has what a C-STORE carries kept while it comes in, within bounds.

    Ends the association of a peer whose message is too long or takes too long, or who does not wait for
    answers. So that many peers cannot fill the memory together either, the one whose message no longer fits
    waits, and is ended where that is in vain.
    """

    def __init__(self, assoc: Association, server: Server) -> None:
        super().__init__(assoc)
        self._alarm = server.alarm
        self._in_flight = server.in_flight
        self._max_message_bytes = server.max_instance_bytes + MAX_PDU_SLACK_BYTES
        self._store = server.store
        self._patience_s = server.listen.dimse_timeout_s
        self._began = 0.0
        self._keeper: Keeper | None = None
        self._incoming: Incoming | None = None

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take the next fragment, or have the association aborted (Evt19: invalid PDU, PS3.8 9.2)."""
        if words := self._too_much():
            log.warning("association aborted", reason=words)
            peer = self.assoc.requestor
            self._alarm(Alert(AlertKind.TOO_LONG, words, peer.address, peer.ae_title))
            self.message = None
            self._end(is_whole=False)
            self._hold(0)
            self.dul.event_queue.put("Evt19")
            return
        if self.message is None:
            self._began = time.monotonic()
        super().receive_primitive(primitive)
        if self.message is None:
            self._end(is_whole=True)
        elif self._incoming is None and isinstance(self.message, C_STORE_RQ):
            self._incoming = self._begin(self.message)

    def _begin(self, request: C_STORE_RQ) -> Incoming | None:
        """What the rest of the message is written into; None leaves it to pynetdicom, odd requests too."""
        context = self.assoc._accepted_cx.get(cast(int, request.context_id))
        sop_class, sop_instance = (
            tags.value(request.command_set, keyword)
            for keyword in ("AffectedSOPClassUID", "AffectedSOPInstanceUID")
        )
        if context is None or not isinstance(sop_class, str) or not isinstance(sop_instance, str):
            return None
        if not is_granted(self.assoc, sop_class):
            return None
        if self._keeper is None:
            self._keeper = Keeper(self._store, self.dul.is_alive)
            self._keeper.start()
        incoming = self._keeper.begin(
            sop_class_uid=sop_class,
            sop_instance_uid=sop_instance,
            transfer_syntax_uid=str(context.transfer_syntax[0]),
            calling_ae=self.assoc.requestor.ae_title,
        )
        incoming.write(cast(BytesIO, request.data_set).getvalue())
        request.data_set = cast(Any, incoming)
        return incoming

    def _end(self, *, is_whole: bool) -> None:
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.end(is_whole=is_whole)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """A message is dealt with; then its memory is free again."""
        try:
            yield
        finally:
            self._hold(0)

    def send_msg(self, primitive: Any, context_id: int) -> None:
        """Send an answer, unless the association ended while it was made."""
        if self.dul.state_machine.current_state in DATA_STATES:
            super().send_msg(primitive, context_id)

    def _too_much(self) -> str:
        """Why the next fragment is not taken; nothing where it is."""
        if self.msg_queue.qsize() >= MAX_WAITING_MESSAGES:
            return "more messages than may wait"
        parts = (self.message.encoded_command_set, self.message.data_set) if self.message else ()
        sizes = [(part.tell(), isinstance(part, Incoming)) for part in parts if part]
        size = sum(size for size, _ in sizes)
        if size > self._max_message_bytes:
            return "message too long"
        if self.message and time.monotonic() - self._began > self._patience_s + size / LEAST_BYTES_A_SECOND:
            return "message not whole after dimse_timeout_s"
        in_memory = sum(size for size, is_being_kept in sizes if not is_being_kept)
        return "" if self._gets_room(in_memory) else "more in memory than max_in_flight_bytes"

    def _gets_room(self, message: int) -> bool:
        """Whether there is room for the next fragment, for which the peer is left waiting a while if need be.

        Nothing is read meanwhile, so that its line fills up and it sends no faster than the disk takes it.
        """
        began = time.monotonic()
        while not self._hold(message):
            if time.monotonic() - began > self._patience_s or self.dul._kill_thread:
                return False
            time.sleep(ROOM_LOOK_S)
        self._began += time.monotonic() - began
        return True

    def _hold(self, message: int) -> bool:
        return self._in_flight.hold(self.assoc, message, self._unkept)

    def _unkept(self) -> int:
        return self._keeper.unkept if self._keeper else 0
