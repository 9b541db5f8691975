"""The operator's regions: which places belong to each, and where its clients go when it has no room.

The order of regions for a client of region R is R itself, then those that R names in `spill`, then the others by the
great-circle distance; regions without coordinates come last, by name. (The config model is that of gdnsd's geoip
plugin: overrides, then a manual order, then distance.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

__all__ = ["Region", "Regions", "distance_km"]

EARTH_RADIUS_KM = 6_371.0


class Region(msgspec.Struct, frozen=True):
    """One region. `places` are countries ("CN") and subdivisions ("CN-SH") whose clients it serves first."""

    name: str
    places: tuple[str, ...] = ()
    latitude: float | None = None
    longitude: float | None = None
    spill: tuple[str, ...] = ()


class Regions:
    """All regions that the operator described. Nodes may be in others: those have no places and no coordinates."""

    def __init__(self, regions: Iterable[Region] = (), *, default: str = "") -> None:
        """`default` is the region of clients whom no locator knows; "" for none: they go anywhere."""
        self.all = tuple(regions)
        self.default = default
        self._by_name = {region.name: region for region in self.all}
        self.by_place = {place: region.name for region in self.all for place in region.places}

    def order(self, first: str, existing: Iterable[str]) -> tuple[str, ...]:
        """Return the existing regions in the order in which a client of region `first` should be sent there."""
        spill: Sequence[str] = self._by_name[first].spill if first in self._by_name else ()

        def rank(name: str) -> tuple[int, float, str]:
            if name == first:
                return 0, 0.0, name
            if name in spill:
                return 1, float(spill.index(name)), name
            return 2, self._distance(first, name), name

        return tuple(sorted(set(existing), key=rank))

    def _distance(self, one: str, other: str) -> float:
        here, there = self._by_name.get(one), self._by_name.get(other)
        if here is None or there is None:
            return math.inf
        if here.latitude is None or here.longitude is None or there.latitude is None or there.longitude is None:
            return math.inf
        return distance_km(here.latitude, here.longitude, there.latitude, there.longitude)


def distance_km(latitude: float, longitude: float, other_latitude: float, other_longitude: float) -> float:
    """Return the great-circle distance between two points in degrees (haversine formula)."""
    phi, other_phi = math.radians(latitude), math.radians(other_latitude)
    half_phi = (other_phi - phi) / 2
    half_lambda = math.radians(other_longitude - longitude) / 2
    h = math.sin(half_phi) ** 2 + math.cos(phi) * math.cos(other_phi) * math.sin(half_lambda) ** 2
    return 2 * EARTH_RADIUS_KM * math.asin(min(1.0, math.sqrt(h)))
