"""DIMSE over TLS with certificates on both sides (PS3.15 B.12: BCP 195, RFC 9325).

TLS 1.3 and 1.2, ephemeral keys, AES-GCM; every peer shows a certificate of a listed authority, and a peer we
call carries the name we called. One builder of contexts serves the listener (:class:`Doorkeeper`) and
everything that calls out (:func:`tls_args`).
"""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol, TypeVar

import structlog
from cryptography import x509

from config.settings import TlsSettings
from node.errors import NodeError

log = structlog.get_logger(__name__)

CIPHERS: Final = "ECDHE+AESGCM:DHE+AESGCM:!aDSS"
"""Suites of TLS 1.2 in OpenSSL's words (RFC 9325 4.2, PS3.15 B.9); those of TLS 1.3 are all good."""

Context = TypeVar("Context", bound=ssl.SSLContext)


class CertificatesUnusable(NodeError):
    """A file of ``[tls]`` cannot be read, or key and certificate do not belong together."""


class Peer(Protocol):
    """Somebody to call: where, with which certificates if with any, and the name that theirs has to carry."""

    @property
    def host(self) -> str:
        """Name or address."""
        ...

    @property
    def tls(self) -> bool | TlsSettings:
        """The node's certificates; False for plain text."""
        ...

    @property
    def tls_name(self) -> str:
        """The name on the peer's certificate; empty where it is the host."""
        ...


def server_context(tls: TlsSettings) -> ssl.SSLContext:
    """What a listener speaks; it asks for a certificate. Raises CertificatesUnusable."""
    context = _filled(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tls)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(tls: TlsSettings) -> Calling:
    """What one association of our asking speaks; it looks at the peer's name. Raises CertificatesUnusable."""
    return _filled(Calling(ssl.PROTOCOL_TLS_CLIENT), tls)


def self_call(tls: TlsSettings) -> Calling:
    """What the node speaks with its own listener: believes what it is shown, shows what it can."""
    context = Calling(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with suppress(OSError):
        context.load_cert_chain(tls.certificate, tls.key, password="")
    return context


def tls_args(peer: Peer) -> tuple[Calling, str] | None:
    """pynetdicom's ``tls_args`` for an association with ``peer``, None for plain text.

    Make them anew for every association: the context keeps what went wrong. Raises CertificatesUnusable.
    """
    if not isinstance(peer.tls, TlsSettings):
        return None
    return client_context(peer.tls), peer.tls_name or peer.host


class Calling(ssl.SSLContext):
    """The client's side of one association; ``failure`` says in words what TLS did not like."""

    failure: str | None = None

    @property
    def was_refused(self) -> bool:
        """Whether the other side was there and said no (an alert, RFC 8446 6)."""
        return "alert" in (self.failure or "")

    def __new__(cls, protocol: int) -> Calling:
        """A context whose sockets report to it."""
        made = super().__new__(cls, protocol)
        made.sslsocket_class = _Reporting
        return made


class _Reporting(ssl.SSLSocket):
    """A socket that tells its context why TLS failed: pynetdicom keeps that to its log.

    In TLS 1.3 a server's no to our certificate comes after the handshake, at the first reading.
    """

    def do_handshake(self, block: bool = False) -> None:
        """Shake hands."""
        with _reporting(self):
            super().do_handshake(block)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Read."""
        with _reporting(self):
            return super().recv(buflen, flags)

    def shutdown(self, how: int) -> None:
        """End the connection; one that never came about is closed, since pynetdicom would leave it open."""
        try:
            super().shutdown(how)
        except OSError:
            self.close()
            raise


@contextmanager
def _reporting(wire: ssl.SSLSocket) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        if isinstance(wire.context, Calling):
            wire.context.failure = words_of(error)
        raise


def words_of(error: OSError) -> str:
    """What TLS did not like, in words; names no peer."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate is not believed: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or type(error).__name__).replace("_", " ").lower()
    return error.strerror or type(error).__name__


def shake_hands(wire: socket.socket, context: ssl.SSLContext, within_s: float) -> ssl.SSLSocket:
    """The server's side of a handshake that takes ``within_s`` altogether, however slowly the peer speaks.

    Takes over ``wire``, which is closed where this raises: OSError, TimeoutError among them.
    """
    secured = context.wrap_socket(wire, server_side=True, do_handshake_on_connect=False)
    try:
        _shake(secured, time.monotonic() + within_s)
    except BaseException:
        secured.close()
        raise
    return secured


def _shake(secured: ssl.SSLSocket, deadline: float) -> None:
    secured.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(secured, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            try:
                secured.do_handshake()
            except ssl.SSLWantReadError:
                selector.modify(secured, selectors.EVENT_READ)
            except ssl.SSLWantWriteError:
                selector.modify(secured, selectors.EVENT_WRITE)
            else:
                return
            selector.select(left)
    raise TimeoutError("the handshake took too long")


class Doorkeeper:
    """The listener's context, made anew when the files change: a renewed certificate needs no restart.

    Making one raises CertificatesUnusable; later, files that cannot be used leave the context as it was.
    """

    def __init__(self, tls: TlsSettings) -> None:
        self._tls = tls
        self._guard = threading.Lock()
        self._seen = _stamps(tls)
        self._context = server_context(tls)

    def context(self) -> ssl.SSLContext:
        """The context for the next connection."""
        with self._guard:
            seen = _stamps(self._tls)
            if seen != self._seen:
                self._seen = seen
                self._renew()
            return self._context

    def _renew(self) -> None:
        try:
            self._context = server_context(self._tls)
        except CertificatesUnusable as error:
            log.error("certificates not taken over", reason=str(error))  # noqa: TRY400 - no fault of the code
        else:
            log.info("certificates taken over")


def _stamps(tls: TlsSettings) -> list[tuple[int, int] | None]:
    return [_stamp(path) for path in files_of(tls).values()]


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def files_of(tls: TlsSettings) -> dict[str, Path]:
    """The files that are named, by their keys."""
    named = {name: getattr(tls, name) for name in ("certificate", "key", "authorities", "revoked")}
    return {name: path for name, path in named.items() if isinstance(path, Path)}


def _filled(context: Context, tls: TlsSettings) -> Context:
    """The context with our certificate, the authorities and the profile's limits."""
    if not tls.is_filled:
        raise CertificatesUnusable("[tls] names no certificate, key and authorities")
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION
    with _unusable_is(tls.certificate):
        x509.load_pem_x509_certificates(Path(tls.certificate).read_bytes())  # OpenSSL names no file
    with _unusable_is(tls.key):
        context.load_cert_chain(tls.certificate, tls.key, password="")  # never ask at a terminal
    with _unusable_is(tls.authorities):
        context.load_verify_locations(cafile=tls.authorities)
    if tls.revoked:
        with _unusable_is(tls.revoked):
            context.load_verify_locations(cafile=tls.revoked)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return context


@contextmanager
def _unusable_is(path: Path | str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:  # ssl.SSLCertVerificationError is one too
        raise CertificatesUnusable(f"{path}: no PEM certificate in it") from error
    except OSError as error:
        reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        words = (reason or "no PEM key in it, or one with a pass phrase").replace("_", " ").lower()
        raise CertificatesUnusable(f"{path}: {words}") from error
