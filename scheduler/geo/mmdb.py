"""MaxMind DB files: GeoLite2, GeoIP2, DB-IP, IPinfo, or an operator's own in the same form.

Several files are one database: a City file knows the place and an ASN or ISP file the carrier. Which file knows what,
its type tells (`GeoLite2-City`); a file of an unknown type is asked for both.

A file is copied into memory before it is mapped, on Linux: whoever overwrites the original in place would otherwise end
this process by a bus error at the next lookup.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import maxminddb

from base.errors import ConfigError
from scheduler.core.networks import Address
from scheduler.core.places import NOTHING, Found, carrier_in_mmdb, place_in_mmdb

__all__ = ["MmdbDatabase"]

_WITH_PLACES = re.compile("city|country|enterprise|location", re.IGNORECASE)
_WITH_CARRIERS = re.compile("asn|isp|enterprise", re.IGNORECASE)
_UNREADABLE = (LookupError, RuntimeError, TypeError, ValueError)
"""InvalidDatabaseError is a RuntimeError; what else the reader meets in a damaged file is not documented."""


class _File:
    """One file, and what it is asked for."""

    __slots__ = ("has_carriers", "has_ipv6", "has_places", "reader")

    def __init__(self, path: Path) -> None:
        self.reader = _map(path)
        metadata = self.reader.metadata()
        places = _WITH_PLACES.search(metadata.database_type) is not None
        carriers = _WITH_CARRIERS.search(metadata.database_type) is not None
        self.has_places = places or not carriers
        self.has_carriers = carriers or not places
        self.has_ipv6 = metadata.ip_version == 6


class MmdbDatabase:
    """The files together. Of two that know the same, the one named first counts."""

    name = "mmdb"

    def __init__(self, files: Sequence[_File]) -> None:
        self._files = tuple(files)

    @classmethod
    def open(cls, paths: Sequence[Path]) -> MmdbDatabase:
        """Open the files.

        Raises:
            ConfigError: with one line for each file that cannot be used.
        """
        files: list[_File] = []
        errors: list[str] = []
        for path in paths:
            try:
                files.append(_File(path))
            except OSError as error:
                errors.append(f"{path}: {error.strerror or error}")
            except _UNREADABLE as error:
                errors.append(f"{path}: this is no MaxMind DB, or it is damaged ({error})")
        if errors:
            raise ConfigError(errors)
        return cls(files)

    def find(self, address: Address) -> Found | None:
        """Return what the files know; None if one of them has something there that cannot be read."""
        place = carrier = ""
        for file in self._files:
            wants_place = file.has_places and not place
            wants_carrier = file.has_carriers and not carrier
            if not (wants_place or wants_carrier) or (address.bits == 128 and not file.has_ipv6):
                continue
            try:
                record = file.reader.get(address.text)
            except _UNREADABLE:
                return None
            if record is None:
                continue
            if not isinstance(record, dict):
                return None
            if wants_place:
                place = place_in_mmdb(record)
            if wants_carrier:
                carrier = carrier_in_mmdb(record)
        return Found(place, carrier) if place or carrier else NOTHING


def _map(path: Path) -> maxminddb.Reader:
    if sys.platform != "linux":
        return maxminddb.open_database(path)
    content = path.read_bytes()
    copy = os.memfd_create(path.name)
    try:
        with open(copy, "wb", closefd=False) as file:
            file.write(content)
        return maxminddb.open_database(f"/proc/self/fd/{copy}")
    finally:
        os.close(copy)  # the mapping stays
