"""Tells systemd that the node is ready and alive, and says so only when it is.

The protocol is one datagram to ``$NOTIFY_SOCKET`` (sd_notify(3)); without that variable nothing is sent. The
unit needs ``Type=notify`` and ``WatchdogSec=``; a feed that stops makes systemd restart the node.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from pynetdicom import AE, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from config.settings import ListenSettings, TlsSettings
from node.tls import self_call


@dataclass(slots=True)
class Pulse:
    """The last sign of life of one lane, and the seconds of silence after which it counts as stuck.

    Times are monotonic seconds, passed in.
    """

    limit_s: float
    last: float

    def beat(self, now: float) -> None:
        """The lane did something."""
        self.last = now

    def is_alive(self, now: float) -> bool:
        """Whether the last sign of life is young enough."""
        return now - self.last <= self.limit_s


def stuck(pulses: Mapping[str, Pulse], now: float) -> list[str]:
    """Names of the lanes that have been silent for too long."""
    return [name for name, pulse in pulses.items() if not pulse.is_alive(now)]


def notify(message: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send ``message`` (such as ``READY=1``) to systemd; False where nobody asked for it."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # Linux's abstract namespace
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wire:
        wire.sendto(message.encode(), address)
    return True


def feed_every_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between two feeds, a third of what systemd allows; None where no watchdog watches us."""
    allowed_us = int(environ.get("WATCHDOG_USEC", "0"))
    watched_pid = environ.get("WATCHDOG_PID", "")
    if not allowed_us or (watched_pid and int(watched_pid) != os.getpid()):
        return None
    return allowed_us / 3_000_000


def answers(
    listen: ListenSettings, port: int, tls: TlsSettings | None = None, timeout_s: float = 5.0
) -> bool:
    """Whether our listener answers an association request and C-ECHO; a refusal is an answer too.

    Calls as somebody who is let in; an address that means "every one" is called at loopback. Over TLS it
    shows the node's own certificate, which the listener need not believe.
    """
    secure = self_call(tls) if listen.tls and tls else None
    ae = AE(ae_title=_title(listen))
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = timeout_s
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)
    assoc = ae.associate(
        host,
        port,
        contexts=[build_context(Verification)],
        ae_title=listen.ae_title,
        tls_args=(secure, host) if secure else None,
    )
    if not assoc.is_established:
        refused = assoc.is_rejected or assoc.rejected_contexts or (secure and secure.was_refused)
        return bool(refused)
    status = assoc.send_c_echo().get("Status")
    assoc.release()
    return bool(status == 0)


def _title(listen: ListenSettings) -> str:
    """The first AE title that may associate and echo, where that is said."""
    both = [title for title in listen.allow_ae_titles if title in listen.echo_ae_titles]
    return (*both, *listen.allow_ae_titles, *listen.echo_ae_titles, listen.ae_title)[0]
