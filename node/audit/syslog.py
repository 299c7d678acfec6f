"""Audit messages to a repository: syslog (RFC 5424) over TLS (RFC 5425), as PS3.15 A.6 wants it.

Syslog has no answers. What we have instead is the end of the connection: we say that we end (close_notify)
and the repository, having read everything before it, ends too (RFC 5425 4.4). Only then do messages count as
sent; what was not ended so is sent again.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from config.settings import AuditSettings, TlsSettings
from node.errors import NodeError
from node.tls import client_context, words_of

PRIORITY: Final = 10 * 8 + 5
"""Facility 10 (security), severity 5 (notice): PS3.15 A.6.1."""
MSGID: Final = "DICOM+RFC3881"
"""PS3.15 A.6.1."""
BOM: Final = b"\xef\xbb\xbf"
"""What follows is UTF-8 (RFC 5424 6.4)."""


class RepositoryAway(NodeError):
    """The audit repository did not take the messages: they are kept and sent again."""


def frame_of(xml: bytes, now: float) -> bytes:
    """The message with its syslog header (RFC 5424 6) and its length before it (RFC 5425 4.3)."""
    at = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    host = socket.gethostname().encode("ascii", "replace").decode()[:255] or "-"
    header = f"<{PRIORITY}>1 {at} {host} s2node {os.getpid()} {MSGID} - "
    message = header.encode() + BOM + xml
    return b"%d " % len(message) + message


def send(audit: AuditSettings, tls: TlsSettings, frames: Iterable[bytes]) -> None:
    """Have the repository take ``frames``; raises RepositoryAway, or CertificatesUnusable for ours."""
    context = client_context(tls)
    where = (audit.syslog_host, audit.syslog_port)
    with (
        _away_is(),
        socket.create_connection(where, audit.syslog_timeout_s) as plain,
        context.wrap_socket(plain, server_hostname=audit.syslog_host) as wire,
    ):
        for frame in frames:
            wire.sendall(frame)
        _end(wire)


def _end(wire: ssl.SSLSocket) -> None:
    """End the connection and wait until the repository has: it has read everything then.

    One that hangs up instead of saying so has read our end too; one that breaks off has not.
    """
    try:
        wire.unwrap()
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        return


@contextmanager
def _away_is() -> Iterator[None]:
    try:
        yield
    except OSError as error:  # ssl.SSLError is one
        raise RepositoryAway(words_of(error)) from error
