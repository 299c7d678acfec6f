"""The rows of the comparison and how much time and which phantoms they get: literal tables.

A row says what is trained and what is measured. ``loops`` names each stage's training loop in the row's
configuration and its share of the row's minutes, so that every trained row has the same wall-clock time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import config.load
import engine.bundle
from engine.volume import Shape3, Vec3

SHIPPED = Path(engine.bundle.__file__).parent / "bundles"
CONFIGS = Path(config.load.__file__).parent / "train"

Figures = tuple[float, float, float]
"""NMSE, PSNR (dB), SSIM as the paper prints them."""
Reads = Literal["identity", "oracle", "limit", "bundle"]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table."""

    title: str
    table: Literal["comparison", "ablation"]
    reads: Reads = "bundle"
    """The image that is measured; ``limit`` is the oracle without the source's grain."""
    config: str = ""
    """File under ``config/train``."""
    loops: Mapping[str, float] = field(default_factory=dict)
    """Stage, a command of ``s2node train`` with a table ``[STAGE.loop]`` → share of the row's minutes."""
    bundles: Path | None = None
    """Folder of finished bundles by phase: measured, not trained, so not of equal budget."""
    seconds: float = 0.0
    """Of one core, what a synthesis of a phantom of the preset ``cpu`` took where the table was made."""
    changes: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Table of the configuration → keys that this row sets."""
    phases: tuple[str, ...] = ("arterial", "venous")
    paper: Mapping[str, Figures] = field(default_factory=dict)


S2LDM: Mapping[str, float] = {"autoencoder": 0.5, "diffusion": 0.5}
"""The paper's two stages."""
THREE: Mapping[str, float] = {"autoencoder": 14 / 110, "diffusion": 16 / 110, "joint": 80 / 110}
"""Ours, as ``demo.toml`` divides its minutes: the row is the shipped recipe on a smaller budget."""
VENOUS = ("venous",)

ROWS: dict[str, Row] = {
    "identity": Row("identity: the source as it is", "comparison", "identity"),
    "unet25d": Row(
        "2.5-D U-Net, L1", "comparison", config="unet25d.toml", loops={"unet25d": 1.0},
        seconds=5.2,
    ),
    "cyclegan": Row(
        "CycleGAN (Zhu et al.)", "comparison", config="cyclegan.toml", loops={"cyclegan": 1.0},
        seconds=11.3,
        paper={"arterial": (0.146, 25.03, 0.796), "venous": (0.161, 24.67, 0.804)},
    ),
    "pix2pix": Row(
        "pix2pix (Isola et al.)", "comparison", config="pix2pix.toml", loops={"pix2pix": 1.0}, seconds=2.0,
        paper={"arterial": (0.132, 24.77, 0.819), "venous": (0.155, 24.84, 0.818)},
    ),
    "reggan": Row(
        "RegGAN (Kong et al.)", "comparison", config="reggan.toml", loops={"reggan": 1.0},
        seconds=12.8,
        paper={"arterial": (0.108, 25.86, 0.854), "venous": (0.129, 25.31, 0.857)},
    ),
    "ctagan": Row(
        "CTA-GAN (Lyu et al.)", "comparison", config="ctagan.toml", loops={"ctagan": 1.0},
        seconds=12.8,
        paper={"arterial": (0.103, 25.92, 0.889), "venous": (0.115, 25.58, 0.879)},
    ),
    "aldm": Row(
        "ALDM (Kim and Park)", "comparison", config="aldm.toml", loops={"aldm": 1.0}, seconds=19.7,
        changes={"aldm.sampler": {"steps": 10}},
        paper={"arterial": (0.098, 26.19, 0.872), "venous": (0.123, 25.36, 0.862)},
    ),
    "s2ldm": Row(
        "S²LDM", "comparison", config="demo.toml", loops=THREE, seconds=11.5,
        paper={"arterial": (0.087, 26.33, 0.895), "venous": (0.106, 25.79, 0.883)},
    ),
    # Stage 1 as a translator of its own: D(E_n) is held against x_c, for all of the row's minutes. Eq. 4 as
    # printed returns E_n where it is noised by nothing: one step of stage 2 is trained and none is taken.
    "stage1": Row(
        "S²LDM, stage 1 alone", "comparison", config="demo.toml",
        loops={"autoencoder": 1.0, "diffusion": 0.0},
        seconds=5.8,
        changes={
            "autoencoder.loss": {"translate": 1.0},
            "diffusion": {"formulation": "literal", "source_condition": "none"},
            "diffusion.loop": {"steps": 1},
            "diffusion.sampler": {"name": "ddim", "steps": 1, "strength": 0.0},
        },
    ),
    "shipped": Row("S²LDM as shipped: trained for longer", "comparison", bundles=SHIPPED, seconds=10.8),
    "oracle": Row("oracle: the source with the expected rise", "comparison", "oracle"),
    "limit": Row("oracle without grain: the expectation itself", "comparison", "limit"),
    "a": Row(
        "(a) latent diffusion alone", "ablation", config="ablation/a.toml", loops=S2LDM, phases=VENOUS,
        seconds=12.1,
        paper={"venous": (0.133, 25.22, 0.857)},
    ),
    "b": Row(
        "(b) + syncretic encoder", "ablation", config="ablation/b.toml", loops=S2LDM, phases=VENOUS,
        seconds=12.6,
        paper={"venous": (0.127, 25.43, 0.862)},
    ),
    "c": Row(
        "(c) + similarity loss", "ablation", config="ablation/c.toml", loops=S2LDM, phases=VENOUS,
        seconds=13.5,
        paper={"venous": (0.112, 25.66, 0.872)},
    ),
    "d": Row(
        "(d) + similarity mask, without the loss", "ablation", config="ablation/d.toml", loops=S2LDM,
        phases=VENOUS, seconds=13.1, paper={"venous": (0.120, 25.64, 0.865)},
    ),
    "full": Row(
        "S²LDM as printed: all of them", "ablation", config="ablation/full.toml", loops=S2LDM, phases=VENOUS,
        seconds=11.0,
        paper={"venous": (0.106, 25.79, 0.883)},
    ),
}  # fmt: skip


class BudgetTooSmall(Exception):
    """Measuring alone takes the hours that were given, or nearly; says how many would do."""


@dataclass(frozen=True, slots=True)
class Preset:
    """How long every trained row may learn, side by side how many rows, and what they are measured on."""

    row_minutes: float
    """Training of one phase of a row. It does not follow from how many rows there are: a row more would
    otherwise be another budget for all, and none that is finished could be kept."""
    side_by_side: int
    cases: int
    first_seed: int
    shape: Shape3
    spacing_mm: Vec3
    hours: float | None = None
    """Given, the whole table takes as long, and ``row_minutes`` are what measuring leaves of it."""
    prepare_minutes: float = 6.0
    """Set aside once for the phantoms that are learnt from: of one core, like all that follows."""
    start_minutes: float = 0.2
    """Set aside to start one process."""
    export_minutes: float = 0.5
    """Set aside for one export."""
    measure_s: float = 2.0
    """Set aside to make and to measure one phantom, besides its synthesis."""
    least_minutes: float = 3.0
    """Training for less than this is no comparison."""
    speed: float = 1.0
    """Share of ``Row.seconds`` that a phantom of this preset takes."""
    changes: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Keys set in every row's configuration, as in a row."""
    steps: int = 1_000_000
    """A stage also ends here; as it is, the minutes end it."""

    def measuring_minutes(self, row: Row) -> float:
        """Of one core, for one phase of a row: all but its training."""
        own = self.start_minutes * (len(row.loops) + 1)
        own += self.export_minutes if row.loops else 0.0
        if row.reads == "bundle":
            own += self.cases * row.seconds * self.speed / 60
        return own + self.cases * self.measure_s / 60

    def minutes(self, table: Mapping[str, Row]) -> float:
        """Training minutes of one phase of every trained row of ``table``. Raises BudgetTooSmall."""
        if self.hours is None:
            return self.row_minutes
        rows = [row for row in table.values() for _ in row.phases]
        trained = sum(is_trained(row) for row in rows)
        measuring = self.prepare_minutes + sum(self.measuring_minutes(row) for row in rows)
        left = 60 * self.hours * self.side_by_side - measuring
        if left < self.least_minutes * trained:
            needed = (measuring + self.least_minutes * trained) / 60 / self.side_by_side
            raise BudgetTooSmall(
                f"{self.hours:g} hours are too few: measuring {len(rows)} rows and phases on {self.cases}"
                f" phantoms takes {measuring / 60 / self.side_by_side:.1f} of them, and {trained} are to be"
                f" trained for {self.least_minutes:g} minutes or more each: give --hours {needed:.1f} or"
                " more, or fewer --cases"
            )
        return left / max(trained, 1)


def is_trained(row: Row) -> bool:
    """Whether the row has a share of the budget."""
    return sum(row.loops.values()) > 0


PRESETS: dict[str, Preset] = {
    "cpu": Preset(
        row_minutes=17.279, side_by_side=2, cases=40, first_seed=9500, shape=(48, 256, 256),
        spacing_mm=(3.0, 1.5, 1.5),
    ),
    "toy": Preset(
        row_minutes=5.0, side_by_side=1, cases=2, first_seed=9500, shape=(12, 72, 72),
        spacing_mm=(6.0, 5.0, 5.0),
        prepare_minutes=0.0, start_minutes=0.0, export_minutes=0.1, measure_s=0.1, least_minutes=0.1,
        speed=0.02, steps=2, changes={"data": {"phantoms": 1, "validation_phantoms": 1}},
    ),
}  # fmt: skip
"""``toy`` shows that everything runs; its figures mean nothing."""
