"""Conditions as documents say them: tables of what each form means and of what is refused."""

from __future__ import annotations

import pytest

from scheduler.core.condition_document import read_condition
from scheduler.core.conditions import AddressIn, All, AnyOf, AppIn, Condition, FieldIn, Listed, Not, PlaceIn
from scheduler.core.document import Fault, Faults, read_tree


def read(source: str) -> Condition | tuple[Fault, ...]:
    faults = Faults()
    node = read_tree(source, faults)
    assert node is not None
    condition = read_condition(node, faults)
    if condition is None:
        assert faults
        return faults.listed()
    assert not faults
    return condition


A = FieldIn("user", ("a",))


@pytest.mark.parametrize(
    ("source", "condition"),
    [
        ("user: a", A),
        ("user: [a, b]", FieldIn("user", ("a", "b"))),
        ("user: {in: [a]}", A),
        ("user: {in: staff}", Listed("user", "staff")),
        ("user: {not_in: staff}", Not(Listed("user", "staff"))),
        ("user: {not_in: [a]}", Not(A)),
        ("user: {in: staff, not_in: [a]}", All((Listed("user", "staff"), Not(A)))),
        ("device: {in: testers}", Listed("device", "testers")),
        ("platform: ios", FieldIn("platform", ("ios",))),
        ("region: {in: [sh, bj]}", FieldIn("region", ("sh", "bj"))),
        ("carrier: AS13335", FieldIn("carrier", ("AS13335",))),
        ("place: CN", PlaceIn(("CN",))),
        ("place: [CN-SH, US-CA, FR-75C]", PlaceIn(("CN-SH", "US-CA", "FR-75C"))),
        ("place: {in: JP}", PlaceIn(("JP",))),
        ('place: {not_in: ["NO"]}', Not(PlaceIn(("NO",)))),
        ('app: "<5.0"', AppIn("<5.0")),
        ('app: " >=4.2, <5 "', AppIn(">=4.2, <5")),
        ("ip: 10.0.0.0/8", AddressIn(("10.0.0.0/8",))),
        ("ip: [192.0.2.1, '2001:DB8::/32']", AddressIn(("192.0.2.1/32", "2001:db8::/32"))),
        ("ip: {in: '2001:db8::1'}", AddressIn(("2001:db8::1/128",))),
        ("ip: {not_in: [10.0.0.0/8]}", Not(AddressIn(("10.0.0.0/8",)))),
        ("all: [{user: a}, {platform: ios}]", All((A, FieldIn("platform", ("ios",))))),
        ("any: [{user: a}]", AnyOf((A,))),
        ("not: {user: a}", Not(A)),
        ("not: {not: {any: [{all: [{user: a}]}]}}", Not(Not(AnyOf((All((A,)),))))),
        (
            "{ip: 10.0.0.0/8, user: a, platform: ios}",
            All((A, FieldIn("platform", ("ios",)), AddressIn(("10.0.0.0/8",)))),
        ),
    ],
)
def test_every_form_of_a_condition_is_read(source: str, condition: Condition):
    """What is cheap comes first, wherever it stands."""
    assert read(source) == condition


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("[]", "needs keys and values"),
        ("{}", "needs at least one of user, device"),
        ("usr: a", "did you mean user?"),
        ("user: 7", 'write it in quotes, "7"'),
        ("user: on", "do not agree"),
        ("user: []", "0 entries"),
        ("user: ''", "must not be empty"),
        ("user: {}", "needs in or not_in"),
        ("user: {is: a}", '"is" is not known here'),
        ("user: {in: Staff}", "is not a name"),
        ("user: {in: {a: b}}", "single value"),
        ("user: {in: [[a]]}", "single value"),
        ("place: cn", "is not a country such as CN"),
        ("place: CN-SHANG", "nor a subdivision"),
        ("place: {in: cn}", "is not a country such as CN"),
        ("place: 1", "in quotes"),
        ("place: {in: {a: b}}", "needs a list"),
        ('app: ">5"', "write all three numbers"),
        ("app: 5", "in quotes"),
        ("app: [a]", "single value"),
        ("ip: 10.0.0.1/8", "did you mean 10.0.0.0/8?"),
        ("ip: 10.0.0.0/33", "is not a network"),
        ("ip: 10.0.0", "is not a network"),
        ("ip: localhost", "is not a network"),
        ("ip: '::ffff:10.0.0.0/104'", "write IPv4 as IPv4"),
        ("ip: 'fe80::1%eth0'", "without a zone"),
        ("ip: {in: office}", "is not a network"),
        ("ip: 1", "in quotes"),
        ("all: []", "0 entries"),
        ("all: {user: a}", "needs a list"),
        ("any: [{user: 1}]", "in quotes"),
        ("not: [{user: a}]", "needs keys and values"),
    ],
)
def test_what_is_no_condition_is_refused_with_its_line(source: str, words: str):
    """Once, and with what would be right."""
    faults = read(f"\n{source}")
    assert isinstance(faults, tuple)
    ((line, message),) = faults
    assert line == 2
    assert words in message


def test_all_that_is_wrong_with_a_condition_is_said_at_once():
    """However deep it stands."""
    faults = read("user: 1\nany:\n  - {app: x}\n  - not: {place: cn}\n    ip: z\nplatfrom: ios\n")
    assert isinstance(faults, tuple)
    assert [(line, message.partition(": ")[0]) for line, message in faults] == [
        (1, "user"),
        (3, "any[0].app"),
        (4, "any[1].not.place"),
        (5, "any[1].ip"),
        (6, '"platfrom" is not known here; did you mean platform?'),
    ]
