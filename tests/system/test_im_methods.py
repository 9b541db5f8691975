"""The methods of the message services from end to end: stock SDK clients and a backend, a real system and its store."""

from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path
from typing import Any

import pytest

from base.errors import NotMember
from tests.system.conftest import eventually
from tests.system.people import Person, Town, town

LATER_MS = 100_000_000_000_000


def shape(entry: dict[str, Any]) -> tuple[Any, ...]:
    """What of an entry does not depend on when, and how, it was told."""
    return (
        entry["kind"],
        entry["seq"],
        entry["cseq"],
        entry["from"],
        entry["body"] if entry["kind"] != "group" else (entry["body"]["event"], tuple(entry["body"]["users"])),
        entry.get("target"),
        entry.get("edited"),
        entry.get("recalled"),
    )


def events(log: list[dict[str, Any]]) -> list[str]:
    return [entry["body"]["event"] for entry in log if entry["kind"] == "group"]


# ---------------------------------------------------------------- groups


async def test_a_group_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    """Everybody sees exactly what was between coming and going, and may do what the role allows."""
    async with town(tmp_path) as here:
        ann, bob, cleo = [await here.person(user) for user in ("ann", "bob", "cleo")]
        made = await ann.call("group_create", client_msg_id="g", name="team", members=["bob"])
        cid = made["cid"]
        assert await ann.call("group_create", client_msg_id="g", name="team", members=["bob"]) == {
            **made,
            "is_new": False,
        }
        await bob.hears("group", cid=cid, seq=1)
        await ann.say(cid, "one")
        await bob.say(cid, "two")

        await bob.call("group_change", cid=cid, action="invite", users=["cleo"])  # seq 4
        await cleo.hears("group", cid=cid, seq=4)
        await ann.say(cid, "three")
        await cleo.hears("message", body="three")
        assert [entry["seq"] for entry in await cleo.log(cid)] == [4, 5]
        await cleo.call("group_change", cid=cid, action="leave")  # seq 6
        await bob.say(cid, "without cleo")
        assert [entry["seq"] for entry in await cleo.log(cid)] == [4, 5, 6]
        await cleo.refused(1305, "send", cid=cid, client_msg_id="x", body="from outside")

        await cleo.refused(103, "group_change", cid=cid, action="join")
        await ann.call("group_change", cid=cid, action="settings", settings={"who_joins": "anybody"})  # 8
        await cleo.call("group_change", cid=cid, action="join")  # 9
        assert [entry["seq"] for entry in await cleo.log(cid)] == [9], "what was between is not shown"

        await roles_and_mutes(cid, ann, bob, cleo)
        roles = {one["user"]: one["role"] for one in (await ann.call("members", cid=cid))["members"]}
        assert roles == {"ann": "owner", "bob": "admin"}

        await ann.refused(103, "group_change", cid=cid, action="leave")
        await bob.refused(103, "group_change", cid=cid, action="dissolve")
        await ann.call("group_change", cid=cid, action="transfer", users=["bob"])  # 17
        again = await ann.call("group_change", cid=cid, action="transfer", users=["bob"])
        assert (again["is_new"], again["seq"], again["owner"]) == (False, 0, "bob")
        await bob.call("group_change", cid=cid, action="rename", value="crew")  # 18
        await bob.call("group_change", cid=cid, action="dissolve")  # 19
        await ann.hears("group", cid=cid, seq=19)
        await ann.refused(1305, "send", cid=cid, client_msg_id="late", body="too late")
        log = await ann.log(cid)
        assert [entry["seq"] for entry in log] == list(range(1, 20)), "its past is still to be read"
        assert events(log)[-3:] == ["transfer", "rename", "dissolve"]
        listed = await bob.listed(cid)
        assert listed is not None
        assert (listed["name"], listed["is_dissolved"], listed["last_seq"], listed["unread"]) == ("crew", True, 19, 0)
        # What was told by pushes is what the log says, to each as long as the user was in.
        pushed = {one["seq"] for kind in ("message", "group") for one in cleo.told(kind) if one["cid"] == cid}
        assert pushed == {4, 5, 6, *range(9, 17)}


async def roles_and_mutes(cid: str, ann: Person, bob: Person, cleo: Person) -> None:
    """Bob becomes an admin, mutes cleo, then all, and puts cleo out: entries 10 to 16."""
    await bob.refused(103, "group_change", cid=cid, action="kick", users=["cleo"])
    await ann.call("group_change", cid=cid, action="role", users=["bob"], value="admin")  # 10
    await bob.call("group_change", cid=cid, action="mute", users=["cleo"], value=str(LATER_MS))  # 11
    assert "not send" in await cleo.refused(1306, "send", cid=cid, client_msg_id="m", body="muted")
    await bob.call("group_change", cid=cid, action="mute", users=["cleo"], value="0")  # 12
    await bob.call("group_change", cid=cid, action="mute_all", value="true")  # 13
    await cleo.refused(1306, "send", cid=cid, client_msg_id="m2", body="muted")
    await bob.say(cid, "an admin may")  # 14
    await bob.call("group_change", cid=cid, action="mute_all", value="false")  # 15
    await bob.call("group_change", cid=cid, action="kick", users=["cleo"])  # 16
    await cleo.hears("group", cid=cid, seq=16)


async def scenario(here: Town) -> tuple[list[Any], dict[str, Any]]:
    """Do some of everything; return the two logs as members see them, and what the list says."""
    ann, bob = await here.person("ann"), await here.person("bob")
    single = (await ann.say("bob", "hello"))["cid"]
    reply = await bob.say(single, {"text": "hi"}, reply_to=1)
    await ann.call("edit", cid=single, seq=1, client_msg_id="e", body="hello!")
    await bob.call("recall", cid=single, seq=reply["seq"], client_msg_id="r")
    group = await ann.group("bob", "cleo")
    for n in range(3):
        await ann.say(group, n, mentions=["bob"] if n == 1 else [])
    await bob.call("mark", cid=group, read_seq=3)
    await here.backend("cleo", "group_change", cid=group, action="leave")
    await here.change(group, "invite", users=["dan"])
    await ann.say(group, "last")
    pushed = await bob.hears("message", cid=group, body="last")
    assert pushed["seq"] == 7
    await eventually_all(bob, {single: 4, group: 7})
    logs = [[shape(entry) for entry in await bob.log(cid)] for cid in (single, group)]
    assert logs == [[shape(entry) for entry in await ann.log(cid)] for cid in (single, group)]
    listed = await bob.listed(group)
    total = await bob.call("unread")
    assert listed is not None
    seen = {name: listed[name] for name in ("channel", "unread", "read_seq", "max_seq", "max_cseq", "members", "role")}
    seen |= {"mentioned": listed.get("mentioned_seq", 0), "total": total["total"]}
    # A device that comes late knows as much.
    late = await here.person("bob", "laptop")
    assert [[shape(entry) for entry in await late.log(cid)] for cid in (single, group)] == logs
    assert (await late.call("conversations"))["total_unread"] == total["total"]
    return logs, seen


async def eventually_all(person: Person, ends: dict[str, int]) -> None:
    """Wait until all entries of these conversations were pushed, each once."""

    async def look() -> bool:
        told = [one.data for one in person.client.server_publications]
        seqs = {cid: sorted(one["seq"] for one in told if one.get("cid") == cid and one.get("seq")) for cid in ends}
        return seqs == {cid: list(range(1, end + 1)) for cid, end in ends.items()}

    await eventually(look)


@pytest.mark.spec("FO-08", "MI-10", "WX-01")
async def test_all_presets_look_the_same_to_clients(tmp_path: Path) -> None:
    """One scenario, four ways of fanning out: pushes, logs, lists and counts do not differ."""
    seen = {}
    for preset in ("hybrid", "wechat", "qq", "dingtalk"):
        async with town(tmp_path / preset, preset=preset) as here:
            seen[preset] = await scenario(here)
            strategies = {
                one["kind"]: one["fan_out"] for one in (await here.backend("bob", "conversations"))["conversations"]
            }
            assert (
                strategies
                == {
                    "hybrid": {"single": "write", "group": "write"},
                    "wechat": {"single": "write", "group": "write"},
                    "qq": {"single": "read", "group": "read"},
                    "dingtalk": {"single": "write", "group": "read"},
                }[preset]
            )
    assert len(seen["hybrid"][0][1]) == 7
    assert seen["hybrid"][1] == {
        "channel": "inbox",
        "unread": 2,
        "read_seq": 3,
        "max_seq": 7,
        "max_cseq": 4,
        "members": 3,
        "role": "member",
        "mentioned": 0,
        "total": 2,
    }
    assert all(one == seen["hybrid"] for one in seen.values())


@pytest.mark.spec("DT-01")
async def test_a_switch_of_strategy_is_an_entry_and_loses_nothing(tmp_path: Path) -> None:
    """To and fro while messages come: one continuous log, each entry pushed once."""
    async with town(tmp_path) as here:
        ann, bob = await here.person("ann"), await here.person("bob")
        cid = await ann.group("bob")
        for value in ("read", "write", "read"):
            await ann.say(cid, f"before {value}")
            await ann.refused(103, "group_change", cid=cid, action="fan_out", value=value)
            await here.change(cid, "fan_out", value=value)
        await ann.say(cid, "last")
        await eventually_all(bob, {cid: 8})
        assert [entry["seq"] for entry in await bob.log(cid)] == list(range(1, 9))
        assert events(await bob.log(cid)) == ["create", "fan_out", "fan_out", "fan_out"]


# ---------------------------------------------------------------- messages


async def test_an_edit_and_a_recall_reach_who_is_there_and_who_comes_late(tmp_path: Path) -> None:
    """Online devices are told the change, late ones the message as it is now; nobody gets a recalled body."""
    async with town(tmp_path) as here:
        ann, bob = await here.person("ann"), await here.person("bob")
        cid = (await ann.say("bob", "frist"))["cid"]
        await ann.say(cid, "secret")
        edit = {"cid": cid, "seq": 1, "client_msg_id": "e", "body": "first"}
        first = await ann.call("edit", **edit)
        assert await ann.call("edit", **edit) == {**first, "is_new": False}
        await ann.call("recall", cid=cid, seq=2, client_msg_id="r")
        told = await bob.hears("edit", cid=cid)
        assert (told["seq"], told["target"], told["body"]) == (3, 1, "first")
        told = await bob.hears("recall", cid=cid)
        assert (told["seq"], told["target"], told["body"]) == (4, 2, None)

        late = await here.person("bob", "laptop")
        page = await late.call("sync", since=0)
        messages = [entry["data"] for entry in page["entries"] if entry["data"]["kind"] == "message"]
        assert [(one["body"], one.get("edited"), one.get("recalled")) for one in messages] == [
            ("first", 3, None),
            (None, None, 4),
        ]
        assert "secret" not in str([page, await late.log(cid), await late.call("conversations")])
        await ann.refused(1308, "edit", cid=cid, seq=2, client_msg_id="e2", body="again")
        await bob.refused(103, "recall", cid=cid, seq=1, client_msg_id="r2")


@pytest.mark.spec("OR-04")
async def test_queued_messages_have_exactly_one_outcome(tmp_path: Path) -> None:
    """A message in the log, or a note; never both, however often they are sent, and in their order."""
    async with town(tmp_path) as here:
        ann, bob = await here.person("ann"), await here.person("bob")
        for n in range(20):
            for _ in range(2):
                result = await ann.call("send", to="bob", client_msg_id=f"q{n}", body=n, ack="queued")
                assert result.keys() in ({"mid", "is_new", "queued"}, {"mid", "cid", "seq", "at", "is_new"})
        other = (await here.backend("cleo", "group_create", client_msg_id="g", name="theirs"))["cid"]
        queued = await ann.call("send", cid=other, client_msg_id="bad", body=1, ack="queued")
        assert queued["queued"]
        note = await ann.hears("failure", client_msg_id="bad")
        assert note["cid"] == other
        assert note["body"]["cause"] == "NO_CONVERSATION"
        await bob.hears("message", client_msg_id="q19")
        assert [one["body"] for one in bob.told("message")] == list(range(20))
        assert len(ann.told("failure")) == 1
        # The key stands for its outcome from now on.
        await ann.refused(1305, "send", cid=other, client_msg_id="bad", body=1)
        stored = await ann.call("send", to="bob", client_msg_id="q7", body=7)
        assert (stored["seq"], stored["is_new"]) == (8, False)
        await ann.refused(1303, "send", to="bob", client_msg_id="q7", body=8)


async def test_long_messages_are_read_in_pages_that_a_client_can_take(tmp_path: Path) -> None:
    """What is more than may wait for one client would close it, again and again: it gets less at a time."""
    async with town(tmp_path) as here:
        ann = await here.person("ann")
        for n in range(30):
            await here.backend("eve", "send", to="ann", client_msg_id=f"k{n}", body=f"{n:02}" + "x" * 65_000)
        cid = (await ann.call("conversations"))["conversations"][0]["cid"]
        found: list[str] = []
        page = {"has_more": True}
        while page["has_more"]:
            page = await ann.call("sync", since=len(found), limit=1_000)
            found += [entry["data"]["body"][:2] for entry in page["entries"]]
        assert found == [f"{n:02}" for n in range(30)]
        found = []
        while len(found) < 30:
            entries = (await ann.call("history", cid=cid, after=len(found), limit=1_000))["entries"]
            found += [entry["body"][:2] for entry in entries]
        assert found == [f"{n:02}" for n in range(30)]
        assert not ann.client.reconnecting.is_set()
        assert not ann.client.disconnected.done()


async def test_what_was_acknowledged_is_found(tmp_path: Path) -> None:
    """By members, as far as they may see it, at once; edits and recalls count."""
    async with town(tmp_path) as here:
        ann = await here.person("ann")
        cid = await ann.group("bob")

        async def found(user: str, text: str, **more: Any) -> list[int]:
            return [one["seq"] for one in (await here.backend(user, "search", cid=cid, text=text, **more))["entries"]]

        for n in range(2, 8):
            await ann.say(cid, {"text": f"the harbour at dawn {n}"})
            assert await found("bob", "harbour dawn") == list(range(n, 1, -1))
        assert await found("bob", "harb*", limit=2) == [7, 6]
        assert await found("bob", "harb*", limit=2, before=6) == [5, 4]
        await ann.call("recall", cid=cid, seq=7, client_msg_id="r")
        await ann.call("edit", cid=cid, seq=6, client_msg_id="e", body={"text": "a pier"})
        assert await found("bob", "harbour") == [5, 4, 3, 2]
        assert await found("bob", "pier") == [6]
        await ann.call("group_change", cid=cid, action="invite", users=["cleo"])
        assert await found("cleo", "harbour") == []
        with pytest.raises(NotMember):
            await found("eve", "harbour")


# ---------------------------------------------------------------- what one made of it


async def test_marks_receipts_and_typing(tmp_path: Path) -> None:
    """One's own devices are told by notes that last; the others by receipts that do not."""
    async with town(tmp_path) as here:
        ann, bob, laptop = await here.person("ann"), await here.person("bob"), await here.person("bob", "laptop")
        cid = (await ann.say("bob", 1))["cid"]
        await ann.say(cid, 2)
        await bob.call("typing", cid=cid)
        assert await ann.hears("typing", cid=cid) == {"kind": "typing", "cid": cid, "from": "bob"}
        await bob.call("mark", cid=cid, delivered_seq=2)
        await ann.hears("receipt", delivered_seq=2, read_seq=0)
        assert (await bob.call("mark", cid=cid, read_seq=1))["is_new"]
        await ann.hears("receipt", **{"from": "bob", "read_seq": 1})
        note = await laptop.hears("read", cid=cid)
        assert (note["seq"], note["body"]["read_seq"]) == (0, 1)
        back = await bob.call("mark", cid=cid, read_seq=0)
        assert (back["is_new"], back["read_seq"]) == (False, 1), "forward only"
        assert (await bob.call("mark", cid=cid, read_seq=99))["read_seq"] == 2, "the end"
        assert await ann.call("receipts", cid=cid, seq=2) == {"members": 1, "read": 1, "readers": ["bob"]}
        await ann.refused(1404, "receipts", cid=cid, seq=3)
        eve = await here.person("eve")
        await eve.refused(1305, "typing", cid=cid)
        await eve.refused(1305, "receipts", cid=cid, seq=1)
        assert not eve.client.server_publications
        offsets = [one.offset for one in ann.client.server_publications if one.data["kind"] in {"typing", "receipt"}]
        assert set(offsets) == {0}, "what is of the moment has no place in the timeline"
        timeline = await ann.call("sync", since=0)
        assert [entry["data"]["kind"] for entry in timeline["entries"]] == ["message", "message"]


async def test_mutes_pins_hiding_and_mentions(tmp_path: Path) -> None:
    """They are the user's own, on all devices, and change no log."""
    async with town(tmp_path) as here:
        ann, bob = await here.person("ann"), await here.person("bob")
        one = (await ann.say("bob", "a single"))["cid"]
        group = await ann.group("bob")

        async def order() -> list[str]:
            return [each["cid"] for each in (await bob.call("conversations"))["conversations"]]

        assert await order() == [group, one], "the newest first"
        await bob.call("set", cid=one, pin=True, mute=True)
        assert await order() == [one, group]
        listed = await bob.listed(one)
        assert listed is not None
        assert listed["is_muted"]
        assert listed["pinned_at"] > 0
        assert (await bob.hears("settings", cid=one))["body"]["is_muted"]
        assert await bob.call("unread") == {"total": 1, "muted": 1, "conversations": [{"cid": one, "unread": 1}]}

        await bob.call("set", cid=one, pin=False, hide=True)
        assert await order() == [group]
        assert (await bob.call("unread"))["total"] == 0
        await ann.say(one, "back again")
        assert await order() == [one, group]

        await ann.say(group, "you?", mentions=["bob", "nobody"])
        mentioned = (await bob.listed(group) or {})["mentioned_seq"]
        await ann.say(group, "all?", mentions=["*"])
        assert ((await bob.listed(group) or {})["mentioned_seq"], mentioned) == (3, 2)
        await ann.call("recall", cid=group, seq=3, client_msg_id="r")
        assert (await bob.listed(group) or {})["mentioned_seq"] == 2
        await bob.call("mark", cid=group, read_seq=2)
        assert "mentioned_seq" not in (await bob.listed(group) or {})
        await bob.call("mark", cid=group, unread=True)
        marked = await bob.listed(group)
        assert marked is not None
        assert (marked["unread"], marked["is_marked_unread"]) == (1, True)


@pytest.mark.spec("CC-06", "UN-01")
async def test_unread_is_what_the_formula_says(tmp_path: Path) -> None:
    """After each of many random changes: in the counters, in the list, and added up."""
    dice = random.Random(7)
    async with town(tmp_path, recall_window_ms=10**9) as here:
        users = ["ann", "bob", "cleo"]
        people = {user: await here.person(user) for user in users}
        ann = people["ann"]
        cids = {(await ann.say(user, 0))["cid"]: ["ann", user] for user in ("bob", "cleo")}
        cids |= {await ann.group("bob", "cleo", key=key): users for key in ("write", "read")}
        await here.change(list(cids)[-1], "fan_out", value="read")
        for step in range(100):
            cid = dice.choice(list(cids))
            person = people[dice.choice(cids[cid])]
            log = await person.log(cid)
            mine = [
                one for one in log if one["kind"] == "message" and one["from"] == person.user and "recalled" not in one
            ]
            match dice.randrange(6):
                case 2 if mine:
                    await person.call("recall", cid=cid, seq=dice.choice(mine)["seq"], client_msg_id=f"r{step}")
                case 3 | 4:
                    await person.call("mark", cid=cid, read_seq=dice.choice(log)["seq"])
                case 5:
                    await person.call("set", cid=cid, hide=dice.random() < 0.7)
                case _:
                    await person.say(cid, step)
            who = dice.choice(users)
            await assert_unread(people[who], [cid for cid in cids if who in cids[cid]])


async def assert_unread(person: Person, cids: list[str]) -> None:
    """Hold the counters against the logs, and the pointers that the notes in the user's timeline tell."""
    counted = await person.call("unread")
    parts = {one["cid"]: one["unread"] for one in counted["conversations"]}
    assert counted["total"] == sum(parts.values()) == (await person.call("conversations"))["total_unread"]
    pointers: dict[str, tuple[int, int]] = dict.fromkeys(cids, (0, 0))
    since = 0
    while True:
        page = await person.call("sync", since=since, limit=1_000)
        for entry in page["entries"]:
            data, since = entry["data"], entry["offset"]
            read, hidden = pointers.get(data["cid"], (0, 0))
            if data["kind"] == "read":
                pointers[data["cid"]] = (data["body"]["read_seq"], hidden)
            elif data["kind"] == "settings":
                pointers[data["cid"]] = (read, data["body"]["hidden_seq"])
        if not page["has_more"]:
            break
    for cid in cids:
        log = await person.log(cid)
        sent = max(
            (entry["seq"] for entry in log if entry["kind"] == "message" and entry["from"] == person.user), default=0
        )
        floor = max(*pointers[cid], sent)
        unread = [
            entry["seq"]
            for entry in log
            if entry["kind"] == "message" and entry["seq"] > floor and not entry.get("recalled")
        ]
        assert parts.get(cid, 0) == len(unread), (person.user, cid, floor, [shape(entry) for entry in log])


# ---------------------------------------------------------------- limits and the backend's feed


@pytest.mark.spec("AR-5")
async def test_who_sends_too_much_is_told_when_to_come_back(tmp_path: Path) -> None:
    """A device has its share of the user's, reading is free, and nobody else is concerned."""
    limits = {
        "user_calls_per_second": 1.0,
        "user_calls_burst": 6,
        "device_calls_per_second": 1.0,
        "device_calls_burst": 4,
    }
    async with town(tmp_path, **limits) as here:
        ann, laptop, bob = await here.person("ann"), await here.person("ann", "laptop"), await here.person("bob")
        for n in range(4):
            await ann.say("bob", n)
        arguments = {"to": "bob", "client_msg_id": "again", "body": "later"}
        said = await ann.refused(1107, "send", **arguments)
        wait_ms = int(re.search(r"in (\d+) ms", said)[1])  # type: ignore[index]
        assert 0 < wait_ms <= 1_000
        for n in range(2):
            await laptop.say("bob", n)
        await laptop.refused(1107, "send", **arguments)
        assert len((await ann.call("sync", since=0))["entries"]) == 6, "refused is not stored"
        await bob.say("ann", "hi")
        await asyncio.sleep(wait_ms / 1000)
        assert (await ann.call("send", **arguments))["is_new"]
        for n in range(20):
            await here.backend("ann", "send", to="bob", client_msg_id=f"b{n}", body=n)


async def test_what_nobody_was_there_for_is_in_the_offline_feed(tmp_path: Path) -> None:
    """In order and once from a cursor; without muted ones (but mentions), recalled ones and read ones."""
    async with town(tmp_path) as here:
        ann = await here.person("ann")
        online = await here.person("dan")

        async def feed(cursor: str = "", **query: Any) -> Any:
            more = "".join(f"&{name}={value}" for name, value in query.items())
            return await here.http("GET", f"/v1/offline?cursor={cursor}{more}")

        start = (await feed())["cursor"]
        cid = await ann.group("bob", "cleo", "dan")
        await here.backend("cleo", "set", cid=cid, mute=True)
        waiting = asyncio.ensure_future(feed(start, wait_ms=20_000))
        await asyncio.sleep(0.05)
        await ann.say(cid, "one")
        await online.hears("message", body="one")
        assert [(item["user"], item["message"]["body"]) for item in (await waiting)["items"]][:1] == [("bob", "one")]
        await ann.say(cid, "cleo!", mentions=["cleo"])
        await ann.say(cid, "oops")
        await ann.call("recall", cid=cid, seq=4, client_msg_id="r")
        await ann.say("bob", "private")

        async def has_all() -> bool:
            return [(item["user"], item["message"]["body"]) for item in (await feed(start))["items"]] == [
                ("bob", "one"),
                ("bob", "cleo!"),
                ("cleo", "cleo!"),
                ("bob", "private"),
            ]

        await eventually(has_all)
        page = await feed(start, limit=1)
        assert [item["message"]["body"] for item in page["items"]] == ["one"]
        assert page["lost"] == 0
        await here.backend("bob", "mark", cid=cid, read_seq=3)
        assert [item["user"] for item in (await feed(page["cursor"]))["items"]] == ["cleo", "bob"]
        end = (await feed(start))["cursor"]
        assert (await feed(end))["items"] == []
        assert [item["user"] for item in (await feed("another-life-5"))["items"]] == ["cleo", "bob"]
