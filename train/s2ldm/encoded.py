"""Stage 2's crops encoded once: each step then costs the denoiser alone.

A latent depends on the whole crop that it was encoded with (the normalisation sees all of it), so latents
cannot be cut out of a volume's. Instead ``encoded_crops`` crops are drawn once, jitter and noise included,
encoded, kept beside the prepared cases and drawn from at random.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import torch
from lightning.fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from train.config import TrainConfig
from train.data import Pairs, data_digest
from train.disk import save_array
from train.s2ldm.autoencoder import SyncreticAutoencoder

CROP_SEED = 2
log = logging.getLogger(__name__)


class EncodedPairs:
    """Crops of the source and unscaled latents of both phases, drawn by (seed, step)."""

    def __init__(self, pairs: Pairs, latents: NDArray[np.float16]) -> None:
        self.pairs, self.latents = pairs, latents

    def batch(self, seed: int, step: int, size: int) -> tuple[Tensor, ...]:
        """x_n (size, 1, D, H, W), E_n and E_c (size, C, d, h, w), fp32; phases (size,) if both are learnt."""
        which = np.random.default_rng([seed, step]).integers(len(self.latents), size=size)
        crops = [self.pairs.batch(CROP_SEED, int(i), 1) for i in which]
        x_n, _, *phase = (torch.cat(each) for each in zip(*crops, strict=True))
        latents = torch.from_numpy(self.latents[which].astype(np.float32))
        return x_n, latents[:, 0], latents[:, 1], *phase


def encoded_pairs(
    config: TrainConfig, fabric: Fabric, autoencoder: SyncreticAutoencoder, pairs: Pairs, cache: Path
) -> EncodedPairs:
    """The crops of ``config.diffusion.encoded_crops``; encodes them where no run has done so before."""
    file = cache / f"latents-{digest(config, autoencoder)}.npy"
    if fabric.local_rank == 0 and not file.exists():
        save_array(file, encode_crops(config, fabric, autoencoder, pairs))
    fabric.barrier()
    return EncodedPairs(pairs, np.load(file, mmap_mode="r"))


def digest(config: TrainConfig, autoencoder: SyncreticAutoencoder) -> str:
    """Of all that the latents depend on: the weights, the cases, how crops are cut from them."""
    weights = hashlib.sha256()
    for name, value in sorted(autoencoder.state_dict().items()):
        weights.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    this = config.diffusion
    facts = [weights.hexdigest(), data_digest(config.data), config.data.model_dump_json()]
    text = json.dumps([*facts, this.encoded_crops, this.loop.precision])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@torch.no_grad()
def encode_crops(
    config: TrainConfig, fabric: Fabric, autoencoder: SyncreticAutoencoder, pairs: Pairs
) -> NDArray[np.float16]:
    """(crops, 2, C, d, h, w): E_n, E_c; fp16 rounds a latent by less than bf16's convolutions do."""
    found = []
    for i in range(config.diffusion.encoded_crops):
        both = fabric.to_device(torch.cat(pairs.batch(CROP_SEED, i, 1)[:2]))
        with fabric.autocast():
            latents = autoencoder.encode(both)
        found.append(latents.float().cpu().numpy().astype(np.float16))
        if (i + 1) % 100 == 0:
            log.info("encoded crop %d of %d", i + 1, config.diffusion.encoded_crops)
    return np.stack(found)
