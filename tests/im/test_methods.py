"""The table of methods: names, arguments, results, costs; and what is a courtesy in them. On the twin store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from base.clock import SimClock, Timestamp
from base.errors import (
    BadRequest,
    Conflict,
    Draining,
    NotFound,
    NotMember,
    Overloaded,
    PositionLost,
    RoadsteadError,
    StoreUnavailable,
    Unavailable,
    UnknownMethod,
)
from base.ids import entropy
from base.metrics import Metrics
from im.core.commands import ChangeGroup, Draft, Outcome
from im.core.ids import message_ids
from im.core.snowflake import ClockWentBack
from im.counting import Counting
from im.methods import METHODS, Caller, Methods
from im.metrics import ImMetrics
from im.ports import Listed
from im.reading import PAGE_BYTES_MAX, Reading
from im.store.memory import MemoryMessageStore
from im.writer import GroupCommit
from im.writing import Writing

ANN, BOB, EVE = Caller("ann", "phone"), Caller("bob", "phone"), Caller("eve", "phone")
EXAMPLES: dict[str, dict[str, Any]] = {
    "send": {"to": "bob", "client_msg_id": "x", "body": 1},
    "edit": {"cid": "1", "seq": 1, "client_msg_id": "x", "body": 2},
    "recall": {"cid": "1", "seq": 1, "client_msg_id": "x"},
    "typing": {"cid": "1"},
    "sync": {},
    "history": {"cid": "1"},
    "search": {"cid": "1", "text": "hi"},
    "conversations": {},
    "unread": {},
    "mark": {"cid": "1", "read_seq": 1},
    "set": {"cid": "1", "mute": True},
    "receipts": {"cid": "1", "seq": 1},
    "members": {"cid": "1"},
    "group_create": {"client_msg_id": "x", "name": "team"},
    "group_change": {"cid": "2", "action": "rename", "value": "crew"},
}


class Store(MemoryMessageStore):
    """Fails to list when told to."""

    fails = False

    async def listed(self, user: str, cids: Sequence[int]) -> list[Listed]:
        if self.fails:
            raise Overloaded("not now", what="reads", retry_after_ms=1)
        return await super().listed(user, cids)


class FoundAll:
    """A search that finds the newest messages, whatever is asked."""

    async def find(
        self, cid: int, query: str, *, first_seq: int, last_seq: int, before: int, limit: int
    ) -> Sequence[int]:
        assert cid
        assert query
        end = min(bound for bound in (last_seq + 1 if last_seq else 1_000, before or 1_000))
        return list(range(end - 1, first_seq - 1, -1))[-limit:]


class Desk:
    """The methods over a store, with what they told and whom they asked for admission."""

    def __init__(self) -> None:
        self.clock = SimClock()
        self.store = Store()
        metrics = ImMetrics(Metrics({}))
        self.writer = GroupCommit(self.store, self.clock, on_committed=lambda _: None)
        counting = Counting(self.store, metrics, settle=self.writer.settle, interval_ms=60_000)
        self.has_previews = True
        self.reading = Reading(
            self.store, FoundAll(), counting, sync_entries_max=50, has_previews=lambda: self.has_previews
        )
        ids = message_ids("uuid4", entropy=entropy(), worker=0)
        self.writing = Writing(self.clock, ids, self.writer, body_bytes_max=70_000)
        self.admitted: list[tuple[str, str, str]] = []
        self.turns: list[str] = []
        self.told: list[tuple[str, Any]] = []
        self.methods = Methods(
            self.reading,
            self.writing,
            admit=lambda caller, cost, cid: self.admitted.append((caller.user, cost, cid)),
            in_turn=self._in_turn,
            type_to=self._tell,
            receipt_to=self._tell,
        )

    def _in_turn(self, caller: Caller, read: Callable[[], Awaitable[Any]]) -> Awaitable[Any]:
        self.turns.append(caller.user)
        return read()

    def _tell(self, users: list[str], data: bytes) -> None:
        self.told += [(user, msgspec.json.decode(data)) for user in users]

    async def call(self, caller: Caller, name: str, /, **arguments: Any) -> Any:
        return msgspec.json.decode(await self.methods.call(caller, name, msgspec.json.encode(arguments)))

    async def send(self, body: Any = "hi", *, key: str, to: str = "bob", caller: Caller = ANN) -> Any:
        return await self.call(caller, "send", to=to, client_msg_id=key, body=body)


@asynccontextmanager
async def desk() -> AsyncIterator[Desk]:
    made = Desk()
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(10):
        running = tasks.create_task(made.writer.run())
        yield made
        running.cancel()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_each_method_answers_with_one_of_its_results(method: Any):
    """And is admitted at its cost first, for the conversation that it names; one that reads waits for its turn."""
    async with desk() as here:
        await here.send(key="first")
        await here.call(ANN, "group_create", client_msg_id="g", name="team")
        here.admitted.clear()
        here.turns.clear()
        arguments = EXAMPLES[method.name]
        answer = await here.methods.call(ANN, method.name, msgspec.json.encode(arguments))
        assert here.admitted == [("ann", method.cost, arguments.get("cid", ""))]
        assert here.turns == (["ann"] if method.cost == "read" else [])
        results = [msgspec.json.decode(answer, type=result, strict=True) for result in method.results[:1]]
        assert msgspec.json.decode(msgspec.json.encode(results[0])) == msgspec.json.decode(answer)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_what_is_refused_at_the_door_is_not_begun(method: Any):
    """Neither written nor told."""
    async with desk() as here:
        await here.send(key="first")

        def refuse(_caller: Caller, _cost: str, _cid: str) -> None:
            raise Overloaded("too much", what="calls", retry_after_ms=1)

        here.methods._admit = refuse
        with pytest.raises(Overloaded):
            await here.call(ANN, method.name, **EXAMPLES[method.name])
        assert len(await here.store.log(after=0, limit=10)) == 1
        assert here.told == []


async def test_unknown_names_and_malformed_arguments_are_told_apart():
    """The message says what there is, or which field is wrong."""
    async with desk() as here:
        with pytest.raises(UnknownMethod, match="group_create"):
            await here.call(ANN, "sned")
        for data in (b"{", b"[]", b"\xff", b"[" * 100_000, b'{"cid":1}'):
            with pytest.raises(BadRequest, match="bad argument"):
                await here.methods.call(ANN, "history", data)
        assert msgspec.json.decode(await here.methods.call(ANN, "unread", b""))["total"] == 0


async def test_a_send_may_be_carried_out_without_a_task():
    """Its draft, and its result or what it was refused with; what cannot begin is raised."""
    async with desk() as here:

        async def send(**arguments: Any) -> Any:
            data = msgspec.json.encode({"client_msg_id": "k", "body": 1, **arguments})
            told: asyncio.Future[Outcome | RoadsteadError] = asyncio.get_running_loop().create_future()
            here.writer.enqueue(here.methods.draft(ANN, data), told.set_result)
            return msgspec.json.decode(here.methods.sent(await told))

        assert (await send(to="bob"))["seq"] == 1
        with pytest.raises(Conflict):
            await send(to="bob", body=2)
        with pytest.raises(NotMember):
            await send(cid="99", client_msg_id="k2")
        with pytest.raises(BadRequest):
            await send(to="")
        with pytest.raises(StoreUnavailable):
            here.methods.sent(StoreUnavailable("unknown"))
        here.writing.is_draining = True
        with pytest.raises(Draining):
            await send(to="bob")


async def test_a_clock_that_went_back_gives_no_ids():
    """It says for how long."""
    async with desk() as here:
        here.writing._ids = Back()
        with pytest.raises(Unavailable) as refused:
            await here.send(key="k")
        assert refused.value.detail["retry_after_ms"] == 40


class Back:
    def next(self, _now: Timestamp, /) -> ClockWentBack:
        return ClockWentBack(40)


# ---------------------------------------------------------------- told for the moment


async def test_typing_and_receipts_go_to_the_others_if_they_are_few():
    """Nobody is told in a large group, or of a mark that changed nothing."""
    async with desk() as here:
        await here.send(key="k")
        await here.call(BOB, "typing", cid="1")
        await here.call(BOB, "mark", cid="1", read_seq=1)
        await here.call(BOB, "mark", cid="1", read_seq=1)
        await here.call(BOB, "mark", cid="1", unread=True)
        assert here.told == [
            ("ann", {"kind": "typing", "cid": "1", "from": "bob"}),
            ("ann", {"kind": "receipt", "cid": "1", "from": "bob", "read_seq": 1, "delivered_seq": 0}),
        ]
        here.told.clear()
        for size, is_told in ((99, True), (100, False)):
            made = await here.call(
                ANN, "group_create", client_msg_id=f"g{size}", name="x", members=[f"u{n}" for n in range(size)]
            )
            for name, arguments in (("typing", {}), ("mark", {"delivered_seq": 1})):
                await here.call(ANN, name, cid=made["cid"], **arguments)
                assert len(here.told) == (size if is_told else 0)
                here.told.clear()
        with pytest.raises(NotMember):
            await here.call(EVE, "typing", cid="1")


async def test_a_receipt_costs_no_reading():
    """Whom it is told is decided with the mark."""
    async with desk() as here:
        await here.send(key="k")
        here.store.fails = True
        assert (await here.call(BOB, "mark", cid="1", read_seq=1))["read_seq"] == 1
        assert [user for user, _ in here.told] == ["ann"]


# ---------------------------------------------------------------- pages


async def test_positions_that_mean_nothing_are_refused():
    """Of another epoch, or beyond the end; the end itself is a good one."""
    async with desk() as here:
        await here.send(key="k")
        for arguments, reason in (({"epoch": "x"}, "epoch"), ({"since": 2}, "beyond")):
            with pytest.raises(PositionLost) as lost:
                await here.call(BOB, "sync", **arguments)
            assert lost.value.detail["reason"] == reason
        page = await here.call(BOB, "sync", since=1, epoch=here.store.epoch)
        assert (page["entries"], page["has_more"], page["head"]) == ([], False, 1)


@pytest.mark.spec("PP-02")
async def test_pages_are_bounded_by_bytes_and_lose_nothing():
    """Timelines, logs in both directions, lists and what a search found: put together they are whole."""
    async with desk() as here:
        body = "x" * 60_000
        for n in range(20):
            await here.send(f"{n}{body}", key=f"k{n}")
        seqs = list(range(1, 21))
        fits = PAGE_BYTES_MAX // 60_000
        found: list[int] = []
        page = {"has_more": True}
        while page["has_more"]:
            page = await here.call(BOB, "sync", since=len(found))
            assert 0 < len(page["entries"]) <= fits
            found += [entry["offset"] for entry in page["entries"]]
        assert found == seqs

        found = []
        while len(found) < 20:
            entries = (await here.call(BOB, "history", cid="1", after=len(found)))["entries"]
            assert 0 < len(entries) <= fits
            found += [entry["seq"] for entry in entries]
        assert found == seqs

        found = []
        while found[:1] != [1]:
            entries = (await here.call(BOB, "history", cid="1", before=min(found, default=21)))["entries"]
            assert 0 < len(entries) <= fits
            found[:0] = [entry["seq"] for entry in entries]
        assert found == seqs

        entries = (await here.call(BOB, "search", cid="1", text="x"))["entries"]
        assert [entry["seq"] for entry in entries] == seqs[::-1][: len(entries)]
        assert 0 < len(entries) <= fits


async def test_lists_are_bounded_by_bytes_too():
    """Each conversation is in one page; without previews they are short."""
    async with desk() as here:
        for n in range(20):
            here.clock.advance(1)
            await here.send("x" * 60_000, key=f"k{n}", to=f"u{n}")

        async def pages() -> list[list[str]]:
            found: list[list[str]] = []
            after = ""
            while not found or after:
                page = await here.call(ANN, "conversations", after=after)
                found.append([one["peer"] for one in page["conversations"]])
                assert all(("last" in one) == here.has_previews for one in page["conversations"])
                after = page["next"]
            return found

        parts = await pages()
        assert [peer for part in parts for peer in part] == [f"u{n}" for n in range(19, -1, -1)]
        assert max(map(len, parts)) <= PAGE_BYTES_MAX // 60_000
        here.has_previews = False
        assert await pages() == [[f"u{n}" for n in range(19, -1, -1)]]


async def test_one_entry_comes_however_long_it_is():
    """Else nobody would ever get past it."""
    async with desk() as here:
        here.writing._body_bytes_max = 10_000_000
        await here.send("x" * (PAGE_BYTES_MAX + 1), key="k1")
        await here.send("y", key="k2")
        page = await here.call(BOB, "sync")
        assert ([entry["offset"] for entry in page["entries"]], page["has_more"]) == ([1], True)
        assert [one["seq"] for one in (await here.call(BOB, "history", cid="1", after=0))["entries"]] == [1]
        assert [one["seq"] for one in (await here.call(BOB, "history", cid="1"))["entries"]] == [2]
        assert [one["seq"] for one in (await here.call(BOB, "history", cid="1", before=2))["entries"]] == [1]


async def test_a_page_of_a_timeline_has_as_many_entries_as_configured():
    """Whatever more is asked for."""
    async with desk() as here:
        for n in range(60):
            await here.send(key=f"k{n}")
        page = await here.call(BOB, "sync", limit=1_000)
        assert (len(page["entries"]), page["has_more"]) == (50, True)


# ---------------------------------------------------------------- who may see


async def test_receipts_are_of_entries_that_one_sees_in_conversations_that_one_is_in():
    """Of the others only; who sent something later has read it."""
    async with desk() as here:
        made = await here.call(ANN, "group_create", client_msg_id="g", name="x", members=["bob", "cleo"])
        cid = made["cid"]
        await here.call(ANN, "send", cid=cid, client_msg_id="1", body=1)
        await here.call(BOB, "send", cid=cid, client_msg_id="1", body=1)
        assert await here.call(ANN, "receipts", cid=cid, seq=2) == {"members": 2, "read": 1, "readers": ["bob"]}
        for seq in (4, 99):
            with pytest.raises(NotFound):
                await here.call(ANN, "receipts", cid=cid, seq=seq)
        await here.call(BOB, "group_change", cid=cid, action="leave")
        for name, arguments in (("receipts", {"seq": 2}), ("members", {}), ("typing", {})):
            with pytest.raises(NotMember):
                await here.call(BOB, name, cid=cid, **arguments)
        assert len((await here.call(BOB, "history", cid=cid))["entries"]) == 4
        await here.store.execute([ChangeGroup(9, "ann", "x", int(cid), "invite", Timestamp(1), users=("eve",))])
        with pytest.raises(NotFound):
            await here.call(EVE, "receipts", cid=cid, seq=2)
        assert (await here.call(EVE, "history", cid=cid, after=0))["first_seq"] == 5
        await here.call(EVE, "mark", cid=cid, read_seq=5)
        assert (await here.call(ANN, "receipts", cid=cid, seq=2))["readers"] == [], "it was said before eve came"
        assert (await here.call(ANN, "receipts", cid=cid, seq=5))["readers"] == ["eve"]


async def test_the_members_of_a_group_are_listed_by_name_in_pages():
    """With what they are."""
    async with desk() as here:
        made = await here.call(ANN, "group_create", client_msg_id="g", name="x", members=["dan", "bob", "cleo"])
        page = await here.call(BOB, "members", cid=made["cid"], limit=3)
        assert [(one["user"], one["role"]) for one in page["members"]] == [
            ("ann", "owner"),
            ("bob", "member"),
            ("cleo", "member"),
        ]
        page = await here.call(BOB, "members", cid=made["cid"], limit=3, after=page["next"])
        assert ([one["user"] for one in page["members"]], page["next"]) == (["dan"], "")


async def test_a_list_names_what_a_client_needs_to_show_it():
    """One's side of it: the peer, the role, pointers, and where new entries come."""
    async with desk() as here:
        await here.store.execute([Draft(1, "bob", "x", "ann", 0, "k", "text", b"1", Timestamp(5))])
        document = await here.call(ANN, "conversations")
        (one,) = document["conversations"]
        last = one.pop("last")
        assert (last["seq"], last["from"], last["body"]) == (1, "bob", 1)
        assert one == {
            "cid": "1",
            "kind": "single",
            "fan_out": "write",
            "channel": "inbox",
            "max_seq": 1,
            "max_cseq": 1,
            "read_seq": 0,
            "unread": 1,
            "first_seq": 1,
            "members": 2,
            "peer": "bob",
        }
        assert (document["timeline"], document["sync_version"], document["total_unread"]) == (1, 1, 1)
