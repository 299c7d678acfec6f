"""One line an event, to standard error: an event in words and a job's number, never a patient.

The rule is kept where lines are written, and :func:`redact` is the net below it: what looks like a UID, a
person's name or a date is replaced in every value, whoever logged it, and of other libraries' records only
the place is kept, since pydicom and pynetdicom put values into their messages.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

from config.settings import LogSettings

UID = re.compile(r"\b\d+(?:\.\d+){4,}\b")
"""Five or more numbers with dots between: a DICOM UID, and not an address or a version."""
DATE = re.compile(r"\b(?:19|20)\d{2}[-./]?(?:0[1-9]|1[0-2])[-./]?(?:0[1-9]|[12]\d|3[01])\b")
"""A calendar day, with or without separators (PS3.5 6.2, VR DA)."""
PERSON = re.compile(r"[^\s^=]+\^[^\s=]*")
"""Two words joined by a caret: a person's name (PS3.5 6.2, VR PN)."""

OUR_ROOMS = ("node", "engine", "config")
STRUCTURE = frozenset({"timestamp", "level", "_record", "_from_structlog"})
"""Keys of a line that nobody writes values into."""

EventDict = MutableMapping[str, Any]


def configure(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send every log line of this process to ``stream`` (standard error) as ``settings`` asks for."""
    out = sys.stderr if stream is None else stream
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[only_the_place, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                renderer(settings, colours=out.isatty()),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for room in OUR_ROOMS:
        logging.getLogger(room).setLevel(settings.level.upper())
    warnings.simplefilter("ignore")  # their text quotes values of data sets
    logging.raiseExceptions = False  # and so would the report of a line that cannot be written


def renderer(settings: LogSettings, *, colours: bool) -> Any:
    """The last step of a line: one JSON object, or text for people."""
    if settings.format == "json":
        return structlog.processors.JSONRenderer()
    return structlog.dev.ConsoleRenderer(colors=colours)


def redact(_logger: Any, _name: str, line: EventDict) -> EventDict:
    """Replace what looks like a patient's UID, name or date in every value of ``line``."""
    for key in [key for key in line if key not in STRUCTURE]:
        if not isinstance(line[key], (int, float, type(None))):
            line[key] = redacted(str(line[key]))
    return line


def redacted(text: str) -> str:
    """``text`` without anything that looks like a UID, a person's name or a date."""
    text = UID.sub("[uid]", text)
    text = PERSON.sub("[name]", text)
    return DATE.sub("[date]", text)


def only_the_place(_logger: Any, _name: str, line: EventDict) -> EventDict:
    """Of another library's record keep who wrote it and where, not what: messages quote data sets."""
    record: logging.LogRecord = line["_record"]
    line["event"] = f"{record.name}: {record.module}.{record.funcName}:{record.lineno}"
    if record.exc_info and record.exc_info[0]:
        line["error"] = record.exc_info[0].__name__
    line.pop("exc_info", None)
    record.exc_info = record.exc_text = None
    return line
