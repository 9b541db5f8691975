"""The policies over HTTP: the one in force, the one in its shadow, and their history."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from base.errors import CasConflict
from scheduler.core.policy import DEFAULT_POLICY
from scheduler.core.rollout_record import BYTES_MAX, HISTORY_MAX, Change
from scheduler.orders import POLICY, PolicyRecord
from tests.scheduler.admin_site import AdminSite, admin_site

PATH = "/v1/admin/policy"
SHADOW = f"{PATH}/shadow"
STICKY = """\
policy: halls
rules:
  - {name: staff, when: {user: {in: staff}}, strategies: [sticky]}
  - {name: others, strategies: [proximity, weighted]}
"""
BAD = STICKY.replace("sticky", "stcky")
WHO = "operator c9736463 (ann@ops)"


@pytest.fixture
async def site() -> AsyncIterator[AdminSite]:
    async with admin_site() as made:
        yield made


async def test_the_built_in_policy_is_shown_where_nobody_wrote_one(site: AdminSite) -> None:
    """With an empty document."""
    shown = await site.good("GET", PATH)
    assert (shown["revision"], shown["document"], shown["history"]) == (0, "", [])
    assert (shown["has_shadow"], shown["is_in_force"], shown["unreadable"]) == (False, True, "")
    (rule,) = shown["policy"]["rules"]
    assert rule == {"name": "all", "strategies": ["canary", "least_connections", "proximity"], "when": None}


@pytest.mark.parametrize("body", [STICKY, {"document": STICKY}])
async def test_a_policy_is_put_in_force_and_taken_back(site: AdminSite, body: Any) -> None:
    """Each change with its author and its document."""
    shown = await site.good("PUT", PATH, body)
    assert shown["policy"]["name"] == "halls"
    assert shown["policy"]["missing_lists"] == ["staff"]
    assert shown["is_in_force"] is False  # until the registry has told it to all
    assert (await site.good("GET", PATH))["is_in_force"] is True
    assert site.decider.engine.policy.name == "halls"
    back = await site.good("PUT", PATH, {"document": " \n"})
    assert (back["revision"], back["document"]) == (2, "")
    assert site.decider.engine.policy == DEFAULT_POLICY
    assert [(line["who"], line["action"], line.get("document", "")) for line in back["history"]] == [
        (WHO, "policy", STICKY),
        (WHO, "policy", ""),
    ]


@pytest.mark.parametrize("path", [PATH, SHADOW])
@pytest.mark.parametrize("body", [BAD, {"document": BAD}])
async def test_a_bad_policy_is_refused_with_its_faults(site: AdminSite, path: str, body: Any) -> None:
    """And the one in force stays."""
    status, answer = await site.ask("PUT", path, body)
    assert (status, answer["error"]["name"]) == (400, "bad_request")
    assert [fault["line"] for fault in answer["error"]["detail"]["faults"]] == [3]
    checked = await site.good("PUT", f"{path}?validate", body, key="viewer-key")
    assert (checked["ok"], checked["policy"]) == (False, None)
    assert checked["faults"] == answer["error"]["detail"]["faults"]
    assert await site.registry.get(POLICY) is None


async def test_a_policy_is_only_checked(site: AdminSite) -> None:
    """Nothing is written."""
    checked = await site.good("PUT", f"{PATH}?validate", STICKY)
    assert (checked["ok"], checked["policy"]["name"]) == (True, "halls")
    assert await site.registry.get(POLICY) is None


@pytest.mark.parametrize("body", [{"document": 1}, {}, []])
@pytest.mark.parametrize("path", [PATH, SHADOW])
async def test_a_body_without_a_document_is_refused(site: AdminSite, path: str, body: Any) -> None:
    """As JSON it needs the field, of text."""
    assert (await site.refused("PUT", path, body))[:2] == (400, "bad_request")


async def test_a_shadow_cannot_be_empty(site: AdminSite) -> None:
    """To end it is another order."""
    assert (await site.refused("PUT", SHADOW, ""))[:2] == (400, "bad_request")


async def test_a_shadow_is_compared_with_what_is_decided(site: AdminSite) -> None:
    """From when it runs; nobody is sent where it says."""
    assert (await site.refused("GET", SHADOW))[:2] == (404, "not_found")
    put = await site.good("PUT", SHADOW, STICKY)
    assert put["difference"] is None  # it does not run before the registry has told it
    for number in range(50):
        site.decide(f"user-{number}")
    shown = await site.good("GET", SHADOW)
    assert (shown["document"], shown["policy"]["name"]) == (STICKY, "halls")
    assert shown["difference"]["decisions"] == 50
    assert shown["difference"]["other_arm"] == 0
    assert 0 < shown["difference"]["other_candidates"] <= 50
    assert (await site.good("GET", PATH))["has_shadow"] is True
    assert (await site.good("DELETE", SHADOW))["has_shadow"] is False
    assert site.decider.shadow is None
    assert (await site.refused("DELETE", SHADOW))[:2] == (404, "not_found")
    assert [line["action"] for line in (await site.good("GET", PATH))["history"]] == ["shadow", "shadow ended"]


async def test_who_loses_a_race_decides_again_on_what_is_there(
    site: AdminSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shadow that somebody else put at the same time stays."""
    put, others = site.registry.put, [msgspec.json.encode(PolicyRecord(7, shadow=STICKY))]

    async def late(key: str, value: bytes, *, expect: int | None = None) -> int:
        if others:
            await put(key, others.pop())
        return await put(key, value, expect=expect)

    monkeypatch.setattr(site.registry, "put", late)
    shown = await site.good("PUT", PATH, STICKY)
    assert (shown["revision"], shown["has_shadow"]) == (8, True)


async def test_who_loses_every_race_is_told(site: AdminSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conflict."""

    async def late(_key: str, _value: bytes, *, expect: int | None = None) -> int:
        raise CasConflict("somebody was faster", index=(expect or 0) + 1)

    monkeypatch.setattr(site.registry, "put", late)
    assert (await site.refused("PUT", PATH, STICKY))[:2] == (409, "conflict")


async def test_a_record_that_cannot_be_read_is_not_written_over(site: AdminSite) -> None:
    """It would take a history with it that somebody can read."""
    await site.registry.put(POLICY, b"{}")
    await site.take()
    for method, path in (("GET", PATH), ("PUT", PATH), ("PUT", SHADOW)):
        assert (await site.refused(method, path, STICKY if method == "PUT" else None))[:2] == (409, "conflict")


async def test_a_policy_that_a_newer_version_wrote_is_shown_as_text(site: AdminSite) -> None:
    """The one before stays in force, and why is said."""
    await site.registry.put(POLICY, msgspec.json.encode(PolicyRecord(1, document=BAD)))
    for _ in range(2):  # for as long as it is there
        await site.take()
        shown = await site.good("GET", PATH)
        assert (shown["document"], shown["policy"]) == (BAD, None)
        assert shown["unreadable"].startswith("policy, line 3: ")
        assert site.decider.engine.policy == DEFAULT_POLICY
    await site.good("PUT", PATH, STICKY)
    assert (await site.good("GET", PATH))["unreadable"] == ""


@pytest.mark.parametrize(("lines", "padding"), [(HISTORY_MAX + 50, ""), (30, "#" + "x" * 60_000 + "\n")])
async def test_the_oldest_lines_go_when_the_history_grows_too_long(site: AdminSite, lines: int, padding: str) -> None:
    """By their number, and by what the registry takes; the newest is always there."""
    change = Change(1, "ann", "policy", document=padding)
    long = PolicyRecord(lines, history=(change,) * lines)
    changed = await site.good("GET", PATH)
    assert changed["revision"] == 0
    site.registry._state.apply(site.registry._state.plan_put(POLICY, msgspec.json.encode(long), None))
    shown = await site.good("PUT", PATH, STICKY)
    assert shown["history"][-1]["document"] == STICKY
    assert len(shown["history"]) <= HISTORY_MAX
    entry = await site.registry.get(POLICY)
    assert entry is not None
    assert len(entry.value) <= BYTES_MAX
