"""The bundle folder: ``bundle.json`` and its ONNX graphs, read only when every digest is right.

``export`` writes the graphs first, then ``bundle.json`` with :func:`write_manifest`; the engine reads the
folder with :func:`read_bundle`. The digest of a bundle is the sha256 of the bytes of ``bundle.json``, which
holds the sha256 of every other file, so one word names everything that runs. Each graph is one
self-contained file: weights in external files beside it are not supported.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, JsonValue, ValidationError, model_validator

from config.base import Frozen
from engine.errors import BundleInvalid

FORMAT = 1
MANIFEST = "bundle.json"

GRAPHS: dict[str, frozenset[str]] = {
    "s2ldm": frozenset({"encoder", "denoiser", "decoder"}),
    "translator": frozenset({"translator"}),
}
"""The graphs a bundle of each family holds."""

GRAPHS_BESIDES: dict[str, frozenset[str]] = {"s2ldm": frozenset({"condition"})}
"""The graphs it may hold besides."""

LASTING = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
"""Errors of the disk that are a bundle's own and do not pass by themselves; every other is the machine's."""

FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
"""A plain name inside the folder: no separator, no leading dot, so no way out of it."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class LatentSpec(Frozen):
    """The space in which the sampler works."""

    scale: Positive
    """Factor already multiplied into the encoder's ``e_n`` and divided out in the decoder."""
    channels: Count
    factor: tuple[Count, Count, Count]
    """How many voxels of (slice, row, column) one latent cell covers."""


class SamplerSpec(Frozen):
    """Which algorithm of ``engine.samplers`` runs, and its numbers."""

    name: Literal["bridge", "ddim", "dpm_solver"]
    formulation: Literal["bridge", "conditional", "literal"]
    steps: Count
    sigma: Annotated[float, Field(ge=0)] = 0.0
    """σ of the bridge's noise, or η of DDIM: 0 is deterministic."""
    T: Count = 1000
    """Length of the training schedule (not used by the bridge)."""
    beta_start: Positive = 0.0015
    beta_end: Positive = 0.0195
    prediction: Literal["epsilon", "v"] = "v"
    """What the denoiser's output is to ``ddim`` and ``dpm_solver``; the bridge's is always its velocity."""
    sdedit_strength: Fraction = 1.0
    """Formulation ``literal`` only: how much noise E_n gets before it is denoised."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.name == "bridge") != (self.formulation == "bridge"):
            raise ValueError(f"sampler {self.name!r} cannot run formulation {self.formulation!r}")
        if self.name != "bridge" and self.steps > self.T:
            raise ValueError(f"{self.steps} steps do not fit a schedule of T = {self.T}")
        return self


class CompositionSpec(Frozen):
    """How the model's result joins the source; see ``engine.compose``."""

    detail: Fraction = 1.0
    """1 keeps the source's own texture, 0 takes the model's."""
    edge_hu: Positive = 20.0
    """Width of the blend at either end of the window."""


class Manifest(Frozen):
    """Everything ``bundle.json`` says."""

    format: Literal[1]
    family: Literal["s2ldm", "translator"]
    phase: Literal["arterial", "venous"]
    model_id: Annotated[str, Field(min_length=1, max_length=64)]
    model_name: Annotated[str, Field(min_length=1, max_length=64)]
    model_version: Annotated[str, Field(min_length=1, max_length=64)]
    window_hu: tuple[float, float]
    """HU that the graphs see as -1 and +1."""
    spacing_mm: tuple[Positive, Positive, Positive]
    """The model grid, (slice, row, column)."""
    tile: tuple[Count, Count, Count]
    """Voxels of the model grid in one call of the graphs, (slice, row, column)."""
    overlap: Annotated[float, Field(ge=0, le=0.75)]
    """Least share of a tile that its neighbour covers too."""
    latent: LatentSpec | None = None
    sampler: SamplerSpec | None = None
    composition: CompositionSpec
    graphs: dict[str, str]
    variants: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Other forms of all graphs, by name: ``fp16`` computes in half precision, for GPUs."""
    files: dict[str, Sha256]
    """Every file of the folder but bundle.json itself."""
    parity: dict[str, JsonValue]
    metrics: dict[str, JsonValue]
    run: dict[str, JsonValue]
    intended_use: str
    licence: str
    opset: Count
    created: AwareDatetime

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if not self.window_hu[0] < self.window_hu[1]:
            raise ValueError(f"window_hu {self.window_hu} is empty")
        found, needed = set(self.graphs), GRAPHS[self.family]
        if found - GRAPHS_BESIDES.get(self.family, frozenset()) != needed:
            raise ValueError(f"family {self.family!r} needs graphs {sorted(needed)}, not {sorted(found)}")
        for name, graphs in {"graphs": self.graphs, **self.variants}.items():
            if set(graphs) != set(self.graphs):
                raise ValueError(f"variant {name!r} has graphs {sorted(graphs)}, not {sorted(self.graphs)}")
            if missing := sorted(set(graphs.values()) - set(self.files)):
                raise ValueError(f"graphs {missing} have no digest in files")
        for name in self.files:
            if not FILE_NAME.fullmatch(name) or name == MANIFEST:
                raise ValueError(f"file name {name!r} is not allowed")
        self._check_latent()
        return self

    def _check_latent(self) -> None:
        if self.family != "s2ldm":
            return
        if self.latent is None or self.sampler is None:
            raise ValueError("family 's2ldm' needs latent and sampler")
        if any(t % f for t, f in zip(self.tile, self.latent.factor, strict=True)):
            raise ValueError(f"tile {self.tile} is not a multiple of the latent factor {self.latent.factor}")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder whose every file was found and had the digest its manifest gives."""

    folder: Path
    manifest: Manifest
    digest: str

    def graph_bytes(self, graph: str, variant: str = "") -> bytes:
        """The bytes of one graph, checked again: what runs is what the digest names. BundleInvalid if not.

        ``variant`` names one of the manifest's; without, it is the graph itself.
        """
        graphs = self.manifest.variants[variant] if variant else self.manifest.graphs
        name = graphs[graph]
        data = _read(self.folder, name)
        _check_digest(self.folder, name, hashlib.sha256(data).hexdigest(), self.manifest.files[name])
        return data


def read_bundle(folder: Path) -> Bundle:
    """The verified bundle in ``folder``; BundleInvalid says what is wrong with it."""
    data = _read(folder, MANIFEST)
    manifest = _parse(folder, data)
    _check_listing(folder, manifest.files)
    for name, expected in manifest.files.items():
        _check_digest(folder, name, file_sha256(folder / name), expected)
    return Bundle(folder=folder, manifest=manifest, digest=hashlib.sha256(data).hexdigest())


def write_manifest(folder: Path, manifest: Manifest) -> str:
    """Write ``bundle.json`` atomically and canonically (sorted keys, UTF-8); returns the bundle's digest."""
    data = manifest_bytes(manifest)
    temporary = folder / f".{MANIFEST}.tmp"
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MANIFEST)
    return hashlib.sha256(data).hexdigest()


def manifest_bytes(manifest: Manifest) -> bytes:
    """The one spelling of a manifest: equal manifests give equal bytes."""
    content = manifest.model_dump(mode="json", exclude=None if manifest.variants else {"variants"})
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def digest_files(folder: Path) -> dict[str, str]:
    """``files`` of a manifest: the sha256 of every file in ``folder`` but ``bundle.json``."""
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
    return {name: file_sha256(folder / name) for name in names}


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except LASTING as error:
        raise BundleInvalid(folder, f"{name} cannot be read: {error.strerror}") from error


def _parse(folder: Path, data: bytes) -> Manifest:
    try:
        content = json.loads(data)
    except ValueError as error:
        raise BundleInvalid(folder, f"{MANIFEST} is not JSON: {error}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise BundleInvalid(folder, f"format {found!r} is not {FORMAT}, the one this engine knows")
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise BundleInvalid(folder, f"{MANIFEST}: {_reasons(error)}") from error


def _reasons(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'manifest'}: {e['msg']}" for e in error.errors())


def _check_listing(folder: Path, files: Mapping[str, str]) -> None:
    found = {path.name: path for path in folder.iterdir() if path.name != MANIFEST}
    if missing := sorted(set(files) - set(found)):
        raise BundleInvalid(folder, f"missing {', '.join(missing)}")
    if unknown := sorted(set(found) - set(files)):
        raise BundleInvalid(folder, f"{', '.join(unknown)} not named in {MANIFEST}")
    if odd := sorted(name for name, path in found.items() if path.is_symlink() or not path.is_file()):
        raise BundleInvalid(folder, f"{', '.join(odd)} not a plain file")


def _check_digest(folder: Path, name: str, found: str, expected: str) -> None:
    if found != expected:
        raise BundleInvalid(folder, f"{name} has sha256 {found[:12]}…, {MANIFEST} says {expected[:12]}…")
