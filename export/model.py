"""What the exporter asks of a finished model, whatever it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from engine.bundle import LatentSpec, SamplerSpec
from engine.volume import Float32
from train.checkpoint import Checkpoint
from train.config import RunConfig
from train.s2ldm.quantizer import VectorQuantizer


class Model(Protocol):
    """Averaged weights of one checkpoint, as the graphs of one family."""

    @property
    def family(self) -> Literal["s2ldm", "translator"]:
        """How the engine runs the graphs."""
        ...

    @property
    def config(self) -> RunConfig:
        """What it was trained with."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """What its checkpoint says: see ``facts_of``."""
        ...

    def graphs(self) -> dict[str, nn.Module]:
        """The modules of the bundle's graphs by name, in evaluation mode."""
        ...

    def inputs(self) -> dict[str, dict[str, Tensor]]:
        """Example inputs of every graph by name; their shapes are the graph's."""
        ...

    def outputs(self) -> dict[str, str]:
        """The name of every graph's output."""
        ...

    def latent(self) -> LatentSpec | None:
        """The space the sampler works in, if there is one."""
        ...

    def sampler(self) -> SamplerSpec | None:
        """What the engine is told about running the denoiser, if there is one."""
        ...

    def quantizer(self) -> VectorQuantizer | None:
        """What the decoder rounds latents with, if it does."""
        ...


@dataclass(frozen=True, slots=True)
class Called:
    """Any way to run a graph, in the shape the engine's families ask for."""

    run: Callable[..., Float32]
    inputs: Mapping[str, Any]
    """By name; only the names are looked at."""

    def __call__(self, **inputs: Float32) -> Float32:
        """What ``run`` gives."""
        return self.run(**inputs)


def facts_of(found: Checkpoint) -> dict[str, Any]:
    """How long a model was trained, for the bundle's card."""
    return found.facts() | {"total_steps": found.total_steps}
