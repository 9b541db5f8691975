"""Explanations and recordings over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random

import aiohttp
import pytest

from scheduler import recorder
from scheduler.core.engine import Decision
from scheduler.core.recording import Decided, Record, Replay, records
from tests.scheduler.admin_site import ISSUER, ROLLOUT, AdminSite, admin_site

EXPLAIN = "/v1/admin/explain"
RECORDING = "/v1/admin/recording"
HEADERS = {"Authorization": "Bearer operator-key"}
SETTLE_S = 5.0


@pytest.fixture
async def site() -> AsyncIterator[AdminSite]:
    async with admin_site() as made:
        await made.good("POST", "/v1/admin/rollouts", ROLLOUT)
        await made.good("PUT", "/v1/admin/lists/staff", "ann")
        yield made


# ---------------------------------------------------------------- explaining


async def test_what_would_be_decided_is_explained_and_not_counted(site: AdminSite) -> None:
    """Stage by stage, with the facts for programs."""
    site.clock.advance(5)
    explained = await site.good("GET", f"{EXPLAIN}?user=ann&region=sh&platform=ios&app=5.1.0&device=tab")
    assert explained["decision"] is None
    assert explained["request"] == {
        "user": "ann",
        "device": "tab",
        "platform": "ios",
        "app": "5.1.0",
        "address": "",
        "location": {"region": "sh", "place": "", "carrier": "", "source": "hint"},
    }
    assert (explained["policy"], explained["rule"], explained["arm"]) == ("default", "all", "fast")
    assert explained["candidates"] == ["access-10"]
    assert explained["placed"] == [{"rollout": "fast", "is_canary": True, "bucket": -1, "segment": "staff"}]
    assert (explained["picked"], explained["passed"]) == ("nearest", [])
    assert explained["drawn"] == [{"node": "access-10", "load": 0.6}]
    assert [stage["stage"] for stage in explained["stages"]] == [
        "locate",
        "filter",
        "rule",
        "arm",
        "region",
        "draw",
        "slot",
    ]
    assert site.decider.engine.seq == 0
    assert site.decider.arm_counts.totals == {}


async def test_an_address_stands_for_the_client_and_is_written_in_one_way(site: AdminSite) -> None:
    """As it would be seen."""
    explained = await site.good("GET", f"{EXPLAIN}?user=ann&address=2001:DB8::0001")
    assert explained["request"]["address"] == "2001:db8::1"
    assert explained["request"]["location"]["region"] == "sh"


async def test_a_decision_is_explained_by_its_id(site: AdminSite) -> None:
    """As it was made, whatever is different by now."""
    site.decide("ann", "sh")
    decision = site.decide("ben", "sh")
    site.clock.advance(300)
    await site.registry.deregister("access-10", 1)
    await site.take()
    name = f"{ISSUER}-{decision.seq:x}"
    explained = await site.good("GET", f"{EXPLAIN}?decision={name}")
    assert (explained["decision"], explained["age_ms"]) == (name, 300)
    assert explained["request"]["user"] == "ben"
    assert (explained["arm"], explained["passed"]) == ("stable", [])
    assert explained["candidates"] in (["access-1", "access-2"], ["access-2", "access-1"])


async def test_weighted_draws_have_no_loads(site: AdminSite) -> None:
    """Null, as for a node without credit: JSON has no infinity."""
    policy = "policy: even\nrules: [{name: all, strategies: [weighted]}]"
    await site.good("PUT", "/v1/admin/policy", policy)
    drawn = (await site.good("GET", f"{EXPLAIN}?user=ann"))["drawn"]
    assert {(one["node"], one["load"]) for one in drawn} == {("access-1", None), ("access-2", None)}


async def test_where_nobody_takes_clients_that_is_explained(site: AdminSite) -> None:
    """With what was left."""
    for name in ("access-1", "access-2", "access-10"):
        await site.good("POST", f"/v1/admin/access/nodes/{name}/cordon")
    explained = await site.good("GET", f"{EXPLAIN}?user=ann")
    assert (explained["candidates"], explained["picked"], explained["not_before_ms"]) == ([], "nobody", 1_000)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 400),
        ("user=", 400),
        ("user=ann&user=ben", 400),
        ("user=ann&colour=red", 400),
        ("user=ann&address=here", 400),
        ("user=ann&app=%00", 400),
        ("user=ann&region=%0a", 400),
        ("user=ann&device=", 400),
        ("user=ann&platform=", 400),
        ("decision=", 400),
        ("decision=1", 404),
        (f"decision={ISSUER}-x", 400),
        (f"decision={ISSUER}-99", 404),
        ("decision=another-1", 404),
        (f"decision={ISSUER}-1&user=ann", 400),
    ],
)
async def test_a_bad_question_is_refused(site: AdminSite, query: str, status: int) -> None:
    """And so is one for a decision that is not known here."""
    assert (await site.refused("GET", f"{EXPLAIN}?{query}"))[0] == status


# ---------------------------------------------------------------- recording


async def recorded(site: AdminSite, query: str, *, asking: int) -> tuple[list[Record], list[Decision]]:
    """Record to the end while some clients ask; return what came, and what was decided."""
    async with site.client.get(f"{RECORDING}?{query}", headers=HEADERS) as answer:
        assert (answer.status, answer.content_type) == (200, "application/octet-stream")
        decisions = [site.decide(f"user-{number}") for number in range(asking)]
        async with asyncio.timeout(SETTLE_S):
            return list(records([await answer.read()])), decisions


async def test_a_recording_has_all_that_it_takes_to_decide_the_same_again(site: AdminSite) -> None:
    """To the last bit, over changes of the nodes and rules too. It ends after its time."""
    async with site.client.get(f"{RECORDING}?for_ms=1000", headers=HEADERS) as answer:
        decisions = [site.decide(f"user-{number}") for number in range(50)]
        await site.register("access-3", connections=1)
        await site.good("PUT", "/v1/admin/policy", "policy: even\nrules: [{name: all, strategies: [weighted]}]")
        decisions += [site.decide(f"user-{number}") for number in range(50)]
        site.clock.advance(1_000)
        told = list(records([await answer.read()]))
    replay = Replay(Random)
    made = [(replay.tell(record), record) for record in told]
    assert [record.decision for decision, record in made if isinstance(record, Decided)] == decisions
    assert [decision for decision, record in made if isinstance(record, Decided)] == decisions
    site.decide("after")


async def test_a_recording_ends_after_its_decisions(site: AdminSite) -> None:
    """Exactly; and the next one may begin at once."""
    for _ in range(2):
        told, decisions = await recorded(site, "for_ms=3600000&decisions_max=3", asking=5)
        assert [record.decision for record in told if isinstance(record, Decided)] == decisions[:3]


async def test_one_recording_at_a_time(site: AdminSite) -> None:
    """Conflict; and the one that is under way is not ended by it."""
    async with site.client.get(f"{RECORDING}?for_ms=1000", headers=HEADERS) as answer:
        assert (await site.refused("GET", RECORDING))[:2] == (409, "conflict")
        decision = site.decide("ann")
        site.clock.advance(1_000)
        told = list(records([await answer.read()]))
    assert [record.decision for record in told if isinstance(record, Decided)] == [decision]


async def test_a_reader_that_goes_away_ends_the_recording(site: AdminSite) -> None:
    """Another one can be made soon."""
    answer = await site.client.get(f"{RECORDING}?for_ms=3600000", headers=HEADERS)
    answer.close()
    async with asyncio.timeout(SETTLE_S):
        while site.decider._sink is not None:  # noqa: ASYNC110 - it is looked at every 50 ms
            await asyncio.sleep(0.01)
    await recorded(site, "decisions_max=1", asking=1)


async def test_a_reader_that_is_too_slow_gets_a_recording_that_is_cut_off(
    site: AdminSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It notices, since the last chunk is missing; and nobody else does."""
    monkeypatch.setattr(recorder, "QUEUE_BYTES_MAX", 10_000)
    answer = await site.client.get(f"{RECORDING}?for_ms=3600000", headers=HEADERS)
    for number in range(200):
        site.decide(f"user-{number}")
    assert site.decider._sink is None
    with pytest.raises(aiohttp.ClientPayloadError):
        await answer.read()
    answer.close()
    site.decide("ann")


async def test_a_recording_whose_beginning_is_too_much_is_none(
    site: AdminSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of nodes and very long lists; it leaves nothing behind."""
    monkeypatch.setattr(recorder, "QUEUE_BYTES_MAX", 10)
    with pytest.raises(aiohttp.ClientPayloadError):
        await recorded(site, "for_ms=3600000", asking=1)
    assert site.decider._sink is None


async def test_a_reader_that_takes_nothing_any_more_is_cut_off(
    site: AdminSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the buffers between are full and a write has waited for its time."""
    monkeypatch.setattr(recorder, "WRITE_TIMEOUT_S", 0.05)
    answer = await site.client.get(f"{RECORDING}?for_ms=3600000", headers=HEADERS)
    assert answer.connection is not None
    assert answer.connection.transport is not None
    answer.connection.transport.pause_reading()
    async with asyncio.timeout(SETTLE_S):
        while site.decider._sink is not None:
            for number in range(1_000):
                site.decide(f"user-{number}-{'x' * 1_000}")
            await asyncio.sleep(0.01)
    answer.connection.transport.resume_reading()
    with pytest.raises(aiohttp.ClientPayloadError):
        await answer.read()
    answer.close()


async def test_no_recording_is_begun_in_panic(site: AdminSite) -> None:
    """Its engine would forget the nodes that panic keeps."""
    for name in ("access-1", "access-10"):
        await site.registry.deregister(name, 1)
    await site.take()
    assert (await site.refused("GET", RECORDING))[:2] == (409, "conflict")
    assert len(site.decider.snapshot.nodes) == 3


@pytest.mark.parametrize(
    "query", ["for_ms=0", "for_ms=3600001", "for_ms=-1", "for_ms=x", "decisions_max=0", "decisions_max=", "x=1"]
)
async def test_a_recording_has_its_bounds(site: AdminSite, query: str) -> None:
    """Bad ones begin none."""
    assert (await site.refused("GET", f"{RECORDING}?{query}"))[:2] == (400, "bad_request")
    assert site.decider._sink is None


async def test_asking_for_the_head_of_a_recording_begins_none(site: AdminSite) -> None:
    """A monitor that looks with HEAD should not change the engine."""
    async with site.client.head(RECORDING, headers=HEADERS) as answer:
        assert answer.status == 404
    assert site.decider._sink is None
