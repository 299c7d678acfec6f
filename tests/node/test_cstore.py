import socket
import socketserver
import time
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from pynetdicom.sop_class import MRImageStorage

from config.settings import StoreDestination
from node.destinations import cstore
from node.destinations.answer import STORE_STATUSES, Verdict, store_status
from node.errors import DestinationRefused, DestinationUnreachable


def towards(peer, **options):
    quick = {"connect_timeout_s": 2, "acse_timeout_s": 2, "dimse_timeout_s": 2, "network_timeout_s": 2}
    return StoreDestination(
        name="pacs", host="127.0.0.1", port=peer.port, ae_title="PEER", **{**quick, **options}
    )


def answers_until_error(peer, files, **options):
    answers = []
    with pytest.raises((DestinationRefused, DestinationUnreachable)) as caught:
        for answer in cstore.deliver(towards(peer, **options), files):
            answers.append(answer)
    return answers, caught.value


def test_a_series_goes_over_one_association_in_its_order(store_peer, ct_files):
    peer = store_peer()
    answers = list(cstore.deliver(towards(peer), ct_files))
    assert [answer.status for answer in answers] == [0, 0, 0, 0]
    assert [answer.path for answer in answers] == ct_files
    assert peer.uids == [answer.sop_instance_uid for answer in answers]
    assert peer.associations == 1


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_what_arrives_is_equal_in_whatever_syntax_was_accepted(store_peer, ct_files, syntax):
    peer = store_peer(syntaxes=[syntax])
    list(cstore.deliver(towards(peer), ct_files))
    assert {ds.file_meta.TransferSyntaxUID for ds in peer.received} == {syntax}
    for path, received in zip(ct_files, peer.received, strict=True):
        assert received == dcmread(path)


def test_a_compressed_file_is_offered_as_it_is(store_peer, ct_files):
    for path in ct_files:
        ds = dcmread(path)
        ds.compress(RLELossless, generate_instance_uid=False)
        ds.save_as(path)
    peer = store_peer(syntaxes=[RLELossless])
    list(cstore.deliver(towards(peer), ct_files))
    assert {ds.file_meta.TransferSyntaxUID for ds in peer.received} == {RLELossless}
    assert [ds.PixelData for ds in peer.received] == [dcmread(path).PixelData for path in ct_files]


@pytest.mark.parametrize("accepted", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("syntax", [RLELossless, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_peer_that_takes_one_plain_syntax_gets_the_same_pixels_in_it(
    store_peer, ct_files, syntax, accepted
):
    originals = [dcmread(path) for path in ct_files]
    for path in ct_files:
        write_in(syntax, path)
    peer = store_peer(syntaxes=[accepted])
    answers = list(cstore.deliver(towards(peer), ct_files))
    assert [answer.status for answer in answers] == [0] * 4
    assert {ds.file_meta.TransferSyntaxUID for ds in peer.received} == {accepted}
    for original, received in zip(originals, peer.received, strict=True):
        assert received == original


def write_in(syntax, path):
    """Write a file of Explicit VR Little Endian again in another transfer syntax."""
    ds = dcmread(path)
    if syntax.is_compressed:
        ds.compress(syntax, generate_instance_uid=False)
    elif not syntax.is_little_endian:
        list(ds.iterall())  # decodes every element
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
        ds.set_original_encoding(is_implicit_vr=False, is_little_endian=False)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path)


def test_what_nobody_here_can_decode_is_offered_as_it_is_alone(store_peer, ct_files):
    for path in ct_files:
        ds = dcmread(path)
        ds.file_meta.TransferSyntaxUID = MPEG2MPML
        ds.PixelData = encapsulate([b"\x00\x01"])
        ds["PixelData"].is_undefined_length = True
        ds.save_as(path)
    peer = store_peer(syntaxes=[ExplicitVRLittleEndian])
    answers, error = answers_until_error(peer, ct_files)
    assert (answers, error.status) == ([], None)
    assert isinstance(error, DestinationRefused)


def test_a_warning_counts_as_delivered_and_is_kept(store_peer, ct_files):
    peer = store_peer(statuses=[0xB000, 0x0000, 0xB007])
    answers = list(cstore.deliver(towards(peer), ct_files))
    assert [answer.status for answer in answers] == [0xB000, 0, 0xB007, 0]
    assert {answer.verdict for answer in answers} == {Verdict.DELIVERED}


def test_a_peer_out_of_resources_is_asked_again_later_and_keeps_what_it_took(store_peer, ct_files):
    peer = store_peer(statuses=[0x0000, 0xA700])
    answers, error = answers_until_error(peer, ct_files)
    assert [answer.verdict for answer in answers] == [Verdict.DELIVERED, Verdict.WAIT]
    assert isinstance(error, DestinationUnreachable)
    assert "0xA700" in str(error)


def test_a_refused_instance_does_not_keep_the_others_from_going(store_peer, ct_files):
    peer = store_peer(statuses=[0x0000, 0xA900])
    answers, error = answers_until_error(peer, ct_files)
    assert [answer.status for answer in answers] == [0, 0xA900, 0, 0]
    assert answers[1].verdict is Verdict.REFUSED
    assert isinstance(error, DestinationRefused)
    assert error.status == 0xA900
    assert "1 of 4" in error.reason


def test_a_peer_that_breaks_off_keeps_what_it_took(store_peer, ct_files):
    peer = store_peer(statuses=[0x0000, 0x0000, None])
    answers, error = answers_until_error(peer, ct_files)
    assert len(answers) == 2
    assert isinstance(error, DestinationUnreachable)


def test_a_peer_that_does_not_answer_in_time_is_unreachable(store_peer, ct_files):
    peer = store_peer(delay_s=1.0)
    answers, error = answers_until_error(peer, ct_files, dimse_timeout_s=0.2, network_timeout_s=5)
    assert answers == []
    assert isinstance(error, DestinationUnreachable)


def test_where_nobody_listens_the_destination_is_unreachable(ct_files):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = StoreDestination(name="pacs", host="127.0.0.1", port=taken.getsockname()[1], ae_title="PEER")
        with pytest.raises(DestinationUnreachable):
            next(cstore.deliver(nobody, ct_files))


def test_a_host_nobody_knows_is_unreachable(ct_files):
    nowhere = StoreDestination(name="pacs", host="no-such-host.invalid", port=104, ae_title="PEER")
    with pytest.raises(DestinationUnreachable, match="no connection"):
        next(cstore.deliver(nowhere, ct_files))


@pytest.mark.parametrize("options", [{"ae_title": "WRONG"}, {"calling_ae_title": "STRANGER"}])
def test_a_wrong_ae_title_is_refused_for_good(store_peer, ct_files, options):
    peer = store_peer(calling=["S2NODE"])
    destination = towards(peer).model_copy(update=options)
    with pytest.raises(DestinationRefused, match="not recognised") as caught:
        next(cstore.deliver(destination, ct_files))
    assert caught.value.status is None


def test_a_peer_with_too_many_associations_is_asked_again_later(store_peer, ct_files):
    peer = store_peer()
    peer._server.ae.maximum_associations = 1
    first = cstore.deliver(towards(peer), ct_files)
    next(first)
    with pytest.raises(DestinationUnreachable, match="for now"):
        next(cstore.deliver(towards(peer), ct_files))
    first.close()


def test_a_peer_that_takes_no_ct_is_refused_before_anything_is_sent(store_peer, ct_files):
    peer = store_peer(sop_classes=[MRImageStorage])
    answers, error = answers_until_error(peer, ct_files)
    assert answers == []
    assert isinstance(error, DestinationRefused)
    assert error.status is None


def test_a_peer_that_takes_some_classes_only_is_refused_before_anything_is_sent(store_peer, ct_files):
    ds = dcmread(ct_files[-1])
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = MRImageStorage
    ds.save_as(ct_files[-1])
    peer = store_peer(sop_classes=[CTImageStorage])
    _, error = answers_until_error(peer, ct_files)
    assert isinstance(error, DestinationRefused)
    assert "MR Image Storage" in error.reason
    assert peer.received == []


def test_leaving_off_in_the_middle_releases_the_association(store_peer, ct_files):
    peer = store_peer()
    sending = cstore.deliver(towards(peer), ct_files)
    next(sending)
    sending.close()
    assert len(peer.received) == 1
    assert list(cstore.deliver(towards(peer), ct_files[1:]))
    assert peer.associations == 2


@pytest.fixture
def many_files(ct_files, tmp_path, monkeypatch):
    """Sixteen slices, which are worth up to four associations here."""
    monkeypatch.setattr(cstore, "FILES_OF_A_LINE", 4)
    (tmp_path / "many").mkdir()
    paths = []
    for number in range(16):
        ds = dcmread(ct_files[number % len(ct_files)])
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"2.25.77.{number}"
        paths.append(tmp_path / "many" / f"{number:02d}.dcm")
        ds.save_as(paths[-1])
    return paths


def test_over_two_associations_everything_arrives_once_and_every_answer_is_heard(store_peer, many_files):
    peer = store_peer(delay_s=0.02)
    answers = list(cstore.deliver(towards(peer, associations=2), many_files))
    assert peer.associations == 2
    assert sorted(peer.uids) == sorted(answer.sop_instance_uid for answer in answers)
    assert sorted(answer.path for answer in answers) == many_files
    assert {answer.status for answer in answers} == {0}


def test_no_more_associations_are_opened_than_the_files_are_worth(store_peer, ct_files, many_files):
    peer = store_peer(delay_s=0.02)
    list(cstore.deliver(towards(peer, associations=8), many_files))
    assert peer.associations == 4
    list(cstore.deliver(towards(peer, associations=8), ct_files))
    assert peer.associations == 5


def test_where_a_peer_accepts_fewer_associations_they_carry_everything(store_peer, many_files):
    peer = store_peer(delay_s=0.02)
    peer._server.ae.maximum_associations = 1
    answers = list(cstore.deliver(towards(peer, associations=3), many_files))
    assert peer.associations == 1
    assert sorted(answer.path for answer in answers) == many_files


def test_over_each_association_the_next_file_waits_until_the_answer_was_taken(store_peer, many_files):
    peer = store_peer()
    sending = cstore.deliver(towards(peer, associations=2), many_files)
    for taken in range(1, 6):
        next(sending)
        time.sleep(0.05)
        assert len(peer.received) <= taken + 1
    sending.close()
    assert len(peer.received) < len(many_files)


def test_what_one_association_breaks_off_ends_them_all_and_what_was_answered_is_heard(store_peer, many_files):
    peer = store_peer(statuses=[0, 0, 0, 0, None], delay_s=0.02)
    answers, error = answers_until_error(peer, many_files, associations=2)
    assert isinstance(error, DestinationUnreachable)
    assert sorted(answer.sop_instance_uid for answer in answers) == sorted(peer.uids)
    assert 4 <= len(answers) < len(many_files)


def test_a_peer_that_asks_to_wait_is_left_alone_over_every_association(store_peer, many_files):
    peer = store_peer(statuses=[0, 0, 0xA700], delay_s=0.02)
    answers, error = answers_until_error(peer, many_files, associations=2)
    assert isinstance(error, DestinationUnreachable)
    assert answers[-1].verdict is Verdict.WAIT
    assert len(peer.received) <= 4


def test_a_peer_that_takes_no_ct_is_refused_over_several_associations_too(store_peer, many_files):
    peer = store_peer(sop_classes=[MRImageStorage])
    answers, error = answers_until_error(peer, many_files, associations=2)
    assert answers == []
    assert isinstance(error, DestinationRefused)


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (0x0000, Verdict.DELIVERED),
        (0xB000, Verdict.DELIVERED),
        (0xB123, Verdict.DELIVERED),
        (0x0111, Verdict.DELIVERED),
        (0xA700, Verdict.WAIT),
        (0xA7FF, Verdict.WAIT),
        (0x0110, Verdict.WAIT),
        (0xA900, Verdict.REFUSED),
        (0xC001, Verdict.REFUSED),
        (0x0122, Verdict.REFUSED),
        (0x0124, Verdict.REFUSED),
        (0x7777, Verdict.REFUSED),
    ],
)
def test_a_status_means_what_the_standard_says(status, verdict):
    assert store_status(status).verdict is verdict


def test_no_status_stands_in_the_table_twice():
    named = [code for row in STORE_STATUSES for code in range(row.first, row.last + 1)]
    assert len(named) == len(set(named))


def test_a_probe_returns_where_somebody_answers_even_if_it_is_a_refusal(store_peer):
    peer = store_peer(calling=["S2NODE"])
    cstore.probe(towards(peer))
    cstore.probe(towards(peer, calling_ae_title="STRANGER"))
    assert peer.received == []


def test_a_probe_that_nobody_answers_says_so(store_peer):
    peer = store_peer()
    peer.stop()
    with pytest.raises(DestinationUnreachable):
        cstore.probe(towards(peer))


@pytest.mark.parametrize(
    ("result", "source", "reason", "error"),
    [
        (1, 1, 7, DestinationRefused),
        (1, 1, 3, DestinationRefused),
        (1, 2, 2, DestinationRefused),
        (1, 1, 1, DestinationUnreachable),
        (1, 3, 2, DestinationUnreachable),
        (2, 1, 7, DestinationUnreachable),
        (2, 3, 1, DestinationUnreachable),
    ],
)
def test_a_rejection_is_for_good_where_it_names_what_a_person_can_mend(
    ct_files, rejecting_peer, result, source, reason, error
):
    with pytest.raises(error, match="was rejected"):
        next(cstore.deliver(towards(rejecting_peer(result, source, reason)), ct_files))


@pytest.fixture
def rejecting_peer():
    """A listener that answers every association request with one A-ASSOCIATE-RJ (PS3.8 9.3.4)."""
    servers = []

    def start(result, source, reason):
        class Reject(socketserver.BaseRequestHandler):
            def handle(self):
                length = int.from_bytes(self.request.recv(6, socket.MSG_WAITALL)[2:])
                self.request.recv(length, socket.MSG_WAITALL)
                self.request.sendall(bytes([3, 0, 0, 0, 0, 4, 0, result, source, reason]))
                while self.request.recv(4096):  # what is unread when we close takes our answer with it
                    pass

        servers.append(socketserver.TCPServer(("127.0.0.1", 0), Reject))
        Thread(target=servers[-1].serve_forever, daemon=True).start()
        return SimpleNamespace(port=servers[-1].server_address[1])

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
