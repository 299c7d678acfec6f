"""`s2node send` and `s2node echo`: the node as a client, for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from config.settings import StoreDestination, TlsSettings
from node import scu
from node.commands.exits import FAILED
from node.commands.options import AsJson, ConfigFile, settings_of
from node.commands.screen import progress_bar, say, show_json, show_table

Host = Annotated[str, typer.Argument(help="Host name or address of the peer.")]
PortNumber = Annotated[int, typer.Argument(min=1, max=65535, help="TCP port of the peer.")]
Called = Annotated[str, typer.Option("--to", help="AE title of the peer.")]
Calling = Annotated[str, typer.Option("--from", help="AE title to call ourselves.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for an answer.")]
Secure = Annotated[
    bool, typer.Option("--tls", help="Speak TLS, with the certificates in [tls] of the configuration.")
]
TlsName = Annotated[
    str | None,
    typer.Option("--tls-name", help="Name that the peer's certificate has to carry; without it, HOST."),
]


def send(
    folder: Annotated[Path, typer.Argument(exists=True, help="Folder of DICOM files, or one file.")],
    host: Host = "127.0.0.1",
    port: PortNumber = 11112,
    called: Called = "S2NODE",
    calling: Calling = "S2NODE-SEND",
    timeout_s: Timeout = 60.0,
    tls: Secure = False,
    tls_name: TlsName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Send a folder of DICOM files by C-STORE.

    Exit 0 if the peer has every DICOM instance of the folder, 1 if not.
    """
    peer = _peer(host, port, called, calling, timeout_s, _files(tls, config), tls_name or "")
    paths = scu.dicom_files(folder)
    with progress_bar(f"to {called}", total=len(paths)) as progress:
        sent = scu.send(peer, paths, progress)
    rows = [(scu.outcome_words(outcome), count) for outcome, count in sorted(sent.outcomes.items(), key=str)]
    rows += [("not a DICOM instance", len(sent.not_dicom))] if sent.not_dicom else []
    if as_json:
        show_json({"stored": sent.stored, "outcomes": dict(rows)})
    else:
        show_table(("answer", "instances"), rows)
    if not sent.is_complete:
        raise typer.Exit(FAILED)


def echo(
    host: Host = "127.0.0.1",
    port: PortNumber = 11112,
    called: Called = "S2NODE",
    calling: Calling = "S2NODE-SEND",
    timeout_s: Timeout = 10.0,
    tls: Secure = False,
    tls_name: TlsName = None,
    config: ConfigFile = None,
) -> None:
    """Ask a DICOM peer whether it is there (C-ECHO)."""
    scu.echo(_peer(host, port, called, calling, timeout_s, _files(tls, config), tls_name or ""))
    say(f"{called} at {host}:{port} answers")


def _files(tls: bool, config: Path | None) -> TlsSettings | bool:
    """The certificates to call with; False for plain text, where no configuration is read."""
    return settings_of(config).tls if tls else False


def _peer(
    host: str,
    port: int,
    called: str,
    calling: str,
    timeout_s: float,
    tls: TlsSettings | bool,
    tls_name: str,
) -> StoreDestination:
    try:
        return StoreDestination(
            name="peer",
            host=host,
            port=port,
            ae_title=called,
            calling_ae_title=calling,
            tls=tls,
            tls_name=tls_name,
            connect_timeout_s=timeout_s,
            acse_timeout_s=timeout_s,
            dimse_timeout_s=timeout_s,
            network_timeout_s=timeout_s,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise typer.BadParameter(f"{first['input']!r}: {first['msg']}") from None
