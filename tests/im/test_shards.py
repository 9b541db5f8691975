"""Message services of several processes: any of them takes any call, and nothing is lost or twice when one is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from base.clock import Timestamp
from base.errors import ConfigError, LimitExceeded, NotMember, Retry, RoadsteadError
from im import gathering
from im.api import RPC, TIMELINE, Rpc, Timeline
from im.core.commands import Outgoing
from im.core.model import Form, Message
from im.core.shards import shard_of_text, shard_of_user
from im.files import opener
from im.methods import METHODS
from im.service import MessageService
from im.shard import TAKE_OVER_MAX
from im.shards_api import TAKE_OVER, TakenOver, TakeOver
from tests.im.cluster import TIMEOUT_S, AccessEnd, running
from tests.im.shard_cluster import NODES, SHARDS, ShardCluster, home, sharded, user_of

USERS = [user_of(shard, n) for n in (0, 1) for shard in range(SHARDS)]
"""Two of each shard; the first four have a shard each, in turn at the first and the second process."""


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[ShardCluster]:
    async with sharded(tmp_path) as made:
        yield made


async def becomes(look: Callable[[], object]) -> None:
    """For facts that arrive by themselves, soon."""
    async with asyncio.timeout(TIMEOUT_S):
        while not look():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.005)


async def comes_true(look: Callable[[], Awaitable[bool]]) -> None:
    """As `becomes`, of what must be asked for, and may fail until then."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            with suppress(RoadsteadError):
                if await look():
                    return
            await asyncio.sleep(0.02)


async def whole(end: AccessEnd, user: str) -> list[dict[str, Any]]:
    """The user's timeline, which has no hole."""
    page = await end.call(user, "sync", since=0, limit=500)
    assert [entry["offset"] for entry in page["entries"]] == list(range(1, page["head"] + 1))
    return [entry["data"] for entry in page["entries"]]


# ---------------------------------------------------------------- all methods


class Story:
    """Users of all shards do all that can be done; what they are answered, and what they see then."""

    def __init__(self, end: AccessEnd) -> None:
        self._end = end
        self.said: list[tuple[str, str, Any]] = []
        self.labels: dict[str, str] = {}
        """What the conversations are called, whatever numbers they have."""

    async def call(self, user: str, method: str, **arguments: Any) -> Any:
        answer = await self._end.call(user, method, **arguments)
        self.said.append((user, method, answer))
        return answer

    async def tell(self) -> None:
        """Begin it."""
        one, two, three, four, five, six, *_ = USERS
        for n, sender in enumerate(USERS):
            for other in USERS[n % 3 :: 3]:
                sent = await self.call(sender, "send", to=other, client_msg_id=f"{sender}-{other}", body="a word")
                self.labels[sent["cid"]] = "-".join(sorted([sender, other]))
        cids = {}
        for owner, members in ((one, USERS), (four, [two, three]), (six, [five])):
            arguments = {"client_msg_id": f"g-{owner}", "name": f"of {owner}", "members": members}
            made = await self.call(owner, "group_create", **arguments)
            cid = cids[owner] = made["cid"]
            self.labels[cid] = made["name"]
            for user in (owner, members[0], members[-1]):
                await self.call(user, "send", cid=cid, client_msg_id=f"in-{owner}", body=f"a word by {user}")
        await self.call(two, "edit", cid=cids[four], seq=3, client_msg_id="e1", body="another word")
        await self.call(two, "edit", cid=cids[four], seq=3, client_msg_id="e2", body="the last word")
        await self.call(two, "recall", cid=cids[four], seq=3, client_msg_id="r1")
        await self.call(one, "edit", cid=cids[one], seq=2, client_msg_id="e3", body="a better word", mentions=[three])
        await self.call(three, "mark", cid=cids[one], read_seq=3)
        await self.call(three, "set", cid=cids[one], mute=True, hide=True)
        await self.call(five, "mark", cid=cids[six], unread=True)
        await self.call(four, "send", cid=cids[four], client_msg_id="q", body=1, ack="queued")
        await self.call(four, "group_change", cid=cids[four], action="kick", users=[three])
        await self.call(four, "send", cid=cids[four], client_msg_id="after", body=2)
        await self.call(two, "edit", cid=cids[four], seq=3, client_msg_id="e1", body="another word")
        await self.call(two, "typing", cid=cids[four])
        for owner, cid in cids.items():
            await self.call(owner, "members", cid=cid)
            await self.call(owner, "receipts", cid=cid, seq=2)

    async def see(self) -> None:
        """Let everybody look at everything."""
        for user in USERS:
            await self.call(user, "unread")
            after, listed = "", []
            while True:
                page = await self._end.call(user, "conversations", limit=3, after=after)
                listed += page["conversations"]
                if not (after := page["next"]):
                    break
            self.said.append((user, "conversations", [page["total_unread"], *sorted(listed, key=self._label)]))
            for each in sorted(listed, key=self._label):
                await self.call(user, "history", cid=each["cid"])
                await self.call(user, "search", cid=each["cid"], text="word")
            told = sorted(await whole(self._end, user), key=self._label)  # of each conversation in order
            self.said.append((user, "sync", [*told, [entry for entry in told if "seq" not in entry]]))

    def _label(self, one: dict[str, Any]) -> tuple[str, bool]:
        return self.labels[one["cid"]], "seq" in one

    def essence(self) -> list[Any]:
        """All of it but what differs from run to run."""
        return [(user, method, self._essence(answer)) for user, method, answer in self.said]

    def _essence(self, value: Any) -> Any:
        if isinstance(value, dict):
            found = {name: self._essence(one) for name, one in value.items() if name not in IGNORED}
            return found | ({"cid": self.labels[value["cid"]]} if "cid" in value else {})
        if isinstance(value, list):
            of_conversations = [one for one in value if isinstance(one, dict) and one.keys() == {"cid", "unread"}]
            return [self._essence(one) for one in (sorted(value, key=self._label) if of_conversations else value)]
        return value


IGNORED = {"mid", "at", "epoch", "cid"}


async def test_users_of_several_processes_see_what_they_would_see_of_one(tmp_path: Path):
    """All methods, with users, members and logs in all shards: answer by answer, timeline by timeline."""
    (tmp_path / "one").mkdir()
    async with running(tmp_path / "one") as single:
        expected = Story(await single.start_access())
        await expected.tell()
        await becomes(lambda: single.shard._search.lag == 0 and not single.store.has_work)
        await expected.see()
    assert {method for _, method, _ in expected.said} == {one.name for one in METHODS}
    async with sharded(tmp_path / "many") as cluster:
        found = Story(await cluster.start_access())
        await found.tell()
        await cluster.settled()
        await becomes(lambda: all(cluster.shard_at(shard)._search.lag == 0 for shard in range(SHARDS)))
        await found.see()
        assert cluster.forwarded() == 0, "who knows the table asks the right process"
        assert {shard_of_text(cid, SHARDS) for cid in found.labels} == set(range(SHARDS))
    for one, other in zip(expected.essence(), found.essence(), strict=True):
        assert one == other


# ---------------------------------------------------------------- any process


async def test_any_process_takes_any_call(cluster: ShardCluster):
    """Over HTTP; what is not its own it passes on, once."""
    sender, receiver = user_of(0), user_of(1)
    for n, name in enumerate(NODES):
        body = {"from": sender, "to": receiver, "client_msg_id": f"k{n}", "body": n}
        status, sent = await cluster.ask(name, "POST", "/v1/messages", body)
        assert (status, sent["seq"], sent["is_new"]) == (200, n + 1, True)
        cid = sent["cid"]
        assert (await cluster.ask(name, "POST", "/v1/messages", body))[1] == sent | {"is_new": False}
    assert cluster.forwarded() == 2
    await cluster.settled()
    for name in NODES:
        for user in (sender, receiver):
            status, page = await cluster.ask(name, "GET", f"/v1/users/{user}/timeline")
            assert (status, page["head"]) == (200, 2)
            status, listed = await cluster.ask(name, "POST", f"/v1/users/{user}/im/conversations", {})
            assert (status, [one["cid"] for one in listed["conversations"]]) == (200, [cid])
        assert (await cluster.ask(name, "POST", f"/v1/users/{sender}/im/nothing", {}))[0] == 404
    for name in NODES:
        status, made = await cluster.ask(
            name, "POST", f"/v1/users/{receiver}/im/group_create",
            {"client_msg_id": f"g-{name}", "name": "x", "members": [sender]},
        )  # fmt: skip
        change = {"action": "rename", "value": "y"}
        for other in NODES:
            status, changed = await cluster.ask(other, "POST", f"/v1/conversations/{made['cid']}/changes", change)
            assert (status, changed["name"]) == (200, "y")


async def test_a_call_is_passed_on_once(cluster: ShardCluster):
    """Whoever was asked in another one's stead, and has not the shard either, says so."""
    user = user_of(0)
    right, wrong = await cluster.peer_of(home(0)), await cluster.peer_of(home(1))
    data = msgspec.json.encode({"to": user, "client_msg_id": "k", "body": 1})
    for is_forwarded, peer in ((False, wrong), (False, right), (True, right)):
        reply = await peer.call(RPC, Rpc(user, "phone", "im.send", data, is_forwarded=is_forwarded), deadline_ms=5_000)
        assert msgspec.json.decode(reply.data)["seq"] == 1
    with pytest.raises(RoadsteadError) as caught:
        await wrong.call(RPC, Rpc(user, "phone", "im.send", data, is_forwarded=True), deadline_ms=5_000)
    assert caught.value.retry is not Retry.NEVER
    assert cluster.forwarded() == 1
    with pytest.raises(RoadsteadError) as caught:  # a timeline is read where it is, by who knows the table
        await wrong.call(TIMELINE, Timeline(user, 0, 10, 1_000), deadline_ms=5_000)
    assert caught.value.retry is not Retry.NEVER


async def test_a_refusal_comes_back_as_it_was_made(cluster: ShardCluster):
    """With its code and its words, over HTTP and two processes."""
    sender, other = user_of(0), user_of(1)
    _, sent = await cluster.ask(
        home(0), "POST", "/v1/messages", {"from": sender, "to": other, "client_msg_id": "k", "body": 1}
    )
    answers = [
        await cluster.ask(name, "POST", f"/v1/users/{user_of(2)}/im/history", {"cid": sent["cid"]}) for name in NODES
    ]
    assert answers[0] == answers[1]
    assert answers[0][0] == 403
    assert answers[0][1]["error"]["code"] == NotMember.code.number


async def test_three_processes_that_start_at_the_same_time_agree(tmp_path: Path):
    """On one table, of which each has its share."""
    nodes = ("im-1", "im-2", "im-3")
    async with asyncio.TaskGroup() as tasks:
        cluster = ShardCluster(tasks, tmp_path, nodes, 7)
        await asyncio.gather(*(cluster.start(name) for name in nodes))
        shards = {name: sorted(map(int, cluster.services[name].statistics()["shards"])) for name in nodes}
        assert shards == {"im-1": [0, 3, 6], "im-2": [1, 4], "im-3": [2, 5]}
        end = await cluster.start_access()
        users = [user_of(shard, shards=7) for shard in range(7)]
        cid = (await end.call(users[0], "group_create", client_msg_id="g", name="x", members=users))["cid"]
        for user in users:
            await end.call(user, "send", cid=cid, client_msg_id="k", body=user)
        await cluster.settled()
        for user in users:
            assert [entry["seq"] for entry in await whole(end, user)] == list(range(1, 9))
        await cluster.close()


async def test_a_process_that_would_have_other_shards_is_refused(cluster: ShardCluster):
    """By one clear error, before it is seen by anybody."""
    config = msgspec.structs.replace(cluster.config, shards=SHARDS + 1)
    site = cluster.site("im-3", 1)
    folder = cluster._folder / "im-3"
    late = MessageService(config, site, open_shard=opener(folder, site.clock), statuses=cluster.statuses)
    with pytest.raises(ConfigError) as caught:
        await late.start()
    assert str(caught.value).count("im.shards is 5 here and 4 in the system") == 1
    await late.stop()
    assert not folder.exists()


# ---------------------------------------------------------------- one is away


async def send_as(end: AccessEnd, sender: str, to: str, key: str) -> bool:
    """Return whether it was acknowledged; else it may be tried again."""
    try:
        await end.send(sender, to, key)
    except RoadsteadError as error:
        if error.retry is Retry.NEVER:
            raise
        return False
    return True


async def test_while_one_process_is_away_the_others_go_on(cluster: ShardCluster):
    """What it has is refused for a while, what is for its users waits; and then nothing is lost, or twice."""
    end = await cluster.start_access()
    acknowledged: dict[tuple[str, str], list[str]] = {}

    async def all_send(n: int) -> list[tuple[str, str]]:
        failed = []
        for sender in USERS[:6]:
            for other in USERS[:6]:
                if await send_as(end, sender, other, f"{sender}-{other}-{n}"):
                    acknowledged.setdefault((sender, other), []).append(f"{sender}-{other}-{n}")
                else:
                    failed.append((sender, other))
        return failed

    assert await all_send(0) == []
    await cluster.kill("im-2")
    failed = await all_send(1)
    away = {user for user in USERS if home(shard_of_user(user, SHARDS)) == "im-2"}
    assert {(one, other) for one, other in failed} == {
        (one, other) for one in USERS[:6] for other in USERS[:6] if min(one, other) in away
    }
    near = next(user for user in USERS if user not in away)
    for method in ("conversations", "unread"):
        with pytest.raises(RoadsteadError) as caught:
            await end.call(near, method)
        assert caught.value.retry is not Retry.NEVER, "an error, and never a part of the list"
    assert (await end.call(near, "sync", since=0))["head"] > 0
    assert sum(len(shard._outbox) for shard in cluster.services["im-1"]._here.values()) > 0
    await cluster.start("im-2")
    for sender, other in failed:
        await comes_true(partial(send_as, end, sender, other, f"{sender}-{other}-1"))
        acknowledged.setdefault((sender, other), []).append(f"{sender}-{other}-1")
    assert await all_send(2) == []

    for user in USERS[:6]:
        meant = sorted({key for pair, keys in acknowledged.items() if user in pair for key in keys})

        async def has_arrived(user: str = user, count: int = len(meant)) -> bool:
            return len(await whole(end, user)) >= count

        await comes_true(has_arrived)
        assert sorted(entry["client_msg_id"] for entry in await whole(end, user)) == meant
        for listed in (await end.call(user, "conversations"))["conversations"]:
            assert listed["max_seq"] in (3, 6), "each message once, in its log too"


@pytest.mark.spec("FO-05")
async def test_what_is_acknowledged_survives_the_kill_of_both_ends(
    cluster: ShardCluster,
):
    """The log's process dies before it has brought anything over, the timeline's comes later."""
    end = await cluster.start_access()
    near, far = sorted((user_of(0), user_of(1)))
    log, timeline = (home(shard_of_user(user, SHARDS)) for user in (near, far))
    await cluster.kill(timeline)
    for n in range(20):
        await end.send(near, far, f"k{n}")
    await cluster.kill(log)
    await cluster.start(timeline)
    await cluster.start(log)

    async def has_arrived() -> bool:
        return len(await whole(end, far)) == 20

    await comes_true(has_arrived)
    for user in (near, far):
        assert [entry["client_msg_id"] for entry in await whole(end, user)] == [f"k{n}" for n in range(20)]


async def test_a_drained_process_leaves_nothing_behind_that_others_could_have(cluster: ShardCluster):
    """What it has acknowledged is in the timelines of the others when it ends."""
    end = await cluster.start_access()
    near, far = sorted((user_of(0), user_of(1)))
    log = home(shard_of_user(near, SHARDS))
    target = cluster.shard_at(shard_of_user(far, SHARDS))
    take_over = target.take_over

    async def slowly(source: int, entries: tuple[Outgoing, ...]) -> int:
        await asyncio.sleep(0.1)
        return await take_over(source, entries)

    target.take_over = slowly  # type: ignore[method-assign]
    for n in range(20):
        await end.send(near, far, f"k{n}")
    await cluster.services[log].drain()
    await cluster.kill(log)
    assert len(await whole(end, far)) == 20


# ---------------------------------------------------------------- access nodes


async def test_audits_go_on_for_whoever_can_be_asked(cluster: ShardCluster):
    """Heads by shard; of a process that is away none."""
    end = await cluster.start_access()
    cids = {}
    for n, user in enumerate(USERS):
        cids[user] = (await end.call(user, "group_create", client_msg_id="g", name="x"))["cid"]
        for key in range(n):
            await end.call(user, "send", cid=cids[user], client_msg_id=f"k{key}", body=1)
    heads = {user: n + 1 for n, user in enumerate(USERS)}
    assert (await end.im.heads([*USERS, "nobody"])).offsets == heads | {"nobody": 0}
    assert await end.im.conversation_heads([*cids.values()]) == {cids[user]: head for user, head in heads.items()}
    await cluster.kill("im-2")
    here = {user for user in USERS if home(shard_of_user(user, SHARDS)) == "im-1"}
    assert (await end.im.heads(USERS)).offsets == {user: heads[user] for user in here}
    assert await end.im.conversation_heads([*cids.values()]) == {cids[user]: heads[user] for user in here}
    away = [user for user in USERS if user not in here]
    for asked in (end.im.heads(away), end.im.unproven([(user, 0) for user in away])):
        with pytest.raises(RoadsteadError) as caught:
            await asked
        assert caught.value.retry is not Retry.NEVER
    with pytest.raises(RoadsteadError) as caught:
        await end.im.conversation_heads([cids[USERS[0]], "x"])
    assert caught.value.retry is Retry.NEVER, "what is our fault is told"


async def test_silent_ends_are_told_to_each_users_process(cluster: ShardCluster):
    """And those that nobody took are returned, to be told again."""
    end = await cluster.start_access()
    cluster.statuses.online = dict.fromkeys(USERS, ("access-1",))
    for user in USERS[:4]:
        await end.send(USERS[4], user, f"to-{user}")
    await cluster.settled()
    assert await end.im.unproven([(user, 0) for user in USERS[:4]]) == []
    for name, service in cluster.services.items():
        page = service._offline.read("", limit=99)
        assert page is not None
        mine = [user for user in USERS[:4] if home(shard_of_user(user, SHARDS)) == name]
        assert sorted(item.user for item in page.items) == sorted(mine)
        assert len(mine) == 2
    await cluster.kill("im-2")
    untold = await end.im.unproven([(user, 0) for user in USERS[:4]])
    assert sorted(untold) == sorted((user, 0) for user in USERS[:4] if home(shard_of_user(user, SHARDS)) == "im-2")


async def test_conversations_of_several_processes_are_followed(cluster: ShardCluster):
    """Each is pushed once, by the process that has its log, with the epoch of its store."""
    end = await cluster.start_access()
    cids = [
        (await end.call(user, "group_create", client_msg_id="g", name="x", members=USERS))["cid"] for user in USERS[:4]
    ]
    end.im.follow(cids)
    await becomes(lambda: all(one.statistics()["followed"] == 4 for one in cluster.services.values()))
    for cid in cids:
        await end.call(USERS[7], "send", cid=cid, client_msg_id=cid, body=cid)
    epochs = {}
    for _ in range(4):
        pushed = await end.pushed()
        (entry,) = pushed.entries
        epochs[entry.cid] = pushed.epoch
        assert entry.seq == 2
    for shard, cid in enumerate(cids):
        assert shard_of_text(cid, SHARDS) == shard
        read = await end.im.conversation(cid, user=USERS[0], since=0, limit=9, bytes_max=10_000)
        assert epochs[cid] == read.epoch == cluster.shard_at(shard).store.epoch
        assert [seq for seq, _ in read.entries] == [1, 2]
    await cluster.settled()
    assert end._pushes.empty(), "what is taken over is no news of the conversation"


async def test_pushes_come_from_where_the_timeline_is(cluster: ShardCluster):
    """To both sides, each entry once, in order, under that timeline's epoch."""
    end = await cluster.start_access()
    near, far = sorted((user_of(0), user_of(1)))
    cluster.statuses.online = {near: ("access-1",), far: ("access-1",)}
    for n in range(5):
        await end.send(near, far, f"k{n}")
    entries: dict[str, list[int]] = {near: [], far: []}
    while sum(map(len, entries.values())) < 10:
        push = await end.inbox_push()
        for entry in push.entries:
            entries[entry.user].append(entry.offset)
            assert push.epoch == cluster.shard_at(shard_of_user(entry.user, SHARDS)).store.epoch
    assert entries == {near: [1, 2, 3, 4, 5], far: [1, 2, 3, 4, 5]}


async def test_the_feed_of_who_is_offline_knows_of_other_processes(cluster: ShardCluster):
    """A conversation that is muted there, a message that was recalled or read: none of them is told."""
    end = await cluster.start_access()
    user = user_of(0)
    cids = {}
    for owner in (user_of(1), user_of(1, 1), user_of(2), user_of(0, 1)):
        made = await end.call(owner, "group_create", client_msg_id="g", name="x", members=[user])
        cids[owner] = made["cid"]
        await end.call(owner, "send", cid=made["cid"], client_msg_id="k", body=owner)
    told, muted, recalled, read = cids
    await end.call(user, "set", cid=cids[muted], mute=True)
    await end.call(recalled, "recall", cid=cids[recalled], seq=2, client_msg_id="r")
    await end.call(user, "mark", cid=cids[read], read_seq=2)
    await cluster.settled()
    await becomes(lambda: len(cluster.services["im-1"]._offline) == 4)

    async def items() -> list[tuple[str, Any]]:
        status, page = await cluster.ask("im-1", "GET", "/v1/offline")
        assert (status, {item["user"] for item in page["items"]}) == (200, {user})
        return [(item["message"]["from"], item["message"]["body"]) for item in page["items"]]

    assert await items() == [(told, told)]
    await cluster.kill("im-2")
    found = await items()
    assert sorted(found) == sorted([(told, None), (muted, None)]), "who cannot be asked may have wanted it"


async def test_a_timeline_reads_on_while_processes_of_its_conversations_are_away(cluster: ShardCluster):
    """What was edited there is not applied then; it is in the timeline, and what was recalled stays so."""
    end = await cluster.start_access()
    near, far = sorted((user_of(0), user_of(1)))
    for key in ("k1", "k2"):
        await end.send(near, far, key)
    (cid,) = [one["cid"] for one in (await end.call(near, "conversations"))["conversations"]]
    for n, seq in enumerate((1, 1, 2)):
        await end.call(near, "edit", cid=cid, seq=seq, client_msg_id=f"e{n}", body=f"new {n}")
    await end.call(near, "recall", cid=cid, seq=2, client_msg_id="r")
    await cluster.settled()

    def said(timeline: list[dict[str, Any]]) -> list[Any]:
        return [entry["body"] for entry in timeline]

    assert said(await whole(end, far)) == ["new 1", None, None, "new 1", None, None]
    await cluster.kill(home(shard_of_text(cid, SHARDS)))
    assert said(await whole(end, far)) == [{"text": "k1"}, None, None, "new 1", None, None]
    page = await end.im.timeline(far, since=0, limit=9, bytes_max=100_000)
    assert len(page.entries) == 6


# ---------------------------------------------------------------- bounds


async def test_a_list_may_be_longer_than_a_message_between_processes(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
):
    """It comes in pages, and is whole."""
    end = await cluster.start_access()
    user = user_of(0)
    for other in USERS:
        for n in range(3):
            cid = (await end.call(other, "group_create", client_msg_id=f"g{n}", name="x", members=[user]))["cid"]
            await end.call(other, "send", cid=cid, client_msg_id=f"k{n}", body="x" * 1_000)
    await cluster.settled()
    expected = await end.call(user, "conversations")
    assert len(expected["conversations"]) == 24
    for most in (1, 5_000, 9_000):
        monkeypatch.setattr(gathering, "LISTED_BYTES_MAX", most)
        assert await end.call(user, "conversations") == expected


async def test_a_process_asks_those_that_it_needs_and_says_when_it_cannot(cluster: ShardCluster):
    """A shard that is named as its own, and is not open: retryable, whoever asks."""
    end = await cluster.start_access()
    near, far = sorted((user_of(0), user_of(1)))
    await end.send(near, far, "k")
    await cluster.settled()
    (cid,) = [one["cid"] for one in (await end.call(near, "conversations"))["conversations"]]
    service = cluster.services[home(shard_of_text(cid, SHARDS))]
    taken = service._here.pop(shard_of_text(cid, SHARDS))
    for user, method, arguments in (
        (near, "history", {"cid": cid}), (far, "conversations", {}), (far, "unread", {}),
    ):  # fmt: skip
        with pytest.raises(RoadsteadError, match=f"shard {shard_of_text(cid, SHARDS)} is not here") as caught:
            await end.call(user, method, **arguments)
        assert caught.value.retry is not Retry.NEVER
    service._here[shard_of_text(cid, SHARDS)] = taken
    assert len((await end.call(far, "conversations"))["conversations"]) == 1


async def test_a_shard_takes_so_many_entries_at_once(cluster: ShardCluster):
    """More are refused, and nothing of them is taken over."""
    peer = await cluster.peer_of(home(0))
    user = user_of(0)
    message = Message(1, SHARDS, 1, 1, 7, "x", "phone", "", "k", Form.MESSAGE, "text", 0, b"1", b"", Timestamp(1))
    entries = tuple(Outgoing(n, 0, message, (user,)) for n in range(1, TAKE_OVER_MAX + 2))
    with pytest.raises(LimitExceeded):
        await peer.call(TAKE_OVER, TakeOver(1, 0, entries), deadline_ms=5_000)
    for _ in range(2):
        assert await peer.call(TAKE_OVER, TakeOver(1, 0, entries[:3]), deadline_ms=5_000) == TakenOver(3)
    end = await cluster.start_access()
    assert len(await whole(end, user)) == 3
