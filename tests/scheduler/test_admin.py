"""What operators see and order of access nodes, panic and rebalancing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from base.core.registry import Entry
from base.errors import CasConflict
from scheduler.orders import CORDONS, MOVES, REBALANCE, MovesRecord, RebalanceRecord
from tests.scheduler.admin_site import ROLLOUT, AdminSite, admin_site

NODES = "/v1/admin/access/nodes"
REBALANCE_PATH = "/v1/admin/access/rebalance"
WHO = "operator c9736463 (ann@ops)"


@pytest.fixture
async def site() -> AsyncIterator[AdminSite]:
    async with admin_site() as made:
        yield made


# ---------------------------------------------------------------- who may


@pytest.mark.parametrize("key", ["viewer-key", "unknown"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"{NODES}/access-1/cordon"),
        ("POST", f"{NODES}/access-1/uncordon"),
        ("POST", "/v1/admin/access/panic/accept"),
        ("POST", REBALANCE_PATH),
        ("POST", f"{REBALANCE_PATH}/pause"),
        ("POST", "/v1/admin/rollouts"),
        ("POST", "/v1/admin/rollouts/fast/abort"),
        ("DELETE", "/v1/admin/rollouts/fast"),
        ("PUT", "/v1/admin/policy"),
        ("PUT", "/v1/admin/policy/shadow"),
        ("DELETE", "/v1/admin/policy/shadow"),
        ("PUT", "/v1/admin/lists/staff"),
        ("DELETE", "/v1/admin/lists/staff"),
        ("GET", "/v1/admin/recording"),
    ],
)
async def test_a_viewer_changes_nothing(site: AdminSite, method: str, path: str, key: str) -> None:
    """And who is unknown even less."""
    status, name, _ = await site.refused(method, path, key=key)
    assert (status, name) == ((403, "permission_denied") if key == "viewer-key" else (401, "unauthenticated"))


@pytest.mark.parametrize(
    "path",
    [NODES, REBALANCE_PATH, *(f"/v1/admin/{what}" for what in ("rollouts", "policy", "lists", "explain?user=ann"))],
)
async def test_a_viewer_sees_all_of_it(site: AdminSite, path: str) -> None:
    """But a recording, which has everybody's addresses."""
    assert (await site.ask("GET", path, key="viewer-key"))[0] == 200
    assert (await site.ask("GET", path, key="unknown"))[0] == 401


# ---------------------------------------------------------------- nodes


async def test_nodes_are_shown_as_they_reported_and_as_they_are_seen(site: AdminSite) -> None:
    """In the order in which people count."""
    await site.good("POST", "/v1/admin/rollouts", ROLLOUT)
    site.decide("ann")
    shown = await site.good("GET", NODES)
    assert [node["node"] for node in shown["nodes"]] == ["access-1", "access-2", "access-10"]
    first, second, canary = shown["nodes"]
    assert first["admitted"] == 40
    assert first["admitted_percent"] == 50.0
    assert (second["accepted"], second["refused"], second["rejected"], second["abnormal"]) == (7, 6, 5, 4)
    assert (second["admitted"], second["admitted_percent"]) == (0, None)
    assert (canary["arm"], canary["region"], canary["version"]) == ("fast", "sh", "2.0.0")
    assert first["estimate"] + second["estimate"] == 42  # of two schedulers each counts for both
    assert (first["left_out"], first["cordon"], first["weight"]) == ("", None, 100)
    assert first["url"] == "http://access-1:7000"
    assert first["client_url"] == "http://access-1.example.com"
    assert (shown["schedulers"], shown["is_panic"], shown["vanished"]) == (2, False, [])
    assert 0 < shown["share"] < 1


async def test_arms_are_shown_by_what_is_live_and_by_what_is_assigned(site: AdminSite) -> None:
    """Two numbers, since the one follows the other only slowly."""
    await site.good("POST", "/v1/admin/rollouts", ROLLOUT)
    await site.good("PUT", "/v1/admin/lists/staff", "ann")
    nobody = {"count": 0, "percent": None, "minute_count": 0, "minute_percent": None}
    assert (await site.good("GET", NODES))["arms"] == {
        "stable": {"nodes": 2, "live": 40, "live_percent": 40.0, "assigned": nobody},
        "fast": {"nodes": 1, "live": 60, "live_percent": 60.0, "assigned": nobody},
    }
    assert site.decide("ann", "sh").arm == "fast"
    site.clock.advance(61_000)
    for _ in range(3):
        site.decide("someone-without-a-bucket-in-it-surely-0", "bj")
    arms = (await site.good("GET", NODES))["arms"]
    assert arms["fast"]["assigned"] == {"count": 1, "percent": 25.0, "minute_count": 0, "minute_percent": 0.0}
    assert arms["stable"]["assigned"] == {"count": 3, "percent": 75.0, "minute_count": 3, "minute_percent": 100.0}


async def test_a_cordoned_node_gets_nobody_and_says_why(site: AdminSite) -> None:
    """Until it is uncordoned; both may be said twice."""
    path = f"{NODES}/access-1"
    ordered = await site.good("POST", f"{path}/cordon", {"reason": "disk"})
    assert ordered == {
        "node": "access-1",
        "cordon": {"at": site.clock.realtime(), "who": WHO, "reason": "disk"},
    }
    shown = (await site.good("GET", NODES))["nodes"][0]
    assert (shown["cordon"], shown["left_out"]) == (ordered["cordon"], "cordoned")
    assert {site.decide(f"user-{number}").candidates[0] for number in range(20)} == {2}  # by name, access-2 is last
    assert (await site.good("POST", f"{path}/cordon"))["cordon"]["reason"] == ""
    for _ in range(2):
        assert await site.good("POST", f"{path}/uncordon") == {"node": "access-1", "cordon": None}
    assert (await site.good("GET", NODES))["nodes"][0]["left_out"] == ""


@pytest.mark.parametrize("order", ["cordon", "uncordon"])
async def test_a_node_that_is_not_there_cannot_be_cordoned(site: AdminSite, order: str) -> None:
    """The answer names those that are."""
    assert await site.refused("POST", f"{NODES}/access-9/{order}") == (
        404,
        "not_found",
        "there is no access node access-9; there are: access-1, access-2, access-10",
    )


async def test_a_node_that_went_away_cordoned_can_be_uncordoned(site: AdminSite) -> None:
    """Or its next life would be cordoned for ever."""
    await site.good("POST", f"{NODES}/access-1/cordon")
    await site.registry.deregister("access-1", 1)
    await site.take()
    assert "access-1" not in {node["node"] for node in (await site.good("GET", NODES))["nodes"]}
    await site.good("POST", f"{NODES}/access-1/uncordon")
    assert await site.registry.get(CORDONS + "access-1") is None
    assert (await site.refused("POST", f"{NODES}/access-1/cordon"))[0] == 404


@pytest.mark.parametrize("body", [{"reason": "x" * 501}, {"reason": 1}, {"why": "x"}, []])
async def test_a_cordon_takes_a_reason_and_nothing_else(site: AdminSite, body: Any) -> None:
    """Of 500 characters at most."""
    assert (await site.refused("POST", f"{NODES}/access-1/cordon", body))[:2] == (400, "bad_request")


# ---------------------------------------------------------------- panic


async def test_what_panic_keeps_is_shown_and_given_up_by_order(site: AdminSite) -> None:
    """Only in panic, and only then."""
    path = "/v1/admin/access/panic/accept"
    assert (await site.refused("POST", path))[:2] == (409, "conflict")
    for name in ("access-1", "access-10"):
        await site.registry.deregister(name, 1)
    await site.take()
    shown = await site.good("GET", NODES)
    assert (shown["is_panic"], shown["vanished"]) == (True, ["access-1", "access-10"])
    assert [node["node"] for node in shown["nodes"]] == ["access-2"]
    assert await site.good("POST", path) == {"is_panic": False, "lost": ["access-1", "access-10"]}
    shown = await site.good("GET", NODES)
    assert (shown["is_panic"], shown["vanished"]) == (False, [])


# ---------------------------------------------------------------- rebalancing


async def tell_moves(site: AdminSite, request: str, *, is_complete: bool) -> None:
    record = MovesRecord(1, "scheduler-2", request, f"{request}-7", is_complete, {"phase": "running"})
    await site.registry.put(MOVES, msgspec.json.encode(record))
    await site.take()


async def test_rebalancing_is_ordered_and_looked_at(site: AdminSite) -> None:
    """With what was asked for, by whom; and what the mover tells of it."""
    assert await site.good("GET", REBALANCE_PATH) == {"order": None, "is_over": True, "moves": None}
    ordered = await site.good("POST", REBALANCE_PATH, {"rate_per_s": 7.5, "tolerance": 10, "region": "sh"})
    order = ordered["order"]
    assert (order["who"], order["at"], order["is_aborted"]) == (WHO, site.clock.realtime(), False)
    request = order["request"]
    assert (request["kind"], request["rate_per_s"], request["tolerance"], request["region"]) == (
        "rebalance",
        7.5,
        10,
        "sh",
    )
    assert 0 < len(request["id"]) <= 16
    assert "-" not in request["id"]
    await tell_moves(site, request["id"], is_complete=False)
    shown = await site.good("GET", REBALANCE_PATH)
    assert (shown["is_over"], shown["moves"]["plan"]) == (False, f"{request['id']}-7")
    assert site.orders.rebalance == msgspec.convert(shown["order"], RebalanceRecord)


async def test_one_rebalancing_at_a_time(site: AdminSite) -> None:
    """The next one when it is complete, or aborted."""
    first = (await site.good("POST", REBALANCE_PATH))["order"]["request"]["id"]
    assert (await site.refused("POST", REBALANCE_PATH))[:2] == (409, "conflict")
    await tell_moves(site, first, is_complete=True)
    assert (await site.refused("POST", f"{REBALANCE_PATH}/abort"))[:2] == (404, "not_found")
    second = (await site.good("POST", REBALANCE_PATH))["order"]["request"]["id"]
    assert second != first
    assert (await site.good("POST", f"{REBALANCE_PATH}/abort"))["is_over"] is True
    assert (await site.refused("POST", f"{REBALANCE_PATH}/resume"))[:2] == (404, "not_found")
    await site.good("POST", REBALANCE_PATH)


async def test_a_rebalancing_is_paused_and_resumed(site: AdminSite) -> None:
    """Each resume counts, since it also lifts a pause that the plan made itself."""
    assert (await site.refused("POST", f"{REBALANCE_PATH}/pause"))[:2] == (404, "not_found")
    await site.good("POST", REBALANCE_PATH)
    assert (await site.good("POST", f"{REBALANCE_PATH}/pause"))["order"]["request"]["is_paused"] is True
    assert (await site.refused("POST", f"{REBALANCE_PATH}/pause"))[:2] == (409, "conflict")
    resumed = (await site.good("POST", f"{REBALANCE_PATH}/resume"))["order"]["request"]
    assert (resumed["is_paused"], resumed["resumes"]) == (False, 1)
    assert (await site.good("POST", f"{REBALANCE_PATH}/resume"))["order"]["request"]["resumes"] == 2


@pytest.mark.parametrize(
    "body",
    [
        {"rate_per_s": 0},
        {"rate_per_s": 1e-305},
        {"rate_per_s": 1e9},
        {"accept_per_s": 0},
        {"accept_per_s": 1e-305},
        {"accept_percent": 101},
        {"grace_ms": 1},
        {"deadline_ms": -1},
        {"tolerance": 1_001},
        {"kind": "to_canary"},
        {"region": "gz"},
        {"region": 1},
    ],
)
async def test_a_bad_order_to_rebalance_is_refused(site: AdminSite, body: dict[str, Any]) -> None:
    """And nothing is written."""
    assert (await site.refused("POST", REBALANCE_PATH, body))[:2] == (400, "bad_request")
    assert await site.registry.get(REBALANCE) is None


async def test_of_two_orders_at_once_one_is_refused(site: AdminSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads before the other has written."""

    async def late(_key: str, _value: bytes, *, expect: int | None = None) -> int:
        raise CasConflict("somebody was faster", index=(expect or 0) + 1)

    monkeypatch.setattr(site.registry, "put", late)
    assert (await site.refused("POST", REBALANCE_PATH))[:2] == (409, "conflict")


async def test_an_order_that_nobody_can_read_may_be_replaced(site: AdminSite) -> None:
    """One of another version, say: nobody carries it out."""
    await site.registry.put(REBALANCE, b"\xff")
    await site.take()
    assert isinstance(await site.registry.get(REBALANCE), Entry)
    await site.good("POST", REBALANCE_PATH)
    assert site.orders.rebalance is not None
