"""The demonstration ends well only if marked series of every phase really came back to the archive."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import dcmread

from engine.phantom import PhantomOptions, make_phantom
from node.archive import Archive
from node.demo import DemoFailed, DemoPlan, run_demo
from node.outputs import to_bytes
from node.phantom_dicom import phantom_series
from node.states import State

SMALL = PhantomOptions(shape=(12, 128, 128), spacing_mm=(7.0, 3.0, 3.0), noise_hu=5.0)


@pytest.fixture
def models(translator_bundle: Callable[..., Path]) -> tuple[Path, ...]:
    return (translator_bundle("arterial"), translator_bundle("venous"))


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Path]:
    """A folder with the phantom as `s2node demo` writes it, changed by ``edit``."""

    def write(edit: Callable[[object], None]) -> Path:
        folder = tmp_path / "study"
        folder.mkdir()
        for number, ds in enumerate(phantom_series(make_phantom(3, SMALL))):
            edit(ds)
            (folder / f"{number}.dcm").write_bytes(to_bytes(ds))
        return folder

    return write


def silent(what: str, share: float) -> None:
    assert 0 <= share <= 1


def test_both_phases_of_a_phantom_come_back_under_its_study(tmp_path: Path, models: tuple[Path, ...]) -> None:
    heard: list[str] = []
    plan = DemoPlan(tmp_path / "demo", seed=3, options=SMALL, models=models, limit_s=120)
    result = run_demo(plan, lambda what, share: heard.append(what))
    assert [job.state for job in result.jobs] == [State.COMMITTED]
    assert sorted(back.phase for back in result.returned) == ["arterial", "venous"]
    source = dcmread(tmp_path / "demo" / "sent" / "0001.dcm")
    for back in result.returned:
        assert len(back.paths) == SMALL.shape[0]
        assert {dcmread(path).StudyInstanceUID for path in back.paths} == {source.StudyInstanceUID}
    assert result.overview is not None and result.overview.read_bytes().startswith(b"\x89PNG")
    assert {row.organ for row in result.organs} >= {"aorta", "liver"}
    assert "sending" in heard and "series 1 synthesis" in heard


def test_the_command_ends_with_3_and_the_code_where_the_series_is_rejected(
    tmp_path: Path, run: Callable, models: tuple[Path, ...], study: Callable[..., Path]
) -> None:
    folder = study(lambda ds: setattr(ds, "ContrastBolusAgent", "OMNIPAQUE 350"))
    ended = run("demo", "--input", folder, "--out", tmp_path / "demo", "--model", models[0], "--limit", 120)
    assert ended.code == 3
    assert ended.out.splitlines()[-1] == "HAS-CONTRAST"
    assert "series 1: REJECTED HAS-CONTRAST" in ended.out


def test_a_folder_is_sent_and_its_series_come_back(
    tmp_path: Path, run: Callable, models: tuple[Path, ...], study: Callable[..., Path]
) -> None:
    folder = study(lambda ds: None)
    (folder / "notes.txt").write_text("no image")
    ended = run(
        "demo", "--input", folder, "--out", tmp_path / "demo", "--model", models[0], "--model", models[1]
    )
    assert ended.code == 0, ended.err
    assert ended.out.count("instances back in the archive") == 2
    assert (tmp_path / "demo" / "overview.png").is_file()


def test_a_folder_without_images_is_said_so(tmp_path: Path, models: tuple[Path, ...]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("no image")
    with pytest.raises(DemoFailed, match="no DICOM instance"):
        run_demo(DemoPlan(tmp_path / "demo", tmp_path / "in", models=models), silent)


def test_waiting_is_bounded(tmp_path: Path, models: tuple[Path, ...]) -> None:
    plan = DemoPlan(tmp_path / "demo", seed=3, options=SMALL, models=models, limit_s=0.5)
    with pytest.raises(DemoFailed, match=r"not back after 0 s: series 1 is RECEIVING"):
        run_demo(plan, silent)


def test_what_would_be_removed_is_not_sent(tmp_path: Path) -> None:
    folder = tmp_path / "demo" / "sent"
    folder.mkdir(parents=True)
    with pytest.raises(DemoFailed, match="choose another --out"):
        run_demo(DemoPlan(tmp_path / "demo", folder), silent)
    assert folder.is_dir()


def test_a_series_the_archive_lost_is_noticed(
    tmp_path: Path, models: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str] = []

    def forgetful(self: Archive, event: object) -> int:
        lost.append("one")
        return 0x0000

    monkeypatch.setattr(Archive, "_store", forgetful)
    plan = DemoPlan(tmp_path / "demo", seed=3, options=SMALL, models=models, limit_s=120)
    with pytest.raises(DemoFailed, match=r"the archive holds 0 of 12 instances"):
        run_demo(plan, silent)
    assert lost


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_shipped_models_bring_both_phases_of_a_whole_phantom_back_within_ten_minutes(
    tmp_path: Path,
) -> None:
    result = run_demo(DemoPlan(tmp_path / "demo", limit_s=600), silent)
    assert sorted(back.phase for back in result.returned) == ["arterial", "venous"]
    assert [len(back.paths) for back in result.returned] == [96, 96]
    for row in result.organs:
        if row.organ in {"aorta", "spleen"}:
            assert abs(row.synthetic_hu - row.true_hu) < abs(row.source_hu - row.true_hu), row
