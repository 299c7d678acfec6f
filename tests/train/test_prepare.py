"""Pairs are registered, checked, refused by name, split by patient; nothing moves when cases are added."""

from __future__ import annotations

import csv
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import typer
from typer.testing import CliRunner

from engine.cases import CaseRow, add_case, list_case, write_nifti
from engine.phantom import LABELS, Phantom, PhantomOptions, draw_patient, make_phantom
from engine.phantom.anatomy import stream
from engine.phantom.breathing import Breath, draw_breath
from engine.phantom.shapes import Points
from engine.volume import Geometry, Volume
from train.cases import folder_cases
from train.config import DataConfig, TrainConfigInvalid
from train.prepare.checks import REASONS, Measures, agreement, jacobian_determinant, judge, measure
from train.prepare.commands import paint, phantoms
from train.prepare.commands import prepare as prepare_command
from train.prepare.config import PrepareConfig, load_prepare_config
from train.prepare.register import Alignment, Scans, displacement, distance_mm, register, scans
from train.prepare.run import prepare
from train.real import PairsUnusable, folder_pairs
from train.split import PatientOnTwoSides, side_of

SEED, MOTION_MM = 1, 25.0
OPTIONS = PhantomOptions((30, 64, 64), (8.0, 6.0, 6.0), 6.0, MOTION_MM, ("ncct", "venous"))
CONFIG = PrepareConfig(grid_mm=8.0, spacing_mm=(8.0, 6.0, 6.0), min_slices=8)
UNMOVED = CONFIG.model_copy(update={"registration": "none"})


STILL = replace(OPTIONS, misregistration_mm=0.0)


@cache
def phantom(seed: int, options: PhantomOptions) -> Phantom:
    return make_phantom(seed, options)


def volume(seed: int, phase: str, options: PhantomOptions = OPTIONS) -> Volume:
    made = phantom(seed, options)
    return Volume(made.phases[phase], made.geometry)


def patient(number: int) -> dict[str, Volume]:
    """One phantom as several patients: their scans differ by ``number`` HU."""
    both = {phase: volume(2, phase, STILL) for phase in ("ncct", "venous")}
    return {phase: one.with_array(one.hu + np.float32(number)) for phase, one in both.items()}


def mirrored(one: Volume) -> Volume:
    return one.with_array(np.ascontiguousarray(one.hu[:, :, ::-1]))


@pytest.fixture(scope="module")
def pair() -> Scans:
    return scans(volume(SEED, "ncct"), volume(SEED, "venous"), CONFIG.grid_mm)


@pytest.fixture(scope="module")
def alignment(pair: Scans) -> Alignment:
    return register(pair, "deformable", 0)


@pytest.fixture(scope="module")
def measures(pair: Scans, alignment: Alignment) -> Measures:
    return measure(pair, alignment)


def known_displacement(grid: Geometry) -> np.ndarray:
    """Where the breath took what rests at each voxel: the inverse of ``Breath.displaced``, by iteration."""
    build = draw_patient(SEED).build
    breath: Breath = draw_breath(stream(SEED, "breathing"), MOTION_MM, 2)
    axes = [
        grid.origin_mm[2 - axis] + np.arange(n) * step - build.shift[2 - axis]
        for axis, (n, step) in enumerate(zip(grid.shape, grid.spacing_mm, strict=True))
    ]
    z, y, x = (part.astype(np.float32) for part in np.meshgrid(*axes, indexing="ij"))
    there = [x, y.copy(), z.copy()]
    for _ in range(25):
        rests = breath.displaced(Points((axes[0], axes[1], axes[2]), *there, 1.0), build)
        there = [x, there[1] + y - rests.y, there[2] + z - rests.z]
    return np.stack([there[0] - x, there[1] - y, there[2] - z], axis=-1)


def test_registration_finds_a_known_breath(pair: Scans, alignment: Alignment) -> None:
    grid = pair.fixed.geometry
    truth = known_displacement(grid)
    inside = (distance_mm(~pair.body, grid) > 25) & (pair.fixed.hu > -300)
    errors = [
        float(np.linalg.norm(displacement(t, grid) - truth, axis=-1)[inside].mean())
        for t in (sitk.Transform(), alignment.whole)
    ]
    assert errors[0] > 5
    assert errors[1] < 0.65 * errors[0]


def test_registration_gains_agreement_and_information_and_the_pair_is_taken(measures: Measures) -> None:
    assert measures.mi_gain > 0.03
    assert measures.agreement_after > measures.agreement_before + 0.02
    assert measures.jacobian_min > 0
    assert measures.overlap > 0.9
    assert judge(measures, CONFIG) is None


def test_the_same_seed_gives_the_same_field(pair: Scans, alignment: Alignment) -> None:
    again = register(pair, "deformable", 0)
    grid = pair.fixed.geometry
    assert np.array_equal(displacement(again.whole, grid), displacement(alignment.whole, grid))


def test_a_field_that_folds_is_refused(pair: Scans, measures: Measures) -> None:
    grid = pair.fixed.geometry
    field = np.zeros((*grid.shape, 3))
    middle = tuple(n // 2 for n in grid.shape)
    field[middle[0] - 2 : middle[0] + 3, middle[1] - 2 : middle[1] + 3, middle[2], 0] = -20.0
    image = sitk.GetImageFromArray(field, isVector=True)
    image.SetSpacing(grid.spacing_mm[::-1])
    image.SetOrigin(grid.origin_mm)
    folded = Alignment(sitk.Transform(), sitk.DisplacementFieldTransform(image))
    lowest = measure(pair, folded).jacobian_min
    assert lowest < 0
    refusal = judge(replace(measures, jacobian_min=lowest), CONFIG)
    assert refusal is not None
    assert refusal.code == "FOLDED"


def test_the_determinant_is_that_of_a_known_map_on_a_turned_grid() -> None:
    turned = ((0.0, 0.6, 0.8), (0.0, 0.8, -0.6), (1.0, 0.0, 0.0))
    grid = Geometry((5, 6, 7), (2.0, 3.0, 4.0), (1.0, 2.0, 3.0), turned)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1)
    points = index * np.array(grid.spacing_mm) @ grid.direction_matrix.T + grid.origin_mm
    matrix = np.array([[0.1, 0.2, 0.0], [0.0, -0.3, 0.1], [0.05, 0.0, 0.2]])
    found = jacobian_determinant(points @ matrix.T, grid)
    np.testing.assert_allclose(found, np.linalg.det(np.eye(3) + matrix), rtol=1e-9)


def test_agreement_is_one_for_the_same_and_nothing_for_chance() -> None:
    kinds = np.random.default_rng(0).choice([-900.0, -100.0, 50.0], (20, 20, 20)).astype(np.float32)
    everywhere = np.ones(kinds.shape, bool)
    assert agreement(kinds, kinds, everywhere) == pytest.approx(1)
    shuffled = np.random.default_rng(1).permutation(kinds.ravel()).reshape(kinds.shape)
    assert abs(agreement(kinds, shuffled, everywhere)) < 0.05


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"overlap": 0.2}, "OVERLAP"),
        ({"outline_dice": 0.8}, "OUTLINE"),
        ({"agreement_after": 0.5}, "ANATOMY"),
        ({"agreement_rigid": 0.5}, "ANATOMY"),
        ({"mi_after": 0.5}, "MI-GAIN"),
        ({"field_p99_mm": 60.0}, "FIELD"),
        ({"jacobian_min": 0.0}, "FOLDED"),
        ({"enhancement_hu": 5.0}, "NOT-ENHANCED"),
    ],
)
def test_every_check_refuses_with_its_code(measures: Measures, change: dict[str, float], code: str) -> None:
    refusal = judge(replace(measures, **change), CONFIG)
    assert refusal is not None
    assert refusal.code == code
    assert refusal.reason.startswith(REASONS[code])


def put(folder: Path, who: str, study: str, **phases: Volume) -> None:
    for phase, one in phases.items():
        name = add_case(folder, one).name
        list_case(folder, CaseRow(name, who, study, phase))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two good patients, a mirrored one, one without NCCT."""
    root = tmp_path_factory.mktemp("prepared")
    cases = root / "cases"
    put(cases, "anna", "one", **patient(0))
    put(cases, "bert", "one", **patient(1))
    put(cases, "carl", "one", ncct=patient(2)["ncct"], venous=mirrored(patient(2)["venous"]))
    put(cases, "dora", "one", venous=patient(3)["venous"])
    prepare(cases, root / "out", UNMOVED)
    return cases, root / "out"


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_good_pairs_are_listed_and_bad_ones_are_named(prepared: tuple[Path, Path]) -> None:
    _, out = prepared
    assert [row["patient"] for row in rows(out / "pairs.tsv")] == ["anna", "bert"]
    assert {row["patient"]: row["code"] for row in rows(out / "refused.tsv")} == {
        "carl": "ANATOMY", "dora": "NO-NCCT",
    }  # fmt: skip


def test_the_page_shows_every_pair_with_its_verdict_and_needs_nothing_else(
    prepared: tuple[Path, Path],
) -> None:
    text = (prepared[1] / "qc.html").read_text()
    assert text.count("data:image/png;base64,") == 3
    assert text.count(">accepted<") == 2
    assert "carl / one / venous" in text
    assert "refused: ANATOMY" in text
    assert "http" not in text.replace("https://www.w3.org", "")


def test_what_prepare_writes_training_reads(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    sides = {row["patient"]: row["split"] for row in rows(prepared[1] / "pairs.tsv")}
    config = DataConfig(
        source="folder", folder=str(prepared[1]), spacing_mm=CONFIG.spacing_mm, crop=(8, 32, 32)
    )
    stems = folder_pairs(config, tmp_path, sides["anna"])  # type: ignore[arg-type]
    hu = np.load(stems[0].with_suffix(".npy"))
    assert hu.shape[0] == 2
    assert np.percentile(hu[1] - hu[0], 99) > 50


def test_adding_cases_moves_nobody_and_makes_nothing_again(
    prepared: tuple[Path, Path], tmp_path: Path
) -> None:
    cases, out = prepared
    before = rows(out / "pairs.tsv")
    made = (out / "pairs" / "anna" / "one" / "prepared.json").stat().st_mtime_ns
    put(cases, "emil", "one", **patient(4))
    prepare(cases, out, UNMOVED)
    after = rows(out / "pairs.tsv")
    assert after[:2] == before
    assert after[2]["patient"] == "emil"
    assert (out / "pairs" / "anna" / "one" / "prepared.json").stat().st_mtime_ns == made
    assert all(row["split"] == side_of(row["patient"], 0, 0.15, 0.15) for row in after)


def test_another_seed_for_the_same_folder_is_refused(prepared: tuple[Path, Path]) -> None:
    cases, out = prepared
    before = side_of("anna", 0, 0.15, 0.15)
    seed = next(s for s in range(100) if side_of("anna", s, 0.15, 0.15) != before)
    with pytest.raises(PatientOnTwoSides, match="patient anna is on two sides"):
        prepare(cases, out, UNMOVED.model_copy(update={"seed": seed}))


def test_one_scan_under_two_patients_is_refused(tmp_path: Path) -> None:
    for name in ("anna", "bert"):
        put(tmp_path / "cases", name, "s", **patient(0))
    outcome = prepare(tmp_path / "cases", tmp_path / "out", UNMOVED)
    assert [pair["patient"] for pair in outcome.pairs] == ["anna"]
    assert {(row.patient, row.code) for row in outcome.refused} == {("bert", "DUPLICATE")}
    assert outcome.advice is not None
    text = (tmp_path / "out" / "qc.html").read_text()
    assert text.count(">accepted<") == 1
    assert text.count("refused: DUPLICATE") == 1
    assert "1 pairs to train on, 1 refused" in text


def test_files_that_people_put_into_a_studys_folder_outlive_its_making_again(tmp_path: Path) -> None:
    put(tmp_path / "cases", "anna", "s", **patient(0))
    prepare(tmp_path / "cases", tmp_path / "out", UNMOVED)
    folder = tmp_path / "out" / "pairs" / "anna" / "s"
    (folder / "labels.nii.gz").write_bytes(b"mine")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("mine")
    before = (folder / "prepared.json").read_bytes()
    prepare(tmp_path / "cases", tmp_path / "out", UNMOVED.model_copy(update={"min_slices": 7}))
    assert (folder / "prepared.json").read_bytes() != before
    assert (folder / "labels.nii.gz").read_bytes() == b"mine"
    assert (folder / "notes" / "a.txt").read_text() == "mine"


def test_labels_that_the_list_names_go_along_to_the_pairs_grid(tmp_path: Path) -> None:
    cases, out = tmp_path / "cases", tmp_path / "out"
    put(cases, "anna", "s", **patient(0))
    liver, grid = LABELS["liver"], phantom(2, STILL).geometry
    numbers = phantom(2, STILL).labels
    write_nifti(cases / "organs.nii.gz", Volume(numbers.astype(np.float32), grid))
    heading, *lines = (cases / "cases.tsv").read_text().splitlines()
    named = [f"{heading}\tlabels", *(f"{x}\t{'organs.nii.gz' if 'ncct' in x else '-'}" for x in lines)]
    (cases / "cases.tsv").write_text("\n".join(named) + "\n")
    finer = UNMOVED.model_copy(update={"spacing_mm": (4.0, 6.0, 6.0)})
    prepare(cases, out, finer)
    (out / "labels.json").write_text(f'{{"liver": {liver}}}')
    side = rows(out / "pairs.tsv")[0]["split"]
    (case,) = folder_cases(out, side)  # type: ignore[arg-type]
    found = case.region("liver")
    assert found is not None
    assert found.sum() == pytest.approx(2 * (numbers == liver).sum(), rel=0.1)
    assert np.abs(case.source.hu[found].mean() - volume(2, "ncct", STILL).hu[numbers == liver].mean()) < 5
    moved = Volume(numbers.astype(np.float32), replace(grid, origin_mm=(9.0, 0.0, 0.0)))
    write_nifti(cases / "organs.nii.gz", moved)
    with pytest.raises(PairsUnusable, match=r"organs\.nii\.gz.*labels have to lie on the scan's own grid"):
        prepare(cases, out, finer)
    (cases / "cases.tsv").write_text("\n".join([heading, *lines]) + "\n")
    prepare(cases, out, finer)
    assert not (out / "pairs" / "anna" / "s" / "labels.nii.gz").exists()


def test_cases_that_cannot_be_paired_are_named_with_a_code(tmp_path: Path) -> None:
    cases = tmp_path / "cases"
    ncct, venous = patient(0)["ncct"], patient(0)["venous"]
    put(cases, "anna", "s", ncct=ncct)
    put(cases, "anna", "t", **{"-": venous})
    list_case(cases, CaseRow("case-0077", "bert", "s", "ncct"))
    air = Volume(np.full((9, 20, 20), -1000, np.float32), Geometry((9, 20, 20), (8.0, 6.0, 6.0)))
    put(cases, "carl", "s", ncct=air, venous=venous)
    thin = Volume(ncct.hu[:6].copy(), replace(ncct.geometry, shape=(6, *ncct.hu.shape[1:])))
    put(cases, "dora", "s", ncct=ncct, venous=thin)
    put(cases, "emil", "s", ncct=ncct)
    put(cases, "emil", "s", ncct=ncct)
    outcome = prepare(cases, tmp_path / "out", UNMOVED.model_copy(update={"min_overlap": 0.0}))
    assert outcome.pairs == []
    codes = {(row.patient, row.case): row.code for row in outcome.refused}
    assert codes[("anna", "case-0001")] == "NO-PHASE"
    assert codes[("anna", "case-0002")] == "PHASE-UNKNOWN"
    assert codes[("bert", "case-0077")] == "UNREADABLE"
    assert codes[("carl", "case-0003")] == "NO-BODY"
    assert codes[("dora", "case-0006")] in {"TOO-FEW-SLICES", "OUTLINE", "ANATOMY"}
    assert codes[("emil", "case-0008")] == "REPEATED"


def test_a_configuration_names_its_wrong_key(tmp_path: Path) -> None:
    file = tmp_path / "prepare.toml"
    file.write_text("grid_mm = 5.0\nmin_overlap = 2\nregistratoin = 'none'\n")
    with pytest.raises(TrainConfigInvalid, match=r"min_overlap.*registratoin"):
        load_prepare_config(file)
    with pytest.raises(TrainConfigInvalid, match="No such file"):
        load_prepare_config(tmp_path / "nowhere.toml")
    file.write_text("validation = 0.6\ntest = 0.5\n")
    with pytest.raises(TrainConfigInvalid, match="nobody to learn from"):
        load_prepare_config(file)
    assert load_prepare_config(None) == PrepareConfig()


def test_a_list_that_prepare_did_not_write_is_not_overwritten(tmp_path: Path) -> None:
    put(tmp_path / "cases", "anna", "s", ncct=patient(0)["ncct"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pairs.tsv").write_text("ncct\tvenous\na\tb\n")
    with pytest.raises(PairsUnusable, match="not a list that prepare wrote"):
        prepare(tmp_path / "cases", tmp_path / "out", CONFIG)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("prepare", ".", "out"), 1, "cases.tsv: No such file or directory; s2node convert writes it"),
        (("prepare", ".", "out", "--config", "none.toml"), 78, "none.toml: No such file"),
        (("paint", "a.nii", "b.nii", "out", "--patient", "../x"), 2, "letters, digits"),
        (("paint", "a.nii", "b.nii", "out", "--patient", "x"), 1, "a.nii"),
        (("phantoms", "out", "--shape", "0", "8", "8"), 2, "shape"),
    ],
)
def test_the_commands_say_what_is_wrong_and_write_nothing(
    arguments: tuple[str, ...], code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    for command in (prepare_command, paint, phantoms):
        app.command()(command)
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == code, ended.output
    assert words in ended.output.replace("\n", "")
    assert not (tmp_path / "out").exists()
