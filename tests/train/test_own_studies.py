"""DICOM of two patients → convert → prepare → two steps of training, each by what the one before wrote."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import SimpleITK as sitk

from config.intake import IntakeSettings
from engine.cases import read_cases
from engine.phantom import PhantomOptions, make_phantom
from node.convert import convert
from node.outputs import to_bytes
from node.phantom_dicom import phantom_series
from train import checkpoint
from train.checkpoint import CheckpointUnusable
from train.config import TrainConfig, load_train_config
from train.prepare.config import PrepareConfig
from train.prepare.run import prepare
from train.s2ldm.train_autoencoder import train_autoencoder
from train.s2ldm.train_diffusion import load_frozen
from train.split import seed_without_empty_side

REPOSITORY = Path(__file__).resolve().parents[2]
OPTIONS = PhantomOptions((24, 64, 64), (8.0, 6.0, 6.0), 6.0, phases=("ncct", "venous"))


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "dicom"
    for seed in (1, 2):
        phantom = make_phantom(seed, OPTIONS)
        for phase in OPTIONS.phases:
            (folder / str(seed) / phase).mkdir(parents=True)
            for number, ds in enumerate(phantom_series(phantom, phase)):
                (folder / str(seed) / phase / f"{number}.dcm").write_bytes(to_bytes(ds))
    return folder


def test_studies_become_cases_pairs_and_steps(
    studies: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = convert(studies, tmp_path / "cases", IntakeSettings())
    assert [(row.phase, row.code) for row in rows] == [("ncct", None), ("venous", None)] * 2
    patients = {row.patient for row in read_cases(tmp_path / "cases")}
    seed = seed_without_empty_side(patients, 0.4, 0.0)
    assert len(patients) == 2
    assert seed is not None
    config = load_train_config(REPOSITORY / "config" / "train" / "tiny.toml")
    prepared = prepare(
        tmp_path / "cases",
        tmp_path / "pairs",
        PrepareConfig(
            spacing_mm=config.data.spacing_mm, min_slices=8, registration="none", grid_mm=8.0,
            seed=seed, validation=0.4, test=0.0,
        ),
    )  # fmt: skip
    assert prepared.refused == []
    assert prepared.advice is None
    data = config.data.model_copy(update={"source": "folder", "folder": str(tmp_path / "pairs")})
    loop = config.autoencoder.loop.model_copy(update={"steps": 2})
    stage = config.autoencoder.model_copy(update={"loop": loop})
    short = config.model_copy(update={"data": data, "autoencoder": stage})
    file = train_autoencoder(short, tmp_path / "run", tmp_path / "cache")
    other_patients_are_refused(short, file, tmp_path, caplog)


def other_patients_are_refused(
    config: TrainConfig, file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """To go on and to stand on: another split is refused, other volumes are said, old files go on."""
    run, cache = file.parent, tmp_path / "cache"
    listed = tmp_path / "pairs" / "pairs.tsv"
    plain, volume = listed.read_text(), next((tmp_path / "pairs").rglob("venous.nii.gz"))
    listed.write_text(
        plain.replace("\ttrain", "\t+").replace("\tvalidation", "\ttrain").replace("\t+", "\tvalidation")
    )
    with pytest.raises(CheckpointUnusable, match="was learnt by another split of the patients"):
        train_autoencoder(config, run, cache, resume=True)
    with pytest.raises(CheckpointUnusable, match="was learnt by another split of the patients"):
        load_frozen(run, config)
    old = checkpoint.load(file)
    checkpoint.save(file, replace(old, extras={}))
    load_frozen(run, config)
    checkpoint.save(file, old)
    listed.write_text(plain)
    load_frozen(run, config)
    assert "the volumes have changed" not in caplog.text
    sitk.WriteImage(sitk.ReadImage(str(volume)) + 1.0, str(volume))
    load_frozen(run, config)
    train_autoencoder(config, run, cache, resume=True)
    assert caplog.text.count("the volumes have changed") == 2
