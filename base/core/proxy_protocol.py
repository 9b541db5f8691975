"""Whose connection it is, when a balancer in front says so: the PROXY protocol, versions 1 and 2.

A TCP balancer hides the client's address behind its own; what it knows goes ahead of the client's first byte, as one
line of text (version 1) or as a binary block (version 2). The first bytes tell the versions apart.

Decided here: who is believed to be at the other end, and how many bytes to skip. Not decided here: whether a header is
expected at all. That is the listener's configuration, never a guess from the bytes, because a client that may send a
header of its own can choose its address.

What the specification leaves open is settled like this:

| header                                             | outcome                                                     |
|----------------------------------------------------|-------------------------------------------------------------|
| LOCAL, UNKNOWN, UNSPEC                             | no source; what follows is skipped unread                   |
| UDP and UNIX addresses                             | no source, as for UNSPEC; the TLVs are read                 |
| command, family or transport without a meaning     | malformed                                                   |
| longer than `HEADER_BYTES_MAX`                     | malformed as soon as its length is read                     |
| a TLV over the end, a wrong or repeated CRC32C     | malformed                                                   |
| other TLVs, whatever their type                    | skipped                                                     |

Source: The PROXY protocol, versions 1 and 2 (HAProxy 2.9), sections 2.1 and 2.2; CRC32C as in RFC 4960, appendix B.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

__all__ = ["HEADER_BYTES_MAX", "Header", "Malformed", "parse"]

HEADER_BYTES_MAX = 4_096
"""Longest header taken. The specification promises 536; certificates' names in TLVs make it longer."""

V1_START = b"PROXY "
V1_BYTES_MAX = 107
V1_ADDRESSES: dict[bytes, type[IPv4Address | IPv6Address]] = {b"TCP4": IPv4Address, b"TCP6": IPv6Address}
PORT = re.compile(rb"0|[1-9][0-9]{0,4}")

V2_START = b"\r\n\r\n\x00\r\nQUIT\n"
V2_FIXED_BYTES = 16
LOCAL, PROXY = 0x20, 0x21  # the version and the command share a byte
TCP4, TCP6 = 0x11, 0x21  # and so do the family and the transport
ADDRESS_BYTES = {TCP4: 12, 0x12: 12, TCP6: 36, 0x22: 36, 0x31: 216, 0x32: 216}
TLV_FIXED_BYTES = 3
TLV_CRC32C, TLV_SSL = 0x03, 0x20
SSL_BYTES_MIN = 5
SSL_CLIENT_USED_TLS = 0x01


@dataclass(frozen=True, slots=True)
class Header:
    """A whole header. The client's own bytes begin at `length`."""

    source: tuple[str, int] | None
    """The client's host, in canonical form (IPv4 in IPv6 form as IPv4), and port.

    None: the socket's own peer is all that is known.
    """
    length: int
    tls: bool = False
    """Whether the balancer says that it ended the client's TLS. Version 1 cannot say so."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """No header, or a broken one: drop the connection."""

    reason: str


def parse(data: bytes) -> Header | Malformed | None:
    """Read the header at the start of a connection, of which `data` came so far. None: it is not all there yet.

    No more than `HEADER_BYTES_MAX` bytes are ever waited for, so that the caller's buffer is bounded.
    """
    if data.startswith(V1_START):
        return _parse_v1(data)
    if data.startswith(V2_START):
        return _parse_v2(data)
    if V1_START.startswith(data) or V2_START.startswith(data):
        return None
    return Malformed("no PROXY header")


def _host(address: IPv4Address | IPv6Address) -> str:
    # How Python writes a mapped address depends on its version; that it is an IPv4 one does not.
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


# ---------------------------------------------------------------- version 1: section 2.1


def _parse_v1(data: bytes) -> Header | Malformed | None:
    end = data.find(b"\r\n", 0, V1_BYTES_MAX)
    if end < 0:
        return None if len(data) < V1_BYTES_MAX else Malformed("no end of line in 107 bytes")
    family, *fields = data[len(V1_START) : end].split(b" ")
    length = end + 2
    if family == b"UNKNOWN":
        return Header(None, length)  # whatever else the line says must be ignored
    address = V1_ADDRESSES.get(family)
    if address is None or len(fields) != 4:
        return Malformed("not a line of version 1")
    try:
        source, _ = (address(_address_text(field)) for field in fields[:2])
    except ValueError:
        return Malformed("no address of the family that was announced")
    if not all(PORT.fullmatch(field) and int(field) <= 65_535 for field in fields[2:]):
        return Malformed("no port")
    return Header((_host(source), int(fields[2])), length)


def _address_text(field: bytes) -> str:
    """Raises ValueError on what no address may have in it."""
    if b"%" in field:
        raise ValueError("a zone means something to the sender's machine only")
    return field.decode("ascii")


# ---------------------------------------------------------------- version 2: section 2.2


def _parse_v2(data: bytes) -> Header | Malformed | None:
    # Each byte is judged as soon as it is there: what cannot become a header is not waited for.
    reason = _fault_in_fixed(data[len(V2_START) : V2_FIXED_BYTES])
    if reason is not None:
        return Malformed(reason)
    if len(data) < V2_FIXED_BYTES:
        return None
    length = V2_FIXED_BYTES + int.from_bytes(data[14:V2_FIXED_BYTES])
    if len(data) < length:
        return None
    kind = data[13]
    if data[12] == LOCAL or kind not in ADDRESS_BYTES:
        return Header(None, length)
    block = data[V2_FIXED_BYTES:length]
    tls = _read_tlvs(data[:length], V2_FIXED_BYTES + ADDRESS_BYTES[kind])
    if isinstance(tls, Malformed):
        return tls
    if kind == TCP4:
        return Header((_host(IPv4Address(block[:4])), int.from_bytes(block[8:10])), length, tls)
    if kind == TCP6:
        return Header((_host(IPv6Address(block[:16])), int.from_bytes(block[32:34])), length, tls)
    return Header(None, length, tls)


def _fault_in_fixed(fixed: bytes) -> str | None:
    """Return what is wrong with the version, family and length, as far as they have come (0 to 4 bytes)."""
    if fixed and fixed[0] not in {LOCAL, PROXY}:
        return "unknown version or command"
    is_local = fixed[:1] == bytes([LOCAL])
    if len(fixed) >= 2 and not is_local and (fixed[1] >> 4 > 3 or fixed[1] & 15 > 2):
        return "unknown family or transport"
    if len(fixed) == 4:
        length = int.from_bytes(fixed[2:])
        if V2_FIXED_BYTES + length > HEADER_BYTES_MAX:
            return "longer than 4 kB"
        if not is_local and length < ADDRESS_BYTES.get(fixed[1], 0):
            return "no room for the addresses"
    return None


def _read_tlvs(header: bytes, at: int) -> bool | Malformed:
    """Return whether the client used TLS. `at` is where the first TLV of the whole header begins."""
    tls = False
    checksum_at: int | None = None
    while at < len(header):
        value_at = at + TLV_FIXED_BYTES
        size = int.from_bytes(header[at + 1 : value_at])
        kind, at = header[at], value_at + size
        # A cut-off length field reads as a smaller one, and then its own three bytes are over the end.
        if at > len(header):
            return Malformed("a TLV goes over the end")
        if kind == TLV_SSL:
            if size < SSL_BYTES_MIN:
                return Malformed("an SSL TLV without its fixed part")
            tls = tls or bool(header[value_at] & SSL_CLIENT_USED_TLS)
        elif kind == TLV_CRC32C:
            if size != 4 or checksum_at is not None:
                return Malformed("a checksum of another length, or a second one")
            checksum_at = value_at
    if checksum_at is not None:
        after = checksum_at + 4
        announced = int.from_bytes(header[checksum_at:after])
        if announced != _crc32c(header[:checksum_at] + bytes(4) + header[after:]):
            return Malformed("wrong checksum")
    return tls


def _crc32c_row(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC32C_ROWS = tuple(map(_crc32c_row, range(256)))


def _crc32c(data: bytes) -> int:
    """Castagnoli's CRC. A byte at a time is enough: a header has some hundred, and a connection one header."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC32C_ROWS[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF
