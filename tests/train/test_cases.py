"""Cases of a prepared folder: the test side alone, without patients' names, organs where labels are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from typer.testing import CliRunner

from engine.phantom import LABELS, Phantom, PhantomOptions, make_phantom
from engine.session import SessionPolicy
from engine.volume import Geometry, Volume
from node.cli import app
from train.cases import body_mask, folder_cases, phantom_case
from train.real import PairsUnusable
from train.refresh.run import Request, measured

COARSE = PhantomOptions(shape=(16, 48, 48), spacing_mm=(15.0, 8.0, 8.0), phases=("ncct", "venous"))


def write(phantom: Phantom, array: np.ndarray, file: Path) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(phantom.geometry.spacing_mm[::-1])
    image.SetOrigin(phantom.geometry.origin_mm)
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(file))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    lines = ["ncct\tvenous\tpatient\tsplit"]
    for seed, side in ((1, "train"), (2, "test"), (3, "test")):
        phantom = make_phantom(seed, COARSE)
        for phase, hu in phantom.phases.items():
            write(phantom, hu, folder / f"secret-{seed}" / f"{phase}.nii.gz")
        lines.append(f"secret-{seed}/ncct.nii.gz\tsecret-{seed}/venous.nii.gz\tsecret-{seed}\t{side}")
        if seed == 2:
            write(phantom, phantom.labels, folder / f"secret-{seed}" / "labels.nii.gz")
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n")
    (folder / "labels.json").write_text(json.dumps({"liver": LABELS["liver"], "fat": LABELS["fat"]}))
    return folder


def test_only_the_test_side_is_measured_and_no_patient_is_named(prepared: Path) -> None:
    cases = list(folder_cases(prepared))
    assert [case.name for case in cases] == ["pair 1", "pair 2"]
    assert [list(case.phases) for case in cases] == [["venous"], ["venous"]]
    assert np.allclose(cases[0].source.hu, make_phantom(2, COARSE).phases["ncct"])
    assert np.allclose(cases[0].phases["venous"], make_phantom(2, COARSE).phases["venous"], atol=0.1)
    assert [case.name for case in folder_cases(prepared, "train")] == ["pair 1"]


def test_organs_are_known_where_labels_lie_beside_the_scan(prepared: Path) -> None:
    labelled, bare = folder_cases(prepared)
    liver = labelled.region("liver")
    assert liver is not None
    assert liver.sum() == (make_phantom(2, COARSE).labels == LABELS["liver"]).sum()
    assert labelled.region("aorta") is None
    assert bare.region("liver") is None


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ({"liver": 1, "Aorta": 2, "kidney": 3}, "measured of Aorta, kidney: the words are aorta, "),
        ({"liver": None}, "not a JSON object of names and numbers"),
        (["liver"], "not a JSON object of names and numbers"),
    ],
)
def test_words_that_nothing_is_measured_of_are_refused(
    prepared: Path, tmp_path: Path, names: object, reason: str
) -> None:
    folder = shutil.copytree(prepared, tmp_path / "pairs")
    (folder / "labels.json").write_text(json.dumps(names))
    with pytest.raises(PairsUnusable, match=reason):
        next(folder_cases(folder))


def test_labels_are_rounded_and_what_is_no_label_is_refused(prepared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(prepared, tmp_path / "pairs")
    phantom, file = make_phantom(2, COARSE), folder / "secret-2" / "labels.nii.gz"
    write(phantom, phantom.labels.astype(np.float32) - 1e-4, file)
    labels = next(folder_cases(folder)).labels
    assert labels is not None
    assert np.array_equal(labels, phantom.labels)
    for wrong in (278.0, -1.0):
        write(phantom, np.where(phantom.labels == LABELS["liver"], wrong, 0.0).astype(np.float32), file)
        with pytest.raises(PairsUnusable, match="they have to be 0 to 255"):
            next(folder_cases(folder))


def test_a_case_is_the_same_however_its_axes_are_stored(prepared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(prepared, tmp_path / "pairs")
    for file in (folder / "secret-2").iterdir():
        sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(file)), "RAS"), str(file))
    plain, turned = next(folder_cases(prepared)), next(folder_cases(folder))
    assert turned.labels is not None
    assert np.array_equal(turned.labels, plain.labels)
    assert np.array_equal(turned.source.hu, plain.source.hu)
    assert np.allclose(turned.phases["venous"], plain.phases["venous"], atol=0.1)


@pytest.fixture
def odd(prepared: Path, tmp_path: Path) -> Path:
    """The same pairs and, on the test side, one without a body and one of slices that are far too wide."""
    folder = shutil.copytree(prepared, tmp_path / "pairs")
    phantom = make_phantom(3, COARSE)
    wide = replace(phantom.geometry, spacing_mm=(60.0, 8.0, 8.0))
    air = np.full_like(phantom.phases["ncct"], -1000.0)
    for name, geometry, ncct in (("air", phantom.geometry, air), ("wide", wide, phantom.phases["ncct"])):
        for phase, hu in (("ncct", ncct), ("venous", phantom.phases["venous"])):
            write(replace(phantom, geometry=geometry), hu, folder / name / f"{phase}.nii.gz")
    with (folder / "pairs.tsv").open("a") as stream:
        stream.writelines(f"{n}/ncct.nii.gz\t{n}/venous.nii.gz\t{n}\ttest\n" for n in ("air", "wide"))
    return folder


def test_pairs_that_a_model_does_not_take_are_named_and_the_others_measured(
    odd: Path, translator_bundle: Callable[..., Path]
) -> None:
    words = ["evaluate", "--pairs", str(odd), "--provider", "cpu", "--threads", "1", "--json"]
    done = CliRunner().invoke(app, [*words, "--bundle", str(translator_bundle("venous"))])
    assert done.exit_code == 1
    result = json.loads(done.stdout)
    assert result["phases"]["venous"]["cases"] == 2
    assert [line.split(":")[0] for line in result["skipped"]] == ["pair 3", "pair 4, venous"]
    assert "not measured:\npair 3: nothing in the volume is denser" in done.stderr
    nobody = CliRunner().invoke(app, [*words, "--bundle", str(translator_bundle("arterial"))])
    assert nobody.exit_code == 1
    (odd / "pairs.tsv").write_text("".join((odd / "pairs.tsv").read_text().splitlines(True)[:-2]))
    nobody = CliRunner().invoke(app, [*words, "--bundle", str(translator_bundle("arterial"))])
    assert nobody.exit_code == 1
    assert "no pair on the test side has the phase of a bundle" in nobody.stderr
    assert nobody.stdout == ""


def test_a_sweep_of_steps_needs_every_pair(odd: Path, translator_bundle: Callable[..., Path]) -> None:
    words = ["evaluate", "--pairs", str(odd), "--provider", "cpu", "--threads", "1", "--sweep-steps"]
    done = CliRunner().invoke(app, [*words, "--bundle", str(translator_bundle("venous"))])
    assert done.exit_code == 1
    assert "pair 3: nothing in the volume is denser" in done.stderr


def test_a_refresh_names_them_all_before_anything_is_learnt(
    odd: Path, tmp_path: Path, translator_bundle: Callable[..., Path]
) -> None:
    wanted = Request(
        translator_bundle("venous"), odd, tmp_path, tmp_path, [], 1.0, 0.1, SessionPolicy(provider="cpu")
    )
    with pytest.raises(PairsUnusable, match=r"pair 3: nothing in the volume.*; pair 4, venous: "):
        measured(wanted.bundle, wanted)


def test_the_body_of_a_pair_is_the_phantoms_body_give_or_take_a_rim() -> None:
    case = phantom_case(make_phantom(2, COARSE), with_oracle=False)
    found = body_mask(case.source)
    assert found.shape == case.body.shape
    assert (found & case.body).sum() > 0.9 * case.body.sum()
    assert found.sum() < 1.6 * case.body.sum()


def test_no_slice_beyond_the_end_of_a_body_is_measured() -> None:
    hu = np.full((16, 40, 40), -1000, np.float32)
    hu[4:12, 8:32, 8:32] = 40
    found = body_mask(Volume(hu, Geometry(hu.shape, (5.0, 4.0, 4.0))))
    assert np.flatnonzero(found.any(axis=(1, 2))).tolist() == list(range(4, 12))
    assert found[4:12, 8:32, 8:32].mean() > 0.99


def test_a_folder_that_has_no_such_pairs_is_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(PairsUnusable, match=r"pairs\.tsv"):
        list(folder_cases(tmp_path))
    with pytest.raises(PairsUnusable, match="no pair is on the validation side"):
        list(folder_cases(prepared, "validation"))
