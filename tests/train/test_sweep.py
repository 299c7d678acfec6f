"""Quality over sampler steps, and the rule by which the fewest are chosen."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from engine.bundle import SamplerSpec, read_bundle, write_manifest
from engine.phantom import Phantom, PhantomOptions, make_phantom
from engine.pipeline import open_engine
from engine.session import SessionPolicy
from export.bundle import export_bundle
from node.cli import app
from node.models import SHIPPED
from train import evaluate as evaluation
from train import sweep
from train.sweep import fitting, judged

SMALL = PhantomOptions(shape=(24, 64, 64), spacing_mm=(9.0, 6.0, 6.0))
GOOD = {"psnr": 30.0, "ssim": 0.9, "mae_hu": 10.0, "organ_error_hu": 5.0}


@pytest.fixture(scope="module")
def bundle(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swept") / "venous"
    export_bundle(trained.stage_two, folder)
    return folder


@pytest.fixture(scope="module")
def conditional(bundle: Path) -> Path:
    """The same graphs as if they had been trained to take noise away."""
    folder = bundle.parent / "conditional"
    shutil.copytree(bundle, folder)
    sampler = SamplerSpec(name="ddim", formulation="conditional", steps=4)
    write_manifest(folder, read_bundle(folder).manifest.model_copy(update={"sampler": sampler}))
    return folder


@pytest.mark.parametrize(
    ("of", "samplers"), [("bundle", ["bridge"]), ("conditional", ["ddim", "dpm_solver"])]
)
def test_the_command_writes_a_table_a_plot_and_json(
    of: str,
    samplers: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    bundle: Path = request.getfixturevalue(of)
    shapes: list[tuple[int, ...]] = []

    def small(seed: int, options: PhantomOptions) -> Phantom:
        shapes.append(options.shape)
        return make_phantom(seed, SMALL)

    monkeypatch.setattr(evaluation, "make_phantom", small)
    arguments = ["--bundle", str(bundle), "--cases", "1", "--steps", "2", "--steps", "1", "--threads", "1"]
    arguments += ["--slices", "24"]
    result = CliRunner().invoke(
        app, ["evaluate", "--sweep-steps", *arguments, "--out", str(tmp_path), "--json"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == json.loads((tmp_path / "sweep.json").read_text())
    swept = found["phases"]["venous"]["samplers"]
    assert list(swept) == samplers
    assert all([row["steps"] for row in each["rows"]] == [1, 2] for each in swept.values())
    assert all(each["reference"] == 2 for each in swept.values())
    assert found["phases"]["venous"]["model_digest"] == read_bundle(bundle).digest
    assert (found["seeds"], found["slices"]) == ([9000], 24)
    assert shapes == [(24, 256, 256)]
    table = (tmp_path / "sweep.md").read_text()
    assert all(f"| venous | {name} | 1" in table for name in samplers)
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


@dataclass
class Toy:
    """An engine as the sweep sees it."""

    bundle: Any

    def with_sampler(self, spec: SamplerSpec) -> Toy:
        return Toy(SimpleNamespace(manifest=self.bundle.manifest.model_copy(update={"sampler": spec})))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every folder is the shipped venous bundle's manifest, without its graphs."""
    manifest = read_bundle(SHIPPED / "venous").manifest
    monkeypatch.setattr(
        evaluation, "open_engine", lambda folder, policy: Toy(SimpleNamespace(manifest=manifest, digest="d"))
    )
    monkeypatch.setattr(sweep, "describe", lambda engine: {})
    monkeypatch.setattr(sweep, "_row", lambda steps, rows: GOOD | {"steps": steps})


@pytest.mark.usefixtures("toy")
def test_one_case_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    held: list[weakref.ref[Any]] = []

    class Held(SimpleNamespace):
        pass

    def cases() -> Iterator[Any]:
        for number in range(3):
            assert sum(each() is not None for each in held) <= 1
            case = Held(name=f"{number}", phases={"venous": None})
            held.append(weakref.ref(case))
            yield case
            del case

    def measure(engine: Any, case: Any, rows: Any) -> None:
        seen.append((case.name, engine.bundle.manifest.sampler.steps))

    monkeypatch.setattr(sweep, "measure_case", measure)
    found = sweep.sweep([Path("venous")], cases(), SessionPolicy(), (2, 1))
    assert seen == [(f"{number}", steps) for number in range(3) for steps in (1, 2)]
    assert found["cases"] == 3


@pytest.mark.usefixtures("toy")
def test_steps_that_no_sampler_can_take_are_refused_in_words() -> None:
    with pytest.raises(sweep.StepsTooMany, match="takes at most 1000 steps"):
        sweep.sweep([Path("venous")], [], SessionPolicy(), (2000,))


def test_the_fewest_steps_are_those_where_nothing_is_a_hundredth_worse() -> None:
    worse = GOOD | {"psnr": 29.6, "steps": 1}
    as_good = GOOD | {"mae_hu": 10.09, "steps": 2}
    most = GOOD | {"steps": 8}
    assert judged([worse, as_good, most])["fewest"] == 2
    assert judged([worse, GOOD | {"organ_error_hu": 5.1, "steps": 2}, most])["fewest"] == 8


def test_only_samplers_that_fit_what_was_trained_are_tried() -> None:
    assert fitting(SamplerSpec(name="bridge", formulation="bridge", steps=2)) == ("bridge",)
    assert fitting(SamplerSpec(name="ddim", formulation="conditional", steps=4)) == ("ddim", "dpm_solver")


def test_another_sampler_leaves_graphs_and_digest_as_they_are(bundle: Path) -> None:
    engine = open_engine(bundle, SessionPolicy(provider="cpu", threads=1))
    other = engine.with_sampler(SamplerSpec(name="bridge", formulation="bridge", steps=3))
    assert (other.bundle.digest, other.provider) == (engine.bundle.digest, engine.provider)
    assert other.bundle.manifest.sampler.steps == 3  # type: ignore[union-attr]
    assert engine.bundle.manifest.sampler.steps != 3  # type: ignore[union-attr]
