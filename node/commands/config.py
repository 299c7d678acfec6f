"""`s2node init` and `s2node config check | show | schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from config.example import example_toml
from config.settings import Settings
from node.commands.exits import FAILED
from node.commands.options import AsJson, ConfigFile, config_file, settings_of
from node.commands.screen import err, say, show_json

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Check and show the configuration.",
)


def init(
    path: Annotated[Path, typer.Argument(help="File to write; - writes to standard output.")] = Path(
        "s2node.toml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write an example configuration with every setting."""
    if str(path) == "-":
        say(example_toml().rstrip())
        return
    if path.exists() and not force:
        err.print(f"{path} exists; --force replaces it")
        raise typer.Exit(FAILED)
    path.write_text(example_toml(), encoding="utf-8")
    say(f"wrote {path}; every line in it is a comment that shows the default")


@app.command()
def check(config: ConfigFile = None) -> None:
    """Read the configuration and list what is wrong with it; exit 78 if anything is."""
    settings = settings_of(config)
    say(f"{config_file(config) or 'the defaults'}: valid, digest {settings.digest()[:12]}")


@app.command()
def show(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show every setting as the node would use it, from the file, the environment and the defaults."""
    values = settings_of(config).model_dump(mode="json")
    if as_json:
        show_json(values)
        return
    for name, value in _flat("", values):
        say(f"{name} = {json.dumps(value, ensure_ascii=False)}")


@app.command()
def schema() -> None:
    """Write the JSON schema of the configuration, for an editor."""
    show_json(Settings.model_json_schema())


def _flat(prefix: str, value: object) -> list[tuple[str, object]]:
    """``listen.port``, ``destinations[0].name``, … with their values."""
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in _flat(f"{prefix}.{key}".lstrip("."), inner)]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [row for number, inner in enumerate(value) for row in _flat(f"{prefix}[{number}]", inner)]
    return [(prefix, value)]
