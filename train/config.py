"""Everything a training run may be told: frozen, typed, with units; unknown keys are errors.

One TOML file holds all stages of a method, because stage 2 is meaningless without the stage 1 it stands on.
"""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from config.base import Frozen

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]
Shape = tuple[PositiveInt, PositiveInt, PositiveInt]
Phase = Literal["arterial", "venous"]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""In the order of the classes of a network that is told the phase."""


class TrainConfigInvalid(Exception):
    """A training configuration cannot be used; says which file, which key and why."""

    def __init__(self, file: Path, problems: str) -> None:
        super().__init__(f"{file}: {problems}")


class ExtraMissing(TrainConfigInvalid):
    """A key asks for a package that is not installed; says which key, and how to install it."""

    def __init__(self, key: str, package: str, extra: str) -> None:
        Exception.__init__(self, f"{key} needs {package}: pip install 's2node[{extra}]', or leave it empty")


class DataConfig(Frozen):
    """Where pairs come from and how a training crop is cut from them."""

    source: Literal["phantom", "folder"] = "phantom"
    folder: str = ""
    """With ``source = "folder"``: where ``pairs.tsv`` and the volumes of ``s2node convert`` lie."""
    phase: Phase | Literal["both"] = "venous"
    """"both": crops of either phase, for one network that is told which (``diffusion.phase_condition``)."""
    window_hu: tuple[float, float] = (-200.0, 400.0)
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (3.0, 1.5, 1.5)
    crop: Shape = (16, 128, 128)
    """(slice, row, column) voxels on the model grid; the tile of inference has the same size."""
    phantom_shape: Shape = (96, 256, 256)
    phantoms: PositiveInt = 48
    first_seed: int = 0
    validation_phantoms: PositiveInt = 2
    validation_seed: int = 8000
    noise_hu: tuple[float, float] = (6.0, 20.0)
    """Range of the phantoms' noise SD; each phantom draws its own."""
    scale_jitter: Fraction = 0.1
    """Each phantom's spacing is scaled by 1 ± this, so that organs come in more sizes."""
    misregistration_mm: Weight = 0.0
    organ_bias: Fraction = 0.7
    """Share of crops centred in an organ that enhances; the rest are uniform (air, lung, pelvis)."""
    extra_noise_hu: Weight = 3.0
    """White noise up to this SD is added to the source crop."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Those that are learnt from."""
        return PHASES if self.phase == "both" else (self.phase,)

    def each_phase(self) -> list[DataConfig]:
        """This for every one of ``phases`` by itself."""
        return [self.model_copy(update={"phase": phase}) for phase in self.phases]

    @model_validator(mode="after")
    def _window_is_a_window(self) -> DataConfig:
        if self.window_hu[1] - self.window_hu[0] < 100:
            raise ValueError(f"window_hu {self.window_hu} is narrower than 100 HU")
        return self

    @model_validator(mode="after")
    def _crop_lies_in_a_phantom(self) -> DataConfig:
        """Pairs of a folder are looked at when they are read."""
        sizes = zip(self.crop, self.phantom_shape, strict=True)
        if self.source == "phantom" and any(crop > size for crop, size in sizes):
            raise ValueError(f"crop {self.crop} is larger than phantom_shape {self.phantom_shape}")
        return self


class OptimiserConfig(Frozen):
    """AdamW with a linear warm-up, then cosine or constant over the share of the budget that is spent."""

    lr: PositiveFloat = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    weight_decay: Weight = 1e-4
    warmup: Fraction = 0.04
    schedule: Literal["cosine", "constant"] = "cosine"
    final_lr: Fraction = 0.01
    """Share of ``lr`` left at the end of the cosine."""
    clip: PositiveFloat = 1.0


class LoopConfig(Frozen):
    """How long a stage runs and what it keeps."""

    steps: PositiveInt = 3000
    max_minutes: PositiveFloat | None = None
    """The stage also ends here; schedules follow whichever of the two is further spent."""
    batch: PositiveInt = 1
    seed: int = 0
    ema: Fraction = 0.995
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    threads: int = Field(default=0, ge=0)
    """CPU threads; 0 leaves torch's own choice."""
    checkpoint_minutes: PositiveFloat = 5.0
    log_steps: PositiveInt = 25
    validation_crops: PositiveInt = 8
    recompute: bool = False
    """Gradient checkpointing: less memory for about a third more time; no number changes."""


class QuantizerConfig(Frozen):
    """L_quan of eq. 2 and what happens to a latent before it is decoded."""

    regularizer: Literal["vq", "kl", "none"] = "vq"
    codes: PositiveInt = 2048
    groups: PositiveInt = 1
    """Product quantisation: the channels are cut into this many parts, each looked up in the one codebook."""
    decay: Fraction = 0.99
    commitment: Weight = 0.25
    quantize_both: bool = True
    """The codebook sees E_n too, since E_n is what is decoded in service."""
    quantize_at_decode: bool = True
    reseed_below: Weight = 0.01
    """A code whose smoothed use falls below this is moved onto an embedding of the current batch."""


class SimilarityConfig(Frozen):
    """Eq. 1 and how it is applied."""

    gamma: Weight = 1.0
    axis: Literal["voxel", "channel"] = "voxel"
    stop_grad: Literal["none", "target"] = "target"
    p_min: PositiveFloat = 1e-4
    warmup: Fraction = 0.1
    body_mask: bool = True


class AutoencoderLossConfig(Frozen):
    """The lambdas of eq. 2 and the terms the paper leaves open."""

    rec: Weight = 1.0
    quan: Weight = 1.0
    sim: Weight = 0.1
    translate: Weight = 1.0
    """Weight of L_rec(x_c, D(E_n)); 0 is the paper."""
    square: Weight = 0.0
    """Squared error added to the absolute one in L_rec and the translation term; 0 is plain L1."""
    x_f: Literal["none", "unsharp", "laplacian"] = "none"
    frequency: Weight = 0.1
    """Weight of the L1 between log-amplitudes of the spectra of target and reconstruction."""
    enhancement: Weight = 0.0
    """Extra weight of L1 per 100 HU of smoothed enhancement; 0 weighs all voxels alike."""
    kl: Weight = 1e-6


class AdversarialConfig(Frozen):
    """The patch discriminator the text names and eq. 2 omits."""

    weight: Weight = 0.0
    kind: Literal["hinge", "least_squares"] = "hinge"
    start: Fraction = 0.3
    adaptive: bool = True
    channels: PositiveInt = 32
    layers: PositiveInt = 2
    lr: PositiveFloat = 2e-4


class PerceptualConfig(Frozen):
    """L1 between what a network trained on photographs sees in D(E_c) and in its target; off by default."""

    weight: Weight = 0.0
    weights_file: str = ""
    """State of torchvision's VGG-16 (``vgg16-397923af.pth``) on this disk; nothing is ever downloaded."""
    slices: PositiveInt = 4
    """Axial slices of each crop that are looked at, evenly spaced."""

    @model_validator(mode="after")
    def _has_its_file(self) -> PerceptualConfig:
        if self.weight and not self.weights_file:
            raise ValueError("weight > 0 needs weights_file: the path of torchvision's vgg16-397923af.pth")
        return self


class AutoencoderConfig(Frozen):
    """Stage 1: the syncretic autoencoder."""

    syncretic: bool = True
    """False: x_n is never shown to stage 1 (row (a) of Table 2)."""
    patch_embed: Shape = (1, 2, 2)
    """Space-to-depth at the door; the factor of the latent is this times 2 for each further level."""
    channels: tuple[PositiveInt, ...] = (32, 64)
    res_blocks: tuple[PositiveInt, ...] = (1, 1)
    latent_channels: PositiveInt = 8
    norm_groups: PositiveInt = 8
    source_skip: Literal["none", "residual"] = "residual"
    """none: D(z), the paper. residual: D(z, x_n) = x_n + delta(z, x_n); z carries the enhancement."""
    exit_channels: PositiveInt = 4
    """Channels at full resolution."""
    head_channels: PositiveInt = 32
    """residual: channels at patch resolution where decoder and source meet."""
    exit_blocks: int = Field(default=0, ge=0)
    """residual: residual blocks there, which look further around in the source than one convolution does."""
    local: Weight = 0.0
    """What 100 HU between a voxel's enhancement and that around it add to its weight in L_rec."""
    quantizer: QuantizerConfig = QuantizerConfig()
    similarity: SimilarityConfig = SimilarityConfig()
    loss: AutoencoderLossConfig = AutoencoderLossConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    perceptual: PerceptualConfig = PerceptualConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    loop: LoopConfig = LoopConfig()

    @property
    def factor(self) -> Shape:
        """Voxels a latent cell spans along slice, row, column."""
        levels = 2 ** (len(self.channels) - 1)
        return (self.patch_embed[0] * levels, self.patch_embed[1] * levels, self.patch_embed[2] * levels)

    @model_validator(mode="after")
    def _parts_fit(self) -> AutoencoderConfig:
        if len(self.res_blocks) != len(self.channels):
            raise ValueError(f"res_blocks {self.res_blocks} and channels {self.channels} differ in length")
        if self.latent_channels % self.quantizer.groups:
            raise ValueError(
                f"latent_channels {self.latent_channels} do not split into {self.quantizer.groups} groups"
            )
        if any(c % self.norm_groups for c in self.channels):
            raise ValueError(f"channels {self.channels} are not multiples of norm_groups {self.norm_groups}")
        return self


class MaskConfig(Frozen):
    """Eq. 3, and its idea kept as a weight by the bridge."""

    enabled: bool = True
    alpha: Weight = 2.0
    beta: Weight = 2.0
    """bridge: weight 1 + beta(tau) (1 - c) / 2; beta(tau) rises linearly to this at half the training."""


class SamplerConfig(Frozen):
    """What inference does with the denoiser; written into the bundle."""

    name: Literal["bridge", "ddim", "dpm_solver"] = "bridge"
    steps: PositiveInt = 2
    eta: Weight = 0.0
    """ddim: 0 is deterministic."""
    strength: Fraction = 0.0
    """literal: how far E_n is noised before it is denoised (SDEdit); 0 is stage 1 alone."""


class DiffusionConfig(Frozen):
    """Stage 2: the denoiser on frozen latents."""

    formulation: Literal["literal", "conditional", "bridge"] = "bridge"
    prediction: Literal["epsilon", "v"] = "epsilon"
    """conditional and literal: what the network predicts. bridge: always E_c - E_n."""
    norm: Literal["l1", "l2", "both"] = "l1"
    sigma: Weight = 0.0
    start_share: Fraction = 0.0
    """bridge: share of the training questions posed at t = 0, from E_n itself."""
    source_condition: Literal["none", "cells", "stem"] = "cells"
    """none: the network sees z_t and E_n, the paper. cells: also x_n, a channel for every voxel of a latent
    cell: E_n is made to resemble E_c, which knows no anatomy once the decoder has it from the source. stem:
    also x_n, through convolutions at patch resolution that end in ``stem_channels`` channels a cell."""
    stem_channels: PositiveInt = 32
    """stem: channels at patch resolution, and of what a cell is told."""
    soft_window_hu: tuple[float, float] | None = None
    """x_n is seen in this narrow window besides, where 10 HU between vein and liver are not lost."""
    phase_condition: bool = False
    """The network is told the phase (MONAI's class embedding), so that one serves both."""
    local: Weight = 0.0
    """``autoencoder.local`` for the latent cells."""
    encoded_crops: int = Field(default=0, ge=0)
    """Crops drawn and encoded once, to be learnt from again and again; 0 encodes a new crop at every step."""
    timesteps: PositiveInt = 1000
    beta_schedule: tuple[PositiveFloat, PositiveFloat] = (0.0015, 0.0195)
    mask: MaskConfig = MaskConfig()
    channels: tuple[PositiveInt, ...] = (64, 96)
    res_blocks: tuple[PositiveInt, ...] = (1, 1)
    norm_groups: PositiveInt = 8
    sampler: SamplerConfig = SamplerConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    loop: LoopConfig = LoopConfig()

    @model_validator(mode="after")
    def _sampler_fits(self) -> DiffusionConfig:
        if (self.formulation == "bridge") != (self.sampler.name == "bridge"):
            raise ValueError(f"formulation {self.formulation!r} cannot be sampled by {self.sampler.name!r}")
        return self

    @model_validator(mode="after")
    def _stem_fits(self) -> DiffusionConfig:
        if self.source_condition == "stem" and self.stem_channels % self.norm_groups:
            raise ValueError(
                f"stem_channels {self.stem_channels} are no multiple of norm_groups {self.norm_groups}"
            )
        return self


class JointConfig(Frozen):
    """Stage 3: denoiser and decoder learn together from what the whole model paints."""

    latent: Weight = 0.1
    """Weight of the L1 between the sampled latent and E_c, which keeps it where the codebook has codes."""
    soft_window: bool = False
    """The exit of D sees x_n in ``diffusion.soft_window_hu`` too, by a convolution that begins at zero."""
    local: Weight = 0.0
    """``autoencoder.local`` of this stage."""
    contrast: Weight = 0.0
    """Weight of the squared error of local contrast: means over 3 × 3 × 3 voxels against those around.
    Neither noise nor a patient's level of enhancement, which nothing tells, drowns small veins in it."""
    fine_blocks: int = Field(default=0, ge=0)
    """Blocks of a branch of D without normalisation, begun at zero, that paints what is small."""
    optimiser: OptimiserConfig = OptimiserConfig(lr=5e-4)
    loop: LoopConfig = LoopConfig()


class CompositionConfig(Frozen):
    """What the engine keeps of the source; written into the bundle."""

    detail: Fraction = 1.0
    """1 keeps the source's own texture, 0 takes the model's."""
    edge_hu: PositiveFloat = 20.0


class BundleConfig(Frozen):
    """How an exported bundle calls itself."""

    name: str = "s2ldm-demo"
    version: str = "1.0.0"
    overlap: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.25
    composition: CompositionConfig = CompositionConfig()
    intended_use: str = "Research and demonstration only; trained on phantoms; not for any patient."
    licence: str = "undecided"


class RecordConfig(Frozen):
    """What a run leaves for people besides checkpoint and card; no number depends on it."""

    picture_minutes: Weight = 10.0
    """Sample pictures at most this often, with a checkpoint, and at the end; 0 draws none."""
    picture_steps: int = Field(default=0, ge=0)
    """A sample picture every so many steps besides, without a checkpoint; 0 draws none."""
    pictures: PositiveInt = 2
    """Held-out crops a picture shows; no more than ``loop.validation_crops``."""
    mlflow: str = ""
    """URI of an MLflow server, besides TensorBoard; needs the extra ``mlflow``."""
    experiment: str = "s2node"
    """MLflow's experiment."""


UNFELT: dict[str, Any] = {"loop": {"recompute"}}
"""Keys of a stage's section that no number depends on."""
LATER = (
    "local", "encoded_crops", "soft_window_hu", "phase_condition", "perceptual",
    "exit_blocks", "stem_channels", "contrast", "fine_blocks",
)  # fmt: skip
"""Keys of a stage's section that came after the first checkpoints: digests know them once they are set."""


class RunConfig(Frozen):
    """What every method is told; a method's own class adds a field for each of its stages, named like it."""

    data: DataConfig = DataConfig()
    bundle: BundleConfig = BundleConfig()
    record: RecordConfig = RecordConfig()

    stands_on: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Stages whose numbers depend on sections besides ``data`` and their own."""

    @property
    def is_told_the_phase(self) -> bool:
        """Whether one network may learn both phases."""
        return False

    @model_validator(mode="after")
    def _one_phase_unless_it_is_told(self) -> Self:
        if self.data.phase == "both" and not self.is_told_the_phase:
            raise ValueError(
                'data.phase = "both" needs a network that is told the phase: an S2LDM with'
                " diffusion.phase_condition = true; else name one phase"
            )
        return self

    def with_phase(self, phase: Phase | Literal["both"] | None) -> Self:
        """The same configuration for another phase; None changes nothing. Raises ValidationError."""
        if phase is None:
            return self
        data = self.data.model_dump() | {"phase": phase}
        return type(self).model_validate(self.model_dump() | {"data": data})

    def digest(self, stage: str) -> str:
        """Sha256 of every key that the numbers of this stage depend on."""
        stages = (stage, *self.stands_on.get(stage, ()))
        left_out = {name: self._left_out(name) for name in stages}
        text = self.model_dump_json(include={"data", *stages}, exclude=left_out)
        return hashlib.sha256(text.encode()).hexdigest()

    def _left_out(self, stage: str) -> dict[str, Any]:
        section = getattr(self, stage)
        fields = type(section).model_fields
        unset = [k for k in LATER if k in fields and getattr(section, k) == fields[k].default]
        return UNFELT | dict.fromkeys(unset, True)


class TrainConfig(RunConfig):
    """One S²LDM of one phase: data, its stages, and the name of what comes out."""

    autoencoder: AutoencoderConfig = AutoencoderConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    joint: JointConfig = JointConfig()

    stands_on: ClassVar[dict[str, tuple[str, ...]]] = {
        "diffusion": ("autoencoder",),
        "joint": ("autoencoder", "diffusion"),
    }

    @property
    def is_told_the_phase(self) -> bool:
        """With ``phase_condition``."""
        return self.diffusion.phase_condition

    @property
    def soft_window(self) -> tuple[float, float] | None:
        """``diffusion.soft_window_hu`` in the units of x_n, where ``data.window_hu`` is [-1, 1]."""
        if self.diffusion.soft_window_hu is None:
            return None
        low, high = self.data.window_hu
        bottom, top = (2 * (hu - low) / (high - low) - 1 for hu in self.diffusion.soft_window_hu)
        return bottom, top

    @model_validator(mode="after")
    def _soft_window_is_inside(self) -> TrainConfig:
        if self.soft_window and not -1 <= self.soft_window[0] < self.soft_window[1] <= 1:
            raise ValueError(
                f"diffusion.soft_window_hu {self.diffusion.soft_window_hu} must rise and lie inside"
                f" data.window_hu {self.data.window_hu}"
            )
        return self

    @model_validator(mode="after")
    def _weights_need_voxels(self) -> TrainConfig:
        if self.diffusion.local and self.diffusion.encoded_crops:
            raise ValueError("diffusion.local looks at voxels, which diffusion.encoded_crops does not keep")
        return self

    @model_validator(mode="after")
    def _crop_fits(self) -> TrainConfig:
        deepest = 2 ** (len(self.diffusion.channels) - 1)
        for size, factor in zip(self.data.crop, self.autoencoder.factor, strict=True):
            if size % (factor * deepest):
                raise ValueError(
                    f"data.crop {self.data.crop} must be multiples of {factor * deepest}"
                    f" (factor {self.autoencoder.factor} times {deepest} of the denoiser)"
                )
        return self


Config = TypeVar("Config", bound=RunConfig)


def load_train_config(file: Path) -> TrainConfig:
    """Read an S²LDM's TOML file. Raises TrainConfigInvalid."""
    return load_config(file, TrainConfig)


def load_config(file: Path, kind: type[Config]) -> Config:
    """Read a TOML file. Raises TrainConfigInvalid with the file, the keys and what is wrong with them."""
    try:
        return kind.model_validate(read_table(file))
    except ValidationError as error:
        raise TrainConfigInvalid(file, reasons(error)) from None


def reasons(error: ValidationError) -> str:
    """Every key that is wrong, and why."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())


def read_table(file: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tables of ``file`` over those of the file it ``extends`` (a path beside it), key by key."""
    try:
        own = tomllib.loads(file.read_text())
    except FileNotFoundError:
        raise TrainConfigInvalid(file, "there is no such file") from None
    except tomllib.TOMLDecodeError as error:
        raise TrainConfigInvalid(file, f"not TOML: {error}") from None
    base = own.pop("extends", None)
    if base is None:
        return own
    if not isinstance(base, str) or file.resolve() in above:
        raise TrainConfigInvalid(file, f"extends = {base!r} names no other file")
    return merged(read_table(file.parent / base, (*above, file.resolve())), own)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """The tables of ``above`` over those of ``below``, key by key."""
    tables = {k: merged(below[k], v) for k, v in above.items() if isinstance(v, dict) and k in below}
    return below | above | tables
