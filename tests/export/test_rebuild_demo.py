"""One command makes the shipped bundles anew."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from engine.bundle import read_bundle
from export import rebuild_demo
from export.restore import rebuild
from train.config import TrainConfig, load_train_config

REPOSITORY = Path(__file__).resolve().parents[2]


def as_toml(values: dict[str, object], name: str = "") -> str:
    """Enough of TOML for a configuration."""
    tables = {k: v for k, v in values.items() if isinstance(v, dict)}
    plain = {k: v for k, v in values.items() if not isinstance(v, dict) and v is not None}
    lines = [f"[{name}]"] if name else []
    lines += [f"{k} = {text(v)}" for k, v in plain.items()]
    return "\n".join([*lines, *(as_toml(v, f"{name}.{k}".strip(".")) for k, v in tables.items())]) + "\n"


def text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(list(value)) if isinstance(value, tuple) else repr(value)


def test_a_rebuild_makes_the_bundles_of_both_phases_and_goes_on_where_it_was(
    few_steps: TrainConfig, tmp_path: Path, monkeypatch: object
) -> None:
    config = tmp_path / "few.toml"
    config.write_text(as_toml(few_steps.model_dump()))
    assert load_train_config(config) == few_steps
    app = rebuild_demo.typer.Typer()
    app.command()(rebuild_demo.main)
    places = [
        "--runs",
        str(tmp_path / "runs"),
        "--bundles",
        str(tmp_path / "bundles"),
        "--config",
        str(config),
    ]
    monkeypatch.setattr(rebuild_demo, "METRIC_CASES", 0)  # type: ignore[attr-defined]
    assert CliRunner().invoke(app, [*places, "--phase", "venous"]).exit_code == 0
    bundle = read_bundle(tmp_path / "bundles" / "venous")
    assert bundle.manifest.phase == "venous"
    read_back = rebuild(bundle).autoencoder.exit
    assert read_back.soft_window, "stage 3 widened the exit, and so does what is read back"
    assert read_back.fine is not None
    commands = rebuild_demo.commands("venous", tmp_path / "runs", tmp_path / "bundles", config)
    assert all("--resume" in command for command in commands[:-1])


def test_the_shipped_bundles_are_of_the_demo_configuration() -> None:
    demo = load_train_config(REPOSITORY / "config" / "train" / "demo.toml")
    for phase in rebuild_demo.PHASES:
        folder = rebuild_demo.SHIPPED / phase
        manifest = read_bundle(folder).manifest
        trained = TrainConfig.model_validate(manifest.run["config"])
        assert trained.digest("joint") == demo.with_phase(phase).digest("joint")
        assert manifest.phase == phase
    size = sum(f.stat().st_size for f in rebuild_demo.SHIPPED.rglob("*") if f.is_file())
    assert size <= 12_000_000
