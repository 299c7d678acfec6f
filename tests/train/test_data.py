"""Crops depend on seed and step alone; cases are prepared once; real pairs come onto one grid."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from engine.bundle import read_bundle
from engine.volume import Geometry, Volume
from train import data as data_module
from train.cli import DEVELOPMENT_SEEDS, HELD_OUT_SEED
from train.config import DataConfig, read_table
from train.data import (
    Pairs,
    data_digest,
    phantom_digest,
    split_digest,
    to_unit,
    training_pairs,
    validation_pairs,
)
from train.real import PairsUnusable, folder_pairs, listed_pairs, onto, read_upright
from train.rows import PRESETS, SHIPPED

REPOSITORY = Path(__file__).resolve().parents[2]

SMALL = DataConfig(
    crop=(8, 16, 16),
    phantom_shape=(12, 32, 32),
    spacing_mm=(12.0, 10.0, 10.0),
    phantoms=2,
    validation_phantoms=1,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def pairs(cache: Path) -> Pairs:
    return training_pairs(SMALL, cache)


def test_the_same_step_gives_the_same_crop(pairs: Pairs) -> None:
    first, again, other = pairs.batch(0, 5, 2), pairs.batch(0, 5, 2), pairs.batch(0, 6, 2)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == (2, 1, 8, 16, 16)


def test_crops_are_in_the_unit_range_and_the_phases_differ(pairs: Pairs) -> None:
    x_n, x_c = pairs.batch(0, 0, 4)
    assert x_n.min() >= -1
    assert x_c.max() <= 1
    assert (x_c - x_n).mean() > 0


def test_a_second_run_reads_what_the_first_prepared(
    pairs: Pairs, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(data_module, "make_phantom", refuse)
    again = training_pairs(SMALL, cache)
    assert torch.equal(again.batch(0, 1, 1)[1], pairs.batch(0, 1, 1)[1])


def test_both_phases_share_one_cache(pairs: Pairs, cache: Path) -> None:
    arterial = SMALL.model_copy(update={"phase": "arterial"})
    assert phantom_digest(arterial) == phantom_digest(SMALL)
    assert phantom_digest(SMALL.model_copy(update={"noise_hu": (1.0, 2.0)})) != phantom_digest(SMALL)


def test_validation_uses_other_patients(pairs: Pairs, cache: Path) -> None:
    held_out = validation_pairs(SMALL, cache)
    assert len(held_out.cases) == 1
    assert not any(np.array_equal(held_out.cases[0].source, case.source) for case in pairs.cases)


def test_training_never_uses_the_seeds_of_the_evaluation() -> None:
    used = range(SMALL.first_seed, SMALL.first_seed + DataConfig().phantoms)
    assert max(used) < DataConfig().validation_seed < 9000


def test_nothing_is_learnt_from_or_published_of_the_seeds_for_development() -> None:
    configs = REPOSITORY / "config" / "train"
    used: set[int] = set()
    for file in configs.rglob("*.toml"):
        data = DataConfig.model_validate(read_table(file).get("data", {}))
        used |= {*range(data.first_seed, data.first_seed + data.phantoms)}
        used |= {*range(data.validation_seed, data.validation_seed + data.validation_phantoms)}
    for folder in SHIPPED.iterdir():
        used |= {*read_bundle(folder).manifest.metrics["seeds"]}
    for preset in PRESETS.values():
        used |= {*range(preset.first_seed, preset.first_seed + preset.cases)}
    used |= {*json.loads((REPOSITORY / "docs" / "steps.json").read_text())["seeds"], HELD_OUT_SEED}
    assert len(used) > 200
    assert not used & {*DEVELOPMENT_SEEDS}
    for page in ("training.md", "evaluation.md"):
        text = (REPOSITORY / "docs" / page).read_text()
        assert f"{DEVELOPMENT_SEEDS[0]} to {DEVELOPMENT_SEEDS[-1]}" in text


def test_the_window_becomes_minus_one_to_one() -> None:
    hu = np.array([-1000, -200, 100, 400, 2000], np.float32)
    assert to_unit(hu, (-200.0, 400.0)).tolist() == [-1, -1, 0, 1, 1]


def write(
    path: Path, hu: np.ndarray, spacing_mm: tuple[float, float, float], origin_mm: tuple[float, ...]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(hu.astype(np.float32))
    image.SetSpacing(spacing_mm[::-1])
    image.SetOrigin(origin_mm)
    sitk.WriteImage(image, str(path))


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    """Three patients as ``s2node convert`` leaves them; the enhanced series has its own grid."""
    rng = np.random.default_rng(0)
    rows = ["ncct\tarterial\tvenous\tpatient"]
    for patient in range(3):
        ncct = rng.normal(40, 5, (16, 40, 40))
        wide = np.full((16, 44, 44), 40.0)
        wide[4:12, 12:32, 12:32] += 200
        write(tmp_path / f"case-{2 * patient:04d}" / "ct.nii.gz", ncct, (3.0, 1.5, 1.5), (0.0, 0.0, 0.0))
        write(
            tmp_path / f"case-{2 * patient + 1:04d}" / "ct.nii.gz", wide, (3.0, 1.5, 1.5), (-3.0, -3.0, 0.0)
        )
        rows.append(f"case-{2 * patient:04d}\t-\tcase-{2 * patient + 1:04d}\tp{patient}")
    (tmp_path / "pairs.tsv").write_text("\n".join(rows) + "\n")
    return tmp_path


def real(converted: Path, **changes: object) -> DataConfig:
    return DataConfig.model_validate(
        {"source": "folder", "folder": str(converted), "crop": (8, 16, 16), "extra_noise_hu": 0.0} | changes
    )


def test_real_pairs_lie_on_one_grid(converted: Path, tmp_path: Path) -> None:
    pairs = training_pairs(real(converted, spacing_mm=(3.0, 1.5, 1.5)), tmp_path / "cache")
    assert len(pairs.cases) == 2  # the last is held out
    enhanced = pairs.cases[0].target - pairs.cases[0].source
    assert enhanced[6, 20, 20] > 150  # index 12 of the wide grid is index 10 of the narrow one
    assert abs(int(enhanced[6, 9, 20])) < 30
    assert enhanced[6, 10, 20] > 150
    assert len(validation_pairs(real(converted), tmp_path / "cache").cases) == 1


def test_crops_of_real_pairs_go_where_contrast_went(converted: Path, tmp_path: Path) -> None:
    pairs = training_pairs(real(converted, spacing_mm=(3.0, 1.5, 1.5), organ_bias=1.0), tmp_path / "cache")
    z, y, x = pairs.cases[0].centres[0].T
    assert 3 <= z.min() <= z.max() <= 12  # the enhanced block and the voxel around it that smoothing reaches
    assert 9 <= min(y.min(), x.min()) <= max(y.max(), x.max()) <= 30


def test_real_pairs_are_resampled_to_the_models_spacing(converted: Path, tmp_path: Path) -> None:
    pairs = training_pairs(real(converted, spacing_mm=(3.0, 3.0, 3.0), crop=(8, 8, 8)), tmp_path / "cache")
    assert pairs.cases[0].source.shape == (16, 20, 20)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"phase": "arterial"}, "0 pairs with arterial, none of them for train"),
        ({"crop": (8, 64, 64)}, "less than a crop"),
        ({"folder": "/nowhere"}, "pairs.tsv: No such file"),
    ],
)
def test_what_cannot_be_paired_is_said(
    converted: Path, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    with pytest.raises(PairsUnusable, match=words):
        folder_pairs(real(converted, **change), tmp_path / "cache", "train")


def test_a_listed_volume_that_is_not_there_is_named(converted: Path, tmp_path: Path) -> None:
    (converted / "case-0003" / "ct.nii.gz").unlink()
    with pytest.raises(PairsUnusable, match="case-0003"):
        folder_pairs(real(converted), tmp_path / "cache", "train")


def test_a_list_without_the_phase_and_a_file_that_is_no_volume(converted: Path, tmp_path: Path) -> None:
    (converted / "case-0001" / "ct.nii.gz").write_bytes(b"no volume")
    with pytest.raises(PairsUnusable, match="case-0001"):
        folder_pairs(real(converted), tmp_path / "cache", "train")
    (converted / "pairs.tsv").write_text("ncct\tvenous\ncase-0000\tcase-0001\n")
    with pytest.raises(PairsUnusable, match="lack ncct or arterial"):
        folder_pairs(real(converted, phase="arterial"), tmp_path / "cache", "train")


def test_a_volume_keeps_its_place_when_read(tmp_path: Path) -> None:
    write(tmp_path / "v.mha", np.arange(24.0).reshape(2, 3, 4), (3.0, 2.0, 1.0), (5.0, 6.0, 7.0))
    volume = read_upright(tmp_path / "v.mha")
    assert volume.geometry.shape == (2, 3, 4)
    assert volume.geometry.position_of((1, 2, 3)) == pytest.approx((5 + 3, 6 + 4, 7 + 3))
    back = onto(volume, volume.geometry)
    assert np.allclose(back, volume.hu)
    moved = Geometry((2, 3, 4), (3.0, 2.0, 1.0), origin_mm=(500.0, 0.0, 0.0))
    assert (onto(Volume(volume.hu, moved), volume.geometry) == -1024).all()


def test_a_pair_is_learnt_alike_however_its_axes_are_stored(converted: Path, tmp_path: Path) -> None:
    config = real(converted, organ_bias=1.0)
    as_lps = training_pairs(config, tmp_path / "cache").batch(0, 0, 4)
    for file in converted.glob("case-*/ct.nii.gz"):
        sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(file)), "RAS"), str(file))
    as_ras = training_pairs(config, tmp_path / "another").batch(0, 0, 4)
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(as_lps, as_ras, strict=True))


def listed(converted: Path, *rows: str) -> Path:
    (converted / "pairs.tsv").write_text("\n".join(["ncct\tvenous\tpatient\tsplit", *rows]) + "\n")
    return converted


def test_the_split_column_says_who_is_learnt_from(converted: Path, tmp_path: Path) -> None:
    config = real(listed(
        converted,
        "case-0000\tcase-0001\ta\tvalidation",
        "case-0002\tcase-0003\tb\ttrain",
        "case-0004\tcase-0005\tc\ttest",
    ))  # fmt: skip
    sides = ("train", "validation", "test")
    stems = [folder_pairs(config, tmp_path / "cache", side) for side in sides]
    assert [len(side) for side in stems] == [1, 1, 1]
    assert len({stem for side in stems for stem in side}) == 3
    assert len(training_pairs(config, tmp_path / "cache").cases) == 1


def test_a_patient_on_two_sides_of_the_list_is_refused(converted: Path, tmp_path: Path) -> None:
    rows = ("case-0000\tcase-0001\tanna\ttrain", "case-0002\tcase-0003\tanna\ttest")
    with pytest.raises(PairsUnusable, match="patient anna is on two sides, train and test"):
        folder_pairs(real(listed(converted, *rows)), tmp_path / "cache", "train")
    with pytest.raises(PairsUnusable, match="split 'holdout' is none of train"):
        folder_pairs(real(listed(converted, "case-0000\tcase-0001\ta\tholdout")), tmp_path / "cache", "train")


@pytest.mark.parametrize("phase", ["arterial", "venous", "both"])
def test_a_patient_with_another_phase_on_another_side_is_refused(converted: Path, phase: str) -> None:
    rows = ["ncct\tarterial\tvenous\tpatient\tsplit", "case-0000\tcase-0001\t-\tanna\ttrain"]
    rows.append("case-0002\t-\tcase-0003\tanna\ttest")
    (converted / "pairs.tsv").write_text("\n".join(rows) + "\n")
    with pytest.raises(PairsUnusable, match="patient anna is on two sides, train and test"):
        data_digest(real(converted, phase=phase))


def test_a_pair_of_nobody_is_refused_by_its_line(converted: Path) -> None:
    for nobody in ("", "-"):
        rows = ("case-0000\tcase-0001\tanna\ttrain", f"case-0002\tcase-0003\t{nobody}\ttest")
        with pytest.raises(PairsUnusable, match="line 3 names no patient: write a pseudonym"):
            listed_pairs(real(listed(converted, *rows)))
    (converted / "pairs.tsv").write_text("ncct\tvenous\ncase-0000\tcase-0001\n")
    with pytest.raises(PairsUnusable, match="line 2 names no patient"):
        training_pairs(real(converted), converted / "cache")


def test_without_a_split_one_patient_is_held_out_of_every_phase(converted: Path) -> None:
    rows = ["ncct\tarterial\tvenous\tpatient", "case-0002\tcase-0003\tcase-0003\tbert"]
    rows += ["case-0000\tcase-0001\t-\tanna", "case-0004\t-\tcase-0005\tanna"]
    (converted / "pairs.tsv").write_text("\n".join(rows) + "\n")
    both = real(converted, phase="both").each_phase()
    sides = [{(pair.patient, pair.side) for pair in listed_pairs(config)} for config in both]
    assert sides == [{("anna", "train"), ("bert", "validation")}] * 2


def test_the_digests_follow_the_voxels_and_the_sides(converted: Path) -> None:
    rows = ("case-0000\tcase-0001\ta\ttrain", "case-0002\tcase-0003\tb\tvalidation")
    config = real(listed(converted, *rows))
    data, split = data_digest(config), split_digest(config)
    listed(converted, rows[0], rows[1].replace("validation", "test"))
    assert data_digest(config) == data
    assert split_digest(config) != split
    write(converted / "case-0001" / "ct.nii.gz", np.zeros((16, 44, 44)), (3.0, 1.5, 1.5), (-3.0, -3.0, 0.0))
    assert data_digest(config) != data
    with pytest.raises(PairsUnusable, match="No such file"):
        data_digest(real(converted / "nowhere"))


def test_the_digests_of_phantoms_follow_what_they_are_drawn_from() -> None:
    more = SMALL.model_copy(update={"phantoms": 3})
    assert split_digest(more) != split_digest(SMALL)
    assert data_digest(SMALL.model_copy(update={"phase": "arterial"})) != data_digest(SMALL)
    assert data_digest(SMALL) == data_digest(SMALL.model_copy(update={"crop": (4, 16, 16)}))
