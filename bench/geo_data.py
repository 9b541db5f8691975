"""Databases of addresses that are made up, in the form of real ones: for measuring and for tests."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["write_mmdb", "write_xdb"]

_HEADER_BYTES = 256
_VECTOR_BYTES = 256 * 256 * 8


def write_mmdb(path: Path, kind: str, records: Mapping[str, Any], *, ip_version: int = 6) -> None:
    """Write a MaxMind DB of that type, from networks in CIDR form to records."""
    from mmdb_writer import MMDBWriter
    from netaddr import IPSet  # type: ignore[import-untyped]

    writer = MMDBWriter(ip_version, kind, ipv4_compatible=ip_version == 6, int_type="u32")
    for cidr, record in records.items():
        writer.insert_network(IPSet([cidr]), record)
    writer.to_db_file(str(path))


def write_xdb(path: Path, ranges: Iterable[tuple[int, int, str]], *, bits: int = 32) -> None:
    """Write an xdb file of structure 3 from ranges (first address, last address, row), in ascending order.

    A header, an index by the first two bytes of an address, the rows, and the ranges, none of which crosses a border of
    two bytes: (first, last, length of the row, where it is). Numbers are little-endian, addresses of IPv6 big-endian.
    """
    rows: dict[str, int] = {}
    texts = bytearray()
    segments: list[tuple[int, int, int, int]] = []
    for first, last, row in ranges:
        encoded = row.encode()
        if row not in rows:
            rows[row] = _HEADER_BYTES + _VECTOR_BYTES + len(texts)
            texts += encoded
        segments += ((*part, len(encoded), rows[row]) for part in _cells(first, last, bits - 16))
    start = _HEADER_BYTES + _VECTOR_BYTES + len(texts)
    size = bits // 8
    index = bytearray()
    vector = bytearray(_VECTOR_BYTES)
    for first, last, length, pointer in segments:
        at = start + len(index)
        index += _bytes(first, size) + _bytes(last, size) + struct.pack("<HI", length, pointer)
        cell = 8 * (first >> bits - 16)
        (begun,) = struct.unpack_from("<I", vector, cell)
        struct.pack_into("<II", vector, cell, begun or at, start + len(index))
    end = start + len(index) - (2 * size + 6)
    header = struct.pack("<HHIIIHH", 3, 1, 0, start, end, 4 if bits == 32 else 6, 4).ljust(_HEADER_BYTES, b"\0")
    path.write_bytes(header + vector + texts + index)


def _cells(first: int, last: int, shift: int) -> Iterable[tuple[int, int]]:
    """Cut a range at the borders of 2 ** shift addresses."""
    while first <= last:
        border = (first >> shift) + 1 << shift
        yield first, min(last, border - 1)
        first = border


def _bytes(address: int, size: int) -> bytes:
    return address.to_bytes(size, "little" if size == 4 else "big")
