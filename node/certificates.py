"""What `s2node doctor` says about the files of ``[tls]``: do they serve, and for how long."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from config.settings import TlsSettings
from node.tls import CertificatesUnusable, server_context

DAY_S: Final = 86_400.0
OTHERS_MAY_READ: Final = stat.S_IROTH | stat.S_IWOTH
USES: Final = {
    ExtendedKeyUsageOID.SERVER_AUTH: "to be called (server authentication)",
    ExtendedKeyUsageOID.CLIENT_AUTH: "to call (client authentication)",
}
"""What the node needs its certificate for (RFC 5280 4.2.1.12)."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong with a file, what to do about it, and whether TLS fails for it already."""

    what: str
    cure: str
    is_fatal: bool


def flaws(tls: TlsSettings, now: float) -> Iterator[Flaw]:
    """Everything wrong with the files; raises CertificatesUnusable where TLS cannot be spoken with them."""
    server_context(tls)
    certificate, key, authorities = Path(tls.certificate), Path(tls.key), Path(tls.authorities)
    [leaf, *_] = _certificates(certificate)
    yield from _term_of("certificate", certificate, leaf, tls.warn_days, now)
    yield from _uses_of(leaf, certificate)
    if key.stat().st_mode & OTHERS_MAY_READ:
        yield Flaw(f"{key}: every user may read or change this key", f"chmod o= {key}", False)
    for authority in _certificates(authorities):
        yield from _term_of("authority", authorities, authority, tls.warn_days, now)
    if tls.revoked:
        yield from _revocations(Path(tls.revoked), now)


def days_left(tls: TlsSettings, now: float) -> float:
    """Days for which the node's certificate is valid yet; raises CertificatesUnusable."""
    [leaf, *_] = _certificates(Path(tls.certificate))
    return (leaf.not_valid_after_utc.timestamp() - now) / DAY_S


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CertificatesUnusable(f"{path}: not a file of PEM certificates") from error


def _term_of(kind: str, path: Path, one: x509.Certificate, warn_days: int, now: float) -> Iterator[Flaw]:
    """Whether a certificate is valid now, and for long enough."""
    days = (one.not_valid_after_utc.timestamp() - now) / DAY_S
    renew = "have it renewed and replace the file; the node takes it over by itself"
    is_ours = kind == "certificate"
    if now < one.not_valid_before_utc.timestamp():
        yield Flaw(f"{path}: a {kind} that is not valid yet", "look at the clock, or wait", is_ours)
    elif days < 0:
        yield Flaw(f"{path}: a {kind} that ran out {-days:.0f} days ago", renew, is_ours)
    elif days < warn_days:
        yield Flaw(f"{path}: a {kind} that runs out in {days:.0f} days", renew, False)


def _uses_of(leaf: x509.Certificate, path: Path) -> Iterator[Flaw]:
    try:
        allowed = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    for use, words in USES.items():
        if use not in allowed and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in allowed:
            yield Flaw(f"{path}: not made {words}", "ask for one with both extended key usages", False)


def _revocations(path: Path, now: float) -> Iterator[Flaw]:
    """Lists that are too old: OpenSSL then refuses every peer of that authority."""
    for block in path.read_bytes().split(PEM_END)[:-1]:
        due = x509.load_pem_x509_crl(block + PEM_END).next_update_utc
        if due is not None and due < datetime.fromtimestamp(now, UTC):
            yield Flaw(
                f"{path}: a revocation list that is too old", "fetch the newest one from the authority", True
            )


PEM_END: Final = b"-----END X509 CRL-----"
