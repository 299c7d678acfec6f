from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from engine.bundle import Manifest, digest_files, manifest_bytes, read_bundle, write_manifest
from engine.errors import BundleInvalid

GRAPH_FILES = {"encoder": "encoder.onnx", "denoiser": "denoiser.onnx", "decoder": "decoder.onnx"}


def content(folder: Path, **changes: Any) -> dict[str, Any]:
    base = {
        "format": 1, "family": "s2ldm", "phase": "arterial", "model_id": "m-1", "model_name": "m",
        "model_version": "1.0.0", "window_hu": [-200, 400], "spacing_mm": [3, 1.5, 1.5], "tile": [16, 32, 32],
        "overlap": 0.25, "latent": {"scale": 0.9, "channels": 4, "factor": [2, 4, 4]},
        "sampler": {"name": "bridge", "formulation": "bridge", "steps": 2},
        "composition": {"detail": 1.0, "edge_hu": 20}, "graphs": GRAPH_FILES, "files": digest_files(folder),
        "parity": {}, "metrics": {}, "run": {}, "intended_use": "tests", "licence": "none", "opset": 18,
        "created": "2026-01-02T03:04:05Z",
    }  # fmt: skip
    return base | changes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in GRAPH_FILES.values():
        (tmp_path / name).write_bytes(name.encode())
    write_manifest(tmp_path, Manifest.model_validate(content(tmp_path)))
    return tmp_path


def rewrite(folder: Path, **changes: Any) -> None:
    (folder / "bundle.json").write_text(json.dumps(content_without_manifest(folder, **changes)))


def content_without_manifest(folder: Path, **changes: Any) -> dict[str, Any]:
    (folder / "bundle.json").unlink(missing_ok=True)
    return content(folder, **changes)


def test_what_the_exporter_writes_the_engine_reads(folder: Path) -> None:
    bundle = read_bundle(folder)
    assert bundle.manifest.graphs == GRAPH_FILES
    assert bundle.graph_bytes("decoder") == b"decoder.onnx"
    assert bundle.digest == write_manifest(folder, bundle.manifest)
    assert Manifest.model_validate_json(manifest_bytes(bundle.manifest)) == bundle.manifest


def test_one_changed_byte_is_refused(folder: Path) -> None:
    (folder / "encoder.onnx").write_bytes(b"encoder.onnY")
    with pytest.raises(BundleInvalid, match=r"encoder\.onnx has sha256"):
        read_bundle(folder)


def test_a_graph_changed_after_the_check_is_refused_when_it_is_loaded(folder: Path) -> None:
    bundle = read_bundle(folder)
    (folder / "encoder.onnx").write_bytes(b"other")
    with pytest.raises(BundleInvalid, match="sha256"):
        bundle.graph_bytes("encoder")


def test_a_missing_an_unknown_and_an_odd_file_are_refused(folder: Path) -> None:
    (folder / "notes.txt").write_text("?")
    with pytest.raises(BundleInvalid, match=r"notes\.txt not named"):
        read_bundle(folder)
    (folder / "notes.txt").unlink()
    elsewhere = folder / "encoder.onnx"
    elsewhere.rename(folder.parent / "away.onnx")
    with pytest.raises(BundleInvalid, match=r"missing encoder\.onnx"):
        read_bundle(folder)
    elsewhere.symlink_to(folder.parent / "away.onnx")
    with pytest.raises(BundleInvalid, match="not a plain file"):
        read_bundle(folder)


def test_no_folder_no_json_and_another_format_are_refused(folder: Path) -> None:
    with pytest.raises(BundleInvalid, match="cannot be read"):
        read_bundle(folder / "nowhere")
    for text, reason in (("{", "not JSON"), ("[]", "format None"), ('{"format": 2}', "format 2")):
        (folder / "bundle.json").write_text(text)
        with pytest.raises(BundleInvalid, match=reason):
            read_bundle(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"family": "oracle"}, "family"),
        ({"phase": "delayed"}, "phase"),
        ({"colour": "red"}, "colour"),
        ({"window_hu": [400, -200]}, "is empty"),
        ({"window_hu": [-200, float("inf")]}, "finite"),
        ({"graphs": {"encoder": "encoder.onnx"}}, "needs graphs"),
        ({"graphs": GRAPH_FILES | {"decoder": "other.onnx"}}, "have no digest"),
        ({"tile": [15, 32, 32]}, "multiple of the latent factor"),
        ({"latent": None}, "needs latent and sampler"),
        ({"overlap": 0.9}, "overlap"),
        ({"sampler": {"name": "ddim", "formulation": "bridge", "steps": 2}}, "cannot run"),
        ({"sampler": {"name": "ddim", "formulation": "conditional", "steps": 2000}}, "do not fit"),
        ({"created": "2026-01-02T03:04:05"}, "created"),
        ({"files": {"encoder.onnx": "12"}}, "files"),
    ],
)
def test_a_manifest_that_says_something_impossible_is_refused(
    folder: Path, changes: dict[str, Any], reason: str
) -> None:
    rewrite(folder, **changes)
    with pytest.raises(BundleInvalid, match=reason):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["../encoder.onnx", "/etc/passwd", ".hidden", "a/b.onnx", "bundle.json"])
def test_a_file_name_never_leads_out_of_the_folder(folder: Path, name: str) -> None:
    (folder / "bundle.json").unlink()
    with pytest.raises(ValidationError, match="is not allowed"):
        Manifest.model_validate(content(folder, files=digest_files(folder) | {name: "0" * 64}))


def test_a_translator_needs_neither_latent_nor_sampler(folder: Path) -> None:
    rewrite(folder, family="translator", graphs={"translator": "encoder.onnx"}, latent=None, sampler=None)
    assert read_bundle(folder).manifest.latent is None
