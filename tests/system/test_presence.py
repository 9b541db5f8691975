"""Presence as clients see it, with stock SDK clients: who may see what, when it is told, and what survives."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import centrifuge
import msgspec
import pytest

from access.api import transport_urls
from access.config import AccessConfig
from base.errors import BadRequest, LimitExceeded
from roadstead.api import call_api
from roadstead.config import Config
from status.config import StatusConfig
from status.core import publisher
from status.core.partitions import partition_of
from tests.system.conftest import SETTLE_S, Connect, StockClient, System, eventually, running
from tests.system.test_faults import KEY, Cluster

GRACE_MS = 400
QUICK = Config(
    status=StatusConfig(offline_grace_ms=GRACE_MS, offline_jitter_ms=50),
    access=AccessConfig(presence_channels_max=5, watches_max=8),
)


class Look:
    """One subscription to a user's presence, and everything that it was told."""

    def __init__(self, client: StockClient, user: str) -> None:
        self.starts: list[centrifuge.SubscribedContext] = []
        self.seen: list[dict[str, Any]] = []
        """What the application knows after each event that told it something: starts without recovery, publications."""
        self.offsets: list[int] = []
        self.errors: list[int] = []
        self.ended: list[int] = []
        look = self

        class Events(centrifuge.SubscriptionEventHandler):
            async def on_subscribed(self, ctx: centrifuge.SubscribedContext) -> None:
                look.starts.append(ctx)
                if not ctx.recovered:
                    look.seen.append(ctx.data)

            async def on_publication(self, ctx: centrifuge.PublicationContext) -> None:
                look.seen.append(ctx.pub.data)
                look.offsets.append(ctx.pub.offset)

            async def on_error(self, ctx: centrifuge.SubscriptionErrorContext) -> None:
                look.errors.append(ctx.error.code)

            async def on_unsubscribed(self, ctx: centrifuge.UnsubscribedContext) -> None:
                look.ended.append(ctx.code)

        self.subscription = client.sdk.new_subscription(
            f"presence:{user}",
            events=Events(),
            recoverable=True,
            min_resubscribe_delay=0.05,
            max_resubscribe_delay=0.2,
        )

    @property
    def states(self) -> list[str]:
        return [seen["state"] for seen in self.seen]

    async def start(self) -> Look:
        await self.subscription.subscribe()
        await self.subscription.ready(SETTLE_S)
        return self

    async def has(self, *states: str) -> None:
        """Wait until exactly these states were told, in this order."""

        async def look() -> bool:
            assert self.states == list(states)[: len(self.states)]
            return len(self.states) == len(states)

        await eventually(look)


async def look_at(client: StockClient, user: str) -> Look:
    return await Look(client, user).start()


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    async with running(tmp_path / "data", QUICK) as made:
        yield made


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with asyncio.TaskGroup() as tasks:
        made = Cluster(tasks, status=QUICK.status)
        try:
            for name in ("status-1", "status-2", "status-3", "im-1", "access-1", "scheduler-1"):
                await made.start(name)
            await eventually(lambda: _knows(made, 1))
            yield made
        finally:
            await made.stop()


@contextlib.asynccontextmanager
async def connected(folder: Path, **status: Any) -> AsyncIterator[tuple[System, Connect]]:
    config = msgspec.structs.replace(QUICK, status=msgspec.structs.replace(QUICK.status, **status))
    async with running(folder, config) as system:
        connect = Connect(system)
        yield system, connect
        await connect.close()


async def set_presence(client: StockClient, **wanted: Any) -> None:
    assert (await client.sdk.rpc("presence.set", wanted)).data == {}


async def get_presence(client: StockClient, *users: str) -> list[Any]:
    answer = (await client.sdk.rpc("presence.get", {"users": list(users)})).data
    return [(one["user"], one["state"]) for one in answer["presences"]]


async def rpc_error(client: StockClient, method: str, data: Any) -> int:
    with pytest.raises(centrifuge.ReplyError) as caught:
        await client.sdk.rpc(method, data)
    return int(caught.value.code)


async def view(system: System, user: str, viewer: str) -> dict[str, Any]:
    url = next(iter(system.endpoints.status.values()))
    answer = await call_api("GET", f"{url}/v1/users/{user}/status", credential=system.key, params={"viewer": viewer})
    assert isinstance(answer, dict)
    return answer


async def drop(client: StockClient) -> None:
    """Cut the connection as a network does; the SDK comes back."""
    assert client.sdk._conn is not None
    client.sdk._conn.transport.abort()
    await client.reconnecting.wait()
    client.reconnecting.clear()


# ---------------------------------------------------------------- what is told


@pytest.mark.spec("CC-07")
async def test_a_subscription_begins_with_the_state_and_is_told_of_changes_at_once(connect: Connect) -> None:
    """Offline at first, online when bob comes, away when he says so, offline after the grace with when it was."""
    alice = await connect("alice")
    look = await look_at(alice, "bob")
    assert look.starts[0].data == {"state": "offline", "last_seen": None}
    bob = await connect("bob")
    await look.has("offline", "online")
    await set_presence(bob, state="away")
    await look.has("offline", "online", "away")
    await bob.sdk.disconnect()
    await look.has("offline", "online", "away", "offline")
    assert look.seen[-1]["last_seen"] > 0
    assert look.offsets == [2, 3, 4]


async def test_who_is_there_already_is_seen_in_the_reply(connect: Connect) -> None:
    """The busiest of several devices speaks for all of them."""
    for state in ("away", "busy"):
        await set_presence(await connect("bob", device=state), state=state)
    look = await look_at(await connect("alice"), "bob")
    await look.has("busy")


async def test_offline_is_not_told_of_who_comes_back_in_time(tmp_path: Path) -> None:
    """A dropped connection that returns is nothing that anybody needs to know."""
    async with connected(tmp_path / "data", offline_grace_ms=8_000) as (_, connect):
        look = await look_at(await connect("alice"), "bob")
        bob = await connect("bob")
        await look.has("offline", "online")
        await drop(bob)
        await bob.sdk.ready(SETTLE_S)
        await set_presence(bob, state="busy")
        await look.has("offline", "online", "busy")


async def test_all_viewers_of_all_access_nodes_are_told(connect: Connect) -> None:
    """Several clients of one viewer, and several viewers, at both access nodes."""
    viewers = [await connect(user, device=str(n), candidate=n % 2) for n, user in enumerate(["alice", "alice", "cleo"])]
    looks = [await look_at(client, "bob") for client in viewers]
    await connect("bob")
    for look in looks:
        await look.has("offline", "online")


async def test_a_viewer_may_look_at_itself(connect: Connect) -> None:
    """And sees everything, invisible too."""
    alice = await connect("alice")
    look = await look_at(alice, "alice")
    await set_presence(alice, state="invisible")
    await look.has("online", "invisible")


# ---------------------------------------------------------------- who may see


async def test_an_invisible_user_looks_like_one_who_left(system: System, connect: Connect) -> None:
    """To the channel, to presence.get and over HTTP, then and later; the services see the truth."""
    alice, bob = await connect("alice"), await connect("bob")
    look = await look_at(alice, "bob")
    await set_presence(bob, state="invisible")
    await look.has("online", "offline")
    assert await get_presence(alice, "bob", "nobody") == [("bob", "offline"), ("nobody", "offline")]
    assert await get_presence(bob, "bob") == [("bob", "invisible")]
    left = look.seen[-1]
    assert left["last_seen"] > 0
    assert await view(system, "bob", "alice") == {"user": "bob", **left}
    assert (await system.status("bob"))["state"] == "invisible"
    await bob.sdk.disconnect()

    async def gone() -> bool:
        return (await system.status("bob"))["state"] == "offline"

    await eventually(gone)
    assert await view(system, "bob", "alice") == {"user": "bob", **left}
    assert (await system.status("bob"))["last_seen"] == left["last_seen"]
    assert look.seen[1:] == [left]


async def test_an_audience_decides_who_sees(system: System, connect: Connect) -> None:
    """Listed, nobody, contacts of whom there are none, everyone: the denied see what one who left looks like."""
    alice, cleo, bob = [await connect(user) for user in ("alice", "cleo", "bob")]
    alices, cleos = await look_at(alice, "bob"), await look_at(cleo, "bob")
    await set_presence(bob, audience={"mode": "listed", "users": ["cleo", "zoe"]})
    await alices.has("online", "offline")
    assert alices.seen[-1]["last_seen"] > 0
    assert [await get_presence(one, "bob") for one in (alice, cleo)] == [[("bob", "offline")], [("bob", "online")]]
    for mode in ("nobody", "contacts"):
        await set_presence(bob, audience={"mode": mode})
        assert (await view(system, "bob", "cleo"))["state"] == "offline"
    await cleos.has("online", "offline")
    await set_presence(bob, audience={"mode": "everyone"})
    await alices.has("online", "offline", "online")
    await cleos.has("online", "offline", "online")


async def test_an_audience_that_is_refused_leaves_what_was(
    system: System, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not sent along with the next change."""
    bob = await connect("bob")
    monkeypatch.setattr(publisher, "LISTED_BYTES_MAX", 500)
    with pytest.raises(centrifuge.ReplyError, match="too much room") as refused:
        await set_presence(bob, audience={"mode": "listed", "users": [f"user-{number}" for number in range(200)]})
    assert (refused.value.code, refused.value.temporary) == (111, True)
    await set_presence(bob, state="busy")
    assert (await view(system, "bob", "alice"))["state"] == "busy"


async def test_who_connects_with_an_audience_waits_until_there_is_room(
    system: System, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK is told that it is for now, and tries again by itself. Until then nobody sees the user."""
    look = await look_at(await connect("alice"), "bob")
    answer = await system.access("bob")
    asked = asyncio.Event()

    async def ticket() -> str:
        return str((await system.access("bob"))["ticket"])

    check_room = publisher.Publisher._check_room

    def asking(*entry: Any) -> None:
        asked.set()
        check_room(*entry)

    wanted = {"audience": {"mode": "listed", "users": ["alice"]}}
    bob = StockClient(answer["candidates"][0]["urls"]["websocket"], answer["ticket"], ticket, data={"presence": wanted})
    connect.clients.append(bob)
    with monkeypatch.context() as full:
        full.setattr(publisher.Publisher, "_check_room", staticmethod(asking))
        full.setattr(publisher, "LISTED_BYTES_MAX", 0)
        await bob.sdk.connect()
        for _ in range(2):
            asked.clear()
            async with asyncio.timeout(SETTLE_S):
                await asked.wait()
        assert (await system.status("bob"))["state"] == "offline"
    await bob.sdk.ready(SETTLE_S)
    await look.has("offline", "online")


async def test_who_connects_hidden_is_never_seen(system: System, connect: Connect) -> None:
    """State and audience may come with the connect, and again with each reconnect."""
    look = await look_at(await connect("alice"), "bob")
    answer = await system.access("bob")

    async def ticket() -> str:
        return str((await system.access("bob"))["ticket"])

    url = answer["candidates"][0]["urls"]["websocket"]
    wanted = {"state": "away", "audience": {"mode": "nobody"}}
    bob = StockClient(url, answer["ticket"], ticket, data={"presence": wanted, "anything": "else"})
    connect.clients.append(bob)
    await bob.sdk.connect()
    await bob.sdk.ready(SETTLE_S)
    assert (await system.status("bob"))["state"] == "away"
    await drop(bob)
    await bob.sdk.ready(SETTLE_S)
    await set_presence(bob, audience={"mode": "everyone"})
    await look.has("offline", "away")


@pytest.mark.parametrize("data", [[1], "x", {"presence": {"state": "dancing"}}])
async def test_bad_connect_data_is_refused(system: System, data: Any) -> None:
    """107, for good."""
    answer = await system.access("bob")
    client = StockClient(answer["candidates"][0]["urls"]["websocket"], answer["ticket"], data=data)
    await client.sdk.connect()
    async with asyncio.timeout(SETTLE_S):
        assert (await client.disconnected).code == 107


async def test_the_audience_is_shown_to_no_reader(system: System, connect: Connect) -> None:
    """Not even to the services of the operator, which see everything else."""
    bob = await connect("bob")
    await set_presence(bob, audience={"mode": "listed", "users": ["cleo"]})
    (session,) = (await system.status("bob"))["sessions"]
    assert "audience" not in session
    assert session["last_active"] >= session["since"]
    assert "cleo" not in str(await system.status("bob"))


async def test_the_device_that_spoke_last_decides_on_the_audience(system: System, connect: Connect) -> None:
    """Whatever the others had said before."""
    phone, desk = await connect("bob", device="phone"), await connect("bob", device="desk")
    await set_presence(phone, audience={"mode": "nobody"})
    await set_presence(desk, audience={"mode": "everyone"})
    assert (await view(system, "bob", "alice"))["state"] == "online"
    await set_presence(phone, audience={"mode": "nobody"})
    assert (await view(system, "bob", "alice"))["state"] == "offline"


async def test_many_are_looked_up_on_behalf_of_a_viewer(system: System, connect: Connect) -> None:
    """`viewer` in the body of the POST, applied at each owner."""
    for number in range(10):
        client = await connect(f"u{number}")
        if number % 2:
            await set_presence(client, audience={"mode": "nobody"})
    url = next(iter(system.endpoints.status.values()))
    body = {"users": [f"u{n}" for n in range(10)], "viewer": "alice"}
    answer = await call_api("POST", f"{url}/v1/users/status", credential=system.key, body=body)
    assert [one["state"] for one in answer["statuses"]] == ["online", "offline"] * 5
    assert all(set(one) == {"user", "state", "last_seen"} for one in answer["statuses"])


# ---------------------------------------------------------------- recovery


async def test_a_viewer_that_was_away_is_given_the_present_state(connect: Connect) -> None:
    """Recovered always; with one publication if the state is another one, or might be."""
    alice, bob = await connect("alice"), await connect("bob")
    look = await look_at(alice, "bob")
    await drop(alice)
    await set_presence(bob, state="busy")
    await alice.sdk.ready(SETTLE_S)
    await look.has("online", "busy")
    assert (look.starts[-1].was_recovering, look.starts[-1].recovered) == (True, True)


async def test_a_viewer_with_the_present_position_is_told_nothing(connect: Connect) -> None:
    """The view lives as long as another device of the viewer is in it."""
    alice = await connect("alice", device="phone")
    bob = await connect("bob")
    first = await look_at(alice, "bob")
    node = alice.sdk._address
    other = await connect("alice", device="desk", candidate=0)
    if other.sdk._address != node:
        other = await connect("alice", device="desk", candidate=1)
    while other.sdk._address != node:
        other = await connect("alice", device="desk")
    second = await look_at(other, "bob")
    position = [look.starts[0].stream_position for look in (first, second)]
    assert position[0] == position[1]
    await drop(alice)
    await alice.sdk.ready(SETTLE_S)
    await first.subscription.ready(SETTLE_S)
    assert first.starts[-1].recovered
    await set_presence(bob, state="away")
    await first.has("online", "away")
    await second.has("online", "away")


# ---------------------------------------------------------------- what dies


async def test_watches_move_with_their_partitions(tmp_path: Path) -> None:
    """Users change the owner while they are watched; nothing is told of that, and the next change is."""
    config = msgspec.structs.replace(QUICK, access=AccessConfig())
    async with running(tmp_path / "data", config) as system:
        connect = Connect(system)
        alice = await connect("alice")
        bobs = {f"bob-{n}": await connect(f"bob-{n}") for n in range(12)}
        looks = {user: await look_at(alice, user) for user in bobs}
        before = await _owners(system, bobs)
        url = next(iter(system.endpoints.status.values()))
        await call_api("POST", f"{url}/v1/admin/status/resize", credential=system.key, body={"to": 5})
        async with asyncio.timeout(90):
            while not (  # noqa: ASYNC110 - there is no event to wait for
                await call_api("GET", f"{url}/v1/admin/status/resize", credential=system.key)
            )["is_done"]:
                await asyncio.sleep(0.1)
        assert await _owners(system, bobs) != before
        for user, client in bobs.items():
            await set_presence(client, state="busy")
            await looks[user].has("online", "busy")
        await connect.close()


async def _owners(system: System, users: Iterable[str]) -> list[str]:
    url = next(iter(system.endpoints.status.values()))
    table = await call_api("GET", f"{url}/v1/admin/status/table", credential=system.key)
    names = [node["node"] for node in table["nodes"]]
    return [names[table["owners"][partition_of(user)]] for user in users]


async def test_watches_outlive_their_owner(cluster: Cluster) -> None:
    """The owner is killed and comes back knowing nothing; viewers keep what they know, and are told what is new."""
    alice, bob = await _client(cluster, "alice"), await _client(cluster, "bob")
    look = await look_at(alice, "bob")
    owner = await _owner(cluster, "bob")
    await cluster.kill(owner)
    await cluster.start(owner)
    await set_until_confirmed(bob, state="busy")
    await look.has("online", "busy")
    await bob.sdk.disconnect()
    await look.has("online", "busy", "offline")
    await alice.sdk.disconnect()


async def test_who_was_on_a_dead_access_node_goes_offline(cluster: Cluster) -> None:
    """Nobody says so: its lease ends, and the grace."""
    await cluster.start("access-2")
    await eventually(lambda: _knows(cluster, 2))
    alice, bob = await _client(cluster, "alice", node="access-1"), await _client(cluster, "bob", node="access-2")
    look = await look_at(alice, "bob")
    await cluster.kill("access-2")
    await look.has("online", "offline")
    await bob.sdk.disconnect()
    await alice.sdk.disconnect()


async def _knows(cluster: Cluster, nodes: int) -> bool:
    statistics = await call_api("GET", f"{cluster.url('scheduler-1')}/debug/statistics")
    return len(statistics["access_nodes"]) == nodes


async def _client(cluster: Cluster, user: str, *, node: str = "access-1") -> StockClient:
    """Connect to a certain node, whatever the scheduler would choose."""
    url = f"{cluster.url('scheduler-1')}/v1/access"

    async def ticket() -> str:
        answer = await call_api("GET", url, credential=KEY, params={"user": user})
        return str(answer["ticket"])

    address = transport_urls(cluster.client_url(node))["websocket"]
    client = StockClient(address, await ticket(), ticket)
    await client.sdk.connect()
    await client.sdk.ready(SETTLE_S)
    return client


async def _owner(cluster: Cluster, user: str) -> str:
    table = await call_api("GET", f"{cluster.url('status-1')}/v1/admin/status/table", credential=KEY)
    return str(table["nodes"][table["owners"][partition_of(user)]]["node"])


async def set_until_confirmed(client: StockClient, **wanted: Any) -> None:
    """Set it again for as long as the owner is away: a temporary error."""

    async def is_set() -> bool:
        try:
            await set_presence(client, **wanted)
        except centrifuge.ReplyError as error:
            if not error.temporary:
                raise
            return False
        return True

    await eventually(is_set)


# ---------------------------------------------------------------- limits and bad input


async def is_refused(client: StockClient, user: str, code: int) -> None:
    """Try to look; it must be refused for good."""
    look = Look(client, user)
    await look.subscription.subscribe()

    async def is_over() -> bool:
        assert not look.starts
        return look.ended == [code]

    await eventually(is_over)


async def test_the_channels_of_a_client_are_bounded(connect: Connect) -> None:
    """106; one that is given up makes room."""
    alice = await connect("alice")
    looks = [await look_at(alice, f"u{n}") for n in range(5)]
    await is_refused(alice, "one-more", 106)
    await looks[0].subscription.unsubscribe()
    await look_at(alice, "another")


async def test_the_watches_of_a_node_are_bounded(system: System, connect: Connect) -> None:
    """106, whoever asks; users at whom somebody looks already cost nothing, and who leaves makes room."""
    clients = [await connect("alice", device=str(n)) for n in range(3)]
    by_node: dict[str, list[StockClient]] = {}
    while not any(len(here) >= 3 for here in by_node.values()):
        client = await connect("alice", device=str(len(clients)))
        clients.append(client)
        by_node.setdefault(client.sdk._address, []).append(client)
    first, second, third = next(here for here in by_node.values() if len(here) >= 3)[:3]
    for number in range(8):
        await look_at(first if number < 5 else second, f"u{number}")
    await is_refused(third, "one-more", 106)
    await look_at(third, "u0")
    await second.sdk.disconnect()

    async def has_room() -> bool:
        statistics = [await call_api("GET", f"{url}/debug/statistics") for url in system.endpoints.access.values()]
        return max(one["presence"]["watches"]["users"] for one in statistics) == 5

    await eventually(has_room)
    await look_at(third, "another")


@pytest.mark.parametrize("user", ["", "x" * 129, "a\tb", "é" * 65])
async def test_a_channel_of_no_user_is_unknown(connect: Connect, user: str) -> None:
    """102, for good."""
    await is_refused(await connect("alice"), user, 102)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {"state": "dancing"},
        {"audience": "everyone"},
        {"audience": {"mode": "some"}},
        {"audience": {"mode": "nobody", "users": ["a"]}},
        {"audience": {"mode": "listed", "users": ["x" * 129]}},
        {"colour": 1},
    ],
)
async def test_a_bad_presence_is_refused(connect: Connect, data: Any) -> None:
    """107, naming what is wrong; the connection goes on."""
    alice = await connect("alice")
    assert await rpc_error(alice, "presence.set", data) == 107
    await set_presence(alice, state="online")


async def test_calls_are_bounded(connect: Connect) -> None:
    """100 users a call, 1,000 and 16,000 bytes in an audience; no such method."""
    alice = await connect("alice")
    assert len(await get_presence(alice, *(f"u{n}" for n in range(100)))) == 100
    assert await rpc_error(alice, "presence.get", {"users": [f"u{n}" for n in range(101)]}) == 106
    assert await rpc_error(alice, "presence.get", {"users": []}) == 107
    for listed in ([f"u{n}" for n in range(1_001)], [f"{n:0128d}" for n in range(126)]):
        assert await rpc_error(alice, "presence.set", {"audience": {"mode": "listed", "users": listed}}) == 106
    assert await rpc_error(alice, "presence.dance", {}) == 104


async def test_a_viewer_is_an_id(system: System) -> None:
    """One clear error for what is none, and for a parameter that there is not."""
    with pytest.raises(BadRequest, match="viewer"):
        await view(system, "bob", "")
    url = next(iter(system.endpoints.status.values()))
    with pytest.raises(BadRequest, match="unknown query parameters: as"):
        await call_api("GET", f"{url}/v1/users/bob/status", credential=system.key, params={"as": "alice"})
    body = {"users": ["u"] * 1_001, "viewer": "alice"}
    with pytest.raises(LimitExceeded):
        await call_api("POST", f"{url}/v1/users/status", credential=system.key, body=body)
