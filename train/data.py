"""Pairs of one patient: made or read once, kept on disk as int16, cut into crops by (seed, step).

A crop depends on nothing but the configuration, the seed and the step, so a resumed run sees exactly what
an undisturbed one would have seen, and two processes may fill one cache together.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.phantom import LABELS, PhantomOptions, make_phantom
from engine.volume import Float32
from train.config import PHASES as ENHANCED
from train.config import DataConfig, Phase
from train.disk import save_array
from train.real import data_digest as folder_digest
from train.real import folder_pairs
from train.real import split_digest as folder_split_digest
from train.split import Side

ENHANCING = (
    "aorta", "portal_vein", "liver", "spleen", "renal_cortex", "pancreas", "ivc", "hepatic_veins",
    "renal_vessels", "heart", "arteries",
)  # fmt: skip
"""Organs that crops are centred in; the vessels among them are a thousandth of the volume."""
PHANTOM_VERSION = 3
"""Raise it when the phantom draws other voxels for the same seed: cached cases are then made anew."""
CENTRES_PER_ORGAN = 512
PHASES = ("ncct", "arterial", "venous")


@dataclass(frozen=True, slots=True)
class Case:
    """One patient and phase on the model grid: HU int16, memory-mapped; crop centres (organ, n, 3)."""

    source: NDArray[np.int16]
    target: NDArray[np.int16]
    centres: NDArray[np.int16]
    phase: Phase


def to_unit(hu: Float32, window_hu: tuple[float, float]) -> Float32:
    """HU to [-1, 1], clipped to the window."""
    low, high = window_hu
    return np.clip((hu - low) * np.float32(2 / (high - low)) - 1, -1, 1).astype(np.float32)


class Pairs:
    """The training cases of one phase, or of both, and the deterministic stream of crops from them."""

    def __init__(self, config: DataConfig, cases: Sequence[Case]) -> None:
        self.config = config
        self.cases = list(cases)

    def batch(self, seed: int, step: int, size: int) -> tuple[Tensor, ...]:
        """(x_n, x_c), each (size, 1, D, H, W) in [-1, 1]: the same numbers for the same (seed, step).

        Where both phases are learnt, a third tensor (size,) has each crop's place in ``train.config.PHASES``.
        """
        rng = np.random.default_rng([seed, step])
        pairs = [self._crop(rng) for _ in range(size)]
        crops = [torch.from_numpy(np.stack([p[i] for p in pairs])[:, None]) for i in (0, 1)]
        if self.config.phase == "both":
            crops.append(torch.tensor([ENHANCED.index(p[2]) for p in pairs]))
        return tuple(crops)

    def _crop(self, rng: np.random.Generator) -> tuple[Float32, Float32, Phase]:
        case = self.cases[rng.integers(len(self.cases))]
        corner = self._corner(rng, case)
        where = tuple(slice(a, a + n) for a, n in zip(corner, self.config.crop, strict=True))
        n, c = (volume[where].astype(np.float32) for volume in (case.source, case.target))
        n = n + rng.normal(0, rng.uniform(0, self.config.extra_noise_hu), n.shape).astype(np.float32)
        return to_unit(n, self.config.window_hu), to_unit(c, self.config.window_hu), case.phase

    def _corner(self, rng: np.random.Generator, case: Case) -> list[int]:
        room = np.array(case.source.shape) - self.config.crop
        if not len(case.centres) or rng.random() >= self.config.organ_bias:
            return [int(rng.integers(r + 1)) for r in room]
        centre = case.centres[rng.integers(len(case.centres)), rng.integers(CENTRES_PER_ORGAN)]
        jitter = rng.integers(-np.array(self.config.crop) // 3, np.array(self.config.crop) // 3 + 1)
        corner = centre + jitter - np.array(self.config.crop) // 2
        return [int(v) for v in np.clip(corner, 0, room)]


def training_pairs(
    config: DataConfig, cache: Path, on_case: Callable[[int, int], None] | None = None
) -> Pairs:
    """The pairs stage 1 and 2 learn from; makes and caches what is missing."""
    if config.source == "folder":
        return Pairs(config, _folder_cases(config, cache, "train"))
    seeds = range(config.first_seed, config.first_seed + config.phantoms)
    return Pairs(config, _phantom_cases(config, cache, seeds, on_case))


def validation_pairs(config: DataConfig, cache: Path) -> Pairs:
    """A few cases never learnt from, for the curve in TensorBoard."""
    quiet = config.model_copy(update={"extra_noise_hu": 0.0})
    if config.source == "folder":
        return Pairs(quiet, _folder_cases(config, cache, "validation"))
    seeds = range(config.validation_seed, config.validation_seed + config.validation_phantoms)
    return Pairs(quiet, _phantom_cases(config, cache, seeds))


def _phantom_cases(
    config: DataConfig, cache: Path, seeds: range, on_case: Callable[[int, int], None] | None = None
) -> list[Case]:
    folder = cache / phantom_digest(config)
    folder.mkdir(parents=True, exist_ok=True)
    for wait in (False, True):  # first what nobody else is making, then whatever is left
        for done, seed in enumerate(seeds):
            with _lock(folder / f"{seed}.lock", wait) as mine:
                if mine and not (folder / f"{seed}.npy").exists():
                    _make_phantom_case(config, folder, seed)
            if on_case:
                on_case(done + 1, len(seeds))
    return [_open_phantom_case(folder, seed, phase) for phase in config.phases for seed in seeds]


def data_digest(config: DataConfig) -> str:
    """Sha256 of what a run learns from: the bytes of every volume, or all that phantoms are drawn from.

    Raises PairsUnusable where the configured folder cannot be used.
    """
    if config.source == "folder":
        return _over_phases(config, folder_digest)
    return _sha256({"phantoms": phantom_digest(config), "phase": config.phase, "seeds": _seeds(config)})


def split_digest(config: DataConfig) -> str:
    """Sha256 of who is learnt from and who is only watched: patients and sides, or seeds."""
    if config.source == "folder":
        return _over_phases(config, folder_split_digest)
    return _sha256(_seeds(config))


def _over_phases(config: DataConfig, digest: Callable[[DataConfig], str]) -> str:
    digests = [digest(each) for each in config.each_phase()]
    return digests[0] if len(digests) == 1 else _sha256(digests)


def _seeds(config: DataConfig) -> dict[str, list[int]]:
    return {
        "train": [config.first_seed, config.phantoms],
        "validation": [config.validation_seed, config.validation_phantoms],
    }


def _sha256(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def phantom_digest(config: DataConfig) -> str:
    """Names the cache folder: the phantom's version and every option that changes its voxels."""
    keys = ("spacing_mm", "phantom_shape", "noise_hu", "scale_jitter", "misregistration_mm")
    options = {"version": PHANTOM_VERSION} | {key: getattr(config, key) for key in keys}
    return _sha256(options)[:16]


def _make_phantom_case(config: DataConfig, folder: Path, seed: int) -> None:
    rng = np.random.default_rng([seed, 7])
    scale = 1 + rng.uniform(-config.scale_jitter, config.scale_jitter)
    low, high = config.noise_hu
    options = PhantomOptions(
        shape=config.phantom_shape,
        spacing_mm=tuple(float(s * scale) for s in config.spacing_mm),
        noise_hu=float(rng.uniform(low, high)),
        misregistration_mm=config.misregistration_mm,
        phases=PHASES,
    )
    phantom = make_phantom(seed, options)
    hu = np.stack([np.rint(phantom.phases[p]).clip(-2000, 4000).astype(np.int16) for p in PHASES])
    organs = [_centres(rng, phantom.labels == LABELS[organ]) for organ in ENHANCING]
    found = [c for c in organs if c is not None]
    save_array(folder / f"{seed}.centres.npy", np.stack(found) if found else np.zeros((0, 1, 3), np.int16))
    save_array(folder / f"{seed}.npy", hu)


def _centres(rng: np.random.Generator, organ: NDArray[np.bool_]) -> NDArray[np.int16] | None:
    where = np.flatnonzero(organ)
    if not len(where):
        return None
    chosen = rng.choice(where, CENTRES_PER_ORGAN)
    return np.stack(np.unravel_index(chosen, organ.shape), axis=1).astype(np.int16)


def _folder_cases(config: DataConfig, cache: Path, side: Side) -> list[Case]:
    """One side's cases of every phase that is learnt."""
    return [
        _open_case(stem, phase)
        for phase, each in zip(config.phases, config.each_phase(), strict=True)
        for stem in folder_pairs(each, cache, side)
    ]


def _open_case(stem: Path, phase: Phase) -> Case:
    """A case that ``folder_pairs`` prepared."""
    hu = np.load(stem.with_suffix(".npy"), mmap_mode="r")
    return Case(hu[0], hu[1], np.load(stem.with_suffix(".centres.npy")), phase)


def _open_phantom_case(folder: Path, seed: int, phase: Phase) -> Case:
    phases = np.load(folder / f"{seed}.npy", mmap_mode="r")
    centres = np.load(folder / f"{seed}.centres.npy")
    return Case(phases[0], phases[PHASES.index(phase)], centres, phase)


@contextmanager
def _lock(path: Path, wait: bool) -> Iterator[bool]:
    """Holds ``path`` for this process; yields False if another has it and ``wait`` is not asked for."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
