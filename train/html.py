"""An evaluation as one page that needs nothing else: tables, agreement, enhancement, the worst cases first.

``write_page`` also writes every case's row beside it, as JSON under the same name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from train import plots
from train.evaluate import PhaseRows, Shown, as_json
from train.measure import Row
from train.report import bar_rows
from train.statistics import paired_p, summarise

PICTURES = 4
"""How many of the worst cases are shown as pictures."""
METRICS: Mapping[str, tuple[str, int]] = {
    "mae_hu": ("MAE, HU", 2),
    "rmse_hu": ("RMSE, HU", 2),
    "psnr": ("PSNR, dB", 2),
    "ssim": ("SSIM", 3),
    "nmae_range": ("NMAE (of the range)", 4),
    "nmae_l1": ("NMAE (Σ|e|/Σy)", 4),
    "nrmse": ("NRMSE (of the range)", 4),
    "nmse": ("NMSE (Σe²/Σy²)", 4),
}
"""Name in the JSON → heading and digits."""
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2128; max-width: 1180px; margin: 2rem auto; }
body { padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 2px solid #1f5fa8; }
h3 { margin: 1.6rem 0 .4rem; } p { max-width: 46rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .22rem .7rem; text-align: right; border-bottom: 1px solid #e3e6ea; white-space: nowrap; }
th { color: #57606a; font-weight: 600; } th:first-child, td:first-child { text-align: left; }
img { width: 100%; height: auto; } .wide { overflow-x: auto; margin: .4rem 0 1rem; }
.note { color: #57606a; font-size: 13px; }
"""

Cell = str
Table = Sequence[Sequence[Cell]]


def write_page(
    file: Path, phases: Mapping[str, PhaseRows], title: str = "Evaluation", head: str = ""
) -> None:
    """Write ``file`` and, under the same name with .json, the summary and every case's rows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".json").write_text(json.dumps(as_json(phases) | {"rows": _rows(phases)}) + "\n")
    file.write_text(page(phases, title, head), encoding="utf-8")


def page(phases: Mapping[str, PhaseRows], title: str = "Evaluation", head: str = "") -> str:
    """The whole page; pictures are inside it. ``head`` (HTML) comes first."""
    body = "".join(part for phase, rows in phases.items() for part in _phase(phase, rows))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{head}{_INTRODUCTION}{body}</body></html>\n"
    )


_INTRODUCTION = """<p>Every figure is a mean over patients, ± their standard deviation, with the 95 %
interval of the mean in brackets (bootstrap over patients, 2000 draws). <b>Identity</b> is the source taken as
it is. The <b>oracle</b>, known for phantoms alone, adds to the source what its anatomy lets one expect: a
patient's level of enhancement is not in an unenhanced scan, so no method can beat it on average, except by
smoothing the grain that source and truth do not share. p is Wilcoxon's signed-rank test, paired by
patient.</p>"""
_ORGAN_NOTE = """<p class="note">Error: mean absolute error of the organ's mean HU. Slope: enhancement in
the synthesis over the true one; 1 follows every patient, 0 gives everybody the average.</p>"""
_DEPTH_NOTE = """<p class="note">z flicker and seam ratio: 1 is as the truth. Slice step: root mean square
step of the mean error from slice to slice, in HU.</p>"""


def _phase(phase: str, rows: PhaseRows) -> Iterator[str]:
    facts = rows.facts
    yield f"<h2>{escape(phase)}</h2>"
    yield f"<p>{escape(str(facts['model_id']))}, {len(rows.cases)} cases, "
    yield f"{np.mean(rows.seconds or [0.0]):.1f} s each on {escape(str(facts['provider']))}.</p>"
    low, high = facts["window_hu"]
    for place, group in (("body", "body"), ("whole volume", "whole")):
        yield f"<h3>Image, {place}, window −200 to 200 HU</h3>" + html_table(_metrics(rows, group, ""))
    yield f"<h3>Image, body, the model's window {low:g} to {high:g} HU</h3>"
    yield html_table(_metrics(rows, "body", "_bundle_window"))
    yield from _organs(rows)
    yield from _rest(rows)
    yield from _worst(rows)


def _organs(rows: PhaseRows) -> Iterator[str]:
    organs = _phase_summary(rows)["organs"]
    if not organs:
        yield '<p class="note">No labels came with these cases: organs cannot be measured.</p>'
        return
    yield "<h3>Organs: mean HU over patients</h3>" + html_table(list(_organ_table(organs)))
    yield _ORGAN_NOTE
    yield "<h3>Agreement (Bland–Altman)</h3>" + _image(plots.bland_altman(rows), "Bland–Altman plots")
    yield "<h3>Enhancement over patients</h3>" + _image(plots.enhancement(rows), "Enhancement over patients")


def _rest(rows: PhaseRows) -> Iterator[str]:
    summary = _phase_summary(rows)
    controls = [
        (name, *(f"{found[key]:+.1f}" for key in ("mean_change_hu", "true_change_hu")),
         f"{found['mean_abs_change_hu']:.1f}")
        for name, found in summary["controls"].items()
    ]  # fmt: skip
    if controls:
        head = ("tissue", "change, HU", "true change, HU", "|change| of a voxel, HU")
        yield "<h3>Tissue that must not change</h3>" + html_table([head, *controls])
    vessels = summary.get("thin_vessels")
    if vessels:
        shown = [(name.replace("_hu", ", HU").replace("_", " "), f"{v:.2f}") for name, v in vessels.items()]
        yield "<h3>Contrast that vessels of 3 to 6 mm gained on what is around them</h3>"
        yield html_table([("", ""), *shown])
    depth = [(name.replace("_", " "), f"{value:.2f}") for name, value in summary["third_dimension"].items()]
    yield "<h3>Third dimension</h3>" + html_table([("", ""), *depth])
    yield _DEPTH_NOTE
    if summary.get("bars"):
        head = ("asked of a release", "measured", "reached")
        yield "<h3>What a release has to reach</h3>" + html_table([head, *bar_rows(summary["bars"])])


def _worst(rows: PhaseRows, pictures: int = PICTURES) -> Iterator[str]:
    """Cases by their error, the largest first; pictures of the first few."""
    errors = [row["body"]["mae_hu_bundle_window"] for row in rows.model]
    order = np.argsort(errors)[::-1].tolist()
    head = ("case", "MAE, HU", "PSNR, dB", "SSIM", "worst organ", "its error, HU")
    yield "<h3>Cases, worst first</h3>" + html_table([head, *(_case(rows.model[i]) for i in order)])
    shown = len(rows.shown) // max(len(rows.cases), 1)
    for index in order[:pictures]:
        yield f"<h3>{escape(rows.cases[index])}: {errors[index]:.1f} HU</h3>"
        for plane in rows.shown[index * shown : (index + 1) * shown]:
            yield _plane(plane, rows.cases[index])


def _plane(shown: Shown, name: str) -> str:
    return _image(plots.planes(shown), f"source, synthesis, truth and difference of {name}")


def _case(row: Row) -> tuple[Cell, ...]:
    body = row["body"]
    organs = {name: abs(found["made"] - found["truth"]) for name, found in row["organs"].items()}
    worst = max(organs, key=organs.__getitem__) if organs else ""
    error = f"{organs[worst]:.1f}" if worst else ""
    values = (body["mae_hu_bundle_window"], body["psnr_bundle_window"], body["ssim_bundle_window"])
    texts = (f"{v:.{digits}f}" for v, digits in zip(values, (2, 2, 3), strict=True))
    return (row["case"], *texts, worst.replace("_", " "), error)


def _metrics(rows: PhaseRows, group: str, suffix: str) -> list[tuple[Cell, ...]]:
    who = {"identity": rows.identity, "oracle": rows.oracle, "model": rows.model}
    kept = {name: found for name, found in who.items() if found}
    table: list[tuple[Cell, ...]] = [("", *kept, "p, model against identity")]
    for key, (heading, digits) in METRICS.items():
        values = {name: [row[group][key + suffix] for row in found] for name, found in kept.items()}
        p = paired_p(values["model"], values["identity"])
        table.append((heading, *(spread(v, digits) for v in values.values()), p_value(p)))
    return table


def _organ_table(organs: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[Cell, ...]]:
    yield (
        "organ", "source", "truth", "synthesis", "error of the source", "of the oracle", "error", "bias",
        "limits of agreement", "slope", "variance ratio", "voxels' MAE", "voxels' SSIM",
    )  # fmt: skip
    for name, found in organs.items():
        low, high = found["model_mae_interval_hu"]
        least, most = found["limits_of_agreement_hu"]
        yield (
            name.replace("_", " "),
            *(f"{found[key]:.1f}" for key in ("source_hu", "true_hu", "model_hu", "identity_mae_hu")),
            f"{found['oracle_mae_hu']:.1f}" if "oracle_mae_hu" in found else "",
            f"{found['model_mae_hu']:.1f} [{low:.1f}, {high:.1f}]",
            f"{found['bias_hu']:+.1f}",
            f"{least:+.1f} to {most:+.1f}",
            _slope(found),
            f"{found['variance_ratio']:.2f}" if "variance_ratio" in found else "",
            f"{found['voxels']['mae_hu']:.1f}",
            f"{found['voxels']['ssim']:.3f}",
        )


def _slope(found: Mapping[str, Any]) -> str:
    if "slope" not in found:
        return ""
    low, high = found["slope_interval"]
    return f"{found['slope']:.2f} [{low:.2f}, {high:.2f}]"


def spread(values: Sequence[float], digits: int) -> str:
    """``mean ± SD [low, high]``."""
    found = summarise(values)
    mean, sd, low, high = (f"{found[k]:.{digits}f}" for k in ("mean", "sd", "low", "high"))  # type: ignore[literal-required]
    return f"{mean} ± {sd} [{low}, {high}]"


def p_value(p: float) -> str:
    """A p-value as people read it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def html_table(rows: Table) -> str:
    """The first row is the head; columns that are empty below it are left out; every text is escaped."""
    filled = [any(column[1:]) for column in zip(*rows, strict=True)]
    head, *body = ([cell for cell, kept in zip(row, filled, strict=True) if kept] for row in rows)
    text = "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"
    for row in body:
        text += "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
    return f'<div class="wide"><table>{text}</table></div>'


def _image(figure: Any, words: str) -> str:
    return f'<img alt="{escape(words)}" src="{plots.png(figure)}">'


def _phase_summary(rows: PhaseRows) -> dict[str, Any]:
    found: dict[str, Any] = as_json({"": rows})["phases"][""]
    return found


def _rows(phases: Mapping[str, PhaseRows]) -> dict[str, Any]:
    return {
        phase: {"identity": rows.identity, "oracle": rows.oracle, "model": rows.model}
        for phase, rows in phases.items()
    }
