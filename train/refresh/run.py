"""Old bundle in, comparison out, and a new bundle if it is not worse.

A bundle holds graphs; all that training needs to go on is in the checkpoint it was exported from. The bundle
names it by its digest, so it may lie anywhere and be moved, and cannot be mistaken for another. Where it is
not to be had, an S²LDM goes on from the weights in its graphs, which are those that the node serves; its
optimisers begin anew.
"""

from __future__ import annotations

import json
import logging
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engine.bundle import Bundle, file_sha256, read_bundle
from engine.cases import LIST as CASES_LIST
from engine.errors import VolumeUnsupported
from engine.session import SessionPolicy
from train import checkpoint as ckpt
from train.cases import folder_cases
from train.config import RunConfig, TrainConfig, TrainConfigInvalid, merged, read_table, reasons
from train.evaluate import PhaseRows
from train.evaluate import run as measure
from train.html import write_page
from train.loop import Plan, train
from train.methods import METHODS
from train.real import LIST as PAIRS_LIST
from train.real import PairsUnusable
from train.refresh.verdict import Verdict, judge, verdict_html
from train.s2ldm.go_on import go_on_with_diffusion, go_on_with_joint

S2LDM = {"diffusion": go_on_with_diffusion, "joint": go_on_with_joint}
"""Last stages of an S²LDM and what goes on with each."""
FROZEN: dict[str, dict[str, Any]] = {"aldm": {"autoencoder_share": 0.0, "spade_share": 0.0}}
"""Keys of methods whose parts learn one after the other: in a refresh the last one goes on alone.

The others would move latents under a denoiser and a scale that were made for what they were.
"""
log = logging.getLogger(__name__)
REVISION = re.compile(r"(?P<base>.*)\+r(?P<number>\d+)")


class RefreshFailed(Exception):
    """There is no new model to judge; says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Request:
    """``checkpoints``: files, or folders that are searched; ``rate``: share of the model's own rates."""

    bundle: Path
    cases: Path
    out: Path
    cache: Path
    checkpoints: Sequence[Path]
    minutes: float
    rate: float
    policy: SessionPolicy
    steps: int | None = None
    config: Path | None = None
    resume: bool = False

    @property
    def run(self) -> Path:
        """Folder of the training."""
        return self.out / "run"

    @property
    def new_bundle(self) -> Path:
        """There once the new model was accepted."""
        return self.out / "bundle"


def refresh(request: Request) -> Verdict:
    """Fine-tune, compare, export if accepted; ``out`` then has verdict.json and comparison.html (and .json).

    Raises RefreshFailed, BundleInvalid, ProviderMissing, CheckpointUnusable, PairsUnusable or
    TrainConfigInvalid.
    """
    bundle = read_bundle(request.bundle)
    _check_folders(request)
    file = start_of(bundle, request)
    start = ckpt.load(file)
    config = refreshed_config(file, start, bundle, request)
    old = measured(request.bundle, request)
    go_on(config, start, request)
    _require_finished(request.run)
    candidate = export_candidate(request)
    new = measured(candidate, request)
    verdict = judge(old, new)
    write_comparison(request.out, old, new, verdict)
    keep_or_drop(candidate, verdict, request.new_bundle)
    return verdict


def start_of(bundle: Bundle, request: Request) -> Path:
    """The checkpoint to go on from: the bundle's own, or one made of its graphs. Raises RefreshFailed."""
    found = find_checkpoint(bundle, request.checkpoints)
    if found is not None:
        return found
    place, model = request.out / "from-graphs", bundle.manifest.model_id
    reason = _export("export.restore", str(bundle.folder), str(place))
    if reason:
        raise RefreshFailed(
            f"{bundle.folder}: the checkpoint that {model} was exported from (sha256"
            f" {bundle.manifest.run['checkpoint_sha256'][:12]}…) is not under"
            f" {', '.join(map(str, request.checkpoints))}, and its weights cannot be read from its graphs"
            f" ({reason}): copy the checkpoint from where {model} was trained, and name its folder with"
            " --checkpoint"
        )
    log.warning(
        "the checkpoint of %s is not there: its graphs' weights go on, its optimisers begin anew", model
    )
    return place / ckpt.NAME


def find_checkpoint(bundle: Bundle, places: Sequence[Path]) -> Path | None:
    """The file that ``bundle`` was exported from, by its digest. Raises RefreshFailed where it names none."""
    wanted, model = bundle.manifest.run.get("checkpoint_sha256"), bundle.manifest.model_id
    if not isinstance(wanted, str):
        raise RefreshFailed(
            f"{bundle.folder}: does not say which checkpoint {model} was exported from, as bundles of earlier"
            " versions do not: export it again with `s2node export CHECKPOINT FOLDER` and refresh that"
        )
    files = dict.fromkeys(_checkpoints(places))
    return next((file for file in files if file_sha256(file) == wanted), None)


def _checkpoints(places: Sequence[Path]) -> Iterator[Path]:
    for place in places:
        if place.is_file():
            yield place
        elif place.is_dir():
            yield from sorted(place.rglob(ckpt.NAME))


def refreshed_config(file: Path, start: ckpt.Checkpoint, bundle: Bundle, request: Request) -> RunConfig:
    """What the model was trained with, on other pairs, at lower rates, under the next version.

    Raises TrainConfigInvalid or CheckpointUnusable.
    """
    if start.stage not in (*S2LDM, *METHODS):
        raise ckpt.CheckpointUnusable(file, f"is of stage {start.stage!r}, which is no whole model")
    kind = TrainConfig if start.stage in S2LDM else METHODS[start.stage].config_class()
    values = kind.model_validate_json(start.config).model_dump(mode="json")
    phase, version = bundle.manifest.phase, bundle.manifest.model_version
    values["data"] |= {"source": "folder", "folder": str(request.cases.resolve()), "phase": phase}
    values["bundle"]["version"] = next_version(version)
    stage = slower(values[start.stage], request.rate) | FROZEN.get(start.stage, {})
    stage["loop"] |= {"max_minutes": request.minutes} | ({"steps": request.steps} if request.steps else {})
    values[start.stage] = stage
    changes = read_table(request.config) if request.config else {}
    try:
        config = kind.model_validate(merged(values, changes))
    except ValidationError as error:
        raise TrainConfigInvalid(request.config or file, reasons(error)) from None
    if config.data.window_hu != bundle.manifest.window_hu:
        window = list(bundle.manifest.window_hu)
        raise TrainConfigInvalid(
            request.config or file, f"data.window_hu has to stay {window}: errors are compared within it"
        )
    return config


def next_version(version: str) -> str:
    """``1.0.0`` is followed by ``1.0.0+r1``, that by ``1.0.0+r2``."""
    found = REVISION.fullmatch(version)
    return f"{found['base']}+r{int(found['number']) + 1}" if found else f"{version}+r1"


def slower(section: Mapping[str, Any], rate: float) -> dict[str, Any]:
    """``section`` with every learning rate in it multiplied by ``rate``."""
    slow = {k: slower(v, rate) if isinstance(v, dict) else v for k, v in section.items()}
    return slow | ({"lr": slow["lr"] * rate} if "lr" in slow else {})


def go_on(config: RunConfig, start: ckpt.Checkpoint, request: Request) -> Path:
    """Train the last stage on, from ``start`` or, with ``resume``, from where a refresh was stopped."""
    if start.stage in S2LDM:
        assert isinstance(config, TrainConfig)
        return S2LDM[start.stage](config, start, request.run, request.cache, request.resume)
    build = pkgutil.resolve_name(f"{METHODS[start.stage].train.partition(':')[0]}:build")
    plan = Plan(start.stage, config, getattr(config, start.stage).loop)
    return train(
        plan, lambda fabric: build(config, fabric), request.run, request.cache, request.resume, start.states
    )


def measured(bundle: Path, request: Request) -> PhaseRows:
    """The rows of the test side. Raises PairsUnusable where a pair of it cannot be measured or none has the
    bundle's phase.
    """
    left_out: list[str] = []

    def skip(case: str, error: VolumeUnsupported) -> None:
        left_out.append(f"{case}: {error}")

    found = measure([bundle], folder_cases(request.cases, skip=skip), request.policy, skip=skip)
    if left_out:
        raise PairsUnusable(
            f"{request.cases}: take out of {PAIRS_LIST} what cannot be measured: {'; '.join(left_out)}"
        )
    if not found:
        raise PairsUnusable(f"{request.cases}: nobody on the test side has the bundle's phase")
    return next(iter(found.values()))


def export_candidate(request: Request) -> Path:
    """The new model as a bundle, by a process of its own. Raises RefreshFailed with its last words."""
    candidate = request.out / "candidate"
    reason = _export("export.cli", str(request.run), str(candidate), "--replace")
    if reason:
        raise RefreshFailed(f"{request.run}: export failed: {reason}")
    return candidate


def _export(module: str, *words: str) -> str:
    """Run a command of ``export``, which nothing here may import; its last words if it failed, or nothing."""
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stderr.strip() or "no word").splitlines()[-1] if done.returncode else ""


def write_comparison(out: Path, old: PhaseRows, new: PhaseRows, verdict: Verdict) -> None:
    """``comparison.html`` with ``comparison.json``, and ``verdict.json`` for scripts."""
    old_id, new_id = (str(rows.facts["model_id"]) for rows in (old, new))
    pages = {f"In use: {old_id}": old, f"Refreshed: {new_id}": new}
    head = verdict_html(verdict, old_id, new_id)
    write_page(out / "comparison.html", pages, f"{old_id} refreshed", head)
    facts = {
        "accepted": verdict.accepted,
        "organs": verdict.organs,
        "worse": verdict.worse,
        "old": old.facts,
        "new": new.facts,
        "regions": [asdict(change) for change in verdict.changes],
    }
    (out / "verdict.json").write_text(json.dumps(facts, indent=2) + "\n")


def keep_or_drop(candidate: Path, verdict: Verdict, place: Path) -> None:
    """The candidate is at ``place`` if it was accepted, and else nowhere."""
    if verdict.accepted:
        candidate.rename(place)
    else:
        shutil.rmtree(candidate)


def _check_folders(request: Request) -> None:
    if request.new_bundle.exists():
        raise RefreshFailed(f"{request.new_bundle} exists already: choose another --out")
    if not (request.cases / PAIRS_LIST).is_file() and (request.cases / CASES_LIST).is_file():
        raise PairsUnusable(
            f"{request.cases}: has {CASES_LIST} and no {PAIRS_LIST}: run `s2node train prepare CASES PAIRS`,"
            " look at PAIRS/qc.html, and name PAIRS here"
        )


def _require_finished(run: Path) -> None:
    card = json.loads((run / "run.json").read_text())
    if not card["finished"]:
        raise RefreshFailed(f"{run}: stopped after {card['steps']} steps: add --resume to go on from there")
