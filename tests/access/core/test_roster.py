"""Followers and members: examples by invariant, then random comings and goings against a dumb twin."""

from __future__ import annotations

from random import Random

import pytest

from access.core.roster import Roster, digest_of
from access.peers import MemberInfo


def member(client: str, user: str = "u") -> MemberInfo:
    return MemberInfo(client, user)


def followed(*nodes: str) -> Roster:
    roster = Roster()
    for node in nodes:
        assert roster.follow("c", node)
    return roster


def test_a_channel_is_known_while_a_node_follows_it():
    """I4."""
    roster = followed("a", "b")
    assert not roster.follow("c", "a")
    assert (roster.followers("c"), roster.nodes(), roster.channels()) == (("a", "b"), ("a", "b"), ("c",))
    assert roster.part("c", "a") == []
    assert roster.part("c", "a") == []
    assert roster.part("x", "a") == []
    assert roster.followers("c") == ("b",)
    roster.part("c", "b")
    assert (roster.followers("c"), roster.nodes(), roster.channels()) == ((), (), ())
    assert roster.statistics() == {"channels": 0, "follows": 0, "members": 0}
    roster.check_invariants()


def test_members_enter_and_leave_by_their_node():
    """Whoever says so for another node's member is not heard."""
    roster = followed("a", "b")
    assert roster.enter("c", "a", [member("1", "u"), member("2", "u")], restates=False) == [
        member("1"),
        member("2"),
    ]
    assert roster.enter("c", "b", [member("3", "v")], restates=False) == [member("3", "v")]
    assert roster.counts("c") == (3, 2)
    assert roster.leave("c", "b", ["1", "9"]) == []
    assert roster.leave("c", "a", ["1"]) == [member("1")]
    assert roster.members("c") == [member("2"), member("3", "v")]
    assert roster.counts("c") == (2, 2)
    roster.check_invariants()


def test_nobody_enters_by_a_node_that_does_not_follow():
    """It may have parted, and this be late."""
    roster = followed("a")
    assert roster.enter("c", "b", [member("1")], restates=False) == []
    assert roster.enter("x", "a", [member("1")], restates=False) == []
    assert roster.leave("x", "a", ["1"]) == []
    assert (roster.members("c"), roster.members("x"), roster.counts("x")) == ([], [], (0, 0))


def test_a_member_that_is_told_again_is_no_news():
    """Whether its node says it again, or all of it."""
    roster = followed("a", "b")
    roster.enter("c", "a", [member("1"), member("2")], restates=False)
    assert roster.enter("c", "a", [member("1")], restates=False) == []
    assert roster.enter("c", "a", [member("2"), member("3")], restates=True) == [member("2"), member("3")]
    assert {one.client for one in roster.members("c")} == {"2", "3"}
    assert roster.enter("c", "b", [member("3")], restates=False) == []  # I1: it is there now
    assert roster.leave("c", "a", ["3"]) == []
    assert roster.leave("c", "b", ["3"]) == [member("3")]
    roster.check_invariants()


def test_a_digest_tells_which_members_a_node_has():
    """I2: in any order, and nothing for nobody."""
    roster = followed("a", "b")
    roster.enter("c", "a", [member("1"), member("2")], restates=False)
    assert roster.digest("c", "a") == digest_of("2") ^ digest_of("1")
    assert roster.digest("c", "b") == 0
    assert roster.digest("c", "x") is None
    assert roster.digest("x", "a") is None


def test_a_node_takes_its_members_with_it():
    """When it parts, when it dies, and when this node is not the owner any more."""
    roster = followed("a", "b")
    roster.follow("d", "a")
    roster.enter("c", "a", [member("1")], restates=False)
    roster.enter("c", "b", [member("2")], restates=False)
    roster.enter("d", "a", [member("1")], restates=False)
    assert roster.gone("a") == [("c", [member("1")]), ("d", [member("1")])]
    assert roster.gone("a") == []
    assert roster.members("c") == [member("2")]
    assert roster.forget("c") == ("b",)
    assert roster.forget("c") == ()
    assert roster.members("c") == []
    roster.check_invariants()


@pytest.mark.parametrize("seed", range(30))
def test_the_roster_is_what_a_list_of_all_members_says(seed: int):
    """The twin has a list of (channel, node, member) and looks at all of it."""
    random, roster = Random(seed), Roster()
    follows: set[tuple[str, str]] = set()
    twin: list[tuple[str, str, MemberInfo]] = []
    for _ in range(200):
        channel, node = random.choice("cd"), random.choice("ab")
        infos = [member(client, random.choice("uvw")) for client in random.sample("123456", random.randint(0, 3))]
        clients = {info.client for info in infos}
        match random.choice(("follow", "part", "gone", "enter", "enter", "restate", "leave")):
            case "follow":
                assert roster.follow(channel, node) == ((channel, node) not in follows)
                follows.add((channel, node))
            case "part":
                roster.part(channel, node)
                follows.discard((channel, node))
            case "gone":
                roster.gone(node)
                follows = {one for one in follows if one[1] != node}
            case "leave":
                roster.leave(channel, node, clients)
                twin = [one for one in twin if not (one[:2] == (channel, node) and one[2].client in clients)]
            case kind:
                roster.enter(channel, node, infos, restates=kind == "restate")
                if (channel, node) in follows:
                    if kind == "restate":
                        twin = [one for one in twin if one[:2] != (channel, node)]
                    twin = [one for one in twin if not (one[0] == channel and one[2].client in clients)]
                    twin.extend((channel, node, info) for info in infos)
        twin = [one for one in twin if one[:2] in follows]
        roster.check_invariants()
        for name in "cd":
            here = [info for at, _, info in twin if at == name]
            assert sorted(roster.members(name), key=str) == sorted(here, key=str)
            assert roster.counts(name) == (len(here), len({info.user for info in here}))
        assert roster.statistics()["members"] == len(twin)
