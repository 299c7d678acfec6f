"""The page of a comparison: tables in the shape of the paper's Table 1 and 2, organs, budgets, pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from train.bars import Bar, organ_error, release_bars
from train.cases import CONTROLS, ORGANS
from train.kept import slim
from train.measure_row import load_planes
from train.rows import Preset, Row
from train.statistics import Summary, bootstrap, mean, paired_p, summarise

Found = Mapping[tuple[str, str], Mapping[str, Any]]
"""(row, phase) → what ``train.measure_row`` wrote."""

METRICS: Mapping[str, tuple[str, int]] = {"nmse": ("NMSE ↓", 4), "psnr": ("PSNR ↑", 2), "ssim": ("SSIM ↑", 3)}
PAPER_DIGITS = (3, 2, 3)
OURS = "s2ldm"
ACROSS = 5
"""Panels in a line of the picture."""
RELEASED = ("s2ldm", "shipped")
"""Rows that are held against what a release has to reach."""
PHASES = ("arterial", "venous")
ABSENT = "–"

DIFFERENT_DATA = """\
**These are not the paper's data.** The paper's figures come from 164 and 170 patients of one hospital,
scored on its validation cases with an NMSE that it does not define. Ours come from computed phantoms
whose phases fit each other exactly, scored inside the body with NMSE = Σe²/Σy², y counted from −200 HU.
Columns must not be compared with each other, only rows within a column; and how the rows are ordered
here says nothing about patients."""
ORACLE = """\
*Oracle* adds to each source the rise that its anatomy lets one expect. A patient's own level of
enhancement is not in an unenhanced scan, so no method can beat it on average in an organ. It keeps the
source's grain, which the truth does not share; *without grain* is the expectation itself, which nobody
beats in squared error before volumes are clipped to the window, as they are for these figures."""
ORGAN_NOTE = """\
Mean absolute error of the organ's mean HU over patients, ± standard deviation, with the 95 % interval
of the mean; in brackets the slope of enhancement over patients (1 follows each, 0 gives everybody the
average)."""
CONTROL_NOTE = """\
Mean change in HU from the source; the truth's own change stands in the oracle's row. Thin vessels:
contrast that vessels of 3 to 6 mm gained on their surroundings, as a share of the oracle's. Flicker and
seams: 1 is as the truth."""
BARS = """\
The first is trained for as long as every other row, the second is the model that is shipped, which was
trained for longer. *Best* among the six is by the mean; whose mean lies within the 95 % interval of the
best is not told from it."""
LOST = """\
What the error of an organ is made of, where another of the six is better than the shipped model: *bias*,
which all patients share; *rise*, how far the organ's enhancement differs between patients (standard
deviation, the truth's in brackets); and what the rise goes with: the truth's own, or how dense the organ
was in the source. The limit's rise is all that a source tells of the truth; what goes with the density
beyond it is wrong."""
INTRODUCTION = """\
Written by `s2node compare`. Every trained row had the same wall-clock time, but for the shipped model, which
had more. *Stage 1 alone* is an autoencoder of its own that learns to translate, with all the minutes of a
row. All were measured on the same {cases} phantoms (seeds {first} to {last}), which no training has seen.
Metrics are taken inside the body in the window −200 to 200 HU: mean ± standard deviation over patients
and, in brackets, the 95 % bootstrap interval of the mean. † differs from S²LDM with p < 0.05
(Wilcoxon's signed-rank test, paired by patient, not corrected for the number of tests)."""


def write_results(out: Path, folder: Path, table: Mapping[str, Row], preset: Preset) -> None:
    """Write ``out`` and, beside it under images/, one picture a phase, from the rows that are finished."""
    found = read_results(folder, table)
    out.parent.mkdir(parents=True, exist_ok=True)
    pictures = [
        name
        for phase in PHASES
        if (name := _write_picture(out.parent / "images", folder, found, table, phase))
    ]
    out.write_text(page(found, table, preset, pictures), encoding="utf-8")


def read_results(folder: Path, table: Mapping[str, Row]) -> Found:
    """Every finished row of the folder, in the form in which it may be kept, so that pages do not differ."""
    files = {
        (name, phase): folder / f"{name}-{phase}.json" for name, row in table.items() for phase in row.phases
    }
    return {key: slim(json.loads(file.read_text())) for key, file in files.items() if file.exists()}


def page(found: Found, table: Mapping[str, Row], preset: Preset, pictures: Sequence[str] = ()) -> str:
    """The whole page in Markdown."""
    comparison = {name: row for name, row in table.items() if row.table == "comparison"}
    ablation = {name: row for name, row in table.items() if row.table == "ablation"}
    wanted = sum(len(row.phases) for row in table.values())
    parts = [
        "# Results",
        _introduction(found, preset, wanted),
        DIFFERENT_DATA,
        "## Table 1: methods",
        _table(_image_table(found, comparison, PHASES)),
        ORACLE,
        "## Table 2: parts of S²LDM, venous",
        _table(_image_table(found, ablation, ("venous",))),
        "## Organs",
        ORGAN_NOTE,
    ]
    for phase in PHASES:
        parts += [f"### {phase.capitalize()}", _table(_organ_table(found, table, phase))]
    parts += ["## What must not change, and what must not be lost", CONTROL_NOTE]
    parts += [_table(_control_table(found, table))]
    parts += ["## What a release has to reach", BARS]
    parts += [
        _table(_bar_table(found, table, name, phase))
        for name in RELEASED
        for phase in PHASES
        if (name, phase) in found and ("oracle", phase) in found
    ]
    lost = list(_lost_table(found, table))
    if len(lost) > 1:
        parts += ["### Where another method is better, and why", LOST, _table(iter(lost))]
    parts += ["## What each row had", machines(found), _wall_clock(found, preset, wanted)]
    parts += [_table(_budget_table(found, table))]
    parts += [f"![Rows of the {name.split('-')[-1].split('.')[0]} phase](images/{name})" for name in pictures]
    return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(found: Found, preset: Preset, wanted: int) -> str:
    first = preset.first_seed
    text = INTRODUCTION.format(cases=preset.cases, first=first, last=first + preset.cases - 1)
    if len(found) == wanted:
        return text
    return f"{text}\n\n**Not finished:** {len(found)} of {wanted} rows and phases are here."


def _image_table(found: Found, rows: Mapping[str, Row], phases: Sequence[str]) -> Iterator[Sequence[str]]:
    """One line a row: ours and the paper's figures side by side, phase by phase."""
    heads = [f"{phase}: {words}" for phase in phases for words, _ in METRICS.values()]
    papers = [f"paper, {phase}" for phase in phases]
    yield ("method", *heads, *papers)
    reference = "full" if "full" in rows else OURS
    for name, row in rows.items():
        cells = [
            _image_cell(found, name, reference, phase, key, digits)
            for phase in phases
            for key, (_, digits) in METRICS.items()
        ]
        yield (row.title, *cells, *(_paper(row, phase) for phase in phases))


def _image_cell(found: Found, name: str, reference: str, phase: str, key: str, digits: int) -> str:
    values = _body(found, name, phase, key)
    if not values:
        return ABSENT
    others = _body(found, reference, phase, key)
    differs = name != reference and len(others) == len(values) and paired_p(values, others) < 0.05
    return spread(summarise(values), digits) + (" †" if differs else "")


def _paper(row: Row, phase: str) -> str:
    if phase not in row.paper:
        return ABSENT
    return " / ".join(f"{v:.{d}f}" for v, d in zip(row.paper[phase], PAPER_DIGITS, strict=True))


def _organ_table(found: Found, table: Mapping[str, Row], phase: str) -> Iterator[Sequence[str]]:
    yield ("method", *(organ.replace("_", " ") for organ in ORGANS))
    for name, row in table.items():
        if phase in row.phases:
            yield (row.title, *(_organ_cell(found.get((name, phase)), organ) for organ in ORGANS))


def _organ_cell(result: Mapping[str, Any] | None, organ: str) -> str:
    means = organ_means(result, organ)
    if not len(means):
        return ABSENT
    source, truth, made = means.T
    text = spread(summarise(np.abs(made - truth)), 1)
    wanted, got = truth - source, made - source
    if len(means) < 3 or not np.var(wanted):
        return text
    return f"{text} (β {np.cov(wanted, got, bias=True)[0, 1] / np.var(wanted):.2f})"


def organ_means(result: Mapping[str, Any] | None, organ: str) -> Any:
    """(patients, 3) mean HU of source, truth and synthesis; empty where there are none."""
    rows = [row["organs"].get(organ) for row in result["rows"]] if result else []
    return np.array([[row["source"], row["truth"], row["made"]] for row in rows if row])


def _control_table(found: Found, table: Mapping[str, Row]) -> Iterator[Sequence[str]]:
    kept = [name for name in CONTROLS if name != "air"]
    yield ("method", "phase", *kept, "thin vessels, of the oracle's", "z flicker", "seam ratio")
    for name, row in table.items():
        for phase in row.phases:
            result = found.get((name, phase))
            if result:
                controls = (_control(result, control, name == "oracle") for control in kept)
                yield (
                    row.title, phase, *controls, vessel_share(found, name, phase),
                    _average(result, "z_flicker"), _average(result, "seam_ratio"),
                )  # fmt: skip


def _control(result: Mapping[str, Any], control: str, with_truth: bool) -> str:
    changes = [row["controls"][control] for row in result["rows"] if control in row["controls"]]
    if not changes:
        return ABSENT
    mean, _, true = np.mean(changes, axis=0).tolist()
    return f"{mean:+.1f} (truth {true:+.1f})" if with_truth else f"{mean:+.1f}"


def vessel_share(found: Found, name: str, phase: str) -> str:
    """Contrast gained by thin vessels against the oracle's on the same patients."""
    own, oracle = (_gains(found.get((row, phase))) for row in (name, "oracle"))
    shared = own.keys() & oracle.keys()
    if not shared:
        return ABSENT
    return f"{100 * sum(own[c] for c in shared) / sum(oracle[c] for c in shared):.0f} %"


def _gains(result: Mapping[str, Any] | None) -> dict[str, float]:
    rows = result["rows"] if result else []
    return {row["case"]: row["vessels"]["made"] for row in rows if row["vessels"]}


def _average(result: Mapping[str, Any], key: str) -> str:
    values = [row[key] for row in result["rows"] if row[key] is not None]
    return f"{np.mean(values):.2f}" if values else ABSENT


def _bar_table(found: Found, table: Mapping[str, Row], name: str, phase: str) -> Iterator[Sequence[str]]:
    """What is asked of a release, for one row and phase."""
    yield (f"asked of: {table[name].title}", "measured", "reached")
    oracle = {row["case"]: row for row in found["oracle", phase]["rows"]}
    rows = [row for row in found[name, phase]["rows"] if row["case"] in oracle]
    bars = release_bars(phase, rows, [oracle[row["case"]] for row in rows])
    for bar in (*bars, *best_bars(found, table, name, phase)):
        yield (bar["aim"], bar["measured"], "yes" if bar["reached"] else "no")


def best_bars(found: Found, table: Mapping[str, Row], name: str, phase: str) -> Iterator[Bar]:
    """Whether SSIM and each organ's error are best of the six methods, or within the interval of the best.

    The six are the rows that the paper has in that phase's Table 1; ``name`` stands for ours among them.
    """
    names = _six(found, table, name, phase)
    if len(names) < 2:
        return
    ssim = {each: [1 - v for v in _body(found, each, phase, "ssim")] for each in names}
    best, is_ours = _best(ssim, name)
    yield {
        "aim": f"{phase}: SSIM best of the {len(names)} methods, or within the interval of the best",
        "measured": f"{1 - np.mean(ssim[name]):.3f}; best: {best} {1 - np.mean(ssim[best]):.3f}",
        "reached": is_ours,
    }
    lost, kept = [], 0
    for organ, best, is_ours in _best_of_organs(found, names, phase):
        kept += is_ours
        if not is_ours:
            ours, theirs = (organ_error(found[each, phase]["rows"], organ) for each in (name, best))
            lost.append(f"{organ.replace('_', ' ')} {ours:.1f} HU, {best} {theirs:.1f} HU")
    yield {
        "aim": f"{phase}: organ errors best of the {len(names)} methods, or within the interval of the best",
        "measured": "; ".join([f"{kept} of {kept + len(lost)} organs", *lost]),
        "reached": not lost,
    }


def _six(found: Found, table: Mapping[str, Row], name: str, phase: str) -> tuple[str, ...]:
    """``name`` and the finished ones of the paper's other methods."""
    others = (
        other
        for other, row in table.items()
        if row.table == "comparison" and phase in row.paper and other != OURS and (other, phase) in found
    )
    return (name, *others)


def _best_of_organs(found: Found, names: Sequence[str], phase: str) -> Iterator[tuple[str, str, bool]]:
    """(organ, who has the least error, whether the first of ``names`` is not told from it)."""
    for organ in ORGANS:
        means = {each: organ_means(found[each, phase], organ) for each in names}
        if all(len(values) for values in means.values()):
            yield (organ, *_best({each: np.abs(m[:, 2] - m[:, 1]) for each, m in means.items()}, names[0]))


def _lost_table(found: Found, table: Mapping[str, Row]) -> Iterator[Sequence[str]]:
    """Organs in which the shipped model is not among the best: it, who is, and the limit."""
    yield ("organ", "method", "error, HU", "bias, HU", "rise, HU", "r with the truth's", "r with the density")
    for phase in PHASES:
        names = _six(found, table, RELEASED[-1], phase)
        if (names[0], phase) not in found or len(names) < 2:
            continue
        for organ, best, is_ours in _best_of_organs(found, names, phase):
            for each in () if is_ours else (names[0], best, "limit"):
                means = organ_means(found.get((each, phase)), organ)
                if len(means) > 2:
                    words = f"{organ.replace('_', ' ')}, {phase}"
                    yield (words, table[each].title, *_error_parts(*means.T))


def _error_parts(source: Any, truth: Any, made: Any) -> tuple[str, ...]:
    """Of one organ's means over patients: error, bias, rise, and what the rise goes with."""
    rise, true = made - source, truth - source

    def r(other: Any) -> str:
        return f"{np.corrcoef(rise, other)[0, 1]:+.2f}" if np.ptp(rise) and np.ptp(other) else ABSENT

    error, bias = np.abs(made - truth).mean(), (made - truth).mean()
    return (f"{error:.1f}", f"{bias:+.1f}", f"{rise.std():.1f} ({true.std():.1f})", r(true), r(source))


def _best(errors: Mapping[str, Sequence[float]], name: str) -> tuple[str, bool]:
    """Who has the least mean error, and whether that of ``name`` lies within the interval of the least."""
    best = min(errors, key=lambda each: float(np.mean(errors[each])))
    return best, bool(np.mean(errors[name]) <= bootstrap(errors[best], mean)[1])


def machines(found: Found) -> str:
    """What the rows were measured on; more than one kind where rows were carried over."""
    kinds = {
        f"{made['cpu']}, {made['cpus']} cores, torch {made['torch']}"
        for result in found.values()
        if (made := result.get("machine"))
    }
    commits = {str(result["commit"])[:12] for result in found.values() if result.get("commit")}
    return f"Made on: {'; '.join(sorted(kinds))}. Versions: {', '.join(sorted(commits))}." if kinds else ""


def _wall_clock(found: Found, preset: Preset, wanted: int) -> str:
    """What the whole table took, where every row says it; rows of earlier versions do not."""
    spent = [result["wall_seconds"] for result in found.values() if "wall_seconds" in result]
    if len(spent) < wanted:
        return ""
    hours = {
        kind: sum(row.get(kind, 0.0) for row in spent) / 3600 / preset.side_by_side
        for kind in ("train", "export", "measure")
    }
    parts = ", ".join(f"{kind} {value:.2f}" for kind, value in hours.items())
    return f"Wall-clock hours, {preset.side_by_side} rows side by side: {sum(hours.values()):.2f} ({parts})."


def _budget_table(found: Found, table: Mapping[str, Row]) -> Iterator[Sequence[str]]:
    yield ("method", "phase", "minutes trained", "steps", "parameters", "seconds a phantom")
    for name, row in table.items():
        for phase in row.phases:
            result = found.get((name, phase))
            if result:
                stages = list(result["trained"].values())
                yield (row.title, phase, *_budget(stages), f"{result['seconds']:.1f}")


def _budget(stages: Sequence[Mapping[str, Any]]) -> tuple[str, str, str]:
    if not stages:
        return (ABSENT, ABSENT, ABSENT)
    parameters = sum(sum(stage.get("parameters", {}).values()) for stage in stages)
    return (
        " + ".join(f"{stage['minutes']:.1f}" for stage in stages),
        " + ".join(str(stage["steps"]) for stage in stages),
        f"{parameters:,}",
    )


def _body(found: Found, name: str, phase: str, key: str) -> list[float]:
    result = found.get((name, phase))
    return [row["body"][key] for row in result["rows"]] if result else []


def spread(found: Summary, digits: int) -> str:
    """``mean ± SD [low, high]``."""
    mean, sd, low, high = (
        f"{v:.{digits}f}" for v in (found["mean"], found["sd"], found["low"], found["high"])
    )
    return f"{mean} ± {sd} [{low}, {high}]"


def _table(rows: Iterator[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _write_picture(folder: Path, results: Path, found: Found, table: Mapping[str, Row], phase: str) -> str:
    """The first phantom's axial plane of every row and its error; the file's name, or nothing."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    from train.plots import MINUS, draw, scale  # noqa: PLC0415

    names = [name for name in table if (name, phase) in found and (results / f"{name}-{phase}.npz").exists()]
    if not names:
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ceil((len(names) + 1) / ACROSS)
    figure = Figure(figsize=(3.0 * ACROSS, 4.4 * lines), layout="constrained")
    axes = figure.subplots(2 * lines, ACROSS, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    for cell, name in enumerate(names, 1):
        above, column = 2 * (cell // ACROSS), cell % ACROSS
        shown = load_planes(results / f"{name}-{phase}.npz")[0]
        made = draw(axes[above, column], name, shown.made, shown.aspect)
        error = draw(axes[above + 1, column], f"{name} {MINUS} truth", shown.made - shown.truth, shown.aspect)
        draw(axes[0, 0], "source", shown.source, shown.aspect)
        draw(axes[1, 0], f"true {phase}", shown.truth, shown.aspect)
    scale(figure, made, list(axes[0]))
    scale(figure, error, list(axes[1]))
    figure.savefig(folder / f"results-{phase}.png", dpi=70, metadata={"Software": None})
    return f"results-{phase}.png"
