from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from engine import session
from engine.bundle import Bundle, digest_files, read_bundle, write_manifest
from engine.device import SUM
from engine.errors import BundleInvalid, GraphTooLarge, ProviderMissing, SynthesisFailed
from engine.session import SessionPolicy, check_providers, open_graphs, provider_options, session_options

MakeBundle = Callable[..., Bundle]

REPOSITORY = Path(__file__).resolve().parents[2]
HAS_GPU = session._has_nvidia_gpu()


def test_the_cpu_runs_what_the_graph_says(make_bundle: MakeBundle) -> None:
    opened = open_graphs(
        make_bundle("translator", gain=1.0, lift=0.5), SessionPolicy(provider="cpu", threads=1)
    )
    graph = opened.graphs["translator"]
    x = np.ones((1, 1, 8, 16, 16), np.float32)
    y = graph(x=x)
    assert (opened.provider, opened.fallback) == ("cpu", None)
    assert graph.inputs == {"x": (1, 1, 8, 16, 16)}
    assert y.dtype == np.float32
    assert y[0, 0, 4, 8, 8] == pytest.approx(2.5)


def test_the_runtime_s_message_is_in_the_failure(make_bundle: MakeBundle) -> None:
    graph = open_graphs(make_bundle("translator"), SessionPolicy(provider="cpu")).graphs["translator"]
    with pytest.raises(SynthesisFailed, match=r"'translator'.*invalid dimensions"):
        graph(x=np.ones((1, 1, 8, 16, 20), np.float32))
    with pytest.raises(SynthesisFailed, match="missing from input feed"):
        graph(y=np.ones((1, 1, 8, 16, 16), np.float32))


def test_a_file_that_is_no_graph_is_an_invalid_bundle(make_bundle: MakeBundle) -> None:
    bundle = make_bundle("translator")
    (bundle.folder / "translator.onnx").write_bytes(b"not a graph")
    write_manifest(bundle.folder, bundle.manifest.model_copy(update={"files": digest_files_of(bundle)}))
    with pytest.raises(BundleInvalid, match="'translator' does not load"):
        open_graphs(read_bundle(bundle.folder), SessionPolicy(provider="cpu"))


def digest_files_of(bundle: Bundle) -> dict[str, str]:
    return digest_files(bundle.folder)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "openvino"])
def test_a_provider_asked_for_and_absent_is_an_error_with_a_cure(
    make_bundle: MakeBundle, provider: str
) -> None:
    if HAS_GPU or (provider == "openvino" and "openvino" in session.available()):
        pytest.skip("this machine has it")
    with pytest.raises(ProviderMissing, match="install") as caught:
        open_graphs(make_bundle("translator"), SessionPolicy(provider=provider))  # type: ignore[arg-type]
    assert caught.value.asked == provider


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
def test_auto_takes_the_cpu_where_there_is_no_gpu_and_says_nothing_on_the_terminal(
    make_bundle: MakeBundle,
) -> None:
    folder = make_bundle("translator").folder
    program = (
        "import sys; from pathlib import Path; from engine.bundle import read_bundle\n"
        "from engine.session import open_graphs, SessionPolicy\n"
        "opened = open_graphs(read_bundle(Path(sys.argv[1])), SessionPolicy())\n"
        "assert opened.provider in ('cpu', 'openvino') and opened.fallback is None"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(
    HAS_GPU or "CUDAExecutionProvider" not in ort.get_available_providers(),
    reason="needs a GPU build, no GPU",
)
def test_auto_with_a_gpu_that_cannot_be_used_runs_on_the_cpu_and_tells_why(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_has_nvidia_gpu", lambda: True)
    opened = open_graphs(make_bundle("translator"), SessionPolicy())
    assert opened.provider == "cpu"
    assert "'cuda' was asked for" in (opened.fallback or "")


Raises = Callable[[str, str], None]

FULL = "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory ; GPU=0"
BROKEN = "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 35: driver version is insufficient"


@pytest.fixture
def a_gpu_that_says(monkeypatch: pytest.MonkeyPatch) -> Raises:
    """``a_gpu_that_says(words, of)``: as if a GPU were there, which raises ``words`` when "graphs" or the
    "sum" of its memory is loaded; anything else it does on the CPU.
    """
    real = ort.InferenceSession

    def pretend(words: str, of: str) -> None:
        def load(graph: bytes, options: Any, providers: Any, enable_fallback: int) -> ort.InferenceSession:
            loaded = "sum" if graph == SUM.read_bytes() else "graphs"
            if providers[0][0] == "CUDAExecutionProvider" and loaded == of:
                raise RuntimeError(words)
            return real(graph, options, providers=["CPUExecutionProvider"])

        monkeypatch.setattr(ort, "InferenceSession", load)

    monkeypatch.setattr(session, "available", lambda: ("cuda", "cpu"))
    monkeypatch.setattr(session, "_has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(session, "_load_nvidia_libraries", lambda: None)
    monkeypatch.setattr(session, "check_providers", lambda provider, found: None)
    return pretend


@pytest.mark.parametrize("of", ["graphs", "sum"])
@pytest.mark.parametrize(("words", "kind"), [(FULL, GraphTooLarge), (BROKEN, ProviderMissing)])
def test_a_gpu_that_was_full_while_loading_is_not_one_that_is_missing(
    make_bundle: MakeBundle, a_gpu_that_says: Raises, of: str, words: str, kind: type[Exception]
) -> None:
    a_gpu_that_says(words, of)
    with pytest.raises(kind, match="CUDA failure"):
        open_graphs(make_bundle("translator"), SessionPolicy(provider="cuda"))
    opened = open_graphs(make_bundle("translator"), SessionPolicy(threads=1))
    assert opened.provider == "cpu"
    assert words in (opened.fallback or "")


def test_no_memory_for_a_graph_on_the_cpu_does_not_make_the_bundle_invalid(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(ort, "InferenceSession", load)
    with pytest.raises(GraphTooLarge, match="graph 'translator', while it was loaded"):
        open_graphs(make_bundle("translator"), SessionPolicy())


def test_a_session_that_fell_back_silently_is_refused() -> None:
    with pytest.raises(ProviderMissing, match="CPUExecutionProvider"):
        check_providers("cuda", ("CPUExecutionProvider",))
    check_providers("cuda", ("CUDAExecutionProvider", "CPUExecutionProvider"))


def test_gpu_providers_get_their_device_search_and_memory_limit() -> None:
    policy = SessionPolicy(device=1, memory_bytes=5_000_000)
    names = [name for name, _ in provider_options("tensorrt", policy)]
    assert names == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    cuda = dict(provider_options("cuda", policy))["CUDAExecutionProvider"]
    assert cuda["device_id"] == "1"
    assert cuda["cudnn_conv_algo_search"] == "HEURISTIC"
    assert cuda["gpu_mem_limit"] == "5000000"
    assert "gpu_mem_limit" not in dict(provider_options("cuda", SessionPolicy()))["CUDAExecutionProvider"]
    tensorrt, behind, _ = (given for _, given in provider_options("tensorrt", policy))
    assert (tensorrt["trt_max_workspace_size"], behind["gpu_mem_limit"]) == ("5000000", "5000000")
    assert "trt_max_workspace_size" not in provider_options("tensorrt", SessionPolicy())[0][1]
    openvino = dict(provider_options("openvino", SessionPolicy(threads=3)))["OpenVINOExecutionProvider"]
    assert openvino["num_of_threads"] == "3"


def test_threads_are_the_policy_s_or_every_core_allowed() -> None:
    assert session_options(SessionPolicy(threads=3)).intra_op_num_threads == 3
    assert session_options(SessionPolicy()).intra_op_num_threads >= 1


def test_a_session_runs_one_operator_after_the_other_the_same_every_time_and_keeps_its_memory() -> None:
    options = session_options(SessionPolicy(threads=2))
    assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert options.inter_op_num_threads == 1
    assert options.use_deterministic_compute
    assert options.enable_cpu_mem_arena
    for entry in ("session.force_spinning_stop", "session.use_device_allocator_for_initializers"):
        assert options.get_session_config_entry(entry) == "1"


def test_a_cpu_session_is_opened_with_these_options(make_bundle: MakeBundle) -> None:
    graph = open_graphs(make_bundle("translator"), SessionPolicy(provider="cpu", threads=2)).graphs[
        "translator"
    ]
    wanted, given = session_options(SessionPolicy(threads=2)), graph.session.get_session_options()
    for name in ("intra_op_num_threads", "inter_op_num_threads", "execution_mode", "enable_cpu_mem_arena"):
        assert getattr(given, name) == getattr(wanted, name)
    assert given.use_deterministic_compute
    assert given.get_session_config_entry("session.force_spinning_stop") == "1"


@pytest.mark.parametrize(
    ("limits", "granted"),
    [
        ({}, 8),
        ({"slice/node": "max 100000"}, 8),
        ({"slice/node": "250000 100000"}, 3),
        ({"slice": "200000 100000", "slice/node": "600000 100000"}, 2),
        ({"slice/node": "10000 100000"}, 1),
        ({"slice/other": "100000 100000"}, 8),
        ({"slice/node": "nonsense"}, 8),
        ({"": "400000 100000"}, 4),
    ],
)
def test_a_cgroup_s_share_of_the_processors_limits_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, str], granted: int
) -> None:
    for group, words in limits.items():
        (tmp_path / "cgroup" / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / group / "cpu.max").write_text(f"{words}\n")
    (tmp_path / "self").write_text("1:cpu:/else\n0::/slice/node\n")
    monkeypatch.setattr(session, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(session, "CGROUP_OF_THIS", tmp_path / "self")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert session.cpu_threads(SessionPolicy()) == granted
    assert session.cpu_threads(SessionPolicy(sharers=3)) == max(1, granted // 3)
    assert session.cpu_threads(SessionPolicy(threads=5, sharers=3)) == 5


def test_a_system_without_cgroups_has_the_cores_it_is_bound_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "CGROUP_OF_THIS", tmp_path / "none")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert session.cpu_threads(SessionPolicy()) == 2


def test_a_bundle_s_graphs_share_its_gpu_memory_with_the_sums(
    make_bundle: MakeBundle, a_gpu_that_says: Raises, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    a_gpu_that_says("nothing", "nowhere")
    real = session._cuda_options

    def listen(policy: SessionPolicy, captured: bool) -> dict[str, str]:
        asked.append(real(policy, captured)["gpu_mem_limit"])
        return real(policy, captured)

    monkeypatch.setattr(session, "_cuda_options", listen)
    monkeypatch.setattr(session, "open_device", session.provider_options)
    open_graphs(make_bundle(), SessionPolicy(provider="cuda", memory_bytes=4_000))
    assert asked == ["1000"] * 4


def test_tensorrt_keeps_its_engines_a_folder_a_graph_and_builds_a_broken_one_again(
    make_bundle: MakeBundle, a_gpu_that_says: Raises, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    a_gpu_that_says("nothing", "nowhere")
    monkeypatch.setattr(session, "available", lambda: ("tensorrt", "cuda", "cpu"))
    pretend = ort.InferenceSession
    folders: list[Path] = []

    def load(graph: bytes, options: Any, providers: Any, enable_fallback: int) -> ort.InferenceSession:
        name, given = providers[0]
        if name == "TensorrtExecutionProvider":
            assert given["trt_engine_cache_enable"] == "1"
            folders.append(Path(given["trt_engine_cache_path"]))
            if (folders[-1] / "cut short").exists():
                raise RuntimeError("TensorRT EP could not deserialize engine from cache")
        return pretend(graph, options, providers, enable_fallback)

    monkeypatch.setattr(ort, "InferenceSession", load)
    policy = SessionPolicy(provider="tensorrt", threads=1, engine_cache=tmp_path / "cache")
    for bundle in (make_bundle(lift=0.1), make_bundle(lift=0.2)):
        open_graphs(bundle, policy)
    assert len(set(folders)) == len(folders) == 6
    assert all(folder.is_relative_to(tmp_path / "cache") and folder.is_dir() for folder in folders)
    (folders[-1] / "cut short").touch()
    open_graphs(bundle, policy)
    assert folders[6:] == [*folders[3:6], folders[5]]
    open_graphs(bundle, policy.model_copy(update={"memory_bytes": 1 << 30}))
    assert not set(folders[10:]) & set(folders[:10]), "an engine keeps the limit it was built under"
    plain = dict(provider_options("tensorrt", SessionPolicy()))["TensorrtExecutionProvider"]
    assert "trt_engine_cache_enable" not in plain


def least_runtimes() -> dict[str, str]:
    """Every build of ONNX Runtime that an installation may bring, with its oldest version."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return dict(re.findall(r"(onnxruntime[-\w]*)>=([\d.]+)", " ".join(project["dependencies"])))


def test_no_runtime_is_allowed_that_is_older_than_the_one_tested() -> None:
    """The code uses what older ones lack, such as ``OrtValue.update_inplace`` of another OrtValue."""
    least = least_runtimes()
    pinned = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    [tested] = re.findall(r"^onnxruntime-gpu==(\d+\.\d+)", pinned, re.MULTILINE)
    assert least == {"onnxruntime-gpu": tested, "onnxruntime": tested}


def test_the_way_to_openvino_first_removes_every_build_that_may_be_there() -> None:
    """All unpack into one folder: one removed later, or taken to be there, leaves the other in pieces."""
    guide = (REPOSITORY / "docs" / "administrators-guide.md").read_text(encoding="utf-8")
    for words in (session.PROVIDERS["openvino"].cure, guide):
        commands = re.findall(r"pip (uninstall|install)([-\w. ]* onnxruntime[-\w ]*)[;)\n]", words)
        (first, removed), then = ((verb, re.findall(r"onnxruntime[-\w]*", rest)) for verb, rest in commands)
        assert (first, set(removed)) == ("uninstall", {*least_runtimes(), "onnxruntime-openvino"})
        assert then == ("install", ["onnxruntime-openvino"])


def test_what_runs_is_told_with_what_was_found_and_what_would_be_faster() -> None:
    words = session.situation("cpu", SessionPolicy(threads=3))
    assert words.startswith("cpu with 3 threads; ONNX Runtime")
    assert "NVIDIA driver" in words
    assert "faster: an NVIDIA GPU" in words
    assert "faster" not in session.situation("tensorrt", SessionPolicy())
