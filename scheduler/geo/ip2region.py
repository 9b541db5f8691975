"""ip2region files (xdb): Chinese provinces and carriers, offline. One file for IPv4, one for IPv6, both in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from ip2region import searcher, util

from base.errors import ConfigError
from scheduler.core.networks import Address
from scheduler.core.places import NOTHING, Found, from_ip2region, has_country_code

__all__ = ["Ip2RegionDatabase"]

_UNREADABLE = (IndexError, ValueError)
_SAMPLES = 1_024


class _File:
    """One file. Its rows are the same few thousand texts again and again."""

    __slots__ = ("bits", "read", "search")

    def __init__(self, path: Path) -> None:
        """Raises OSError and ValueError."""
        with path.open("rb") as file:
            content = util.load_content(file)
        header, version = _check(content)
        has_codes = _has_codes(content, header, version)
        self.bits = version.byte_num * 8
        self.search = searcher.new_with_buffer(version, content).search
        self.read = lru_cache(8_192)(lambda row: from_ip2region(row, has_codes=has_codes))


class Ip2RegionDatabase:
    """The files together."""

    name = "ip2region"

    def __init__(self, files: Mapping[int, _File]) -> None:
        self._files = files

    @classmethod
    def open(cls, paths: Sequence[Path]) -> Ip2RegionDatabase:
        """Open one file, or two of which one is for IPv6.

        Raises:
            ConfigError: with one line for each file that cannot be used.
        """
        files: dict[int, _File] = {}
        errors: list[str] = []
        for path in paths:
            try:
                file = _File(path)
            except OSError as error:
                errors.append(f"{path}: {error.strerror or error}")
            except _UNREADABLE as error:
                errors.append(f"{path}: this is no xdb file of ip2region, or it is damaged ({error})")
            else:
                if files.setdefault(file.bits, file) is not file:
                    errors.append(f"{path}: another file for addresses of {file.bits} bits is named before")
        if errors:
            raise ConfigError(errors)
        return cls(files)

    def find(self, address: Address) -> Found | None:
        """Return what the files know; None if what is there cannot be read."""
        file = self._files.get(address.bits)
        if file is None:
            return NOTHING
        try:
            row = file.search(address.number.to_bytes(address.bits // 8))
        except _UNREADABLE:
            return None
        return file.read(row)


def _check(content: bytes) -> tuple[util.Header, util.Version]:
    """Return which addresses the file is for. Raises ValueError if it is none, or cut short."""
    header = util.Header(content[: util.HeaderInfoLength].ljust(util.HeaderInfoLength, b"\0"))
    if header.version not in {util.XdbStructure20, util.XdbStructure30}:
        raise ValueError(f"its structure has version {header.version}")
    version = util.version_from_header(header)
    if version is None:
        raise ValueError(f"it is for IP version {header.ipVersion}")
    first = util.HeaderInfoLength + util.VectorIndexLength
    if not first <= header.startIndexPtr <= header.endIndexPtr <= len(content) - version.index_size:
        raise ValueError("its index is not where its header says")
    return header, version


def _has_codes(content: bytes, header: util.Header, version: util.Version) -> bool:
    """Look at rows all over the file: in the newer kind most have a country's code at the end.

    A few rows of the older kind look so, too, because of a carrier with two capitals for a name.
    """
    entries = range(header.startIndexPtr, header.endIndexPtr + 1, version.index_size)
    rows: list[str] = []
    for entry in entries[:: len(entries) // _SAMPLES + 1]:
        behind = entry + 2 * version.byte_num
        length, pointer = util.le_get_uint16(content, behind), util.le_get_uint32(content, behind + 2)
        rows.append(content[pointer : pointer + length].decode(errors="replace"))
    known = [row for row in rows if not row.startswith("0|") and row.rpartition("|")[2] not in {"", "0"}]
    return 2 * sum(map(has_country_code, known)) >= len(known)
