"""DIMSE over TLS: who is let in, who is not, and that a silent peer holds up nobody."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from structlog.testing import capture_logs
from typer.testing import CliRunner

from config.settings import Settings, StoreDestination, TlsSettings
from node import watchdog
from node.certificates import flaws
from node.cli import app
from node.doctor import Level, check
from node.errors import DestinationRefused, DestinationUnreachable
from node.ledger import LEDGER_FILE, Ledger
from node.scp import Scp
from node.scu import echo, send
from node.spool import Spool
from node.tls import CertificatesUnusable, client_context, server_context, tls_args

Make = Callable[..., Any]
NOW = time.time()
DAY = timedelta(days=1)


@pytest.fixture
def ours(authority: Make) -> Any:
    return authority("ours")


@contextmanager
def listening(folder: Path, tls: dict[str, Any], **listen: Any) -> Iterator[Scp]:
    settings = Settings.model_validate(
        {
            "listen": {"port": 0, "tls": bool(tls), "acse_timeout_s": 20, **listen},
            "tls": tls,
            "storage": {"data_dir": folder, "min_free_bytes": 0},
        }
    )
    with Ledger(Spool(folder).root / LEDGER_FILE) as ledger, Scp(settings, ledger, Spool(folder)) as scp:
        yield scp


def node_at(port: int, tls: dict[str, Any] | None, **changes: Any) -> StoreDestination:
    """The listener as somebody with the certificates ``tls`` calls it."""
    told = {"name": "node", "host": "127.0.0.1", "port": port, "ae_title": "S2NODE", **changes}
    return StoreDestination.model_validate({**told, "tls": tls or False})


# who is let in


def test_both_sides_show_certificates_and_instances_arrive(
    tmp_path: Path, ours: Any, ct_files: list[Path]
) -> None:
    with listening(tmp_path / "data", ours.tls()) as scp:
        peer = node_at(scp.port, ours.tls(name="ct1"))
        echo(peer)
        assert send(peer, ct_files).stored == len(ct_files)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_profile_is_tls_1_2_and_1_3_with_ephemeral_keys_and_gcm(
    tmp_path: Path, ours: Any, version: ssl.TLSVersion
) -> None:
    with listening(tmp_path / "data", ours.tls()) as scp:
        context = client_context(TlsSettings.model_validate(ours.tls(name="ct1")))
        context.maximum_version = version
        with (
            socket.create_connection(("127.0.0.1", scp.port), timeout=20) as wire,
            context.wrap_socket(wire, server_hostname="127.0.0.1") as secured,
        ):
            name, _, bits = secured.cipher() or ("", "", 0)
            assert secured.version() == version.name.replace("_", ".")
            assert "GCM" in name
            assert bits >= 128


def test_an_older_version_is_refused(tmp_path: Path, ours: Any) -> None:
    with listening(tmp_path / "data", ours.tls()) as scp:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning):
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        with (
            socket.create_connection(("127.0.0.1", scp.port), timeout=20) as wire,
            pytest.raises(OSError, match=r"(?i)alert|version|closed|eof"),
        ):
            context.wrap_socket(wire).recv(1)


def refused_callers(ours: Any, authority: Make) -> dict[str, dict[str, Any] | None]:
    rogue = authority("rogue")
    expired = datetime.now(UTC) - DAY
    return {
        "plain": None,
        "rogue": rogue.tls(believes=ours.file),
        "expired": ours.tls(name="expired", not_before=expired - DAY, not_after=expired),
    }


@pytest.mark.parametrize("who", ["plain", "rogue", "expired"])
def test_a_caller_without_a_good_certificate_is_refused(
    tmp_path: Path, ours: Any, authority: Make, ct_files: list[Path], who: str
) -> None:
    with listening(tmp_path / "data", ours.tls()) as scp:
        tls = refused_callers(ours, authority)[who]
        with pytest.raises(DestinationUnreachable, match="TLS: .*alert" if tls else "nobody answered"):
            send(node_at(scp.port, tls), ct_files)
        echo(node_at(scp.port, ours.tls(name="ct1")))
    assert list((tmp_path / "data" / "inbox").iterdir()) == []


def test_an_anonymous_caller_is_refused(tmp_path: Path, ours: Any) -> None:
    with listening(tmp_path / "data", ours.tls()) as scp:
        context = ssl.create_default_context(cafile=ours.file)
        with (
            socket.create_connection(("127.0.0.1", scp.port), timeout=20) as wire,
            context.wrap_socket(wire, server_hostname="127.0.0.1") as secured,
            pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"),
        ):
            secured.recv(1)


def test_a_revoked_caller_is_refused(tmp_path: Path, ours: Any) -> None:
    caller = ours.tls(name="ct1")
    tls = {**ours.tls(), "revoked": revocation_list(ours, caller["certificate"])}
    with listening(tmp_path / "data", tls) as scp:
        with pytest.raises(DestinationUnreachable, match="revoked"):
            echo(node_at(scp.port, caller))
        echo(node_at(scp.port, ours.tls(name="ct2")))


def revocation_list(authority: Any, *revoked: Path, due: timedelta = DAY) -> Path:
    now = datetime.now(UTC)
    issuer = x509.load_pem_x509_certificate(authority.ca.cert_pem.bytes())
    key = serialization.load_pem_private_key(authority.ca.private_key_pem.bytes(), None)
    made = x509.CertificateRevocationListBuilder(issuer.subject, now - 10 * DAY, now + due)
    for path in revoked:
        number = x509.load_pem_x509_certificate(path.read_bytes()).serial_number
        entry = x509.RevokedCertificateBuilder(number, now - DAY).build()
        made = made.add_revoked_certificate(entry)
    path = Path(authority.folder / "revoked.pem")
    path.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return path


# whom we believe


def test_a_peer_that_is_not_who_was_called_is_refused(tmp_path: Path, ours: Any) -> None:
    with listening(tmp_path / "data", ours.tls("pacs.example.org")) as scp:
        caller = ours.tls(name="ct1")
        with pytest.raises(DestinationUnreachable, match="mismatch"):
            echo(node_at(scp.port, caller))
        echo(node_at(scp.port, caller, tls_name="pacs.example.org"))


def test_a_peer_of_another_authority_is_refused(tmp_path: Path, ours: Any, authority: Make) -> None:
    rogue = authority("rogue")
    with (
        listening(tmp_path / "data", rogue.tls(believes=ours.file)) as scp,
        pytest.raises(DestinationUnreachable, match="certificate is not believed"),
    ):
        echo(node_at(scp.port, ours.tls(name="ct1")))


def test_a_peer_that_speaks_plain_text_is_refused(store_peer: Make, ours: Any) -> None:
    with pytest.raises(DestinationUnreachable):
        echo(node_at(store_peer().port, ours.tls(), ae_title="PEER", acse_timeout_s=2, connect_timeout_s=2))


def test_a_plain_port_says_that_it_is_none(tmp_path: Path, ours: Any) -> None:
    with (
        capture_logs() as logs,
        listening(tmp_path / "data", {}) as scp,
        pytest.raises(DestinationUnreachable),
    ):
        echo(node_at(scp.port, ours.tls()))
    assert "the peer speaks TLS, and this port plain text" in [line.get("reason") for line in logs]


# silent peers


def test_an_echo_is_answered_while_three_peers_are_silent(tmp_path: Path, ours: Any) -> None:
    with listening(tmp_path / "data", ours.tls()) as scp:
        address = ("127.0.0.1", scp.port)
        silent = [socket.create_connection(address, timeout=20) for _ in range(3)]
        silent[1].sendall(b"\x16\x03\x01")  # half a handshake
        silent[2].sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40))
        echo(node_at(scp.port, ours.tls(name="ct1"), acse_timeout_s=10))  # half of what the silent ones have
        assert all(is_open(peer) for peer in silent), "it was answered before they were sent away"
        for peer in silent:
            peer.close()


def is_open(peer: socket.socket) -> bool:
    peer.setblocking(False)
    try:
        return bool(peer.recv(1))
    except BlockingIOError:
        return True


@pytest.mark.parametrize("said", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
def test_a_handshake_that_does_not_end_loses_its_connection(tmp_path: Path, ours: Any, said: bytes) -> None:
    with (
        listening(tmp_path / "data", ours.tls(), acse_timeout_s=0.3) as scp,
        socket.create_connection(("127.0.0.1", scp.port), timeout=20) as peer,
    ):
        peer.sendall(said)
        assert peer.recv(100) == b""


def test_stopping_waits_for_no_silent_peer(tmp_path: Path, ours: Any) -> None:
    with listening(tmp_path / "data", ours.tls()) as scp:
        server = scp._listener._server
        assert server is not None
        peer = socket.create_connection(("127.0.0.1", scp.port), timeout=20)
        while not server._waiting:
            time.sleep(0.01)
    assert peer.recv(1) == b""
    peer.close()


# the files


def test_a_renewed_certificate_is_taken_over_without_a_restart(tmp_path: Path, ours: Any) -> None:
    caller = ours.tls(name="ct1")
    with listening(tmp_path / "data", ours.tls("old.example.org")) as scp:
        echo(node_at(scp.port, caller, tls_name="old.example.org"))
        ours.tls("new.example.org")
        echo(node_at(scp.port, caller, tls_name="new.example.org"))
        (ours.folder / "node.pem").write_text("half a cert")
        echo(node_at(scp.port, caller, tls_name="new.example.org"))
        (ours.folder / "node.pem").unlink()
        echo(node_at(scp.port, caller, tls_name="new.example.org"))


@pytest.mark.parametrize("name", ["certificate", "key", "authorities", "revoked"])
def test_a_file_that_cannot_be_used_is_named(ours: Any, name: str) -> None:
    broken = ours.folder / "broken.pem"
    broken.write_text("no certificate")
    for path in (broken, ours.folder / "absent.pem"):
        tls = TlsSettings.model_validate({**ours.tls(), name: path})
        with pytest.raises(CertificatesUnusable, match=path.name):
            server_context(tls)
        with pytest.raises(DestinationUnreachable, match="TLS: "):
            echo(node_at(1, tls.model_dump()))


def test_a_key_of_another_certificate_and_one_with_a_pass_phrase_are_no_keys(ours: Any) -> None:
    tls = ours.tls()
    with pytest.raises(CertificatesUnusable, match="mismatch"):
        server_context(TlsSettings.model_validate({**tls, "key": ours.tls(name="other")["key"]}))
    key = serialization.load_pem_private_key(tls["key"].read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    tls["key"].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)  # type: ignore[union-attr]
    )
    with pytest.raises(CertificatesUnusable, match="key"):
        server_context(TlsSettings.model_validate(tls))


def test_no_files_are_no_tls(ours: Any) -> None:
    assert tls_args(node_at(104, None)) is None
    with pytest.raises(CertificatesUnusable, match="names no certificate"):
        client_context(TlsSettings())


# the watchdog


def test_the_watchdog_calls_over_tls(tmp_path: Path, ours: Any, authority: Make) -> None:
    tls = TlsSettings.model_validate(ours.tls("node.example.org"))
    with listening(tmp_path / "data", tls.model_dump()) as scp:
        listen = scp._listener.listen
        assert watchdog.answers(listen, scp.port, tls)
        stranger = TlsSettings.model_validate(authority("rogue").tls())
        assert watchdog.answers(listen, scp.port, stranger), "to be refused is an answer"
        gone = tls.model_copy(update={"certificate": tmp_path / "gone.pem"})
        assert watchdog.answers(listen, scp.port, gone)
        port = scp.port
    assert not watchdog.answers(listen, port, tls)


# the doctor


def told(tls: dict[str, Any], now: float = NOW) -> list[tuple[bool, str]]:
    return [(flaw.is_fatal, flaw.what) for flaw in flaws(TlsSettings.model_validate(tls), now)]


def test_certificates_in_order_have_no_flaw(ours: Any) -> None:
    assert told({**ours.tls(), "revoked": revocation_list(ours)}) == []


def test_a_certificate_that_runs_out_is_told_in_time(ours: Any) -> None:
    soon = ours.tls(name="soon", not_after=datetime.now(UTC) + 10 * DAY)
    [(is_fatal, what)] = told(soon)
    assert not is_fatal
    assert "soon.pem: a certificate that runs out in 10 days" in what
    [(is_fatal, what)] = told(soon, NOW + 20 * 86_400)
    assert is_fatal
    assert "ran out 10 days ago" in what
    assert (True, f"{soon['certificate']}: a certificate that is not valid yet") in told(soon, 9e8)


def test_a_key_that_others_may_read_is_told(ours: Any) -> None:
    tls = ours.tls()
    tls["key"].chmod(0o644)
    [(is_fatal, what)] = told(tls)
    assert not is_fatal
    assert "every user may read" in what


def test_an_old_revocation_list_is_told_before_it_refuses_everybody(ours: Any) -> None:
    old = revocation_list(ours, due=-DAY)
    assert told({**ours.tls(), "revoked": old}) == [(True, f"{old}: a revocation list that is too old")]


def test_a_certificate_for_one_direction_only_is_told(ours: Any) -> None:
    issuer = x509.load_pem_x509_certificate(ours.ca.cert_pem.bytes())
    ca_key = serialization.load_pem_private_key(ours.ca.private_key_pem.bytes(), None)
    tls = ours.tls()
    old = x509.load_pem_x509_certificate(tls["certificate"].read_bytes())
    for uses in ([x509.ExtendedKeyUsageOID.SERVER_AUTH], None):
        made = x509.CertificateBuilder(
            issuer.subject, old.subject, old.public_key(), old.serial_number,
            old.not_valid_before_utc, old.not_valid_after_utc,
        )  # fmt: skip
        if uses:
            made = made.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        signed = made.sign(ca_key, hashes.SHA256())  # type: ignore[arg-type]
        tls["certificate"].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        expected = [(False, f"{tls['certificate']}: not made to call (client authentication)")]
        assert told(tls) == (expected if uses else [])


def test_the_doctor_looks_at_the_certificates(ours: Any, tmp_path: Path) -> None:
    def levels(tls: dict[str, Any]) -> set[Level]:
        settings = Settings.model_validate({"tls": tls, "storage": {"data_dir": tmp_path}})
        return {each.level for each in check("certificates", settings, NOW)}

    assert levels({}) == levels(ours.tls()) == {Level.OK}
    assert levels(ours.tls(name="soon", not_after=datetime.now(UTC) + DAY)) == {Level.WARNING}
    (ours.folder / "node.key").unlink()
    assert levels({**ours.tls(name="soon"), "key": ours.folder / "node.key"}) == {Level.PROBLEM}


def test_a_refused_role_is_no_connection_problem(tmp_path: Path, ours: Any) -> None:
    """Over TLS too, the lists say who may do what."""
    with listening(tmp_path / "data", ours.tls(), echo_ae_titles=("ADMIN",)) as scp:
        caller = ours.tls(name="ct1")
        with pytest.raises(DestinationRefused, match="presentation contexts"):
            echo(node_at(scp.port, caller))
        echo(node_at(scp.port, caller, calling_ae_title="ADMIN"))


# the commands


def test_people_echo_and_send_over_tls_too(tmp_path: Path, ours: Any, ct_files: list[Path]) -> None:
    tls = ours.tls(name="ct1")
    config = tmp_path / "s2node.toml"
    config.write_text("[tls]\n" + "".join(f'{name} = "{path}"\n' for name, path in tls.items()))
    secure = ["--tls", "--config", str(config)]
    with listening(tmp_path / "data", ours.tls()) as scp:
        for command in (["echo"], ["send", str(ct_files[0].parent)]):
            done = CliRunner().invoke(app, [*command, "127.0.0.1", str(scp.port), *secure])
            assert done.exit_code == 0, done.output
        done = CliRunner().invoke(app, ["echo", "127.0.0.1", str(scp.port), *secure, "--tls-name", "other"])
        assert done.exit_code != 0
