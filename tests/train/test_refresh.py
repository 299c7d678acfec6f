"""A model learns on from new pairs; a bundle comes of it only if no organ got worse."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from typer.testing import CliRunner

from engine.bundle import read_bundle, write_manifest
from engine.phantom import LABELS, PhantomOptions, make_phantom
from engine.session import SessionPolicy
from export.bundle import export_bundle
from node.cli import app
from train import checkpoint as ckpt
from train import loop
from train.aldm.config import AldmConfig
from train.aldm.train_aldm import train_aldm
from train.config import TrainConfig
from train.evaluate import PhaseRows
from train.real import PairsUnusable
from train.refresh.run import (
    RefreshFailed,
    Request,
    find_checkpoint,
    go_on,
    keep_or_drop,
    next_version,
    refresh,
    refreshed_config,
    slower,
    start_of,
)
from train.refresh.verdict import judge, verdict_html
from train.s2ldm.train_autoencoder import train_autoencoder
from train.s2ldm.train_diffusion import train_diffusion
from train.s2ldm.train_joint import train_joint
from train.unet25d.config import UNet25DConfig
from train.unet25d.train_unet25d import train_unet25d

COARSE = PhantomOptions(shape=(12, 40, 40), spacing_mm=(14.0, 9.0, 9.0), phases=("ncct", "venous"))
CPU = SessionPolicy(provider="cpu", threads=1)
SIDES = {1: "train", 2: "validation", 3: "test", 4: "test"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``prepare`` would write of four phantoms, with labels."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = ["ncct\tvenous\tpatient\tsplit"]
    for seed, side in SIDES.items():
        phantom = make_phantom(seed, COARSE)
        place = folder / f"p{seed}"
        place.mkdir()
        for name, hu in (*phantom.phases.items(), ("labels", phantom.labels)):
            image = sitk.GetImageFromArray(hu)
            image.SetSpacing(phantom.geometry.spacing_mm[::-1])
            sitk.WriteImage(image, str(place / f"{name}.nii.gz"))
        lines.append(f"p{seed}/ncct.nii.gz\tp{seed}/venous.nii.gz\tp{seed}\t{side}")
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n")
    (folder / "labels.json").write_text(json.dumps({"liver": LABELS["liver"], "spleen": LABELS["spleen"]}))
    return folder


@dataclass(frozen=True)
class Model:
    """``tiny`` after two steps of either stage: it paints next to nothing, and that is enough here."""

    config: TrainConfig
    cache: Path
    stage_one: Path
    stage_two: Path


@pytest.fixture(scope="module")
def model(tiny: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder, values = tmp_path_factory.mktemp("model"), tiny.model_dump()
    values["data"] |= {"phantoms": 1}
    for stage in ("autoencoder", "diffusion"):
        values[stage]["loop"] |= {"steps": 2, "batch": 1, "validation_crops": 1}
    config = TrainConfig.model_validate(values)
    train_autoencoder(config, folder / "one", folder / "cache")
    train_diffusion(config, folder / "one", folder / "two", folder / "cache")
    return Model(config, folder / "cache", folder / "one", folder / "two")


@pytest.fixture(scope="module")
def bundle(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in-use") / "venous"
    export_bundle(model.stage_two, folder)
    return folder


def request(bundle: Path, pairs: Path, tmp_path: Path, **changes: Any) -> Request:
    values: dict[str, Any] = {
        "bundle": bundle, "cases": pairs, "out": tmp_path / "out", "cache": tmp_path / "cache",
        "checkpoints": [tmp_path], "minutes": 5.0, "rate": 0.1, "policy": CPU, "steps": 2,
    }  # fmt: skip
    return Request(**values | changes)


@pytest.mark.timeout(900)
def test_a_refresh_is_stopped_resumed_compared_exported_and_activated(
    model: Model, bundle: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = shutil.copytree(pairs, tmp_path / "pairs")
    monkeypatch.setenv("S2NODE_STORAGE__DATA_DIR", str(tmp_path / "data"))
    out = tmp_path / "out"
    words = ["train", "refresh", "--cases", str(pairs), "--from", str(bundle), "--out", str(out)]
    words += ["--checkpoint", str(model.stage_two.parent), "--cache", str(tmp_path / "cache")]
    words += ["--provider", "cpu", "--threads", "1", "--steps", "3", "--rate", "0.000001"]
    with monkeypatch.context() as patch:
        stop_after_one_step(patch)
        stopped = CliRunner().invoke(app, words)
    assert stopped.exit_code == 1, stopped.output
    assert "stopped after 1 steps: add --resume" in stopped.output
    done = CliRunner().invoke(app, [*words, "--resume", "--activate"])
    assert done.exit_code == 0, done.output
    manifest = read_bundle(out / "bundle").manifest
    assert manifest.model_id == "s2ldm-tiny-venous-0.0.0+r1"
    card: Any = manifest.run
    assert card["config"]["data"]["folder"] == str(pairs)
    assert card["stage_one"] == {
        "went_on_from": {"steps": 2, "config_digest": card["stage_one"]["went_on_from"]["config_digest"]}
    }
    verdict = json.loads((out / "verdict.json").read_text())
    assert verdict["accepted"]
    assert verdict["organs"] == 2
    assert [(row["region"], row["patients"]) for row in verdict["regions"]] == [
        ("body", 2), ("liver", 2), ("spleen", 2),
    ]  # fmt: skip
    page = (out / "comparison.html").read_text()
    assert "in the body and the 2 organs judged: exported" in page
    assert all(word in page for word in ("Verdict", "In use: s2ldm-tiny", "Refreshed: s2ldm-tiny", "liver"))
    active = json.loads((tmp_path / "data" / "models" / "active.json").read_text())["active"]["venous"]
    assert active[-1]["model_id"] == manifest.model_id
    assert not (out / "candidate").exists()
    again = CliRunner().invoke(app, [*words, "--resume"])
    assert again.exit_code == 1
    assert "exists already: choose another --out" in again.output
    shutil.rmtree(out / "bundle")
    (pairs / "labels.json").unlink()
    unjudged = CliRunner().invoke(app, [*words, "--resume", "--activate"])
    assert unjudged.exit_code == 1
    assert "No organ was judged" in unjudged.output
    assert read_bundle(out / "bundle").manifest.model_id == manifest.model_id
    assert (
        json.loads((tmp_path / "data" / "models" / "active.json").read_text())["active"]["venous"] == active
    )


def stop_after_one_step(patch: pytest.MonkeyPatch) -> None:
    real = loop.one_step

    def step(run: loop.Run) -> dict[str, torch.Tensor]:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(run)

    patch.setattr(loop, "one_step", step)


def test_a_model_that_got_worse_is_not_kept(tmp_path: Path) -> None:
    old = rows([1, 1, 1], [20] * 3)
    for better, new in ((True, rows([0, 0, 0], [20] * 3)), (False, rows([2, 3, 4], [20] * 3))):
        candidate, place = tmp_path / f"candidate-{better}", tmp_path / f"bundle-{better}"
        candidate.mkdir()
        verdict = judge(old, new)
        assert verdict.accepted is better
        keep_or_drop(candidate, verdict, place)
        assert not candidate.exists()
        assert place.exists() is better


def test_the_checkpoint_is_found_by_the_digest_the_bundle_names(
    model: Model, bundle: Path, tmp_path: Path
) -> None:
    known = read_bundle(bundle)
    file = model.stage_two / ckpt.NAME
    assert find_checkpoint(known, [model.stage_one, model.stage_two.parent]) == file
    assert find_checkpoint(known, [file]) == file
    assert find_checkpoint(known, [model.stage_one, tmp_path / "nowhere"]) is None
    older = {k: v for k, v in known.manifest.run.items() if k != "checkpoint_sha256"}
    (tmp_path / "older").mkdir()
    for graph in known.manifest.files:
        (tmp_path / "older" / graph).write_bytes((bundle / graph).read_bytes())
    write_manifest(tmp_path / "older", known.manifest.model_copy(update={"run": older}))
    with pytest.raises(RefreshFailed, match=r"does not say which checkpoint .* export it again"):
        find_checkpoint(read_bundle(tmp_path / "older"), [file])


def test_without_its_checkpoint_an_s2ldm_goes_on_from_the_weights_in_its_graphs(
    trained: Any, tmp_path: Path
) -> None:
    export_bundle(trained.stage_two, tmp_path / "venous")
    known, original = read_bundle(tmp_path / "venous"), ckpt.load(trained.stage_two / ckpt.NAME)
    nowhere = [tmp_path / "nowhere"]
    wanted = request(known.folder, tmp_path, tmp_path, cache=trained.cache, checkpoints=nowhere)
    start = ckpt.load(start_of(known, wanted))
    assert (start.stage, start.states["scale"]) == ("diffusion", original.states["scale"])
    assert start.config == original.config
    for part in ("autoencoder", "ema"):
        for name, weight in original.states[part].items():  # a codebook's averages are of training alone
            if "cluster" not in name and name not in ("quantizer.seeded", "n_averaged"):
                assert torch.allclose(start.states[part][name], weight, atol=1e-3, rtol=1e-3), name
    values = trained.config.model_dump()
    values["diffusion"]["optimiser"]["lr"] = 1e-12
    values["diffusion"]["loop"] |= {"steps": 2, "validation_crops": 1}
    after = ckpt.load(go_on(TrainConfig.model_validate(values), start, wanted))
    for name, weight in start.states["denoiser"].items():
        assert torch.allclose(weight, after.states["denoiser"][name], atol=1e-6), name
    card = json.loads((wanted.run / "run.json").read_text())
    assert card["stage_one"]["went_on_from"]["graphs_of"] == known.digest


def test_cases_that_were_not_prepared_and_patients_that_are_not_there_are_refused(
    model: Model, bundle: Path, pairs: Path, tmp_path: Path
) -> None:
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "cases.tsv").touch()
    with pytest.raises(PairsUnusable, match="train prepare"):
        refresh(request(bundle, tmp_path / "cases", tmp_path))
    (tmp_path / "some").mkdir()
    lines = (pairs / "pairs.tsv").read_text().replace("p1", f"{pairs}/p1").splitlines()
    (tmp_path / "some" / "pairs.tsv").write_text("\n".join(lines[:2]) + "\n")
    with pytest.raises(PairsUnusable, match="no pair is on the test side"):
        refresh(request(bundle, tmp_path / "some", tmp_path, checkpoints=[model.stage_two]))
    assert not (tmp_path / "out").exists()


def test_a_key_the_model_cannot_have_ends_with_78(
    model: Model, bundle: Path, pairs: Path, tmp_path: Path
) -> None:
    wrong = {
        "[diffusion]\nlayers = 3\n": "diffusion.layers",
        "[data]\nwindow_hu = [-100, 300]\n": "has to stay",
    }
    words = ["train", "refresh", "--cases", str(pairs), "--from", str(bundle), "--out", str(tmp_path / "o")]
    words += ["--checkpoint", str(model.stage_two), "--config", str(tmp_path / "wrong.toml")]
    for text, reason in wrong.items():
        (tmp_path / "wrong.toml").write_text(text)
        refused = CliRunner().invoke(app, words)
        assert refused.exit_code == 78
        assert reason in refused.output


def test_stage_three_goes_on_from_its_own_weights(model: Model, tmp_path: Path, bundle: Path) -> None:
    values = model.config.model_dump() | {"joint": {"loop": {"steps": 2, "validation_crops": 1}}}
    config = TrainConfig.model_validate(values)
    start = ckpt.load(train_joint(config, model.stage_two, tmp_path / "three", model.cache))
    still = TrainConfig.model_validate(values | {"joint": values["joint"] | {"optimiser": {"lr": 1e-12}}})
    wanted = request(bundle, tmp_path, tmp_path, cache=model.cache)
    after = ckpt.load(go_on(still, start, wanted))
    for name, weight in start.states["translator"].items():
        assert torch.allclose(weight, after.states["translator"][name], atol=1e-6), name
    assert after.stage == "joint"
    assert after.states["scale"] == start.states["scale"]


def test_a_comparison_method_goes_on_from_its_own_weights(model: Model, tmp_path: Path, bundle: Path) -> None:
    section = {"features": [8] * 6, "loop": {"steps": 1, "validation_crops": 1}}
    values = {"data": model.config.data.model_dump(), "record": {"picture_minutes": 0}, "unet25d": section}
    config = UNet25DConfig.model_validate(values)
    start = ckpt.load(train_unet25d(config, tmp_path / "plain", model.cache))
    still = UNet25DConfig.model_validate(values | {"unet25d": section | {"optimiser": {"lr": 1e-12}}})
    after = ckpt.load(go_on(still, start, request(bundle, tmp_path, tmp_path, cache=model.cache)))
    for name, weight in start.states["network"].items():
        assert torch.allclose(weight, after.states["network"][name], atol=1e-6), name
    export_bundle(tmp_path / "plain", tmp_path / "in-use")
    alone = request(tmp_path / "in-use", tmp_path, tmp_path, checkpoints=[tmp_path / "nowhere"])
    with pytest.raises(RefreshFailed, match=r"nowhere, and its .* not an S²LDM .*: copy the checkpoint"):
        start_of(read_bundle(tmp_path / "in-use"), alone)


def test_of_aldm_the_denoiser_alone_goes_on(model: Model, tmp_path: Path, bundle: Path, pairs: Path) -> None:
    adam = {"optimiser": {"lr": 1e-3, "hold": 1.0}}
    section = {
        "vqgan": {"channels": (8, 16), "norm_groups": 8, "codes": 64} | adam,
        "spade": {"channels": (8,), "hidden": 8} | adam,
        "denoiser": {"channels": (16, 16), "norm_groups": 8, "head_channels": 8} | adam,
        "sampler": {"steps": 2, "eta": 0.0},
        "loop": {"steps": 4, "validation_crops": 1},
    }
    values = {"data": model.config.data.model_dump(), "record": {"picture_minutes": 0}, "aldm": section}
    start = ckpt.load(train_aldm(AldmConfig.model_validate(values), tmp_path / "aldm", model.cache))
    wanted = request(bundle, pairs, tmp_path, steps=4, rate=1.0)
    config = refreshed_config(tmp_path, start, read_bundle(bundle), wanted)
    after = ckpt.load(go_on(config, start, wanted))
    for part in ("vqgan", "spade", "denoiser"):
        networks = [states[part]["network"] for states in (start.states, after.states)]
        moved = any(not torch.equal(old, networks[1][name]) for name, old in networks[0].items())
        assert moved == (part == "denoiser"), part
    assert after.states["scale"] == start.states["scale"] > 0


def test_versions_count_and_every_rate_of_a_section_is_lowered() -> None:
    assert [next_version(v) for v in ("1.0.0", "1.0.0+r1", "1.0.0+r9")] == [
        "1.0.0+r1",
        "1.0.0+r2",
        "1.0.0+r10",
    ]
    section = {"lr": 2.0, "optimiser": {"lr": 1.0, "clip": 1.0}, "parts": [1]}
    assert slower(section, 0.5) == {"lr": 1.0, "optimiser": {"lr": 0.5, "clip": 1.0}, "parts": [1]}


def rows(errors: list[float], body: list[float], names: list[str] | None = None) -> PhaseRows:
    """Patients whose liver is wrong by so much; the last has no liver where there is one error less."""
    found = PhaseRows({"model_id": "m"}, names or [f"pair {n}" for n, _ in enumerate(body)])
    for number, of_body in enumerate(body):
        organs = {"liver": {"made": 100 + errors[number], "truth": 100.0}} if number < len(errors) else {}
        found.model.append({"body": {"mae_hu_bundle_window": of_body}, "organs": organs})
    return found


def test_worse_is_worse_in_every_draw_and_better_on_the_whole_does_not_make_up_for_it() -> None:
    old = rows([-5, 5, -5, 5], [20] * 5)
    one_sided = judge(old, rows([7, 8, 7, -8], [10] * 5))
    assert one_sided.worse == ("liver",)
    assert not one_sided.accepted
    assert [c.patients for c in one_sided.changes] == [5, 4]
    assert one_sided.changes[1].difference_hu == pytest.approx(2.5)
    mixed = judge(old, rows([9, 1, 9, 2], [20] * 5))
    assert mixed.accepted
    assert mixed.changes[1].low_hu < 0 < mixed.changes[1].high_hu
    assert judge(old, rows([-5.05, 5.05, 5.05, 5.05], [20] * 5)).accepted, "nobody sees a twentieth of a HU"
    assert judge(old, rows([5] * 4, [21, 22, 23, 22, 21])).worse == ("body",)
    html = verdict_html(one_sided, "a<b", "new")
    assert "a&lt;b" in html
    assert "not exported" in html


def test_other_patients_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="not the same patients"):
        judge(rows([1], [1], ["pair 1"]), rows([1], [1], ["pair 2"]))
    assert np.isfinite(judge(rows([], [1]), rows([], [2])).changes[0].low_hu)
