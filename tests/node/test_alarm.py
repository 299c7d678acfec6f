"""What a peer tries and may not is told to whoever keeps account of it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import trustme
from pydicom.uid import CTImageStorage
from pynetdicom import AE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from config.settings import Settings
from node.alarm import Alert, AlertKind
from node.ledger import LEDGER_FILE, Ledger
from node.scp import Scp
from node.spool import Spool

Start = Callable[..., AbstractContextManager[tuple[int, list[Alert]]]]


@pytest.fixture
def listening(tmp_path: Path) -> Start:
    """``with listening(…) as (port, alerts)``: a listener and what it tells."""

    @contextmanager
    def start(**sections: object) -> Iterator[tuple[int, list[Alert]]]:
        listen = {"port": 0, **sections.pop("listen", {})}  # type: ignore[dict-item]
        settings = Settings.model_validate(
            {"listen": listen, "storage": {"data_dir": tmp_path / "node", "min_free_bytes": 0}, **sections}
        )
        alerts: list[Alert] = []
        with Ledger(tmp_path / "node" / LEDGER_FILE) as ledger:
            spool = Spool(tmp_path / "node")
            with Scp(settings, ledger, spool, alarm=alerts.append) as scp:
                yield scp.port, alerts

    return start


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end and not condition():
        time.sleep(0.02)
    assert condition()


def call(port: int, title: str, called: str = "S2NODE") -> None:
    ae = AE(ae_title=title)
    ae.add_requested_context(Verification)
    assoc = ae.associate("127.0.0.1", port, ae_title=called)
    if assoc.is_established:
        assoc.release()


def test_a_peer_that_is_not_let_in_is_told_with_its_title_and_address(listening: Start) -> None:
    with listening(listen={"allow_ae_titles": ["CT1"]}) as (port, alerts):
        call(port, "CT1")
        call(port, "ROGUE")
        call(port, "CT1", called="OTHER")
        until(lambda: len(alerts) == 2)
    assert alerts == [
        Alert(AlertKind.REFUSED, "calling AE title not in allow_ae_titles", "127.0.0.1", "ROGUE"),
        Alert(AlertKind.REFUSED, "called AE title not recognised", "127.0.0.1", "CT1"),
    ]


def test_a_listener_that_is_full_tells_so(listening: Start) -> None:
    with listening(listen={"max_associations": 1}) as (port, alerts):
        ae = AE(ae_title="CT1")
        ae.add_requested_context(CTImageStorage)
        held = ae.associate("127.0.0.1", port, ae_title="S2NODE")
        assert held.is_established
        call(port, "CT2")
        until(lambda: alerts)
        held.release()
    assert {alert.kind for alert in alerts} <= {AlertKind.CROWDED, AlertKind.REFUSED}
    assert alerts[0].address == "127.0.0.1"


def test_plain_text_and_wrong_certificates_on_a_port_for_tls_are_told(
    listening: Start, tmp_path: Path
) -> None:
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    files = {name: tmp_path / f"{name}.pem" for name in ("certificate", "key", "authorities")}
    leaf.cert_chain_pems[0].write_to_path(files["certificate"])
    leaf.private_key_pem.write_to_path(files["key"])
    authority.cert_pem.write_to_path(files["authorities"])
    with listening(listen={"tls": True}, tls=files) as (port, alerts):
        call(port, "CT1")
        until(lambda: len(alerts) == 1)
        with socket.create_connection(("127.0.0.1", port)) as wire:
            wire.sendall(b"\x16\x03\x01\x00\x02hi")
        until(lambda: len(alerts) == 2)
    assert [alert.kind for alert in alerts] == [AlertKind.TLS] * 2
    assert alerts[0].address == "127.0.0.1"


def test_connections_beyond_what_is_heard_at_once_are_told(listening: Start) -> None:
    with listening(listen={"max_associations": 1, "max_associations_per_address": 1}) as (port, alerts):
        wires = [socket.create_connection(("127.0.0.1", port)) for _ in range(12)]
        until(lambda: alerts)
        for wire in wires:
            wire.close()
    assert alerts[0].kind is AlertKind.CROWDED
