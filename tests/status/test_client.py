"""A client of the status cluster, and what does not fit: in a message, or in its memory."""

from __future__ import annotations

from typing import Any

import msgspec

from base.clock import SystemClock, Timestamp
from base.errors import TooLarge
from base.ids import Incarnation, NodeId
from base.registry.memory import MemoryRegistry
from bench.status_cluster import bench_site
from status.api import OFFLINE, UNKNOWN, Lookup, LookupReply, SessionView, Shown, unpack_partitions
from status.client import StatusClient, Statuses, _status_of
from status.core.partitions import partition_of, plan_table
from status.core.records import Kind, packed
from status.core.visibility import Audience
from status.link import StatusLink

USERS = [f"user-{number}" for number in range(40)]


class Owner:
    """In the place of the stream to the one status node: it answers lookups without any of the heavy users."""

    is_connected = True

    def __init__(self, *heavy: str) -> None:
        self.heavy = set(heavy)
        self.asked: list[int] = []

    def get(self, _node: str) -> Owner:
        return self

    async def call(self, _method: object, lookup: Lookup, *, deadline_ms: int) -> LookupReply:
        assert deadline_ms > 0
        assert list(unpack_partitions(lookup.partitions)) == [partition_of(user) for user in lookup.users]
        self.asked.append(len(lookup.users))
        if self.heavy.intersection(lookup.users):
            raise TooLarge("the reply is too large", limit=1)
        return LookupReply(lookup.epoch, [7 + USERS.index(user) for user in lookup.users])


def client_of(owner: Owner) -> StatusClient:
    link = StatusLink(bench_site(MemoryRegistry(SystemClock()), "client-1", Incarnation(1)))
    link.table.offer(plan_table({NodeId("status-1"): 1}))
    link.pool = owner  # type: ignore[assignment]
    return StatusClient(bench_site(MemoryRegistry(SystemClock()), "client-1", Incarnation(1)), link=link)


async def test_of_users_who_do_not_fit_in_one_answer_each_half_is_asked_for() -> None:
    """Only who does not fit alone is unknown: what others have must not hide anybody."""
    owner = Owner(USERS[3], USERS[30])
    found = await client_of(owner).lookup(USERS)
    assert list(found) == USERS
    unknown = {user for user, status in found.items() if status == UNKNOWN}
    assert unknown == owner.heavy
    assert all(found[user].last_seen == 7 + USERS.index(user) for user in USERS if user not in unknown)
    assert max(owner.asked[1:]) == len(USERS) // 2


async def test_who_fits_is_asked_for_once() -> None:
    """As nearly always."""
    owner = Owner()
    await client_of(owner).lookup(USERS)
    assert owner.asked == [len(USERS)]


def test_only_short_sessions_are_kept_unpacked() -> None:
    """One that lists a thousand users takes more than a hundred of the others."""
    _status_of.cache_clear()
    for audience in (None, Audience("listed", ("w",)), Audience("listed", tuple(f"{n:0128d}" for n in range(9)))):
        view = SessionView("s", "phone", "ios", NodeId("gate"), "online", Timestamp(7), Timestamp(8), audience)
        entry: Shown = bytes(2) + packed(1, 1, Kind.OPEN, msgspec.msgpack.encode(view))
        statuses: Any = Statuses({"u": entry, "v": None})
        assert statuses["u"].sessions == statuses["u"].sessions == (view,)
        assert statuses["v"] == OFFLINE
    assert _status_of.cache_info().currsize == 2
