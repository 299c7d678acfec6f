"""A folder of cases → a folder that ``[data] source = "folder"`` reads.

::

    OUT/pairs.tsv                          what training reads: files, patient, split
    OUT/refused.tsv                        every case that is in no pair, and why
    OUT/qc.html                            every registered pair with pictures, figures and verdict
    OUT/pairs/PATIENT/STUDY/ncct.nii.gz    HU on the wanted spacing, and the phases registered to it
    OUT/pairs/PATIENT/STUDY/labels.nii.gz  organ labels on the same grid, where cases.tsv names them
    OUT/pairs/PATIENT/STUDY/prepared.json  what was measured, and from what

A study whose ``prepared.json`` says that it was made from the same files with the same settings is not made
again, so cases may be added and the command repeated. Files that others put into a study's folder stay there
when it is made again.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its usual name

from engine.body import find_body
from engine.cases import PHASES, CaseRow, read_cases, write_nifti
from engine.errors import VolumeUnsupported
from engine.grid import antialias_sigma_mm, model_grid, to_model
from engine.volume import Float32, Geometry, Volume
from train.cases import LABEL_FILE
from train.painting import Labels, read_labels
from train.prepare.checks import Measures, Refusal, judge, measure
from train.prepare.cohort import CODES, Refused, Study, label_file, studies_of, volume_file
from train.prepare.config import PrepareConfig
from train.prepare.page import write_page
from train.prepare.pictures import draw_pair
from train.prepare.register import Alignment, Mask, covered, moved, register, scans
from train.real import ABSENT, LIST, PairsUnusable, read_upright, to_image
from train.split import check_sides, seed_without_empty_side, side_of

VERSION = 1
"""Raise it when the same files and settings give other volumes or figures."""
REFUSED = "refused.tsv"
PAGE = "qc.html"
PREPARED = "prepared.json"
OURS = {PREPARED, *(f"{name}.nii.gz" for name in PHASES), *(f"{name}.png" for name in PHASES)}
"""What a study's folder may hold of ours; ``prepared.json`` names labels where they are ours too."""
COLUMNS = ("ncct", "arterial", "venous", "patient", "study", "split")
COVERED = 0.98
"""Share of a slice's body that the phase has to show for the slice to be kept."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """One phase of a study: figures, why it is refused if it is, and the slices both scans show."""

    phase: str
    case: str
    measures: Measures
    refusal: Refusal | None
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class PreparedStudy:
    """A study's folder and what is in it; ``voxels`` is a digest of the NCCT as it is on the grid."""

    study: Study
    folder: Path
    voxels: str
    phases: tuple[Prepared, ...]
    refused: tuple[Refused, ...]

    @property
    def accepted(self) -> list[Prepared]:
        """The phases to train on."""
        return [phase for phase in self.phases if phase.refusal is None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the cases: rows of ``pairs.tsv``, rows of ``refused.tsv``, and advice."""

    pairs: list[dict[str, str]]
    refused: list[Refused]
    advice: str | None


def prepare(
    cases: Path, out: Path, config: PrepareConfig, progress: Progress = lambda what, fraction: None
) -> Outcome:
    """Make ``out`` from ``cases``. Raises CasesUnusable, PairsUnusable or PatientOnTwoSides."""
    studies, refused = studies_of(cases, read_cases(cases), config.spacing_mm)
    check_sides(_known_sides(out) + [(s.patient, _side(s.patient, config)) for s in studies])
    done: list[PreparedStudy] = []
    for number, study in enumerate(studies):
        progress(f"{study.patient} {study.study}", number / len(studies))
        outcome = _prepare_study(cases, out, study, config)
        if isinstance(outcome, PreparedStudy):
            done.append(outcome)
            refused += outcome.refused
        else:
            refused += outcome
    progress("", 1.0)
    done, repeated = _judged_duplicates(done)
    refused += repeated
    pairs = [_line(study, config) for study in done if study.accepted]
    out.mkdir(parents=True, exist_ok=True)
    _write_tsv(out / REFUSED, [f.name for f in fields(Refused)], [astuple(row) for row in refused])
    write_page(out / PAGE, [(study.folder, study.study, study.phases) for study in done], refused)
    _write_tsv(out / LIST, COLUMNS, [[line[c] for c in COLUMNS] for line in pairs])
    return Outcome(pairs, refused, _advice(pairs, config))


def _side(patient: str, config: PrepareConfig) -> str:
    return side_of(patient, config.seed, config.validation, config.test)


def _known_sides(out: Path) -> list[tuple[str, str]]:
    """Who was on which side when ``out`` was made before."""
    try:
        with (out / LIST).open(newline="", encoding="utf-8") as stream:
            return [(row["patient"], row["split"]) for row in csv.DictReader(stream, delimiter="\t")]
    except FileNotFoundError:
        return []
    except (KeyError, csv.Error, UnicodeDecodeError, OSError) as error:
        raise PairsUnusable(f"{out / LIST}: not a list that prepare wrote ({error!r})") from error


def _advice(pairs: Sequence[dict[str, str]], config: PrepareConfig) -> str | None:
    empty = {"train", "validation"} - {pair["split"] for pair in pairs}
    if not pairs or not empty:
        return None
    seed = seed_without_empty_side((p["patient"] for p in pairs), config.validation, config.test)
    cure = f"seed = {seed} leaves no side empty" if seed is not None else "add patients"
    return f"no patient for {' and '.join(sorted(empty))}: {cure} (a new seed needs a new OUT)"


# --- one study ----------------------------------------------------------------------------------


def _prepare_study(
    cases: Path, out: Path, study: Study, config: PrepareConfig
) -> PreparedStudy | list[Refused]:
    folder = out / "pairs" / study.patient / study.study
    digest = _digest(cases, study, config)
    if (known := _read_prepared(folder, study, digest)) is not None:
        return known
    rows = (study.ncct, *study.phases)
    try:
        ncct = read_upright(volume_file(cases, study.ncct))
        grid = model_grid(ncct.geometry, find_body(ncct).box, config.spacing_mm)
    except (PairsUnusable, VolumeUnsupported) as error:
        code = "NO-BODY" if isinstance(error, VolumeUnsupported) else "UNREADABLE"
        return [Refused.of(row, Refusal(code, f"NCCT: {CODES[code]}")) for row in rows]
    source = Volume(to_model(ncct.hu, grid), grid.model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        made = _write_study(staging, cases, study, source, ncct, config)
        _write_prepared(staging, digest, made, _voxels(source.hu))
        _keep_what_is_not_ours(folder, staging)
        staging.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return _read_prepared(folder, study, digest) or []


def _write_study(
    staging: Path, cases: Path, study: Study, source: Volume, ncct: Volume, config: PrepareConfig
) -> list[Prepared]:
    """Register every phase, draw it, and write what is accepted, cut to the slices that all of it shows."""
    made: list[Prepared] = []
    volumes: dict[str, Float32] = {}
    for row in study.phases:
        try:
            phase = read_upright(volume_file(cases, row))
            done, volumes[row.phase] = _pair(staging, row, source, ncct, phase, config)
        except (PairsUnusable, VolumeUnsupported) as error:
            code = "NO-BODY" if isinstance(error, VolumeUnsupported) else "UNREADABLE"
            done = Prepared(row.phase, row.case, NOTHING, Refusal(code, CODES[code]), 0, 0)
        made.append(_unless_short(done, made, config))
    kept = [one for one in made if one.refusal is None]
    if kept:
        first, end = max(one.first for one in kept), min(one.end for one in kept)
        write_nifti(staging / "ncct.nii.gz", _cut(source, source.hu, first, end))
        for one in kept:
            write_nifti(staging / f"{one.phase}.nii.gz", _cut(source, volumes[one.phase], first, end))
        if (file := label_file(cases, study.ncct)) is not None:
            labels = _nearest(read_labels(file, ncct.geometry), ncct.geometry, source.geometry)
            write_nifti(staging / LABEL_FILE, _cut(source, labels, first, end))
    return made


NOTHING = Measures(*[0.0] * len(fields(Measures)))


def _pair(
    staging: Path, row: CaseRow, source: Volume, ncct: Volume, phase: Volume, config: PrepareConfig
) -> tuple[Prepared, Float32]:
    pair = scans(ncct, phase, config.grid_mm)
    alignment = register(pair, config.registration, config.seed)
    measures = measure(pair, alignment)
    refusal = judge(measures, config)
    (staging / f"{row.phase}.png").write_bytes(draw_pair(pair, alignment))
    hu, shown = onto_grid(phase, alignment, source.geometry)
    hu = np.where(shown, hu, source.hu)  # beyond the phase's edge nothing is known to enhance
    first, end = _shared_slices(source, shown)
    return Prepared(row.phase, row.case, measures, refusal, first, end), hu


def _unless_short(done: Prepared, made: Sequence[Prepared], config: PrepareConfig) -> Prepared:
    """Refused where fewer slices than wanted would be left for it and those accepted before it."""
    before = [one for one in made if one.refusal is None]
    first = max([done.first, *(one.first for one in before)])
    left = min([done.end, *(one.end for one in before)]) - first
    if done.refusal is not None or left >= config.min_slices:
        return done
    reason = f"{CODES['TOO-FEW-SLICES']} ({max(left, 0)}, at least {config.min_slices})"
    refusal = Refusal("TOO-FEW-SLICES", reason)
    return Prepared(done.phase, done.case, done.measures, refusal, done.first, done.end)


def onto_grid(phase: Volume, alignment: Alignment, grid: Geometry) -> tuple[Float32, Mask]:
    """The phase on the NCCT's grid in one interpolation, and where it shows anything."""
    image = to_image(phase)
    for axis, (have, want) in enumerate(zip(phase.geometry.spacing_mm, grid.spacing_mm, strict=True)):
        sigma, direction = antialias_sigma_mm(have, want), 2 - axis
        if sigma > 0.2 * have and image.GetSize()[direction] >= 4:  # ITK's recursion needs four samples
            image = sitk.RecursiveGaussian(
                image, sigma, False, sitk.RecursiveGaussianImageFilter.ZeroOrder, direction
            )
    smooth = phase.with_array(sitk.GetArrayFromImage(image))
    return moved(smooth, alignment.whole, grid), covered(phase.geometry, alignment.whole, grid)


def _nearest(labels: Labels, grid: Geometry, wanted: Geometry) -> Float32:
    """Label numbers of ``grid`` at the voxels of ``wanted``; outside there are none."""
    image, frame = (to_image(Volume(x, g)) for x, g in (
        (labels.astype(np.float32), grid), (np.zeros(wanted.shape, np.float32), wanted),
    ))  # fmt: skip
    there: Float32 = sitk.GetArrayFromImage(
        sitk.Resample(image, frame, sitk.Transform(), sitk.sitkNearestNeighbor, 0.0)
    )
    return there


def _shared_slices(source: Volume, shown: Mask) -> tuple[int, int]:
    """The longest run of slices whose body the phase shows."""
    body = source.hu > -300  # the table counts as well: it is small, and seen by both or by none
    share = (body & shown).sum((1, 2)) / np.maximum(body.sum((1, 2)), 1)
    best, first = (0, 0), 0
    for index, kept in enumerate([*(share >= COVERED), False]):
        if kept:
            continue
        if index - first > best[1] - best[0]:
            best = (first, index)
        first = index + 1
    return best


def _cut(source: Volume, hu: Float32, first: int, end: int) -> Volume:
    grid = source.geometry
    shape = (end - first, *grid.shape[1:])
    cut = Geometry(shape, grid.spacing_mm, grid.position_of((first, 0, 0)), grid.directions)
    return Volume(np.rint(hu[first:end]).astype(np.float32), cut)


# --- what was done ------------------------------------------------------------------------------


def _digest(cases: Path, study: Study, config: PrepareConfig) -> str:
    """Of the files' bytes and of the settings that change volumes or verdicts."""
    files = {row.phase: volume_file(cases, row) for row in (study.ncct, *study.phases)}
    if (labels := label_file(cases, study.ncct)) is not None:
        files["labels"] = labels
    sums = []
    for name, file in files.items():
        try:
            with file.open("rb") as stream:
                sums.append((name, hashlib.file_digest(stream, "sha256").hexdigest()))
        except OSError as error:
            raise PairsUnusable(f"{error.filename}: {error.strerror}") from error
    settings = config.model_dump(mode="json", exclude={"validation", "test"})
    return hashlib.sha256(json.dumps([VERSION, sums, settings], sort_keys=True).encode()).hexdigest()


def _voxels(hu: Float32) -> str:
    return hashlib.sha256(np.rint(hu).astype(np.int16).tobytes()).hexdigest()


def _write_prepared(staging: Path, digest: str, made: Sequence[Prepared], voxels: str) -> None:
    content = {
        "digest": digest,
        "voxels": voxels,
        "phases": [asdict(one) for one in made],
        "files": sorted(file.name for file in staging.iterdir()),
    }
    (staging / PREPARED).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _keep_what_is_not_ours(folder: Path, staging: Path) -> None:
    """Copy what people put into the folder that ``staging`` will replace, labels of their own for example."""
    try:
        ours = {*OURS, *json.loads((folder / PREPARED).read_text(encoding="utf-8")).get("files", ())}
    except (OSError, ValueError):
        ours = OURS
    for found in folder.iterdir() if folder.is_dir() else ():
        place = staging / found.name
        if found.name in ours or place.exists():
            continue
        if found.is_dir():
            shutil.copytree(found, place)
        else:
            shutil.copy2(found, place)


def _read_prepared(folder: Path, study: Study, digest: str) -> PreparedStudy | None:
    """What an earlier run left, if it was made from the same."""
    try:
        content = json.loads((folder / PREPARED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if content.get("digest") != digest:
        return None
    phases = tuple(_prepared(one) for one in content["phases"])
    rows = {row.phase: row for row in study.phases}
    refused = tuple(Refused.of(rows[one.phase], one.refusal) for one in phases if one.refusal)
    return PreparedStudy(study, folder, content["voxels"], phases, refused)


def _prepared(content: dict[str, Any]) -> Prepared:
    refusal = content["refusal"]
    return Prepared(
        content["phase"],
        content["case"],
        Measures(**content["measures"]),
        Refusal(**refusal) if refusal else None,
        content["first"],
        content["end"],
    )


def _judged_duplicates(done: Iterable[PreparedStudy]) -> tuple[list[PreparedStudy], list[Refused]]:
    """All studies; those whose NCCT another patient has too are refused: one of the two names is wrong."""
    owners: dict[str, str] = {}
    judged: list[PreparedStudy] = []
    refused: list[Refused] = []
    for one in done:
        owner = owners.setdefault(one.voxels, one.study.patient)
        if owner == one.study.patient:
            judged.append(one)
            continue
        why = Refusal("DUPLICATE", f"{CODES['DUPLICATE']}, {owner}")
        refused += [Refused.of(row, why) for row in (one.study.ncct, *one.study.phases)]
        judged.append(replace(one, phases=tuple(replace(p, refusal=p.refusal or why) for p in one.phases)))
    return judged, refused


def _line(done: PreparedStudy, config: PrepareConfig) -> dict[str, str]:
    place = f"pairs/{done.study.patient}/{done.study.study}"
    line = dict.fromkeys(("arterial", "venous"), ABSENT) | {"ncct": f"{place}/ncct.nii.gz"}
    line |= {one.phase: f"{place}/{one.phase}.nii.gz" for one in done.accepted}
    who = done.study.patient
    return line | {"patient": who, "study": done.study.study, "split": _side(who, config)}


def _write_tsv(file: Path, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    temporary = file.with_name(f".{file.name}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter="\t", lineterminator="\n").writerows([columns, *rows])
    temporary.replace(file)
