"""Where users, conversations and calls go: tables, and what holds for any name and number."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from im.core.arguments import CID_DIGITS_MAX
from im.core.arguments import Send as SendArguments
from im.core.shards import (
    CID_STRIDE,
    SHARDS_MAX,
    ShardTable,
    first_table,
    shard_of_call,
    shard_of_cid,
    shard_of_single,
    shard_of_text,
    shard_of_user,
)

names = st.text(min_size=1, max_size=40)
counts = st.integers(1, SHARDS_MAX)


# ---------------------------------------------------------------- users and conversations


def test_users_are_spread_evenly():
    """Each shard has about as many as any other one, whatever the names are like."""
    for pattern in ("user-{}", "{}", "{}@example.org"):
        counted = Counter(shard_of_user(pattern.format(n), 8) for n in range(8_000))
        assert set(counted) == set(range(8))
        assert all(900 < count < 1_100 for count in counted.values())


@pytest.mark.parametrize(
    ("user", "shard"), [("ann", 0), ("bob", 5), ("", 2), ("ü", 6), ("8", 2), ("a-longer-name-than-most", 0)]
)
def test_a_user_stays_where_the_timeline_is(user: str, shard: int):
    """I1: these are written in files that exist. Who changes the hash loses every timeline."""
    assert shard_of_user(user, 8) == shard


@pytest.mark.spec("CI-04")
@given(one=names, other=names, shards=counts)
def test_a_single_conversation_is_beside_one_of_its_timelines(one: str, other: str, shards: int):
    """Whoever of the two asks finds it in the same shard."""
    found = shard_of_single(one, other, shards)
    assert found == shard_of_single(other, one, shards)
    assert found in {shard_of_user(one, shards), shard_of_user(other, shards)}
    assert 0 <= found < shards


@pytest.mark.spec("HS-01")
@given(k=st.integers(1, 10**9), shards=counts, data=st.data())
def test_a_number_that_a_shard_drew_names_it(k: int, shards: int, data: Any):
    """For as many shards as there are, and as the clients write it, too."""
    shard = data.draw(st.integers(0, shards - 1))
    cid = k * CID_STRIDE + shard
    assert shard_of_cid(cid, shards) == shard_of_text(str(cid), shards) == shard


@given(text=st.text(max_size=25) | st.integers().map(str) | st.sampled_from(["0" * 19, "٣", "²", "9" * 19, "9" * 20]))
def test_any_text_is_of_some_shard(text: str):
    """Nobody drew it, or it is no number: whoever it goes to says so."""
    assert 0 <= shard_of_text(text, 7) < 7
    assert shard_of_text(text, 1) == 0


def test_a_cid_is_read_as_long_as_one_may_be():
    """A longer one is malformed for all."""
    assert shard_of_text("9" * CID_DIGITS_MAX, 1_000) == int("9" * CID_DIGITS_MAX) % CID_STRIDE % 1_000 != 0
    assert shard_of_text("9" * (CID_DIGITS_MAX + 1), 1_000) == 0


# ---------------------------------------------------------------- calls

CID = "3075"
SHARD_OF_CID = 3
"""Of 8; ann's is 0, bob's is 5."""


@pytest.mark.parametrize(
    ("name", "arguments", "shard"),
    [
        ("send", {"to": "ann"}, 0),
        ("send", {"to": "bob"}, 5),
        ("send", {"to": "zoe"}, 5),
        ("send", {"cid": CID}, SHARD_OF_CID),
        ("send", {"cid": CID, "to": "bob"}, SHARD_OF_CID),  # which is refused, by whomever
        ("send", {}, 5),
        ("history", {"cid": CID}, SHARD_OF_CID),
        ("mark", {"cid": CID, "read_seq": 3}, SHARD_OF_CID),
        ("group_change", {"cid": CID, "action": "leave"}, SHARD_OF_CID),
        ("search", {"cid": "x"}, 0),
        ("sync", {"cid": CID}, 5),
        ("conversations", {"cid": CID}, 5),
        ("unread", {"to": "ann"}, 5),
        ("group_create", {"to": "ann", "members": ["ann"]}, 5),
    ],
)
def test_a_call_goes_to_the_conversation_or_else_to_the_user(name: str, arguments: dict[str, object], shard: int):
    """Of bob's."""
    assert shard_of_call("bob", name, msgspec.json.encode(arguments), 8) == shard
    assert shard_of_call("bob", name, msgspec.json.encode(arguments), 1) == 0


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xff", b'{"cid":1}', b'{"to":null}', b"[" * 100_000, b'"\\ud800"']
)
def test_what_cannot_be_read_goes_to_the_user(data: bytes):
    """There it is refused, in the words for it."""
    assert shard_of_call("bob", "send", data, 8) == shard_of_user("bob", 8) == 5


def test_the_place_is_read_as_the_methods_read_it():
    """Also where the same name comes twice: else a message would be stored where nobody looks for it."""
    data = b'{"client_msg_id":"k","body":1,"to":"bob","to":"ann"}'
    assert msgspec.json.decode(data, type=SendArguments).to == "ann"
    assert shard_of_call("ann", "send", data, 8) == shard_of_user("ann", 8)


# ---------------------------------------------------------------- tables


@given(nodes=st.lists(names, min_size=1, max_size=12, unique=True), shards=st.integers(1, 64), seed=st.randoms())
def test_the_first_table_is_even_and_the_same_whoever_makes_it(nodes: list[str], shards: int, seed: Any):
    """I2; and several processes may make it at the same time."""
    table = first_table(nodes, shards)
    assert table.shards == shards
    assert table.epoch == 1
    counted = [len(table.owned_by(node)) for node in nodes]
    assert sum(counted) == shards
    assert max(counted) - min(counted) <= 1
    others = list(nodes)
    seed.shuffle(others)
    assert first_table(others, shards) == table


@pytest.mark.spec("HS-01")
def test_a_move_changes_one_owner_and_the_epoch():
    """The table itself stays as it is."""
    table = first_table(["im-1", "im-2"], 5)
    assert table.owners == ("im-1", "im-2", "im-1", "im-2", "im-1")
    for shard in range(5):
        moved = table.moved(shard, "im-3")
        assert moved.epoch == 2
        assert moved.owned_by("im-3") == (shard,)
        assert moved.shards == 5
        assert moved.moved(shard, table.owners[shard]) == ShardTable(3, table.owners)


@pytest.mark.parametrize(("nodes", "shards"), [([], 1), (["im-1"], 0), (["im-1"], SHARDS_MAX + 1)])
def test_there_is_no_table_of_nothing(nodes: list[str], shards: int):
    """I2."""
    with pytest.raises(AssertionError):
        first_table(nodes, shards)
