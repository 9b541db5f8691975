"""Where a client is: a chain of sources, of which the first that knows the region decides.

    hint       the client names one of the operator's regions
    networks   the operator's map of networks names the region
    rtt        clients of the same prefix measured that another region is nearer than what follows says
    a database (mmdb, ip2region) knows the place, and a region serves the place
    country    the registries of addresses know the country, and a region serves the country
    default    the operator's region for all others

The carrier comes from the first source that knows it, be it one that did not decide. The place is that of the database
that decided; else the first that was found.

What an address gives without hint and round-trip times is remembered. A locator is immutable apart from that memory:
when maps, databases or regions change, another one takes its place and begins with none. Round-trip times are asked at
every request, so that what they teach counts at once.

Invariants:
    I1  What is remembered changes no answer.
    I2  At most `remembered_max` addresses are remembered: those asked for last.
    I3  Databases are asked for public addresses only, and what is wrong with one is counted and costs its answer alone.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import msgspec

from base.clock import Instant
from scheduler.core.networks import Address, Networks, is_public, parse_address
from scheduler.core.places import Found, widening
from scheduler.core.request import Location
from scheduler.core.rtt import Learned, RttTable, prefix_of

__all__ = ["Database", "Locator"]


class Database(Protocol):
    """Knows the place or the carrier of addresses. Never raises."""

    @property
    def name(self) -> str:
        """The source, as a location names it."""
        ...

    def find(self, address: Address) -> Found | None:
        """Return what it knows, `NOTHING` if that is nothing; None if what it has there cannot be read."""
        ...


class _Remembered(msgspec.Struct, frozen=True, gc=False):
    """What the address alone gives. `prefix` is -1 where round-trip times have no say."""

    location: Location
    prefix: int


class Locator:
    """The chain."""

    __slots__ = (
        "_country",
        "_databases",
        "_default",
        "_networks",
        "_places",
        "_regions",
        "_remembered",
        "_remembered_max",
        "_rtts",
        "faults",
    )

    def __init__(
        self,
        *,
        regions: Collection[str] = (),
        places: Mapping[str, str] | None = None,
        default: str = "",
        networks: Networks | None = None,
        rtts: RttTable | None = None,
        databases: Sequence[Database] = (),
        country: Callable[[str], str] | None = None,
        remembered_max: int = 65_536,
    ) -> None:
        """Make a locator that remembers nothing yet.

        Args:
            regions: all that the operator has: which hints are good.
            places: the region of a place: "CN-SH" or "CN".
            default: the region of those whom nothing knows; "" for none.
            networks: the operator's map.
            rtts: the learned table, which outlives the locator.
            databases: in the order in which to ask them.
            country: gives the country of an address ("CN"), or "".
            remembered_max: how many addresses to remember.
        """
        assert remembered_max > 0
        self._regions = frozenset(regions)
        self._places = {} if places is None else places
        self._default = default
        self._networks = Networks() if networks is None else networks
        self._rtts = RttTable() if rtts is None else rtts
        self._databases = tuple(databases)
        self._country = country
        self._remembered: OrderedDict[str, _Remembered] = OrderedDict()
        self._remembered_max = remembered_max
        self.faults: Counter[str] = Counter()
        """How often a database could not be read, by its name."""

    def __len__(self) -> int:
        return len(self._remembered)

    def locate(self, address: str, now: Instant, *, hint: str = "") -> Location:
        """Return where the client is.

        Args:
            address: the client's IP address, or whatever else it comes from; "" if that is not known.
            now: for what the table of round-trip times forgets.
            hint: the region that the client names.
        """
        known = self._remember(address)
        location = known.location
        if hint in self._regions:
            return Location(hint, location.place, location.carrier, "hint")
        if known.prefix >= 0:
            learned = self._rtts.learned(known.prefix, location.region, now)
            if learned is not None:
                return Location(learned.region, location.place, location.carrier, "rtt")
        return location

    def learned(self, address: str, now: Instant) -> Learned | None:
        """Return what round-trip times say against the rest of the chain, with the figures, where they decide."""
        known = self._remember(address)
        return self._rtts.learned(known.prefix, known.location.region, now) if known.prefix >= 0 else None

    def report(self, address: str, user: str, rtts: Mapping[str, int], now: Instant) -> None:
        """Take the times that a client measured: region to ms, 0 to 60,000. Where the map decides, they are dropped."""
        known = self._remember(address)
        if known.prefix >= 0:
            self._rtts.report(known.prefix, user, rtts, now)

    def check_invariants(self) -> None:
        """Assert I1 and I2; I1 costs a look into every database."""
        assert len(self._remembered) <= self._remembered_max, "I2"
        faults = self.faults.copy()
        for address, known in self._remembered.items():
            assert self._resolve(address) == known, "I1"
        self.faults = faults

    def _remember(self, address: str) -> _Remembered:
        known = self._remembered.get(address)
        if known is not None:
            self._remembered.move_to_end(address)
            return known
        if len(self._remembered) >= self._remembered_max:
            self._remembered.popitem(last=False)
        known = self._remembered[address] = self._resolve(address)
        return known

    def _resolve(self, text: str) -> _Remembered:
        address = parse_address(text)
        if address is None:
            return _Remembered(Location(self._default, source="default"), -1)
        network = self._networks.lookup(address)
        found = self._ask(address) if is_public(address) else Location()
        if network is not None:
            carrier = network.carrier or found.carrier
            return _Remembered(Location(network.region, found.place, carrier, "networks"), -1)
        if not found.region:
            found = Location(self._default, found.place, found.carrier, "default")
        return _Remembered(found, prefix_of(address))

    def _ask(self, address: Address) -> Location:
        """Ask the databases, then for the country; the region is "" if none serves a place that they say."""
        region = place = carrier = source = ""
        for database in self._databases:
            found = database.find(address)
            if found is None:
                self.faults[database.name] += 1
                continue
            carrier = carrier or found.carrier
            if not region:
                region = self._serving(found.place)
                if region:
                    place, source = found.place, database.name
                else:
                    place = place or found.place
            if region and carrier:
                break
        if not region and self._country is not None:
            country = self._country(address.text)
            region = self._serving(country)
            if region:
                place, source = country, "country"
            else:
                place = place or country
        return Location(region, place, carrier, source)

    def _serving(self, place: str) -> str:
        """Return the region that serves the place, "" if none does."""
        return next((self._places[key] for key in widening(place) if key in self._places), "")
