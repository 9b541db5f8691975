"""Named lists over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from scheduler.lists_api import BYTES_MAX
from scheduler.orders import LISTS
from tests.scheduler.admin_site import ROLLOUT, AdminSite, admin_site

ALL = "/v1/admin/lists"
STAFF = f"{ALL}/staff"
POLICY = """\
policy: halls
rules:
  - {name: staff, when: {user: {in: staff}}, strategies: [sticky]}
  - {name: others, strategies: [least_connections]}
"""


@pytest.fixture
async def site() -> AsyncIterator[AdminSite]:
    async with admin_site() as made:
        yield made


@pytest.mark.parametrize("body", ["ben\r\n\n  ann \nben\n", ["ben", "ann", "ben"]])
async def test_a_list_is_written_and_read(site: AdminSite, body: Any) -> None:
    """As lines or as a JSON array; each value once."""
    assert await site.good("PUT", STAFF, body) == {"name": "staff", "values": 2}
    assert await site.good("GET", STAFF) == {"name": "staff", "values": ["ann", "ben"]}
    assert site.orders.lists == {"staff": {"ann", "ben"}}


async def test_an_empty_list_is_a_list(site: AdminSite) -> None:
    """Nobody is in it, and that is meant."""
    assert await site.good("PUT", STAFF, "\n") == {"name": "staff", "values": 0}
    assert await site.good("GET", STAFF) == {"name": "staff", "values": []}
    assert (await site.good("GET", ALL))["missing"] == []


@pytest.mark.parametrize(
    "body",
    ["ann\nb\tn", "x" * 129, [""], ["a\nb"], [1], {"ann": 1}, "ann\x00"],
)
async def test_values_must_be_ids(site: AdminSite, body: Any) -> None:
    """The whole list is refused."""
    assert (await site.refused("PUT", STAFF, body))[:2] == (400, "bad_request")
    assert await site.registry.get(f"{LISTS}staff") is None


async def test_a_list_must_be_utf8(site: AdminSite) -> None:
    """Bad request, not a defect of ours."""
    headers = {"Authorization": "Bearer operator-key"}
    async with site.client.put(STAFF, data=b"\xff", headers=headers) as answer:
        assert (answer.status, (await answer.json())["error"]["message"]) == (400, "the body is not UTF-8")


@pytest.mark.parametrize("name", ["Staff", "_ab", "x" * 64, "a%2Fb", ".a", "a b"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_names_are_short_and_plain(site: AdminSite, method: str, name: str) -> None:
    """They are part of a key."""
    status, error, _ = await site.refused(method, f"{ALL}/{name}", "ann" if method == "PUT" else None)
    assert (status, error) == (400, "bad_request")


async def test_a_list_has_its_bound(site: AdminSite) -> None:
    """That of the registry's values; what fits is taken."""
    value = "x" * 99
    most = BYTES_MAX // 105
    lines = [f"{number:05}{value}" for number in range(most + 2)]
    assert (await site.good("PUT", STAFF, "\n".join(lines[:most])))["values"] == most
    assert (await site.refused("PUT", STAFF, "\n".join(lines)))[:2] == (413, "too_large")


async def test_who_names_a_list_is_shown_and_keeps_it(site: AdminSite) -> None:
    """Rollouts, the policy and its shadow; also a list that nobody wrote."""
    await site.good("PUT", STAFF, "ann")
    await site.good("PUT", f"{ALL}/unused", "ann")
    await site.good("POST", "/v1/admin/rollouts", ROLLOUT)
    await site.good("PUT", "/v1/admin/policy", POLICY)
    await site.good("PUT", "/v1/admin/policy/shadow", POLICY.replace("in: staff", "in: testers"))
    assert await site.good("GET", ALL) == {
        "lists": {
            "staff": {"values": 1, "used_by": ["the rollout fast", "the policy"]},
            "testers": {"values": 0, "used_by": ["the shadow policy"]},
            "unused": {"values": 1, "used_by": []},
        },
        "missing": ["testers"],
        "unreadable": {},
    }
    status, name, message = await site.refused("DELETE", STAFF)
    assert (status, name) == (409, "conflict")
    assert message == "the list staff is named by the rollout fast, the policy"
    assert await site.good("DELETE", f"{ALL}/unused") == {"name": "unused"}


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_a_list_that_is_not_there_is_not_found(site: AdminSite, method: str) -> None:
    """Rather than empty."""
    assert (await site.refused(method, STAFF))[:2] == (404, "not_found")


async def test_a_list_that_cannot_be_read_is_said(site: AdminSite) -> None:
    """The last good one stays in force."""
    await site.good("PUT", STAFF, "ann")
    await site.registry.put(f"{LISTS}staff", b"\xff")
    await site.take()
    shown = await site.good("GET", ALL)
    assert list(shown["unreadable"]) == ["staff"]
    assert shown["lists"]["staff"]["values"] == 1
