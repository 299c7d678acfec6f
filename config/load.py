"""From a TOML file and the environment to one ``Settings``, or an error that says how to mend it.

The environment wins over the file: ``S2NODE_LISTEN__PORT=11113`` is ``port`` of ``[listen]``; a list or a
whole section is written as JSON (``S2NODE_DESTINATIONS='[{"name": "pacs", …}]'``). Variables without a double
underscore that are no section (``S2NODE_CONFIG``) are not settings and are left alone.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource
from pydantic_settings.exceptions import SettingsError

from config.settings import Settings

PREFIX = "S2NODE_"
DELIMITER = "__"
EXIT_CONFIG = 78
"""Exit status of every command whose configuration is wrong (EX_CONFIG of sysexits.h); systemd does not
restart on it."""
TAGS = frozenset({"cstore", "folder"})


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the configuration: where it was written, its key, its value and what to write
    instead."""

    file: str
    key: str
    value: str
    cure: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key} = {self.value}: {self.cure}"


class ConfigError(Exception):
    """The configuration cannot be used. Every problem found is in ``problems``; the exit status is 78."""

    def __init__(
        self, file: Path | str, key: str, value: object, cure: str, others: tuple[Problem, ...] = ()
    ) -> None:
        self.problems = (Problem(str(file), key, _shown(value), cure), *others)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def load_settings(path: Path | None, env: Mapping[str, str]) -> Settings:
    """The settings of ``path`` (or the defaults), changed by ``env``.

    Raises ConfigError naming file, key, value and cure of every problem found.
    """
    written = _read_toml(path) if path else {}
    spoken = _read_environment(env)
    merged = _merged(written, spoken)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        problems = [_problem(details, merged, spoken, path) for details in error.errors()]
        raise _config_error(problems) from None


def _config_error(problems: list[Problem]) -> ConfigError:
    first, *others = problems
    return ConfigError(first.file, first.key, Raw(first.value), first.cure, tuple(others))


class Raw(str):
    """A value that is already written as it is to be shown."""

    __slots__ = ()


def _shown(value: object) -> str:
    return value if isinstance(value, Raw) else repr(value)


def _read_toml(path: Path) -> dict[str, Any]:
    """The file as nested dictionaries; raises ConfigError where it is absent or no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        cure = f"{error.strerror}: give the path of a readable file, or run `s2node init {path}`"
        raise ConfigError(path, "(file)", str(path), cure) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(path, "(file)", Raw("…"), f"this is no TOML: {error}") from None


def _read_environment(env: Mapping[str, str]) -> dict[str, Any]:
    """The ``S2NODE_…`` variables as nested dictionaries, by pydantic-settings; raises ConfigError."""
    keys = cast("type[BaseSettings]", Settings)  # only its field names are read
    source = EnvSettingsSource(keys, env_prefix=PREFIX, env_nested_delimiter=DELIMITER)
    source.env_vars = {name.lower(): text for name, text in env.items()}
    problems = [_unknown_variable(name, env[name]) for name in sorted(env) if _names_no_section(name)]
    if problems:
        raise _config_error(problems)
    try:
        return dict(source())
    except SettingsError as error:
        section = str(error).partition('field "')[2].partition('"')[0]
        name = PREFIX + section.upper()
        cure = "write a list or a whole section as JSON, or one key as " + f"{name}{DELIMITER}KEY"
        raise ConfigError("environment", name, env.get(name, "…"), cure) from None


def _names_no_section(name: str) -> bool:
    section, nested, _ = name.removeprefix(PREFIX).partition(DELIMITER)
    return name.startswith(PREFIX) and bool(nested) and section.lower() not in Settings.model_fields


def _unknown_variable(name: str, text: str) -> Problem:
    section = name.removeprefix(PREFIX).partition(DELIMITER)[0].lower()
    return Problem("environment", name, _shown(text), _cure_unknown(section, Settings))


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``below`` with the values of ``above`` laid over it, table by table."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _merged(under, value) if isinstance(value, dict) and isinstance(under, dict) else value
    return merged


def _problem(
    details: ErrorDetails, merged: dict[str, Any], spoken: dict[str, Any], path: Path | None
) -> Problem:
    where = [part for part in details["loc"] if part not in TAGS]
    context = details.get("ctx", {})
    if "key" in context:
        where.append(context["key"])
    value = Raw("(absent)") if details["type"] == "missing" else _lookup(merged, where, details["input"])
    from_env = _lookup(spoken, where, None) is not None
    file = "environment" if from_env else str(path or "defaults")
    return Problem(file, _dotted(where), _shown(value), _cure(details, where))


def _dotted(where: list[Any]) -> str:
    """``destinations[0].port`` from ``("destinations", 0, "port")``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    return text.removeprefix(".") or "(file)"


def _lookup(tree: object, where: list[Any], otherwise: object) -> object:
    for part in where:
        try:
            tree = tree[part]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            return otherwise
    return tree


CURES: dict[str, str] = {
    "missing": "required: {about}",
    "int_parsing": "write a whole number: {about}",
    "int_type": "write a whole number: {about}",
    "int_from_float": "write a whole number: {about}",
    "float_parsing": "write a number: {about}",
    "float_type": "write a number: {about}",
    "bool_parsing": "write true or false: {about}",
    "bool_type": "write true or false: {about}",
    "string_type": "write text in quotes: {about}",
    "tuple_type": "write a list in brackets: {about}",
    "path_type": "write a path in quotes: {about}",
    "model_type": "write a table: {about}",
    "model_attributes_type": "write a table: {about}",
    "greater_than_equal": "write {ge} or more: {about}",
    "greater_than": "write more than {gt}: {about}",
    "less_than_equal": "write {le} or less: {about}",
    "literal_error": "write one of {expected}: {about}",
    "union_tag_invalid": 'write kind = "cstore" or kind = "folder"',
    "string_too_short": "write at least {min_length} characters: {about}",
    "string_too_long": "write at most {max_length} characters: {about}",
    "too_short": "write at least {min_length} of them: {about}",
    "string_pattern_mismatch": "write text of the form {pattern}: {about}",
    "value_error": "{error}: {about}",
    "impossible_value": "{cure}",
}
"""What to write instead, by pydantic's type of error."""


def _cure(details: ErrorDetails, where: list[Any]) -> str:
    if details["type"] == "extra_forbidden":
        return _cure_unknown(str(where[-1]), _model_at(where[:-1]))
    about = _about(where)
    template = CURES.get(details["type"], details["msg"].replace("{", "(").replace("}", ")") + ": {about}")
    return template.format(**{"about": about, **details.get("ctx", {})}).removesuffix(": ")


def _cure_unknown(key: str, model: type[BaseModel] | None) -> str:
    known = sorted(model.model_fields) if model else []
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown key; {hint}Known here: {', '.join(known) or 'nothing'}"


def _about(where: list[Any]) -> str:
    """The first sentence of the setting's own description."""
    model = _model_at(where[:-1])
    field = model.model_fields.get(str(where[-1])) if model and where else None
    text = (field.description or "") if field else ""
    return " ".join(text.split()).partition(". ")[0].removesuffix(".")


def _model_at(where: list[Any]) -> type[BaseModel] | None:
    """The class whose keys live at ``where``."""
    model: type[BaseModel] | None = Settings
    for part in where:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(str(part)) if model else None
        model = _model_of(field) if field else None
    return model


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    """The settings class of a section, or of the entries of a list of tables (the first kind of entry)."""
    todo: list[Any] = [field.annotation]
    while todo:
        kind = todo.pop(0)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
        todo.extend(get_args(kind))
    return None
