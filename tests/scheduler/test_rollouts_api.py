"""Rollouts over HTTP: what is shown, what is ordered, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from scheduler.core.rollout_record import move_id
from scheduler.orders import MOVES, ROLLOUTS, MovesRecord
from tests.scheduler.admin_site import ROLLOUT, AdminSite, admin_site

ALL = "/v1/admin/rollouts"
FAST = f"{ALL}/fast"
BAD = ROLLOUT.replace("10m", "10 minutes").replace("percent: 100", "percent: 50")
WHO = "operator c9736463 (ann@ops)"


@pytest.fixture
async def site() -> AsyncIterator[AdminSite]:
    async with admin_site() as made:
        await made.good("PUT", "/v1/admin/lists/staff", "ann")
        yield made


# ---------------------------------------------------------------- documents


async def test_a_document_is_checked_and_nothing_is_started(site: AdminSite) -> None:
    """A viewer may. What is good comes back as it was understood."""
    answer = await site.good("POST", f"{ALL}?validate", ROLLOUT, key="viewer-key")
    assert (answer["ok"], answer["faults"]) == (True, [])
    assert answer["rollout"]["name"] == "fast"
    assert [step["percent"] for step in answer["rollout"]["steps"]] == [10_000, 100_000]
    assert site.orders.rollouts == {}


@pytest.mark.parametrize("body", [BAD, {"document": BAD}])
async def test_a_bad_document_is_answered_with_every_fault_and_its_line(site: AdminSite, body: Any) -> None:
    """As text and as JSON; when it is checked, and when it is started."""
    answer = await site.good("POST", f"{ALL}?validate", body)
    assert (answer["ok"], answer["rollout"]) == (False, None)
    assert [fault["line"] for fault in answer["faults"]] == [6, 7]
    status, refusal = await site.ask("POST", ALL, body)
    assert (status, refusal["error"]["name"]) == (400, "bad_request")
    assert refusal["error"]["detail"]["faults"] == answer["faults"]
    assert site.orders.rollouts == {}


@pytest.mark.parametrize(
    "body",
    [{"document": 1}, {"text": ROLLOUT}, {"document": ROLLOUT, "name": "x"}, [], "", "rollout: [", "\udcff"],
)
async def test_a_body_that_is_no_document_is_refused(site: AdminSite, body: Any) -> None:
    """Whatever it is."""
    if body == "\udcff":
        async with site.client.post(
            ALL, data=b"\xff", headers={"Authorization": "Bearer operator-key", "Content-Type": "application/yaml"}
        ) as answer:
            assert (answer.status, (await answer.json())["error"]["message"]) == (400, "the body is not UTF-8")
    else:
        assert (await site.refused("POST", ALL, body))[:2] == (400, "bad_request")


async def test_an_unknown_parameter_is_refused(site: AdminSite) -> None:
    """Or a misspelt check would start it."""
    assert (await site.refused("POST", f"{ALL}?validte", ROLLOUT))[:2] == (400, "bad_request")
    assert site.orders.rollouts == {}


# ---------------------------------------------------------------- one rollout


async def test_a_rollout_is_started_and_shown(site: AdminSite) -> None:
    """With its two shares, its step, its pool, and who started it."""
    shown = await site.good("POST", ALL, {"document": ROLLOUT})
    assert shown["name"] == "fast"
    assert (shown["phase"], shown["step"], shown["steps"], shown["percent"]) == ("running", 1, 2, 10.0)
    assert (shown["held_ms"], shown["left_ms"]) == (0, 600_000)
    assert shown["live"] == {"connections": 60, "total": 100, "percent": 60.0}
    assert shown["assigned"] == {"count": 0, "percent": None, "minute_count": 0, "minute_percent": None}
    assert shown["pool"] == {"nodes": 1, "open_nodes": 1, "capacity": 100, "max_share_of_capacity": 1.0}
    assert shown["missing_lists"] == []
    assert shown["document"] == ROLLOUT
    assert [(line["who"], line["action"]) for line in shown["history"]] == [(WHO, "created")]
    assert shown["all_steps"][1] == {
        "is_pause": False,
        "percent": 100.0,
        "hold_ms": 0,
        "connects_min": 0,
        "move_per_s": 200.0,
    }
    site.decide("ann", "sh")
    site.decide("ann", "sh")
    site.clock.advance(60_000)
    again = await site.good("GET", FAST)
    assert again["assigned"] == {"count": 2, "percent": 100.0, "minute_count": 0, "minute_percent": None}
    assert (again["held_ms"], again["left_ms"]) == (60_000, 540_000)


async def test_a_rollout_is_ordered_about(site: AdminSite) -> None:
    """Each order is in its history; what a pause interrupts is held no further."""
    await site.good("POST", ALL, ROLLOUT)
    site.clock.advance(30_000)
    paused = await site.good("POST", f"{FAST}/pause")
    assert (paused["phase"], paused["reason"]) == ("paused", f"paused by {WHO}")
    site.clock.advance(30_000)
    assert (await site.good("GET", FAST))["held_ms"] == 30_000
    assert (await site.refused("POST", f"{FAST}/pause"))[:2] == (409, "conflict")
    assert (await site.good("POST", f"{FAST}/resume"))["phase"] == "running"
    assert (await site.good("POST", f"{FAST}/step"))["step"] == 2
    assert (await site.good("POST", f"{FAST}/promote"))["phase"] == "complete"
    aborted = await site.good("POST", f"{FAST}/abort")
    assert (aborted["phase"], aborted["percent"], aborted["left_ms"]) == ("aborted", 0.0, None)
    actions = [line["action"] for line in aborted["history"]]
    assert actions == ["created", "pause", "resume", "step", "promote", "abort"]
    revised = await site.good("POST", ALL, ROLLOUT)
    assert (revised["phase"], revised["document_revision"]) == ("running", 7)


async def test_moves_are_shown_with_the_rollout_that_wants_them(site: AdminSite) -> None:
    """And not with another's progress."""
    await site.good("POST", ALL, ROLLOUT)
    assert (await site.good("GET", FAST))["moves"] == {"wanted": None, "progress": None}
    await site.good("POST", f"{FAST}/step")
    request = move_id(site.orders.rollouts["fast"].record)
    for told in ("another", request):
        record = MovesRecord(1, "scheduler-2", told, f"{told}-1", False, {"phase": "running"})
        await site.registry.put(MOVES, msgspec.json.encode(record))
        await site.take()
        moves = (await site.good("GET", FAST))["moves"]
        assert (moves["wanted"]["to"], moves["wanted"]["per_s"]) == ("canary", 200.0)
        assert moves["progress"] == (msgspec.to_builtins(record) if told == request else None)


async def test_rollouts_are_listed_in_the_order_in_which_they_are_asked(site: AdminSite) -> None:
    """The oldest first; and what cannot be read is said."""
    await site.good("POST", ALL, ROLLOUT)
    site.clock.advance(1)
    await site.good("POST", ALL, ROLLOUT.replace("fast", "a-later-one").replace("2.0.0", "3.0.0"))
    await site.registry.put(f"{ROLLOUTS}damaged", b"{}")
    await site.take()
    listed = await site.good("GET", ALL)
    assert [one["name"] for one in listed["rollouts"]] == ["fast", "a-later-one"]
    assert list(listed["unreadable"]) == ["damaged"]
    assert "document" not in listed["rollouts"][0]


async def test_a_list_that_nobody_wrote_is_said(site: AdminSite) -> None:
    """Nobody is in it."""
    await site.registry.delete("scheduler/lists/staff")
    await site.take()
    assert (await site.good("POST", ALL, ROLLOUT))["missing_lists"] == ["staff"]


async def test_a_rollout_that_is_over_is_deleted(site: AdminSite) -> None:
    """One that is not must be aborted first."""
    await site.good("POST", ALL, ROLLOUT)
    assert (await site.refused("DELETE", FAST))[:2] == (409, "conflict")
    await site.good("POST", f"{FAST}/abort")
    assert await site.good("DELETE", FAST) == {"name": "fast"}
    assert (await site.good("GET", ALL))["rollouts"] == []
    assert (await site.refused("DELETE", FAST))[:2] == (404, "not_found")


async def test_a_second_rollout_of_a_name_must_wait_for_the_end_of_the_first(site: AdminSite) -> None:
    """Conflict."""
    await site.good("POST", ALL, ROLLOUT)
    assert (await site.refused("POST", ALL, ROLLOUT))[:2] == (409, "conflict")


async def test_a_rollout_is_a_flag_for_flagd(site: AdminSite) -> None:
    """At its present share, with its lists written out."""
    await site.good("POST", ALL, ROLLOUT)
    exported = await site.good("GET", f"{FAST}/flagd")
    assert exported["left_out"] == []
    targeting = exported["flags"]["flags"]["fast"]["targeting"]["if"]
    assert targeting[0] == {"in": [{"var": "targetingKey"}, ["ann"]]}
    assert targeting[-2]["fractional"][1:] == [["canary", 10_000], ["stable", 90_000]]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", FAST), ("GET", f"{FAST}/flagd"), ("POST", f"{FAST}/pause"), ("DELETE", FAST), ("POST", f"{FAST}/restart")],
)
async def test_what_is_not_there_is_not_found(site: AdminSite, method: str, path: str) -> None:
    """No such rollout, or no such order."""
    assert (await site.refused(method, path))[:2] == (404, "not_found")
