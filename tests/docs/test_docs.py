"""The documentation is complete and its links lead somewhere: what the code can say, the pages say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from config.example import tables
from docs.generate import PAGES, commands, page
from node.cli import COMMANDS, PLUGINS
from node.commands.exits import EXIT_CODES
from node.errors import REJECTION_CODES
from node.flow import PARK_CODES
from node.receive import STATUSES
from node.states import State

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
MARKDOWN = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
LINK = re.compile(r"(?<!\\)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
SHOWN = re.compile(r"<img[^>]*src=\"(?P<target>[^\"]+)\"")


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def rows_of(name: str, heading: str) -> list[str]:
    """The first cells of the table under a heading."""
    section = text_of(name).partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| ([^|]+?) \|", section, flags=re.MULTILINE)
    return [cell for cell in cells if cell not in {"state", "code", "answer", "exit code", "---"}]


@pytest.fixture(autouse=True)
def _no_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)


@pytest.mark.parametrize("name", PAGES)
def test_generated_parts_are_as_make_docs_writes_them(name: str) -> None:
    pytest.importorskip("torch")
    assert text_of(name) == page(DOCS / name), "run `make docs`"


def test_every_command_and_option_is_in_the_reference() -> None:
    pytest.importorskip("torch")
    text = text_of("command-reference.md")
    known = dict(commands())
    assert {name.split()[1] for name in known} == {*COMMANDS, *PLUGINS} - {"bench-engine"}
    for name, command in known.items():
        section = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert section, name
        for param in command.params:
            if param.param_type_name == "option" and not param.hidden and param.name != "help":
                assert f"`{param.opts[0]}" in section, f"{name} {param.opts[0]}"


def test_every_setting_is_in_the_guide() -> None:
    text = text_of("administrators-guide.md")
    missing = [
        f"{table.name}.{entry.key}"
        for table in tables()
        for entry in table.entries
        if f"| `{entry.key}` |" not in text
    ]
    assert missing == []


def test_the_runbook_has_every_state_once_and_no_other() -> None:
    assert rows_of("runbook.md", "States of a job") == [str(state) for state in State]


def test_the_runbook_has_every_code_of_rejection_once_and_no_other() -> None:
    assert sorted(rows_of("runbook.md", "Codes of rejection")) == sorted(REJECTION_CODES)


def test_the_runbook_has_every_code_of_parking_once_and_no_other() -> None:
    assert sorted(rows_of("runbook.md", "Codes of parking")) == sorted(PARK_CODES)


def test_the_runbook_has_every_answer_to_a_sender() -> None:
    answers = [row for row in rows_of("runbook.md", "Answers to a sender") if row.startswith("0x")]
    assert answers == [f"0x{status:04X}" for status in STATUSES]


def test_every_exit_code_is_in_the_reference() -> None:
    assert rows_of("command-reference.md", "Exit codes") == [str(code) for code in EXIT_CODES]


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings_that_exist(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [found["target"] for pattern in (LINK, SHOWN) for found in pattern.finditer(text)]
    assert [target for target in targets if not leads_somewhere(path, target)] == []


def leads_somewhere(page_path: Path, target: str) -> bool:
    if target.startswith(("http://", "https://", "mailto:")):
        return True
    name, _, heading = target.partition("#")
    file = (page_path.parent / name).resolve() if name else page_path
    if not file.exists() or not file.is_relative_to(ROOT):
        return False
    return not heading or heading in {slug(line) for line in headings(file)}


def headings(path: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)


def slug(heading: str) -> str:
    """The anchor GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_every_page_of_docs_is_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    todo = [ROOT / "README.md"]
    while todo:
        path = todo.pop()
        seen.add(path)
        for found in LINK.finditer(path.read_text(encoding="utf-8")):
            target = (path.parent / found["target"].partition("#")[0]).resolve()
            if target.suffix == ".md" and target.is_file() and target not in seen:
                todo.append(target)
    assert [path.name for path in DOCS.glob("*.md") if path not in seen] == []


def test_the_make_targets_of_the_readme_exist() -> None:
    targets = set(
        re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    named = {
        name for path in MARKDOWN for name in re.findall(r"\bmake ([a-z]+)\b(?=[`\n ])", commands_in(path))
    }
    assert named - targets == set()


def commands_in(path: Path) -> str:
    """What a page shows as code."""
    text = path.read_text(encoding="utf-8")
    return (
        "\n".join(
            found[0] or found[1]
            for found in re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", text, flags=re.DOTALL)
        )
        + "\n"
    )
