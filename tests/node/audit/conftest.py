"""What the tests of the audit share: an account of an empty ledger, and an audit repository over TLS."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from config.settings import Settings
from node.audit.account import Account
from node.ledger import LEDGER_FILE, Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "node" / LEDGER_FILE) as opened:
        yield opened


@pytest.fixture
def account(ledger: Ledger) -> Account:
    return Account(Settings(), ledger)


class Repository:
    """A syslog receiver over TLS (RFC 5425) that demands a certificate; ``messages`` are what it took.

    ``breaks`` is how many connections it breaks off before it has read anything; one that is not ``polite``
    hangs up instead of ending TLS.
    """

    def __init__(self, authority: trustme.CA, *, port: int = 0, breaks: int = 0, polite: bool = True) -> None:
        self.polite = polite
        self.messages: list[bytes] = []
        self.breaks = breaks
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(self._context)
        authority.configure_trust(self._context)
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                plain, _ = self._socket.accept()
            except OSError:
                return
            with plain:
                plain.settimeout(10)
                self._hear(plain)

    def _hear(self, plain: socket.socket) -> None:
        if self.breaks:
            self.breaks -= 1
            return
        try:
            with self._context.wrap_socket(plain, server_side=True) as wire:
                self._read(wire)
                if self.polite:
                    wire.unwrap()
        except OSError:
            return

    def _read(self, wire: ssl.SSLSocket) -> None:
        """Frames until the sender ends: a length, a space, as many bytes (RFC 5425 4.3)."""
        while True:
            digits = b""
            while not digits.endswith(b" "):
                byte = wire.recv(1)
                if not byte:
                    return
                digits += byte
            message = b""
            while len(message) < int(digits):
                message += wire.recv(int(digits) - len(message))
            self.messages.append(message)


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA, tmp_path: Path) -> dict[str, Any]:
    """The node's ``[tls]``."""
    files = {name: tmp_path / f"{name}.pem" for name in ("certificate", "key", "authorities")}
    leaf = authority.issue_cert("s2node.example.org")
    files["certificate"].write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(files["key"])
    authority.cert_pem.write_to_path(files["authorities"])
    return dict(files)


@pytest.fixture
def repository(authority: trustme.CA) -> Iterator[Callable[..., Repository]]:
    """Starts audit repositories and stops them after the test."""
    opened: list[Repository] = []

    def start(**options: Any) -> Repository:
        opened.append(Repository(options.pop("authority", authority), **options))
        return opened[-1]

    yield start
    for each in opened:
        each.stop()
