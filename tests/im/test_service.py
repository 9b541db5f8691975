"""What a message service answers to access nodes, and how it begins and ends; a real one, on the twin store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from base.clock import Timestamp
from base.errors import (
    BadRequest,
    Draining,
    LimitExceeded,
    NotMember,
    Overloaded,
    RoadsteadError,
    StoreUnavailable,
    Unavailable,
    UnknownMethod,
)
from im import reading
from im.api import HEADS, TIMELINE, UNPROVEN, Heads, Timeline, Unproven
from im.core.commands import ChangeGroup, Draft, Trim
from im.core.timelines import Timelines
from im.ports import Visible
from tests.im.cluster import AccessEnd, Cluster, running


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(tmp_path) as made:
        yield made


def bodies(entries: list[tuple[int, bytes]]) -> list[Any]:
    return [msgspec.json.decode(data)["body"] for _, data in entries]


async def read(end: AccessEnd, user: str, since: int = 0, limit: int = 100, bytes_max: int = 1_000_000) -> list[int]:
    page = await end.im.timeline(user, since=since, limit=limit, bytes_max=bytes_max)
    return [offset for offset, _ in page.entries]


# ---------------------------------------------------------------- timelines


async def test_a_timeline_is_read_in_pages_of_entries_and_bytes(cluster: Cluster):
    """One entry comes however long it is; without a limit the head comes alone."""
    end = await cluster.start_access()
    for n in range(5):
        await end.send("ann", "bob", f"k{n}")
    [(_, data)] = (await end.im.timeline("bob", since=0, limit=1, bytes_max=1)).entries
    assert await read(end, "bob") == [1, 2, 3, 4, 5]
    assert await read(end, "bob", since=2, limit=2) == [3, 4]
    assert await read(end, "bob", bytes_max=2 * len(data)) == [1, 2]
    assert await read(end, "bob", since=5) == await read(end, "bob", since=99) == await read(end, "nobody") == []
    page = await end.im.timeline("bob", since=0, limit=0, bytes_max=1)
    assert (page.epoch, page.head, page.entries) == (cluster.store.epoch, 5, [])


@pytest.mark.spec("MD-05")
async def test_what_was_trimmed_is_never_skipped_in_silence(cluster: Cluster):
    """A position before it gets nothing: a page that began later would look whole."""
    end = await cluster.start_access()
    for n in range(5):
        await end.send("ann", "bob", f"k{n}")
    await cluster.store.execute([Trim("bob", 3)])
    page = await end.im.timeline("bob", since=2, limit=10, bytes_max=10_000)
    assert (page.head, page.entries) == (5, [])
    assert await read(end, "bob", since=3) == [4, 5]
    document = await end.call("bob", "sync", since=2)
    assert (document["too_old"], document["entries"], document["head"]) == (True, [], 5)


@pytest.mark.parametrize(
    "request_", [Timeline("bob", -1, 1, 1), Timeline("bob", 0, -1, 1), Timeline("bob", 2**63, 1, 1)]
)
async def test_a_malformed_range_is_refused(cluster: Cluster, request_: Timeline):
    peer = await cluster.peer()
    with pytest.raises(BadRequest):
        await peer.call(TIMELINE, request_, deadline_ms=5_000)


async def test_edits_and_recalls_are_in_what_is_read(cluster: Cluster):
    """Also where the message itself was told long ago."""
    end = await cluster.start_access()
    for n in (1, 2):
        await end.send("ann", "bob", f"k{n}")
    await end.call("ann", "edit", cid="1", seq=1, client_msg_id="e", body="new")
    await end.call("ann", "recall", cid="1", seq=2, client_msg_id="r")
    timeline = await end.im.timeline("bob", since=0, limit=100, bytes_max=10_000)
    page = await end.im.conversation("1", user="bob", since=0, limit=100, bytes_max=10_000)
    assert bodies(timeline.entries) == bodies(page.entries) == ["new", None, "new", None]


# ---------------------------------------------------------------- conversations of groups


async def test_who_left_reads_up_to_the_leaving(cluster: Cluster):
    """And is told where that is; who came later does not read what was before."""
    end = await cluster.start_access()
    cid = (await end.call("ann", "group_create", client_msg_id="g", name="x", members=["bob"]))["cid"]
    await end.call("ann", "send", cid=cid, client_msg_id="1", body=1)
    await end.call("bob", "group_change", cid=cid, action="leave")
    await end.call("ann", "group_change", cid=cid, action="invite", users=["cleo"])
    await end.call("ann", "send", cid=cid, client_msg_id="2", body=2)

    async def seen(user: str, since: int = 0, limit: int = 100) -> tuple[int, list[int], int]:
        page = await end.im.conversation(cid, user=user, since=since, limit=limit, bytes_max=10_000)
        return page.head, [seq for seq, _ in page.entries], page.last_seq

    assert await seen("ann") == (5, [1, 2, 3, 4, 5], 0)
    assert await seen("bob") == (3, [1, 2, 3], 3)
    assert await seen("bob", limit=0) == (3, [], 3)
    assert await seen("bob", since=4) == (3, [], 3)
    assert await seen("cleo") == (5, [4, 5], 0)
    page = await end.im.conversation(cid, user="ann", since=1, limit=100, bytes_max=10_000)
    assert page.removed == [(3, ["bob"])], "for whoever missed that push, and has subscribers beside ann"
    await end.call("ann", "edit", cid=cid, seq=2, client_msg_id="e", body="later")
    page = await end.im.conversation(cid, user="bob", since=1, limit=1, bytes_max=10_000)
    assert bodies(page.entries) == [1], "nor how a message was edited after that"
    timelines = {user: await end.im.timeline(user, since=1, limit=1, bytes_max=10_000) for user in ("ann", "bob")}
    assert [bodies(timelines[user].entries) for user in ("ann", "bob")] == [["later"], [1]]
    synced = [(await end.call(user, "sync", since=1, limit=1))["entries"][0]["data"] for user in ("ann", "bob")]
    assert [one["body"] for one in synced] == ["later", 1]
    await end.call("ann", "recall", cid=cid, seq=2, client_msg_id="r")
    assert (await end.call("bob", "history", cid=cid))["entries"][1]["body"] is None, "a recalled body nobody gets"
    with pytest.raises(NotMember):
        await seen("eve")


@pytest.mark.parametrize(
    "failure", [StoreUnavailable("the disk failed"), Unavailable("not here")], ids=["disk", "away"]
)
async def test_a_shard_that_fails_takes_the_edits_of_its_conversations_away_and_no_timeline(
    cluster: Cluster, failure: RoadsteadError, monkeypatch: pytest.MonkeyPatch
):
    """Who may see an edit has its entry as well; what was taken back stays so."""
    end = await cluster.start_access()
    for n, method in enumerate(("edit", "recall"), start=1):
        await end.send("ann", "bob", f"k{n}")
        await end.call("ann", method, cid="1", seq=2 * n - 1, client_msg_id=f"e{n}", **{"body": 2} if n == 1 else {})

    async def broken(_cid: int, _user: str) -> Visible | None:
        raise failure

    monkeypatch.setattr(cluster.store, "membership", broken)
    page = await end.im.timeline("bob", since=0, limit=9, bytes_max=10_000)
    assert bodies(page.entries) == [{"text": "k1"}, 2, None, None]
    assert [one["data"]["body"] for one in (await end.call("bob", "sync", since=0))["entries"]] == bodies(page.entries)


@pytest.mark.parametrize("at_once", [1, 100])
async def test_who_left_is_shown_nothing_of_what_became_of_the_group(
    cluster: Cluster, at_once: int, monkeypatch: pytest.MonkeyPatch
):
    """The list has the group as it was left; a search says neither yes nor no to the words of later edits."""
    monkeypatch.setattr(reading, "FOUND_OF_LEFT", at_once)
    end = await cluster.start_access()
    cid = (await end.call("ann", "group_create", client_msg_id="g", name="old", members=["bob"]))["cid"]
    for n, text in enumerate(["pay pay", "pay 1", "pay 2"]):
        await end.call("ann", "send", cid=cid, client_msg_id=f"{n}", body={"text": text})
    await end.call("bob", "group_change", cid=cid, action="leave")

    async def listed() -> dict[str, Any]:
        (one,) = (await end.call("bob", "conversations"))["conversations"]
        return one

    async def found(text: str, **more: Any) -> list[tuple[int, str]]:
        entries = (await end.call("bob", "search", cid=cid, text=text, **more))["entries"]
        return [(one["seq"], one["body"]["text"]) for one in entries]

    before = await listed()
    assert (before["name"], before["members"], before["channel"]) == ("old", 0, "inbox")
    await end.call("ann", "edit", cid=cid, seq=4, client_msg_id="e", body={"text": "pay 9000"}, mentions=["*"])
    await end.call("ann", "group_change", cid=cid, action="rename", value="why bob went")
    await end.call("ann", "group_change", cid=cid, action="invite", users=["cleo", "dan"])
    change = ChangeGroup(99, "", "x", int(cid), "fan_out", Timestamp(1), value="read")
    await cluster.store.execute([change, ChangeGroup(100, "", "x", int(cid), "dissolve", Timestamp(1))])
    assert await listed() == before
    assert await found("9000") == await found("2") == []
    assert await found("pay") == [(3, "pay 1"), (2, "pay pay")]
    assert await found("pay", limit=1) == [(3, "pay 1")], "nor does a page that is not full tell of one"


async def test_a_group_of_which_too_much_is_to_be_told_refuses_for_a_moment(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    """With a time to come back, and counted; the same key is stored then."""
    end = await cluster.start_access()
    await end.call("ann", "group_create", client_msg_id="g", name="x", members=["bob"])
    with monkeypatch.context() as patch:
        patch.setattr(Timelines, "is_full", lambda _self, _cid: True)
        for name, arguments in (
            ("send", {"client_msg_id": "k", "body": 1}),
            ("group_change", {"action": "rename", "value": "y"}),
        ):
            with pytest.raises(Overloaded) as refused:
                await end.call("ann", name, cid="1", **arguments)
            assert refused.value.detail["retry_after_ms"] > 0
    assert cluster.service._metrics.crowded._value.get() == 2
    assert (await end.call("ann", "send", cid="1", client_msg_id="k", body=1))["is_new"]


async def test_the_group_that_ended_with_the_leaving_is_listed_so(cluster: Cluster):
    """Who was in it to its end knows that."""
    end = await cluster.start_access()
    await end.call("ann", "group_create", client_msg_id="g", name="x", members=["bob"])
    await end.call("ann", "group_change", cid="1", action="dissolve")
    (one,) = (await end.call("bob", "conversations"))["conversations"]
    assert (one["name"], one["is_dissolved"], one["last_seq"]) == ("x", True, 2)


async def test_no_edit_of_a_recalled_message_says_anything_to_who_left(cluster: Cluster):
    """Though the recall came later: what takes a body away is told to everybody."""
    end = await cluster.start_access()
    cid = (await end.call("ann", "group_create", client_msg_id="g", name="x", members=["bob"]))["cid"]
    await end.call("ann", "send", cid=cid, client_msg_id="k", body=1)
    await end.call("ann", "edit", cid=cid, seq=2, client_msg_id="e", body=2)
    await end.call("bob", "group_change", cid=cid, action="leave")
    await end.call("ann", "recall", cid=cid, seq=2, client_msg_id="r")
    page = await end.im.conversation(cid, user="bob", since=1, limit=9, bytes_max=10_000)
    assert bodies(page.entries)[:2] == [None, None]
    assert [one["body"] for one in (await end.call("bob", "history", cid=cid, after=1))["entries"]][:2] == [None, None]


async def test_who_comes_back_is_not_told_how_old_messages_were_edited_meanwhile(cluster: Cluster):
    """Their entries are in the timeline from before, and stay as they were."""
    end = await cluster.start_access()
    cid = (await end.call("ann", "group_create", client_msg_id="g", name="x", members=["bob"]))["cid"]
    await end.call("ann", "send", cid=cid, client_msg_id="k", body="draft")
    await end.call("bob", "group_change", cid=cid, action="leave")
    await end.call("ann", "edit", cid=cid, seq=2, client_msg_id="e", body="secret")
    await end.call("ann", "group_change", cid=cid, action="invite", users=["bob"])
    page = await end.im.timeline("bob", since=1, limit=1, bytes_max=10_000)
    assert bodies(page.entries) == ["draft"]


@pytest.mark.spec("AR-4")
async def test_who_is_put_out_while_reading_sees_nothing_of_what_comes_then(cluster: Cluster):
    """What may be seen was looked up before the page was read, by which time there is more."""
    end = await cluster.start_access()
    cid = (await end.call("ann", "group_create", client_msg_id="g", name="x", members=["bob"]))["cid"]
    store, at = cluster.store, Timestamp(1)
    membership, n = store.membership, 0

    async def then_kicked(of: int, user: str) -> Visible | None:
        nonlocal n
        found = await membership(of, user)
        if found is not None and not found.last_seq and user == "bob":
            n += 1
            kick = ChangeGroup(10 * n, "ann", "x", of, "kick", at, users=("bob",))
            secret = Draft(10 * n + 1, "ann", "x", "", of, f"s{n}", "text", b'"secret"', at)
            await store.execute([kick, secret])
        return found

    store.membership = then_kicked  # type: ignore[method-assign]
    for read in ("conversation", "head", "after", "before"):
        if read in ("conversation", "head"):
            limit = 10 if read == "conversation" else 0
            page = await end.im.conversation(cid, user="bob", since=0, limit=limit, bytes_max=10_000)
            seen, head = str(page.entries) if limit else "kick", page.head
            assert page.last_seq == head
        else:
            document = await end.call("bob", "history", cid=cid, **{read: 0 if read == "after" else 1_000})
            seen, head = str(document["entries"]), document["head"]
        assert "kick" in seen
        assert "secret" not in seen
        assert head == (await store.conversation_heads([int(cid)]))[0] - 1
        await store.execute([ChangeGroup(1_000 + n, "ann", "x", int(cid), "invite", at, users=("bob",))])
    assert n == 4


# ---------------------------------------------------------------- heads and versions


async def test_heads_are_those_of_the_timelines(cluster: Cluster):
    """Versions are told only where something is not in them."""
    end = await cluster.start_access()
    await end.send("ann", "bob", "k1")
    ends = await end.im.heads(["ann", "bob", "cleo"])
    assert (ends.offsets, ends.versions) == ({"ann": 1, "bob": 1, "cleo": 0}, {})
    peer = await cluster.peer()
    with pytest.raises(LimitExceeded):
        await peer.call(HEADS, Heads(["u"] * 1_001), deadline_ms=5_000)


async def versions_hold(cluster: Cluster, end: AccessEnd, *users: str) -> None:
    """What is told is what the list says, for who was asked about before and who was not."""
    for user in users:
        told = (await end.im.heads([user])).versions.get(user, 0)
        assert told == (await end.call(user, "conversations"))["sync_version"], user
        cluster.shard._versions.forget(user)
        assert (await end.im.heads([user])).versions.get(user, 0) == told


async def test_a_version_changes_with_whatever_a_user_can_be_told(tmp_path: Path):
    """Messages, events, marks and settings; coming, going, and groups that go on without one."""
    async with running(tmp_path, preset="qq") as cluster:
        end = await cluster.start_access()
        everybody = ("ann", "bob", "cleo")

        async def all_hold() -> None:
            for user in everybody:  # known before the next change, and kept up to date by it
                told = (await end.im.heads([user])).versions.get(user, 0)
                assert told == (await end.call(user, "conversations"))["sync_version"], user

        await end.send("ann", "bob", "k0")
        await all_hold()
        cid = (await end.call("ann", "group_create", client_msg_id="g", name="x", members=["bob"]))["cid"]
        await all_hold()
        for user, method, arguments in [
            ("ann", "send", {"client_msg_id": "1", "body": 1}),
            ("bob", "mark", {"read_seq": 1}),
            ("bob", "set", {"pin": True}),
            ("ann", "edit", {"seq": 2, "client_msg_id": "e", "body": 2}),
            ("ann", "group_change", {"action": "rename", "value": "y"}),
            ("ann", "group_change", {"action": "invite", "users": ["cleo"]}),
            ("cleo", "send", {"client_msg_id": "1", "body": 1}),
            ("bob", "group_change", {"action": "leave"}),
            ("ann", "send", {"client_msg_id": "2", "body": 2}),
            # Beyond what is pushed directly, and back: nobody tells bob, who left.
            ("ann", "group_change", {"action": "invite", "users": [f"u{n}" for n in range(120)]}),
            ("ann", "send", {"client_msg_id": "3", "body": 3}),
            ("ann", "group_change", {"action": "kick", "users": [f"u{n}" for n in range(60)]}),
            ("ann", "send", {"client_msg_id": "4", "body": 4}),
            ("ann", "group_change", {"action": "dissolve"}),
        ]:
            await end.call(user, method, cid=cid, **arguments)
            await all_hold()
        await versions_hold(cluster, end, *everybody)


async def test_an_operators_switch_to_reading_is_counted_from_then_on(cluster: Cluster):
    """Though new conversations are all written here."""
    end = await cluster.start_access()
    await end.send("ann", "bob", "k1")
    change = ChangeGroup(1, "", "server", 1, "fan_out", Timestamp(1), value="read")
    await cluster.shard._writer.submit(change)
    await end.send("ann", "bob", "k2")
    assert (await end.im.heads(["bob"])).versions == {"bob": 1 + 1 + 3}, "the message, the switch; and the log"
    await versions_hold(cluster, end, "ann", "bob")


async def test_a_version_that_is_read_during_a_commit_is_right(tmp_path: Path):
    """What is committed and not told yet is in what is read, and would be counted a second time."""
    async with running(tmp_path, preset="qq") as cluster:
        end = await cluster.start_access()
        await end.send("ann", "bob", "k0")
        execute, conversations = cluster.store.execute, cluster.store.conversations
        is_durable, was_read = asyncio.Event(), asyncio.Event()

        async def slow_execute(commands: Any) -> Any:
            executed = await execute(commands)
            is_durable.set()
            await was_read.wait()
            return executed

        async def watched(user: str) -> Any:
            await is_durable.wait()
            found = await conversations(user)
            was_read.set()
            return found

        cluster.store.execute, cluster.store.conversations = slow_execute, watched  # type: ignore[method-assign]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(end.send("ann", "bob", "k1"))
            asked = tasks.create_task(end.im.heads(["bob"]))
        assert asked.result().versions.get("bob", 2) == 2
        await versions_hold(cluster, end, "bob")


# ---------------------------------------------------------------- silence, calls, ends


async def test_what_came_after_the_last_sign_of_life_was_missed(cluster: Cluster):
    """From the offset that was proven; own messages and notes are not news."""
    end = await cluster.start_access()
    cluster.statuses.online = {"ann": ("access-1",), "bob": ("access-1",)}
    for n in range(4):
        await end.send("ann", "bob", f"k{n}")
    await end.send("bob", "ann", "own")
    await end.im.unproven([("bob", 2), ("nobody", 5)])
    page = cluster.service._offline.read("", limit=10)
    assert page is not None
    assert [(item.user, item.message.client_msg_id) for item in page.items] == [("bob", "k2"), ("bob", "k3")]
    peer = await cluster.peer()
    with pytest.raises(LimitExceeded):
        await peer.call(UNPROVEN, Unproven([("u", 0)] * 1_001), deadline_ms=5_000)


async def test_calls_of_other_services_and_unknown_methods_are_refused(cluster: Cluster):
    end = await cluster.start_access()
    for method in ("im.nothing", "status.send", "send", ""):
        with pytest.raises(UnknownMethod):
            await end.im.rpc("ann", "phone", method, b"{}")
    for data in (b"{", b"[]", b"\xff", b'{"to":"bob"}'):
        with pytest.raises(BadRequest):
            await end.im.rpc("ann", "phone", "im.send", data)


async def test_repeats_and_conflicts_are_counted_and_stored_once(cluster: Cluster):
    end = await cluster.start_access()
    for key in ("k1", "k1", "k2"):
        await end.send("ann", "bob", key)
    with pytest.raises(Exception, match="client_msg_id"):
        await end.send("ann", "cleo", "k1")
    metrics = cluster.service._metrics
    assert [one._value.get() for one in (metrics.stored, metrics.repeats, metrics.conflicts)] == [2, 1, 1]


async def test_a_draining_service_commits_what_waits_and_takes_nothing_new(cluster: Cluster):
    """Reading goes on."""
    end = await cluster.start_access()
    async with asyncio.TaskGroup() as tasks:
        sends = [tasks.create_task(end.send("ann", "bob", f"k{n}")) for n in range(50)]
        while len(await cluster.store.log(after=0, limit=1)) == 0:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)
        await cluster.service.drain()
        results = await asyncio.gather(*sends, return_exceptions=True)
    assert all(result is None for result in results)
    for method, arguments in [
        ("send", {"to": "bob", "client_msg_id": "x", "body": 1}),
        ("mark", {"cid": "1", "read_seq": 1}),
        ("group_create", {"client_msg_id": "g", "name": "x"}),
    ]:
        with pytest.raises(Draining):
            await end.call("ann", method, **arguments)
    assert (await end.call("bob", "unread"))["total"] == 50
    assert cluster.shard.statistics()["is_draining"]
