"""The wire types: what readers unpack, and what goes over the wire and comes back."""

from __future__ import annotations

import msgspec
import pytest

from base.clock import Timestamp
from base.ids import ID_BYTES_MAX, Epoch, NodeId
from status.api import (
    HEADER_BYTES,
    OFFLINE,
    PLAIN_BYTES_MAX,
    REFUSED,
    UNKNOWN,
    UNKNOWN_SHOWN,
    LookupReply,
    SessionView,
    Shown,
    State,
    UserStatus,
    audience_of,
    is_public,
    pack_partitions,
    plain,
    status_of,
    unpack_partitions,
)
from status.core.records import Kind, body_of, packed
from status.core.visibility import EVERYONE, Audience


def view(session: str, state: State = "online") -> SessionView:
    return SessionView(session, "phone", "ios", NodeId("gate"), state, Timestamp(7), Timestamp(8))


def entry(one: SessionView) -> bytes:
    return bytes(2) + packed(1, 1, Kind.OPEN, msgspec.msgpack.encode(one))


def test_a_reader_skips_what_the_store_needs():
    """The header is as long as the records say."""
    assert entry(view("s"))[HEADER_BYTES:] == body_of(entry(view("s")))


@pytest.mark.parametrize(
    ("shown", "status"),
    [
        (None, OFFLINE),
        (REFUSED, UNKNOWN),
        (UNKNOWN_SHOWN, UNKNOWN),
        (0, UserStatus("offline", (), Timestamp(0))),
        (1, UserStatus("offline", (), Timestamp(1))),
        (entry(view("s", "away")), UserStatus("away", (view("s", "away"),))),
        (
            (entry(view("s", "away")), entry(view("t", "busy")), entry(view("w"))),
            UserStatus("busy", (view("s", "away"), view("t", "busy"), view("w"))),
        ),
        (
            (entry(view("s", "invisible")), entry(view("t", "away"))),
            UserStatus("away", (view("s", "invisible"), view("t", "away"))),
        ),
    ],
)
def test_what_a_reply_shows_is_unpacked_after_the_wire(shown: Shown, status: UserStatus):
    """Each form keeps its meaning over the wire: 0 and 1 are times, False and True are no answers."""
    reply = msgspec.msgpack.decode(msgspec.msgpack.encode(LookupReply(Epoch(1), [shown])), type=LookupReply)
    assert status_of(reply.shown[0]) == status


def test_partitions_are_two_bytes_each():
    """The lower one first, on every machine."""
    assert pack_partitions([1, 0x0FFF]) == b"\x01\x00\xff\x0f"
    assert list(unpack_partitions(pack_partitions(range(4096)))) == list(range(4096))
    assert list(unpack_partitions(b"")) == []


def test_half_a_partition_is_refused():
    """It is a message that was cut."""
    with pytest.raises(ValueError, match="multiple"):
        unpack_partitions(b"\x01\x00\x02")


def test_the_session_that_spoke_last_decides_on_the_audience():
    """Those that say nothing do not count; everybody may see whom none of them hides."""
    nobody, listed = Audience("nobody"), Audience("listed", ("w",))
    silent = view("a")
    early = msgspec.structs.replace(view("b"), audience=nobody, last_active=Timestamp(10))
    late = msgspec.structs.replace(view("c"), audience=listed, last_active=Timestamp(11))
    assert audience_of(OFFLINE) == audience_of(UserStatus("online", (silent,))) == EVERYONE
    assert audience_of(UserStatus("online", (late, silent, early))) == listed
    assert audience_of(UserStatus("online", (early, silent))) == nobody


def test_a_long_audience_is_left_out_for_those_who_do_not_decide_by_it():
    """All else is as it was; and what is short is not even looked into."""
    short = msgspec.structs.replace(view("s", "away"), audience=Audience("listed", ("w",)))
    long = msgspec.structs.replace(short, audience=Audience("listed", tuple(f"{number:0128d}" for number in range(9))))
    assert plain(entry(short)) == entry(short)
    assert len(entry(long)) > PLAIN_BYTES_MAX
    assert plain(entry(long))[:HEADER_BYTES] == entry(long)[:HEADER_BYTES]
    assert status_of(plain(entry(long))) == status_of(entry(view("s", "away")))


def test_with_the_longest_ids_a_session_is_plain():
    """So it is the audience that makes one long."""
    longest = "x" * ID_BYTES_MAX
    one = SessionView(longest, longest, longest, NodeId(longest), "invisible", Timestamp(2**50), Timestamp(2**50))
    assert len(entry(one)) <= PLAIN_BYTES_MAX


def test_who_is_public_is_there_for_everybody():
    """Somebody has to be there, not invisible, and the last word on the audience must not deny anybody."""
    nobody = msgspec.structs.replace(view("b"), audience=Audience("nobody"), last_active=Timestamp(10))
    later = msgspec.structs.replace(view("c"), audience=EVERYONE, last_active=Timestamp(11))
    assert is_public(status_of(entry(view("a"))))
    assert is_public(status_of((entry(view("a")), entry(view("b", "invisible")))))
    assert is_public(status_of((entry(nobody), entry(later))))
    assert not is_public(OFFLINE)
    assert not is_public(status_of(entry(view("a", "invisible"))))
    assert not is_public(status_of((entry(view("a")), entry(nobody))))
