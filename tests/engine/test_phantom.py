"""The abdomen phantom: same bits by seed and box, plausible anatomy, attenuation as drawn."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from engine.phantom import (
    LABELS,
    PHASES,
    Box,
    Phantom,
    PhantomOptions,
    draw_patient,
    make_phantom,
    organ_means,
)
from engine.phantom.__main__ import main
from engine.phantom.anatomy import stream
from engine.phantom.body import Build, draw_build
from engine.phantom.enhancement import Enhancement, draw_enhancement
from engine.volume import Volume

SMALL = PhantomOptions(shape=(48, 128, 128), spacing_mm=(6.0, 3.0, 3.0))
STILL = PhantomOptions(shape=(48, 192, 192), spacing_mm=(6.0, 2.0, 2.0), noise_hu=0.0)
SEEDS = (1, 4, 12)
CONTRACT_LABELS = {
    "fat", "muscle", "bone", "lung", "liver", "spleen", "pancreas", "renal_cortex", "renal_medulla",
    "stomach", "bowel", "aorta", "ivc", "portal_vein", "hepatic_veins", "renal_vessels", "lesion", "cyst",
    "table",
}  # fmt: skip


@cache
def still(seed: int) -> Phantom:
    return make_phantom(seed, STILL)


def drawn(count: int) -> list[tuple[Build, Enhancement]]:
    """Build and attenuation of the first patients."""
    builds = [draw_build(stream(seed, "build")) for seed in range(count)]
    return [(b, draw_enhancement(stream(n, "enhancement"), b.relative_size)) for n, b in enumerate(builds)]


def centre_mm(phantom: Phantom, label: str) -> np.ndarray:
    """LPS centre of a label."""
    index = np.argwhere(phantom.labels == LABELS[label]).mean(axis=0)
    return np.array(phantom.geometry.position_of(tuple(index)))


def millilitres(phantom: Phantom, *labels: str) -> float:
    voxels = sum(int((phantom.labels == LABELS[label]).sum()) for label in labels)
    return voxels * float(np.prod(phantom.geometry.spacing_mm)) / 1000


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_patient() -> None:
    draw_patient.cache_clear()
    first = make_phantom(5, SMALL)
    draw_patient.cache_clear()
    again, other = make_phantom(5, SMALL), make_phantom(6, SMALL)
    for phase in PHASES:
        assert first.phases[phase].tobytes() == again.phases[phase].tobytes()
    assert np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.labels, other.labels)


def test_phases_are_volumes_on_the_phantoms_grid() -> None:
    phantom = make_phantom(2, SMALL)
    assert tuple(phantom.phases) == PHASES
    for hu in phantom.phases.values():
        Volume(hu, phantom.geometry)
        assert hu.min() >= -1024
    assert phantom.labels.dtype == np.uint8


@pytest.mark.parametrize("breathing_mm", [0.0, 12.0])
@pytest.mark.parametrize("spacing", [(6.0, 3.0, 3.0), (5.0, 2.3, 1.9)])
def test_a_box_holds_the_voxels_of_the_whole_noise_included(
    breathing_mm: float, spacing: tuple[float, float, float]
) -> None:
    options = PhantomOptions((40, 130, 141), spacing, misregistration_mm=breathing_mm)
    whole, rng = make_phantom(7, options), np.random.default_rng(0)
    for _ in range(6):
        first = [int(rng.integers(0, n - w + 1)) for n, w in zip(options.shape, (9, 41, 53), strict=True)]
        box: Box = ((first[0], first[0] + 9), (first[1], first[1] + 41), (first[2], first[2] + 53))
        part, crop = make_phantom(7, options, box), tuple(slice(*span) for span in box)
        for phase in PHASES:
            assert np.array_equal(part.phases[phase], whole.phases[phase][crop])
        assert np.array_equal(part.labels, whole.labels[crop])
        assert part.geometry.origin_mm == whole.geometry.position_of((first[0], first[1], first[2]))


def test_every_tissue_of_the_contract_is_there() -> None:
    assert set(LABELS) >= CONTRACT_LABELS
    assert LABELS["air"] == 0
    assert len(set(LABELS.values())) == len(LABELS)
    seen = set(np.unique(still(4).labels))
    assert {LABELS[name] for name in CONTRACT_LABELS} <= seen


@pytest.mark.parametrize("seed", SEEDS)
def test_organ_sizes_are_those_of_adults(seed: int) -> None:
    phantom = still(seed)
    ranges = {
        ("liver",): (950, 2300),
        ("spleen",): (80, 400),
        ("pancreas",): (35, 130),
        ("renal_cortex", "renal_medulla"): (130, 420),
        ("aorta",): (40, 160),
        ("gallbladder",): (4, 60),
        ("stomach", "gut_content", "gut_gas", "bowel"): (400, 2500),
    }
    for labels, (least, most) in ranges.items():
        assert least < millilitres(phantom, *labels) < most, labels


@pytest.mark.parametrize("seed", SEEDS)
def test_the_liver_lies_right_and_the_spleen_left_behind(seed: int) -> None:
    phantom = still(seed)
    liver, spleen, aorta, ivc = (centre_mm(phantom, name) for name in ("liver", "spleen", "aorta", "ivc"))
    assert liver[0] < -30
    assert spleen[0] > 50
    assert spleen[1] > liver[1]
    assert ivc[0] < aorta[0]
    assert centre_mm(phantom, "canal")[1] > aorta[1]
    assert centre_mm(phantom, "lung")[2] > liver[2]
    assert centre_mm(phantom, "stomach")[0] > 0
    assert centre_mm(phantom, "table")[1] > centre_mm(phantom, "canal")[1]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("phase", PHASES)
def test_measured_organ_means_are_the_attenuation_drawn(seed: int, phase: str) -> None:
    fine = PhantomOptions((32, 192, 192), (4.0, 2.0, 2.0), noise_hu=0.0, phases=(phase,))
    phantom = make_phantom(seed, fine)
    means = organ_means(phantom.phases[phase], phantom.labels, erode=2, least_voxels=60)
    tolerances = {"liver": 3, "spleen": 4, "renal_cortex": 8, "aorta": 3, "muscle": 4, "fat": 3, "marrow": 12}
    for organ, tolerance in tolerances.items():
        assert means[organ] == pytest.approx(phantom.truth[phase][organ], abs=tolerance), organ
    assert means["ivc"] == pytest.approx(phantom.truth[phase]["ivc"], abs=20)


def test_cysts_fat_and_bone_do_not_enhance() -> None:
    phantom = still(4)
    means = {phase: organ_means(phantom.phases[phase], phantom.labels) for phase in PHASES}
    for organ, most in {"cyst": 3, "fat": 4, "bone": 6, "gallbladder": 4, "gut_gas": 3, "table": 1}.items():
        rise = max(abs(means[phase][organ] - means["ncct"][organ]) for phase in PHASES)
        assert rise < most, organ
    assert 2 < means["venous"]["muscle"] - means["ncct"]["muscle"] < 25


def test_enhancement_follows_the_phases() -> None:
    patients = [enhancement for _, enhancement in drawn(200)]

    def mean(phase: str, organ: str) -> float:
        return float(np.mean([patient.hu[phase][organ] for patient in patients]))

    assert 240 < mean("arterial", "aorta") < 360
    assert 120 < mean("venous", "aorta") < 180
    assert mean("arterial", "renal_cortex") > 2 * mean("arterial", "renal_medulla")
    assert mean("venous", "portal_vein") > mean("arterial", "portal_vein") + 40
    assert mean("arterial", "hepatic_veins") < 80 < mean("venous", "hepatic_veins")
    assert mean("venous", "liver") > mean("arterial", "liver") + 20
    assert 5 < mean("ncct", "liver") - mean("ncct", "aorta") + 5 < 20


def test_the_level_of_enhancement_hardly_shows_in_the_unenhanced_scan() -> None:
    patients = drawn(300)
    level = [enhancement.level for _, enhancement in patients]
    size = [build.relative_size for build, _ in patients]
    assert -0.65 < np.corrcoef(level, size)[0, 1] < -0.15
    for organ in ("aorta", "liver", "spleen", "renal_cortex"):
        native = [enhancement.hu["ncct"][organ] for _, enhancement in patients]
        assert abs(np.corrcoef(level, native)[0, 1]) < 0.15, organ
    aorta, spleen = ([e.hu["arterial"][organ] for _, e in patients] for organ in ("aorta", "spleen"))
    assert np.corrcoef(aorta, spleen)[0, 1] > 0.7


def test_a_patients_truth_is_the_attenuation_drawn_for_its_size() -> None:
    (build, enhancement), patient = drawn(9)[8], draw_patient(8)
    assert patient.build == build
    assert patient.enhancement == enhancement
    assert (
        make_phantom(8, SMALL, ((0, 1), (0, 1), (0, 1))).truth["venous"]["liver"]
        == enhancement.hu["venous"]["liver"]
    )


def test_breathing_moves_the_liver_but_not_the_spine() -> None:
    options = PhantomOptions((48, 128, 128), (4.0, 3.0, 3.0), 0.0, misregistration_mm=25.0)
    moved, still_ = (
        make_phantom(3, options),
        make_phantom(3, PhantomOptions((48, 128, 128), (4.0, 3.0, 3.0), 0.0)),
    )
    assert np.array_equal(moved.labels, still_.labels)
    assert np.array_equal(moved.phases["ncct"], still_.phases["ncct"])
    change = np.abs(moved.phases["venous"] - still_.phases["venous"])
    spine = np.isin(still_.labels, [LABELS[name] for name in ("disc", "canal", "marrow")])
    assert change[spine].mean() < 2.0
    assert change[still_.labels == LABELS["lung"]].mean() > 20.0


def test_the_field_of_view_decides_what_is_seen() -> None:
    near = make_phantom(1, PhantomOptions((20, 64, 64), (3.0, 1.5, 1.5), 0.0))
    assert LABELS["table"] not in near.labels
    assert LABELS["air"] not in near.labels
    single = make_phantom(1, PhantomOptions((1, 64, 64), (3.0, 6.0, 6.0), phases=("venous",)))
    assert tuple(single.phases) == ("venous",)
    assert tuple(single.truth) == ("venous",)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": (0, 10, 10)}, {"spacing_mm": (3.0, -1.0, 1.0)}, {"noise_hu": -1.0},
        {"noise_hu": float("nan")},
        {"misregistration_mm": -2.0}, {"misregistration_mm": float("inf")}, {"phases": ()},
        {"phases": ("delayed",)}, {"phases": ("ncct", "ncct")},
    ],
)  # fmt: skip
def test_options_that_cannot_be_made_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        PhantomOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "box", [((0, 0), (0, 5), (0, 5)), ((-1, 4), (0, 5), (0, 5)), ((0, 5), (0, 5), (0, 999))]
)
def test_a_box_outside_the_grid_is_refused(box: Box) -> None:
    with pytest.raises(ValueError, match="box"):
        make_phantom(0, SMALL, box)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="seed -1"):
        make_phantom(-1, SMALL)


def test_organ_means_leave_out_the_rim_and_small_rests() -> None:
    labels, hu = np.zeros((3, 12, 12), np.uint8), np.zeros((3, 12, 12), np.float32)
    labels[:, 2:10, 2:10] = LABELS["liver"]
    labels[1, 0, 0] = LABELS["spleen"]
    hu[:, 3:9, 3:9] = 60.0
    assert organ_means(hu, labels)["liver"] == 60.0
    assert organ_means(hu, labels, erode=0)["liver"] == pytest.approx(60 * 36 / 64)
    assert "spleen" not in organ_means(hu, labels, erode=0)
    with pytest.raises(ValueError, match="differ in shape"):
        organ_means(hu[:2], labels)


def test_the_timing_command_prints_a_line_for_each_way_of_making_a_phantom(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["phantom", "--time", "--repeat", "1"])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == ["whole", "crop, new patient", "crop, same patient"]
