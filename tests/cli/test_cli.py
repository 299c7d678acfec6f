"""The table of commands: all are there, none is imported before it is named, errors end in a code."""

from __future__ import annotations

import inspect
import subprocess
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer

from config.load import ConfigError
from engine.errors import BundleInvalid, ProviderMissing, SynthesisFailed
from node.cli import COMMANDS, PLUGINS, Lazy, main, plugins
from node.commands.exits import EXIT_CODES, MissingExtra, exit_code_of, words_of
from node.errors import DestinationRefused, DestinationUnreachable, SeriesRejected

HEAVY = ("torch", "monai", "lightning", "highdicom", "onnxruntime", "pynetdicom")


def test_help_lists_every_command(run: Callable) -> None:
    shown = run("--help")
    assert shown.code == 0
    for name in [*COMMANDS, "train", "evaluate", "export"]:
        assert f"\n  {name} " in shown.out
    assert "bench-engine" not in shown.out


def test_help_imports_none_of_the_heavy_packages(python: Callable) -> None:
    seen = python(
        "import sys\nfrom node.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert seen.stdout.splitlines()[-1] == "[]", seen.stderr


def test_serving_never_imports_torch(python: Callable) -> None:
    seen = python(
        "import sys\nimport node.commands.serve, node.worker\n"
        "print([name for name in ('torch', 'monai', 'lightning', 'train', 'export') if name in sys.modules])"
    )
    assert seen.stdout.splitlines()[-1:] == ["[]"], seen.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_of_a_command_is_the_first_line_of_its_own_help(name: str) -> None:
    target, summary = COMMANDS[name]
    loaded = EntryPoint(name, target, "test").load()
    if isinstance(loaded, typer.Typer):
        assert loaded.info.help == summary
    else:
        assert (inspect.getdoc(loaded) or "").splitlines()[0] == summary


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_explains_itself(run: Callable, name: str) -> None:
    shown = run(name, "--help")
    assert shown.code == 0
    assert f"s2node {name}" in shown.out


def test_the_plug_ins_are_those_of_the_table() -> None:
    assert set(plugins()) >= set(PLUGINS)


@pytest.mark.parametrize(
    "arguments", [(name,) for name in ("train", "evaluate", "export")] + [("bench", "engine")]
)
def test_a_plug_in_explains_itself_where_its_extra_is_installed(
    run: Callable, arguments: tuple[str, ...]
) -> None:
    pytest.importorskip("torch")
    shown = run(*arguments, "--help")
    assert shown.code == 0 and f"s2node {' '.join(arguments)}" in shown.out


def test_a_plug_in_without_its_extra_says_which_extra_is_missing() -> None:
    lazy = Lazy("train", EntryPoint("train", "package_that_is_absent.cli:app", "test"), "Train.", "train")
    with pytest.raises(
        MissingExtra, match=r"needs the extra 'train'.*pip install 's2node\[train\]'"
    ) as caught:
        lazy.load()
    assert exit_code_of(caught.value) == 78


def test_a_node_without_torch_says_so_and_ends_with_78(python: Callable) -> None:
    seen = python(
        "import sys\nfrom importlib.abc import MetaPathFinder\n"
        "class Absent(MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.partition('.')[0] in {'torch', 'monai', 'lightning', 'onnx'}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from node.cli import main\nmain(['train', 'autoencoder', '--help'])"
    )
    assert seen.returncode == 78
    assert "s2node train` needs the extra 'train'" in seen.stderr


def test_a_module_of_ours_that_is_absent_is_a_bug_and_not_an_extra() -> None:
    lazy = Lazy("x", EntryPoint("x", "node.no_such_module:app", "test"), "X.", "train")
    with pytest.raises(ModuleNotFoundError):
        lazy.load()


def test_an_unknown_command_is_a_usage_error(run: Callable) -> None:
    assert run("trnaslate").code == 2


def test_the_version_is_shown(run: Callable) -> None:
    assert run("--version").out.startswith("s2node 0.")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("f", "k", 1, "c"), 78),
        (BundleInvalid(Path("b"), "r"), 78),
        (ProviderMissing("cuda", (), "c"), 78),
        (SeriesRejected("HAS-CONTRAST", "r"), 3),
        (DestinationUnreachable("r"), 1),
        (DestinationRefused(0xA900, "r"), 1),
        (SynthesisFailed("r"), 1),
        (FileNotFoundError("f"), 1),
        (KeyError("bug"), None),
    ],
)
def test_an_error_leads_to_its_exit_code(error: Exception, code: int | None) -> None:
    assert exit_code_of(error) == code
    assert code is None or code in EXIT_CODES


def test_the_last_line_of_a_rejection_is_its_code() -> None:
    assert words_of(SeriesRejected("NOT-A-GRID", "two gaps")).splitlines()[-1] == "NOT-A-GRID"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("bug")

    monkeypatch.setattr("node.cli.app", broken)
    with pytest.raises(KeyError):
        main([])


def test_the_installed_command_runs(python: Callable) -> None:
    seen: subprocess.CompletedProcess[str] = python(
        "import subprocess, sys, pathlib\n"
        "program = pathlib.Path(sys.executable).with_name('s2node')\n"
        "print(subprocess.run([program, '--version'], capture_output=True, text=True).stdout)"
    )
    assert "s2node 0." in seen.stdout
