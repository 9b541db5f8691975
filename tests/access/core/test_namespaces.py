"""Channel names and permissions: names against their rules, decisions over the whole table."""

from __future__ import annotations

from itertools import product

import pytest

from access.core.namespaces import (
    RESERVED,
    Channel,
    ChannelSettings,
    Namespace,
    Namespaces,
    namespace_problems,
)
from access.core.protocol import ClientError


def rules(**options: object) -> Namespaces:
    return Namespaces([Namespace(**options)])  # type: ignore[arg-type]


def test_without_configuration_there_is_no_channel():
    """Neither in a namespace nor without one."""
    assert Namespaces([]).find("news") is ClientError.UNKNOWN_CHANNEL
    assert rules(name="chat").find("news") is ClientError.UNKNOWN_CHANNEL
    assert rules().find("chat:42") is ClientError.UNKNOWN_CHANNEL


def test_the_namespace_is_what_stands_before_the_first_colon():
    """Later colons belong to the rest; a name that begins with one is in the namespace without a name."""
    both = Namespaces([Namespace(history_size=1), Namespace(name="chat", history_size=2)])
    for name, size in (("news", 1), ("chat:42", 2), ("chat:42:7", 2), (":chat", 1), ("chat", 1), ("chat:", 2)):
        channel = both.find(name)
        assert isinstance(channel, Channel)
        assert (channel.name, channel.namespace.history_size) == (name, size)


@pytest.mark.parametrize("name", ["", "x" * 256, "é" * 128, "a\nb", "a\x00", "\ud800", "a\u200b"])
def test_what_is_no_name_is_a_bad_request(name: str):
    """1 to 255 bytes of printable text."""
    assert rules().find(name) is ClientError.BAD_REQUEST


@pytest.mark.parametrize("name", ["x", "x" * 255, "é" * 127, "with space", "#", "dialog:#42,43"])
def test_other_texts_are_names(name: str):
    """Up to the limit."""
    both = Namespaces([Namespace(), Namespace(name="dialog")])
    assert isinstance(both.find(name), Channel)


@pytest.mark.parametrize(
    ("name", "users"),
    [("news", None), ("#42", {"42"}), ("dialog#42,43", {"42", "43"}), ("a#b#c", {"c"}), ("a#", {""})],
)
def test_the_boundary_names_the_users_inside(name: str, users: set[str] | None):
    """What follows the last `#`."""
    channel = rules().find(name)
    assert isinstance(channel, Channel)
    assert channel.users == users
    assert channel.admits("42") == (users is None or "42" in users)


def test_the_decision_on_a_subscription():
    """Boundary, openness and token, in all combinations."""
    for boundary, allow, has_token in product(("", "#42", "#7"), ("token", "anyone"), (False, True)):
        decision = rules(allow_subscribe=allow).may_subscribe("x" + boundary, "42", has_token=has_token)
        is_inside = boundary == "#42" or (not boundary and allow == "anyone")
        if has_token or is_inside:
            assert isinstance(decision, Channel)
        else:
            assert decision is ClientError.PERMISSION_DENIED
    assert rules().may_subscribe("a:b", "42", has_token=True) is ClientError.UNKNOWN_CHANNEL


@pytest.mark.parametrize("boundary", ["", "#42", "#7"])
@pytest.mark.parametrize("audience", ["nobody", "subscriber", "anyone"])
@pytest.mark.parametrize("is_subscribed", [False, True])
def test_the_decision_on_other_requests(boundary: str, audience: str, *, is_subscribed: bool):
    """Publish, history and presence go by the same rule."""
    name = "x" + boundary
    some = rules(history_size=1, presence=True, allow_publish=audience, allow_history=audience, allow_presence=audience)
    is_allowed = {
        "nobody": False,
        "subscriber": is_subscribed,
        "anyone": is_subscribed or boundary != "#7",
    }[audience]
    for decision in (
        some.may_publish(name, "42", 10, is_subscribed=is_subscribed),
        some.may_read_history(name, "42", is_subscribed=is_subscribed),
        some.may_see_presence(name, "42", is_subscribed=is_subscribed),
    ):
        if is_allowed:
            assert isinstance(decision, Channel)
        else:
            assert decision is ClientError.PERMISSION_DENIED


def test_unknown_channels_are_told_as_such_by_every_decision():
    """Before anything else is looked at."""
    none = Namespaces([])
    assert none.may_publish("x", "42", 1, is_subscribed=True) is ClientError.UNKNOWN_CHANNEL
    assert none.may_read_history("x", "42", is_subscribed=True) is ClientError.UNKNOWN_CHANNEL
    assert none.may_see_presence("x", "42", is_subscribed=True) is ClientError.UNKNOWN_CHANNEL


def test_what_a_namespace_does_not_keep_is_not_available():
    """Whoever asks."""
    bare = rules(allow_history="anyone", allow_presence="anyone")
    assert bare.may_read_history("x", "42", is_subscribed=True) is ClientError.NOT_AVAILABLE
    assert bare.may_see_presence("x", "42", is_subscribed=True) is ClientError.NOT_AVAILABLE


def test_a_publication_has_a_greatest_size():
    """The limit itself is fine."""
    some = rules(allow_publish="anyone", publish_bytes_max=10)
    assert isinstance(some.may_publish("x", "42", 10, is_subscribed=False), Channel)
    assert some.may_publish("x", "42", 11, is_subscribed=False) is ClientError.LIMIT_EXCEEDED


@pytest.mark.parametrize("user", ["7,8", "a#b", "x" * 255, "a\n"])
def test_a_user_whose_name_would_mean_something_else_has_no_personal_channel(user: str):
    """Or others would be inside of it."""
    assert rules().personal(user) is None


def test_the_personal_channel_is_in_the_namespace_without_a_name():
    """If there is one; a user whose name has a colon would be in another."""
    assert rules().personal("42") == "#42"
    assert rules(name="chat").personal("42") is None
    assert rules().personal("a:b") is None


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"name": "a:b"}, "must be printable"),
        ({"name": "a#b"}, "must be printable"),
        ({"name": "a\n"}, "must be printable"),
        *(({"name": name}, "system's own") for name in sorted(RESERVED)),
        ({"force_recovery": True}, "need a history"),
        ({"force_positioned": True}, "need a history"),
        ({"force_push_join_leave": True}, "needs join_leave"),
    ],
)
def test_a_namespace_that_cannot_be_is_a_problem_of_the_configuration(options: dict[str, object], problem: str):
    """Each told in one line."""
    (found,) = Namespace(**options).problems()  # type: ignore[arg-type]
    assert problem in found


def test_what_fits_together_is_no_problem():
    """The namespace of the protocol's own tests."""
    full = Namespace(history_size=100, force_recovery=True, presence=True, join_leave=True, force_push_join_leave=True)
    assert list(full.problems()) == []
    assert list(namespace_problems([full, Namespace(name="a")])) == []
    assert list(namespace_problems([full, full])) == ["the namespace '' is defined 2 times"]
    assert ChannelSettings().per_client_max == 128


@pytest.mark.parametrize(("presence", "join_leave"), list(product((False, True), (False, True))))
def test_members_are_kept_where_somebody_wants_to_know(*, presence: bool, join_leave: bool):
    """For presence, or for joins and leaves."""
    channel = rules(presence=presence, join_leave=join_leave).find("x")
    assert isinstance(channel, Channel)
    assert channel.has_members == (presence or join_leave)
