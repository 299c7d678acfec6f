"""The presets at their own size, without their memory: counted on torch's meta device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from train.config import TrainConfig, load_train_config
from train.s2ldm.autoencoder import SyncreticAutoencoder
from train.s2ldm.denoiser import Denoiser

FOLDER = Path(__file__).resolve().parents[2] / "config" / "train"


def counted(config: TrainConfig) -> dict[str, tuple[float, float]]:
    """(million parameters, TFLOP for one crop, a multiply-add being two) of the three parts."""
    with torch.device("meta"):
        autoencoder = SyncreticAutoencoder(config.autoencoder).eval()
        denoiser = Denoiser(config).eval()
        x = torch.empty(1, 1, *config.data.crop)
        latent = autoencoder.encode(x)
        calls = {
            "encoder": (autoencoder.encoder, lambda: autoencoder.encode(x)),
            "decoder": (autoencoder.decoder, lambda: autoencoder.decode(latent, x)),
            "denoiser": (denoiser, lambda: denoiser(latent, latent, torch.empty(1), x)),
        }
        found = {}
        for name, (part, call) in calls.items():
            with FlopCounterMode(display=False) as flops:
                call()
            parameters = sum(p.numel() for p in part.parameters()) / 1e6
            found[name] = (parameters, flops.get_total_flops() / 1e12)
    return found


@pytest.mark.parametrize(
    ("name", "encoder", "decoder", "denoiser"),
    [
        ("paper", (2.226, 1.196), (2.669, 1.563), (39.764, 0.343)),
        ("release", (1.215, 0.220), (1.444, 0.380), (29.511, 0.524)),
    ],
)
def test_a_preset_is_built_at_its_size(
    name: str, encoder: tuple[float, float], decoder: tuple[float, float], denoiser: tuple[float, float]
) -> None:
    found = counted(load_train_config(FOLDER / f"{name}.toml"))
    for part, expected in {"encoder": encoder, "decoder": decoder, "denoiser": denoiser}.items():
        assert found[part] == pytest.approx(expected, rel=0.01), part
