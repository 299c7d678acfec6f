"""Both stages of the S²LDM, for torchrun: ``two_ranks.py CONFIG_JSON OUT CACHE``."""

import sys
from pathlib import Path

from train.config import TrainConfig
from train.s2ldm.train_autoencoder import train_autoencoder
from train.s2ldm.train_diffusion import train_diffusion

if __name__ == "__main__":
    config = TrainConfig.model_validate_json(Path(sys.argv[1]).read_text())
    out, cache = Path(sys.argv[2]), Path(sys.argv[3])
    train_autoencoder(config, out / "one", cache)
    train_diffusion(config, out / "one", out / "two", cache)
