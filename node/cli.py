"""The command `s2node`. A command's code is imported when it is named, so `s2node serve` never loads torch.

:data:`COMMANDS` is the whole table. What needs the `train` extra comes from other rooms by the entry-point
group ``s2node.commands``; a node installed without it says which extra is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

from node.commands.exits import MissingExtra, exit_code_of, words_of

GROUP = "s2node.commands"

COMMANDS: Mapping[str, tuple[str, str]] = {
    "demo": ("node.commands.demo:demo", "A study goes in by C-STORE, two synthetic series come back."),
    "serve": ("node.commands.serve:serve", "Run the node until it is told to stop."),
    "send": ("node.commands.send:send", "Send a folder of DICOM files by C-STORE."),
    "fetch": ("node.commands.fetch:fetch", "Have an archive send a study or a series to this node."),
    "echo": ("node.commands.send:echo", "Ask a DICOM peer whether it is there (C-ECHO)."),
    "translate": (
        "node.commands.translate:translate",
        "Translate the series of a folder, without a network.",
    ),
    "convert": (
        "node.commands.convert:convert",
        "Write the series of a folder as NIfTI volumes, for training.",
    ),
    "verify": ("node.commands.verify:verify", "Say whether files were made by this product, and from what."),
    "jobs": ("node.commands.jobs:app", "See and mend what the node is working on."),
    "doctor": ("node.commands.doctor:doctor", "Check everything the node depends on, with a cure for each."),
    "purge": ("node.commands.purge:purge", "Remove the files of old jobs; their history stays."),
    "quarantine": (
        "node.commands.quarantine:quarantine",
        "List instances that were set aside because other bytes came first under their UID.",
    ),
    "recall": ("node.commands.recall:recall", "Take back every result a model made: rejection notes go out."),
    "models": ("node.commands.models:app", "See, check and change the models in use."),
    "init": ("node.commands.config:init", "Write an example configuration with every setting."),
    "config": ("node.commands.config:app", "Check and show the configuration."),
    "bench": ("node.commands.bench:app", "Measure this machine."),
}
"""Name, where its code is, and what it does: the commands of the node itself."""

PLUGINS: Mapping[str, str] = {
    "train": "Train the stages of a model.",
    "evaluate": "Measure models on phantoms that were not used in training.",
    "compare": "Train every method for the same time and compare them.",
    "export": "Turn a checkpoint into a verified bundle.",
    "bench-engine": "Compare ONNX Runtime with torch on the same graphs.",
}
"""Commands that other rooms hang on this one, and what they do; `bench-engine` is `s2node bench engine`."""
EXTRA = "train"
"""The extra of pyproject.toml that the plug-ins need."""
ROOMS = frozenset({"config", "engine", "node", "train", "export"})


class Lazy(TyperCommand):
    """A command known by its name and its summary; its code is imported when it is run or asked for help."""

    def __init__(self, name: str, entry: EntryPoint, summary: str, extra: str | None = None) -> None:
        super().__init__(name, callback=lambda: None, help=summary, short_help=summary)
        self.entry = entry
        self.extra = extra

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **more: Any) -> Any:
        """The context of the real command: from here on this placeholder is out of the way."""
        return self.load().make_context(info_name, args, parent=parent, **more)

    def load(self) -> Any:
        """The real command; raises MissingExtra where a package it needs is not installed."""
        if self.extra is None:
            _log_quietly()
        try:
            target = self.entry.load()
        except ModuleNotFoundError as error:
            if self.extra is None or (error.name or "").partition(".")[0] in ROOMS:
                raise
            raise MissingExtra(str(self.name), self.extra, str(error.name)) from None
        if isinstance(target, typer.Typer):
            return typer.main.get_command(target)
        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        alone.command()(target)
        return typer.main.get_command(alone)


def _log_quietly() -> None:
    """Only what goes wrong is logged, and to standard error, unless the command says otherwise."""
    from config.settings import LogSettings  # noqa: PLC0415
    from node import log as node_log  # noqa: PLC0415

    node_log.configure(LogSettings(level="warning"))


def plugins() -> dict[str, Lazy]:
    """Every command of the entry-point group, installed by us or by others, not imported yet."""
    return {
        entry.name: Lazy(entry.name, entry, PLUGINS.get(entry.name, f"From {entry.value}."), EXTRA)
        for entry in entry_points(group=GROUP)
    }


class Commands(TyperGroup):
    """A group whose commands come from a table and are imported when named."""

    def table(self) -> Mapping[str, TyperCommand]:
        """Commands by name, in the order of the help page."""
        own = {
            name: Lazy(name, EntryPoint(name, target, GROUP), summary)
            for name, (target, summary) in COMMANDS.items()
        }
        return own | {name: lazy for name, lazy in plugins().items() if not name.startswith("bench-")}

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, for the help page and for completion."""
        return [*self.commands, *self.table()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None."""
        return self.commands.get(cmd_name) or self.table().get(cmd_name)


class BenchCommands(Commands):
    """`s2node bench`: what the node measures by itself, and what plug-ins named ``bench-…`` measure."""

    prefix: ClassVar[str] = "bench-"

    def table(self) -> Mapping[str, TyperCommand]:
        """The plug-ins whose names begin with ``bench-``, without it."""
        return {
            name.removeprefix(self.prefix): lazy
            for name, lazy in plugins().items()
            if name.startswith(self.prefix)
        }


app = typer.Typer(
    name="s2node",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"s2node {version('s2node')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and end."),
    ] = False,
) -> None:
    """Virtual contrast for CT: a non-contrast series in, marked synthetic series back. Research use only."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; ends the process with an exit code of :data:`node.commands.exits.EXIT_CODES`."""
    try:
        app(None if args is None else list(args), prog_name="s2node")
    except Exception as error:
        code = exit_code_of(error)
        if code is None:
            raise
        sys.stderr.write(words_of(error) + "\n")
        sys.exit(code)


if __name__ == "__main__":
    main()
