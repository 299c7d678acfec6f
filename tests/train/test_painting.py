"""Painting changes labelled organs by what was drawn, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from engine.cases import read_cases
from engine.phantom import PhantomOptions, make_phantom
from engine.phantom.organ_means import eroded
from engine.volume import Geometry, Volume
from train.painting import (
    TOTALSEGMENTATOR,
    Labels,
    LabelsUnusable,
    paint,
    paint_cases,
    read_labels,
    read_scheme,
    rise,
)
from train.real import PairsUnusable, read_upright, to_image

CT = Path(os.environ.get("S2NODE_TEST_CT") or Path(__file__).resolve().parents[3] / "shared" / "ct")
SCAN = CT / "vol_totalsegmentator" / "example_ct_sm.nii.gz"
SEGMENTED = CT / "vol_totalsegmentator" / "example_seg.nii.gz"
SCHEME = {5: "liver", 2: "kidney", 52: "aorta", 63: "ivc"}


@pytest.fixture(scope="module")
def scan() -> Volume:
    """A body of 50 HU and noise, fat in the middle of the liver, a calcified spot in the aorta."""
    rng = np.random.default_rng(0)
    hu = np.full((20, 80, 100), -1000.0)
    hu[:, 8:72, 8:92] = rng.normal(50, 8, (20, 64, 84))
    hu[8:12, 18:22, 18:22] = -100
    hu[9:11, 50:52, 50:52] = 400
    return Volume(hu.astype(np.float32), Geometry(hu.shape, (4.0, 3.0, 3.0), (-150.0, -120.0, 0.0)))


@pytest.fixture(scope="module")
def labels(scan: Volume) -> Labels:
    numbers = np.zeros(scan.hu.shape, np.int64)
    numbers[4:16, 12:32, 12:40] = 5
    numbers[4:16, 40:60, 70:86] = 2
    numbers[:, 46:56, 46:56] = 52
    numbers[:, 46:54, 34:42] = 63
    return numbers


def test_only_labelled_organs_change(scan: Volume, labels: Labels) -> None:
    for phase in paint(scan, labels, SCHEME, 0).phases.values():
        assert np.array_equal(phase.hu[labels == 0], scan.hu[labels == 0])
        assert (phase.hu - scan.hu)[labels == 52].mean() > 60


@pytest.mark.parametrize("phase", ["arterial", "venous"])
def test_an_organ_changes_by_the_drawn_enhancement_and_keeps_its_noise(
    scan: Volume, labels: Labels, phase: str
) -> None:
    painted = paint(scan, labels, SCHEME, 3)
    change = painted.phases[phase].hu - scan.hu
    for number, tissue in ((5, "liver"), (63, "ivc")):
        inside = eroded(labels == number, 2, 2)
        inside[5:15, 14:26, 14:26] = False  # the fat, and where smoothing brings it
        np.testing.assert_allclose(change[inside], rise(painted.enhancement, phase, tissue), atol=0.6)
        noise = [float(image[inside].std()) for image in (scan.hu, painted.phases[phase].hu)]
        assert noise[1] == pytest.approx(noise[0], rel=0.02)


def test_fat_and_calcification_within_a_label_stay(scan: Volume, labels: Labels) -> None:
    change = paint(scan, labels, SCHEME, 0).phases["arterial"].hu - scan.hu
    assert np.abs(change[9:11, 19:21, 19:21]).max() < 1
    assert np.abs(change[9:11, 50:52, 50:52]).max() < 5


def test_a_kidney_has_a_cortex_around_its_medulla(scan: Volume, labels: Labels) -> None:
    painted = paint(scan, labels, SCHEME, 0)
    change = painted.phases["arterial"].hu - scan.hu
    cortex, medulla = (
        rise(painted.enhancement, "arterial", name) for name in ("renal_cortex", "renal_medulla")
    )
    assert change[10, 50, 78] == pytest.approx(medulla, abs=1)
    assert change[10, 42, 78] == pytest.approx(cortex, abs=1)


def test_the_seed_decides_the_draw(scan: Volume, labels: Labels) -> None:
    one, same, other = (paint(scan, labels, SCHEME, seed).phases["venous"].hu for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_the_phantoms_own_labels_give_its_own_phases() -> None:
    options = PhantomOptions((24, 64, 64), (8.0, 6.0, 6.0), 0.0, phases=("ncct", "venous"))
    phantom = make_phantom(2, options)
    painted = paint(
        Volume(phantom.phases["ncct"], phantom.geometry),
        phantom.labels.astype(np.int64),
        read_scheme("phantom"),
        0,
    )
    inside = eroded(phantom.labels == 10, 1, 1)
    change = painted.phases["venous"].hu - phantom.phases["ncct"]
    drawn = rise(painted.enhancement, "venous", "liver")
    assert float(np.median(change[inside])) == pytest.approx(drawn, abs=0.5)


def test_a_draw_is_a_study_of_one_patient(scan: Volume, labels: Labels, tmp_path: Path) -> None:
    count = paint_cases(scan, labels, SCHEME, tmp_path, "anna", range(7, 9))
    rows = read_cases(tmp_path)
    assert count == int((labels > 0).sum())
    assert {row.patient for row in rows} == {"anna"}
    assert [(row.study, row.phase) for row in rows] == [
        (study, phase) for study in ("draw-0007", "draw-0008") for phase in ("ncct", "arterial", "venous")
    ]
    assert len({row.case for row in rows if row.phase == "ncct"}) == 1
    with pytest.raises(LabelsUnusable, match="no voxel has a label"):
        paint_cases(scan, labels * 0, SCHEME, tmp_path, "anna", range(1))
    with pytest.raises(ValueError, match="patient"):
        paint_cases(scan, labels, SCHEME, tmp_path, "../anna", range(1))


def test_labels_of_another_grid_are_refused(scan: Volume, labels: Labels, tmp_path: Path) -> None:
    file = tmp_path / "labels.nii.gz"
    image = to_image(Volume(labels.astype(np.float32), scan.geometry))
    sitk.WriteImage(sitk.Cast(image, sitk.sitkUInt8), str(file))
    assert np.array_equal(read_labels(file, scan.geometry), labels)
    image.SetOrigin((0.0, 0.0, 0.0))
    sitk.WriteImage(sitk.Cast(image, sitk.sitkUInt8), str(file))
    with pytest.raises(LabelsUnusable, match="own grid"):
        read_labels(file, scan.geometry)
    with pytest.raises(PairsUnusable, match="nowhere"):
        read_labels(tmp_path / "nowhere.nii.gz", scan.geometry)


def test_a_scheme_of_ones_own_is_read_or_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "labels.tsv"
    file.write_text("1\tliver\n2\tkidney\n")
    assert read_scheme(str(file)) == {1: "liver", 2: "kidney"}
    file.write_text("1\tlever\n")
    with pytest.raises(LabelsUnusable, match="'lever' is no tissue; known are"):
        read_scheme(str(file))
    file.write_text("one\tliver\n")
    with pytest.raises(LabelsUnusable, match="not lines of number, tab, tissue"):
        read_scheme(str(file))
    with pytest.raises(LabelsUnusable, match="neither phantom, totalsegmentator nor a file"):
        read_scheme("monai")


@pytest.mark.skipif(not SCAN.is_file(), reason=f"no real CT at {SCAN}")
def test_a_real_scan_is_painted_by_its_labels() -> None:
    scan = read_upright(SCAN)
    labels = read_labels(SEGMENTED, scan.geometry)
    painted = paint(scan, labels, TOTALSEGMENTATOR, 0)
    for phase, least in (("arterial", 150), ("venous", 60)):
        change = painted.phases[phase].hu - scan.hu
        assert np.median(change[eroded(labels == 52)]) > least
        assert (change[~np.isin(labels, list(TOTALSEGMENTATOR))] == 0).all()
    liver = eroded(labels == 5, 2, 1)
    assert np.median(painted.phases["venous"].hu[liver]) > np.median(scan.hu[liver]) + 25
