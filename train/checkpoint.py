"""One file holds all a run needs to go on as if nothing had happened; it is replaced in one move.

A checkpoint is only tensors, numbers and strings, so it is read with ``weights_only=True``: a checkpoint
from elsewhere cannot run code.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

FORMAT = 1
NAME = "checkpoint.pt"


class CheckpointUnusable(Exception):
    """A checkpoint cannot be resumed or exported; says which file and why."""

    def __init__(self, file: Path, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = file
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """``config`` is the whole training configuration as JSON; ``digest`` that of the keys this stage uses.

    ``total_steps`` and ``max_minutes`` are 𝒯 of eq. 3: a resumed run must use the same.
    """

    stage: str
    config: str
    digest: str
    step: int
    elapsed_s: float
    total_steps: int
    max_minutes: float | None
    states: Mapping[str, Any]
    rng: Mapping[str, Any]
    extras: Mapping[str, Any] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """How long it was trained and under what, for the cards of what is built on it."""
        minutes = round(self.elapsed_s / 60, 2)
        return {"steps": self.step, "minutes": minutes, "config_digest": self.digest}


def save(file: Path, checkpoint: Checkpoint) -> None:
    """Write beside, flush to disk, rename: a reader sees the old file or the new one, never a part."""
    temporary = file.with_name(f".{file.name}.tmp")
    content = {name: getattr(checkpoint, name) for name in Checkpoint.__slots__} | {"format": FORMAT}
    with temporary.open("wb") as stream:
        torch.save(content, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def file_of(place: Path) -> Path:
    """The checkpoint itself, whether it or the folder of its run is named."""
    return place / NAME if place.is_dir() else place


def load(file: Path, stage: str | None = None) -> Checkpoint:
    """Read and check. Raises CheckpointUnusable if missing, damaged, of another format or another stage."""
    if not file.is_file():
        raise CheckpointUnusable(file, "there is no such file")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointUnusable(file, f"cannot be read: {error}") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise CheckpointUnusable(file, f"not a checkpoint of format {FORMAT}")
    checkpoint = Checkpoint(**content)
    if stage is not None and checkpoint.stage != stage:
        raise CheckpointUnusable(file, f"is of stage {checkpoint.stage!r}, not {stage!r}")
    return checkpoint


def require_same(file: Path, checkpoint: Checkpoint, digest: str) -> None:
    """Refuse to resume under another configuration: S of eq. 3 and the schedules would change."""
    if checkpoint.digest != digest:
        raise CheckpointUnusable(
            file,
            f"was written under another configuration ({checkpoint.digest[:12]}, now {digest[:12]});"
            " resume with the one in run.json, or start in another folder",
        )


def averaged(ema: Mapping[str, Any]) -> dict[str, Any]:
    """The weights inside an AveragedModel's state."""
    return {k.removeprefix("module."): v for k, v in ema.items() if k != "n_averaged"}


def rng_state() -> dict[str, Any]:
    """State of every global generator, as plain numbers and tensors."""
    kind, keys, *rest = np.random.get_state()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_rng(state: Mapping[str, Any]) -> None:
    """Put every global generator back."""
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
