"""The archive keeps what it is sent and finds it again; the clients say what became of every file."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    MPEG2MPML,
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from pynetdicom import AE, build_context, evt

from config.settings import StoreDestination
from node.archive import Archive, matches
from node.commitment.wire import PUSH_MODEL, PUSH_MODEL_INSTANCE, Named, read, written
from node.errors import DestinationRefused, DestinationUnreachable
from node.ledger import Reference
from node.scu import NO_CONTEXT, dicom_files, echo, find, outcome_words, send


def ct(series: int, number: int, study: int = 1, syntax: str = ExplicitVRLittleEndian) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = f"1.2.3.{study}.{series}.{number}"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.SeriesInstanceUID, ds.StudyInstanceUID = f"1.2.3.{study}.{series}", f"1.2.3.{study}"
    ds.PatientName, ds.PatientID, ds.StudyDate = "Phantom^Test", "P[1]", f"2025010{study}"
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "CT", series, number
    pixels = np.full((4, 4), number, dtype=np.uint16)
    ds.set_pixel_data(pixels, "MONOCHROME2", 16, generate_instance_uid=False)
    ds.file_meta.TransferSyntaxUID = syntax if syntax == ImplicitVRLittleEndian else ExplicitVRLittleEndian
    if syntax == RLELossless:
        ds.compress(RLELossless, generate_instance_uid=False)
    return ds


def saved(folder: Path, *datasets: Dataset) -> list[Path]:
    paths = [folder / f"{ds.SOPInstanceUID}.dcm" for ds in datasets]
    for path, ds in zip(paths, datasets, strict=True):
        ds.save_as(path, enforce_file_format=True)
    return paths


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive(tmp_path / "archive") as running:
        yield running


def peer(port: int, ae_title: str = "ARCHIVE") -> StoreDestination:
    return StoreDestination(
        name="peer", host="127.0.0.1", port=port, ae_title=ae_title, calling_ae_title="TEST", acse_timeout_s=5
    )


def peer_of(archive: Archive) -> StoreDestination:
    return peer(archive.port)


def query(level: str, **keys: str) -> Dataset:
    ds = Dataset()
    ds.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(ds, keyword, value)
    return ds


def test_what_is_sent_is_kept_as_it_was_and_found_at_every_level(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    paths = saved(tmp_path / "in", ct(1, 1), ct(1, 2), ct(2, 1), ct(1, 1, study=2))
    heard: list[int] = []
    sent = send(peer_of(archive), paths, heard.append)
    assert sent.is_complete and sent.outcomes == {0: 4} and heard == [1, 2, 3, 4]

    studies = find(
        peer_of(archive),
        query("STUDY", StudyInstanceUID="", NumberOfStudyRelatedSeries="", ModalitiesInStudy=""),
    )
    assert {(s.StudyInstanceUID, s.NumberOfStudyRelatedSeries) for s in studies} == {
        ("1.2.3.1", 2),
        ("1.2.3.2", 1),
    }
    series = find(
        peer_of(archive),
        query("SERIES", StudyInstanceUID="1.2.3.1", SeriesInstanceUID="", NumberOfSeriesRelatedInstances=""),
    )
    counts = {s.SeriesInstanceUID: s.NumberOfSeriesRelatedInstances for s in series}
    assert counts == {"1.2.3.1.1": 2, "1.2.3.1.2": 1}
    images = find(peer_of(archive), query("IMAGE", SeriesInstanceUID="1.2.3.1.1", SOPInstanceUID=""))
    assert len(images) == 2
    for path in paths:
        kept = dcmread(archive.path_of(dcmread(path).SOPInstanceUID))
        assert kept == dcmread(path)


def test_an_archive_remembers_headers_and_no_pixels(archive: Archive, tmp_path: Path) -> None:
    [path] = saved(tmp_path, ct(1, 1))
    send(peer_of(archive), [path])
    [header] = archive._index.values()
    assert header.SOPInstanceUID == dcmread(path).SOPInstanceUID
    assert "PixelData" not in header
    assert getattr(header, "buffer", None) is None


def committed(archive: Archive, port: int, references: tuple[Reference, ...], calling: str = "TEST") -> int:
    """The status of an N-ACTION under transaction 1.2."""
    ae = AE(ae_title=calling)
    assoc = ae.associate("127.0.0.1", port, contexts=[build_context(PUSH_MODEL)], ae_title="ARCHIVE")
    ds = written(Named("1.2", references))
    status, _ = assoc.send_n_action(ds, 1, PUSH_MODEL, PUSH_MODEL_INSTANCE)
    assoc.release()
    return int(status.Status)


def test_it_reports_to_those_it_was_introduced_to_what_it_has(archive: Archive, tmp_path: Path) -> None:
    send(peer_of(archive), saved(tmp_path, ct(1, 1)))
    has, lacks = Reference(CTImageStorage, "1.2.3.1.1.1"), Reference(CTImageStorage, "1.2.3.1.1.2")
    heard: Queue[Named] = Queue()
    ae = AE(ae_title="TEST")
    ae.add_supported_context(PUSH_MODEL, scu_role=True, scp_role=True)

    def hear(event: evt.Event) -> tuple[int, None]:
        heard.put(read(event.request.EventInformation, event.context.transfer_syntax))
        return 0, None

    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, hear)])
    try:
        assert committed(archive, archive.port, (has, lacks)) == 0x0124
        archive.introduce("TEST", "127.0.0.1", server.server_address[1])
        assert committed(archive, archive.port, (has, lacks)) == 0
        assert heard.get(timeout=60) == Named("1.2", (has,), ((lacks, 0x0112),))
        assert committed(archive, archive.port, ()) == 0x0115
    finally:
        server.shutdown()


def test_matching_knows_lists_ranges_wildcards_and_names(archive: Archive) -> None:
    headers = [ct(1, 1), ct(2, 1), ct(1, 1, study=2)]

    def found(**keys: str) -> int:
        return len(list(matches(headers, query("SERIES", **keys), "SERIES")))

    assert found(SeriesInstanceUID="1.2.3.1.1\\1.2.3.1.2") == 2
    assert found(StudyDate="20250102-") == 1
    assert found(StudyDate="-20250101") == 2
    assert found(StudyDate="20250101-20250102") == 3
    assert found(PatientName="phantom*") == 3
    assert found(PatientID="P[1]") == 3
    assert found(PatientID="P?1?") == 3
    assert found(Modality="MR") == 0
    assert found(AccessionNumber="7") == 0


def test_compressed_and_implicit_files_arrive_in_their_own_syntax(archive: Archive, tmp_path: Path) -> None:
    paths = saved(tmp_path, ct(1, 1, syntax=ImplicitVRLittleEndian), ct(1, 2, syntax=RLELossless))
    assert send(peer_of(archive), paths).is_complete
    kept = dcmread(archive.path_of("1.2.3.1.1.2"))
    assert kept.file_meta.TransferSyntaxUID == RLELossless
    assert np.all(kept.pixel_array == 2)


def test_an_archive_that_starts_again_knows_what_it_holds(tmp_path: Path) -> None:
    with Archive(tmp_path / "archive") as archive:
        send(peer_of(archive), saved(tmp_path, ct(1, 1)))
    (tmp_path / "archive" / "1" / "2").mkdir(parents=True)
    (tmp_path / "archive" / "1" / "2" / "junk.dcm").write_text("junk")
    with Archive(tmp_path / "archive") as archive:
        assert len(find(peer_of(archive), query("IMAGE", SOPInstanceUID=""))) == 1


def test_a_uid_that_would_leave_the_folder_is_refused(archive: Archive, tmp_path: Path) -> None:
    evil = ct(1, 1)
    path = tmp_path / "evil.dcm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evil.SeriesInstanceUID = "../../outside"
        evil.save_as(path, enforce_file_format=True)
        sent = send(peer_of(archive), [path])
    assert sent.outcomes == {0xA900: 1} and not sent.is_complete
    assert list(archive.folder.rglob("*.dcm")) == []


def test_files_that_are_no_dicom_are_named_and_not_sent(archive: Archive, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not an image")
    sent = send(peer_of(archive), [text])
    assert sent.not_dicom == (text,) and not sent.is_complete


def test_a_folder_is_walked_and_a_file_is_itself(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    one, hidden = tmp_path / "a" / "1", tmp_path / ".hidden"
    one.write_text(""), hidden.write_text("")
    assert dicom_files(tmp_path) == [one] and dicom_files(one) == [one]


def test_echo_answers_and_says_why_not(archive: Archive) -> None:
    echo(peer_of(archive))
    with pytest.raises(DestinationRefused, match="Called AE title not recognised"):
        echo(peer(archive.port, "OTHER"))


def test_nobody_at_the_port_is_unreachable() -> None:
    with pytest.raises(DestinationUnreachable, match="nobody answered"):
        echo(peer(1))


def test_a_query_without_a_level_is_refused(archive: Archive) -> None:
    with pytest.raises(DestinationRefused):
        find(peer_of(archive), query("PATIENT", PatientID=""))


def test_a_syntax_the_peer_does_not_take_is_counted(tmp_path: Path) -> None:
    ae = AE(ae_title="PLAIN")
    ae.add_supported_context(CTImageStorage, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    handlers: list[Any] = [(evt.EVT_C_STORE, lambda event: 0x0000)]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        video = ct(1, 1, syntax=RLELossless)  # encapsulated; as video nobody can decode it
        video.file_meta.TransferSyntaxUID = MPEG2MPML
        compressed, plain, other = saved(tmp_path, video, ct(1, 2), ct(1, 3, syntax=RLELossless))
        sent = send(peer(server.server_address[1], "PLAIN"), [compressed, plain])
        assert sent.outcomes == {NO_CONTEXT: 1, 0: 1} and not sent.is_complete
        with pytest.raises(DestinationRefused, match="presentation context"):
            send(peer(server.server_address[1], "PLAIN"), [compressed])
        assert send(peer(server.server_address[1], "PLAIN"), [other]).outcomes == {0: 1}
    finally:
        server.shutdown()


def test_outcomes_are_words_for_people() -> None:
    assert outcome_words(0xA700) == "0xA700 Refused: out of resources"
    assert outcome_words(0xB007) == "0xB007 Warning: other SOP class"
    assert outcome_words(0x0110) == "0x0110 Processing failure"
    assert outcome_words(NO_CONTEXT) == NO_CONTEXT


def test_the_port_of_an_archive_that_is_not_started_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="not started"):
        _ = Archive(tmp_path).port
