"""A process kills itself at each point of a resize that has a name: no answer is wrong, and the resize ends as wished.

One process plays the role that the point names, and is armed with it (see `base.faultpoint`): a status node that leads,
loses partitions or gains them, or an access node. Users are looked up all the time. The dead process is started again,
not armed; then the resize must come to its end, with everybody online.

ROADSTEAD_TEST_DEAD_S sets for how many seconds a status node stays dead, 0 by default: its next life is there before
anybody presumes it gone.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from base.faultpoint import CRASH_AT
from bench.status_cluster import Cluster, Sessions, cluster
from bench.status_node import opened
from status.core.faultpoints import POINTS
from status.core.partitions import Stage

pytestmark = pytest.mark.process

STATUS = ["status-1", "status-2", "status-3"]
LEADER, SOURCE, TARGET = STATUS
"""The target is added by the resize; for a recovery it is there from the start, and takes over from the source."""
ACCESS = {"access-1": Sessions(0, 2_000, changes_per_s=100), "access-2": Sessions(2_000, 2_000, changes_per_s=100)}
CAST = {"leader": LEADER, "source": SOURCE, "target": TARGET, "access": "access-2"}
USERS = {
    name: [opened(number).user for number in range(one.first, one.first + one.count)] for name, one in ACCESS.items()
}
ASKED = 100
"""So many users of each access node are looked up at once."""
PAUSE_S = 0.01
ONLINE_S_MAX = 3.0
"""So long after the death of its access node a user may still be shown.

A busy machine needs no allowance: the death counts from when it was seen, a lookup from when it was asked for.
"""
LATE_LOOKS = 30
"""So often users are looked up after that, before their access node is started again."""
WHOLE_LOOKS = 5
"""So often in a row everybody must be found online."""
DEAD_S = float(os.environ.get("ROADSTEAD_TEST_DEAD_S", "0"))
REACHED_S_MAX = 30.0
DONE_S_MAX = 60.0


class Reader:
    """Looks users up all the time, and knows what must not be said of them."""

    def __init__(self, made: Cluster) -> None:
        """All users were found online."""
        self.wrong: list[str] = []
        self.late_looks = 0
        """How often users of a dead access node were looked up when nobody of it may be online any more."""
        self._made = made
        self._online = {user for users in USERS.values() for user in users}
        """Who was shown since its access node was started: it must not be said to be offline."""
        self._died_at: dict[str, float] = {}
        self._rng = random.Random(1)

    async def run(self) -> None:
        """Look without an end."""
        while True:
            await self._look()
            await asyncio.sleep(PAUSE_S)

    def died(self, access: str) -> None:
        """An access node is dead."""
        self._died_at[access] = time.monotonic()
        self._online.difference_update(USERS[access])

    def returns(self, access: str) -> None:
        """It is started again."""
        del self._died_at[access]

    async def _look(self) -> None:
        died_at, asked_at = dict(self._died_at), time.monotonic()
        users = {user: name for name in ACCESS for user in self._rng.sample(USERS[name], ASKED)}
        statuses = await self._made.client.lookup(list(users))
        late = {name for name, at in died_at.items() if asked_at > at + ONLINE_S_MAX}
        self.late_looks += bool(late)
        for user, name in users.items():
            state = statuses[user].state
            if state == "unknown":
                continue
            if user in self._online if state == "offline" else name in late:
                self.wrong.append(f"{user} of {name} is {state} at {asked_at:.3f} s, epoch {self._made.table.epoch}")
            elif state != "offline" and name not in {*died_at, *self._died_at}:
                self._online.add(user)


@asynccontextmanager
async def watched(made: Cluster) -> AsyncIterator[Reader]:
    """Look users up until the block ends; then no answer may have been wrong."""
    await until_all_online(made)
    reader = Reader(made)
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(reader.run())
        yield reader
        reading.cancel()
    assert not reader.wrong, f"{len(reader.wrong)} answers were wrong: {reader.wrong[:3]} ... {reader.wrong[-1]}"


async def until(is_so: Callable[[], bool], failure: str, *, within_s: float) -> None:
    """Return as soon as the condition holds."""
    give_up = time.monotonic() + within_s
    while not is_so():
        is_late = time.monotonic() > give_up
        assert not is_late, failure
        await asyncio.sleep(PAUSE_S)


async def until_dead(made: Cluster, name: str, point: str) -> None:
    """Return once a process killed itself at the point."""
    code: int | None = None

    def is_dead() -> bool:
        nonlocal code
        code = made.exit_code(name)
        return code is not None

    await until(is_dead, f"{point} was not reached", within_s=REACHED_S_MAX)
    assert code == -signal.SIGKILL, f"{point} was not reached, {name} ended by itself"


async def until_all_online(made: Cluster) -> None:
    """Return once everybody was found online several times in a row."""
    everybody = [user for users in USERS.values() for user in users]
    give_up = time.monotonic() + DONE_S_MAX
    in_a_row = 0
    while in_a_row < WHOLE_LOOKS:
        statuses = await made.client.lookup(everybody)
        missing = [user for user, status in statuses.items() if status.state in {"offline", "unknown"}]
        in_a_row = 0 if missing else in_a_row + 1
        is_late = time.monotonic() > give_up
        assert not is_late, f"{len(missing)} users are not online, such as {missing[:3]}"
        await asyncio.sleep(PAUSE_S)


async def lose_the_source(made: Cluster, *, is_armed: bool) -> list[str]:
    """Have the partitions of an owner taken over without it; return which status nodes are dead.

    If it shall see that itself, it was only stopped. A recovery would soon be over, but for one more dead node: most
    nodes must know of it.
    """
    if not is_armed:
        made.kill(SOURCE)
        return [SOURCE]
    made.freeze(SOURCE)
    made.kill(TARGET)
    await until(
        lambda: any(move.source == SOURCE and move.stage is Stage.RECOVER for move in made.table.moves),
        f"nobody took over from {SOURCE}",
        within_s=REACHED_S_MAX,
    )
    made.thaw(SOURCE)
    return [TARGET]


async def replace_access(made: Cluster, name: str, reader: Reader) -> None:
    """Start an access node again, once it was seen that nobody of it is online any more."""
    reader.died(name)
    await until(lambda: reader.late_looks >= LATE_LOOKS, "lookups hang", within_s=ONLINE_S_MAX + REACHED_S_MAX)
    reader.returns(name)
    await made.start_access(name, ACCESS[name])


@pytest.mark.spec("PR-04")
@pytest.mark.parametrize("point", POINTS)
async def test_whoever_dies_no_answer_is_wrong_and_the_resize_ends(point: str) -> None:
    """Never "offline" while the access node lives, nor "online" long after its death; "unknown" until all is well."""
    role, stage = point.split(".")
    is_recovery = stage == Stage.RECOVER.value
    owners, armed = STATUS if is_recovery else STATUS[:2], CAST[role]
    env = {armed: {CRASH_AT: point}}
    async with cluster(owners, spares=STATUS[len(owners) :], leader=LEADER, env=env) as made:
        async with asyncio.TaskGroup() as tasks:
            for name, sessions in ACCESS.items():
                tasks.create_task(made.start_access(name, sessions, env=env.get(name)))
        async with watched(made) as reader:
            assert made.exit_code(armed) is None, f"{armed} died before the resize"
            dead, epoch = list[str](), made.table.epoch
            if is_recovery:
                dead += await lose_the_source(made, is_armed=role == "source")
            else:
                await made.wish(STATUS)
            await until_dead(made, armed, point)
            if armed in STATUS:
                dead.append(armed)
                await asyncio.sleep(DEAD_S)
            for name in dead:
                made.start_status(name, nodes=len(owners))
            if armed in ACCESS:
                await replace_access(made, armed, reader)
            await until(
                lambda: made.table.epoch > epoch and made.is_done(STATUS),
                "the resize does not end",
                within_s=DONE_S_MAX,
            )
            await until_all_online(made)
