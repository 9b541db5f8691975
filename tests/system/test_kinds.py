"""Kinds of messages and of ids: each on every way, through a restart, and in one store with all others."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from im.core.pair_ids import pair_cid
from tests.system.people import Person, Town, town

LINK = {"url": "https://media.example/a/1?sig=%2B&x=\u00e9", "sha256": "00" * 32, "bytes": 2**53 - 1}
MESSAGES: dict[str, Any] = {
    "text": 'z\u00fcrich \u6d4b\u8bd5 \U0001f6a2 \u2028"\\/\u0000',
    "sticker": {"pack": "cats", "name": "wave", "z": 1, "a": [1.5, -0.0, 1e-300, True, None]},
    "image": {**LINK, "width": 4_032, "height": 3_024, "preview": "data:image/jpeg;base64,/9j/4AAQ+/=="},
    "video": {**LINK, "seconds": 12.25, "tracks": [{"lang": "zh", "cues": []}]},
    "file": {**LINK, "name": "quarterly \u0440\u0435\u043f\u043e\u0440\u0442 (1).pdf"},
    "x-poll/7": [[["unknown to everybody but the application", {"": {"": []}}]], 0.1],
}
"""By type: what an application would send, with what is lost first where somebody reads and writes it anew."""


def exact(entry: dict[str, Any]) -> tuple[str, str]:
    """A message's type, and its body with the order of its keys."""
    return entry["type"], json.dumps(entry["body"])


SENT = [(kind, json.dumps(body)) for kind, body in MESSAGES.items()]


async def read(person: Person, cid: str) -> list[tuple[str, str]]:
    return [exact(one) for one in await person.log(cid) if one["kind"] == "message"]


@pytest.mark.spec("CC-02")
async def test_messages_of_all_types_arrive_as_they_were_sent_on_every_way(tmp_path: Path) -> None:
    """By pushes to all devices and groups, by reading, from the timeline, from a backend, and after a restart."""
    async with town(tmp_path) as here:
        ann, tablet, bob = [await here.person(*who) for who in (("ann", "phone"), ("ann", "tablet"), ("bob", "phone"))]
        cids = [str((await ann.say("bob", MESSAGES["text"], type="text"))["cid"]), await ann.group("bob")]
        for kind, body in list(MESSAGES.items())[1:]:
            await ann.say(cids[0], body, type=kind)
        for kind, body in MESSAGES.items():
            await here.backend("ann", "send", cid=cids[1], client_msg_id=kind, type=kind, body=body)
        for person, cid in product((bob, tablet), cids):
            await person.hears("message", cid=cid, type="x-poll/7")
            assert [exact(one) for one in person.told("message") if one["cid"] == cid] == SENT
            assert await read(person, cid) == SENT
        await exactly_read(here, cids)
    async with town(tmp_path) as here:
        await exactly_read(here, cids)


async def exactly_read(here: Town, cids: list[str]) -> None:
    """A device that was never there, and a backend, read the same from the store."""
    late = await here.person("bob", "watch")
    for cid in cids:
        assert await read(late, cid) == SENT
        told = await here.backend("bob", "history", cid=cid, after=0, limit=100)
        assert [exact(one) for one in told["entries"] if one["kind"] == "message"] == SENT
        listed = await late.listed(cid)
        assert listed is not None
    timeline = [one["data"] for one in (await late.call("sync", since=0, limit=100))["entries"]]
    assert [exact(one) for one in timeline if one["kind"] == "message"] == SENT * 2


KINDS = list(product(("snowflake", "uuid7", "uuid4"), ("counted", "special")))


def form(mid: Any) -> str:
    return f"uuid{UUID(mid).version}" if not str(mid).isdigit() else "snowflake"


@pytest.mark.spec("ID-06")
async def test_every_pair_of_kinds_of_ids_goes_on_in_a_store_of_all_others(tmp_path: Path) -> None:
    """Whatever the configuration was before: new ids are of its kinds, old ones stay, conversations go on."""
    mids: list[Any] = []
    of_words = of_numbers = ""
    for turn, (message_ids, conversation_ids) in enumerate(KINDS):
        async with town(tmp_path, message_ids=message_ids, conversation_ids=conversation_ids) as here:
            ann, seven = await here.person("ann"), await here.person("7")
            first = await ann.call("send", to="bob", client_msg_id=f"a{turn}", body=turn)
            assert first["cid"] == (of_words := of_words or first["cid"])
            again = await seven.call("send", to="12", client_msg_id=f"a{turn}", body=turn)
            assert again["cid"] == (of_numbers := of_numbers or again["cid"])
            new = await seven.call("send", to=str(100 + turn), client_msg_id=f"b{turn}", body="new")
            computed = pair_cid("7", str(100 + turn))
            assert (int(new["cid"]) == computed) is (conversation_ids == "special")
            mids += [one["mid"] for one in (first, again, new)]
            assert {form(mid) for mid in mids[-3:]} == {message_ids}
            assert [one["body"] for one in await ann.log(of_words)] == list(range(turn + 1))
            assert [one["mid"] for one in await seven.log(of_numbers)] == mids[1::3]
    assert len(set(mids)) == 3 * len(KINDS)
