"""Measure the pixel rule of intake and write the tables of docs/intake.md.

    python tests/bench/intake.py [--ct DIR] [--seeds N] [--write]

Without ``--ct``: the folder of real CT that the tests use. Without ``--write`` the tables are only printed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from config.intake import IntakeSettings, SeriesLimits
from engine.phantom import PhantomOptions, make_phantom
from engine.volume import Geometry, Volume
from node.enhancement import Enhancement, measure_enhancement
from node.errors import SeriesRejected
from node.intake import enhanced
from node.series import read_series

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENT = REPOSITORY / "docs" / "intake.md"
RULES = IntakeSettings()

DICOM_SETS = (
    ("ncct_abdomen_ge_acrin001", "plain"),
    ("cect_portalvenous_ge_crlm1004", "enhanced"),
    ("cect_arterial_ge_cmbcrc", "enhanced"),
    ("dup_missing_slices_ge", "enhanced"),
    ("vol_totalsegmentator/example_ct_dicom", "enhanced"),
    ("head_tilt_gap_ge_dcmqact", "plain head"),
)
SINGLE_SLICES = (
    ("quirk_single_files/dcmtk/example.dcm", "plain"),
    ("quirk_single_files/pydicom-data/693_J2KR.dcm", "plain head"),
    ("quirk_single_files/orthanc-tests/SignedCT.dcm", "not known"),
    ("ts_wg04_ct/CT1_UNC", "enhanced"),
    ("quirk_single_files/pylibjpeg-data/TOSHIBA_J2K_OpenJPEGv2Regression.dcm", "enhanced"),
    ("quirk_single_files/pydicom-data/explicit_VR-UN.dcm", "enhanced (by eye)"),
)
NIFTI = (
    ("vol_totalsegmentator/example_ct.nii.gz", "plain"),
    ("vol_totalsegmentator/example_ct_sm.nii.gz", "plain"),
    ("vol_totalsegmentator/aorta_report/ct_cropped.nii.gz", "enhanced"),
)
PAINTED = (
    ("aorta +250 HU", ((52, 250.0),)),
    ("aorta +250, kidneys +80 HU", ((52, 250.0), (2, 80.0), (3, 80.0))),
    (
        "aorta +100, kidneys +130, spleen +60, liver +50 HU",
        ((52, 100.0), (2, 130.0), (3, 130.0), (1, 60.0), (5, 50.0)),
    ),
)
"""TotalSegmentator labels: 1 spleen, 2 and 3 kidneys, 5 liver, 52 aorta."""

GRIDS = (
    ("6 mm, pixels of 3 mm, noise 12 HU", PhantomOptions(shape=(40, 128, 128), spacing_mm=(6.0, 3.0, 3.0))),
    ("3 mm, noise 12 HU", PhantomOptions()),
    ("3 mm, noise 40 HU", PhantomOptions(noise_hu=40.0)),
    ("5 mm, noise 12 HU", PhantomOptions(shape=(58, 256, 256), spacing_mm=(5.0, 1.5, 1.5))),
    (
        "1.5 mm, 96 mm high, noise 30 HU",
        PhantomOptions(shape=(64, 256, 256), spacing_mm=(1.5, 1.5, 1.5), noise_hu=30.0),
    ),
)
COARSE_TIMES = 8
"""The first grid is quick: it is measured for this many times more phantoms."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    truth: str
    measured: Enhancement

    @property
    def verdict(self) -> str:
        return "HAS-CONTRAST" if enhanced(self.measured, RULES) else "passes"

    def line(self) -> str:
        m = self.measured
        return (
            f"| {self.name} | {self.truth} | {m.enhanced_share:.4f} | {m.vessel_mm2:.0f} "
            f"| {m.soft_tissue_ml:.0f} | {self.verdict} |"
        )


HEAD = "| set | truth | share > 80 HU | vessel mm² | soft tissue ml | verdict |\n|---|---|---|---|---|---|"


def stacked(paths: list[Path]) -> Volume:
    """The slices of a folder in order; where they are no grid, 5 mm apart."""
    loose = SeriesLimits()
    try:
        return read_series(paths, loose).volume
    except SeriesRejected:
        single = sorted(
            (read_series([p], loose).volume for p in paths), key=lambda v: v.geometry.origin_mm[2]
        )
        hu = np.concatenate([v.hu for v in single])
        step = (5.0, *single[0].geometry.spacing_mm[1:])
        return Volume(hu, replace(single[0].geometry, shape=hu.shape, spacing_mm=step))


def nifti(path: Path) -> Volume:
    image = sitk.DICOMOrient(sitk.ReadImage(str(path), sitk.sitkFloat32), "LPS")
    hu = sitk.GetArrayFromImage(image)
    column, row, step = image.GetSpacing()
    return Volume(hu, Geometry(hu.shape, (step, row, column)))


def real_volumes(ct: Path) -> Iterator[tuple[str, str, Volume]]:
    for name, truth in DICOM_SETS:
        yield name, truth, stacked([p for p in sorted((ct / name).iterdir()) if p.suffix != ".txt"])
    for name, truth in NIFTI:
        yield name, truth, nifti(ct / name)
    for name, truth in SINGLE_SLICES:
        yield f"{name} (1 slice)", truth, read_series([ct / name], SeriesLimits()).volume


def painted(ct: Path) -> Iterator[tuple[str, str, Volume]]:
    plain = nifti(ct / "vol_totalsegmentator/example_ct_sm.nii.gz")
    labels = nifti(ct / "vol_totalsegmentator/example_seg.nii.gz").hu.round()
    for name, organs in PAINTED:
        hu = plain.hu.copy()
        for label, more in organs:
            hu[labels == label] += more
        yield f"example_ct_sm, {name}", "enhanced (painted)", plain.with_array(hu)


def disturbed(ct: Path) -> Iterator[tuple[str, str, Volume]]:
    """The main real input and an enhanced one, noisier and thicker than they are."""
    rng = np.random.default_rng(5)
    for name, truth in (DICOM_SETS[0], DICOM_SETS[2]):
        volume = stacked([p for p in sorted((ct / name).iterdir()) if p.suffix != ".txt"])
        for sigma in (30.0, 60.0):
            noise = rng.normal(0, sigma, volume.hu.shape).astype(np.float32)
            yield f"{name} + white noise {sigma:.0f} HU", truth, volume.with_array(volume.hu + noise)
        pairs = len(volume.hu) // 2
        hu = volume.hu[: 2 * pairs].reshape(pairs, 2, *volume.hu.shape[1:]).mean(axis=1)
        step, row, column = volume.geometry.spacing_mm
        thick = replace(volume.geometry, shape=hu.shape, spacing_mm=(2 * step, row, column))
        yield f"{name}, slices averaged by two", truth, Volume(hu, thick)


def phantom_rows(seeds: int) -> Iterator[tuple[str, str, list[Enhancement]]]:
    """For each grid and phase, what every seed measured."""
    for index, (grid, options) in enumerate(GRIDS):
        found: dict[str, list[Enhancement]] = {phase: [] for phase in options.phases}
        count = seeds if index else COARSE_TIMES * seeds
        for seed in range(1000 * (index + 1), 1000 * (index + 1) + count):
            phantom = make_phantom(seed, options)
            for phase, hu in phantom.phases.items():
                found[phase].append(measure_enhancement(Volume(hu, phantom.geometry)))
        for phase, several in found.items():
            yield grid, phase, several


def real_table(ct: Path) -> str:
    sources = (real_volumes(ct), painted(ct), disturbed(ct))
    rows = [Row(name, truth, measure_enhancement(v)) for source in sources for name, truth, v in source]
    return "\n".join([HEAD, *(row.line() for row in rows)])


def phantom_table(seeds: int) -> str:
    lines = [
        "| grid | phase | phantoms | share > 80 HU: least, median, most | vessel mm²: least, most | caught |",
        "|---|---|---|---|---|---|",
    ]
    for grid, phase, several in phantom_rows(seeds):
        share = np.array([m.enhanced_share for m in several])
        area = np.array([m.vessel_mm2 for m in several])
        caught = sum(enhanced(m, RULES) is not None for m in several)
        lines.append(
            f"| {grid} | {phase} | {len(several)} "
            f"| {share.min():.4f}, {np.median(share):.4f}, {share.max():.4f} "
            f"| {area.min():.0f}, {area.max():.0f} | {caught} of {len(several)} |"
        )
    return "\n".join(lines)


def written(document: str, mark: str, table: str) -> str:
    """The document with what lies between two marks replaced."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, rest = document.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{table}\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--ct", type=Path, default=Path(os.environ.get("S2NODE_TEST_CT", REPOSITORY.parent / "shared" / "ct"))
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    tables = {"phantoms": phantom_table(options.seeds)} if options.seeds else {}
    if options.ct.is_dir():
        tables["real"] = real_table(options.ct)
    for mark, table in tables.items():
        print(table, flush=True)
        if options.write:
            DOCUMENT.write_text(written(DOCUMENT.read_text(encoding="utf-8"), mark, table), encoding="utf-8")


if __name__ == "__main__":
    main()
