"""The one graph of a translator: a comparison method's network, whatever it sees of a tile at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from export.model import facts_of
from train import checkpoint as ckpt
from train.config import RunConfig
from train.methods import METHODS
from train.planes import Translator


class TranslatorGraph(nn.Module):
    """x (1, 1, D, H, W) in [-1, 1] to x_c, clamped to [-1, 1]; slices are folded and unfolded inside."""

    def __init__(self, translator: Translator) -> None:
        super().__init__()
        self.translator = translator

    def forward(self, x: Tensor) -> Tensor:
        """x_c."""
        return self.translator(x).clamp(-1, 1)


@dataclass(frozen=True, slots=True)
class TranslatorModel:
    """A finished translator (``export.model.Model``)."""

    config: RunConfig
    translator: Translator
    facts: Mapping[str, Any]
    family: Literal["translator"] = "translator"

    def graphs(self) -> dict[str, nn.Module]:
        """One."""
        return {"translator": TranslatorGraph(self.translator).eval()}

    def inputs(self) -> dict[str, dict[str, Tensor]]:
        """A tile: the training crop's size."""
        return {"translator": {"x": torch.zeros(1, 1, *self.config.data.crop)}}

    def outputs(self) -> dict[str, str]:
        """x_c."""
        return {"translator": "x_c"}

    def latent(self) -> None:
        """None: nothing is sampled."""

    def sampler(self) -> None:
        """None: nothing is sampled."""

    def quantizer(self) -> None:
        """None: nothing is rounded."""


def load_translator(file: Path) -> TranslatorModel:
    """The averaged weights of a comparison method's checkpoint. Raises CheckpointUnusable."""
    found = ckpt.load(file)
    entry = METHODS[found.stage]
    config = entry.config_class().model_validate_json(found.config)
    translator: Translator = entry.builder()(config)
    translator.load_state_dict(ckpt.averaged(found.states["ema"]))
    return TranslatorModel(config, translator.requires_grad_(False).eval(), facts_of(found))
