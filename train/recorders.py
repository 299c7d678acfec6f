"""Where a run's numbers and pictures go: TensorBoard always, MLflow where a URI is given."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch.utils.tensorboard import SummaryWriter

from train.config import ExtraMissing, RecordConfig

MLFLOW_RUN = "mlflow-run"


class Recorder(Protocol):
    """One place for numbers and pictures."""

    def scalar(self, name: str, value: float, step: int) -> None:
        """A number of this step."""
        ...

    def picture(self, name: str, file: Path, step: int) -> None:
        """A PNG of this step."""
        ...

    def close(self) -> None:
        """Nothing more will come from this process."""
        ...


def open_recorders(folder: Path, config: RecordConfig, title: str) -> list[Recorder]:
    """All that ``config`` names. Raises ExtraMissing where a package is not installed."""
    recorders: list[Recorder] = [TensorBoard(folder)]
    if config.mlflow:
        recorders.append(MLflow(folder, config, title))
    return recorders


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, folder: Path) -> None:
        self.writer = SummaryWriter(folder / "tensorboard")

    def scalar(self, name: str, value: float, step: int) -> None:
        """A point of the curve ``name``."""
        self.writer.add_scalar(name, value, step)

    def picture(self, name: str, file: Path, step: int) -> None:
        """A picture in the row ``name``."""
        from matplotlib.image import imread  # noqa: PLC0415

        self.writer.add_image(name, imread(file)[..., :3], step, dataformats="HWC")

    def close(self) -> None:
        """Flush."""
        self.writer.close()


class MLflow:
    """One MLflow run a folder, whether resumed or not; its name is stage and phase, never a patient's."""

    def __init__(self, folder: Path, config: RecordConfig, title: str) -> None:
        try:
            from mlflow.tracking import MlflowClient  # noqa: PLC0415 - an extra
        except ImportError:
            raise ExtraMissing("record.mlflow", "MLflow", "mlflow") from None
        self.client = MlflowClient(tracking_uri=config.mlflow)
        self.run_id = self._run_of(folder / MLFLOW_RUN, config.experiment, title)

    def _run_of(self, file: Path, experiment: str, title: str) -> str:
        if file.exists():
            return file.read_text().strip()
        found = self.client.get_experiment_by_name(experiment)
        place = found.experiment_id if found else self.client.create_experiment(experiment)
        run_id: str = self.client.create_run(place, run_name=title).info.run_id
        file.write_text(run_id + "\n")
        return run_id

    def scalar(self, name: str, value: float, step: int) -> None:
        """A metric."""
        self.client.log_metric(self.run_id, name, value, step=step)

    def picture(self, name: str, file: Path, step: int) -> None:
        """An artifact under ``name``."""
        self.client.log_artifact(self.run_id, str(file), name)

    def close(self) -> None:
        """The run has ended; a resumed one goes on under the same id."""
        self.client.set_terminated(self.run_id)
