"""The status backend on Redis: `RedisSessionReports` for access nodes, `RedisStatusLookups` for whoever asks.

One sorted set a user, `status:{user}`: a member is a session's record, its score the time at which it expires. As in
the article, heartbeats keep a session there and silence ends it; unlike in the article they do not cost a command each:
an access node refreshes all its sessions once in a third of the time to live, spread evenly, in pipelines of at most
500 users (`core/refreshing.py`).

**Whose clock.** The server's, always: scripts read TIME, write it plus the time to live as the score, and compare
scores with it. Access nodes and readers with wrong clocks so do no harm. Redis replicates what a script did, not the
script, so replicas hold the same scores; after a failover they are compared with another server's clock, and until the
next refresh sessions are shorter or longer by as much as the two differ. A key expires with its last member.

**Misses.** A user without records is offline only if nothing was lost lately. For each lane there is a *witness*, a key
with a random value and the time at which it was made, which every lookup reads after its users, in the same pipeline.
If it fails or has another value than before, the store was away or lost data, and for one time to live, in which every
access node has written its sessions again, those who are not found are unknown. So they are to a reader that begins
within a time to live after the witness was made: it cannot know why there was none before.

What this backend cannot do, and the cluster can:
    - An access node that dies leaves its sessions online for up to the time to live.
    - So does a write that hung in a broken connection and arrives after the removal of what it wrote.
    - An access node that is cut off from Redis for longer than the time to live looks dead: its users look offline.
    - A failover may lose the last writes and keep the witness: the sessions in them look offline until their next
      refresh, or online until they expire. A jump of the server's clock does the same.
    - Sessions of an access node's former life show until they expire, unless the user is back at the new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from base.clock import Instant
from base.core.backoff import Backoff
from base.ids import entropy, new_epoch
from base.log import logger
from base.site import Site
from status.api import OFFLINE, UNKNOWN, Closed, Evict, Opened, UserStatus
from status.config import StatusConfig
from status.core.refreshing import BATCH_MAX, LANES, PHASES, RefreshLane, key_of, lane_of, status_of
from status.redis_link import Call, Failed, RedisLink, Script

__all__ = ["WITNESSES", "RedisSessionReports", "RedisStatusLookups"]

DEADLINE_MS = 1_000
LOOKUP_DEADLINE_MS = 1_000
PROBE_INTERVAL_MS = 500
WITNESS_TTL_MS = 60_000
LOOKUPS_IN_FLIGHT = 8
LOOKUPS_WAITING_MAX = 1_000

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

# ARGV: time to live in ms, how many members to remove, those, then the members to write.
_WRITE = Script(
    "if redis.replicate_commands then redis.replicate_commands() end"
    + _NOW
    + """
local ttl = tonumber(ARGV[1])
local gone = tonumber(ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
for i = 3, 2 + gone do redis.call('ZREM', KEYS[1], ARGV[i]) end
for i = 3 + gone, #ARGV do redis.call('ZADD', KEYS[1], string.format('%.0f', now + ttl), ARGV[i]) end
if redis.call('PTTL', KEYS[1]) < ttl then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return 1
"""
)

# The live members, those that expire first first.
_READ = Script(_NOW + "return redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', now), '+inf')")

# ARGV: a value if there is none, time to live in ms. Answers the value that is there, and how old it is in ms.
_WITNESS = Script(
    "if redis.replicate_commands then redis.replicate_commands() end"
    + _NOW
    + """
local made = ARGV[1] .. '@' .. string.format('%.0f', now)
if not redis.call('SET', KEYS[1], made, 'NX', 'PX', ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
local value = redis.call('GET', KEYS[1])
return {value, now - (tonumber(string.match(value, '@(%d+)$')) or now)}
"""
)


@dataclass(slots=True)
class _Lane:
    sessions: RefreshLane
    news: asyncio.Event = field(default_factory=asyncio.Event)
    is_failing: bool = False
    failures: int = 0


class RedisSessionReports:
    """An access node's sessions, kept in Redis. Implements `SessionReports`."""

    def __init__(self, config: StatusConfig, site: Site) -> None:
        self._site = site
        self._ttl_ms = config.redis_ttl_ms
        self._interval_ms = config.redis_ttl_ms // 3
        # A refresh that fails once still comes in time: a third to begin it, a sixth to fail, a sixth to wait.
        self._deadline_ms = min(DEADLINE_MS, config.redis_ttl_ms // 6)
        self._link = RedisLink(
            config.redis_url,
            config.redis_profile,
            clock=site.clock,
            connections_max=2 * LANES,
            timeout_ms=self._deadline_ms,
        )
        self._lanes = [_Lane(RefreshLane(site.name, site.incarnation)) for _ in range(LANES)]
        # By session: the members that somebody waits for, in the order in which they were reported.
        self._confirming: dict[str, list[tuple[bytes, asyncio.Future[None]]]] = {}
        self._ready = asyncio.Event()
        self._log = logger(node=site.name, backend="redis")

    async def run(self) -> None:
        """Write until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._link.run())
            tasks.create_task(self._reach())
            tasks.create_task(self._tick())
            for lane in self._lanes:
                tasks.create_task(self._write_forever(lane))

    async def wait_ready(self) -> None:
        """Return once Redis answered."""
        await self._ready.wait()

    async def open(self, opened: Opened, *, deadline_ms: int) -> bool:
        """Report a session; True once Redis has it, or a later change of it; False if that took too long.

        It is still reported then.
        """
        confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._confirming.setdefault(opened.session, [])
        waiting.append((self._report(opened), confirmed))
        try:
            async with asyncio.timeout(deadline_ms / 1000):
                await confirmed
        except TimeoutError:
            return False
        finally:
            waiting[:] = [one for one in waiting if one[1] is not confirmed]
            if not waiting and self._confirming.get(opened.session) is waiting:
                del self._confirming[opened.session]
        return True

    def report(self, opened: Opened) -> None:
        """Report a session without waiting."""
        self._report(opened)

    def close(self, closed: Closed) -> None:
        """Report that a session ended; removed at once, or by expiry if Redis is away for that long."""
        lane = self._lanes[lane_of(closed.user)]
        lane.sessions.close(closed)
        lane.news.set()

    def on_evict(self, listener: Callable[[Evict], None]) -> None:
        """Nothing: this backend has no device policy."""

    def digest(self) -> None:
        """There is none: sessions expire in Redis by themselves, one by one."""

    def statistics(self) -> dict[str, dict[str, int]]:
        """Return a snapshot of each lane."""
        return {
            f"lane-{number}": {**lane.sessions.statistics(), "failures": lane.failures}
            for number, lane in enumerate(self._lanes)
        }

    def _report(self, opened: Opened) -> bytes:
        lane = self._lanes[lane_of(opened.user)]
        member = lane.sessions.open(opened)
        lane.news.set()
        return member

    async def _reach(self) -> None:
        await _until_reached(self._link, self._site, self._deadline_ms)
        self._ready.set()

    async def _tick(self) -> None:
        """Make one phase due after the other, so that each comes once an interval."""
        clock = self._site.clock
        started = clock.monotonic()
        for number in count(1):
            due_at = Instant(started + number * self._interval_ms // PHASES)
            await clock.sleep_until(due_at)
            for lane in self._lanes:
                lane.sessions.tick(number)
                if lane.sessions.has_work:
                    lane.news.set()

    async def _write_forever(self, lane: _Lane) -> None:
        """Write what changed and what is due at once, and what failed again and again, with pauses."""
        clock = self._site.clock
        backoff = Backoff(entropy(), base_ms=20, ceiling_ms=self._deadline_ms)
        retry_at = Instant(0)
        while True:
            await self._wait_for_work(lane, retry_at)
            is_retrying = lane.sessions.has_failed and clock.monotonic() >= retry_at
            error = await self._write_batch(lane, is_retrying=is_retrying)
            now = clock.monotonic()
            if error is not None:
                lane.failures += 1
                if is_retrying or retry_at <= now:
                    retry_at = Instant(now + backoff.next_ms())
                if not lane.is_failing:
                    self._log.warning("redis_write_failed", error=error.reason)
                    lane.is_failing = True
            elif is_retrying:
                backoff.reset()
            if lane.is_failing and error is None and not (lane.sessions.has_failed or lane.sessions.has_work):
                self._log.info("redis_reached_again")
                lane.sessions.resync()  # what was written before may be lost
                lane.is_failing = False

    async def _wait_for_work(self, lane: _Lane, retry_at: Instant) -> None:
        """Return when there is something to write, or to try again."""
        while not lane.sessions.has_work:
            lane.news.clear()
            wait_s = None
            if lane.sessions.has_failed:
                wait_s = max(0, retry_at - self._site.clock.monotonic()) / 1000
            try:
                async with asyncio.timeout(wait_s):
                    await lane.news.wait()
            except TimeoutError:
                return

    async def _write_batch(self, lane: _Lane, *, is_retrying: bool) -> Failed | None:
        """Write what is due, at most a batch of it; return a failure if there was one."""
        batch = lane.sessions.next_batch(is_retrying=is_retrying)
        if not batch:
            return None
        calls = [
            Call(_WRITE, key_of(write.user), (self._ttl_ms, len(write.gone), *write.gone, *write.held))
            for write in batch
        ]
        failure: Failed | None = None
        answers = await self._link.execute(calls, deadline_ms=self._deadline_ms)
        for write, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Failed):
                failure = answer
                lane.sessions.failed(write)
                continue
            for session, member in lane.sessions.written(write):
                self._confirm(session, member)
        return failure

    def _confirm(self, session: str, member: bytes) -> None:
        """Tell whoever waits for this member of a session, or for one that it replaced."""
        waiting = self._confirming.get(session, [])
        carried = [index for index, (awaited, _) in enumerate(waiting) if awaited == member]
        for _, confirmed in waiting[: carried[-1] + 1] if carried else ():
            if not confirmed.done():
                confirmed.set_result(None)


class RedisStatusLookups:
    """Lookups in Redis. Implements `StatusLookups`."""

    def __init__(self, config: StatusConfig, site: Site) -> None:
        self._site = site
        self._doubt_ms = config.redis_ttl_ms
        self._link = RedisLink(
            config.redis_url,
            config.redis_profile,
            clock=site.clock,
            connections_max=2 * (LOOKUPS_IN_FLIGHT + 1),
            timeout_ms=LOOKUP_DEADLINE_MS,
        )
        self._slots = asyncio.Semaphore(LOOKUPS_IN_FLIGHT)
        self._waiting = 0
        self._witnessed: list[bytes | None] = [None] * LANES
        self._doubted_until: list[Instant] = [Instant(0)] * LANES
        self._ready = asyncio.Event()

    async def run(self) -> None:
        """Watch the witnesses, so that they live and a loss is noticed without a lookup, until cancelled."""
        clock = self._site.clock
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._link.run())
            await _until_reached(self._link, self._site, LOOKUP_DEADLINE_MS)
            self._ready.set()
            while True:
                await self._read([], range(LANES))
                await clock.sleep_until(Instant(clock.monotonic() + PROBE_INTERVAL_MS))

    async def wait_ready(self) -> None:
        """Return once Redis answered."""
        await self._ready.wait()

    async def lookup(self, users: Sequence[str], *, viewer: str | None = None) -> dict[str, UserStatus]:
        """Return the status of each user, to the viewer; `unknown` for whoever could not be asked about in time."""
        found = await self._lookup(users)
        if viewer is None:
            return found
        return {user: _seen_by(viewer, user, status) for user, status in found.items()}

    async def _lookup(self, users: Sequence[str]) -> dict[str, UserStatus]:
        found: dict[str, UserStatus] = dict.fromkeys(users, UNKNOWN)
        names = list(found)
        batches = [names[start : start + BATCH_MAX] for start in range(0, len(names), BATCH_MAX)]
        if self._waiting + len(batches) > LOOKUPS_WAITING_MAX:
            return found
        self._waiting += len(batches)
        try:
            async with asyncio.timeout(LOOKUP_DEADLINE_MS / 1000), asyncio.TaskGroup() as tasks:
                for batch in batches:
                    tasks.create_task(self._ask(batch, found))
        except TimeoutError:
            pass  # stays unknown
        finally:
            self._waiting -= len(batches)
        return found

    async def _ask(self, users: list[str], found: dict[str, UserStatus]) -> None:
        async with self._slots:
            lanes = sorted({lane_of(user) for user in users})
            answers = await self._read(users, lanes)
        now = self._site.clock.monotonic()
        for user, answer in zip(users, answers, strict=True):
            if isinstance(answer, Failed):
                continue  # stays unknown
            status = status_of(answer)
            if status.sessions or self._doubted_until[lane_of(user)] <= now:
                found[user] = status

    async def _read(self, users: Sequence[str], lanes: Sequence[int]) -> list[Any]:
        """Read the users' members, then the lanes' witnesses; return the members, or what failed."""
        calls = [Call(_READ, key_of(user)) for user in users]
        # A value never used before: one that was lost and made again must not look the same.
        value = new_epoch()
        calls += [Call(_WITNESS, WITNESSES[lane], (value, WITNESS_TTL_MS)) for lane in lanes]
        # Below the lookup's own deadline, so that shards that did answer are heard.
        answers = await self._link.execute(calls, deadline_ms=LOOKUP_DEADLINE_MS * 9 // 10)
        for user, answer in zip(users, answers, strict=False):
            if isinstance(answer, Failed):
                self._doubt(lane_of(user))
        for lane, answer in zip(lanes, answers[len(users) :], strict=True):
            if isinstance(answer, Failed):
                self._doubt(lane)
                continue
            witness, age_ms = answer
            if witness != self._witnessed[lane]:
                # Of what was there before this reader, the age says how long ago the store was as good as empty.
                self._doubt(lane, age_ms if self._witnessed[lane] is None else 0)
                self._witnessed[lane] = witness
        return answers[: len(users)]

    def _doubt(self, lane: int, age_ms: int = 0) -> None:
        """Doubt misses until a time to live after what happened so long ago."""
        until = Instant(self._site.clock.monotonic() + self._doubt_ms - max(0, age_ms))
        self._doubted_until[lane] = max(self._doubted_until[lane], until)


async def _until_reached(link: RedisLink, site: Site, deadline_ms: int) -> None:
    """Return once Redis answered a read."""
    backoff = Backoff(entropy(), ceiling_ms=deadline_ms)
    while True:
        (answer,) = await link.execute([Call(_READ, WITNESSES[0] + b":reach")], deadline_ms=deadline_ms)
        if not isinstance(answer, Failed):
            return
        logger(node=site.name, backend="redis").warning("redis_unreachable", error=answer.reason)
        await site.clock.sleep_until(Instant(site.clock.monotonic() + backoff.next_ms()))


def _witness_keys() -> list[bytes]:
    """One key in each lane: names are tried until each lane has one."""
    names: dict[int, str] = {}
    for number in count():
        name = f"witness-{number}"
        names.setdefault(lane_of(name), name)
        if len(names) == LANES:
            break
    # Not a user's key, and in the same slot as the key of a user of this name.
    return [b"status-witness:{%s}" % names[lane].encode() for lane in range(LANES)]


WITNESSES = _witness_keys()
"""The key of each lane's witness."""


def _seen_by(viewer: str, user: str, status: UserStatus) -> UserStatus:
    """Return what a viewer sees: there are no audiences here, but nobody sees others who are invisible."""
    if status.state == "invisible" and viewer != user:
        return OFFLINE
    return UserStatus(status.state)
