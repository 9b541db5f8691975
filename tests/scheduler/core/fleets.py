"""Access nodes, rollouts and engines for the tests of the scheduler's decisions."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

from base.ids import NodeId
from scheduler.core.cohorts import ActiveRollout
from scheduler.core.conditions import FieldIn
from scheduler.core.engine import Decision, Engine
from scheduler.core.node import AccessNode
from scheduler.core.policy import DEFAULT_POLICY, Policy, Rule, Strategy
from scheduler.core.regions import Region, Regions
from scheduler.core.request import Location, Request
from scheduler.core.rollout import Rollout, Segment, Step
from scheduler.core.snapshot import Settings

OLD_MS = 86_400_000


def node(name: str, **fields: Any) -> AccessNode:
    """Return a node that has been running for a day and takes 1,000 connections, unless `fields` say otherwise."""
    given = {"capacity": 1_000, "incarnation": 1, "report": 1, "uptime_ms": OLD_MS} | fields
    return AccessNode(id=NodeId(name), url=f"http://{name}", **given)


def nodes(count: int, **fields: Any) -> list[AccessNode]:
    """Return so many that differ in nothing but their names."""
    return [node(f"n{number:03}", **fields) for number in range(count)]


def active(name: str = "fast", percent: int = 100_000, **fields: Any) -> ActiveRollout:
    """Return a rollout whose canary are the nodes of the version that is its name. Segment: user "staff"."""
    is_failed = fields.pop("is_failed", False)
    segments = (Segment("staff", FieldIn("user", ("staff",)), "canary"),)
    given = {"version": name, "seed": name, "steps": (Step(percent),), "segments": segments} | fields
    return ActiveRollout(Rollout(name, **given), percent, is_failed)


def policy(*strategies: Strategy) -> Policy:
    """Return a policy of one rule."""
    return Policy("p", (Rule("all", frozenset(strategies)),))


def engine(
    view: Iterable[AccessNode] = (),
    *,
    rollouts: Iterable[ActiveRollout] = (),
    by: Policy = DEFAULT_POLICY,
    regions: Iterable[Region] = (),
    seed: int = 1,
    now: int = 0,
    schedulers: int = 1,
    **settings: Any,
) -> Engine:
    """Return an engine that has seen the nodes."""
    made = Engine(Settings(**settings), Random(seed))
    made.configure(rollouts=rollouts, policy=by, lists={}, regions=Regions(regions), now=now)
    made.observe(list(view), now, schedulers=schedulers)
    return made


def ask(user: str = "u", region: str = "", carrier: str = "", device: str = "d") -> Request:
    """Return a request of a user in the region."""
    return Request(user, device, "ios", "5.1.0", "192.0.2.1", Location(region, "", carrier, "hint"))


def names(made: Engine, decision: Decision) -> list[str]:
    """Return the ids of the candidates."""
    return [str(made.snapshot.nodes[index].id) for index in decision.candidates]
