"""ONNX Runtime sessions under a policy: what was asked for runs, or an error says what is missing.

ONNX Runtime falls back to the CPU without an error, when a session is made and again when it runs; here both
are switched off and the providers of every session are compared with what was asked. Only ``auto`` may end on
the CPU, and then :class:`Opened` says so.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Annotated, Literal, Protocol

import numpy as np
import onnxruntime as ort
from pydantic import Field

from config.base import Frozen
from engine.bundle import Bundle
from engine.device import Device, Resident, as_array, run_bound
from engine.errors import BundleInvalid, GraphTooLarge, ProviderMissing
from engine.failures import BROKEN_GRAPH, RUNTIME_ERRORS, as_ours, is_full
from engine.volume import Float32, Shape3

ProviderName = Literal["auto", "cuda", "tensorrt", "openvino", "cpu"]

LOG_ERRORS, LOG_FATAL = 3, 4
"""ONNX Runtime's severities; its warnings tell of hardware this machine does not have."""


class SessionPolicy(Frozen):
    """Where and how the graphs run."""

    provider: ProviderName = "auto"
    """``auto`` takes CUDA, then OpenVINO, then the CPU; the others run or are an error."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of one operator; 0 takes this policy's share of the cores that this process may use."""
    sharers: Annotated[int, Field(ge=1)] = 1
    """Processes that work at once on these cores, where ``threads`` is 0."""
    device: Annotated[int, Field(ge=0)] = 0
    """Index of the GPU."""
    memory_bytes: Annotated[int, Field(ge=0)] = 0
    """Most GPU memory a bundle may take, shared equally by its graphs and the sums between them; 0 is no
    limit. Of TensorRT's engines it bounds what their layers work in, not their weights and results."""
    tf32: bool = False
    """Let the GPU round to 10 bits in products: faster, up to 1e-3 off."""
    cuda_graph: bool = False
    """With provider ``cuda``, capture each graph's launches once and replay them: less waiting for the CPU,
    more memory held."""
    engine_cache: Path | None = None
    """Folder where TensorRT keeps the engines it has built, for the next start; None keeps none."""


@dataclass(frozen=True, slots=True)
class Provider:
    """One execution provider of ONNX Runtime and how to get it."""

    ort_name: str
    cure: str


PROVIDERS: dict[str, Provider] = {
    "cuda": Provider(
        "CUDAExecutionProvider",
        "install an NVIDIA driver, onnxruntime-gpu and the CUDA and cuDNN libraries it was built for "
        "(pip install 'onnxruntime-gpu[cuda,cudnn]'), or set provider = 'cpu'",
    ),
    "tensorrt": Provider(
        "TensorrtExecutionProvider",
        "install onnxruntime-gpu, the CUDA libraries and TensorRT 10, or set provider = 'cuda'",
    ),
    "openvino": Provider(
        "OpenVINOExecutionProvider",
        "install onnxruntime-openvino in place of the build that is there, since they share a folder "
        "(pip uninstall --yes onnxruntime-gpu onnxruntime onnxruntime-openvino; "
        "pip install onnxruntime-openvino), or set provider = 'cpu'",
    ),
    "cpu": Provider("CPUExecutionProvider", "reinstall onnxruntime"),
}

AUTO = ("cuda", "openvino", "cpu")
"""What ``auto`` tries, in order; TensorRT only by name, since it builds its engines for minutes."""

VARIANTS: Mapping[str, str] = {"cuda": "fp16", "tensorrt": "fp16"}
"""The variant of a bundle that a provider runs, where the bundle has it."""

CGROUPS, CGROUP_OF_THIS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Where Linux says how much of the processors a container or service may use."""

NVIDIA_NODES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""What the driver makes on Linux and on Linux under Windows."""


@dataclass(frozen=True, slots=True)
class Graph:
    """One loaded graph: arrays in by name, one float32 array out."""

    name: str
    session: ort.InferenceSession

    def __call__(self, **inputs: Float32) -> Float32:
        """The graph's first output. Raises SynthesisFailed or GraphTooLarge with the runtime's message."""
        with as_ours(f"graph {self.name!r}"):
            output: Float32 = self.session.run(None, inputs)[0]
        return output.astype(np.float32, copy=False)

    @property
    def inputs(self) -> Mapping[str, tuple[int | str | None, ...]]:
        """The shape of every input; a text is a free dimension."""
        return {i.name: tuple(i.shape) for i in self.session.get_inputs()}


@dataclass(frozen=True, slots=True)
class DeviceGraph(Graph):
    """The same where arrays live in a GPU's memory: arrays and ``Resident`` in, ``Resident`` out."""

    device: Device
    fixed: bool = False
    """Each call reads and writes the same memory, as a captured graph must: an output holds until then."""
    buffers: dict[str, ort.OrtValue] = field(default_factory=dict)

    def __call__(self, **inputs: Float32) -> Float32:
        """The graph's first output, on the device."""
        output = self.session.get_outputs()[0]
        with as_ours(f"graph {self.name!r}"):
            values = {name: self.device.put(array).plain() for name, array in inputs.items()}
            into = self._room(output.name, tuple(output.shape)) if self.fixed else None
            if self.fixed:
                values = {name: self._filled(name, value) for name, value in values.items()}
            made = run_bound(self.session, output.name, values, self.device, into=into)
        return as_array(Resident(made, self.device))

    def _room(self, name: str, shape: tuple[int, ...]) -> ort.OrtValue:
        if name not in self.buffers:
            self.buffers[name] = self.device.empty(shape)
        return self.buffers[name]

    def _filled(self, name: str, value: ort.OrtValue) -> ort.OrtValue:
        buffer = self._room(name, tuple(value.shape()))
        buffer.update_inplace(value)
        return buffer


class Runs(Protocol):
    """What a family asks of a graph."""

    def __call__(self, **inputs: Float32) -> Float32:
        """The graph's first output."""
        ...

    @property
    def inputs(self) -> Mapping[str, tuple[int | str | None, ...]]:
        """The shape of every input by name."""
        ...


@dataclass(frozen=True, slots=True)
class Timed:
    """A graph whose wall clock is added to ``seconds`` under ``stage``."""

    graph: Runs
    stage: str
    seconds: dict[str, float]

    def __call__(self, **inputs: Float32) -> Float32:
        """What the graph gives."""
        began = perf_counter()
        output = self.graph(**inputs)
        self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + perf_counter() - began
        return output

    @property
    def inputs(self) -> Mapping[str, tuple[int | str | None, ...]]:
        """The graph's."""
        return self.graph.inputs


Encoded = dict[tuple[str, Shape3], Float32]
"""What graphs said of a volume's tiles: (graph, the tile's first voxel) → its output, on the host."""


@dataclass(frozen=True, slots=True)
class Once:
    """A graph that is asked of one tile and run only where nobody has kept what it says of it."""

    graph: Runs
    key: tuple[str, Shape3]
    kept: Encoded
    put: Callable[[Float32], Float32]

    def __call__(self, **inputs: Float32) -> Float32:
        """What the graph gives, or gave before."""
        if self.key in self.kept:
            return self.put(self.kept[self.key])
        output = self.graph(**inputs)
        self.kept[self.key] = np.asarray(output).copy()  # a captured graph writes over it at its next call
        return output

    @property
    def inputs(self) -> Mapping[str, tuple[int | str | None, ...]]:
        """The graph's."""
        return self.graph.inputs


@dataclass(frozen=True, slots=True)
class Opened:
    """The graphs of a bundle, loaded."""

    graphs: Mapping[str, Graph]
    provider: str
    """What runs: a key of :data:`PROVIDERS`."""
    variant: str
    """Which of the bundle's variants that is; empty for its graphs as they are."""
    fallback: str | None
    """Why ``auto`` did not get an accelerator that this machine has; None where nothing was lost."""
    device: Device | None = None
    """Where arrays stay between graphs; None for the host, where they are NumPy's."""

    def put(self, array: Float32) -> Float32:
        """``array`` where the graphs run: there once, however many of them ask for it."""
        return as_array(self.device.put(array)) if self.device else array


def open_graphs(bundle: Bundle, policy: SessionPolicy) -> Opened:
    """Every graph of ``bundle`` on one provider.

    Raises ProviderMissing where the provider asked for does not run, BundleInvalid where a graph cannot, and
    GraphTooLarge where there is no memory for them. ``auto`` goes on after the first and the last of these.
    """
    ort.set_default_logger_severity(LOG_ERRORS)
    fallback = None
    for provider in candidates(policy.provider):
        try:
            graphs, device = _open_all(bundle, provider, policy)
            return Opened(graphs, provider, variant_for(bundle, provider), fallback, device)
        except (ProviderMissing, GraphTooLarge) as error:
            if policy.provider != "auto" or provider == "cpu":
                raise
            fallback = str(error)
    raise ProviderMissing(policy.provider, available(), PROVIDERS["cpu"].cure)


def variant_for(bundle: Bundle, provider: str) -> str:
    """The variant of ``bundle`` that runs on ``provider``; empty where it has none for it."""
    variant = VARIANTS.get(provider, "")
    return variant if variant in bundle.manifest.variants else ""


def candidates(asked: ProviderName) -> tuple[str, ...]:
    """The providers to try: the one asked for, for ``auto`` those with hardware and a library here."""
    if asked != "auto":
        return (asked,)
    present = available()
    return tuple(p for p in AUTO if p in present and (p != "cuda" or _has_nvidia_gpu()))


def available() -> tuple[str, ...]:
    """The providers this installation of ONNX Runtime was built with."""
    found = ort.get_available_providers()
    return tuple(name for name, provider in PROVIDERS.items() if provider.ort_name in found)


def situation(provider: str, policy: SessionPolicy) -> str:
    """How ``provider`` runs here, what else was found, and what would be faster; for people."""
    on_cpu = provider in ("cpu", "openvino")
    place = f"with {cpu_threads(policy)} threads" if on_cpu else f"on GPU {policy.device}"
    gpu = "an NVIDIA driver" if _has_nvidia_gpu() else "no NVIDIA driver"
    found = f"{provider} {place}; ONNX Runtime {ort.__version__} has {', '.join(available())}, {gpu} is here"
    faster = FASTER.get(provider)
    return f"{found}; faster: {faster}" if faster else found


FASTER: Mapping[str, str] = {
    "cpu": "an NVIDIA GPU (cuda), or onnxruntime-openvino, which is made for Intel processors (openvino)",
    "openvino": "an NVIDIA GPU (cuda)",
    "cuda": "tensorrt, which builds its engines for minutes when a model is first opened",
}
"""What would be faster than a provider."""


def cpu_threads(policy: SessionPolicy) -> int:
    """The threads one operator gets on the CPU."""
    return policy.threads or max(1, cores() // policy.sharers)


def cores() -> int:
    """The cores this process may use: those it is bound to, or fewer where a cgroup limits their time."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([bound, *_quotas()]))


def _quotas() -> Iterator[int]:
    """The whole cores that this process's cgroup and those above it grant (cpu.max of cgroup v2)."""
    try:
        own = CGROUP_OF_THIS.read_text().partition("0::/")[2].splitlines()[0]
    except (OSError, IndexError):
        return
    folder = CGROUPS / own
    for group in (folder, *folder.parents):
        if not group.is_relative_to(CGROUPS):
            return
        with contextlib.suppress(OSError, ValueError):  # the root has no such file; "max" is no number
            quota, period = (group / "cpu.max").read_text().split()
            yield -(-int(quota) // int(period))


def session_options(policy: SessionPolicy) -> ort.SessionOptions:
    """One operator after the other, deterministic kernels, threads that rest while another graph runs."""
    options = ort.SessionOptions()
    options.log_severity_level = LOG_ERRORS
    options.intra_op_num_threads = cpu_threads(policy)
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.enable_cpu_mem_arena = True  # one tile shape a session: the arena grows once and is used again
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    return options


def provider_options(provider: str, policy: SessionPolicy) -> list[tuple[str, dict[str, str]]]:
    """What ``InferenceSession(providers=…)`` gets: the provider, then those that take leftover nodes."""
    if provider == "cpu":
        return [("CPUExecutionProvider", {})]
    if provider == "openvino":
        threads = str(cpu_threads(policy))
        wanted = {"device_type": "CPU", "precision": "ACCURACY", "num_of_threads": threads}
        return [("OpenVINOExecutionProvider", wanted), ("CPUExecutionProvider", {})]
    cuda = ("CUDAExecutionProvider", _cuda_options(policy, captured=policy.cuda_graph and provider == "cuda"))
    if provider == "cuda":
        return [cuda, ("CPUExecutionProvider", {})]
    tensorrt = {"device_id": str(policy.device), "trt_fp16_enable": "0"} | _engine_cache(policy)
    if policy.memory_bytes:
        tensorrt["trt_max_workspace_size"] = str(policy.memory_bytes)
    return [("TensorrtExecutionProvider", tensorrt), cuda, ("CPUExecutionProvider", {})]


def _engine_cache(policy: SessionPolicy) -> dict[str, str]:
    """Where TensorRT looks for what it has built before; it compares no weights: a folder for each graph."""
    if policy.engine_cache is None:
        return {}
    policy.engine_cache.mkdir(parents=True, exist_ok=True)
    folder = str(policy.engine_cache)
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": folder,
    }


def _cuda_options(policy: SessionPolicy, captured: bool) -> dict[str, str]:
    options = {
        "device_id": str(policy.device),
        "cudnn_conv_algo_search": "HEURISTIC",
        "cudnn_conv_use_max_workspace": "1",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": str(int(policy.tf32)),
        "enable_cuda_graph": str(int(captured)),
    }
    return options | ({"gpu_mem_limit": str(policy.memory_bytes)} if policy.memory_bytes else {})


def _open_all(bundle: Bundle, provider: str, policy: SessionPolicy) -> tuple[dict[str, Graph], Device | None]:
    if provider not in available():
        raise ProviderMissing(provider, available(), PROVIDERS[provider].cure)
    on_gpu = provider in ("cuda", "tensorrt")
    if on_gpu:
        _load_nvidia_libraries()
        sessions_of_bundle = len(bundle.manifest.graphs) + 1  # and the device's sums
        policy = policy.model_copy(update={"memory_bytes": -(-policy.memory_bytes // sessions_of_bundle)})
    sessions = {name: _open(bundle, name, provider, policy) for name in bundle.manifest.graphs}
    if not on_gpu:
        return {name: Graph(name, session) for name, session in sessions.items()}, None
    device = open_device("cuda", policy)
    fixed = policy.cuda_graph and provider == "cuda"
    return {name: DeviceGraph(name, session, device, fixed) for name, session in sessions.items()}, device


def open_device(kind: str, policy: SessionPolicy) -> Device:
    """The memory of the policy's GPU ("cuda"), or of the host ("cpu") under the same rules.

    Raises ProviderMissing, or GraphTooLarge where it is full.
    """
    plain = policy.model_copy(update={"cuda_graph": False})
    index = policy.device if kind == "cuda" else 0
    try:
        return Device(kind, index, session_options(plain), provider_options(kind, plain))
    except RUNTIME_ERRORS as error:
        if is_full(error):
            raise GraphTooLarge(f"the memory of the device: {error}") from error
        raise ProviderMissing(kind, available(), f"{PROVIDERS[kind].cure} ({error})") from error


def _open(bundle: Bundle, name: str, provider: str, policy: SessionPolicy) -> ort.InferenceSession:
    cache = policy.engine_cache
    if cache is None or provider != "tensorrt":
        return _load(bundle, name, provider, policy)
    variant = variant_for(bundle, provider) or "plain"
    built_for = f"{name}-{variant}-{policy.device}-{policy.memory_bytes}"
    cache = cache / f"{bundle.digest}-{ort.__version__}" / built_for
    policy = policy.model_copy(update={"engine_cache": cache})
    had_engines = cache.is_dir() and any(cache.iterdir())
    try:
        return _load(bundle, name, provider, policy)
    except ProviderMissing:
        if not had_engines:
            raise
        shutil.rmtree(cache, ignore_errors=True)  # one may have been cut short by a crash
        return _load(bundle, name, provider, policy)


def _load(bundle: Bundle, name: str, provider: str, policy: SessionPolicy) -> ort.InferenceSession:
    asked = PROVIDERS[provider]
    try:
        with _quiet():
            session = ort.InferenceSession(
                bundle.graph_bytes(name, variant_for(bundle, provider)),
                session_options(policy),
                providers=provider_options(provider, policy),
                enable_fallback=0,
            )
    except RUNTIME_ERRORS as error:
        if is_full(error):
            raise GraphTooLarge(f"graph {name!r}, while it was loaded: {error}") from error
        if provider == "cpu" or isinstance(error, BROKEN_GRAPH):
            raise BundleInvalid(bundle.folder, f"graph {name!r} does not load: {error}") from error
        raise ProviderMissing(provider, ("cpu",), f"{asked.cure} ({error})") from error
    check_providers(provider, tuple(session.get_providers()))
    return session


def check_providers(provider: str, found: tuple[str, ...]) -> None:
    """ProviderMissing if a session that was asked for ``provider`` runs on ``found`` without it in front."""
    asked = PROVIDERS[provider]
    if found[:1] != (asked.ort_name,):
        raise ProviderMissing(provider, found, asked.cure)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """While a provider is tried: what it would log is in the error this room raises."""
    ort.set_default_logger_severity(LOG_FATAL)
    try:
        yield
    finally:
        ort.set_default_logger_severity(LOG_ERRORS)


def _has_nvidia_gpu() -> bool:
    """Whether an NVIDIA driver serves this machine; off Linux, trying is the only way to know."""
    return not sys.platform.startswith("linux") or any(node.exists() for node in NVIDIA_NODES)


def _load_nvidia_libraries() -> None:
    """Take CUDA and cuDNN from the ``nvidia-*`` wheels if there; what is missing shows on opening."""
    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()
