"""The status cluster is resized while it serves: nobody gets a wrong answer, and operators stay in charge."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from access.service import AccessNode
from base.errors import BadRequest, CasConflict, PermissionDenied, Unauthenticated
from base.http import Credentials, Role
from base.ids import NodeId
from roadstead import up
from roadstead.api import call_api
from status.api import Closed, Opened
from status.client import StatusPublisher
from status.core.partitions import PARTITIONS
from status.table import TableFollower
from tests.system.conftest import System, eventually, running

SESSIONS = 600
DONE_S = 60.0
STARVED_S = 0.3
"""A node that did not run for so long may have lost its lease, and says unknown then, as it must."""
VIEWER = "viewer-key"


class Resized:
    """A system, and its operator."""

    def __init__(self, system: System, publishers: list[StatusPublisher]) -> None:
        self.system = system
        self.publishers = publishers
        """Where its access nodes report sessions: a test that opens many needs no sockets for them."""

    async def get(self, what: str, *, node: int = 0) -> Any:
        return await call_api("GET", f"{self._url(node)}/v1/admin/status/{what}", credential=self.system.key)

    async def post(self, what: str, body: Any = None, *, node: int = 0, key: str | None = None) -> Any:
        url = f"{self._url(node)}/v1/admin/status/{what}"
        return await call_api("POST", url, credential=key or self.system.key, body=body)

    async def lookup(self, users: list[str], *, node: int = 0) -> list[str]:
        found = await call_api(
            "POST", f"{self._url(node)}/v1/users/status", credential=self.system.key, body={"users": users}
        )
        return [status["state"] for status in found["statuses"]]

    async def done(self) -> dict[str, Any]:
        """Wait until the resize is done."""
        async with asyncio.timeout(DONE_S):
            while not (seen := await self.get("resize"))["is_done"]:
                assert not seen["is_paused"]
                await asyncio.sleep(0.05)
        assert isinstance(seen, dict)
        return seen

    async def agree(self) -> bool:
        """Whether status nodes hold what access nodes have."""
        held = await self.get("digest")
        own = []
        for node, url in sorted(self.system.endpoints.access.items()):
            statistics = await call_api("GET", f"{url}/debug/statistics")
            own.append({"node": node, **statistics["status_digest"]})
        assert held["unknown"] == []
        return bool(held["is_exact"] and held["access_nodes"] == [life for life in own if life["entries"]])

    def _url(self, node: int) -> str:
        return list(self.system.endpoints.status.values())[node]


@pytest.fixture
async def resized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Resized]:
    publishers: list[StatusPublisher] = []

    class Spied(AccessNode):
        def __init__(self, *args: Any, reports: StatusPublisher, **kwargs: Any) -> None:
            publishers.append(reports)
            super().__init__(*args, reports=reports, **kwargs)

    def credentials(keys: dict[str, Role]) -> Credentials:
        return Credentials({**keys, VIEWER: Role.VIEWER})

    monkeypatch.setattr(up, "AccessNode", Spied)
    monkeypatch.setattr(up, "Credentials", credentials)
    async with running(tmp_path / "data") as system:
        yield Resized(system, publishers)


def opened(user: str, conn_seq: int = 1) -> Opened:
    return Opened(user, f"session-of-{user}", conn_seq, "phone", "ios", "online", up.SystemClock().realtime())


class Traffic:
    """Sessions that come and go, and readers who know which answers are right."""

    def __init__(self, resized: Resized) -> None:
        self.online = [f"user-{number}" for number in range(SESSIONS)]
        self.lookups = 0
        self.unknown = 0
        self.lag_s = 0.0
        """By how much this process was late at worst. All nodes run in it, and their leases do not wait."""
        self._resized = resized
        self._dice = random.Random(7)
        self._changed: list[str] = []

    async def open_all(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number, user in enumerate(self.online):
                tasks.create_task(self._open(user, number))

        async def is_known() -> bool:
            return await self._resized.lookup([f"nobody-{number}" for number in range(1_000)]) == ["offline"] * 1_000

        await eventually(is_known)  # whoever was never seen is unknown until all access nodes told all

    async def read_forever(self) -> None:
        """Every third of the users stays online throughout, nobody else ever was: no other answer is right."""
        stay = self.online[::3]
        while True:
            asked = [*self._dice.sample(stay, 40), *(f"stranger-{self._dice.random()}" for _ in range(20))]
            await self._check(asked, ["online"] * 40 + ["offline"] * 20)
            self.lookups += 1

    async def measure_lag_forever(self) -> None:
        clock = up.SystemClock()
        while True:
            began = clock.stopwatch()
            await asyncio.sleep(0.01)
            self.lag_s = max(self.lag_s, clock.stopwatch() - began - 0.01)

    async def change_forever(self) -> None:
        """Sessions open, are seen at once, close, and are gone soon."""
        number = 0
        while True:
            number += 1
            user = f"passer-by-{number}"
            reports = self._resized.publishers[number % 2]
            session = opened(user, number)
            assert await reports.open(session, deadline_ms=5_000)
            await self._check([user], ["online"])
            reports.close(Closed(user, session.session, number))
            self._changed.append(user)

    async def check_all(self) -> None:
        """All sessions are found, through every node; who left is offline."""
        for node in range(5):
            assert await self._resized.lookup(self.online, node=node) == ["online"] * SESSIONS

        async def gone() -> bool:
            last = self._changed[-500:]
            return await self._resized.lookup(last) == ["offline"] * len(last)

        await eventually(gone)

    async def _check(self, users: list[str], right: list[str]) -> None:
        states = await self._resized.lookup(users, node=self._dice.randrange(5))
        assert all(state in {"unknown", wanted} for state, wanted in zip(states, right, strict=True))
        self.unknown += states.count("unknown")

    async def _open(self, user: str, number: int) -> None:
        assert await self._resized.publishers[number % 2].open(opened(user), deadline_ms=5_000)


async def test_it_serves_right_answers_from_three_to_five_to_two_nodes(resized: Resized) -> None:
    """No wrong answer, no unknown while the machine keeps up, as many moves as planned, equal digests at the end."""
    traffic = Traffic(resized)
    await traffic.open_all()
    async with asyncio.TaskGroup() as tasks:
        background = [
            tasks.create_task(traffic.read_forever()),
            tasks.create_task(traffic.read_forever()),
            tasks.create_task(traffic.change_forever()),
            tasks.create_task(traffic.measure_lag_forever()),
        ]
        for to, node in ((5, 3), (2, 4)):
            before = (await resized.get("table"))["owners"]
            names = [one["node"] for one in (await resized.get("table"))["nodes"]]
            plan = await resized.post("resize", {"to": to}, node=node)
            assert plan["partitions"] == plan["minimum"]
            seen = await resized.done()
            assert (
                [one["partitions"] - PARTITIONS // to for one in seen["nodes"]] == [1, 0, 0, 0, 0][:to]
                if to == 5
                else [0, 0]
            )
            table = await resized.get("table")
            after = [table["nodes"][owner]["node"] for owner in table["owners"]]
            moved = sum(names[old] != new for old, new in zip(before, after, strict=True))
            assert moved == plan["partitions"]
            await traffic.check_all()
        for task in background:
            task.cancel()
    assert traffic.lookups > 20
    assert not traffic.unknown or traffic.lag_s > STARVED_S
    await traffic.check_all()
    await eventually(resized.agree)


async def test_a_plan_changes_nothing_and_says_what_there_is(resized: Resized) -> None:
    """Sessions and bytes come from the nodes' own count."""
    traffic = Traffic(resized)
    await traffic.open_all()
    before = await resized.get("table")
    plan = await resized.post("resize", {"add": ["status-4"], "weight": {"status-4": 3}, "plan": True})
    assert (plan["is_planned_only"], plan["weights"]["status-4"], plan["unknown"]) == (True, 3, [])
    assert plan["partitions"] == plan["minimum"] == PARTITIONS // 2
    assert {move["target"] for move in plan["moves"]} == {"status-4"}
    assert SESSIONS // 4 < plan["sessions"] < SESSIONS * 3 // 4
    assert plan["sessions"] * 30 < plan["bytes"] < plan["sessions"] * 300
    assert plan["expected_s"] > 0
    seen = await resized.get("resize")
    assert (seen["is_done"], seen["left"], seen["spares"]) == (True, 0, ["status-4", "status-5"])
    assert await resized.get("table") == before


async def test_pause_stops_and_resume_goes_on(resized: Resized) -> None:
    """Paused before it begins: the new nodes are known, and nothing moves."""
    await resized.post("pause")
    await resized.post("resize", {"to": 5}, node=2)

    async def joined() -> bool:
        return len((await resized.get("table"))["nodes"]) == 5

    await eventually(joined)
    seen = await resized.get("resize")
    assert (seen["is_paused"], seen["is_done"], seen["left"]) == (True, False, 1_638)
    table = await resized.get("table")
    assert [node["wanted_partitions"] for node in table["nodes"]] == [820, 819, 819, 819, 819]
    assert (await resized.post("resume", node=1))["is_paused"] is False
    await resized.done()


async def test_abort_rolls_back_what_is_not_committed(resized: Resized) -> None:
    """What moved stays; afterwards nothing is on the move, until it is resumed or taken back."""
    await resized.post("resize", {"to": 5})

    async def moves() -> bool:
        return (await resized.get("resize"))["left"] < 1_600

    await eventually(moves)
    assert (await resized.post("abort", {}))["is_paused"]

    async def is_still() -> bool:
        return not (await resized.get("table"))["moves"]

    await eventually(is_still)
    left = (await resized.get("resize"))["left"]
    assert 0 < left < 1_600
    again = await resized.post("abort")
    assert (again["rolled_back"], again["left"]) == (0, left)
    # Back to the nodes of before: only what moved has to.
    plan = await resized.post("resize", {"remove": ["status-4", "status-5"]})
    assert (plan["partitions"], plan["is_paused"]) == (1_638 - left, True)
    await resized.post("resume")
    seen = await resized.done()
    assert [node["node"] for node in seen["nodes"]] == ["status-1", "status-2", "status-3"]
    nothing = await resized.post("abort")
    assert (nothing["is_done"], nothing["is_paused"], nothing["rolled_back"]) == (True, False, 0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "nothing is asked for"),
        ({"to": 9}, "5 status nodes are there"),
        ({"to": "5"}, "Expected `int"),
        ({"add": ["status-9"]}, "no such status node: status-9; there are: status-1, status-2"),
        ({"remove": ["status-1", "status-2", "status-3"]}, "no status node would be left"),
        ({"weight": {"status-1": 1_001}}, "from 1 to 1000"),
        ({"weight": {"status-1": 1.5}}, "Expected `int"),
        ({"ad": ["status-4"]}, "unknown field `ad`"),
        ([], "Expected `object"),
    ],
)
async def test_bad_orders_are_refused_with_a_reason(resized: Resized, body: Any, message: str) -> None:
    """And change nothing."""
    with pytest.raises(BadRequest, match=message):
        await resized.post("resize", body)
    assert (await resized.get("resize"))["is_done"]


async def test_orders_take_an_operator(resized: Resized) -> None:
    """A viewer may look, and not even plan; a body or query that means nothing is refused."""
    for order in ("resize", "pause", "resume", "abort"):
        with pytest.raises(PermissionDenied, match="operator"):
            await resized.post(order, {"to": 2, "plan": True} if order == "resize" else None, key=VIEWER)
        with pytest.raises(Unauthenticated):
            await resized.post(order, key="nobody")
    with pytest.raises(BadRequest, match="unknown field"):
        await resized.post("pause", {"for_s": 3})
    with pytest.raises(BadRequest, match="unknown query parameters: plan"):
        await resized.post("resize?plan=1", {"to": 2})
    url = next(iter(resized.system.endpoints.status.values()))
    for look in ("table", "resize", "digest"):
        assert await call_api("GET", f"{url}/v1/admin/status/{look}", credential=VIEWER)


async def test_two_operators_at_once_both_count_or_one_is_told(
    resized: Resized, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change in between is taken into account; where they come again and again, 409 says so."""
    await asyncio.gather(
        resized.post("resize", {"add": ["status-4"]}, node=0), resized.post("resize", {"add": ["status-5"]}, node=1)
    )
    assert set((await resized.get("resize"))["weights"]) == {f"status-{number}" for number in range(1, 6)}
    await resized.done()

    read = TableFollower.read

    async def stale(self: TableFollower) -> None:
        await read(self)
        self.wish_index -= 1

    monkeypatch.setattr(TableFollower, "read", stale)
    with pytest.raises(CasConflict, match="somebody else gives orders too"):
        await resized.post("resize", {"to": 3})


async def test_a_node_that_does_not_answer_is_named(resized: Resized, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the plan and in the digest; never counted as empty."""
    from base.peer.client import PeerClient
    from status.peers import CENSUS

    call = PeerClient.call

    async def cut(self: PeerClient, method: Any, request: Any, **options: Any) -> Any:
        if method is CENSUS and self.peer == NodeId("status-2"):
            return await call(self, method, request, deadline_ms=0)
        return await call(self, method, request, **options)

    monkeypatch.setattr(PeerClient, "call", cut)
    plan = await resized.post("resize", {"to": 4, "plan": True})
    assert plan["unknown"] == ["status-2"]
    assert [move["sessions"] for move in plan["moves"]] == [0, None, 0]
    held = await resized.get("digest")
    assert (held["unknown"], held["is_exact"]) == (["status-2"], False)
