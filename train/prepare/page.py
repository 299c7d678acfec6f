"""The QC page: every registered pair with pictures, figures and verdict, in one self-contained file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Protocol

from train.prepare.checks import Measures, Refusal
from train.prepare.cohort import Refused, Study
from train.prepare.pictures import DIFFERENCE_HU, FIELD_MM, SHOWN_HU, TITLES

SCALES = (
    (f"HU {SHOWN_HU[0]:g} to {SHOWN_HU[1]:g}", "#000,#fff"),
    (f"difference {-DIFFERENCE_HU:g} to {DIFFERENCE_HU:g} HU", "#053061,#f7f7f7,#67001f"),
    (f"deformation 0 to {FIELD_MM:g} mm", "#440154,#21918c,#fde725"),
)
"""Colour scales of the pictures, from low to high."""
STYLE = """body{font:14px/1.4 sans-serif;margin:2em;max-width:1400px}img{max-width:100%}
h2{margin:1.5em 0 .3em}.kept{color:#176b2c}.refused{color:#a3141c}table{border-collapse:collapse}
td,th{padding:.1em .8em .1em 0;text-align:left}
.titles{display:grid;grid-template-columns:repeat(8,1fr);font-size:12px}img{width:100%;image-rendering:pixelated}
.scale{display:inline-block;width:8em;height:.8em;margin:0 .4em 0 1.5em;border:1px solid #888}"""


class PhaseRow(Protocol):
    """What the page needs of one phase of a study."""

    @property
    def phase(self) -> str: ...  # noqa: D102

    @property
    def case(self) -> str: ...  # noqa: D102

    @property
    def measures(self) -> Measures: ...  # noqa: D102

    @property
    def refusal(self) -> Refusal | None: ...  # noqa: D102


def write_page(
    file: Path, studies: Iterable[tuple[Path, Study, Sequence[PhaseRow]]], refused: Sequence[Refused]
) -> None:
    """Write the page, whole or not at all; refused pairs come first."""
    sections = [
        (phase.refusal is None, _section(folder, study, phase))
        for folder, study, phases in studies
        for phase in phases
    ]
    kept = sum(accepted for accepted, _ in sections)
    parts = [
        f"<p>{kept} pairs to train on, {len(sections) - kept} refused after registration, "
        f"{len(refused)} cases in no pair. This page shows patients: keep it as you keep their scans.</p>",
        f"<p>{''.join(_scale(*scale) for scale in SCALES)}</p>",
        _refused_table(refused),
        *(text for _, text in sorted(sections, key=lambda section: section[0])),
    ]
    html = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>s2node: prepared pairs</title>'
        f"<style>{STYLE}</style><h1>Prepared pairs</h1>{''.join(parts)}</html>\n"
    )
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(html, encoding="utf-8")
    temporary.replace(file)


def _section(folder: Path, study: Study, phase: PhaseRow) -> str:
    title = escape(f"{study.patient} / {study.study} / {phase.phase}")
    why = phase.refusal
    verdict = (
        f'<b class="refused">refused: {escape(why.code)}</b>: {escape(why.reason)}'
        if why
        else '<b class="kept">accepted</b>'
    )
    picture = folder / f"{phase.phase}.png"
    image = _image(picture) if picture.is_file() else ""
    cases = escape(f"{study.ncct.case}, {phase.case}")
    return f"<h2>{title}</h2><p>{verdict} ({cases})</p>{_figures(phase.measures)}{image}"


def _image(file: Path) -> str:
    titles = "".join(f"<span>{title}</span>" for title in TITLES)
    data = base64.b64encode(file.read_bytes()).decode()
    return f'<div class="titles">{titles}</div><img alt="" src="data:image/png;base64,{data}">'


def _scale(name: str, colours: str) -> str:
    return f'<span class="scale" style="background:linear-gradient(90deg,{colours})"></span>{name}'


def _figures(m: Measures) -> str:
    rows = (
        ("body of the NCCT that the phase shows", f"{m.overlap:.0%}"),
        ("Dice of the bodies, rigid", f"{m.outline_dice:.3f}"),
        (
            "agreement κ before, rigid, after",
            f"{m.agreement_before:.3f}, {m.agreement_rigid:.3f}, {m.agreement_after:.3f}",
        ),
        (
            "mutual information before, after",
            f"{m.mi_before:.3f}, {m.mi_after:.3f} nats ({m.mi_gain:+.1%})",
        ),
        ("deformation, 99th percentile, longest", f"{m.field_p99_mm:.1f}, {m.field_max_mm:.1f} mm"),
        ("Jacobian determinant", f"{m.jacobian_min:.2f} to {m.jacobian_max:.2f}"),
        ("enhancement, 98th percentile", f"{m.enhancement_hu:.0f} HU"),
    )
    return "<table>" + "".join(f"<tr><td>{a}</td><td>{b}</td></tr>" for a, b in rows) + "</table>"


def _refused_table(refused: Sequence[Refused]) -> str:
    if not refused:
        return ""
    cells = [(r.patient, r.study, r.phase, r.case, r.code, r.reason) for r in refused]
    rows = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in cells)
    head = "".join(f"<th>{name}</th>" for name in ("patient", "study", "phase", "case", "code", "reason"))
    return f'<table class="refused"><tr>{head}</tr>{rows}</table>'
