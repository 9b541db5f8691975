"""Conditions: the compiled ones against a dumb twin that walks the tree, and the words against both."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from semver import Version

from scheduler.core.conditions import (
    AddressIn,
    All,
    AnyOf,
    AppIn,
    Condition,
    FieldIn,
    Listed,
    Not,
    PlaceIn,
    compile_condition,
    explain,
    list_names,
)
from scheduler.core.request import Location, Request

LISTS = {"staff": frozenset({"a", "d1"}), "one": frozenset({"b"}), "empty": frozenset[str]()}
FIELDS = ["user", "device", "platform", "region", "carrier"]
WORDS = ["a", "b", "d1", "ios", "sh"]
PLACES = ["CN", "CN-SH", "JP", "CH"]
NETWORKS = ["10.0.0.0/8", "10.1.0.0/16", "192.0.2.7/32", "0.0.0.0/0", "2001:db8::/32", "2001:db8:1::1/128"]
ADDRESSES = [
    "",
    "10.1.2.3",
    "10.2.0.0",
    "192.0.2.7",
    "2001:db8:1::1",
    "2001:db9::",
    "::ffff:10.1.0.1",
    "unix",
    "fe80::1%e",
]
APPS = ["", "4.1", "5.0.0", "5.0.0-beta", "v6", "x", "5.1.0.7"]
RANGES = {"<5.0": [("<", "5.0.0")], ">=4.2 <6": [(">=", "4.2.0"), ("<", "6.0.0")], "=5.0.0": [("=", "5.0.0")]}

requests = st.builds(
    Request,
    user=st.sampled_from(WORDS),
    device=st.sampled_from(["", *WORDS]),
    platform=st.sampled_from(["", *WORDS]),
    app=st.sampled_from(APPS),
    address=st.sampled_from(ADDRESSES),
    location=st.builds(
        Location,
        region=st.sampled_from(["", *WORDS]),
        place=st.sampled_from(["", *PLACES, "CN-BJ"]),
        carrier=st.sampled_from(["", *WORDS]),
    ),
)


def several(values: list[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=4).map(tuple)


conditions = st.recursive(
    st.one_of(
        st.builds(FieldIn, st.sampled_from(FIELDS), several(WORDS)),
        st.builds(Listed, st.sampled_from(FIELDS), st.sampled_from([*LISTS, "unknown"])),
        st.builds(PlaceIn, several(PLACES)),
        st.builds(AppIn, st.sampled_from(sorted(RANGES))),
        st.builds(AddressIn, several(NETWORKS)),
    ),
    lambda inner: st.one_of(
        st.builds(All, st.lists(inner, max_size=3).map(tuple)),
        st.builds(AnyOf, st.lists(inner, max_size=3).map(tuple)),
        st.builds(Not, inner),
    ),
    max_leaves=6,
)


def twin(condition: Condition, request: Request) -> bool:
    """What the docstrings say, as slowly as they say it."""
    match condition:
        case FieldIn(field=field, values=values):
            return value_of(request, field) in values
        case Listed(field=field, name=name):
            return name in LISTS and value_of(request, field) in LISTS[name]
        case PlaceIn(places=places):
            here = request.location.place
            return any(here == place or here.startswith(f"{place}-") for place in places)
        case AppIn(range=version_range):
            version = {"4.1": "4.1.0", "5.0.0": "5.0.0", "5.0.0-beta": "5.0.0-beta", "v6": "6.0.0"}.get(request.app)
            return version is not None and all(
                {"<": order < 0, ">=": order >= 0, "=": order == 0}[sign]
                for sign, bound in RANGES[version_range]
                for order in [Version.parse(version).compare(bound)]
            )
        case AddressIn(networks=networks):
            known = request.address not in {"", "unix"}
            address = ip_address(request.address.removeprefix("::ffff:")) if known else None
            return address is not None and any(address in ip_network(network) for network in networks)
        case All(conditions=parts):
            return False not in {twin(part, request) for part in parts}
        case AnyOf(conditions=parts):
            return True in {twin(part, request) for part in parts}
        case Not(condition=inner):
            return not twin(inner, request)


def value_of(request: Request, field: str) -> str:
    value = getattr(request if hasattr(request, field) else request.location, field)
    assert isinstance(value, str)
    return value


@given(conditions, st.lists(requests, min_size=1, max_size=8))
@settings(max_examples=150)
def test_a_compiled_condition_decides_as_its_parts_say(condition: Condition, asked: list[Request]):
    """And the explanation comes to the same."""
    test = compile_condition(condition, LISTS)
    for request in asked:
        holds = twin(condition, request)
        assert test(request) is holds
        assert explain(condition, request, LISTS).holds is holds


@given(conditions)
@settings(max_examples=50)
def test_a_condition_survives_being_written_and_read(condition: Condition):
    """As recordings and the registry keep it."""
    assert msgspec.json.decode(msgspec.json.encode(condition), type=Condition) == condition
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(condition), type=Condition) == condition


@pytest.mark.parametrize("size", [1, 2, 3])
def test_all_and_any_of_any_number_are_those_of_logic(size: int):
    """All tables of truth up to three parts."""
    for bits in range(1 << size):
        parts = tuple(FieldIn("user", ("a",) if bits >> at & 1 else ("b",)) for at in range(size))
        request = Request("a")
        assert compile_condition(All(parts), {})(request) is (bits == (1 << size) - 1)
        assert compile_condition(AnyOf(parts), {})(request) is (bits != 0)


def test_a_condition_without_an_address_does_not_look_at_it():
    """Parsing one costs more than all the rest."""

    class Blind:
        user = "a"

        @property
        def address(self) -> str:
            raise AssertionError

    test = compile_condition(All((FieldIn("user", ("a",)), Not(Listed("user", "one")))), LISTS)
    blind: Any = Blind()
    assert test(blind) is True


def test_lists_are_those_at_the_time_of_compiling():
    """A changed list needs a new compilation, so that a decision sees one state of all of them."""
    lists = {"staff": frozenset({"a"})}
    test = compile_condition(Listed("user", "staff"), lists)
    lists["staff"] = frozenset()
    assert test(Request("a"))


def test_the_names_of_lists_are_found_wherever_they_stand():
    """In the order in which they are asked."""
    condition = All((Listed("user", "a"), Not(AnyOf((Listed("device", "b"), AppIn("<5")))), FieldIn("user", ("c",))))
    assert list(list_names(condition)) == ["a", "b"]


def test_a_range_that_was_never_checked_is_our_own_bug():
    """Documents with such a one are refused."""
    with pytest.raises(AssertionError):
        compile_condition(AppIn("about 5"), {})


REQUEST = Request("alice", app="5.1", address="10.1.2.3", location=Location(place="CN-SH"))


@pytest.mark.parametrize(
    ("condition", "holds", "words"),
    [
        (FieldIn("user", ("alice",)), True, 'user "alice" is in alice'),
        (FieldIn("user", ("a", "b", "c", "d", "e")), False, 'user "alice" is not in a, b, c and 2 more'),
        (FieldIn("platform", ("ios",)), False, "platform is not known, so not in ios"),
        (Listed("user", "staff"), False, 'user "alice" is not in the list staff'),
        (Listed("user", "nobody"), False, 'user "alice" is not in the list nobody, which does not exist'),
        (PlaceIn(("CN",)), True, 'place "CN-SH" is in CN'),
        (AppIn("<5.0"), False, 'app "5.1" is not in <5.0'),
        (AddressIn(("10.0.0.0/8",)), True, 'ip "10.1.2.3" is in 10.0.0.0/8'),
        (Not(PlaceIn(("JP",))), True, 'not (place "CN-SH" is not in JP)'),
        (
            All((PlaceIn(("CN",)), AppIn("<5.0"))),
            False,
            '[yes: place "CN-SH" is in CN] and [no: app "5.1" is not in <5.0]',
        ),
        (
            AnyOf((PlaceIn(("CN",)), AppIn("<5.0"))),
            True,
            '[yes: place "CN-SH" is in CN] or [no: app "5.1" is not in <5.0]',
        ),
    ],
)
def test_an_explanation_says_what_was_compared(condition: Condition, holds: bool, words: str):  # noqa: FBT001
    """Each part with its own answer."""
    assert explain(condition, REQUEST, LISTS) == (holds, words)


@pytest.mark.parametrize(
    ("app", "words"), [("", "app is not known, so not in <5.0"), ("5.x", 'app "5.x" is no version, so not in <5.0')]
)
def test_an_app_without_a_version_is_in_no_range_and_that_is_said(app: str, words: str):
    """Whatever the range is."""
    assert explain(AppIn("<5.0"), Request("a", app=app), {}) == (False, words)
