"""Moves that even out the shards of the message services."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from im.core.shard_plan import Move, moves_to_even

NODES = ("im-1", "im-2", "im-3", "im-4")


@given(
    st.lists(st.sampled_from((*NODES, "gone-1", "gone-2")), max_size=24), st.sets(st.sampled_from(NODES), min_size=1)
)
def test_only_the_named_have_shards_then_and_evenly_by_the_fewest_moves(owners: list[str], nodes: set[str]):
    """However they were distributed, and whoever is gone."""
    after = list(owners)
    moves = moves_to_even(owners, nodes)
    for shard, source, target in moves:
        assert after[shard] == source
        after[shard] = target
    counts = Counter(dict.fromkeys(nodes, 0))
    counts.update(after)
    assert set(counts) == nodes
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len(moves) == len({shard for shard, *_ in moves}), "no shard is moved twice"
    assert len(moves) == len(owners) - most_that_can_stay(owners, nodes)


def most_that_can_stay(owners: list[str], nodes: set[str]) -> int:
    """Of each process at most its part: those with the most have the larger parts."""
    had = sorted((owners.count(node) for node in nodes), reverse=True)
    least, more = divmod(len(owners), len(nodes))
    return sum(min(count, least + (rank < more)) for rank, count in enumerate(had))


@pytest.mark.parametrize(
    ("owners", "nodes", "moves"),
    [
        (["a", "b", "a", "b"], ["a", "b"], []),
        (["a", "a", "a", "a"], ["a", "b"], [Move(0, "a", "b"), Move(1, "a", "b")]),
        (["a", "b", "a", "b"], ["b"], [Move(0, "a", "b"), Move(2, "a", "b")]),
        (["a"], ["a", "b"], []),
        ([], ["a"], []),
    ],
)
def test_what_is_right_stays(owners: list[str], nodes: list[str], moves: list[Move]):
    """Examples that one sees through."""
    assert moves_to_even(owners, nodes) == moves
