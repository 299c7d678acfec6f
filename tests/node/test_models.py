from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from config.settings import Settings
from engine.errors import BundleInvalid
from node.models import SHIPPED, ModelStore

Write = Callable[..., Path]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate({"storage": {"data_dir": str(tmp_path / "data")}})


@pytest.fixture
def shipped(tmp_path: Path, translator_bundle: Write) -> Path:
    """A folder of shipped bundles, one a phase."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    for phase in ("arterial", "venous"):
        translator_bundle(phase, version="0.0.1").rename(folder / phase)
    return folder


@pytest.fixture
def store(settings: Settings, shipped: Path) -> ModelStore:
    return ModelStore(settings, shipped=shipped, clock=lambda: 1000.0)


def test_the_shipped_bundles_lie_in_the_engine() -> None:
    assert SHIPPED.parts[-2:] == ("engine", "bundles")


def test_without_a_choice_the_shipped_bundles_are_active(store: ModelStore, shipped: Path) -> None:
    assert store.active() == {"arterial": shipped / "arterial", "venous": shipped / "venous"}
    assert store.history() == ()


def test_an_activated_bundle_is_copied_and_active(
    store: ModelStore, shipped: Path, translator_bundle: Write
) -> None:
    folder = translator_bundle("venous", version="2.0.0")
    bundle = store.activate(folder)
    active = store.active()
    assert active["arterial"] == shipped / "arterial"
    assert active["venous"] != folder
    assert store.verify(active["venous"]).digest == bundle.digest
    (change,) = store.history()
    assert (change.at, change.phase, change.model_id) == (1000.0, "venous", "gain-venous-2.0.0")


def test_another_store_sees_the_change_at_once(
    settings: Settings, store: ModelStore, shipped: Path, translator_bundle: Write
) -> None:
    reader = ModelStore(settings, shipped=shipped)
    before = reader.active()["venous"]
    store.activate(translator_bundle("venous", version="2.0.0"))
    assert reader.active()["venous"] != before


def test_rolling_back_walks_through_what_was_active_to_the_shipped_bundle(
    store: ModelStore, shipped: Path, translator_bundle: Write
) -> None:
    for version in ("2.0.0", "3.0.0"):
        store.activate(translator_bundle("venous", version=version))
    assert "2.0.0" in store.rollback("venous").name
    assert "2.0.0" in store.active()["venous"].name
    assert store.rollback("venous") == shipped / "venous"
    assert store.active()["venous"] == shipped / "venous"
    with pytest.raises(BundleInvalid, match="no earlier model"):
        store.rollback("venous")
    assert len(store.history()) == 4


def test_activating_the_same_bundle_twice_is_one_step_back(
    store: ModelStore, shipped: Path, translator_bundle: Write
) -> None:
    folder = translator_bundle("venous", version="2.0.0")
    store.activate(folder)
    store.activate(folder)
    assert store.rollback("venous") == shipped / "venous"


def test_a_damaged_bundle_is_not_activated_and_nothing_changes(
    store: ModelStore, translator_bundle: Write
) -> None:
    folder = translator_bundle("venous", version="2.0.0")
    (folder / "translator.onnx").write_bytes(b"damaged")
    before = store.active()
    with pytest.raises(BundleInvalid):
        store.activate(folder)
    assert store.active() == before


def test_a_rollback_to_a_bundle_that_is_gone_changes_nothing(
    settings: Settings, tmp_path: Path, translator_bundle: Write
) -> None:
    store = ModelStore(settings, shipped=tmp_path / "nothing shipped")
    store.activate(translator_bundle("venous", version="2.0.0"))
    before = store.active()
    with pytest.raises(BundleInvalid):
        store.rollback("venous")
    assert store.active() == before


def test_the_listing_shows_every_bundle_and_what_is_wrong_with_it(
    tmp_path: Path, shipped: Path, translator_bundle: Write
) -> None:
    more = tmp_path / "more"
    more.mkdir()
    translator_bundle("venous", version="5.0.0").rename(more / "five")
    (more / "broken").mkdir()
    (more / "broken" / "bundle.json").write_text("{}")
    (more / "no bundle").mkdir()
    settings = Settings.model_validate(
        {"storage": {"data_dir": str(tmp_path / "data")}, "engine": {"bundles_dir": str(more)}}
    )
    store = ModelStore(settings, shipped=shipped)
    store.activate(store.find("gain-venous-5.0.0"))
    rows = {row.folder: row for row in store.list()}
    assert len(rows) == 5
    assert rows[more / "broken"].problem
    assert not rows[shipped / "venous"].active
    assert rows[shipped / "arterial"].active
    assert rows[store.active()["venous"]].active
    assert rows[more / "five"].model_version == "5.0.0"


def test_a_model_is_found_by_path_id_or_digest(store: ModelStore, translator_bundle: Write) -> None:
    folder = translator_bundle("venous", version="2.0.0")
    assert store.find(str(folder)) == folder
    digest = store.activate(folder).digest
    assert store.find("gain-venous-2.0.0") == store.find(digest) == store.active()["venous"]
    with pytest.raises(BundleInvalid, match="no known model"):
        store.find("gain-venous-9.9.9")


def test_no_bundle_at_all_is_an_error_with_words(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid, match="none was activated"):
        ModelStore(settings, shipped=tmp_path / "nothing").active()


def test_only_the_phases_that_are_asked_for_are_made(shipped: Path, tmp_path: Path) -> None:
    def active(*phases: str) -> Mapping[str, Path]:
        values = {"storage": {"data_dir": str(tmp_path)}, "engine": {"phases": phases}}
        return ModelStore(Settings.model_validate(values), shipped=shipped).active()

    assert active("venous") == {"venous": shipped / "venous"}
    assert active("venous", "arterial") == active()
    with pytest.raises(BundleInvalid, match=r"no model is active for delayed, which engine\.phases asks for"):
        active("venous", "delayed")


@pytest.mark.parametrize("content", ["", "{", '{"format": 2}', '{"format": 1, "other": 1}'])
def test_an_unreadable_choice_is_an_error_and_not_the_shipped_model(
    settings: Settings, store: ModelStore, content: str
) -> None:
    folder = settings.storage.data_dir / "models"
    folder.mkdir(parents=True)
    (folder / "active.json").write_text(content)
    with pytest.raises(BundleInvalid, match=r"active\.json"):
        store.active()


def test_an_interrupted_installation_is_not_taken_for_a_bundle(
    settings: Settings, store: ModelStore, translator_bundle: Write
) -> None:
    folder = translator_bundle("venous", version="2.0.0")
    bundle = store.verify(folder)
    name = f"{bundle.manifest.model_id}-{bundle.digest[:12]}"
    partial = settings.storage.data_dir / "models" / name
    partial.mkdir(parents=True)
    (partial / "translator.onnx").write_bytes(b"half")
    store.activate(folder)
    assert store.verify(store.active()["venous"]).digest == bundle.digest
    assert json.loads((partial / "bundle.json").read_text())["model_id"] == bundle.manifest.model_id
