"""What the engine hands over: a synthesis and everything somebody must know about how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.volume import Volume


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a reader of the result should know; ``code`` is stable, ``text`` is for people."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Synthesis:
    """A synthetic volume on the source's grid."""

    phase: str
    volume: Volume
    model_id: str
    model_name: str
    model_version: str
    model_digest: str
    """sha256 of the bundle's manifest."""
    seed: int
    steps: int
    """Sampler steps; 0 for a family without a sampler."""
    sampler: str
    """Name of the sampler; "none" for a family without one."""
    provider: str
    """The execution provider that ran, and the bundle's variant if it was one: "cuda fp16"."""
    tiles: int
    """How many tiles went through the graphs; the plan's others hold air alone."""
    seconds: Mapping[str, float]
    """Stage → wall-clock seconds, which sum up to the whole: body, resample, each graph by its name, tiles
    (cutting, blending and the sampler's own sums), compose."""
    findings: tuple[Finding, ...]
