"""Volume in, synthesis out: the whole of the engine on one page.

check → body box → model grid → tiles through the family → residual → source grid → joined to the source
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from config.base import Frozen
from engine import compose
from engine.body import Body, body_weight, find_body, holds_body
from engine.bundle import Bundle, Manifest, SamplerSpec, read_bundle
from engine.errors import BundleInvalid, GraphTooLarge, SynthesisFailed, VolumeUnsupported
from engine.families import FAMILIES
from engine.grid import Grid, model_grid, slab_by_slab, to_model, to_source
from engine.noise import NoiseField
from engine.session import Encoded, Graph, Once, Runs, SessionPolicy, Timed, cpu_threads, open_graphs
from engine.synthesis import Finding, Synthesis
from engine.tiles import TilePlan, blend, plan_tiles
from engine.volume import Float32, Geometry, Shape3, Volume

Progress = Callable[[float], None]

SLAB = 2
"""Slices composed at a time: few enough that what is summed up stays in a processor's cache."""
MASK_SLAB = 32
"""Slices kept to the body at a time; the whole mask is handed to ITK for each slab."""
MODEL_SHARE = 0.95
"""Part of the progress bar that belongs to the tiles; composition has the rest."""


class VolumeLimits(Frozen):
    """What the engine takes on; outside it the volume is refused with VolumeUnsupported."""

    min_extent_mm: Annotated[float, Field(gt=0)] = 20.0
    """Smallest size along any axis: less shows no anatomy."""
    max_extent_mm: Annotated[float, Field(gt=0)] = 3000.0
    """Largest size along any axis: more is a wrong spacing."""
    min_spacing_mm: Annotated[float, Field(gt=0)] = 0.1
    """Smallest voxel edge."""
    max_coarseness: Annotated[float, Field(ge=1)] = 4.0
    """How many times wider than the model's a voxel may be along any axis."""
    max_voxels: Annotated[int, Field(ge=1)] = 1_000_000_000
    """Largest source: 4 bytes a voxel are held twice."""
    max_model_voxels: Annotated[int, Field(ge=1)] = 250_000_000
    """Largest model grid: 4 bytes a voxel are held three times."""


class Engine:
    """One bundle, loaded and ready; one synthesis at a time."""

    def __init__(self, bundle: Bundle, sessions: SessionPolicy, limits: VolumeLimits | None = None) -> None:
        """Load every graph. Raises BundleInvalid, ProviderMissing or GraphTooLarge."""
        opened = open_graphs(bundle, sessions)
        check_graphs(bundle, opened.graphs)
        self.bundle = bundle
        self.provider = opened.provider
        self.variant = opened.variant
        self.limits = limits or VolumeLimits()
        self._fallback = opened.fallback
        self._graphs = opened.graphs
        self._put = opened.put
        self._policy = sessions
        self._on_cpu: Engine | None = None
        self._threads = cpu_threads(sessions)

    def with_sampler(self, spec: SamplerSpec) -> Engine:
        """The same graphs under another sampler, to compare them: the digest stays the bundle's.

        ValueError for a family without one.
        """
        if self.bundle.manifest.sampler is None:
            raise ValueError(f"family {self.bundle.manifest.family!r} has no sampler")
        other = copy(self)
        other._on_cpu = None
        manifest = self.bundle.manifest.model_copy(update={"sampler": spec})
        other.bundle = replace(self.bundle, manifest=manifest)
        return other

    def synthesize(
        self,
        volume: Volume,
        *,
        seed: int,
        progress: Progress = lambda fraction: None,
        body: Body | None = None,
        encoded: Encoded | None = None,
    ) -> Synthesis:
        """The bundle's phase on ``volume``'s grid; the same volume and seed give the same bytes.

        ``progress`` is told fractions from 0 to 1; ``body`` is what ``find_body`` finds, where that is known
        already. ``encoded`` is what an engine of the same :attr:`encoding` has kept of this volume and body:
        it is used, and what is missing is added. Where ``auto`` took an accelerator whose memory is full,
        this volume goes to the CPU and a finding says so. Raises VolumeUnsupported, SynthesisFailed or
        GraphTooLarge.
        """
        try:
            return self._synthesize(volume, seed, progress, body, encoded)
        except GraphTooLarge as error:
            if self._policy.provider != "auto" or self.provider == "cpu":
                raise
            return self._without_accelerator(error)._synthesize(volume, seed, progress, body, None)

    @property
    def encoding(self) -> Hashable:
        """What the encodings of a volume's tiles follow from: engines that agree in it may share them."""
        m = self.bundle.manifest
        graphs = m.variants[self.variant] if self.variant else m.graphs
        encoders = sorted(FAMILIES[m.family].encoders & graphs.keys())
        files = tuple((name, m.files[graphs[name]]) for name in encoders)
        return (files, m.window_hu, m.spacing_mm, m.tile, m.overlap, m.latent, self.provider)

    def _without_accelerator(self, why: GraphTooLarge) -> Engine:
        """The same model on the CPU; its sessions are kept for the next time."""
        if self._on_cpu is None:
            cpu = self._policy.model_copy(update={"provider": "cpu"})
            self._on_cpu = Engine(self.bundle, cpu, self.limits)
        self._on_cpu._fallback = str(why)
        return self._on_cpu

    def _synthesize(
        self, volume: Volume, seed: int, progress: Progress, body: Body | None, encoded: Encoded | None
    ) -> Synthesis:
        manifest = self.bundle.manifest
        check_volume(volume, manifest, self.limits)
        seconds: dict[str, float] = {}
        with _timed(seconds, "body"):
            body = body or find_body(volume)
            grid = model_grid(volume.geometry, body.box, manifest.spacing_mm)
            check_model_grid(grid.model, self.limits)
        with _timed(seconds, "resample"):
            x = to_model(volume.hu, grid, self._threads)
            np.clip(x, *manifest.window_hu, out=x)
        with _timed(seconds, "tiles"):
            graphs: dict[str, Runs] = {n: Timed(graph, n, seconds) for n, graph in self._graphs.items()}
            guide, tiles = self._translate(
                x, body, grid, seed, graphs, encoded, lambda done: progress(MODEL_SHARE * done)
            )
        seconds["tiles"] -= sum(seconds.get(name, 0.0) for name in manifest.graphs)
        with _timed(seconds, "compose"):
            residual = np.subtract(guide, x, out=x)
            compose.detail_residual(residual, guide, manifest.composition.detail, grid.model.spacing_mm)
            del guide
            _keep_to_body(residual, body, grid)
            hu = _compose(volume.hu, residual, grid, manifest, self._threads)
        progress(1.0)
        return self._synthesis(volume.with_array(hu), seed, seconds, grid, tiles)

    def _translate(
        self,
        x: Float32,
        body: Body,
        grid: Grid,
        seed: int,
        graphs: Mapping[str, Runs],
        encoded: Encoded | None,
        progress: Progress,
    ) -> tuple[Float32, int]:
        """D(ẑ) in HU on the model grid, a tile at a time, and how many tiles went through the graphs.

        Where a tile holds air alone, or nothing near the body, x stays: the source is kept there whatever
        the model would say.
        """
        manifest = self.bundle.manifest
        family = FAMILIES[manifest.family]
        plan = plan_for(manifest, x.shape)
        noise = NoiseField(seed, latent_plane(manifest, plan))
        low, high = manifest.window_hu
        half = (high - low) / 2
        run = 0

        def at(start: Shape3) -> Mapping[str, Runs]:
            if encoded is None:
                return graphs
            encoders = {
                n: Once(graphs[n], (n, start), encoded, self._put) for n in family.encoders & graphs.keys()
            }
            return {**graphs, **encoders}

        def translate(tile: Float32, start: Shape3) -> Float32:
            nonlocal run
            if tile.max() <= low or not holds_body(body, grid, start, plan.tile):
                return tile
            run += 1
            normalised = self._put(((tile - low) / half - 1)[None, None])
            x_c = np.asarray(family.translate(manifest, at(start), noise, normalised, start))[0, 0]
            return _checked(x_c, tile.shape) * half + (low + half)

        result = np.empty_like(x)
        for where, slab in blend(x, plan, translate, progress):
            result[where] = slab
        return result, run

    def _synthesis(
        self, volume: Volume, seed: int, seconds: Mapping[str, float], grid: Grid, tiles: int
    ) -> Synthesis:
        manifest = self.bundle.manifest
        sampler = manifest.sampler if manifest.family == "s2ldm" else None
        return Synthesis(
            phase=manifest.phase,
            volume=volume,
            model_id=manifest.model_id,
            model_name=manifest.model_name,
            model_version=manifest.model_version,
            model_digest=self.bundle.digest,
            seed=seed,
            steps=sampler.steps if sampler else 0,
            sampler=sampler.name if sampler else "none",
            provider=f"{self.provider} {self.variant}".strip(),
            tiles=tiles,
            seconds=seconds,
            findings=tuple(self._findings(grid)),
        )

    def _findings(self, grid: Grid) -> Iterator[Finding]:
        manifest = self.bundle.manifest
        if self._fallback:
            yield Finding("PROVIDER-FALLBACK", f"ran on the {self.provider}: {self._fallback}")
        coarse = [s / m for s, m in zip(grid.source.spacing_mm, manifest.spacing_mm, strict=True)]
        if max(coarse) > 1.5:
            yield Finding("COARSER-THAN-MODEL", f"voxels are up to {max(coarse):.1f} times the model's")
        if any(n < t for n, t in zip(grid.model.shape, manifest.tile, strict=True)):
            yield Finding("SMALLER-THAN-TILE", f"the body's {grid.model.shape} voxels do not fill a tile")


def open_engine(folder: Path, policy: SessionPolicy) -> Engine:
    """The engine of the bundle in ``folder``. Raises BundleInvalid, ProviderMissing or GraphTooLarge."""
    return Engine(read_bundle(folder), policy)


def check_graphs(bundle: Bundle, graphs: Mapping[str, Graph]) -> None:
    """BundleInvalid where a graph does not take what its family gives it."""
    family = FAMILIES[bundle.manifest.family]
    for name in (*family.inputs, *sorted(graphs.keys() - family.inputs.keys())):
        found, expected = graphs[name].inputs, family.inputs.get(name, frozenset())
        if found.keys() - family.optional.get(name, frozenset()) != expected:
            raise BundleInvalid(
                bundle.folder, f"graph {name!r} takes {sorted(found)}, not {sorted(expected)}"
            )
        wanted = (1, 1, *bundle.manifest.tile)
        if "x" in found and not _fits(found["x"], wanted):
            raise BundleInvalid(bundle.folder, f"graph {name!r} takes x of shape {found['x']}, not {wanted}")
        if "c" in found and "condition" not in graphs:
            raise BundleInvalid(bundle.folder, f"graph {name!r} takes c, and no graph 'condition' makes it")


def check_volume(volume: Volume, manifest: Manifest, limits: VolumeLimits) -> None:
    """VolumeUnsupported, saying what and by how much, where the volume is outside ``limits``."""
    geometry = volume.geometry
    if volume.hu.size > limits.max_voxels:
        raise VolumeUnsupported(f"{volume.hu.size} voxels are more than {limits.max_voxels}")
    for axis, spacing, wanted, extent in zip(
        ("slices", "rows", "columns"),
        geometry.spacing_mm,
        manifest.spacing_mm,
        geometry.extent_mm,
        strict=True,
    ):
        most = wanted * limits.max_coarseness
        if not limits.min_spacing_mm <= spacing <= most:
            raise VolumeUnsupported(
                f"{axis} lie {spacing:g} mm apart, this model takes {limits.min_spacing_mm:g} to {most:g} mm"
            )
        if not limits.min_extent_mm <= extent <= limits.max_extent_mm:
            raise VolumeUnsupported(
                f"{axis} cover {extent:.1f} mm, not {limits.min_extent_mm:g} to {limits.max_extent_mm:g} mm"
            )
    if not (np.isfinite(volume.hu.min()) and np.isfinite(volume.hu.max())):
        raise VolumeUnsupported("the volume holds values that are not numbers")


def check_model_grid(model: Geometry, limits: VolumeLimits) -> None:
    """VolumeUnsupported where the body would be too many voxels of the model's size."""
    count = int(np.prod(model.shape, dtype=np.int64))
    if count > limits.max_model_voxels:
        raise VolumeUnsupported(
            f"the body is {count} voxels of the model, more than {limits.max_model_voxels}"
        )


def plan_for(manifest: Manifest, shape: tuple[int, ...]) -> TilePlan:
    """The bundle's tiles over a model grid of ``shape``."""
    slices, rows, columns = shape
    quantum = manifest.latent.factor if manifest.latent else (1, 1, 1)
    return plan_tiles((slices, rows, columns), manifest.tile, manifest.overlap, quantum)


def latent_plane(manifest: Manifest, plan: TilePlan) -> tuple[int, int]:
    """(row, column) cells of the latent grid that the tiles cover."""
    factor = manifest.latent.factor if manifest.latent else (1, 1, 1)
    return (plan.padded[1] // factor[1], plan.padded[2] // factor[2])


def _fits(found: tuple[int | str | None, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a graph's input takes ``wanted``; texts and None are free dimensions."""
    return len(found) == len(wanted) and all(
        f == w for f, w in zip(found, wanted, strict=True) if isinstance(f, int)
    )


def _keep_to_body(residual: Float32, body: Body, grid: Grid) -> None:
    """Table, clothes and air beside the patient get no residual: written over ``residual``."""

    def keep(start: int, stop: int) -> None:
        residual[start:stop] *= body_weight(body, grid, start, stop)

    slab_by_slab(keep, len(residual), MASK_SLAB, threads=1)  # ITK has threads of its own


def _compose(source: Float32, residual: Float32, grid: Grid, manifest: Manifest, threads: int) -> Float32:
    """The source with the residual added inside the box and the window, a slab at a time."""
    hu = np.empty_like(source)
    slices, rows, columns = grid.box
    for outside in (slice(0, slices.start), slice(slices.stop, None)):
        hu[outside] = source[outside]

    def join(start: int, stop: int) -> None:
        place = (slice(slices.start + start, slices.start + stop), rows, columns)
        hu[place[0]] = source[place[0]]
        slab = to_source(residual, grid, start, stop)
        hu[place] = compose.add_within_window(
            source[place], slab, manifest.window_hu, manifest.composition.edge_hu
        )

    slab_by_slab(join, grid.box_shape[0], SLAB, threads)
    return hu


def _checked(x_c: Float32, shape: tuple[int, ...]) -> Float32:
    if x_c.shape != shape:
        raise SynthesisFailed(f"the model gave a tile of {x_c.shape} for one of {shape}")
    if not np.isfinite(x_c).all():
        raise SynthesisFailed("the model gave values that are not numbers")
    return x_c


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
