"""Which requests a rule is for: conditions on a request's fields, and all, any or none of several.

A condition is a value. `scheduler.core.condition_document` reads it from a document; it is written into recordings, and
compiled once into a function for the hot path. `explain` walks the same condition and says in words why it holds or
not.

What a request does not have, a field that is empty or an app version that is none, fulfils no condition on it. `not`
turns that round: `not: {app: "<5.0"}` holds for a client that does not say its version.

Source: ISO 3166-1 and -2 for places; RFC 4632 and RFC 4291 for networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from ipaddress import ip_address, ip_network
from operator import attrgetter
from typing import Final, Literal, NamedTuple, TypeAlias, assert_never

import msgspec

from scheduler.core.document import shown
from scheduler.core.request import Request
from scheduler.core.versions import is_in_range, parse_range, parse_version

__all__ = [
    "AddressIn",
    "All",
    "AnyOf",
    "AppIn",
    "Condition",
    "Field",
    "FieldIn",
    "Listed",
    "Lists",
    "Not",
    "PlaceIn",
    "Reason",
    "Test",
    "compile_condition",
    "explain",
    "list_names",
]

Field: TypeAlias = Literal["user", "device", "platform", "region", "carrier"]
Lists: TypeAlias = Mapping[str, frozenset[str]]
"""Named lists of values, one per list."""
Test: TypeAlias = Callable[[Request], bool]


class FieldIn(msgspec.Struct, frozen=True, tag="in"):
    """The field is one of these values, letter by letter."""

    field: Field
    values: tuple[str, ...]


class Listed(msgspec.Struct, frozen=True, tag="listed"):
    """The field is in the list of that name. A list that does not exist has nobody in it."""

    field: Field
    name: str


class PlaceIn(msgspec.Struct, frozen=True, tag="place"):
    """The client is in one of these countries (`CN`) or subdivisions (`CN-SH`)."""

    places: tuple[str, ...]


class AppIn(msgspec.Struct, frozen=True, tag="app"):
    """The app's version fulfils every comparison: `>=4.2 <5`."""

    range: str


class AddressIn(msgspec.Struct, frozen=True, tag="ip"):
    """The client's address is in one of these networks, in CIDR form. An IPv4 address in IPv6 form is IPv4."""

    networks: tuple[str, ...]


class All(msgspec.Struct, frozen=True, tag="all"):
    """Every one holds."""

    conditions: tuple[Condition, ...]


class AnyOf(msgspec.Struct, frozen=True, tag="any"):
    """At least one holds."""

    conditions: tuple[Condition, ...]


class Not(msgspec.Struct, frozen=True, tag="not"):
    """It does not hold."""

    condition: Condition


Condition: TypeAlias = FieldIn | Listed | PlaceIn | AppIn | AddressIn | All | AnyOf | Not


class Reason(NamedTuple):
    """Whether a condition holds for a request, and why, in words."""

    holds: bool
    text: str


# ---------------------------------------------------------------- on the hot path

_GET: Final[dict[Field, Callable[[Request], str]]] = {
    "user": attrgetter("user"),
    "device": attrgetter("device"),
    "platform": attrgetter("platform"),
    "region": attrgetter("location.region"),
    "carrier": attrgetter("location.carrier"),
}


def compile_condition(condition: Condition, lists: Lists) -> Test:
    """Return a function that says whether the condition holds. `lists` are looked up now, not at each call."""
    match condition:
        case FieldIn(field=field, values=values):
            return _is_in(_GET[field], frozenset(values))
        case Listed(field=field, name=name):
            return _is_in(_GET[field], lists.get(name, frozenset()))
        case PlaceIn(places=places):
            return _is_in_place(frozenset(places))
        case AppIn(range=version_range):
            is_in = _version_test(version_range)
            return lambda request: is_in(request.app)
        case AddressIn(networks=networks):
            is_in_network = _network_test(networks)
            return lambda request: is_in_network(request.address)
        case All(conditions=conditions):
            return _all_hold([compile_condition(each, lists) for each in conditions])
        case AnyOf(conditions=conditions):
            return _any_holds([compile_condition(each, lists) for each in conditions])
        case Not(condition=inner):
            test = compile_condition(inner, lists)
            return lambda request: not test(request)
        case _:
            assert_never(condition)


def _is_in(get: Callable[[Request], str], values: frozenset[str]) -> Test:
    if len(values) == 1:
        (only,) = values
        return lambda request: get(request) == only
    return lambda request: get(request) in values


def _is_in_place(places: frozenset[str]) -> Test:
    def test(request: Request) -> bool:
        place = request.location.place
        return place in places or place[:2] in places

    return test


def _all_hold(tests: list[Test]) -> Test:
    if len(tests) == 2:
        first, second = tests
        return lambda request: first(request) and second(request)
    return lambda request: all(test(request) for test in tests)


def _any_holds(tests: list[Test]) -> Test:
    if len(tests) == 2:
        first, second = tests
        return lambda request: first(request) or second(request)
    return lambda request: any(test(request) for test in tests)


def _version_test(version_range: str) -> Callable[[str], bool]:
    """Return a test of versions that remembers its answers: there are few versions and many clients of each."""
    bounds = parse_range(version_range)
    assert not isinstance(bounds, str), "ranges are checked when they are read"

    @lru_cache(maxsize=1_024)
    def test(app: str) -> bool:
        version = parse_version(app)
        return version is not None and is_in_range(version, bounds)

    return test


def _network_test(networks: tuple[str, ...]) -> Callable[[str], bool]:
    """Return a test of addresses: one look-up for each length of prefix, however many networks there are."""
    prefixes: dict[tuple[int, int], set[int]] = {}
    for each in networks:
        network = ip_network(each)
        shift = network.max_prefixlen - network.prefixlen
        prefixes.setdefault((network.version, shift), set()).add(int(network.network_address) >> shift)
    by_version = {
        family: [(shift, frozenset(held)) for (version, shift), held in prefixes.items() if version == family]
        for family in (4, 6)
    }

    def test(text: str) -> bool:
        try:
            address = ip_address(text)
        except ValueError:
            return False
        if address.version == 6 and address.ipv4_mapped:
            address = address.ipv4_mapped
        number = int(address)
        return any(number >> shift in held for shift, held in by_version[address.version])

    return test


# ---------------------------------------------------------------- in words


def explain(condition: Condition, request: Request, lists: Lists) -> Reason:
    """Return whether the condition holds and why."""
    match condition:
        case All(conditions=conditions):
            reasons = [explain(each, request, lists) for each in conditions]
            return Reason(all(each.holds for each in reasons), _joined(" and ", reasons))
        case AnyOf(conditions=conditions):
            reasons = [explain(each, request, lists) for each in conditions]
            return Reason(any(each.holds for each in reasons), _joined(" or ", reasons))
        case Not(condition=inner):
            reason = explain(inner, request, lists)
            return Reason(not reason.holds, f"not ({reason.text})")
        case _:
            return _explain_one(condition, request, lists)


def _explain_one(condition: FieldIn | Listed | PlaceIn | AppIn | AddressIn, request: Request, lists: Lists) -> Reason:
    holds = compile_condition(condition, lists)(request)
    match condition:
        case FieldIn(field=field, values=values):
            return _membership(field, _GET[field](request), _some(values), holds=holds)
        case Listed(field=field, name=name):
            group = f"the list {name}" if name in lists else f"the list {name}, which does not exist"
            return _membership(field, _GET[field](request), group, holds=holds)
        case PlaceIn(places=places):
            return _membership("place", request.location.place, _some(places), holds=holds)
        case AppIn(range=version_range):
            if request.app and parse_version(request.app) is None:
                return Reason(False, f"app {shown(request.app)} is no version, so not in {version_range}")
            return _membership("app", request.app, version_range, holds=holds)
        case AddressIn(networks=networks):
            return _membership("ip", request.address, _some(networks), holds=holds)
        case _:
            assert_never(condition)


def _membership(field: str, value: str, group: str, *, holds: bool) -> Reason:
    if not value:
        return Reason(False, f"{field} is not known, so not in {group}")
    return Reason(holds, f"{field} {shown(value)} is {'' if holds else 'not '}in {group}")


def _some(values: tuple[str, ...]) -> str:
    more = f" and {len(values) - 3:,} more" if len(values) > 3 else ""
    return ", ".join(values[:3]) + more


def _joined(word: str, reasons: list[Reason]) -> str:
    """Return the parts' reasons, each marked with whether that part holds."""
    return word.join(f"[{'yes' if each.holds else 'no'}: {each.text}]" for each in reasons)


def list_names(condition: Condition) -> Iterator[str]:
    """Give the names of the lists that the condition looks into."""
    match condition:
        case Listed(name=name):
            yield name
        case All(conditions=conditions) | AnyOf(conditions=conditions):
            for each in conditions:
                yield from list_names(each)
        case Not(condition=inner):
            yield from list_names(inner)
        case _:
            pass
