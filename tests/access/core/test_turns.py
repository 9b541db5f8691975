"""A client and a server that take turns over a network which loses what it likes."""

from __future__ import annotations

import random

import pytest

from access.core.turns import Turn, Turns


@pytest.mark.parametrize("answered", range(4))
@pytest.mark.parametrize("is_under_way", [False, True])
@pytest.mark.parametrize("number", range(-1, 8))
def test_each_number_is_new_repeated_or_wrong(answered: int, is_under_way: bool, number: int) -> None:  # noqa: FBT001
    """The table of the module, for every state that some turns lead to."""
    turns = Turns()
    for turn in range(answered):
        turns.finish(b"%d" % turn)
        assert turns.begin(turn + 1) is Turn.NEW
    if not is_under_way:
        turns.finish(b"last")
    before = (turns.number, turns.answer)

    found = turns.begin(number)

    if number == answered:
        assert found is Turn.REPEATED
    elif number == answered + 1 and not is_under_way:
        assert found is Turn.NEW
        before = (answered + 1, None)
    else:
        assert found is Turn.WRONG
    assert (turns.number, turns.answer) == before


def test_an_answer_stands() -> None:
    """Whoever finishes a turn later gets what it was answered first."""
    turns = Turns()
    assert turns.finish(b"first") == b"first"
    assert turns.finish(b"second") == b"first"


@pytest.mark.parametrize("seed", range(100))
def test_nothing_is_lost_or_doubled_on_a_network_that_loses(seed: int) -> None:
    """Commands reach the server and messages the client, each once and in order, however often a turn is repeated."""
    chance = random.Random(seed)
    turns = Turns()
    said, taken, shown = 0, [0], []
    waiting: list[bytes] = []
    number = 0
    for _ in range(300):
        waiting.extend(b"%d" % (said := said + 1) for _ in range(chance.randrange(3)))
        if chance.random() < 0.3:
            continue  # the request is lost
        turn = turns.begin(number)
        if turn is Turn.NEW:
            taken.append(number)
        assert turn is not Turn.WRONG
        if chance.random() < 0.3:
            continue  # the client gives the request up before there is an answer
        if turns.answer is None:
            turns.finish(b" ".join(waiting))
            waiting.clear()
        if chance.random() < 0.3:
            continue  # the answer is lost
        assert turns.answer is not None
        shown += [int(word) for word in turns.answer.split()]
        number += 1
    assert taken == list(range(len(taken)))
    assert shown == list(range(1, len(shown) + 1))
    assert number > 50
    assert len(shown) > 50
