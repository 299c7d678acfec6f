"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from config.load import load_settings
from config.settings import Settings
from node.users import user_of

SYSTEM_FILE = Path("/etc/s2node/s2node.toml")
"""Read where no other file is named and this one exists."""

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="S2NODE_CONFIG",
        help=f"Configuration file (TOML). Without it {SYSTEM_FILE} where that exists, else the defaults.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to standard output, for a script.")]


def config_file(named: Path | None) -> Path | None:
    """The file to read: the one that was named, else the system's where it exists."""
    return named or (SYSTEM_FILE if SYSTEM_FILE.exists() else None)


def as_owner_of(path: Path) -> Path:
    """``path``; raises PermissionError where it belongs to another user.

    Files that root leaves beside the node's own (SQLite's log among them) would lock the node out.
    """
    if path.exists() and path.stat().st_uid != os.geteuid():
        owner = user_of(path.stat().st_uid)
        raise PermissionError(
            f"{path} belongs to {owner}: run the command as that user, sudo -u {owner} s2node …"
        )
    return path


def settings_of(named: Path | None) -> Settings:
    """The settings of the command; raises ConfigError."""
    return load_settings(config_file(named), os.environ)
