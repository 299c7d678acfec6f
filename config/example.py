"""The commented example file and the list of settings, read from the settings' own docstrings."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from config.settings import Settings

WIDTH = 100
HEADER = """\
The settings of s2node. Every line below is a comment and shows the default: take away the leading "# " of
what you change. Check it with `s2node config check`. Sizes are in bytes, times in seconds (…_s), lengths in
millimetres (…_mm), numbers of a CT in Hounsfield units (…_hu).
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One setting; ``table`` is ``listen``, ``intake.limits``, ``destinations``, …"""

    table: str
    key: str
    allowed: str
    default: Any
    description: str
    example: Any

    @property
    def shown_default(self) -> str:
        """The default as TOML, or ``required``."""
        return "required" if self.default is PydanticUndefined else toml_value(self.default)


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the file and the settings in it; ``many`` where it may be written several times."""

    name: str
    description: str
    entries: tuple[Entry, ...]
    many: bool = False


def tables() -> tuple[Table, ...]:
    """Every table of the file, in the order of :class:`config.settings.Settings`."""
    return tuple(_tables_of("", Settings))


def _tables_of(prefix: str, model: type[BaseModel]) -> Iterator[Table]:
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        many = get_args(field.annotation)[-1:] == (Ellipsis,)
        for kind in _tables_in(field):
            yield _table(path, kind, many)
            yield from _tables_of(f"{path}.", kind)


def _table(name: str, model: type[BaseModel], many: bool) -> Table:
    entries = tuple(
        _entry(name, key, field) for key, field in model.model_fields.items() if not _tables_in(field)
    )
    return Table(name, _flat(model.__doc__), entries, many)


def _entry(table: str, key: str, field: FieldInfo) -> Entry:
    default = _plain(field.get_default(call_default_factory=True))
    example = field.examples[0] if field.examples else default
    return Entry(table, key, _allowed(field), default, _flat(field.description), example)


def _tables_in(field: FieldInfo) -> list[type[BaseModel]]:
    """The settings classes that are tables of their own: not those that ``true`` stands for."""
    return [] if isinstance(field.default, bool) else _models_in(field.annotation)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes inside a type, in the order they are written."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _allowed(field: FieldInfo) -> str:
    """What may be written, in words: ``whole number, 1 to 65535``."""
    choices = _choices(field.annotation)
    if choices:
        many = get_origin(field.annotation) is tuple
        return ("list of " if many else "") + " or ".join(toml_value(choice) for choice in choices)
    kind = bool if isinstance(field.default, bool) else field.annotation
    noun = NOUNS.get(kind) or ("list" if isinstance(field.default, tuple) else "text")
    return ", ".join(part for part in (noun, _bounds(field.metadata)) if part)


NOUNS: dict[Any, str] = {bool: "true or false", int: "whole number", float: "number"}


def _choices(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    parts = [part for part in get_args(annotation) if part is not Ellipsis]
    return _choices(parts[0]) if len(parts) == 1 else ()


def _bounds(metadata: list[Any]) -> str:
    """``1 to 65535``, ``more than 0``, … from pydantic's constraints."""
    found = {
        name: getattr(item, name)
        for item in metadata
        for name in ("ge", "gt", "le", "lt")
        if getattr(item, name, None) is not None
    }
    low = f"{found['ge']:,}" if "ge" in found else f"more than {found['gt']:,}" if "gt" in found else ""
    high = f"{found['le']:,}" if "le" in found else f"less than {found['lt']:,}" if "lt" in found else ""
    return f"{low} to {high}" if low and high else low and f"{low} or more" if "ge" in found else low or high


def _plain(value: Any) -> Any:
    """A default as plain TOML types, the user's home written as ``~``."""
    if isinstance(value, Path):
        home = Path.home()
        return f"~/{value.relative_to(home).as_posix()}" if value.is_relative_to(home) else value.as_posix()
    return list(value) if isinstance(value, tuple) else value


def _flat(text: str | None) -> str:
    return " ".join((text or "").split())


def toml_value(value: Any) -> str:
    """A boolean, number, text or list as TOML; JSON writes all four the same way."""
    return json.dumps(value, ensure_ascii=False)


def example_toml() -> str:
    """The example file of `s2node init`: every setting with its description, commented out at its default."""
    parts = [_comment(HEADER)]
    for table in tables():
        parts.append(_table_toml(table))
    return "\n\n".join(parts) + "\n"


def _table_toml(table: Table) -> str:
    title = f"[[{table.name}]]" if table.many else f"[{table.name}]"
    lines = [_comment(table.description), f"# {title}" if table.many else title]
    for entry in table.entries:
        lines += ["", _comment(entry.description), f"# {entry.key} = {toml_value(entry.example)}"]
    return "\n".join(lines)


def _comment(text: str) -> str:
    return "\n".join(f"# {line}" for line in textwrap.wrap(text, WIDTH))
