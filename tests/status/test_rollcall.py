"""Counting and listing a running cluster: complete or said not to be, while nodes die and partitions move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
import pytest

from base.clock import SystemClock
from base.core.registry import RegistryState
from base.errors import BadRequest, NotFound, NotReady, PeerUnavailable, PermissionDenied, StoreUnavailable
from base.ids import Epoch, NodeId
from base.registry.memory import MemoryRegistry
from roadstead.api import call_api
from status import rollcall
from status.api import PLAIN_BYTES_MAX, pack_partitions
from status.asking import ask_owners
from status.core.partitions import PARTITIONS, PartitionTable, Take, partition_of
from status.core.rollcall import START
from status.core.visibility import Audience
from status.peers import COUNT, SESSIONS, CountAsk, SessionsAsk
from tests.status import event_cluster
from tests.status.event_cluster import (
    KEY,
    OPERATOR_KEY,
    SETTLE_S,
    VIEWER_KEY,
    Access,
    Cluster,
    eventually,
    without_cluster,
)

USERS = [f"user-{number}" for number in range(40)]


class Outage(MemoryRegistry):
    """A registry that goes away, and comes back with all that it had."""

    is_away = False

    def go(self) -> None:
        self.is_away = True
        self._wake()  # whoever waits for a change is cut off

    def _now(self) -> RegistryState:
        if self.is_away:
            raise StoreUnavailable("the registry is away")
        return super()._now()

    def _expire(self) -> None:
        if not self.is_away:
            super()._expire()


@pytest.fixture
async def cluster(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    # A shorter lease would end between two beats: users would be offline for a moment, and be counted so.
    monkeypatch.setattr(event_cluster, "LEASE_MS", 4_000)
    async with asyncio.TaskGroup() as tasks:
        made = Cluster(tasks)
        made.registry = Outage(SystemClock())
        for name in ("status-1", "status-2", "status-3"):
            await made.start_node(name)
        try:
            async with asyncio.timeout(SETTLE_S):
                for node, _ in made.nodes.values():
                    await node._table.wait_newer(0)
            yield made
        finally:
            made.registry.is_away = False
            await made.stop()


@pytest.fixture
async def access(cluster: Cluster) -> Access:
    """An access node with all the users, of whom every status node knows everything."""
    made = await cluster.start_access()
    for user in USERS:
        await made.connect(user)

    async def is_exact() -> bool:
        return bool((await count(cluster))["is_exact"])

    await eventually(is_exact)
    return made


async def count(cluster: Cluster, node: str = "status-1") -> dict[str, Any]:
    answer = await call_api("GET", f"{cluster.url(node)}/v1/status/count", credential=VIEWER_KEY)
    assert isinstance(answer, dict)
    return answer


async def page(cluster: Cluster, *, by: str = "status-1", **params: Any) -> dict[str, Any]:
    query = {"node": "access-1", **{name: str(value) for name, value in params.items()}}
    url = f"{cluster.url(by)}/v1/admin/status/sessions"
    answer = await call_api("GET", url, credential=OPERATOR_KEY, params=query)
    assert isinstance(answer, dict)
    return answer


async def listed(cluster: Cluster, **params: Any) -> list[dict[str, Any]]:
    """All pages of a listing, each through the next node."""
    pages: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        nodes = list(cluster.nodes)
        pages.append(await page(cluster, by=nodes[len(pages) % len(nodes)], cursor=cursor, **params))
        cursor = pages[-1]["cursor"]
    return pages


def users_of(pages: list[dict[str, Any]]) -> list[str]:
    return [session["user"] for one in pages for session in one["sessions"]]


# ---------------------------------------------------------------- counting


async def test_everybody_is_counted_through_any_node(cluster: Cluster, access: Access):
    """Users and sessions, in all and behind each access node, also one that has none."""
    other = await cluster.start_access("access-10")
    await cluster.start_access("access-9")
    for user in USERS[:5]:
        await other.connect(user)
    access.disconnect(USERS[39])

    async def is_counted() -> bool:
        seen = await count(cluster, "status-2")
        return bool(seen["is_exact"] and (seen["users"], seen["sessions"]) == (39, 44))

    await eventually(is_counted)
    for node in cluster.nodes:
        seen = await count(cluster, node)
        assert seen["access_nodes"] == [
            {"node": "access-1", "users": 39, "sessions": 39},
            {"node": "access-9", "users": 0, "sessions": 0},
            {"node": "access-10", "users": 5, "sessions": 5},
        ]
        assert (seen["unknown"], seen["partitions"], seen["epoch"]) == ([], PARTITIONS, 1)


async def test_a_node_that_does_not_answer_is_named_and_not_taken_for_empty(cluster: Cluster, access: Access):
    """The count of the others is told, and that it is not all."""
    del access
    table = cluster.nodes["status-1"][0]._table.table
    assert table is not None
    await cluster.kill_node("status-2")
    seen = await count(cluster)
    assert (seen["is_exact"], seen["unknown"]) == (False, ["status-2"])
    assert seen["partitions"] == PARTITIONS - table.counts()[NodeId("status-2")]
    assert seen["users"] == sum(table.owner_of(user) != "status-2" for user in USERS)


async def test_a_large_node_counts_in_many_turns(cluster: Cluster, access: Access, monkeypatch: pytest.MonkeyPatch):
    """The count is the same."""
    del access
    monkeypatch.setattr(rollcall, "TURN_USERS", 1)
    assert (await count(cluster))["users"] == len(USERS)


# ---------------------------------------------------------------- listing


async def test_a_page_is_told_without_long_audiences(cluster: Cluster, access: Access):
    """Nobody who lists sessions is shown them, and a page of them would be longer than a message may be."""
    asker = cluster.nodes["status-1"][0]
    assert asker._table.table is not None
    user = next(user for user in USERS if asker._table.table.owner_of(user) == "status-2")
    audience = Audience("listed", tuple(f"{number:0128d}" for number in range(125)))
    hidden = msgspec.structs.replace(access.open[user], audience=audience)
    assert await access._publisher.open(hidden, deadline_ms=10_000)
    ask = SessionsAsk(Epoch(1), pack_partitions([partition_of(user)]), NodeId("access-1"), START, 1)
    part = await asker._member.pool.get("status-2").call(SESSIONS, ask, deadline_ms=5_000)
    ((_, listed_user, entries),) = part.items
    assert listed_user == user
    assert sum(map(len, entries)) <= PLAIN_BYTES_MAX


@pytest.mark.parametrize("limit", [1, 7, 1_000])
async def test_pages_of_any_size_list_everybody_once_and_in_order(cluster: Cluster, access: Access, limit: int):
    """Partition by partition, over all status nodes, through any of them."""
    del access
    other = await cluster.start_access("access-2")
    for user in USERS[:10]:
        await other.connect(user)
    pages = await listed(cluster, limit=limit)
    assert users_of(pages) == sorted(USERS, key=lambda user: (partition_of(user), user))
    assert all(len(one["sessions"]) <= limit for one in pages)
    assert {session["node"] for one in pages for session in one["sessions"]} == {"access-1"}
    assert all((one["missing_partitions"], one["unknown"], one["is_registered"]) == ([], [], True) for one in pages)
    first = pages[0]["sessions"][0]
    assert (first["session"], first["device"], first["state"], first["since"]) == (
        f"{first['user']}/1",
        "phone",
        "online",
        7,
    )
    assert "audience" not in first


async def test_an_access_node_that_there_is_not_has_nobody(cluster: Cluster, access: Access):
    """The page says so."""
    del access
    (only,) = await listed(cluster, node="access-7")
    assert (only["node"], only["sessions"], only["is_registered"]) == ("access-7", [], False)


async def test_partitions_of_a_node_that_does_not_answer_are_said_to_be_missing(cluster: Cluster, access: Access):
    """Each on the page where it belongs; when the node is back, the same page has them."""
    del access
    table = cluster.nodes["status-1"][0]._table.table
    assert table is not None
    await cluster.kill_node("status-2")
    pages = await listed(cluster, limit=7)
    lost = [partition for partition in range(PARTITIONS) if table.owner(partition) == "status-2"]
    assert sorted({gap for one in pages for gap in one["missing_partitions"]}) == lost
    assert sorted(users_of(pages)) == sorted(user for user in USERS if table.owner_of(user) != "status-2")
    assert all(one["unknown"] == ["status-2"] for one in pages)
    bounds = [gap for one in pages for gap in one["missing_partitions"]]
    assert bounds == sorted(bounds)
    await cluster.start_node("status-2")

    async def is_back() -> bool:
        again = await page(cluster, limit=1_000)
        return not again["missing_partitions"] and len(again["sessions"]) == len(USERS)

    await eventually(is_back)


async def test_sessions_of_a_silent_access_node_are_said_to_be_missing(cluster: Cluster, access: Access):
    """Until its lease is over; then there are none."""
    await access.kill()
    seen = set()

    async def is_empty() -> bool:
        (only,) = await listed(cluster)
        seen.add((bool(only["sessions"]), bool(only["missing_partitions"])))
        return not only["sessions"] and not only["missing_partitions"]

    await eventually(is_empty)
    assert (False, False) in seen
    counted = await count(cluster)
    assert (counted["users"], counted["is_exact"]) == (0, True)


async def test_who_stays_is_listed_while_partitions_move(cluster: Cluster, access: Access):
    """Small pages over a whole resize: who was open all the time is in the listing, or its partition missing."""
    await cluster.start_node("status-4")
    await cluster.wish(dict.fromkeys(("status-1", "status-3", "status-4"), 1))
    epochs = set()

    async def is_resized() -> bool:
        table = cluster.nodes["status-1"][0]._table.table
        assert table is not None
        epochs.add(table.epoch)
        pages = await listed(cluster, limit=2)
        gaps = {gap for one in pages for gap in one["missing_partitions"]}
        there = users_of(pages)
        assert len(there) == len(set(there))
        assert {user for user in USERS if partition_of(user) not in gaps} <= set(there)
        counted = await count(cluster, "status-3")
        assert not counted["is_exact"] or counted["users"] == len(USERS)
        return not table.moves and "status-2" not in table.nodes

    await eventually(is_resized)
    assert len(epochs) > 1
    assert (await count(cluster, "status-4"))["users"] == len(USERS)
    assert sorted(users_of(await listed(cluster, limit=9))) == sorted(USERS)
    assert len(access.open) == len(USERS)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"cursor": "nonsense!"}, "not one that was given out"),
        ({"limit": "0"}, "limit must be a number from 1 to 1000, not '0'"),
        ({"limit": "1001"}, "limit must be"),
        ({"node": ""}, "node must have 1 to 128 bytes"),
        ({"node": "a\nb"}, "control characters"),
        ({"user": "ann"}, "unknown query parameters: user"),
    ],
)
async def test_bad_questions_get_a_clear_answer(cluster: Cluster, params: dict[str, str], message: str):
    """One sentence that says what is wrong with which parameter."""
    with pytest.raises(BadRequest, match=message):
        await page(cluster, **params)


async def test_a_cursor_belongs_to_one_listing(cluster: Cluster, access: Access):
    """Of another access node it would skip some."""
    del access
    cursor = (await page(cluster, limit=1))["cursor"]
    with pytest.raises(BadRequest, match="of the listing of access-1, not of access-2"):
        await page(cluster, node="access-2", cursor=cursor)


async def test_who_may_ask(cluster: Cluster):
    """Numbers are for viewers; who the users are, only operators learn in bulk."""
    url = cluster.url("status-1")
    for key in (VIEWER_KEY, KEY):
        with pytest.raises(PermissionDenied, match="operator"):
            await call_api("GET", f"{url}/v1/admin/status/sessions?node=access-1", credential=key)
    with pytest.raises(BadRequest, match="the query parameter node is missing"):
        await call_api("GET", f"{url}/v1/admin/status/sessions", credential=OPERATOR_KEY)
    with pytest.raises(BadRequest, match="unknown query parameters: node"):
        await call_api("GET", f"{url}/v1/status/count?node=access-1", credential=VIEWER_KEY)


async def test_peers_are_held_to_the_bounds(cluster: Cluster):
    """A node of another version may have others."""
    pool = cluster.nodes["status-1"][0]._member.pool
    await pool.get("status-2").wait_connected(deadline_ms=5_000)

    async def ask(method: Any, request: Any) -> None:
        await pool.get("status-2").call(method, request, deadline_ms=5_000)

    for limit in (0, 1_001):
        with pytest.raises(BadRequest, match="1 to 1000"):
            await ask(SESSIONS, SessionsAsk(Epoch(1), b"", NodeId("access-1"), START, limit))
    with pytest.raises(BadRequest, match="bad partitions"):
        await ask(COUNT, CountAsk(Epoch(1), b"x"))
    with pytest.raises(BadRequest, match="there are 4096 partitions"):
        await ask(COUNT, CountAsk(Epoch(1), pack_partitions([PARTITIONS])))


async def test_without_our_cluster_nobody_counts():
    """And the answer says which backend does."""
    async with without_cluster() as url:
        with pytest.raises(NotFound, match=r"nobody counts; status\.backend = cluster does"):
            await call_api("GET", f"{url}/v1/status/count", credential=VIEWER_KEY)
        with pytest.raises(NotFound, match="no partition table"):
            await call_api("GET", f"{url}/v1/admin/status/sessions?node=access-1", credential=VIEWER_KEY)


# ---------------------------------------------------------------- asking owners


class Follower:
    """A follower of tables that a test hands out, one for each wait."""

    def __init__(self, *tables: PartitionTable) -> None:
        self.table = tables[0] if tables else None
        self._next = list(tables[1:])

    async def wait_newer(self, epoch: int) -> PartitionTable:
        assert self.table is not None
        if self.table.epoch <= epoch:
            if not self._next:
                raise TimeoutError
            self.table = self._next.pop(0)
        return self.table


A, B = NodeId("a"), NodeId("b")
TABLE = PartitionTable(Epoch(1), (A, B), (1, 1), (0, 1, 0, 1))


async def asked(follower: Follower, *, refused: dict[int, list[int]], dead: set[str]) -> Any:
    """Ask about partitions from 1 on; `refused`: which ones in which epoch."""

    async def ask(node: NodeId, partitions: list[int], table: PartitionTable) -> Any:
        assert all(table.owner(partition) == node for partition in partitions)
        if node in dead:
            raise PeerUnavailable("no stream")
        no = [partition for partition in partitions if partition in refused.get(table.epoch, [])]
        return SimpleNamespace(told=sorted({*partitions} - {*no}), refused=pack_partitions(no))

    return await ask_owners(follower, 1, ask)  # type: ignore[arg-type]


async def test_what_is_refused_is_asked_of_the_next_owner():
    """And of nobody twice who answered."""
    newer = TABLE.with_changes([Take(1, A)])
    found = await asked(Follower(TABLE, newer), refused={1: [1, 2]}, dead=set())
    assert sorted(answer.told for answer in found.answers) == [[], [1, 2], [3]]
    assert (found.missing, found.unknown, found.epoch) == (set(), [], 2)


async def test_what_is_refused_again_and_again_is_missing():
    """As is what a dead node owns, or gets."""
    newer = TABLE.with_changes([Take(2, B)])
    found = await asked(Follower(TABLE, newer), refused={1: [2]}, dead={"b"})
    assert ([answer.told for answer in found.answers], found.missing, found.unknown) == ([[]], {1, 2, 3}, ["b"])
    found = await asked(Follower(TABLE), refused={1: [2]}, dead=set())
    assert (found.missing, found.unknown, found.epoch) == ({2}, [], 1)


async def test_without_a_table_nobody_can_be_asked():
    """The node is not ready."""
    with pytest.raises(NotReady):
        await asked(Follower(), refused={}, dead=set())


# ---------------------------------------------------------------- what a node stands on


async def gauges(cluster: Cluster, node: str) -> dict[str, int]:
    async with aiohttp.ClientSession() as session, session.get(f"{cluster.url(node)}/metrics") as response:
        lines = (await response.text()).splitlines()
    return {
        name: int(float(line.rpartition(" ")[2]))
        for line in lines
        for name in ("status_degraded", "status_registry_reachable")
        if line.startswith(f"roadstead_{name}{{")
    }


async def test_nodes_say_that_they_answer_by_their_peers_grants(cluster: Cluster, access: Access):
    """While the registry is away everything is served, and that it is degraded is flagged; afterwards it is not."""
    del access
    registry = cluster.registry
    assert isinstance(registry, Outage)

    async def everybody(granter: str, *, is_reachable: bool) -> bool:
        for name in cluster.nodes:
            seen = await call_api("GET", f"{cluster.url(name)}/debug/statistics")
            if (seen["granter"], seen["is_registry_reachable"]) != (granter, is_reachable):
                return False
        return True

    await eventually(lambda: everybody("leader", is_reachable=True))
    assert await gauges(cluster, "status-1") == {"status_degraded": 0, "status_registry_reachable": 1}
    registry.go()
    await eventually(lambda: everybody("peers", is_reachable=False))
    assert await gauges(cluster, "status-2") == {"status_degraded": 1, "status_registry_reachable": 0}
    seen = await count(cluster)
    assert (seen["users"], seen["is_exact"]) == (len(USERS), True)
    for name in ("status-2", "status-3"):
        await cluster.kill_node(name)

    async def is_silent() -> bool:
        return (await gauges(cluster, "status-1"))["status_degraded"] == 2

    await eventually(is_silent)
    assert (await count(cluster))["users"] == 0
    registry.is_away = False
    await eventually(lambda: everybody("leader", is_reachable=True))
