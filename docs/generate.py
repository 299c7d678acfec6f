"""Write the parts of the documentation that follow from the code: `make docs`.

`docs/command-reference.md` is written whole from the commands; the tables of settings and of
metrics are written between their markers in the pages that hold them. `tests/docs` compares.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from config.example import Table, tables, toml_value
from docs import benchmarks
from node.cli import Lazy, app
from node.commands.exits import EXIT_CODES

DOCS = Path(__file__).resolve().parent
HIDDEN = frozenset({"--help", "--install-completion", "--show-completion"})
MARKER = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that does something, with its whole name: ``s2node jobs list``."""
    yield from _leaves("s2node", typer.main.get_command(app))


def _leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(command, Lazy):
        command = command.load()
    if not isinstance(command, TyperGroup):
        yield name, command
        return
    for inner in command.list_commands(None):
        yield from _leaves(f"{name} {inner}", command.get_command(None, inner))


def command_reference() -> str:
    """The page of all commands."""
    parts = [REFERENCE_HEAD, _exit_codes()]
    parts += [_command(name, command) for name, command in commands()]
    return "\n\n".join(parts) + "\n"


REFERENCE_HEAD = """\
# Command reference

`s2node` is one command with sub-commands. `s2node COMMAND --help` says the same as this page, which is
written from the commands by `make docs`.

- **Configuration.** Commands that belong to a node take `--config FILE`. Without it they read the file that
  the variable `S2NODE_CONFIG` names, else `/etc/s2node/s2node.toml` where it exists, else the defaults.
  Variables `S2NODE_SECTION__KEY` win over the file: [administrator's guide](administrators-guide.md).
- **User.** Commands that read the ledger (`jobs`) or change models (`models`) run as the user of the node:
  `sudo -u s2node s2node jobs list`.
- **Scripts.** With `--json` the result is JSON on standard output; progress goes to standard error. A listing
  is one JSON list with one object a row, one row a line.
- **Extras.** `train`, `evaluate`, `compare`, `export` and `bench engine` need the extra `train`
  (`pip install 's2node[train]'`) and say so where it is missing."""


def _exit_codes() -> str:
    rows = [(str(code), words) for code, words in EXIT_CODES.items()]
    return "## Exit codes\n\n" + markdown_table(("code", "meaning"), rows)


def _command(name: str, command: Any) -> str:
    params = [param for param in command.params if not HIDDEN & set(param.opts) and not param.hidden]
    rows = [(_spelling(param), _default(param), _flat(param.help or "")) for param in params]
    usage = " ".join([name, *(["[OPTIONS]"] if _has_options(params) else []), *_arguments(params)])
    text = f"## {name}\n\n```\n{usage}\n```\n\n{_paragraphs(command.help or '')}"
    return text + (
        "\n\n" + markdown_table(("argument or option", "default", "meaning"), rows) if rows else ""
    )


def _has_options(params: Sequence[Any]) -> bool:
    return any(param.param_type_name == "option" for param in params)


def _arguments(params: Sequence[Any]) -> list[str]:
    words = []
    for param in params:
        if param.param_type_name != "argument":
            continue
        word = (param.metavar or param.name.upper()).strip("[]").removesuffix("...").strip("[]")
        word += "..." if param.nargs == -1 else ""
        words.append(word if param.required else f"[{word}]")
    return words


def _spelling(param: Any) -> str:
    if param.param_type_name == "argument":
        return "`" + _arguments([param])[0] + "`"
    spellings = [*param.opts, *param.secondary_opts]
    value = "" if getattr(param, "is_flag", False) else " " + _kind(param)
    return ", ".join(f"`{spelling}{value}`" for spelling in spellings)


VALUES: Mapping[str, str] = {
    "int": "N",
    "float": "X",
    "str": "TEXT",
    "path": "PATH",
    "file": "FILE",
    "dir": "DIR",
}
"""What stands for a value of a type."""


def _kind(param: Any) -> str:
    if param.metavar:
        return str(param.metavar)
    label = param.display_type(None).strip("<>").removesuffix(" range")
    label = label.removeprefix("list[").removesuffix("]") if label.startswith("list[") else label
    return VALUES.get(label.lower(), label)


def _default(param: Any) -> str:
    value = param.default
    if value is None or value is False or param.required or callable(value) or value in ((), []):
        return ""
    return f"`{getattr(value, 'value', value)!s}`"


def settings_tables() -> str:
    """One table for each table of the configuration file."""
    return "\n\n".join(_settings_table(table) for table in tables())


def _settings_table(table: Table) -> str:
    name = f"[[{table.name}]]" if table.many else f"[{table.name}]"
    kind = next((entry.default for entry in table.entries if entry.key == "kind"), None)
    title = f"### `{name}`" + (f" with `kind = {toml_value(kind)}`" if kind else "")
    rows = [
        (f"`{entry.key}`", f"`{entry.shown_default}`", entry.allowed, entry.description)
        for entry in table.entries
    ]
    return f"{title}\n\n{table.description}\n\n" + markdown_table(
        ("setting", "default", "allowed", "meaning"), rows
    )


METRICS = DOCS / "metrics.json"
SHIPPED = DOCS.parent / "engine" / "bundles"
ORGANS = ("aorta", "portal_vein", "liver", "spleen", "renal_cortex")


def metrics_tables() -> str:
    """What was measured of the shipped models: images, organs, what must not change, and the aims."""
    phases = measured()
    return "\n\n".join(
        [
            "; ".join(_measured_on(phase, found) for phase, found in phases.items()) + ".",
            markdown_table(("phase", "", "PSNR dB", "SSIM", "NMSE"), list(_image_rows(phases))),
            markdown_table(ORGAN_COLUMNS, list(_organ_rows(phases))),
            "Tissue that must not change (mean change in HU; contrast changes the truth a little too):",
            markdown_table(("phase", "tissue", "synthesis", "truth"), list(_control_rows(phases))),
            "Against what was aimed at:",
            markdown_table(("aim", "measured", "reached"), list(_aim_rows(phases))),
        ]
    )


def measured() -> dict[str, Any]:
    """By phase: what `make metrics` wrote of the shipped bundle, else what its export measured."""
    whole = json.loads(METRICS.read_text(encoding="utf-8")) if METRICS.exists() else {"phases": {}}
    phases = {}
    for folder in sorted(SHIPPED.iterdir()):
        found = whole["phases"].get(folder.name, {})
        if found.get("model_digest") == hashlib.sha256((folder / "bundle.json").read_bytes()).hexdigest():
            phases[folder.name] = found | {"seeds": whole["seeds"]}
        else:
            bundle = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
            phases[folder.name] = bundle["metrics"] | {"model_id": bundle["model_id"]}
    return phases


def _measured_on(phase: str, found: Mapping[str, Any]) -> str:
    seeds = found["seeds"]
    return f"{phase}: `{found['model_id']}` on {len(seeds)} phantoms, seeds {min(seeds)} to {max(seeds)}"


def _aim_rows(phases: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for phase, found in phases.items():
        gain = found["model"]["psnr"] - found["identity"]["psnr"]
        yield _aim(f"{phase}: PSNR at least 4 dB above identity", f"{gain:+.1f} dB", gain >= 4)
    for phase, organ, limit in (("arterial", "aorta", 45), ("venous", "portal_vein", 35)):
        error = phases[phase]["organs"][organ]["model_mae_hu"]
        yield _aim(f"{phase}: {organ} within {limit} HU", f"{error:.1f} HU", error <= limit)
    for phase, found in phases.items():
        tissue, row = max(found["controls"].items(), key=lambda item: abs(item[1]["mean_change_hu"]))
        change = row["mean_change_hu"]
        name = f"{phase}: fat, bone, air and muscle changed by less than 10 HU"
        yield _aim(name, f"{change:+.1f} HU ({tissue})", abs(change) < 10)
    for found in phases.values():
        for bar in found.get("bars", ()):
            yield _aim(bar["aim"], bar["measured"], bar["reached"])


def _aim(name: str, value: str, is_reached: bool) -> tuple[str, str, str]:
    return (name, value, "yes" if is_reached else "no")


def _image_rows(phases: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for phase, found in phases.items():
        for who in ("identity", "model"):
            values = (_number(found[who][name], digits) for name, digits in IMAGE_METRICS.items())
            yield (phase, who, *values)


def _organ_rows(phases: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for phase, found in phases.items():
        for organ in (organ for organ in ORGANS if organ in found["organs"]):
            row = found["organs"][organ]
            yield (
                phase,
                organ,
                *(_number(row.get(name), digits) for name, digits in ORGAN_METRICS.items()),
            )


def _control_rows(phases: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for phase, found in phases.items():
        for tissue, row in found["controls"].items():
            yield (phase, tissue, _number(row["mean_change_hu"], 1), _number(row["true_change_hu"], 1))


ORGAN_COLUMNS = (
    "phase",
    "organ",
    "true HU",
    "synthetic HU",
    "error of the source",
    "error of the model",
    "slope",
)
IMAGE_METRICS: Mapping[str, int] = {"psnr": 1, "ssim": 3, "nmse": 4}
ORGAN_METRICS: Mapping[str, int] = {
    "true_hu": 0,
    "model_hu": 0,
    "identity_mae_hu": 1,
    "model_mae_hu": 1,
    "slope": 2,
}
"""Columns of the tables and their decimals."""


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; bars in cells are escaped."""
    lines = [columns, ["---"] * len(columns), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _flat(text: str) -> str:
    return " ".join(text.split())


def _paragraphs(text: str) -> str:
    return "\n\n".join(_flat(paragraph) for paragraph in re.split(r"\n\s*\n", text.strip()))


FAULTS = DOCS / "faults"


def fault_tables() -> str:
    """What the full forms of the fault experiments counted, one table an experiment, and what they drew."""
    found = [
        (path.stem, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(FAULTS.glob("*.json"))
    ]
    return "\n\n".join(
        f"### {name}\n\n{row['machine']}\n\n"
        + markdown_table(
            ("counted", "figure"), [(key, _words(value)) for key, value in row["figures"].items()]
        )
        + _picture_of(name)
        for name, row in found
    )


def _picture_of(experiment: str) -> str:
    """The picture that an experiment drew, if it draws one."""
    path = DOCS / "images" / f"{experiment}.png"
    return f"\n\n![{experiment}](images/{path.name})" if path.exists() else ""


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {inner}" for key, inner in value.items())
    return str(value)


REAL = DOCS / "real-ct.json"


def real_table() -> str:
    """What `make real` measured on a real scan: models, table, paragraph."""
    from train.real_report import rows_of  # noqa: PLC0415 - only this part needs the extra

    found = json.loads(REAL.read_text(encoding="utf-8"))
    scan = found["scan"]
    head, *rows = rows_of(found)
    models = ", ".join(f"`{m['model_id']}` ({m['model_digest'][:12]})" for m in found["models"].values())
    grid = " × ".join(map(str, scan["shape"]))
    spacing = " × ".join(f"{mm:g}" for mm in scan["spacing_mm"])
    return "\n\n".join(
        [
            f"{models}, on {grid} voxels of {spacing} mm;"
            f" the body's cross-section is {scan['relative_size']:g} of a typical one.",
            markdown_table(head, rows),
            found["words"],
        ]
    )


STEPS = DOCS / "steps.json"


def steps_table() -> str:
    """What `make steps` measured of the shipped models; seconds belong on the benchmarks' page."""
    from train.sweep import COLUMNS, RULE, table  # noqa: PLC0415 - only this part needs the extra

    found = json.loads(STEPS.read_text(encoding="utf-8"))
    seeds, phases = found["seeds"], found["phases"].items()
    shipped = (
        f"{phase}: `{of['model_id']}` ({of['model_digest'][:12]}),"
        f" shipped with `{of['shipped']['sampler']}` in {of['shipped']['steps']} steps,"
        f" by the rule {of['samplers'][of['shipped']['sampler']]['fewest']}"
        for phase, of in phases
    )
    measured_on = (
        f"{len(seeds)} phantoms, seeds {min(seeds)} to {max(seeds)}, their middle {found['slices']} slices"
    )
    return "\n\n".join(
        [
            f"{'; '.join(shipped)}; on {measured_on}.",
            markdown_table(COLUMNS[:-1], [row[:-1] for row in table(found)]),
            RULE,
            "![quality over sampler steps](images/steps.png)",
        ]
    )


def benchmark_tables() -> str:
    """What `make bench` measured last, one table a question; a sampler's steps are those of `make steps`."""
    found = json.loads(benchmarks.FILE.read_text(encoding="utf-8"))
    steps = json.loads(STEPS.read_text(encoding="utf-8"))
    parts = [
        f"## {heading}\n\n" + markdown_table(columns, rows)
        for heading, (columns, rows) in benchmarks.tables(found | {"steps": steps})
    ]
    return "\n\n".join([_measured_where(found), *parts])


def _measured_where(found: Mapping[str, Any]) -> str:
    places = dict.fromkeys(row["machine"] for row in found.values())
    model = found["engine"]["model_id"] if "engine" in found else found["job"]["model_id"]
    load = max(row["load"] for row in found.values())
    words = (
        f"Machine: {'; '.join(places)}. Model: `{model}`. Load average at the end of a run: at most {load:g}."
        f"{_measured_when(found)}"
    )
    return words if load <= LOADED else f"{words} **{BUSY}**"


def _measured_when(found: Mapping[str, Any]) -> str:
    """Of which commit and day each measurement is, where that was noted: they may differ."""
    noted = [
        f"{key} on {row['date']} at `{row['commit'] or 'no commit'}`"
        for key, row in found.items()
        if "date" in row
    ]
    return f" Measured: {', '.join(noted)}." if noted else ""


LOADED = 3.0
"""Load average above which two cores were busy with something else."""
BUSY = "The machine was busy with other work: seconds here are too long, ratios are rough; measure again."


PARTS: Mapping[str, Callable[[], str]] = {
    "benchmarks": benchmark_tables,
    "settings": settings_tables,
    "metrics": metrics_tables,
    "faults": fault_tables,
    "real-ct": real_table,
    "steps": steps_table,
}
"""What stands between the markers of a page."""


def page(path: Path) -> str:
    """The page as it should be: whole for the command reference, its marked parts for the others."""
    if path.name == "command-reference.md":
        return command_reference()
    text = path.read_text(encoding="utf-8")
    return MARKER.sub(lambda found: f"{found[1]}\n{PARTS[found['name']]()}\n\n{found[3]}", text)


PAGES = (
    "command-reference.md",
    "administrators-guide.md",
    "model-card.md",
    "faults.md",
    "real-ct.md",
    "benchmarks.md",
    "evaluation.md",
)
"""Pages with generated parts."""


def main() -> None:
    """Write every page that has generated parts; default folders as they are without XDG_DATA_HOME."""
    os.environ.pop("XDG_DATA_HOME", None)
    for name in PAGES:
        path = DOCS / name
        path.write_text(page(path), encoding="utf-8")


if __name__ == "__main__":
    main()
