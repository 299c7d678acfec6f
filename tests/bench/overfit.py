"""How long every comparison method takes to learn four cases by heart, as published and from scratch.

``python tests/bench/overfit.py [--methods pix2pix,aldm] [--gain 3] [--minutes 10] [--json]``

The tests ask the same of networks that add to the source (``residual``), within seconds; here generators end
in tanh and have to learn to copy first. Minutes a method on one core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from train.methods import METHODS

CASES = Path(__file__).parents[1] / "train" / "four_cases.toml"
DATA = tomllib.loads(CASES.read_text(encoding="utf-8"))
RESNET: dict[str, Any] = {
    "generator": {"channels": 16, "blocks": 3}, "discriminator": {"channels": 8, "layers": 2},
    "optimiser": {"lr": 1e-3},
}  # fmt: skip
ADAM = {"lr": 2e-3, "hold": 1.0}
NETWORKS: dict[str, dict[str, Any]] = {
    "pix2pix": {"channels": 16, "discriminator": {"channels": 8, "layers": 2, "pool": 0},
                "optimiser": {"lr": 2e-3}},
    "cyclegan": RESNET,
    "reggan": RESNET | {"registration": {"channels": (8,) * 4}},
    "ctagan": RESNET | {"registration": {"channels": (8,) * 4}},
    "aldm": {
        "vqgan": {"channels": (16, 32), "norm_groups": 8, "codes": 256, "optimiser": ADAM},
        "spade": {"channels": (16,), "hidden": 16, "optimiser": ADAM},
        "denoiser": {"channels": (32, 32), "norm_groups": 8, "head_channels": 8, "ema": 0.99,
                     "optimiser": ADAM | {"lr": 3e-4, "clip": 1.0}},
        "sampler": {"steps": 20, "eta": 0.0},
    },
    "unet25d": {"features": (8, 8, 16, 16, 16, 8), "optimiser": {"lr": 4e-3}},
}  # fmt: skip


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--gain", type=float, default=3.0, help="dB above the source as it is")
    parser.add_argument("--minutes", type=float, default=5.0, help="for each method")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.methods.split(","):
            row = overfit(name, Path(folder), asked.gain, asked.minutes)
            print(
                json.dumps(row) if asked.json else "  ".join(f"{k} {v}" for k, v in row.items()), flush=True
            )


def overfit(name: str, folder: Path, gain: float, minutes: float) -> dict[str, Any]:
    """Train for ``minutes`` on four cases and measure on the same four."""
    section = NETWORKS[name] | {"loop": {"steps": 1_000_000, "max_minutes": minutes, "threads": 1}}
    config = METHODS[name].config_class().model_validate({"data": DATA, name: section})
    METHODS[name].trainer()(config, folder / name, folder / "cache")
    card = json.loads((folder / name / "run.json").read_text())
    reached = card["latest"]["psnr/model"] - card["latest"]["psnr/identity"]
    return {
        "method": name, "steps": card["steps"], "minutes": card["minutes"], "gain_db": round(reached, 2),
        "reached": reached >= gain, "parameters": card["parameters"],
    }  # fmt: skip


if __name__ == "__main__":
    main()
