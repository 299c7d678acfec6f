"""A configuration is valid, or every problem in it is named with its file, key, value and cure."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.load import ConfigError, load_settings
from config.settings import FolderDestination, Settings, StoreDestination


def loaded(tmp_path: Path, text: str, env: dict[str, str] | None = None) -> Settings:
    path = tmp_path / "s2node.toml"
    path.write_text(text, encoding="utf-8")
    return load_settings(path, env or {})


def refused(tmp_path: Path, text: str, env: dict[str, str] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text, env)
    return caught.value


def only_problem(error: ConfigError) -> tuple[str, str, str]:
    assert len(error.problems) == 1, str(error)
    problem = error.problems[0]
    return problem.key, problem.value, problem.cure


def test_without_a_file_the_defaults_are_valid_and_listen_on_this_machine_only() -> None:
    settings = load_settings(None, {})
    assert settings == Settings()
    assert settings.listen.host == "127.0.0.1"
    assert settings.storage.data_dir.is_absolute()


def test_the_data_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert Settings().storage.data_dir == tmp_path / "s2node"


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    env = {"S2NODE_LISTEN__PORT": "11200", "S2NODE_LISTEN__ALLOW_AE_TITLES": '["CT1", "CT2"]'}
    settings = loaded(tmp_path, "[listen]\nport = 11199\nmax_associations = 3\n", env)
    assert (settings.listen.port, settings.listen.max_associations) == (11200, 3)
    assert settings.listen.allow_ae_titles == ("CT1", "CT2")


def test_variables_that_are_no_settings_are_left_alone() -> None:
    assert load_settings(None, {"S2NODE_CONFIG": "x", "S2NODE_TEST_CT": "y", "PATH": "z"}) == Settings()


def test_destinations_are_tables_and_a_table_without_a_kind_is_a_peer(tmp_path: Path) -> None:
    text = (
        '[[destinations]]\nname = "pacs"\nhost = "127.0.0.1"\nae_title = "PACS"\n'
        '[[destinations]]\nname = "disk"\nkind = "folder"\npath = "~/out"\n'
    )
    peer, folder = loaded(tmp_path, text).destinations
    assert isinstance(peer, StoreDestination) and peer.port == 104
    assert isinstance(folder, FolderDestination) and folder.path == Path.home() / "out"


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    error = refused(tmp_path, '[listen]\nprot = 1\nport = "abc"\n[log]\nlevel = "loud"\n')
    assert {problem.key for problem in error.problems} == {"listen.prot", "listen.port", "log.level"}
    assert all(problem.file.endswith("s2node.toml") for problem in error.problems)


def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    key, value, cure = only_problem(refused(tmp_path, "[listen]\nprot = 11112\n"))
    assert (key, value) == ("listen.prot", "11112")
    assert "did you mean port?" in cure


def test_an_unknown_section_is_refused(tmp_path: Path) -> None:
    assert "did you mean listen?" in str(refused(tmp_path, "[listne]\nport = 1\n"))


def test_an_unknown_environment_section_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"environment: S2NODE_LISTNE__PORT = '1'.*did you mean listen"):
        load_settings(None, {"S2NODE_LISTNE__PORT": "1"})


@pytest.mark.parametrize(
    ("text", "key", "cure"),
    [
        ('[listen]\nport = "abc"', "listen.port", "write a whole number"),
        ("[listen]\nport = 70000", "listen.port", "write 65535 or less"),
        ("[listen]\nport = -1", "listen.port", "write 0 or more"),
        ("[listen]\nae_title = 5", "listen.ae_title", "write text in quotes"),
        ('[listen]\nae_title = "THIS IS FAR TOO LONG"', "listen.ae_title", "1 to 16 printable"),
        ('[listen]\nallow_addresses = ["10.0.0.0/99"]', "listen.allow_addresses[0]", "10.1.2.0/24"),
        ('[listen]\nother_classes = "maybe"', "listen.other_classes", "write one of 'store' or 'refuse'"),
        ("[settle]\nquiet_s = 10\nmax_wait_s = 5", "settle.max_wait_s", "write at least quiet_s, 10"),
        ("[worker]\nheartbeat_s = 31", "worker.heartbeat_s", "at most half of lease_s, 30"),
        ("[retry]\nfirst_s = 20\nmax_s = 10", "retry.max_s", "write at least first_s, 20"),
        ("[retry]\njitter = nan", "retry.jitter", "finite"),
        ("[outputs]\nkinds = []", "outputs.kinds", "write at least 1 of them"),
        ('[outputs]\nkinds = ["ct_series", "ct_series"]', "outputs.kinds", "name each kind once"),
        ('[outputs]\ndescription_prefix = "ARTERIAL"', "outputs.description_prefix", "contain SYNTHETIC"),
        ('[outputs]\nmanufacturer = "Müller"', "outputs.manufacturer", "of the form"),
        ('[outputs]\nstation_name = ""', "outputs.station_name", "at least 1"),
        ('[outputs]\ndevice_uid = "1.02.3"', "outputs.device_uid", "no leading zeros"),
        (f'[outputs]\ndevice_uid = "1.{"2" * 70}"', "outputs.device_uid", "at most 64"),
        ('[[destinations]]\nname = "pacs"\nhost = "h"', "destinations[0].ae_title", "required"),
        ('[[destinations]]\nname = "p q"\nhost = "h"\nae_title = "A"', "destinations[0].name", "of the form"),
        ('[[destinations]]\nkind = "fax"', "destinations[0]", 'kind = "cstore" or kind = "folder"'),
        ("[[destinations]]\nkind = 'folder'\nname = 'd'\npath = 3", "destinations[0].path", "write a path"),
        ("listen = 3", "listen", "write a table"),
        ("[intake]\nmin_kvp = 200", "intake.min_kvp", "write at most max_kvp"),
        ("[intake.limits]\nmax_rosw = 200", "intake.limits.max_rosw", "did you mean max_rows?"),
    ],
)
def test_an_impossible_value_names_its_key_and_its_cure(
    tmp_path: Path, text: str, key: str, cure: str
) -> None:
    problem_key, _, problem_cure = only_problem(refused(tmp_path, text))
    assert problem_key == key
    assert cure in problem_cure


def test_a_listener_beyond_this_machine_says_that_it_is_plain_text_and_whom_it_answers(
    tmp_path: Path,
) -> None:
    assert "allow_plain_text" in str(refused(tmp_path, '[listen]\nhost = "0.0.0.0"'))
    open_to_all = '[listen]\nhost = "0.0.0.0"\nallow_plain_text = true\n'
    assert "allow_ae_titles" in str(refused(tmp_path, open_to_all))
    assert loaded(tmp_path, open_to_all + 'allow_ae_titles = ["CT1"]').listen.host == "0.0.0.0"
    assert loaded(tmp_path, open_to_all + "allow_unknown_peers = true").listen.allow_unknown_peers


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.3.2.1", "::1"])
def test_loopback_needs_no_list_of_peers(tmp_path: Path, host: str) -> None:
    assert loaded(tmp_path, f'[listen]\nhost = "{host}"').listen.host == host


def test_two_destinations_of_one_name_are_refused(tmp_path: Path) -> None:
    table = '[[destinations]]\nname = "p"\nhost = "h"\nae_title = "A"\n'
    assert "a name of its own: p" in str(refused(tmp_path, table * 2))


def test_a_problem_in_the_environment_is_blamed_on_the_environment(tmp_path: Path) -> None:
    problem = refused(tmp_path, "[worker]\ncount = 2\n", {"S2NODE_WORKER__COUNT": "many"}).problems[0]
    assert (problem.file, problem.key, problem.value) == ("environment", "worker.count", "'many'")


def test_a_section_in_the_environment_that_is_no_json_is_refused(tmp_path: Path) -> None:
    assert "as JSON" in str(refused(tmp_path, "", {"S2NODE_DESTINATIONS": "pacs:104"}))


def test_an_absent_file_and_a_damaged_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="s2node init"):
        load_settings(tmp_path / "absent.toml", {})
    assert "this is no TOML" in str(refused(tmp_path, "[listen\n"))


def test_the_message_has_one_line_a_problem(tmp_path: Path) -> None:
    error = refused(tmp_path, "[listen]\nport = -1\nmax_associations = 0\n")
    assert len(str(error).splitlines()) == 2


def test_the_digest_follows_what_changes_a_result_and_nothing_else(tmp_path: Path) -> None:
    plain = Settings().digest()
    for text in (
        "[listen]\nport = 1",
        "[engine]\nthreads = 3",
        '[engine]\nphases = ["venous"]',
        '[outputs]\nkinds = ["enhancement_map"]',
    ):
        assert loaded(tmp_path, text).digest() == plain, text
    for text in ("[engine]\nseed = 3", '[outputs]\nstation_name = "B"', "[intake]\nmin_slices = 9"):
        assert loaded(tmp_path, text).digest() != plain, text


@given(st.dictionaries(st.sampled_from(sorted(Settings.model_fields)), st.integers() | st.text(), min_size=1))
def test_nonsense_in_place_of_a_section_is_a_configuration_error(nonsense: dict[str, object]) -> None:
    env = {f"S2NODE_{name.upper()}": str(value) for name, value in nonsense.items()}
    with pytest.raises(ConfigError) as caught:
        load_settings(None, env)
    assert caught.value.problems
