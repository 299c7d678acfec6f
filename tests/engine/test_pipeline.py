from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine.bundle import Bundle
from engine.errors import BundleInvalid, SynthesisFailed, VolumeUnsupported
from engine.pipeline import Engine, VolumeLimits, open_engine, plan_for
from engine.session import Encoded, SessionPolicy
from engine.volume import Float32, Geometry, Volume

MakeBundle = Callable[..., Bundle]

CPU = SessionPolicy(provider="cpu", threads=1)
GEOMETRY = Geometry((14, 40, 44), (3.0, 1.5, 1.5), (5.0, -7.0, 100.0), frame_of_reference_uid="1.2.3")
HALF_RANGE = 300.0


def patient(geometry: Geometry = GEOMETRY, sd: float = 8.0) -> Volume:
    """An elliptic body of fat and tissue with a spine of dense bone, in air."""
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in geometry.shape)
    r = (y[:, None] / 0.8) ** 2 + (x[None, :] / 0.85) ** 2
    plane = np.where(r < 1, -100, -1000) + np.where(r < 0.7, 145, 0)
    plane[np.hypot(y[:, None] - 0.4, x[None, :]) < 0.15] = 700
    noise = np.random.default_rng(1).normal(0, sd, geometry.shape)
    return Volume((plane[None] + noise + 0 * z[:, None, None]).astype(np.float32), geometry)


def tissue(volume: Volume) -> Float32:
    return (volume.hu > -170) & (volume.hu < 370)


def test_the_way_through_the_graphs_is_the_one_worked_out_by_hand(make_bundle: MakeBundle) -> None:
    source = patient()
    bundle = make_bundle(gain=0.1, lift=0.05, composition={"detail": 0.0, "edge_hu": 20.0})
    synthesis = Engine(bundle, CPU).synthesize(source, seed=1)
    normalised = (source.hu - 100) / HALF_RANGE
    expected = source.hu + HALF_RANGE * (0.1 * normalised + 0.05)
    inside = tissue(source)
    np.testing.assert_allclose(synthesis.volume.hu[inside], expected[inside], atol=0.01)


def test_air_and_bone_above_the_window_are_the_source_s_own_bits(make_bundle: MakeBundle) -> None:
    source = patient()
    result = Engine(make_bundle(lift=0.3), CPU).synthesize(source, seed=1).volume.hu
    outside = (source.hu <= -200) | (source.hu >= 400)
    assert outside.any()
    np.testing.assert_array_equal(result[outside], source.hu[outside])
    assert (result[tissue(source)] - source.hu[tissue(source)]).mean() > 50


def test_an_untrained_bridge_gives_the_source_back(make_bundle: MakeBundle) -> None:
    source = patient()
    result = Engine(make_bundle(), CPU).synthesize(source, seed=1).volume.hu
    np.testing.assert_allclose(result, source.hu, atol=0.01)


@pytest.mark.parametrize(
    "sampler",
    [
        {"name": "bridge", "formulation": "bridge", "steps": 3, "sigma": 0.2},
        {"name": "ddim", "formulation": "conditional", "steps": 2, "sigma": 0.5},
        {"name": "dpm_solver", "formulation": "literal", "steps": 3, "sdedit_strength": 0.3},
    ],
)
def test_the_same_input_and_seed_give_the_same_bytes_and_another_seed_others(
    make_bundle: MakeBundle, sampler: dict[str, object]
) -> None:
    source, bundle = patient(), make_bundle(gain=0.1, sampler=sampler)
    one, two, other = (Engine(bundle, CPU).synthesize(source, seed=s) for s in (7, 7, 8))
    assert one.volume.hu.tobytes() == two.volume.hu.tobytes()
    assert one.volume.hu.tobytes() != other.volume.hu.tobytes()
    assert (one.sampler, one.steps, one.seed) == (sampler["name"], sampler["steps"], 7)


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_tiled_and_untiled_agree_within_one_hu(make_bundle: MakeBundle, sigma: float) -> None:
    sampler = {"name": "bridge", "formulation": "bridge", "steps": 3, "sigma": sigma}
    source = patient(Geometry((24, 48, 48), (3.0, 1.5, 1.5)))
    keys = {"gain": 0.2, "lift": 0.1, "sampler": sampler}
    tiled = Engine(make_bundle(tile=(8, 16, 16), **keys), CPU).synthesize(source, seed=3)
    untiled = Engine(make_bundle(tile=(24, 48, 48), **keys), CPU).synthesize(source, seed=3)
    assert np.abs(tiled.volume.hu - untiled.volume.hu).max() < 1


def test_tiles_that_feel_their_border_agree_within_one_hu_where_they_overlap_fully(
    make_bundle: MakeBundle,
) -> None:
    """A graph that sees one voxel around: only a tile's outermost voxels differ, and they weigh little."""
    source = patient(Geometry((24, 48, 48), (3.0, 1.5, 1.5)))
    keys = {"gain": 0.3, "overlap": 0.5, "composition": {"detail": 0.0, "edge_hu": 20.0}}
    tiled = Engine(make_bundle("translator", tile=(16, 32, 32), **keys), CPU).synthesize(source, seed=3)
    untiled = Engine(make_bundle("translator", tile=(24, 48, 48), **keys), CPU).synthesize(source, seed=3)
    assert np.abs(tiled.volume.hu - untiled.volume.hu)[:, 2:-2, 2:-2].max() < 1


def test_a_finer_source_is_answered_on_its_own_grid(make_bundle: MakeBundle) -> None:
    geometry = Geometry((37, 75, 80), (1.25, 0.8, 0.8), frame_of_reference_uid="1.2.3")
    source = patient(geometry)
    synthesis = Engine(make_bundle(lift=0.2), CPU).synthesize(source, seed=1)
    inside = (source.hu > 0) & (source.hu < 200)
    assert synthesis.volume.geometry == geometry
    assert (synthesis.volume.hu - source.hu)[inside].mean() == pytest.approx(60, abs=3)
    assert synthesis.volume.hu[inside].std() == pytest.approx(source.hu[inside].std(), rel=0.2)


def test_a_synthesis_says_how_it_was_made(make_bundle: MakeBundle) -> None:
    bundle = make_bundle("translator", lift=0.1, phase="venous")
    synthesis = Engine(bundle, CPU).synthesize(patient(), seed=11)
    assert (synthesis.phase, synthesis.model_id, synthesis.provider) == ("venous", "toy-1", "cpu")
    assert (synthesis.sampler, synthesis.steps) == ("none", 0)
    assert synthesis.model_digest == bundle.digest
    assert set(synthesis.seconds) == {"body", "resample", "translator", "tiles", "compose"}
    assert synthesis.findings == ()


def test_the_stages_of_a_synthesis_sum_up_to_its_time_and_name_every_graph(make_bundle: MakeBundle) -> None:
    engine = Engine(make_bundle(), CPU)
    began = time.perf_counter()
    seconds = engine.synthesize(patient(), seed=1).seconds
    took = time.perf_counter() - began
    assert {"encoder", "denoiser", "decoder"} < set(seconds)
    assert min(seconds.values()) >= 0
    assert sum(seconds.values()) <= took


def test_coarse_voxels_a_small_body_and_a_lost_gpu_are_found(make_bundle: MakeBundle) -> None:
    engine = Engine(make_bundle(tile=(48, 48, 48)), CPU)
    engine._fallback = "the driver is old"
    synthesis = engine.synthesize(patient(Geometry((8, 40, 44), (8.0, 1.5, 1.5))), seed=1)
    codes = [finding.code for finding in synthesis.findings]
    assert codes == ["PROVIDER-FALLBACK", "COARSER-THAN-MODEL", "SMALLER-THAN-TILE"]


def test_progress_rises_to_one(make_bundle: MakeBundle) -> None:
    seen: list[float] = []
    Engine(make_bundle(), CPU).synthesize(patient(), seed=1, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[0] > 0
    assert seen[-1] == 1.0


def with_value(value: float) -> Volume:
    hu = patient().hu.copy()
    hu[3, 3, 3] = value
    return Volume(hu, GEOMETRY)


@pytest.mark.parametrize(
    ("volume", "reason"),
    [
        (patient(Geometry((14, 40, 44), (15.0, 1.5, 1.5))), "slices lie 15 mm apart"),
        (patient(Geometry((14, 40, 44), (3.0, 0.05, 1.5))), r"rows lie 0\.05 mm apart"),
        (patient(Geometry((14, 40, 12), (3.0, 1.5, 1.5))), r"columns cover 18\.0 mm"),
        (with_value(np.nan), "not numbers"),
        (with_value(np.inf), "not numbers"),
        (Volume(np.full(GEOMETRY.shape, -1000, np.float32), GEOMETRY), "no body"),
    ],
)
def test_a_volume_outside_the_model_s_range_is_refused(
    make_bundle: MakeBundle, volume: Volume, reason: str
) -> None:
    with pytest.raises(VolumeUnsupported, match=reason):
        Engine(make_bundle(), CPU).synthesize(volume, seed=1)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (VolumeLimits(max_voxels=1000), "24640 voxels are more than 1000"),
        (VolumeLimits(max_model_voxels=1000), "voxels of the model"),
    ],
)
def test_a_volume_too_large_is_refused(make_bundle: MakeBundle, limits: VolumeLimits, reason: str) -> None:
    with pytest.raises(VolumeUnsupported, match=reason):
        Engine(make_bundle(), CPU, limits).synthesize(patient(), seed=1)


def test_a_model_that_gives_no_numbers_fails_the_synthesis(make_bundle: MakeBundle) -> None:
    with pytest.raises(SynthesisFailed, match="not numbers"):
        Engine(make_bundle(lift=float("inf")), CPU).synthesize(patient(), seed=1)


def test_graphs_that_do_not_take_what_the_family_gives_are_refused(make_bundle: MakeBundle) -> None:
    swapped = {"encoder": "decoder.onnx", "denoiser": "denoiser.onnx", "decoder": "encoder.onnx"}
    with pytest.raises(BundleInvalid, match=r"'encoder' takes \['z'\]"):
        Engine(make_bundle(graphs=swapped), CPU)


def test_graphs_of_another_tile_size_are_refused(make_bundle: MakeBundle) -> None:
    with pytest.raises(BundleInvalid, match=r"takes x of shape \(1, 1, 8, 16, 16\), not \(1, 1, 8, 16, 32\)"):
        Engine(replace_tile(make_bundle("translator"), (8, 16, 32)), CPU)


def replace_tile(bundle: Bundle, tile: tuple[int, int, int]) -> Bundle:
    return dataclasses.replace(bundle, manifest=bundle.manifest.model_copy(update={"tile": tile}))


def test_tiles_of_nothing_but_air_never_reach_the_graphs(make_bundle: MakeBundle) -> None:
    engine = Engine(make_bundle("translator"), CPU)
    graph, seen = engine._graphs["translator"], []

    def counting(x: Float32) -> Float32:
        seen.append(x)
        return graph(x=x)

    engine._graphs = {"translator": counting}  # type: ignore[dict-item]
    source = patient(Geometry((14, 120, 120), (3.0, 1.5, 1.5)))
    synthesis = engine.synthesize(source, seed=1)
    plan = plan_for(engine.bundle.manifest, source.hu.shape)
    assert 0 < len(seen) < plan.count
    assert synthesis.tiles == len(seen)
    assert min(x.max() for x in seen) > -1


def test_tiles_that_hold_table_and_no_body_never_reach_the_graphs(make_bundle: MakeBundle) -> None:
    """A trunk with an outstretched arm: below the arm lies a table, in a tile of its own."""
    geometry = Geometry((14, 160, 200), (3.0, 1.5, 1.5))
    hu = np.full(geometry.shape, -1000, np.float32)
    hu[:, 20:140, 20:90] = 40
    hu[:, 24:44, 90:190] = 40
    table = (slice(None), slice(120, 128), slice(140, 190))
    hu[table] = 60
    engine = Engine(make_bundle("translator", lift=0.1), CPU)
    graph, seen = engine._graphs["translator"], []

    def counting(x: Float32) -> Float32:
        seen.append(x)
        return graph(x=x)

    engine._graphs = {"translator": counting}  # type: ignore[dict-item]
    made = engine.synthesize(Volume(hu, geometry), seed=1).volume.hu
    assert seen
    assert not any((x == (60 - 100) / HALF_RANGE).any() for x in seen)
    np.testing.assert_array_equal(made[table], hu[table])
    assert (made[7, 60:100, 40:80] > 60).all()


@pytest.mark.parametrize("kind", ["s2ldm", "conditioned"])
def test_several_samples_encode_each_tile_once_and_are_what_each_would_be_alone(
    make_bundle: MakeBundle, kind: str
) -> None:
    sampler = {"name": "bridge", "formulation": "bridge", "steps": 2, "sigma": 0.3}
    engine = Engine(make_bundle(kind=kind, gain=0.2, lift=0.1, sampler=sampler), CPU)
    alone = [engine.synthesize(patient(), seed=seed) for seed in (1, 2)]
    encoded: Encoded = {}
    first, second = (engine.synthesize(patient(), seed=seed, encoded=encoded) for seed in (1, 2))
    for made, wanted in zip((first, second), alone, strict=True):
        np.testing.assert_array_equal(made.volume.hu, wanted.volume.hu)
    assert not np.array_equal(first.volume.hu, second.volume.hu)
    encoders = {"encoder", "condition"} & first.seconds.keys()
    assert len(encoded) == first.tiles * len(encoders) > 0
    assert not encoders & second.seconds.keys()
    assert {"denoiser", "decoder"} < second.seconds.keys()


def test_engines_agree_in_their_encoding_where_grid_and_encoders_are_the_same(
    make_bundle: MakeBundle,
) -> None:
    one, two = (Engine(make_bundle(gain=gain), CPU) for gain in (0.1, 0.2))
    assert one.bundle.digest != two.bundle.digest
    assert one.encoding == two.encoding
    others = [make_bundle(overlap=0.5), make_bundle(tile=(8, 16, 32)), make_bundle(window_hu=(-100, 400))]
    assert one.encoding not in [Engine(each, CPU).encoding for each in others]


def test_a_model_that_gives_another_shape_fails_the_synthesis(make_bundle: MakeBundle) -> None:
    engine = Engine(make_bundle("translator"), CPU)
    engine._graphs = {"translator": lambda x: x[..., 1:]}  # type: ignore[dict-item]
    with pytest.raises(SynthesisFailed, match=r"\(8, 16, 15\) for one of \(8, 16, 16\)"):
        engine.synthesize(patient(), seed=1)


def test_an_engine_is_opened_from_a_folder(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    assert open_engine(bundle.folder, CPU).bundle.digest == bundle.digest
    with pytest.raises(BundleInvalid):
        open_engine(tmp_path / "nothing", CPU)
