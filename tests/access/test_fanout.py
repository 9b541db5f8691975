"""One push to many connections: in chunks, in order, and without holding up anybody."""

from __future__ import annotations

import asyncio
from random import Random

import msgspec
import pytest

from access.core.outgoing import Form, Outgoing
from access.core.protocol import Message, Publication
from access.fanout import CHUNK, HOLES_MIN, Fanout, Roll, write
from base.clock import SimClock, SystemClock

JSON, PROTOBUF = Form.STREAM_JSON, Form.STREAM_PROTOBUF


class Log:
    """What was written, in order, over all connections."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, bytes]] = []


class Receiver:
    def __init__(self, log: Log, number: int, form: Form = JSON) -> None:
        self.log = log
        self.number = number
        self.form = form

    def write(self, frame: bytes, replaces: int | None = None) -> None:
        del replaces
        self.log.writes.append((self.number, frame))


def receivers(log: Log, count: int) -> list[Receiver]:
    return [Receiver(log, number) for number in range(count)]


def push(number: int) -> Outgoing:
    return Outgoing("c", Publication(msgspec.Raw(b"%d" % number), number))


def frame(number: int, form: Form = JSON) -> bytes:
    return push(number).frame(form)


async def until_written(fanout: Fanout) -> None:
    async with asyncio.timeout(30):
        while len(fanout):  # noqa: ASYNC110 - there is no event for it, since nobody else waits for it
            await asyncio.sleep(0)


def test_a_push_to_few_is_written_at_once():
    """Without the loop."""
    log, fanout = Log(), Fanout(SystemClock())
    assert fanout.send("c", receivers(log, CHUNK), push(1))
    assert log.writes == [(number, frame(1)) for number in range(CHUNK)]
    assert len(fanout) == 0


def test_each_connection_gets_its_form_encoded_once():
    """The same bytes for all of a form."""
    log = Log()
    some = [Receiver(log, 0, JSON), Receiver(log, 1, PROTOBUF), Receiver(log, 2, JSON)]
    write(some, push(1))
    assert log.writes == [(0, frame(1, JSON)), (1, frame(1, PROTOBUF)), (2, frame(1, JSON))]
    assert log.writes[0][1] is log.writes[2][1]


@pytest.mark.spec("RT-03")
async def test_a_push_to_a_hundred_thousand_lets_the_loop_go_on_after_each_chunk():
    """Whatever else is due runs in between: as often as there are chunks."""
    log, fanout = Log(), Fanout(SystemClock())
    written: list[int] = []
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(fanout.run())
        assert fanout.send("c", receivers(log, 100_000), push(1))
        assert log.writes == []
        while len(fanout):
            await asyncio.sleep(0)
            written.append(len(log.writes))
        running.cancel()
    steps = [after - before for before, after in zip([0, *written], written, strict=False)]
    assert max(steps) == CHUNK
    assert log.writes == [(number, frame(1)) for number in range(100_000)]


async def test_pushes_of_a_key_keep_their_order_and_other_keys_go_on():
    """A short one waits behind the long one of its key, and only there."""
    log, other, fanout = Log(), Log(), Fanout(SystemClock(), chunk=10)
    many, few = receivers(log, 35), receivers(other, 25)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(fanout.run())
        fanout.send("c", many, push(1))
        fanout.send("c", many[:3], push(2))
        fanout.send("d", few, push(3))
        assert fanout.is_busy("c")
        assert fanout.send("e", few[:1], push(4))
        assert other.writes == [(0, frame(4))]
        for _ in range(5):  # the runner starts, and writes a chunk of each in turn
            await asyncio.sleep(0)
        assert (len(log.writes), len(other.writes)) == (30, 1 + 20)
        await until_written(fanout)
        running.cancel()
    assert log.writes == [(number, frame(1)) for number in range(35)] + [(number, frame(2)) for number in range(3)]
    assert not fanout.is_busy("c")


async def test_what_may_wait_for_a_key_is_bounded_and_can_be_dropped():
    """The owner of the key decides what to do then."""
    log, fanout = Log(), Fanout(SystemClock(), chunk=1, waiting_max=2)
    two = receivers(log, 2)
    assert fanout.send("c", two, push(1))
    assert fanout.send("c", two, push(2))
    assert not fanout.send("c", two, push(3))
    assert len(fanout) == 2
    fanout.drop("c")
    fanout.drop("c")
    assert len(fanout) == 0
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(fanout.run())
        fanout.send("c", two, push(4))
        await until_written(fanout)
        running.cancel()
    assert log.writes == [(0, frame(4)), (1, frame(4))]


async def test_a_key_may_be_dropped_while_it_is_written():
    """Also by what a write brings about."""
    log, fanout = Log(), Fanout(SystemClock(), chunk=1)

    class Dropper(Receiver):
        def write(self, frame: bytes, replaces: int | None = None) -> None:
            super().write(frame, replaces)
            fanout.drop("c")
            fanout.drop("d")
            fanout.send("c", [Receiver(log, 7), Receiver(log, 8)], push(9))

    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(fanout.run())
        fanout.send("c", [Dropper(log, 5), Receiver(log, 6)], push(2))
        fanout.send("d", receivers(log, 2), push(1))
        await until_written(fanout)
        running.cancel()
    assert [number for number, _ in log.writes] == [5, 7, 8]


# ---------------------------------------------------------------- the roll


async def test_a_push_under_way_goes_to_who_was_there_when_it_was_sent_and_still_is():
    """Neither to who left, nor to who came."""
    log, fanout, roll = Log(), Fanout(SystemClock(), chunk=2), Roll()
    some = receivers(log, 6)
    for one in some[:5]:
        roll.add(one)
    fanout.send("c", roll.connections, push(1))
    roll.discard(some[4])
    roll.discard(some[4])
    roll.add(some[5])
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(fanout.run())
        await until_written(fanout)
        fanout.send("c", roll.connections, push(2))
        await until_written(fanout)
        running.cancel()
    assert [number for number, one in log.writes if one == frame(1)] == [0, 1, 2, 3]
    assert [number for number, one in log.writes if one == frame(2)] == [0, 1, 2, 3, 5]


def test_a_roll_is_made_anew_when_it_is_mostly_holes():
    """So that who left costs nothing for long."""
    log, roll = Log(), Roll()
    some = receivers(log, 200)
    for one in some:
        roll.add(one)
    for one in some[:HOLES_MIN]:
        roll.discard(one)
    roll.close_up()
    assert len(roll.connections) == 200
    for one in some[HOLES_MIN:120]:
        roll.discard(one)
    roll.close_up()
    assert (len(roll.connections), len(roll)) == (80, 80)


@pytest.mark.parametrize("seed", range(10))
def test_a_roll_is_a_list_without_those_who_left(seed: int):
    """In the order in which they came."""
    random, log, roll = Random(seed), Log(), Roll()
    twin: list[Receiver] = []
    for number in range(500):
        if random.random() < 0.55 or not twin:
            twin.append(Receiver(log, number))
            roll.add(twin[-1])
        else:
            roll.discard(twin.pop(random.randrange(len(twin))))
        roll.close_up()
        assert (len(roll), twin[-1] in roll if twin else False) == (len(twin), bool(twin))
    write(roll.connections, Outgoing("", Message(msgspec.Raw(b"1"))))
    assert [number for number, _ in log.writes] == [one.number for one in twin]
    with pytest.raises(AssertionError):
        roll.add(twin[0])


async def test_a_push_that_waits_is_timed_to_its_last_write():
    """One that is written at once is not: whoever sends it knows how long that took."""
    clock, times = SimClock(), list[float]()
    log, fanout = Log(), Fanout(clock, chunk=2, pushed=times.append)
    fanout.send("c", receivers(log, 2), push(1))
    fanout.send("c", receivers(log, 5), push(2))
    fanout.send("c", receivers(log, 1), push(3))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(fanout.run())
        while len(fanout):
            clock.advance(10)
            await asyncio.sleep(0)
        running.cancel()
    assert len(log.writes) == 8
    assert [round(seconds, 3) for seconds in times] == [0.03, 0.04]
