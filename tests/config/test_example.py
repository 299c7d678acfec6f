"""The example file of `s2node init` holds every setting and is itself a valid configuration."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from config.example import example_toml, tables
from config.load import load_settings
from config.settings import Settings


@pytest.fixture(autouse=True)
def _no_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)


def uncommented() -> str:
    """The example with every setting and every table switched on."""
    return re.sub(r"^# ((?:[a-z_]+ = |\[\[).*)$", r"\1", example_toml(), flags=re.MULTILINE)


def test_every_setting_has_a_description_that_ends_as_a_sentence() -> None:
    bare = [
        f"{table.name}.{entry.key}"
        for table in tables()
        for entry in table.entries
        if not re.search(r"[.…]$", entry.description)
    ]
    assert bare == []
    assert [table.name for table in tables() if not table.description] == []


def test_every_setting_with_a_unit_in_its_name_names_the_unit_in_its_description() -> None:
    units = {"_s": "econds|wait", "_bytes": "ytes", "_mm": "mm", "_hu": "HU|Hounsfield"}
    silent = [
        f"{table.name}.{entry.key}"
        for table in tables()
        for entry in table.entries
        for suffix, words in units.items()
        if entry.key.endswith(suffix) and not re.search(words, entry.description)
    ]
    assert silent == []


def test_every_setting_is_in_the_example() -> None:
    text = example_toml()
    missing = [
        f"{table.name}.{entry.key}"
        for table in tables()
        for entry in table.entries
        if f"\n# {entry.key} = " not in text
    ]
    assert missing == []
    assert {table.name.partition(".")[0] for table in tables()} == set(Settings.model_fields)


def test_the_example_as_written_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "s2node.toml"
    path.write_text(example_toml(), encoding="utf-8")
    assert load_settings(path, {}) == Settings()


def test_the_example_with_every_line_switched_on_is_valid_and_keeps_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "s2node.toml"
    path.write_text(uncommented(), encoding="utf-8")
    settings = load_settings(path, {})
    assert [destination.kind for destination in settings.destinations] == ["cstore", "folder"]
    lists = {"destinations": (), "requesters": (), "archives": ()}
    assert settings.model_copy(update=lists) == Settings()


def test_no_line_of_the_example_is_longer_than_a_terminal() -> None:
    assert max(len(line) for line in example_toml().splitlines()) <= 120
