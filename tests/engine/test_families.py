"""What every family promises, run over every entry of the registry."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pytest

from engine.bundle import GRAPHS, Bundle, digest_files, read_bundle, write_manifest
from engine.errors import BundleInvalid
from engine.families import FAMILIES
from engine.families.s2ldm import latent_start, parameters
from engine.noise import NoiseField
from engine.pipeline import Engine
from engine.session import SessionPolicy, open_graphs

MakeBundle = Callable[..., Bundle]

NOISE = NoiseField(seed=3, plane=(8, 8))


def test_bundles_and_families_know_the_same_names_and_graphs() -> None:
    assert {name: family.inputs.keys() for name, family in FAMILIES.items()} == GRAPHS


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tile_becomes_a_tile_of_its_size_and_the_same_one_twice(make_bundle: MakeBundle, name: str) -> None:
    bundle = make_bundle(name, gain=0.1, lift=0.2)
    graphs = open_graphs(bundle, SessionPolicy(provider="cpu", threads=1)).graphs
    x = np.random.default_rng(1).uniform(-1, 1, (1, 1, *bundle.manifest.tile)).astype(np.float32)
    before = x.copy()
    one, two = (
        FAMILIES[name].translate(bundle.manifest, graphs, NOISE, x, start) for start in ((0, 0, 0), (0, 4, 8))
    )
    assert one.dtype == np.float32
    assert one.shape == x.shape
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_s_graphs_take_the_inputs_it_names(make_bundle: MakeBundle, name: str) -> None:
    graphs = open_graphs(make_bundle(name), SessionPolicy(provider="cpu")).graphs
    assert {graph: frozenset(graphs[graph].inputs) for graph in graphs} == FAMILIES[name].inputs


def test_noise_moves_with_the_tile_s_place_and_stays_in_the_patient(make_bundle: MakeBundle) -> None:
    sampler = {"name": "ddim", "formulation": "conditional", "steps": 1, "prediction": "epsilon"}
    bundle = make_bundle(sampler=sampler)
    graphs = open_graphs(bundle, SessionPolicy(provider="cpu")).graphs
    x = np.zeros((1, 1, *bundle.manifest.tile), np.float32)
    here, there = (
        FAMILIES["s2ldm"].translate(bundle.manifest, graphs, NOISE, x, start)
        for start in ((0, 0, 0), (2, 8, 4))
    )
    np.testing.assert_array_equal(here[..., 2:, 8:, 4:], there[..., :-2, :-8, :-4])
    assert here.std() > 0.1


def test_a_decoder_that_paints_onto_the_source_gets_the_source(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(kind="painting", gain=0.5, lift=0.25)
    graphs = Engine(bundle, SessionPolicy(provider="cpu"))._graphs
    x = np.random.default_rng(1).uniform(-1, 1, (1, 1, *bundle.manifest.tile)).astype(np.float32)
    x_c = FAMILIES["s2ldm"].translate(bundle.manifest, graphs, NOISE, x, (0, 0, 0))
    np.testing.assert_array_equal(x_c, x + np.float32(0.25))


def test_a_condition_is_made_once_a_tile_and_told_at_every_step(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(kind="conditioned", gain=0.25, lift=0.1)
    graphs = dict(Engine(bundle, SessionPolicy(provider="cpu"))._graphs)
    made, asked = graphs["condition"], []

    class Counting:
        inputs: ClassVar = made.inputs

        def __call__(self, **inputs: np.ndarray) -> np.ndarray:
            asked.append(inputs)
            return made(**inputs)

    x = np.random.default_rng(1).uniform(-1, 1, (1, 1, *bundle.manifest.tile)).astype(np.float32)
    counted = {**graphs, "condition": Counting()}
    x_c = FAMILIES["s2ldm"].translate(bundle.manifest, counted, NOISE, x, (0, 0, 0))
    np.testing.assert_allclose(x_c, 1.5 * x + 0.1, atol=1e-6)  # v = gain · 2 e_n + lift, two steps of a half
    assert [inputs.keys() for inputs in asked] == [{"x", "e_n"}]


def test_a_denoiser_that_is_told_what_no_graph_makes_is_refused(make_bundle: MakeBundle) -> None:
    whole = make_bundle(kind="conditioned")
    (whole.folder / "condition.onnx").unlink()
    names = {n: f for n, f in whole.manifest.graphs.items() if n != "condition"}
    files = digest_files(whole.folder)
    write_manifest(whole.folder, whole.manifest.model_copy(update={"graphs": names, "files": files}))
    with pytest.raises(BundleInvalid, match="'denoiser' takes c, and no graph 'condition'"):
        Engine(read_bundle(whole.folder), SessionPolicy(provider="cpu"))


def test_a_voxel_on_the_latent_grid_has_its_cell(make_bundle: MakeBundle) -> None:
    latent, _ = parameters(make_bundle().manifest)
    assert latent_start(latent, (4, 8, 12)) == (2, 2, 3)
    with pytest.raises(ValueError, match="has latent and sampler"):
        parameters(make_bundle().manifest.model_copy(update={"latent": None}))


def test_a_decoder_may_paint_onto_the_source(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(lift=0.2)
    graphs = open_graphs(bundle, SessionPolicy(provider="cpu")).graphs
    x = np.random.default_rng(2).uniform(-1, 1, (1, 1, *bundle.manifest.tile)).astype(np.float32)
    decode = graphs["decoder"]

    class OntoSource:
        inputs: ClassVar = {"z": (), "x": ()}

        def __call__(self, z: np.ndarray, x: np.ndarray) -> np.ndarray:
            return x + decode(z=z)

    with_source = {**graphs, "decoder": OntoSource()}
    alone, onto = (
        FAMILIES["s2ldm"].translate(bundle.manifest, g, NOISE, x, (0, 0, 0)) for g in (graphs, with_source)
    )
    np.testing.assert_allclose(onto, x + alone, atol=1e-6)
