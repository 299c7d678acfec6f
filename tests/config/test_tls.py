"""``tls = true`` stands for the files of ``[tls]``, and asks for them where they are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from config.load import ConfigError, load_settings
from config.settings import ListenSettings, Settings

FILES = {"certificate": "/a.pem", "key": "/a.key", "authorities": "/ca.pem"}
PEER: dict[str, Any] = {"name": "pacs", "host": "h", "ae_title": "PACS", "tls": True}
ASKER = {"ae_title": "CT1", "host": "h", "tls": True}


def test_a_peer_gets_the_files_of_the_node() -> None:
    made = Settings.model_validate({"tls": FILES, "destinations": [PEER], "requesters": [ASKER]})
    assert made.destinations[0].tls == made.requesters[0].tls == made.tls  # type: ignore[union-attr]


def test_a_worker_gets_the_settings_as_they_are() -> None:
    """They go to it as JSON."""
    for written in ({}, {"tls": FILES, "listen": {"tls": True}, "destinations": [PEER]}):
        made = Settings.model_validate(written)
        assert Settings.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    "section", [{"listen": {"tls": True}}, {"destinations": [PEER]}, {"requesters": [ASKER]}]
)
def test_tls_without_files_is_an_error(section: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="tls = true needs them"):
        Settings.model_validate(section)


def test_files_belong_together(tmp_path: Path) -> None:
    file = tmp_path / "s2node.toml"
    file.write_text('[tls]\ncertificate = "/a.pem"\nauthorities = "/ca.pem"\n')
    with pytest.raises(ConfigError, match=r"tls\.key = .*belong together"):
        load_settings(file, {})


def test_something_else_than_true_or_false_is_named(tmp_path: Path) -> None:
    file = tmp_path / "s2node.toml"
    file.write_text('[[destinations]]\nname = "pacs"\nhost = "h"\nae_title = "P"\ntls = "on"\n')
    with pytest.raises(ConfigError, match=r"destinations\[0\]\.tls = 'on': write true or false"):
        load_settings(file, {})


def test_tls_is_enough_to_listen_beyond_this_machine() -> None:
    beyond = {"host": "0.0.0.0", "allow_ae_titles": ("CT1",)}
    assert ListenSettings.model_validate({**beyond, "tls": True}).tls
    with pytest.raises(ValueError, match="write tls = true"):
        ListenSettings.model_validate(beyond)


def test_what_is_no_table_is_left_to_be_named() -> None:
    with pytest.raises(ValueError, match="valid"):
        Settings.model_validate("settings")
