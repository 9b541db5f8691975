"""The Python wrapper: where it connects, and what it hands over when its node closes, crashes or drains."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from base.errors import PeerUnavailable, PermissionDenied, Unauthenticated
from roadstead.client import Position
from tests.system.client_application import Application, becomes
from tests.system.conftest import eventually
from tests.system.fake_access import INBOX, USER, World, fake_world


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with fake_world("one", "two", "three") as made:
        yield made


@pytest.fixture
async def app(world: World) -> AsyncIterator[Application]:
    made = Application(world)
    yield made
    await made.client.close()


async def test_a_client_connects_to_the_first_candidate_and_reads_on_from_its_position(world: World) -> None:
    """What came before the position is known to the application."""
    await world.publish("a", "b", "c")
    app = Application(world, position=Position("first", 1), device="phone", platform="ios")
    await app.client.connect()
    await app.has("b", "c")
    await world.publish("d")
    await app.has("b", "c", "d")
    assert app.client.position == Position("first", 4)
    assert world.connects == ["one"]
    _, params, credential = world.questions[0]
    assert params == {"user": USER, "device": "phone", "platform": "ios"}
    assert credential == "Bearer token"
    await app.client.close()
    await app.client.close()


async def test_a_candidate_that_fails_is_passed_over_with_the_same_ticket(world: World, app: Application) -> None:
    """Nobody there, and a refusal before the upgrade: neither has seen the ticket."""
    world.candidates = ["nobody", "one", "two"]
    world.nodes["one"].is_refusing = True
    await app.client.connect()
    await app.is_on("two")
    assert len(world.questions) == 1


async def test_a_candidate_that_closes_before_it_answers_is_passed_over(world: World, app: Application) -> None:
    """With a code that allows to reconnect."""
    world.nodes["one"].closes_connects = 3001
    await app.client.connect()
    await app.is_on("two")
    assert world.connects == ["one", "two"]


async def test_a_used_ticket_is_replaced_by_a_fresh_one(world: World, app: Application) -> None:
    """The scheduler is asked once more; the application is not told."""
    world.used.add("ticket-1")
    await app.client.connect()
    assert len(world.questions) == 2
    assert not app.ends


async def test_a_fresh_ticket_that_is_refused_as_used_is_no_endless_loop(world: World, app: Application) -> None:
    """Connecting fails then."""
    world.used.update(f"ticket-{number}" for number in range(10))
    with pytest.raises(PeerUnavailable):
        await app.client.connect()
    assert len(world.questions) == 2


async def test_connecting_fails_when_no_candidate_lets_the_client_in(world: World, app: Application) -> None:
    """The application decides whether to try again, and can."""
    for node in world.nodes.values():
        node.is_refusing = True
    with pytest.raises(PeerUnavailable):
        await app.client.connect()
    world.nodes["three"].is_refusing = False
    await app.client.connect()
    await app.is_on("three")


async def test_a_node_that_does_not_answer_is_passed_over_in_time(
    world: World, app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each wait has a deadline."""
    monkeypatch.setattr("roadstead.client.connection.DEADLINE_S", 0.2)
    world.nodes["one"].is_silent = True
    await app.client.connect()
    await app.is_on("two")


@pytest.mark.parametrize("code", [3001, 3008, 3012, 3499, 4000, 4499])
async def test_after_a_close_in_the_reconnect_range_nothing_is_lost_or_twice(
    world: World, app: Application, code: int
) -> None:
    """What was published meanwhile comes from the next node."""
    await app.client.connect()
    await world.publish("a", "b")
    await app.has("a", "b")
    world.candidates = ["two"]
    await world.nodes["one"].close_all(code)
    await world.publish("c")
    await app.is_on("two")
    await world.publish("d")
    await app.has("a", "b", "c", "d")
    assert world.asked[-1][:3] == ("two", INBOX, "first")
    assert not app.ends


async def test_after_a_crash_of_its_node_nothing_is_lost_or_twice(world: World, app: Application) -> None:
    """No close frame, and the scheduler still names the dead node first."""
    await app.client.connect()
    await world.publish("a")
    await app.has("a")
    await world.nodes["one"].kill()
    await world.publish("b")
    await app.has("a", "b")
    await app.is_on("two")


@pytest.mark.parametrize("code", [3500, 3503, 3999, 4500, 4999])
async def test_a_terminal_close_is_told_and_not_retried(world: World, app: Application, code: int) -> None:
    """Calls say the same afterwards; the application may connect again."""
    await app.client.connect()
    await world.nodes["one"].close_all(code, "evicted by another device")
    await becomes(lambda: app.ends)
    assert [(type(end), end.detail["close_code"]) for end in app.ends] == [(PermissionDenied, code)]
    with pytest.raises(PermissionDenied, match="evicted by another device"):
        await app.client.call("where", {})
    assert len(world.questions) == 1
    await world.publish("a")
    await app.client.connect()
    await app.has("a")


async def test_a_terminal_close_while_connecting_is_raised(world: World, app: Application) -> None:
    """No other candidate is tried."""
    world.nodes["one"].closes_connects = 3500
    with pytest.raises(PermissionDenied):
        await app.client.connect()
    assert world.connects == ["one"]


async def test_waits_between_rounds_grow_and_heed_retry_after(world: World, app: Application) -> None:
    """A crowd of clients is spread, and no scheduler is asked before it said so."""
    await app.client.connect()
    refusal = {"code": 104, "message": "starting", "detail": {"retry_after_ms": 150}}
    world.refusals = [refusal, refusal, {"code": 104, "message": "starting"}]
    await app.breaks()
    times = [time for time, _, _ in world.questions[1:]]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert len(gaps) == 3
    assert all(gap >= 0.150 for gap in gaps[:2])
    assert gaps[2] < 0.150


async def test_waits_stay_below_a_ceiling_that_doubles_as_the_scheduler_says(world: World, app: Application) -> None:
    """Full jitter: each wait is anything up to the ceiling, in ms."""
    world.backoff = {"base_ms": 10, "ceiling_ms": 40}
    await app.client.connect()
    ceilings: list[int] = []
    app.client._dialer._backoff._random = Ceilings(ceilings)
    world.refusals = [{"code": 104, "message": "starting"}] * 4
    await app.breaks()
    await app.is_on("one")
    assert ceilings == [10, 20, 40, 40, 40]
    await app.breaks()
    assert ceilings == [10, 20, 40, 40, 40, 40], "a connection that breaks at once does not count as success"


class Ceilings:
    """Notes what it is asked to draw below."""

    def __init__(self, asked: list[int]) -> None:
        self._asked = asked

    def randrange(self, stop: int, /) -> int:
        self._asked.append(stop)
        return 0


async def test_a_connection_that_lived_long_begins_with_short_waits_again(
    world: World, app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outage before it is forgotten."""
    monkeypatch.setattr("roadstead.client.dialer.STABLE_S", 0.0)
    world.backoff = {"base_ms": 10, "ceiling_ms": 40}
    await app.client.connect()
    ceilings: list[int] = []
    app.client._dialer._backoff._random = Ceilings(ceilings)
    for _ in range(3):
        await app.breaks()
        await app.is_on("one")
    assert ceilings == [10, 10, 10]


async def test_a_refused_credential_is_told_and_not_retried(world: World, app: Application) -> None:
    """With another one the application connects again."""
    await app.client.connect()
    world.refusals = [{"code": 301, "message": "the user token is not valid"}]
    await world.nodes["one"].close_all(3001)
    await becomes(lambda: app.ends)
    assert [type(end) for end in app.ends] == [Unauthenticated]
    app.client.credential = "another"
    await app.client.connect()
    assert world.questions[-1][2] == "Bearer another"


async def test_a_client_that_is_closed_while_it_waits_is_closed_at_once(world: World, app: Application) -> None:
    """Nothing is left behind that would connect later."""
    await app.client.connect()
    world.refusals = [{"code": 104, "message": "starting", "detail": {"retry_after_ms": 60_000}}]
    await world.nodes["one"].close_all(3001)
    await becomes(lambda: len(world.questions) == 2)
    async with asyncio.timeout(1):
        await app.client.close()
    assert world.connects == ["one"]


async def test_a_move_is_followed_before_the_old_connection_is_closed(world: World, app: Application) -> None:
    """So that the user is never offline; the scheduler is not asked."""
    await app.client.connect()
    await world.publish("a")
    await app.has("a")
    one, two = world.nodes["one"], world.nodes["two"]
    seen: list[tuple[int, int]] = []

    async def watch() -> bool:
        seen.append((len(one.sessions), len(two.sessions)))
        return not one.sessions

    await one.move_all(two.url, world.ticket())
    await eventually(watch)
    assert all(old or new for old, new in seen)
    await app.is_on("two")
    assert len(world.questions) == 1
    assert world.asked[-1] == ("two", INBOX, "first", 1)


async def test_what_both_connections_of_a_move_tell_is_handed_over_once(world: World, app: Application) -> None:
    """The old one is first with what was published after the new one's position was read."""
    await app.client.connect()
    await world.publish("a")
    await app.has("a")

    async def publish() -> None:
        await world.publish("b")
        await app.has("a", "b")
        await world.publish("c")

    world.nodes["two"].before_subscribe = publish
    await world.nodes["one"].move_all(world.nodes["two"].url, world.ticket())
    await app.is_on("two")
    await world.publish("d")
    await app.has("a", "b", "c", "d")


async def test_no_connection_overtakes_a_handler_that_is_busy_with_anothers_publication(
    world: World, app: Application
) -> None:
    """The new connection waits for it, though it was told the same."""
    await app.client.connect()

    async def publish() -> None:
        app.may_go_on.clear()
        await world.publish("a")
        await becomes(lambda: app.begun)
        asyncio.get_running_loop().call_later(0.05, app.may_go_on.set)

    world.nodes["two"].before_subscribe = publish
    await world.nodes["one"].move_all(world.nodes["two"].url, world.ticket())
    await app.is_on("two")
    await world.publish("b")
    await app.has("a", "b")


async def test_during_moves_every_publication_arrives_once_and_in_order(world: World, app: Application) -> None:
    """Under a stream of them, round and round."""
    await app.client.connect()
    names = ["one", "two", "three"]
    for number in range(30):
        source, target = world.nodes[names[number % 3]], world.nodes[names[(number + 1) % 3]]
        await source.move_all(target.url, world.ticket())
        while source.sessions:
            await world.publish(len(world.timeline))
            await asyncio.sleep(0.0005)  # a stream, not a flood that nobody can read
    await app.has(*range(len(world.timeline)))
    assert len(world.questions) == 1


async def test_a_move_that_fails_asks_the_scheduler(world: World, app: Application) -> None:
    """The old connection serves until there is another."""
    await app.client.connect()
    world.candidates = ["two"]
    await world.nodes["one"].move_all(world.url("nobody"), world.ticket())
    await app.is_on("two")
    assert not world.nodes["one"].sessions
    assert len(world.questions) == 2


async def test_a_move_with_a_used_ticket_asks_the_scheduler(world: World, app: Application) -> None:
    """As with any used ticket."""
    await app.client.connect()
    world.candidates = ["three"]
    world.used.add("spent")
    await world.nodes["one"].move_all(world.nodes["two"].url, "spent")
    await app.is_on("three")


async def test_a_move_that_names_no_node_asks_the_scheduler(world: World, app: Application) -> None:
    """As when no node that the draining one knows has room."""
    await app.client.connect()
    world.candidates = ["two"]
    (session,) = world.nodes["one"].sessions
    await session.push({"message": {"data": {"move": {"after_ms": 10_000}}}})
    await app.is_on("two")


async def test_when_there_is_nowhere_to_move_to_the_old_connection_goes_on(world: World, app: Application) -> None:
    """And a later move is followed."""
    await app.client.connect()
    world.refusals = [{"code": 104, "message": "starting"}]
    await world.nodes["one"].move_all(world.url("nobody"), world.ticket())
    await becomes(lambda: len(world.questions) == 2)
    await world.publish("a")
    await app.has("a")
    await app.is_on("one")
    await world.nodes["one"].move_all(world.nodes["two"].url, world.ticket())
    await app.is_on("two")


async def test_an_eviction_by_its_own_successor_is_not_told(world: World, app: Application) -> None:
    """Where only one device may be connected, the moved connection evicts the old one."""
    await app.client.connect()
    world.nodes["two"].is_silent = True
    await world.nodes["one"].move_all(world.nodes["two"].url, world.ticket())
    await becomes(lambda: world.nodes["two"].sessions)
    await world.nodes["one"].close_all(3503)
    world.nodes["two"].is_silent = False
    await world.nodes["two"].close_all(3001)  # its connect was not answered; the scheduler names the next
    world.candidates = ["three"]
    await app.is_on("three")
    assert not app.ends


async def test_other_messages_of_the_server_are_no_moves(world: World, app: Application) -> None:
    """Nothing happens, and the connection goes on."""
    await app.client.connect()
    (session,) = world.nodes["one"].sessions
    for data in ("hello", {"move": "nowhere"}, {"other": 1}, None):
        await session.push({"message": {"data": data}})
    await world.publish("a")
    await app.has("a")
    await app.is_on("one")
