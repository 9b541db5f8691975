"""What a client asks for, and where it is, as every part of a decision sees it."""

from __future__ import annotations

import msgspec

__all__ = ["NOWHERE", "Location", "Request"]


class Location(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a client is, as far as anything could tell.

    `region` is one of the operator's, "" where none is known. `place` is a country (ISO 3166-1 alpha-2, "CN") or one
    of its subdivisions (ISO 3166-2, "CN-SH"); `carrier` a short name ("CT", "CU", "CM", "AS13335"); both "" if unknown.
    """

    region: str = ""
    place: str = ""
    carrier: str = ""
    source: str = "none"
    """Which locator said so: hint, networks, rtt, mmdb, ip2region, country, default; "none": nobody was asked."""


NOWHERE = Location()


class Request(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One access request. `address` is the client's IP address in canonical text, "" if it is not known."""

    user: str
    device: str = ""
    platform: str = ""
    app: str = ""
    """Version of the client's application, as it says: `5.1.0`."""
    address: str = ""
    location: Location = NOWHERE
