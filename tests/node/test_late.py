"""Late, repeated, interleaved, split: however slices come, a series is one job with each slice once."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    KeyObjectSelectionDocumentStorage,
    RLELossless,
)
from pynetdicom import AE

from config.settings import Settings
from node.conflict import COMPARED_BYTES, Difference, has_same_pixels
from node.ledger import Ledger
from node.receive import COERCED
from node.scp import Scp
from node.service import Node as Service
from node.spool import Spool
from node.states import State

SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless]


class Node:
    """The receiving half of a node on loopback."""

    def __init__(self, folder: Path, port: int, opened: ExitStack) -> None:
        settings = Settings.model_validate(
            {"listen": {"port": port}, "storage": {"data_dir": folder, "min_free_bytes": 0}}
        )
        self.spool = Spool(folder)
        self.ledger = opened.enter_context(Ledger(folder / "ledger.sqlite3"))
        self.scp = opened.enter_context(Scp(settings, self.ledger, self.spool))

    def send(self, *instances: Dataset) -> list[int]:
        """Statuses of the instances, sent in this order over one association."""
        ae = AE("SENDER")
        for context in {(ds.SOPClassUID, ds.file_meta.TransferSyntaxUID) for ds in instances}:
            ae.add_requested_context(*context)
        assoc = ae.associate("127.0.0.1", self.scp.port, ae_title="S2NODE")
        assert assoc.is_established
        answers = [int(assoc.send_c_store(ds).Status) for ds in instances]
        assoc.release()
        return answers

    def held(self, series: str) -> list[str]:
        """SOP Instance UIDs of the living job of a series."""
        return [each.sop_instance_uid for each in self.ledger.instances(self.ledger.find_jobs(series)[-1].id)]


@pytest.fixture
def node(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Node]:
    with ExitStack() as opened:
        yield Node(tmp_path / "data", free_port(), opened)


def ct(number: int, series: str = "2.25.20", pixels: int = 0, **values: object) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"{series}.{number}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "2.25.10", series
    ds.PatientName, ds.Modality, ds.InstanceNumber = "DOE^JANE", "CT", number
    ds.Rows = ds.Columns = 8
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 15, 1, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.add_new("PixelData", "OW", np.full((8, 8), pixels, np.int16).tobytes())
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = (
        CTImageStorage,
        ds.SOPInstanceUID,
    )
    return ds


def test_two_series_of_a_study_interleaved_on_one_association_are_two_jobs(node: Node) -> None:
    mixed = [ct(number, series) for number in range(1, 6) for series in ("2.25.20", "2.25.21")]
    assert node.send(*mixed) == [0] * 10
    assert [job.instances for job in node.ledger.jobs()] == [5, 5]
    for series in ("2.25.20", "2.25.21"):
        assert sorted(node.held(series)) == [f"{series}.{number}" for number in range(1, 6)]


def test_a_series_over_many_associations_at_once_is_one_job_with_each_slice_once(node: Node) -> None:
    def sender(part: int) -> None:
        for number in range(1 + part, 13, 4):
            assert node.send(ct(number), ct(1)) == [0, 0]

    threads = [threading.Thread(target=sender, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    (job,) = node.ledger.jobs()
    assert (job.generation, job.instances) == (1, 12)
    assert len(list((node.spool.root / "inbox" / "2.25.20").iterdir())) == 12


def test_a_late_slice_opens_a_generation_and_a_repeat_of_it_does_not(node: Node) -> None:
    node.send(ct(1), ct(2))
    (first,) = node.ledger.jobs()
    node.ledger.move(first.id, State.SETTLED, 1.0)
    node.ledger.move(first.id, State.READY, 1.0)
    assert node.send(ct(1), ct(3), ct(3), ct(2)) == [0] * 4
    old, new = node.ledger.find_jobs("2.25.20")
    assert (old.state, new.state, new.generation, new.instances) == (State.SUPERSEDED, State.RECEIVING, 2, 3)


def test_other_pixels_under_a_known_uid_are_set_aside_with_a_warning_and_shown(node: Node) -> None:
    answers = node.send(ct(1), ct(1, pixels=9), ct(1, pixels=9), ct(2))
    assert answers == [0, COERCED, COERCED, 0]
    (aside,) = node.ledger.set_aside()
    assert (aside.times, aside.calling_ae, aside.reason) == (2, "SENDER", "other pixels came first")
    assert dcmread(aside.path).pixel_array.max() == 9
    (job,) = node.ledger.jobs()
    assert (job.instances, job.state) == (2, State.RECEIVING)
    assert dcmread(node.ledger.instances(job.id)[0].path).pixel_array.max() == 0
    notes = [event.note for event in node.ledger.events(job.id) if event.note]
    assert notes == ["an instance from SENDER is in quarantine: other pixels came first"]


def other_series(number: int = 1, **values: object) -> Dataset:
    """Slice ``number`` with its UID, as one of another series."""
    return ct(number, SeriesInstanceUID="2.25.29", **values)


def test_a_uid_of_another_series_is_set_aside_with_a_warning_whatever_its_pixels(node: Node) -> None:
    answers = node.send(ct(1), ct(2), other_series(1), other_series(2, pixels=9), other_series(1), ct(1))
    assert answers == [0, 0, COERCED, COERCED, COERCED, 0]
    first, second = node.ledger.set_aside()
    assert [(each.times, each.calling_ae, each.reason) for each in (first, second)] == [
        (2, "SENDER", "an instance of another series came first"),
        (1, "SENDER", "an instance of another series came first"),
    ]
    assert dcmread(first.path).SeriesInstanceUID == "2.25.29"
    (job,) = node.ledger.jobs()
    assert (job.series_instance_uid, job.instances, job.state) == ("2.25.20", 2, State.RECEIVING)
    assert {dcmread(each.path).SeriesInstanceUID for each in node.ledger.instances(job.id)} == {"2.25.20"}
    notes = [event.note for event in node.ledger.events(job.id) if event.note]
    assert notes == ["an instance from SENDER is in quarantine: an instance of another series came first"] * 2
    assert node.ledger.counters() == {"quarantined": 3, "repeats": 1}
    assert node.scp.refused == {COERCED: 3}


def test_of_two_series_that_bring_one_uid_at_once_one_holds_it(node: Node) -> None:
    answers: list[int] = []

    def sender(ds: Dataset) -> None:
        answers.extend(node.send(ds))

    for number in range(1, 6):
        pair = [threading.Thread(target=sender, args=(make(number),)) for make in (ct, other_series)]
        for thread in pair:
            thread.start()
        for thread in pair:
            thread.join(120)
    assert sorted(answers) == [0] * 5 + [COERCED] * 5
    held = [uid for job in node.ledger.jobs() for uid in node.held(job.series_instance_uid)]
    assert sorted(held) == [f"2.25.20.{number}" for number in range(1, 6)]
    assert len(node.ledger.set_aside()) == 5


def test_other_bytes_that_come_over_many_associations_at_once_are_set_aside_for_each(node: Node) -> None:
    numbers = range(1, 9)
    assert node.send(*map(ct, numbers)) == [0] * 8
    answers: list[int] = []

    def sender() -> None:
        answers.extend(node.send(*(ct(number, pixels=9) for number in numbers)))

    threads = [threading.Thread(target=sender) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert answers == [COERCED] * 32
    assert [aside.times for aside in node.ledger.set_aside()] == [4] * 8


def test_what_a_crash_left_placed_and_not_recorded_holds_no_uid_and_is_set_aside_when_it_comes_again(
    node: Node,
) -> None:
    left = other_series(1)
    node.send(left)
    (job,) = node.ledger.jobs()
    (instance,) = node.ledger.instances(job.id)
    with node.ledger._store.writing() as db:  # the file is there, its transaction was never written
        for table in ("event", "instance"):
            db.execute(f"DELETE FROM {table}")
        db.execute("DELETE FROM job")
    assert node.send(ct(1)) == [0]
    assert instance.path.exists()
    assert node.send(left) == [COERCED]
    assert not instance.path.exists()
    (aside,) = node.ledger.set_aside()
    assert (aside.path.name, aside.sha256) == (instance.path.name, instance.sha256)
    assert node.held("2.25.20") == ["2.25.20.1"]


def test_what_is_not_answered_with_success_is_counted_by_status(node: Node) -> None:
    nameless = ct(3)
    nameless.StudyInstanceUID = "no UID"
    assert node.send(ct(1), ct(1, pixels=9), nameless, ct(1, pixels=9)) == [0, COERCED, 0xC000, COERCED]
    assert node.scp.refused == {COERCED: 2, 0xC000: 1}


def test_another_header_with_the_same_pixels_is_set_aside_in_silence(node: Node) -> None:
    assert node.send(ct(1), ct(1, PatientName="DOE^JOAN")) == [0, 0]
    (aside,) = node.ledger.set_aside()
    assert aside.reason == Difference.WORDS


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("RescaleSlope", "2"),
        ("RescaleIntercept", "0"),
        ("RescaleType", "US"),
        ("PixelSpacing", ["0.7", "0.8"]),
        ("ImagePositionPatient", ["0", "0", "5"]),
        ("ImageOrientationPatient", ["-1", "0", "0", "0", "1", "0"]),
        ("PixelRepresentation", 0),
    ],
)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_the_same_pixels_with_other_hu_or_geometry_are_set_aside_with_a_warning(
    node: Node, keyword: str, value: object, syntax: str
) -> None:
    first, other, without = placed(1), placed(1, **{keyword: value}), placed(1)
    delattr(without, keyword)
    for ds in (first, other, without):
        ds.file_meta.TransferSyntaxUID = syntax
    assert node.send(first, other, without) == [0, COERCED, COERCED]
    assert {aside.reason for aside in node.ledger.set_aside()} == {Difference.MEANING}


def test_the_same_numbers_in_another_spelling_or_a_long_header_are_no_other_geometry(node: Node) -> None:
    spelled = placed(1, RescaleSlope="1.0", ImagePositionPatient=["0.0", "0", "0.00"])
    large = placed(1, ImageComments="x" * 1_000, PatientName="DOE^JOAN")
    large.add_new(0x00091010, "OB", bytes(2 * COMPARED_BYTES))
    assert node.send(placed(1), spelled, large) == [0, 0, 0]
    assert [aside.reason for aside in node.ledger.set_aside()] == [Difference.WORDS] * 2


def placed(number: int, **values: object) -> Dataset:
    """A slice with all that makes HU and places of its pixels."""
    given = {
        "RescaleSlope": "1",
        "RescaleIntercept": "-1024",
        "RescaleType": "HU",
        "PixelSpacing": ["0.8", "0.7"],
        "ImagePositionPatient": ["0", "0", "0"],
        "ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"],
    }
    return ct(number, **{**given, **values})


def enhanced(slope: str = "1", z_mm: str = "0", **values: object) -> Dataset:
    """One instance of Enhanced CT: what makes HU of its frame is shared, its place is the frame's."""
    ds = ct(1, SOPClassUID=EnhancedCTImageStorage, NumberOfFrames=1, **values)
    ds.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    transformation, plane, shared, frame = (Dataset() for _ in range(4))
    transformation.RescaleIntercept, transformation.RescaleSlope = "-1024", slope
    plane.ImagePositionPatient = ["0", "0", z_mm]
    shared.PixelValueTransformationSequence, frame.PlanePositionSequence = [transformation], [plane]
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [shared], [frame]
    return ds


@pytest.mark.parametrize("lacking", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
def test_the_same_frames_with_other_hu_or_geometry_are_set_aside_with_a_warning(
    node: Node, lacking: str
) -> None:
    without = enhanced()
    delattr(without, lacking)
    others = [enhanced(slope="3"), enhanced(z_mm="250"), without]
    assert node.send(enhanced(), *others, enhanced(PatientName="DOE^JOAN")) == [0, *[COERCED] * 3, 0]
    reasons = [aside.reason for aside in node.ledger.set_aside()]
    assert sorted(reasons) == [Difference.WORDS, *[Difference.MEANING] * 3]


def test_the_same_pixels_in_another_compression_count_as_others_since_nothing_is_decoded(node: Node) -> None:
    packed = ct(1)
    packed.compress(RLELossless, generate_instance_uid=False)
    assert node.send(ct(1), packed) == [0, COERCED]


def test_pixels_are_compared_to_their_end(tmp_path: Path) -> None:
    head, tag = bytes(200), b"\xe0\x7f\x10\x00"
    for name, data in {
        "a": head + tag + b"12",
        "b": b"x" + head + tag + b"12",
        "c": head + tag + b"123",
    }.items():
        (tmp_path / name).write_bytes(data)
    assert has_same_pixels(tmp_path / "a", tmp_path / "b")
    assert not has_same_pixels(tmp_path / "a", tmp_path / "c")
    assert not has_same_pixels(tmp_path / "c", tmp_path / "a")


@pytest.mark.peers
def test_dcmtk_sends_on_after_the_warning(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for name, ds in (("1", ct(1)), ("2", ct(1, pixels=9)), ("3", ct(2))):
        ds.save_as(folder / f"{name}.dcm", enforce_file_format=True)
    command = ["storescu", "-v", "-aet", "DCMTK", "-aec", "S2NODE", "127.0.0.1", str(node.scp.port)]
    done = subprocess.run(
        [*command, *map(str, sorted(folder.iterdir()))],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(node.held("2.25.20")) == ["2.25.20.1", "2.25.20.2"]
    assert [each.calling_ae for each in node.ledger.set_aside()] == ["DCMTK"]


def test_a_late_slice_after_delivery_ends_in_one_live_result_that_is_whole(
    quick_settings, store_peer, new_series
) -> None:
    peer = store_peer(sop_classes=(CTImageStorage, KeyObjectSelectionDocumentStorage))
    pacs = {"name": "pacs", "host": "127.0.0.1", "port": peer.port, "ae_title": "PEER"}
    settings = quick_settings(destinations=[pacs], retention={"rejected_days": 9, "check_s": 0.2})
    series = new_series(1)
    with Service(settings) as node:
        send(node.port, series[:-1])
        assert until(lambda: [job.state for job in node.ledger.jobs()] == [State.DELIVERED])
        first = set(peer.uids)
        send(node.port, series[-1:])
        done = [State.SUPERSEDED, State.DELIVERED, State.DELIVERED]
        assert until(lambda: [job.state for job in node.ledger.jobs()] == done)
        assert node.problems() == []
    kinds = [str(ds.Modality) for ds in peer.received]
    place = kinds.index("KO")
    assert kinds == ["CT"] * len(first) + ["KO"] + ["CT"] * 2 * len(series)
    note = peer.received[place]
    rejected = {
        item.ReferencedSOPInstanceUID
        for each in note.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        for item in each.ReferencedSOPSequence
    }
    assert rejected == first
    assert rejected.isdisjoint(peer.uids[place + 1 :])


def send(port: int, series: list[Dataset]) -> None:
    ae = AE(ae_title="CT")
    ae.add_requested_context(CTImageStorage)
    assoc = ae.associate("127.0.0.1", port, ae_title="S2NODE")
    assert [assoc.send_c_store(ds).Status for ds in series] == [0] * len(series)
    assoc.release()


def until(condition: Callable[[], bool], seconds: float = 120.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.02)
    return condition()
