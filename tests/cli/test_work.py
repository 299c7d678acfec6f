"""Translate, convert, models, serve and bench do the node's work, with real models and real files."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from config.settings import StoreDestination
from engine.phantom import PhantomOptions, make_phantom
from node import scu
from node.errors import DestinationUnreachable
from node.outputs import to_bytes
from node.phantom_dicom import phantom_series

OPTIONS = PhantomOptions(shape=(10, 64, 64), spacing_mm=(5.0, 6.0, 6.0), noise_hu=5.0, phases=("ncct",))


@pytest.fixture
def config(tmp_path: Path, run: Callable, translator_bundle: Callable[..., Path]) -> Path:
    """A configuration whose models are quick ones, activated by the command itself."""
    path = tmp_path / "s2node.toml"
    path.write_text(
        f'[storage]\ndata_dir = "{tmp_path / "data"}"\nmin_free_bytes = 0\n'
        '[engine]\nprovider = "cpu"\n[intake]\nmax_pixel_spacing_mm = 8\n'
    )
    for phase in ("arterial", "venous"):
        assert run("models", "activate", translator_bundle(phase), "--config", path).code == 0
    return path


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    folder.mkdir()
    for number, ds in enumerate(phantom_series(make_phantom(3, OPTIONS))):
        (folder / f"{number}.dcm").write_bytes(to_bytes(ds))
    return folder


def test_translate_writes_both_phases_and_says_where(
    run: Callable, config: Path, study: Path, tmp_path: Path
) -> None:
    (study / "notes.txt").write_text("no image")
    ended = run("translate", study, tmp_path / "out", "--config", config, "--json")
    assert ended.code == 0, ended.err
    stray, series = json.loads(ended.out)["series"]
    assert (stray["series_instance_uid"], stray["state"], stray["code"]) == (None, "REJECTED", "NOT-DICOM")
    assert (series["state"], series["code"]) == ("BUILT", None)
    assert {(out["phase"], out["instances"]) for out in series["outputs"]} == {
        ("arterial", 10),
        ("venous", 10),
    }
    for out in series["outputs"]:
        assert len(list(Path(out["folder"]).iterdir())) == 10
        rows = json.loads(run("verify", out["folder"], "--json").out)
        assert {(row["ours"], row["phase"]) for row in rows} == {(True, out["phase"])}
        assert run("verify", out["folder"]).code == 0


def test_translate_shows_people_a_table(run: Callable, config: Path, study: Path, tmp_path: Path) -> None:
    ended = run("translate", study, tmp_path / "out", "--config", config)
    assert ended.code == 0
    assert "BUILT" in ended.out and "arterial:" in ended.out and "(10 instances)" in ended.out


def test_a_rejected_folder_ends_with_3_and_the_code_on_the_last_line(
    run: Callable, config: Path, study: Path, tmp_path: Path
) -> None:
    for path in sorted(study.iterdir())[3:]:
        path.unlink()
    (study / "notes.txt").write_text("no image")
    ended = run("translate", study, tmp_path / "out", "--config", config)
    assert (ended.code, ended.out.splitlines()[-1]) == (3, "TOO-FEW-SLICES")
    ended = run("translate", study, tmp_path / "out", "--config", config, "--json")
    assert (ended.code, ended.err.splitlines()[-1]) == (3, "TOO-FEW-SLICES")
    assert json.loads(ended.out)["series"]


def test_a_folder_of_other_files_ends_with_not_dicom(run: Callable, config: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    assert run("translate", tmp_path / "in", tmp_path / "out", "--config", config).out.endswith("NOT-DICOM\n")


def test_convert_writes_volumes(run: Callable, config: Path, study: Path, tmp_path: Path) -> None:
    ended = run("convert", study, tmp_path / "cases", "--config", config)
    assert ended.code == 0 and (tmp_path / "cases" / "case-0001" / "ct.nii.gz").is_file()
    rows = json.loads(run("convert", study, tmp_path / "cases", "--config", config, "--json").out)
    assert [row["folder"] for row in rows] == [str(tmp_path / "cases" / "case-0002")]


def test_convert_of_nothing_ends_with_3(run: Callable, config: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("no image")
    ended = run("convert", tmp_path / "in", tmp_path / "cases", "--config", config)
    assert (ended.code, ended.out.splitlines()[-1]) == (3, "NOT-DICOM")


def test_models_are_listed_verified_changed_and_changed_back(
    run: Callable, config: Path, translator_bundle: Callable[..., Path]
) -> None:
    rows = json.loads(run("models", "list", "--config", config, "--json").out)
    active = {row["phase"]: row["model_id"] for row in rows if row["active"]}
    assert active == {"arterial": "gain-arterial-1.0.0", "venous": "gain-venous-1.0.0"}
    assert "gain-arterial-1.0.0" in run("models", "list", "--config", config).out
    assert "every digest right" in run("models", "verify", "--config", config).out

    newer = translator_bundle("arterial", version="2.0.0")
    assert "gain-arterial-2.0.0 is active" in run("models", "activate", newer, "--config", config).out
    assert "gain-arterial-1.0.0" in run("models", "rollback", "arterial", "--config", config).out
    changes = json.loads(run("models", "history", "--config", config, "--json").out)
    assert [change["model_id"] for change in changes][:3] == [
        "gain-arterial-1.0.0", "gain-venous-1.0.0", "gain-arterial-2.0.0",
    ]  # fmt: skip
    assert "2.0.0" in run("models", "history", "--config", config).out


def test_a_damaged_model_is_found_and_not_activated(
    run: Callable, config: Path, translator_bundle: Callable[..., Path]
) -> None:
    damaged = translator_bundle("arterial")
    (damaged / "translator.onnx").write_bytes(b"damaged")
    assert run("models", "verify", damaged, "--config", config).code == 78
    ended = run("models", "activate", damaged, "--config", config)
    assert ended.code == 78 and "not a usable bundle" in ended.err
    assert run("models", "rollback", "nowhere", "--config", config).code == 78


def test_serve_answers_until_it_is_told_to_stop(config: Path, free_port: Callable[[], int]) -> None:
    port = free_port()
    config.write_text(config.read_text() + f"[listen]\nport = {port}\n")
    command = [sys.executable, "-m", "node.cli", "serve", "--config", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as served:
        try:
            wait_for_echo(port)
        finally:
            served.send_signal(signal.SIGTERM)
            _, errors = served.communicate(timeout=60)
    assert served.returncode == 0, errors
    assert "node started" in errors


def wait_for_echo(port: int, limit_s: float = 60.0) -> None:
    peer = StoreDestination(name="node", host="127.0.0.1", port=port, ae_title="S2NODE")
    deadline = time.monotonic() + limit_s
    while True:
        try:
            return scu.echo(peer)
        except DestinationUnreachable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def test_serve_with_a_wrong_configuration_ends_with_78(run: Callable, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("[listen]\nport = -1\n")
    assert run("serve", "--config", path).code == 78


def test_bench_receive_says_both_rates_and_their_ratio(run: Callable, tmp_path: Path) -> None:
    options = ("--slices", 3, "--rounds", 1, "--folder", tmp_path)
    measured = json.loads(run("bench", "receive", *options, "--json").out)
    assert set(measured) >= {"instances_per_second", "throwaway_instances_per_second", "ratio", "machine"}
    assert "ratio" in run("bench", "receive", *options).out
