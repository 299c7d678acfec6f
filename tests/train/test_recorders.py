"""Numbers and pictures of a run reach the people who watch it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train import run as run_module
from train.budget import Budget, Every
from train.config import ExtraMissing, LoopConfig, RecordConfig
from train.pictures import Sample, draw_samples
from train.run import Monitor

X = torch.linspace(-1, 1, 4 * 8 * 8).reshape(1, 1, 4, 8, 8)
SAMPLE = Sample(X, X.flip(-1), {"stage1": X, "model": X.clamp_max(0)})


def test_a_picture_is_drawn_and_shown_in_tensorboard(tmp_path: Path) -> None:
    file = tmp_path / "pictures" / "step-0000003.png"
    draw_samples(file, [SAMPLE, SAMPLE], (-200.0, 400.0), "autoencoder venous, step 3")
    assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with Monitor(tmp_path, Budget(LoopConfig(), step=3), "stage") as monitor:
        monitor.record({"loss/rec": 0.5})
        monitor.picture(file)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["images"] == ["samples"]
    assert [(e.step, e.value) for e in events.Scalars("loss/rec")] == [(3, 0.5)]


class Unreachable:
    """A server that went away."""

    def __init__(self) -> None:
        self.asked = 0

    def scalar(self, name: str, value: float, step: int) -> None:
        self.asked += 1
        raise ConnectionError("nobody answers")

    def picture(self, name: str, file: Path, step: int) -> None:
        raise ConnectionError("nobody answers")

    def close(self) -> None:
        raise ConnectionError("nobody answers")


def test_a_recorder_that_fails_is_a_line_in_the_log_and_hears_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gone = Unreachable()
    open_recorders = run_module.open_recorders
    monkeypatch.setattr(run_module, "open_recorders", lambda *asked: [gone, *open_recorders(*asked)])
    with Monitor(tmp_path, Budget(LoopConfig(), step=3), "stage") as monitor:
        for value in (0.5, 0.25):
            monitor.record({"loss/rec": value, "loss/sim": value})
    assert gone.asked == 1
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "nothing more is recorded by Unreachable: nobody answers"
    ]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("loss/sim")] == [0.5, 0.25]


def test_all_ranks_but_the_first_are_silent(tmp_path: Path) -> None:
    with Monitor(tmp_path, Budget(LoopConfig()), "stage", speaks=False) as monitor:
        monitor.record({"loss/rec": 0.5})
    assert monitor.latest == {"loss/rec": 0.5}
    assert not list(tmp_path.iterdir())


def test_mlflow_that_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    config = RecordConfig(mlflow=(tmp_path / "mlruns").as_uri())
    with (
        pytest.raises(ExtraMissing, match=r"record\.mlflow needs MLflow: pip install 's2node\[mlflow\]'"),
        Monitor(tmp_path, Budget(LoopConfig()), "stage", config),
    ):
        pass


@pytest.mark.skipif(not importlib.util.find_spec("mlflow"), reason="the extra mlflow is not installed")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_gets_numbers_and_pictures_in_one_run_for_a_resumed_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient  # noqa: PLC0415

    config = RecordConfig(mlflow=(tmp_path / "mlruns").as_uri())
    file = tmp_path / "pictures" / "step-0000001.png"
    draw_samples(file, [SAMPLE], (-200.0, 400.0), "title")
    for step in (1, 2):
        with Monitor(tmp_path, Budget(LoopConfig(), step=step), "autoencoder venous", config) as monitor:
            monitor.record({"loss/rec": 1 / step})
            monitor.picture(file)
    client = MlflowClient(config.mlflow)
    experiment = client.get_experiment_by_name("s2node")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "autoencoder venous"
    assert [m.value for m in client.get_metric_history(run.info.run_id, "loss/rec")] == [1.0, 0.5]
    assert [f.path for f in client.list_artifacts(run.info.run_id, "samples")] == [f"samples/{file.name}"]


def test_every_says_yes_when_its_time_has_come_and_never_with_none() -> None:
    assert not Every(minutes=1.0)()
    assert not Every(minutes=0.0, last=-1e6)()
    often = Every(minutes=1.0, last=-1e6)
    assert (often(), often()) == (True, False)
