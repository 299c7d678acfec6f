"""Arrays that stay where the graphs run, on the host's memory: what a GPU does differently is its address."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from engine import pipeline, session
from engine.bundle import Bundle, digest_files, read_bundle, write_manifest
from engine.device import SUM, Device, Resident, as_array
from engine.errors import GraphTooLarge, SynthesisFailed
from engine.failures import as_ours
from engine.families import FAMILIES
from engine.noise import NoiseField
from engine.pipeline import Engine
from engine.session import (
    DeviceGraph,
    Encoded,
    Graph,
    SessionPolicy,
    open_device,
    open_graphs,
    provider_options,
)
from engine.volume import Geometry, Volume

MakeBundle = Callable[..., Bundle]

CPU = SessionPolicy(provider="cpu", threads=1)
RNG = np.random.default_rng(3)
A, B = (RNG.standard_normal((1, 2, 3, 4, 5), dtype=np.float32) for _ in range(2))


@pytest.fixture(scope="module")
def device() -> Device:
    return open_device("cpu", CPU)


def test_the_sum_is_the_graph_it_is_said_to_be() -> None:
    model = onnx.load(SUM)
    onnx.checker.check_model(model)
    assert [(n.op_type, *n.input) for n in model.graph.node] == [
        ("Mul", "a", "x"), ("Mul", "b", "y"), ("Add", "ax", "by"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "sums",
    [
        lambda x, y: x + y * 0.25,
        lambda x, y: 0.5 * x - 2.0 * y,
        lambda x, y: -x + y,
        lambda x, y: (x - 0.5 * y) * 2.0 + x,
        lambda x, y: 3.0 * x,
    ],
)
def test_residents_add_and_scale_as_arrays_do(device: Device, sums: Callable[..., np.ndarray]) -> None:
    wanted = sums(A, B)
    for x, y in ((device.put(A), device.put(B)), (device.put(A), B), (A, device.put(B))):
        made = sums(x, y)
        np.testing.assert_array_equal(np.asarray(made), wanted)
        assert np.asarray(made).dtype == np.float32
    assert device.put(A).shape == A.shape


def test_dividing_is_within_a_rounding(device: Device) -> None:
    np.testing.assert_allclose(np.asarray((device.put(A) - B) / 0.3), (A - B) / np.float32(0.3), rtol=3e-7)


def test_what_is_there_is_not_copied(device: Device) -> None:
    resident = device.put(A)
    assert device.put(resident) is resident
    assert (resident * 2.0).stored is resident.stored
    np.testing.assert_array_equal(np.asarray(resident, dtype=np.float64), A.astype(np.float64))


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", ["bridge", "ddim", "dpm_solver"])
def test_every_sampler_gives_on_a_device_what_it_gives_on_the_host(
    make_bundle: MakeBundle, device: Device, name: str, fixed: bool
) -> None:
    formulation = "bridge" if name == "bridge" else "conditional"
    sampler = {"name": name, "formulation": formulation, "steps": 4}
    bundle = make_bundle(gain=0.3, lift=0.1, sampler=sampler)
    host = open_graphs(bundle, CPU).graphs
    there = {n: DeviceGraph(n, graph.session, device, fixed) for n, graph in host.items()}
    noise = NoiseField(seed=3, plane=(4, 4))
    x = RNG.uniform(-1, 1, (1, 1, *bundle.manifest.tile)).astype(np.float32)
    for tile in (x, -x):
        wanted = FAMILIES["s2ldm"].translate(bundle.manifest, host, noise, tile, (0, 0, 0))
        made = FAMILIES["s2ldm"].translate(bundle.manifest, there, noise, device.put(tile), (0, 0, 0))
        assert isinstance(made, Resident)
        np.testing.assert_allclose(np.asarray(made), wanted, atol=2e-6)
        assert np.asarray(made).std() > 0.1
    if fixed:
        addresses = {n: graph.buffers for n, graph in there.items()}
        assert addresses["denoiser"].keys() == {"z_t", "e_n", "t", "v"}


def test_a_whole_volume_is_the_same_on_a_device(
    make_bundle: MakeBundle, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(gain=0.3, lift=0.1)
    volume = a_volume()
    host = Engine(bundle, CPU).synthesize(volume, seed=1)
    real = pipeline.open_graphs

    def on_device(bundle: Bundle, policy: SessionPolicy) -> session.Opened:
        opened = real(bundle, policy)
        graphs = {n: DeviceGraph(n, g.session, device) for n, g in opened.graphs.items()}
        return session.Opened(graphs, "cuda", "", None, device)

    monkeypatch.setattr(pipeline, "open_graphs", on_device)
    made = Engine(bundle, CPU).synthesize(volume, seed=1)
    np.testing.assert_array_equal(made.volume.hu, host.volume.hu)
    assert made.provider == "cuda"


@pytest.mark.parametrize("fixed", [False, True])
def test_what_was_encoded_on_a_device_is_kept_beside_it(
    make_bundle: MakeBundle, device: Device, fixed: bool
) -> None:
    engine = Engine(make_bundle(gain=0.3, lift=0.1), CPU)
    wanted = engine.synthesize(a_volume(), seed=1)
    engine._graphs = {n: DeviceGraph(n, g.session, device, fixed) for n, g in engine._graphs.items()}
    engine._put = lambda array: as_array(device.put(array))
    encoded: Encoded = {}
    for _ in range(2):
        made = engine.synthesize(a_volume(), seed=1, encoded=encoded)
        np.testing.assert_allclose(made.volume.hu, wanted.volume.hu, atol=1e-3)
    assert {type(value) for value in encoded.values()} == {np.ndarray}
    assert "encoder" not in made.seconds


def test_a_failure_on_a_device_has_the_graph_s_name(make_bundle: MakeBundle, device: Device) -> None:
    opened = open_graphs(make_bundle("translator"), CPU)
    graph = DeviceGraph("translator", opened.graphs["translator"].session, device)
    with pytest.raises(SynthesisFailed, match="graph 'translator'"):
        graph(x=np.ones((1, 1, 8, 16, 20), np.float32))


def without_end(bundle: Bundle) -> Bundle:
    """The same bundle with a graph that asks for more memory than any machine has."""
    image = [1, 1, *bundle.manifest.tile]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", image), ("x_c", None)))
    far = helper.make_tensor("far", TensorProto.INT64, [5], [1 << 20, 1 << 20, *bundle.manifest.tile])
    nodes = [helper.make_node("Expand", ["x", "far"], ["x_c"])]
    graph = helper.make_graph(nodes, "endless", [x], [y], [far])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (bundle.folder / "translator.onnx").write_bytes(model.SerializeToString())
    files = digest_files(bundle.folder)
    write_manifest(bundle.folder, bundle.manifest.model_copy(update={"files": files}))
    return read_bundle(bundle.folder)


def test_no_memory_for_a_graph_is_an_error_of_its_own(make_bundle: MakeBundle) -> None:
    engine = Engine(without_end(make_bundle("translator")), CPU)
    with pytest.raises(GraphTooLarge, match="graph 'translator'") as caught:
        engine.synthesize(a_volume(), seed=0)
    assert isinstance(caught.value, MemoryError)


def test_a_graph_that_its_arena_s_limit_has_no_room_for_is_the_same_error(make_bundle: MakeBundle) -> None:
    """The limit of ``gpu_mem_limit``, on the host: ONNX Runtime's arenas are one class everywhere."""
    limit = ort.OrtArenaCfg({"max_mem": 1 << 14, "initial_chunk_size_bytes": 1 << 10})
    host = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(host, limit)
    options = session.session_options(CPU)
    options.add_session_config_entry("session.use_env_allocators", "1")  # no other session takes that arena
    options.log_severity_level = session.LOG_FATAL
    bundle = make_bundle("translator", tile=(16, 32, 32))
    limited = ort.InferenceSession(bundle.graph_bytes("translator"), options, ["CPUExecutionProvider"])
    with pytest.raises(GraphTooLarge, match=r"graph 'translator'.*smaller than requested"):
        Graph("translator", limited)(x=np.zeros((1, 1, 16, 32, 32), np.float32))


def test_no_memory_for_the_arrays_between_graphs_is_the_same_error(device: Device) -> None:
    row = np.zeros((1, 1, 1, 1, 1 << 20), np.float32)
    with pytest.raises(GraphTooLarge, match="a sum on the device"):
        device.put(row) + row.T  # every value with every other: four TiB
    with pytest.raises(GraphTooLarge, match="an array to the device"):
        device.put(np.broadcast_to(row, (1 << 20, *row.shape[1:])))


def test_what_auto_cannot_fit_on_the_accelerator_runs_on_the_cpu_and_says_so(make_bundle: MakeBundle) -> None:
    bundle = make_bundle("translator", lift=0.25)
    full = open_graphs(without_end(make_bundle("translator")), CPU).graphs
    engine = Engine(bundle, SessionPolicy(threads=1))
    engine._graphs, engine.provider = full, "cuda"
    made = engine.synthesize(a_volume(), seed=0)
    wanted = Engine(bundle, CPU).synthesize(a_volume(), seed=0)
    np.testing.assert_array_equal(made.volume.hu, wanted.volume.hu)
    assert made.provider == "cpu"
    assert [(f.code, "ran on the cpu" in f.text) for f in made.findings] == [
        ("PROVIDER-FALLBACK", True), *((f.code, False) for f in wanted.findings),
    ]  # fmt: skip

    asked = Engine(bundle, CPU)
    asked._graphs, asked.provider = full, "cuda"
    with pytest.raises(GraphTooLarge):
        asked.synthesize(a_volume(), seed=0)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("CUDA failure 2: out of memory ; GPU=0", GraphTooLarge),
        ("Failed to allocate memory for requested buffer of size 1024", GraphTooLarge),
        ("Available memory of 1048576 is smaller than requested bytes of 2097152", GraphTooLarge),
        ("CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED", GraphTooLarge),
        ("CUDA failure 700: an illegal memory access", SynthesisFailed),
    ],
)
def test_the_runtime_s_ways_to_say_that_memory_is_full(message: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="graph 'decoder'"), as_ours("graph 'decoder'"):
        raise RuntimeError(message)


def test_graphs_are_captured_where_that_is_asked_for_and_sums_are_not() -> None:
    for asked in (True, False):
        options = dict(provider_options("cuda", SessionPolicy(cuda_graph=asked)))["CUDAExecutionProvider"]
        assert options["enable_cuda_graph"] == str(int(asked))
        behind = dict(provider_options("tensorrt", SessionPolicy(cuda_graph=asked)))["CUDAExecutionProvider"]
        assert behind["enable_cuda_graph"] == "0"


def a_volume() -> Volume:
    hu = np.full((12, 40, 40), -1000.0, np.float32)
    hu[:, 6:34, 6:34] = 40.0 + np.random.default_rng(1).normal(0, 20, (12, 28, 28))
    return Volume(hu, Geometry(hu.shape, (3.0, 1.5, 1.5)))


def test_the_package_ships_the_sum() -> None:
    assert SUM.parent == Path(session.__file__).parent
