from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Event, Thread

import pytest

from config.settings import ListenSettings
from node.peers import REJECTIONS, AllowList, Rejection, Role, Slots

LISTS = ListenSettings(
    ae_title="S2NODE",
    allow_ae_titles=("SCANNER", "PACS"),
    allow_addresses=("10.1.0.0/16", "192.168.7.9", "2001:db8::/32"),
)


def rejection(listen: ListenSettings, **changes: str) -> Rejection | None:
    peer = {"called": "S2NODE", "calling": "SCANNER", "address": "10.1.2.3", **changes}
    return AllowList(listen).rejection(**peer)


@pytest.mark.parametrize(
    "address", ["10.1.2.3", "192.168.7.9", "2001:db8::5", "::ffff:10.1.2.3", "2001:db8::5%eth0"]
)
def test_an_address_on_the_list_is_let_in(address: str) -> None:
    assert rejection(LISTS, address=address) is None


@pytest.mark.parametrize(
    "address", ["10.2.0.1", "192.168.7.8", "::1", "::ffff:10.2.0.1", "", "scanner.example"]
)
def test_any_other_address_is_not(address: str) -> None:
    assert rejection(LISTS, address=address) is REJECTIONS["address"]


@pytest.mark.parametrize("calling", ["", "scanner", "SCANNER2"])
def test_a_calling_title_that_is_not_on_the_list_is_rejected(calling: str) -> None:
    assert rejection(LISTS, calling=calling) is REJECTIONS["calling"]


def test_titles_are_compared_without_their_padding() -> None:
    assert rejection(LISTS, calling="  PACS ", called="S2NODE  ") is None


def test_a_call_for_somebody_else_is_rejected_even_with_empty_lists() -> None:
    assert rejection(ListenSettings(), calling="ANYONE", address="8.8.8.8") is None
    assert rejection(ListenSettings(), called="OTHER") is REJECTIONS["called"]


def test_every_rejection_is_one_the_standard_has() -> None:
    reasons = {(1, 1): {1, 3, 7}, (2, 3): {2}}
    for given in REJECTIONS.values():
        assert given.reason in reasons[given.result, given.source]


ROLES = ListenSettings(
    store_ae_titles=("CT1", "CT2"), store_addresses=("10.1.0.0/16",), echo_ae_titles=("ADMIN", "CT1")
)


@pytest.mark.parametrize(
    ("calling", "address", "roles"),
    [
        ("CT1", "10.1.2.3", {Role.STORE, Role.ECHO}),
        ("CT2", "10.1.2.3", {Role.STORE}),
        ("CT2 ", "10.2.2.3", set()),
        ("CT1", "10.2.2.3", {Role.ECHO}),
        ("ADMIN", "::1", {Role.ECHO}),
    ],
)
def test_a_peer_may_do_what_the_lists_of_the_role_say(calling: str, address: str, roles: set[Role]) -> None:
    assert AllowList(ROLES).roles(calling=calling, address=address) == roles
    assert AllowList(ListenSettings()).roles(calling=calling, address=address) == set(Role)


@pytest.fixture
def alive() -> Iterator[Callable[[], Thread]]:
    """Threads that live until the test ends, as associations do."""
    ended = Event()

    def start() -> Thread:
        thread = Thread(target=ended.wait)
        thread.start()
        return thread

    yield start
    ended.set()


def test_one_peer_cannot_have_every_association(alive: Callable[[], Thread]) -> None:
    slots = Slots(ListenSettings(max_associations_per_address=3, max_associations_per_ae_title=2))
    asked = [("CT1", "10.1.1.1"), ("CT1 ", "10.1.1.1"), ("CT1", "10.1.1.1")]
    given = [slots.rejection(alive(), calling=title, address=address) for title, address in asked]
    assert given == [None, None, REJECTIONS["full"]]
    given = [slots.rejection(alive(), calling=f"MR{n}", address="10.1.1.1") for n in range(2)]
    assert given == [None, REJECTIONS["full"]]


def test_nobody_is_shut_out_by_another_who_uses_his_title(alive: Callable[[], Thread]) -> None:
    slots = Slots(ListenSettings(max_associations_per_ae_title=2))
    given = [slots.rejection(alive(), calling="CT1", address="10.1.1.66") for _ in range(3)]
    assert given == [None, None, REJECTIONS["full"]]
    assert slots.rejection(alive(), calling="CT1", address="10.1.1.5") is None


def test_a_slot_is_free_when_its_association_has_ended() -> None:
    slots = Slots(ListenSettings(max_associations_per_ae_title=1))
    for _ in range(3):
        over = Thread(target=lambda: None)
        assert slots.rejection(over, calling="CT1", address="10.1.1.1") is None
        over.start()
        over.join()
