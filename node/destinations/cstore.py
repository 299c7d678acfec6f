"""A DICOM peer: all files over one association, or over several at once where the settings say so.

A file's own transfer syntax and, where it can be turned into them, Explicit and Implicit VR Little Endian are
proposed, each in a presentation context of its own; the file is sent as it lies where its own was accepted.
An AE is made per association: one shared by several threads loses answers (pynetdicom #137).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import structlog
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID
from pynetdicom import AE, _config, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from config.settings import StoreDestination
from node import tls
from node.destinations.answer import Answer, Verdict, store_status, words_of
from node.destinations.transcode import read_as, usable
from node.errors import DestinationRefused, DestinationUnreachable
from node.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

log = structlog.get_logger(__name__)

_config.STORE_SEND_CHUNKED_DATASET = True
"""A file that is named, not read, is sent byte for byte, without a parser between."""

LOOK_S = 0.0002
"""Seconds between two looks of pynetdicom for something to send or an answer: its own 0.001, twice an
instance, are most of what a small one takes."""

FILES_OF_A_LINE = 8
"""No further association is opened for fewer."""

REJECTED_PERMANENT = 0x01
"""Result field of A-ASSOCIATE-RJ (PS3.8 Table 9-21)."""

MAY_PASS = frozenset({(0x01, 0x01), (0x02, 0x01), (0x03, 0x01), (0x03, 0x02)})
"""(source, reason) of rejections that name nothing a person could mend (PS3.8 Table 9-21): no reason given,
temporary congestion, local limit exceeded. An archive that starts up says so, and calls it permanent."""


def deliver(peer: StoreDestination, files: Sequence[Path]) -> Iterator[Answer]:
    """Send ``files`` and yield every answer as it comes.

    Over ``peer.associations`` at once, as far as the peer accepts them; over each the next file is sent when
    the caller has had the answer to the last one. Raises DestinationUnreachable where nobody answers, and
    after an answer that asks to wait: what was delivered before need not be sent again. Raises
    DestinationRefused(None) before anything is sent where no presentation context was accepted, and
    DestinationRefused(status) at the end if any file was refused.
    """
    if not files:
        return
    metas = [read_file_meta_info(path) for path in files]
    lines = max(1, min(peer.associations, len(files) // FILES_OF_A_LINE))
    refused: list[int] = []
    for answer in _over_several(peer, files, metas, lines) if lines > 1 else _over_one(peer, files, metas):
        yield answer
        if answer.verdict is Verdict.WAIT:
            raise DestinationUnreachable(f"status {words_of(answer.status)}")
        if answer.verdict is Verdict.REFUSED:
            refused.append(answer.status)
    if refused:
        meaning = store_status(refused[0]).meaning
        raise DestinationRefused(refused[0], f"{meaning} ({len(refused)} of {len(files)} instances)")


@contextmanager
def _line(peer: StoreDestination, metas: Sequence[Dataset]) -> Iterator[Association]:
    """An association over which every file can be sent; raises what ``associated`` and the contexts do."""
    with associated(peer, contexts_for(metas)) as assoc:
        require_contexts(assoc, metas)
        yield assoc


def _over_one(peer: StoreDestination, files: Sequence[Path], metas: Sequence[Dataset]) -> Iterator[Answer]:
    with _line(peer, metas) as line:
        for path, meta in zip(files, metas, strict=True):
            yield _answer(line, path, meta)


def _over_several(
    peer: StoreDestination, files: Sequence[Path], metas: Sequence[Dataset], count: int
) -> Iterator[Answer]:
    """The same over ``count`` lines, or as many as are accepted; what one breaks off ends all of them.

    The answers to what is still on its way then come first.
    """
    todo = iter(list(zip(files, metas, strict=True)))
    trouble: Exception | None = None
    with ExitStack() as lines, ThreadPoolExecutor(count, f"to {peer.name}") as pool:

        def opened_if_accepted() -> tuple[Association | None, None]:
            try:
                return lines.enter_context(_line(peer, metas)), None
            except (DestinationUnreachable, DestinationRefused) as error:
                log.info("fewer associations", destination=peer.name, reason=str(error))
                return None, None

        def sent(line: Association, path: Path, meta: Dataset) -> tuple[Association, Answer]:
            return line, _answer(line, path, meta)

        first = lines.enter_context(_line(peer, metas))
        at_work: set[Future[Any]] = {pool.submit(sent, first, *next(todo))}
        at_work |= {pool.submit(opened_if_accepted) for _ in range(1, count)}
        while at_work:
            done, at_work = wait(at_work, return_when=FIRST_COMPLETED)
            for each in done:
                if error := each.exception():
                    trouble = trouble or cast(Exception, error)
                    continue
                line, answer = each.result()
                if answer is not None:
                    yield answer
                if trouble is None and line is not None and (following := next(todo, None)):
                    at_work.add(pool.submit(sent, line, *following))
    if trouble is not None:
        raise trouble


def _answer(line: Association, path: Path, meta: Dataset) -> Answer:
    return Answer(path, str(meta.MediaStorageSOPInstanceUID), store(line, path, meta))


def contexts_for(metas: Sequence[Dataset]) -> list[PresentationContext]:
    """For each SOP class one context a transfer syntax: the files' own, then what they can be turned into."""
    kinds = dict.fromkeys((meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID) for meta in metas)
    wanted = kinds | dict.fromkeys((sop_class, each) for sop_class, own in kinds for each in usable(own))
    return [build_context(sop_class, syntax) for sop_class, syntax in wanted]


@contextmanager
def associated(
    peer: StoreDestination,
    contexts: list[PresentationContext],
    on_report: Callable[[evt.Event], tuple[int, None]] | None = None,
) -> Iterator[Association]:
    """An established association, released at the end; raises as :func:`why_not` says where there is none.

    ``on_report`` answers the peer's N-EVENT-REPORTs, the one request we serve here.
    """
    ae = AE(ae_title=peer.calling_ae_title)
    ae.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.connection_timeout = peer.connect_timeout_s
    ae.acse_timeout = peer.acse_timeout_s
    ae.dimse_timeout = peer.dimse_timeout_s
    ae.network_timeout = peer.network_timeout_s
    handlers: list[Any] = [] if on_report is None else [(evt.EVT_N_EVENT_REPORT, on_report)]
    as_scp = dict.fromkeys(str(cx.abstract_syntax) for cx in contexts if cx.scp_role)  # one item a class
    roles = [build_role(sop_class, scp_role=True) for sop_class in as_scp]
    secure = _tls_of(peer)
    try:
        assoc = ae.associate(
            peer.host,
            peer.port,
            contexts=contexts,
            ae_title=peer.ae_title,
            max_pdu=peer.max_pdu_bytes,
            ext_neg=roles,  # type: ignore[arg-type]
            evt_handlers=handlers,
            tls_args=secure,
        )
    except OSError as error:
        raise DestinationUnreachable(f"no connection: {error.strerror}") from error
    if not assoc.is_established:
        if secure and secure[0].failure:
            raise DestinationUnreachable(f"TLS: {secure[0].failure}")
        raise why_not(assoc)
    assoc.dimse = OnlyAnswers(assoc)
    assoc.dul._run_loop_delay = LOOK_S
    try:
        yield assoc
    finally:
        if assoc.is_established:
            assoc.release()


def _tls_of(peer: StoreDestination) -> tuple[tls.Calling, str] | None:
    """The peer's certificates and name; DestinationUnreachable where our own files cannot be used now."""
    try:
        return tls.tls_args(peer)
    except tls.CertificatesUnusable as error:
        raise DestinationUnreachable(f"TLS: {error}") from error


class OnlyAnswers(DIMSEServiceProvider):
    """Answers that only the one who asked takes.

    pynetdicom's own thread of an association looks for requests of the peer, and on a busy machine it may
    take the answer somebody waits for: it is then lost, and the wait ends with the time-out. We ask here, and
    serve no requests.
    """

    def get_msg(self, block: bool = False) -> Any:
        """The next answer for one who waits for it, nothing for one who only looks."""
        return super().get_msg(block) if block else (None, None)


def why_not(assoc: Association) -> DestinationUnreachable | DestinationRefused:
    """The error for an association that was not established: a permanent no, or nobody there for now."""
    answer = assoc.acceptor.primitive
    if assoc.is_rejected and answer is not None:
        may_pass = (answer.result_source, answer.diagnostic) in MAY_PASS
        if answer.result == REJECTED_PERMANENT and not may_pass:
            return DestinationRefused(None, f"the association was rejected: {answer.reason_str}")
        return DestinationUnreachable(f"the association was rejected for now: {answer.reason_str}")
    if assoc.rejected_contexts and not assoc.accepted_contexts:
        return DestinationRefused(None, "none of the proposed presentation contexts was accepted")
    return DestinationUnreachable("nobody answered, or the connection was closed while associating")


def require_contexts(assoc: Association, metas: Sequence[Dataset]) -> None:
    """Raise DestinationRefused(None) unless every file can be sent over what the peer accepted."""
    for sop_class, own in {(meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID) for meta in metas}:
        if accepted_for(assoc, sop_class).isdisjoint(usable(own)):
            raise DestinationRefused(None, f"the peer does not take {sop_class.name} in {own.name}")


def accepted_for(assoc: Association, sop_class: UID) -> frozenset[str]:
    """The transfer syntaxes that the peer accepted for a SOP class."""
    accepted = assoc.accepted_contexts
    return frozenset(cx.transfer_syntax[0] for cx in accepted if cx.abstract_syntax == sop_class)


def store(assoc: Association, path: Path, meta: Dataset) -> int:
    """C-STORE one file; returns its status. Raises DestinationUnreachable where there is none."""
    if not assoc.is_established:
        raise DestinationUnreachable("the association was aborted")
    accepted = accepted_for(assoc, meta.MediaStorageSOPClassUID)
    as_it_is = meta.TransferSyntaxUID in accepted
    status = assoc.send_c_store(path if as_it_is else read_as(path, accepted)).get("Status")
    if status is None:
        raise DestinationUnreachable("no answer to C-STORE: timed out or aborted")
    return int(status)


def probe(peer: StoreDestination) -> None:
    """C-ECHO: returns where somebody is there who answers, raises DestinationUnreachable where nobody is.

    A peer that refuses to be asked is there; what it thinks of us shows when something is sent.
    """
    with suppress(DestinationRefused), associated(peer, [build_context(Verification)]) as assoc:
        if assoc.send_c_echo().get("Status") is None:
            raise DestinationUnreachable("no answer to the C-ECHO")
