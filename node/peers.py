"""Who may open an association, and how the others are told (PS3.8 9.3.4)."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from config.settings import ListenSettings


@dataclass(frozen=True, slots=True)
class Rejection:
    """An A-ASSOCIATE-RJ: its result, source and reason fields (PS3.8 table 9-21), and words for our log."""

    result: int
    source: int
    reason: int
    words: str


PERMANENT: Final = 1
SERVICE_USER: Final = 1
REJECTIONS: Final[dict[str, Rejection]] = {
    "called": Rejection(PERMANENT, SERVICE_USER, 7, "called AE title not recognised"),
    "calling": Rejection(PERMANENT, SERVICE_USER, 3, "calling AE title not in allow_ae_titles"),
    "address": Rejection(PERMANENT, SERVICE_USER, 1, "address not in allow_addresses"),
}
"""Every reason this node gives itself; pynetdicom adds 2-3-2, local limit exceeded."""


class AllowList:
    """The settings' two lists; an empty one lets anyone pass that the other lets pass."""

    def __init__(self, listen: ListenSettings) -> None:
        self._called = listen.ae_title
        self._titles = frozenset(listen.allow_ae_titles)
        self._networks = tuple(ip_network(network, strict=False) for network in listen.allow_addresses)

    def rejection(self, *, called: str, calling: str, address: str) -> Rejection | None:
        """Why this peer may not associate, or None. An address that is none is not on the list."""
        if self._networks and not self._knows(address):
            return REJECTIONS["address"]
        if called.strip() != self._called:
            return REJECTIONS["called"]
        if self._titles and calling.strip() not in self._titles:
            return REJECTIONS["calling"]
        return None

    def _knows(self, address: str) -> bool:
        try:
            found = _unmapped(ip_address(address))
        except ValueError:
            return False
        return any(found in network for network in self._networks)


def _unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """An IPv4 address that came to an IPv6 socket as itself."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
