"""`s2node serve`: the node in the foreground, as systemd runs it."""

from __future__ import annotations

import typer

from node import service
from node.commands.options import ConfigFile, settings_of


def serve(config: ConfigFile = None) -> None:
    """Run the node until it is told to stop.

    Ends on SIGTERM or SIGINT with 0; with 78 where the configuration or the models cannot work on this
    machine.
    """
    code = service.serve(settings_of(config))
    if code:
        raise typer.Exit(code)
