"""Which region, and whose network, the operator says an address is in: the longest prefix of a map decides.

The map is a text, one network a line: `CIDR region [carrier]`, with `#` before comments. An IPv4 address or network in
IPv6 form (`::ffff:192.0.2.1`) is the IPv4 one (RFC 4291, section 2.5.5.2).

Prefixes lie in one dict for each length that occurs, the longest first: a lookup costs as many dict lookups as there
are lengths, however many prefixes there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import msgspec

from scheduler.core.document import Fault, Faults, shown
from scheduler.core.places import carrier_of

__all__ = ["Address", "Network", "Networks", "is_public", "parse_address", "parse_networks"]


class Address(msgspec.Struct, frozen=True, gc=False):
    """An IP address: its canonical text, whether it has 32 or 128 bits, and its value."""

    text: str
    bits: int
    number: int


class Network(msgspec.Struct, frozen=True):
    """A line of the map. `carrier` is "" where the operator names none."""

    cidr: IPv4Network | IPv6Network
    region: str
    carrier: str = ""


class Networks:
    """The map, immutable. Of two networks that hold an address, the smaller one counts."""

    __slots__ = ("_lengths", "regions")

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        """No network may be there twice."""
        lengths: dict[int, dict[int, dict[int, Network]]] = {32: {}, 128: {}}
        for network in networks:
            cidr = network.cidr
            shift = cidr.max_prefixlen - cidr.prefixlen
            prefixes = lengths[cidr.max_prefixlen].setdefault(shift, {})
            prefix = int(cidr.network_address) >> shift
            assert prefix not in prefixes
            prefixes[prefix] = network
        # A smaller shift is a longer prefix.
        self._lengths = {bits: tuple(sorted(by_shift.items())) for bits, by_shift in lengths.items()}
        self.regions = frozenset(network.region for network in self)
        """All regions that it names: what the operator does not have is a slip of the pen."""

    def __iter__(self) -> Iterator[Network]:
        for by_shift in self._lengths.values():
            for _, prefixes in by_shift:
                yield from prefixes.values()

    def lookup(self, address: Address) -> Network | None:
        """Return the smallest network that holds the address."""
        number = address.number
        for shift, prefixes in self._lengths[address.bits]:
            network = prefixes.get(number >> shift)
            if network is not None:
                return network
        return None


def parse_address(text: str) -> Address | None:
    """Return the address, or None if the text is none. A zone (`fe80::1%eth0`) is left out."""
    try:
        if ":" not in text:
            return Address(text, 32, int(IPv4Address(text)))
        text = text.partition("%")[0]
        address = IPv6Address(text)
    except ValueError:
        return None
    if address.ipv4_mapped is not None:
        return Address(str(address.ipv4_mapped), 32, int(address.ipv4_mapped))
    return Address(text, 128, int(address))


def is_public(address: Address) -> bool:
    """Return whether somebody on the internet can have the address: only those are in databases.

    Source: the IANA registries of special-purpose addresses (RFC 6890).
    """
    ip = IPv4Address(address.number) if address.bits == 32 else IPv6Address(address.number)
    return ip.is_global and not ip.is_multicast


def parse_networks(text: str) -> Networks | tuple[Fault, ...]:
    """Read the map, or return what is wrong with it, in all of its lines."""
    networks: list[Network] = []
    faults = Faults()
    lines: dict[IPv4Network | IPv6Network, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        network = _parse_line(words)
        if isinstance(network, str):
            faults.add(number, network)
        elif network.cidr in lines:
            faults.add(number, f"{network.cidr} stands on line {lines[network.cidr]} already")
        else:
            lines[network.cidr] = number
            networks.append(network)
    return faults.listed() if faults else Networks(networks)


def _parse_line(words: list[str]) -> Network | str:
    """Return the network, or what is wrong."""
    cidr = _parse_cidr(words[0])
    if isinstance(cidr, str):
        return cidr
    if len(words) == 1:
        return f"a region must follow {words[0]}"
    if len(words) > 3:
        return f"{shown(words[3])} is one word too many: a line is `CIDR region [carrier]`"
    carrier = words[2] if len(words) == 3 else ""
    return Network(cidr, words[1], carrier_of(carrier) or carrier)


def _parse_cidr(text: str) -> IPv4Network | IPv6Network | str:
    try:
        cidr = ip_network(text, strict=False)
    except ValueError:
        return f"{shown(text)} is no network in CIDR form, such as 192.0.2.0/24 or 2001:db8::/32"
    try:
        ip_network(text)
    except ValueError:
        return f"{text} has bits set behind its prefix: {cidr} is the network around it"
    if isinstance(cidr, IPv6Network) and cidr.network_address.ipv4_mapped is not None:
        # Bits of the prefix may be set up to the 96th only, so that it is at least as long.
        return IPv4Network((int(cidr.network_address.ipv4_mapped), cidr.prefixlen - 96))
    return cidr
