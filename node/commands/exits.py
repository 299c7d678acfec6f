"""What a command ends with, and which error leads there."""

from __future__ import annotations

from collections.abc import Mapping

from config.load import EXIT_CONFIG, ConfigError
from engine.errors import BundleInvalid, EngineError, ProviderMissing
from node.errors import NodeError, SeriesRejected
from node.ledger.errors import LedgerTooNew

DONE = 0
FAILED = 1
USAGE = 2
REJECTED = 3
CONFIG = EXIT_CONFIG
INTERRUPTED = 130

EXIT_CODES: Mapping[int, str] = {
    DONE: "done",
    FAILED: "something failed, or a job is parked; the last lines say what",
    USAGE: "the command line cannot be understood",
    REJECTED: "the input was rejected; the last line is the code of the rejection",
    CONFIG: "the configuration, a model bundle or the installation is at fault: trying again cannot help",
    INTERRUPTED: "interrupted from the keyboard",
}
"""Every exit code and what it means."""


class MissingExtra(Exception):
    """A command needs packages that a node alone does not have."""

    def __init__(self, command: str, extra: str, module: str) -> None:
        super().__init__(
            f"`s2node {command}` needs the extra {extra!r}, which is not installed (no module {module!r}): "
            f"pip install 's2node[{extra}]'"
        )


EXITS: Mapping[type[Exception], int] = {
    ConfigError: CONFIG,
    MissingExtra: CONFIG,
    BundleInvalid: CONFIG,
    ProviderMissing: CONFIG,
    LedgerTooNew: CONFIG,
    SeriesRejected: REJECTED,
    NodeError: FAILED,
    EngineError: FAILED,
    OSError: FAILED,
}
"""From an error to an exit code; a subclass counts as its nearest base in this table."""


def exit_code_of(error: Exception) -> int | None:
    """The exit code of a foreseen error; None for one that is a bug and deserves its traceback."""
    known = (EXITS[base] for base in type(error).__mro__ if base in EXITS)
    return next(known, None)


def words_of(error: Exception) -> str:
    """The error for a person; of a rejection the last line is its code."""
    if isinstance(error, SeriesRejected):
        return f"rejected: {error.reason}\n{error.code}"
    return f"error: {error}"
