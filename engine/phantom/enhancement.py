"""Attenuation of each tissue in each phase, drawn for one patient.

The table holds typical published ranges for 120 kVp and about 1.2–1.5 ml/kg of iodinated contrast:
unenhanced, late arterial (about 35 s) and portal venous (about 70 s). What drives a patient's level of
enhancement (dose, injection rate, cardiac output) is drawn apart from everything that the unenhanced scan
shows: **the level cannot be known from the unenhanced scan.** Only body size leaves a weak trace: a bigger
body dilutes the same dose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

PHASES: tuple[str, ...] = ("ncct", "arterial", "venous")

LEVEL_SD = 0.15  # dose × cardiac output, as the SD of a log factor, shared by all tissues and both phases
TIMING_SD = 0.6  # scan delay against circulation time, in units of the table's ``timing``
MOST_TIMING = 1.2  # either way
VENOUS_TIMING = -0.05  # relative change of every tissue's rise at 70 s per later timing
OWN_SD = 0.05  # each tissue's own scatter
SIZE_POWER = -0.35  # enhancement against relative body cross-section
FATTY_LIVER_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Tissue:
    """HU unenhanced (mean, SD over patients), rise at 35 s and 70 s, relative rise per later timing."""

    ncct: float
    sd: float
    arterial: float = 0.0
    venous: float = 0.0
    timing: float = 0.0
    is_blood: bool = False


def _blood(arterial: float, venous: float, timing: float) -> Tissue:
    return Tissue(44.0, 4.0, arterial, venous, timing, is_blood=True)


TISSUES: dict[str, Tissue] = {
    "air": Tissue(-1000, 0),
    "fat": Tissue(-103, 5, 1, 2),
    "skin": Tissue(15, 5, 3, 8),
    "muscle": Tissue(53, 3, 3, 7),
    "bone": Tissue(430, 60),
    "marrow": Tissue(165, 35, 3, 7),
    "disc": Tissue(85, 8),
    "canal": Tissue(24, 3, 2, 4),
    "lung": Tissue(-850, 20, 6, 8),
    "heart": _blood(190, 106, -0.05),
    "liver": Tissue(57, 5, 13, 54, 0.35),
    "gallbladder": Tissue(9, 4),
    "spleen": Tissue(48, 3, 74, 77, -0.05),
    "pancreas": Tissue(42, 4, 58, 48, -0.05),
    "renal_cortex": Tissue(33, 3, 138, 142, 0.05),
    "renal_medulla": Tissue(31, 3, 40, 109, 0.35),
    "urine": Tissue(3, 3, 0, 2),
    "adrenal": Tissue(22, 8, 45, 42),
    "stomach": Tissue(38, 4, 38, 52, 0.1),
    "bowel": Tissue(38, 4, 42, 55, 0.1),
    "gut_content": Tissue(22, 8),
    "gut_gas": Tissue(-960, 15),
    "aorta": _blood(256, 108, -0.08),
    "arteries": _blood(246, 106, -0.08),
    "ivc_infrarenal": _blood(16, 78, 0.35),
    "ivc_suprarenal": _blood(66, 98, 0.2),
    "portal_vein": _blood(66, 132, 0.4),
    "hepatic_veins": _blood(16, 117, 0.5),
    "renal_vessels": _blood(116, 122, 0.08),
    "cyst": Tissue(5, 3),
    "table": Tissue(-720, 20),
}


@dataclass(frozen=True, slots=True)
class LesionKind:
    """A focal lesion's attenuation against its host's, unenhanced, at 35 s and at 70 s (HU)."""

    host: str
    ncct: float
    arterial: float
    venous: float


LESION_KINDS: dict[str, LesionKind] = {
    "hepatocellular": LesionKind("liver", -8, 38, -18),  # arterial blush, washout
    "hypovascular": LesionKind("liver", -14, -18, -45),  # as many metastases
    "haemangioma": LesionKind("liver", -15, 25, 35),
    "pancreatic": LesionKind("pancreas", -4, -38, -28),  # as ductal adenocarcinoma
    "renal": LesionKind("renal_cortex", 4, -40, -70),
}


@dataclass(frozen=True, slots=True)
class Enhancement:
    """One patient's noise-free attenuation: ``hu[phase][tissue]``, and the factors it was drawn with."""

    hu: Mapping[str, Mapping[str, float]]
    level: float
    timing: float

    def of(self, tissue: str) -> dict[str, float]:
        """HU of a tissue by phase."""
        return {phase: self.hu[phase][tissue] for phase in PHASES}

    def lesion(self, kind: str) -> dict[str, float]:
        """HU of a lesion by phase."""
        lesion = LESION_KINDS[kind]
        offset = {
            "ncct": lesion.ncct,
            "arterial": lesion.arterial * self.level,
            "venous": lesion.venous * self.level,
        }
        return {phase: self.hu[phase][lesion.host] + offset[phase] for phase in PHASES}


def draw_enhancement(rng: np.random.Generator, relative_size: float) -> Enhancement:
    """A patient's attenuation table; ``relative_size`` is the body's cross-section against a typical one."""
    native = _draw_native(rng)
    level = float(np.exp(rng.normal(0, LEVEL_SD)) * relative_size**SIZE_POWER)
    timing = float(np.clip(rng.normal(0, TIMING_SD), -MOST_TIMING, MOST_TIMING))
    rises = {name: _rise(rng, tissue, level, timing) for name, tissue in TISSUES.items()}
    arterial = {name: native[name] + rise[0] for name, rise in rises.items()}
    venous = {name: native[name] + rise[1] for name, rise in rises.items()}
    return Enhancement({"ncct": native, "arterial": arterial, "venous": venous}, level, timing)


def _draw_native(rng: np.random.Generator) -> dict[str, float]:
    blood = float(rng.normal(44, 4))
    native = {name: float(rng.normal(tissue.ncct, tissue.sd)) for name, tissue in TISSUES.items()}
    native |= {name: blood for name, tissue in TISSUES.items() if tissue.is_blood}
    native["renal_medulla"] = native["renal_cortex"] - 1.0
    if rng.random() < FATTY_LIVER_SHARE:
        native["liver"] -= float(rng.uniform(8, 35))
    return native


def _rise(rng: np.random.Generator, tissue: Tissue, level: float, timing: float) -> tuple[float, float]:
    own_arterial, own_venous = np.exp(rng.normal(0, OWN_SD, 2))
    arterial = tissue.arterial * level * own_arterial * (1 + tissue.timing * timing)
    venous = tissue.venous * level * own_venous * (1 + VENOUS_TIMING * timing)
    return float(arterial), float(venous)
