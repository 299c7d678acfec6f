"""``s2node train STAGE``, ``s2node train METHOD`` and ``s2node evaluate``; loaded only when named."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from engine.errors import BundleInvalid, ProviderMissing, VolumeUnsupported
from engine.phantom import PhantomOptions
from engine.session import SessionPolicy
from train.checkpoint import CheckpointUnusable
from train.config import PHASES, Phase, TrainConfig, TrainConfigInvalid, load_train_config, reasons
from train.methods import METHODS, Entry
from train.prepare.commands import paint, phantoms, prepare
from train.real import PairsUnusable
from train.refresh.commands import refresh

if TYPE_CHECKING:
    from train.cases import Case

EXIT_CONFIG = 78
EXIT_FAILED = 1
DEVELOPMENT_SEEDS = range(8200, 8300)
"""Phantoms to try things out on: no training and no published figure uses them."""
HELD_OUT_SEED = 9000
DEFAULT_CACHE = Path("runs/cache")

app = typer.Typer(
    help="Train the S²LDM: stage 1 (autoencoder), stage 2 (diffusion), if you like stage 3 (joint); or a"
    " method it is compared with.",
    no_args_is_help=True,
)

ConfigFile = Annotated[Path, typer.Option("--config", help="Training configuration, TOML.")]
PhaseName = Annotated[
    str | None, typer.Option("--phase", help="arterial or venous (S2LDM: or both), instead of the file's.")
]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder of the run.")]
CacheFolder = Annotated[Path, typer.Option("--cache", help="Where prepared cases are kept between runs.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out, or fail.")]
StageOneFolder = Annotated[Path, typer.Option("--autoencoder", help="Folder of the finished stage 1.")]
StageTwoFolder = Annotated[Path, typer.Option("--diffusion", help="Folder of the finished stage 2.")]


for _command in (prepare, paint, phantoms, refresh):
    app.command()(_command)


@app.command()
def autoencoder(
    config: ConfigFile,
    out: OutFolder = Path("runs/autoencoder"),
    phase: PhaseName = None,
    cache: CacheFolder = DEFAULT_CACHE,
    resume: Resume = False,
) -> None:
    """Stage 1: the syncretic autoencoder (eq. 1 and 2)."""
    from train.s2ldm.train_autoencoder import train_autoencoder  # noqa: PLC0415

    with _training():
        train_autoencoder(_load(config, phase), out, cache, resume)


@app.command()
def diffusion(
    config: ConfigFile,
    autoencoder: StageOneFolder = Path("runs/autoencoder"),
    out: OutFolder = Path("runs/diffusion"),
    phase: PhaseName = None,
    cache: CacheFolder = DEFAULT_CACHE,
    resume: Resume = False,
) -> None:
    """Stage 2: the denoiser on frozen latents (eq. 3 and 4)."""
    from train.s2ldm.train_diffusion import train_diffusion  # noqa: PLC0415

    with _training():
        train_diffusion(_load(config, phase), autoencoder, out, cache, resume)


@app.command()
def joint(
    config: ConfigFile,
    diffusion: StageTwoFolder = Path("runs/diffusion"),
    learned: Annotated[
        Path | None,
        typer.Option(
            "--from", help="A finished stage 3, which learns on in place of --diffusion's networks."
        ),
    ] = None,
    out: OutFolder = Path("runs/joint"),
    phase: PhaseName = None,
    cache: CacheFolder = DEFAULT_CACHE,
    resume: Resume = False,
) -> None:
    """Stage 3, not in the paper: denoiser and decoder learn together from what they paint (bridge)."""
    from train import checkpoint  # noqa: PLC0415
    from train.s2ldm.go_on import go_on_with_joint  # noqa: PLC0415
    from train.s2ldm.train_joint import STAGE, train_joint  # noqa: PLC0415

    with _training():
        settings = _load(config, phase)
        if learned is None:
            train_joint(settings, diffusion, out, cache, resume)
        else:
            start = checkpoint.load(checkpoint.file_of(learned), STAGE)
            go_on_with_joint(settings, start, out, cache, resume)


def _method_command(name: str, entry: Entry) -> Callable[..., None]:
    """The command that trains one comparison method."""

    def train(
        config: ConfigFile,
        out: OutFolder = Path("runs") / name,
        phase: PhaseName = None,
        cache: CacheFolder = DEFAULT_CACHE,
        resume: Resume = False,
    ) -> None:
        with _training():
            settings = entry.load(config).with_phase(phase_of(config, phase))
            entry.trainer()(settings, out, cache, resume)

    train.__doc__ = entry.summary
    return train


for _name, _entry in METHODS.items():
    app.command(_name)(_method_command(_name, _entry))


def evaluate(
    bundle: Annotated[
        list[Path] | None,
        typer.Option("--bundle", help="Bundle folder; may be given again. Default: the active."),
    ] = None,
    phantom_seed: Annotated[
        int,
        typer.Option(
            "--phantom-seed",
            min=0,
            help="Seed of the first phantom. Training uses those below 8200; try things out on 8200 to 8299.",
        ),
    ] = HELD_OUT_SEED,
    cases: Annotated[int, typer.Option("--cases", min=1, help="How many phantoms.")] = 3,
    slices: Annotated[
        int, typer.Option("--slices", min=8, help="Slices of a phantom, of 3 mm, around its middle.")
    ] = PhantomOptions().shape[0],
    pairs: Annotated[
        Path | None,
        typer.Option("--pairs", help="Folder with pairs.tsv: measure its test side instead of phantoms."),
    ] = None,
    provider: Annotated[
        str, typer.Option("--provider", help="auto, cuda, tensorrt, openvino or cpu.")
    ] = "auto",
    threads: Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0 is every core.")] = 0,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Write a PNG of the first phantom.")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write a page with tables and pictures, and its rows as JSON beside it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
    ncct: Annotated[
        Path | None,
        typer.Option("--ncct", help="A real unenhanced scan (NIfTI): its organs before and after, no truth."),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="With --ncct: organ labels on the scan's grid (NIfTI).")
    ] = None,
    labels_are: Annotated[
        str,
        typer.Option("--labels-are", help="totalsegmentator, phantom, or a file of number, tab, tissue."),
    ] = "totalsegmentator",
    sweep_steps: Annotated[
        bool,
        typer.Option(
            "--sweep-steps",
            help="Quality over sampler steps instead, for every sampler that fits the bundle.",
        ),
    ] = False,
    steps: Annotated[
        list[int] | None,
        typer.Option(
            "--steps", min=1, help="Steps of --sweep-steps; may be given again. Default: 1 2 4 8 16."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="Where --sweep-steps writes sweep.json, sweep.md and sweep.png.")
    ] = Path("build/sweep"),
) -> None:
    """Measure bundles on phantoms that were not used in training, beside the source as it is."""
    from config.load import ConfigError  # noqa: PLC0415
    from train import evaluate as evaluation  # noqa: PLC0415
    from train.cases import folder_cases, refuse  # noqa: PLC0415
    from train.report import show_tables, write_picture  # noqa: PLC0415

    policy = SessionPolicy.model_validate({"provider": provider, "threads": threads})
    skipped: list[str] = []

    def skip(case: str, error: VolumeUnsupported) -> None:
        skipped.append(f"{case}: {error}")

    seeds = [] if pairs else list(range(phantom_seed, phantom_seed + cases))
    if (ncct is None) != (labels is None):
        raise typer.BadParameter("--ncct and --labels go together")
    try:
        folders = bundle or evaluation.active_bundles()
        if ncct and labels:
            _show_real(ncct, labels, labels_are, folders, policy, as_json)
            return
        measured = evaluation.phantom_cases(seeds, slices)
        if pairs:
            measured = folder_cases(pairs, skip=refuse if sweep_steps else skip)
        if sweep_steps:
            who: dict[str, Any] = {} if pairs else {"seeds": seeds, "slices": slices}
            _sweep(folders, measured, who, policy, steps, out, as_json)
            return
        found = evaluation.run(folders, measured, policy, skip=skip)
        if picture:
            write_picture(picture, folders, phantom_seed, policy)
    except (ConfigError, BundleInvalid, ProviderMissing) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_CONFIG) from None
    except (PairsUnusable, VolumeUnsupported) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_FAILED) from None
    if not found and not skipped:
        typer.echo(f"{pairs}: no pair on the test side has the phase of a bundle", err=True)
        raise typer.Exit(EXIT_FAILED)
    if html:
        from train.html import write_page  # noqa: PLC0415

        write_page(html, found)
    result = evaluation.as_json(found) | {"seeds": seeds} | ({"skipped": skipped} if skipped else {})
    if as_json:
        typer.echo(json.dumps(result))
    else:
        show_tables(result)
    if skipped:
        typer.echo("\n".join(["not measured:", *skipped]), err=True)
        raise typer.Exit(EXIT_FAILED)


def _show_real(
    ncct: Path, labels: Path, labels_are: str, bundles: list[Path], policy: SessionPolicy, as_json: bool
) -> None:
    """The organs of a real scan before and after. Raises what ``train.real_report.report`` does."""
    from train.real_report import report, rows_of  # noqa: PLC0415
    from train.report import table_of  # noqa: PLC0415

    found = report(ncct, labels, labels_are, bundles, policy)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    head, *rows = rows_of(found)
    Console().print(table_of(head, rows))
    typer.echo(found["words"])


def _sweep(
    folders: list[Path],
    cases: Iterable[Case],
    who: Mapping[str, Any],
    policy: SessionPolicy,
    steps: list[int] | None,
    out: Path,
    as_json: bool,
) -> None:
    """Measure, write the three files, show one of them; ``who`` says in them which cases these are."""
    from train import sweep  # noqa: PLC0415

    try:
        result = sweep.sweep(
            folders, cases, policy, steps or sweep.STEPS, lambda text: typer.echo(text, err=True)
        )
    except sweep.StepsTooMany as error:
        raise typer.BadParameter(str(error)) from None
    result |= who
    sweep.write(out, result)
    typer.echo(json.dumps(result) if as_json else (out / "sweep.md").read_text(encoding="utf-8"))


def _load(file: Path, phase: str | None) -> TrainConfig:
    config = load_train_config(file)
    try:
        return config.with_phase("both" if phase == "both" else phase_of(file, phase))
    except ValidationError as error:
        raise TrainConfigInvalid(file, reasons(error)) from None


def phase_of(file: Path, phase: str | None) -> Phase | None:
    """What ``--phase`` names, if anything. Raises TrainConfigInvalid."""
    if phase in (*PHASES, None):
        return phase  # type: ignore[return-value]
    raise TrainConfigInvalid(file, f"--phase {phase!r} is neither arterial nor venous")


class _training:  # noqa: N801
    """A training command: its log on the terminal, and no traceback for what the user can mend."""

    def __enter__(self) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, TrainConfigInvalid):
            typer.echo(str(error), err=True)
            raise typer.Exit(EXIT_CONFIG) from None
        if isinstance(error, CheckpointUnusable | PairsUnusable):
            typer.echo(str(error), err=True)
            raise typer.Exit(EXIT_FAILED) from None


if __name__ == "__main__":
    app()
