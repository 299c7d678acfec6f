"""Who may open an association, how many, and for what; and how the others are told (PS3.8 9.3.4)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from threading import Lock, Thread
from typing import Final

from config.settings import ListenSettings


@dataclass(frozen=True, slots=True)
class Rejection:
    """An A-ASSOCIATE-RJ: its result, source and reason fields (PS3.8 table 9-21), and words for our log."""

    result: int
    source: int
    reason: int
    words: str


class Role(Enum):
    """What a peer may want of the listener; who may ask for storage commitment is in ``requesters``."""

    STORE = "store"
    ECHO = "echo"


PERMANENT: Final = 1
TRANSIENT: Final = 2
SERVICE_USER: Final = 1
PRESENTATION: Final = 3
REJECTIONS: Final[dict[str, Rejection]] = {
    "called": Rejection(PERMANENT, SERVICE_USER, 7, "called AE title not recognised"),
    "calling": Rejection(PERMANENT, SERVICE_USER, 3, "calling AE title not in allow_ae_titles"),
    "address": Rejection(PERMANENT, SERVICE_USER, 1, "address not in allow_addresses"),
    "full": Rejection(TRANSIENT, PRESENTATION, 2, "as many associations as one peer may have"),
}
"""Every reason this node gives itself; pynetdicom adds 2-3-2, local limit exceeded."""


@dataclass(frozen=True, slots=True)
class Guests:
    """AE titles and blocks of addresses; an empty list lets anyone pass that the other lets pass."""

    titles: frozenset[str]
    networks: tuple[IPv4Network | IPv6Network, ...]

    @classmethod
    def of(cls, titles: Iterable[str], networks: Iterable[str]) -> Guests:
        """From the settings' two lists."""
        return cls(frozenset(titles), tuple(ip_network(each, strict=False) for each in networks))

    def knows_title(self, title: str) -> bool:
        """Whether this AE title may pass."""
        return not self.titles or title.strip() in self.titles

    def knows_address(self, address: str) -> bool:
        """Whether this address may pass; one that is none is on no list."""
        if not self.networks:
            return True
        try:
            found = _unmapped(ip_address(address))
        except ValueError:
            return False
        return any(found in network for network in self.networks)


class AllowList:
    """The settings' lists: who may associate, and for what."""

    def __init__(self, listen: ListenSettings) -> None:
        self._called = listen.ae_title
        self._all = Guests.of(listen.allow_ae_titles, listen.allow_addresses)
        self._by_role = {
            Role.STORE: Guests.of(listen.store_ae_titles, listen.store_addresses),
            Role.ECHO: Guests.of(listen.echo_ae_titles, listen.echo_addresses),
        }

    def knows_address(self, address: str) -> bool:
        """Whether anybody may associate from there."""
        return self._all.knows_address(address)

    def rejection(self, *, called: str, calling: str, address: str) -> Rejection | None:
        """Why this peer may not associate, or None."""
        if not self.knows_address(address):
            return REJECTIONS["address"]
        if called.strip() != self._called:
            return REJECTIONS["called"]
        return None if self._all.knows_title(calling) else REJECTIONS["calling"]

    def roles(self, *, calling: str, address: str) -> frozenset[Role]:
        """What a peer that may associate may do."""
        return frozenset(
            role
            for role, guests in self._by_role.items()
            if guests.knows_title(calling) and guests.knows_address(address)
        )


class Slots:
    """Associations that are open, by peer, so that one peer cannot have them all.

    A title is counted at its address: anybody may call himself what another is called.
    """

    def __init__(self, listen: ListenSettings) -> None:
        self._most_of_address = listen.max_associations_per_address
        self._most_of_title = listen.max_associations_per_ae_title
        self._guard = Lock()
        self._held: dict[Thread, tuple[str, str]] = {}

    def rejection(self, assoc: Thread, *, calling: str, address: str) -> Rejection | None:
        """Why this peer may not have one more, or None; then ``assoc`` has a slot until its thread ends."""
        title = calling.strip()
        with self._guard:
            self._held = {one: peer for one, peer in self._held.items() if one.is_alive()}
            peers = list(self._held.values())
            addresses = [each for each, _ in peers]
            if (
                addresses.count(address) >= self._most_of_address
                or peers.count((address, title)) >= self._most_of_title
            ):
                return REJECTIONS["full"]
            self._held[assoc] = (address, title)
            return None


def _unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """An IPv4 address that came to an IPv6 socket as itself."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
