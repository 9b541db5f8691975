"""Rollouts as feature flags: the answers are the cohorts', and errors have the protocol's form."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from base.http import Credentials, HttpServer, Role
from base.metrics import Metrics
from scheduler.core.cohorts import ActiveRollout, Cohort
from scheduler.core.conditions import FieldIn
from scheduler.core.request import Location, Request
from scheduler.core.rollout import FULL, Rollout, Segment
from scheduler.ofrep import PATH, Ofrep

Connect = Callable[[web.Application], Awaitable[TestClient[web.Request, web.Application]]]
Client = TestClient[web.Request, web.Application]
HEADERS = {"Authorization": "Bearer backend"}
KEYS = Credentials({"backend": Role.BACKEND, "viewer": Role.VIEWER})
SEGMENTS = (
    Segment(name="ios", when=FieldIn(field="platform", values=("ios",)), to="canary"),
    Segment(name="west", when=FieldIn(field="region", values=("west",)), to="stable"),
)
FAST = ActiveRollout(Rollout(name="fast", version="2.0.0", seed="s1", steps=(), segments=SEGMENTS), percent=12_500)
SMALL = ActiveRollout(Rollout(name="small", version="2.1.0", seed="s2", steps=(), bucket_by="device"), percent=FULL)
FAILED = ActiveRollout(Rollout(name="bad", version="3.0.0", seed="s3", steps=()), percent=FULL, is_failed=True)


class Scheduler:
    """What is asked, and the rollouts that it knows."""

    def __init__(self) -> None:
        self.rollouts: tuple[ActiveRollout, ...] = (FAST, SMALL, FAILED)
        self.located: list[tuple[str, str]] = []
        self.http = HttpServer("scheduler-1", Metrics("scheduler-1"), statistics=dict)
        self.ofrep = Ofrep(rollouts=lambda: self.rollouts, locate=self.locate, credentials=KEYS)
        self.ofrep.add_to(self.http.app.router)
        self.client: Client | None = None

    def locate(self, address: str, region: str) -> Location:
        self.located.append((address, region))
        return Location(region=region)

    async def post(
        self, key: str, body: Any, *, headers: dict[str, str] | None = None
    ) -> tuple[int, Mapping[str, str], Any]:
        """Send a body, JSON or bytes, and return status, headers and answer."""
        assert self.client is not None
        content = {"data": body} if isinstance(body, bytes) else {"json": body}
        path = f"{PATH}/{key}" if key else PATH
        async with self.client.post(path, headers={**HEADERS, **(headers or {})}, **content) as answer:
            text = await answer.text()
            return answer.status, answer.headers, await answer.json() if text else None

    async def flag(self, key: str, **context: Any) -> dict[str, Any]:
        status, _, flag = await self.post(key, {"context": {"targetingKey": "ann", **context}})
        assert status == 200
        assert isinstance(flag, dict)
        return flag


@pytest.fixture
async def scheduler(aiohttp_client: Connect) -> Scheduler:
    made = Scheduler()
    made.client = await aiohttp_client(made.http.app)
    return made


async def test_a_flag_is_how_the_cohort_places_the_user(scheduler: Scheduler) -> None:
    """True for the canary, with the bucket that decided."""
    cohort = Cohort(FAST)
    values = set()
    for number in range(30):
        placed = cohort.place(Request(f"user-{number}"))
        values.add(placed.is_canary)
        assert await scheduler.flag("fast", targetingKey=f"user-{number}") == {
            "key": "fast",
            "value": placed.is_canary,
            "reason": "SPLIT",
            "variant": "canary" if placed.is_canary else "stable",
            "metadata": {
                "rollout": "fast",
                "version": "2.0.0",
                "percent": 12.5,
                "bucket": placed.bucket,
                "segment": "",
            },
        }
    assert values == {True, False}


@pytest.mark.parametrize(
    ("key", "context", "variant", "reason"),
    [
        ("fast", {"platform": "ios", "region": "west"}, "canary", "TARGETING_MATCH"),
        ("fast", {"platform": "tv", "region": "west"}, "stable", "TARGETING_MATCH"),
        ("small", {"device": "phone"}, "canary", "SPLIT"),
        ("small", {}, "stable", "DEFAULT"),
        ("bad", {}, "stable", "DISABLED"),
    ],
)
async def test_the_reason_says_what_decided(
    scheduler: Scheduler, key: str, context: dict[str, str], variant: str, reason: str
) -> None:
    """A segment, which is named; a bucket; nothing to take a bucket of; or that the rollout is over."""
    flag = await scheduler.flag(key, **context)
    assert (flag["variant"], flag["value"], flag["reason"]) == (variant, variant == "canary", reason)
    segment = {"ios": "ios", "tv": "west"}.get(context.get("platform", ""), "")
    assert flag["metadata"]["segment"] == segment


async def test_a_client_is_where_its_address_and_its_own_word_say(scheduler: Scheduler) -> None:
    """The address in canonical text; "" for what the context does not have, or has as null."""
    await scheduler.flag("fast", ip="2001:DB8:0::1", region="sh")
    await scheduler.flag("fast", ip=None, region="", other={"what": ["ever"]})
    assert scheduler.located == [("2001:db8::1", "sh"), ("", "")]


async def test_all_rollouts_come_in_one_answer_once(scheduler: Scheduler) -> None:
    """Who has the answer gets 304 until a rollout or the context changes."""
    asked = {"context": {"targetingKey": "ann", "device": "phone"}}
    status, headers, answer = await scheduler.post("", asked)
    assert status == 200
    assert answer == {"flags": [await scheduler.flag(key, device="phone") for key in ("fast", "small", "bad")]}
    for known in (headers["ETag"], f'"x", W/{headers["ETag"]}', "*"):
        status, again, nothing = await scheduler.post("", asked, headers={"If-None-Match": known})
        assert (status, again["ETag"], nothing) == (304, headers["ETag"], None)
    other = {"context": {"targetingKey": "ann"}}
    assert (await scheduler.post("", other, headers={"If-None-Match": headers["ETag"]}))[0] == 200
    scheduler.rollouts = (ActiveRollout(FAST.rollout, percent=FULL), FAILED)
    status, changed, answer = await scheduler.post("", asked, headers={"If-None-Match": headers["ETag"]})
    assert (status, [flag["key"] for flag in answer["flags"]]) == (200, ["fast", "bad"])
    assert answer["flags"][0]["value"] is True
    assert changed["ETag"] != headers["ETag"]
    scheduler.rollouts = ()
    assert (await scheduler.post("", asked))[2] == {"flags": []}


async def test_a_rollout_is_compiled_once(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    """And anew when it is another object, such as one with another share."""
    made = []

    def count(active: ActiveRollout) -> Cohort:
        made.append(active)
        return Cohort(active)

    monkeypatch.setattr("scheduler.ofrep.Cohort", count)
    for _ in range(3):
        await scheduler.flag("fast")
    scheduler.rollouts = (ActiveRollout(FAST.rollout, percent=FULL), SMALL, FAILED)
    assert (await scheduler.flag("fast"))["value"] is True
    assert made == [FAST, SMALL, FAILED, scheduler.rollouts[0]]


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        (b"", "PARSE_ERROR", "JSON"),
        (b"{", "PARSE_ERROR", "JSON"),
        (b"\xff", "PARSE_ERROR", "JSON"),
        (b"[]", "PARSE_ERROR", "object"),
        (b'{"context": {"a": ' + b"[" * 100_000, "PARSE_ERROR", "recursion"),
        ({"context": "ann"}, "PARSE_ERROR", "context"),
        ({}, "TARGETING_KEY_MISSING", "targetingKey"),
        ({"context": {"platform": "ios"}}, "TARGETING_KEY_MISSING", "targetingKey"),
        ({"context": {"targetingKey": ""}}, "TARGETING_KEY_MISSING", "targetingKey"),
        ({"context": {"targetingKey": 7}}, "INVALID_CONTEXT", "targetingKey must be a string"),
        ({"context": {"targetingKey": "a\n"}}, "INVALID_CONTEXT", "targetingKey must not contain control"),
        ({"context": {"targetingKey": "a" * 129}}, "INVALID_CONTEXT", "targetingKey must have 1 to 128 bytes"),
        ({"context": {"targetingKey": "ann", "app": 5}}, "INVALID_CONTEXT", "app must be a string"),
        ({"context": {"targetingKey": "ann", "device": ["d"]}}, "INVALID_CONTEXT", "device must be a string"),
        ({"context": {"targetingKey": "ann", "region": {}}}, "INVALID_CONTEXT", "region must be a string"),
        ({"context": {"targetingKey": "ann", "ip": "10.0.0"}}, "INVALID_CONTEXT", "ip is not an IP address"),
    ],
)
async def test_bad_input_is_told_in_the_protocols_own_form(
    scheduler: Scheduler, body: Any, code: str, says: str
) -> None:
    """Of one rollout and of all, with status 400."""
    for key in ("fast", ""):
        status, _, fault = await scheduler.post(key, body)
        assert status == 400
        assert fault["errorCode"] == code
        assert says in fault["errorDetails"]
        assert fault.get("key", "") == key


async def test_a_rollout_that_is_not_there_is_a_flag_not_found(scheduler: Scheduler) -> None:
    """Whatever the body says."""
    status, _, fault = await scheduler.post("slow", b"{")
    assert (status, fault["key"], fault["errorCode"]) == (404, "slow", "FLAG_NOT_FOUND")


async def test_a_backends_key_is_needed(scheduler: Scheduler) -> None:
    """It tells about users."""
    for key in ("fast", ""):
        for held, status in (("viewer", 403), ("other", 401)):
            found = await scheduler.post(key, {}, headers={"Authorization": f"Bearer {held}"})
            assert found[0] == status
