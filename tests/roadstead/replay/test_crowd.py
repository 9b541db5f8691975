"""A crowd whose system is not there gives up by itself, and what is missing is found."""

from __future__ import annotations

import pytest

from base.clock import SystemClock
from roadstead.ports import free_ports
from roadstead.replay import crowd
from roadstead.replay.core.day import Said, Timed
from roadstead.replay.core.plan import Pace, part_of, planned
from roadstead.replay.core.proof import prove
from roadstead.replay.doors import Doors

CHAT = Timed("chat", ("a", "b"), tuple((place, place, Said(place, "ab"[place % 2], "hi")) for place in range(4)))


async def test_a_system_that_never_answers_is_given_up_and_named_message_by_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody waits for ever, and nothing is taken for right."""
    monkeypatch.setattr(crowd, "STALL_S", 0.3)
    monkeypatch.setattr(crowd, "CLOSE_S", 0.3)
    monkeypatch.setattr(crowd, "CREDIBLE_S", 0.3)
    plan = planned([CHAT], Pace(speed=1_000, start_ms=0))
    clock = SystemClock()
    (port,) = free_ports([0])
    nobody = [f"http://127.0.0.1:{port}"]
    made = crowd.Crowd(plan, Doors(nobody, nobody, "none"), clock=clock)
    asked: list[bool] = []

    async def everybody_is_done() -> None:
        asked.append(True)

    await made.run(began_ms=clock.monotonic(), everybody_is_done=everybody_is_done)
    assert asked == [True]
    assert made.notes.left == 4
    (first, *others) = prove(plan, made.notes.seen).violations
    assert (first.kind, first.messages) == ("unacknowledged", ("chat/0", "chat/1", "chat/2", "chat/3"))
    assert {one.kind for one in others} == {"unread", "presence"}


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_the_parts_of_a_crowd_have_every_user_once(parts: int) -> None:
    """And all of the messages between them."""
    plan = planned([CHAT], Pace(speed=1))
    made = [
        crowd.Crowd(
            plan,
            Doors(["http://there"], [], ""),
            clock=SystemClock(),
            part=part,
            parts=parts,
        )
        for part in range(parts)
    ]
    assert sum(one.notes.left for one in made) == 4
    assert all(0 <= part_of(one.user, parts) < parts for one in plan.people)
