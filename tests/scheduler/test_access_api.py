"""What an access request says, and what its answer does: the rest of it is in the tests of both ways in."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from base.clock import SystemClock, Timestamp
from base.cors import Cors
from base.errors import BadRequest, NotReady, PermissionDenied
from base.http import Credentials, Role
from base.ids import NodeId
from base.keys import KeyList, KeyRing
from base.metrics import Metrics
from scheduler.access_api import AccessApi, Query, parse_rtts
from scheduler.client import TicketVerifier
from scheduler.config import SchedulerConfig
from scheduler.core.node import AccessNode
from scheduler.core.policy import DEFAULT_POLICY
from scheduler.core.regions import Regions
from scheduler.core.request import Location
from scheduler.decider import Decider, Rules
from scheduler.metrics import Figures, SchedulerMetrics
from scheduler.tokens import TicketSigner, mint_user_token

KEY = "a-secret-of-at-least-thirty-two-bytes"
BACKEND = "Bearer backend-key"


class Door:
    """The API over a few nodes that are as told."""

    def __init__(self, *nodes: AccessNode, **config: Any) -> None:
        clock = SystemClock()
        settings = SchedulerConfig(**config)
        self.decider = Decider(
            "0123456789", settings.settings(), clock, Rules((), DEFAULT_POLICY, {}, Regions()), remembered=10
        )
        self.decider.observe(nodes, schedulers=1)
        self.learned: list[dict[str, int]] = []
        self.now = clock.realtime()
        self.api = AccessApi(
            settings,
            clock,
            Credentials({"backend-key": Role.BACKEND, "viewer-key": Role.VIEWER}),
            decider=self.decider,
            locate=self.locate,
            signer=lambda: TicketSigner("k1", KEY),
            user_keys=KeyList.of(KEY),
            cors=Cors(lambda _: True),
            metrics=SchedulerMetrics(Metrics("test"), node="test", figures=Figures),
        )

    def locate(self, user: str, address: str, hint: str, rtts: dict[str, int]) -> Location:  # noqa: ARG002 - Locate
        self.learned.append(rtts)
        return Location(hint, source="hint")

    def ask(self, authorization: str = BACKEND, **query: Any) -> dict[str, Any]:
        body = self.api.answer(Query(**query), authorization, "192.0.2.1", "")
        answer: dict[str, Any] = msgspec.json.decode(body)
        return answer

    def token(self, user: str) -> str:
        return f"Bearer {mint_user_token(user, key=KEY, expires_at=Timestamp(self.now + 60_000))}"


def node(name: str, region: str = "", **values: Any) -> AccessNode:
    return AccessNode(id=NodeId(name), url=f"http://{name}:80", region=region, **({"capacity": 100} | values))


def test_a_client_that_names_no_device_has_none_for_rules_and_one_for_sessions() -> None:
    """Or all such clients would be in one bucket of a rollout that goes by devices."""
    door = Door(node("a"))
    ticket = TicketVerifier(KeyRing.of({"k1": KEY}), node=NodeId("a")).verify(door.ask(user="ann")["ticket"], door.now)
    assert (ticket.device, ticket.platform) == ("default", "unknown")
    past = door.decider.explain_past(1)
    assert past is not None
    assert (past[0].request.device, past[0].request.platform) == ("", "")
    ticket = TicketVerifier(KeyRing.of({"k1": KEY}), node=NodeId("a")).verify(
        door.ask(user="ann", device="phone", platform="ios")["ticket"], door.now
    )
    assert (ticket.device, ticket.platform, ticket.sid, ticket.seq) == ("phone", "ios", "0123456789", 2)


def test_only_a_backend_is_told_why() -> None:
    """It names nodes and their loads; also where nobody takes clients."""
    door = Door(node("a"))
    assert "why" not in door.ask(user="ann")
    assert "why" not in door.ask(user="ann", why="0")
    assert door.ask(user="ann", why="")["why"][0]["stage"] == "locate"
    with pytest.raises(PermissionDenied):
        door.ask(door.token("ann"), why="1")
    nobody = Door(node("a", is_draining=True))
    with pytest.raises(NotReady) as refused:
        nobody.ask(user="ann")
    assert refused.value.detail == {"retry_after_ms": 1_000}
    with pytest.raises(NotReady) as refused:
        nobody.ask(user="ann", why=True)
    assert refused.value.detail["why"][1]["dropped"] == ("a: draining",)


def test_who_asks_is_by_the_credential() -> None:
    """A viewer may not ask at all, a client for nobody else and from nowhere else."""
    door = Door(node("a"))
    with pytest.raises(PermissionDenied):
        door.ask("Bearer viewer-key", user="ann")
    with pytest.raises(BadRequest, match="user is missing"):
        door.ask()
    with pytest.raises(BadRequest, match="differs"):
        door.ask(door.token("ann"), user="bob")
    with pytest.raises(BadRequest, match="address"):
        door.ask(door.token("ann"), address="192.0.2.7")
    with pytest.raises(BadRequest, match="address"):
        door.ask(user="ann", address="nowhere")
    assert door.ask(user="ann", address="192.0.2.7")["candidates"][0]["id"] == "a"


def test_a_client_is_asked_to_measure_the_nearest_regions_and_to_come_back() -> None:
    """Its own first, then by name; what it measured is passed on."""
    door = Door(node("a", "east"), node("b", "west"), node("c", "mid"), probe_regions=2, lifetime_ms=600_000)
    answer = door.ask(user="ann", region="west", rtt="west:12,east:90000")
    assert answer["probe"][0] == {"region": "west", "url": "http://b:80/healthz"}
    assert [probe["region"] for probe in answer["probe"]] == ["west", "east"]
    assert 420_000 <= answer["lifetime_ms"] <= 600_000
    assert door.learned == [{"west": 12, "east": 60_000}]


MANY = ",".join(f"r{number}:1" for number in range(17))


@pytest.mark.parametrize("text", ["west", "west:", ":5", "west:-1", "west:1.5", MANY, "west:1234567890"])
def test_round_trip_times_are_pairs_of_region_and_ms(text: str) -> None:
    """Or all of them are refused."""
    with pytest.raises(BadRequest):
        parse_rtts(text)
