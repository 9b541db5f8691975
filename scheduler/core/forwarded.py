"""From where a request really came, when proxies stand in between.

Each proxy adds the address of who connected to it at the end of a header. So the header is read from its end: an entry
counts only if it was written by a proxy that is trusted, the first of them being the one that connected to us. The
first address that is no trusted proxy's is the client's; whatever stands before it, the client may have written itself.

Sources: RFC 7239 (Forwarded); the de-facto X-Forwarded-For, whose entries may carry a port.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

__all__ = ["Network", "client_address", "forwarded_for", "listed"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
ENTRIES_MAX = 32


def client_address(peer: str, entries: Sequence[str], trusted: Sequence[Network]) -> str:
    """Return the client's address in canonical text.

    Args:
        peer: who connected to us; returned as it is if it is no address.
        entries: what proxies wrote, the latest last.
        trusted: the networks of the proxies. With none, nothing that is written counts.
    """
    address = _parsed(peer)
    if address is None:
        return peer
    for entry in reversed(entries[-ENTRIES_MAX:]):
        if not any(address in network for network in trusted):
            break
        named = _parsed(_bare(entry))
        if named is None:
            break  # the proxy does not know ("unknown", "_hidden"), or wrote nonsense: itself is the best we have
        address = named
    return str(address)


def listed(header: str) -> list[str]:
    """Return the entries of X-Forwarded-For."""
    return [entry.strip() for entry in header.split(",") if entry.strip()]


def forwarded_for(header: str) -> list[str]:
    """Return the `for` parameter of each element of Forwarded, in order; "" for an element without one.

    Elements end at each comma, quoted or not: an address has none, and a quote that a client left open must not swallow
    what a proxy wrote after it.
    """
    return [_for(element) for element in header.split(",") if element.strip()]


def _for(element: str) -> str:
    for pair in element.split(";"):
        name, _, value = pair.partition("=")
        if name.strip().lower() == "for":
            return value.strip().strip('"')
    return ""


def _bare(entry: str) -> str:
    """Take away a port and the brackets of IPv6."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.partition(":")[0] if entry.count(":") == 1 else entry


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or ipaddress.IPv6Address(int(address))  # a zone means something on its host alone
    return address
