"""The error tree and its codes: what a receiver may do next must be right on every number, known or not."""

from __future__ import annotations

from collections import Counter

import pytest

from base import errors
from base.errors import (
    BadRequest,
    Code,
    ConfigError,
    Draining,
    NotOwner,
    PeerUnavailable,
    Retry,
    RoadsteadError,
    from_wire,
)


def below(cls: type[RoadsteadError]) -> list[type[RoadsteadError]]:
    return [cls, *(one for sub in cls.__subclasses__() for one in below(sub))]


CLASSES = [cls for cls in below(RoadsteadError) if cls.__module__ == "base.errors"]
LEAVES = [cls for cls in CLASSES if not cls.__subclasses__()]


def test_every_number_names_one_code():
    """A number on the wire must not be read in two ways."""
    numbers = Counter(code.number for code in Code)
    assert [number for number, count in numbers.items() if count > 1] == []


def test_every_code_is_in_a_known_range_and_has_a_meaning_and_a_status():
    """The hundred is the contract, and 4xx or 5xx what HTTP clients act on."""
    for code in Code:
        assert 100 <= code.number < 500
        assert 400 <= code.http_status < 600
        assert code.meaning


@pytest.mark.parametrize(
    ("number", "retry"),
    [
        (100, Retry.SAME_NODE),
        (199, Retry.SAME_NODE),
        (200, Retry.REROUTE),
        (299, Retry.REROUTE),
        (300, Retry.NEVER),
        (400, Retry.NEVER),
        (499, Retry.NEVER),
        (99, Retry.NEVER),
        (0, Retry.NEVER),
        (-150, Retry.NEVER),
        (7_000, Retry.NEVER),
    ],
)
def test_the_hundred_of_a_number_says_what_to_do(number: int, retry: Retry):
    """What is in no range is given up rather than repeated for ever."""
    assert errors.retry_of(number) is retry


def test_a_code_and_its_errors_agree_on_what_to_do():
    """The class, the code and the number are three views of one meaning."""
    assert Code.NOT_OWNER.retry is Retry.REROUTE
    assert NotOwner().retry is Retry.REROUTE
    assert Code.NOT_OWNER.label == "not_owner"


def test_no_two_leaves_share_a_code():
    """Else one of them could not come back from the wire."""
    codes = Counter(cls.code for cls in LEAVES)
    assert [code for code, count in codes.items() if count > 1] == []


def test_every_class_is_exported():
    """A caller catches what it can import."""
    assert {cls.__name__ for cls in CLASSES} <= set(errors.__all__)


@pytest.mark.parametrize("cls", [cls for cls in LEAVES if cls is not ConfigError])
def test_every_leaf_comes_back_from_the_wire_as_it_was(cls: type[RoadsteadError]):
    """Class, message, detail and retry meaning."""
    sent = cls("what happened", what="x", limit=3)
    received = from_wire(sent.code.number, sent.message, sent.detail)
    assert type(received) is cls
    assert (received.message, received.detail) == ("what happened", {"what": "x", "limit": 3})
    assert received.retry is sent.retry


def test_a_configuration_error_comes_back_with_all_its_errors():
    """One line each, as they were found."""
    sent = ConfigError(["a is missing", "b must be positive"])
    received = from_wire(sent.code.number, sent.message, sent.detail)
    assert isinstance(received, ConfigError)
    assert received.errors == ["a is missing", "b must be positive"]
    assert str(received) == "a is missing\nb must be positive"


def test_a_configuration_error_without_its_list_keeps_its_message():
    """The detail of a peer may be anything."""
    received = from_wire(Code.CONFIG_INVALID.number, "b must be positive", {})
    assert isinstance(received, ConfigError)
    assert received.errors == ["b must be positive"]


@pytest.mark.parametrize(
    ("number", "cls"), [(177, PeerUnavailable), (277, Draining), (377, BadRequest), (477, BadRequest)]
)
def test_an_unknown_number_keeps_the_meaning_of_its_range(number: int, cls: type[RoadsteadError]):
    """A node of an older version does the right thing, and the log has the number."""
    received = from_wire(number, "something new", {"hint": 1})
    assert type(received) is cls
    assert received.retry is errors.retry_of(number)
    assert str(received) == f"something new (code {number})"
    assert received.detail == {"hint": 1}


@pytest.mark.parametrize("code", list(Code))
def test_every_code_keeps_its_retry_meaning_over_the_wire(code: Code):
    """Those that no leaf has, as `internal`, too."""
    assert from_wire(code.number, "", {}).retry is code.retry


def test_an_error_without_a_message_says_its_code_meaning():
    """Never an empty line in a log."""
    assert str(NotOwner()) == Code.NOT_OWNER.meaning
    assert NotOwner(owner="n2", epoch=7).detail == {"owner": "n2", "epoch": 7}


@pytest.mark.parametrize(
    ("said", "told"), [("caf\u00e9 \U0001f600", "caf\u00e9 \U0001f600"), ("no \ud800 text", "no \\ud800 text")]
)
def test_a_message_can_always_be_told(said: str, told: str):
    """It may quote what somebody sent; what has no UTF-8 would fail where the answer is encoded."""
    error = BadRequest(said)
    assert (error.message, str(error)) == (told, told)
    assert error.message.encode().decode() == told
