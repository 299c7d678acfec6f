"""Everything ``s2node train prepare`` may be told: one TOML file, every key optional, others refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import PositiveFloat, PositiveInt, ValidationError, model_validator

from config.base import Frozen
from train.config import DataConfig, Fraction, TrainConfigInvalid, Weight


class PrepareConfig(Frozen):
    """How pairs are made, which are refused, and who is on which side."""

    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = DataConfig().spacing_mm
    """Of the volumes written, (slice, row, column); that of the training's ``[data]`` saves it resampling."""
    min_slices: PositiveInt = DataConfig().crop[0]
    """Slices that NCCT and phase have to share."""
    registration: Literal["none", "rigid", "deformable"] = "deformable"
    """none: the scanner's coordinates as they are, for cases that were painted or drawn in place."""
    grid_mm: PositiveFloat = 4.0
    """Voxel edge of the registration."""
    seed: int = 0
    """Of the split, and of the voxels the rigid step samples."""
    validation: Fraction = 0.15
    test: Fraction = 0.15
    """Shares of patients held out; the rest is learnt from."""
    min_overlap: Fraction = 0.5
    """Share of the NCCT's body that the phase has to show."""
    min_outline_dice: Fraction = 0.9
    """Dice of the bodies after the rigid step."""
    min_agreement_rigid: Fraction = 0.65
    """Cohen's kappa of gas, fat and denser tissue deep in the body, after the rigid step."""
    min_agreement: Fraction = 0.75
    """The same at the end."""
    min_mi_gain: float = -0.02
    """Mutual information gained, as a share of what there was; a little less is noise."""
    max_field_mm: PositiveFloat = 40.0
    """99th percentile of the deformation in the body."""
    min_jacobian: float = 0.0
    """The deformation's Jacobian determinant has to be above this everywhere in the body."""
    min_enhancement_hu: Weight = 20.0
    """98th percentile of phase less NCCT in deep soft tissue."""

    @model_validator(mode="after")
    def _somebody_is_learnt_from(self) -> PrepareConfig:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} and test {self.test} leave nobody to learn from")
        return self


def load_prepare_config(file: Path | None) -> PrepareConfig:
    """The file's keys and the defaults of the others. Raises TrainConfigInvalid."""
    if file is None:
        return PrepareConfig()
    try:
        return PrepareConfig.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise TrainConfigInvalid(file, str(error.strerror)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainConfigInvalid(file, f"not TOML: {error}") from None
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise TrainConfigInvalid(file, "; ".join(lines)) from None
