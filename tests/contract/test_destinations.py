"""What every entry of DESTINATIONS promises, run over every entry.

A new destination is one row of :data:`KINDS`.
"""

from dataclasses import dataclass
from typing import Any

import pytest
from pydicom import dcmread

from config.settings import FolderDestination, StoreDestination
from node.destinations import DESTINATIONS, PROBES
from node.destinations.answer import Verdict
from node.errors import DestinationUnreachable


@dataclass
class Place:
    """A destination that works, the same one gone away, and how to look into it."""

    settings: Any
    leave: Any
    datasets: Any


def a_peer(tmp_path, store_peer):
    peer = store_peer()
    settings = StoreDestination(
        name="pacs", host="127.0.0.1", port=peer.port, ae_title="PEER", connect_timeout_s=2
    )
    return Place(settings, peer.stop, lambda: peer.received)


def a_folder(tmp_path, store_peer):
    folder = tmp_path / "there"
    folder.mkdir()
    settings = FolderDestination(kind="folder", name="disk", path=folder)
    away = tmp_path / "away"
    return Place(
        settings, lambda: folder.rename(away), lambda: [dcmread(p) for p in folder.rglob("*") if p.is_file()]
    )


KINDS = {"cstore": a_peer, "folder": a_folder}


@pytest.fixture(params=KINDS)
def place(request, tmp_path, store_peer):
    return KINDS[request.param](tmp_path, store_peer)


def deliver(place, files):
    return DESTINATIONS[place.settings.kind](place.settings, files)


def test_every_destination_is_in_this_suite():
    assert set(KINDS) == set(DESTINATIONS) == set(PROBES)


def test_a_probe_looks_whether_somebody_is_there_and_leaves_nothing(place):
    probe = PROBES[place.settings.kind]
    probe(place.settings)
    assert list(place.datasets()) == []
    place.leave()
    with pytest.raises(DestinationUnreachable):
        probe(place.settings)


def test_each_file_gets_one_answer_and_arrives_equal(place, ct_files):
    answers = list(deliver(place, ct_files))
    assert [answer.path for answer in answers] == ct_files
    assert {answer.verdict for answer in answers} == {Verdict.DELIVERED}
    arrived = {ds.SOPInstanceUID: ds for ds in place.datasets()}
    assert {answer.sop_instance_uid for answer in answers} == set(arrived)
    for path in ct_files:
        sent = dcmread(path)
        assert arrived[sent.SOPInstanceUID] == sent


def test_an_answer_comes_after_the_file_has_arrived(place, ct_files):
    for number, answer in enumerate(deliver(place, ct_files), 1):
        assert answer.sop_instance_uid in {ds.SOPInstanceUID for ds in place.datasets()}
        assert len(place.datasets()) == number


def test_delivering_again_does_no_harm(place, ct_files):
    list(deliver(place, ct_files))
    answers = list(deliver(place, ct_files))
    assert {answer.verdict for answer in answers} == {Verdict.DELIVERED}
    assert len({ds.SOPInstanceUID for ds in place.datasets()}) == len(ct_files)


def test_a_destination_that_is_not_there_is_tried_again_later(place, ct_files):
    place.leave()
    with pytest.raises(DestinationUnreachable):
        next(deliver(place, ct_files))


def test_nothing_to_send_is_no_answer_or_an_unreachable_destination(place):
    assert list(deliver(place, [])) == []


def test_leaving_off_in_the_middle_keeps_what_arrived(place, ct_files):
    sending = deliver(place, ct_files)
    first = next(sending)
    sending.close()
    assert [ds.SOPInstanceUID for ds in place.datasets()] == [first.sop_instance_uid]
