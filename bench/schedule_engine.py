"""Decisions of the scheduler a second on one core, without HTTP: 1,000 nodes, 5 candidates, rollout, signed ticket.

Everything that a request costs between its parsed query and its answer: the rule, the arm by segment and bucket, the
region by room and credit, six draws, the load estimate, the ticket with its HMAC. By CPU time. Simulated time goes on
as at 100,000 requests a second, and with each second a new view of all nodes is taken. The details say what each part
costs, and what the same takes when every decision is explained.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from random import Random

from base.ids import NodeId
from base.loop import GC_THRESHOLDS
from bench.result import Options, Result
from scheduler.core.cohorts import ActiveRollout
from scheduler.core.engine import Engine
from scheduler.core.explanation import explain
from scheduler.core.node import AccessNode
from scheduler.core.policy import DEFAULT_POLICY
from scheduler.core.regions import Region, Regions
from scheduler.core.request import Location, Request
from scheduler.core.rollout import Rollout
from scheduler.core.rollout_document import parse_rollout
from scheduler.core.snapshot import Settings
from scheduler.tickets import ticket_of
from scheduler.tokens import TicketSigner

NODES = 1_000
CANDIDATES = 5
REQUESTS = 200_000
PASSES = 5
PER_MS = 100
EXPLAINED = 1_000
REGIONS = (("east", "CN-SH", 31.2, 121.5), ("north", "CN-BJ", 39.9, 116.4), ("south", "CN-GD", 23.1, 113.3))
ROLLOUT = """
rollout: access-2.4.0
pool: {version: 2.4.0}
seed: access-2.4.0
segments:
  - {name: old-apps, when: {app: "<5.0"}, to: stable}
steps: [{percent: 10, hold: 30m}, {percent: 100}]
"""


def run(options: Options) -> Result:
    """Decide for many, several times over; the best pass counts."""
    gc.set_threshold(*GC_THRESHOLDS)  # as the product's event loop has it
    count = REQUESTS // 20 if options.quick else REQUESTS
    engine, requests = _engine(), _requests(count)
    signer = TicketSigner("k1", "a-secret-of-at-least-thirty-two-bytes")
    clock = 0

    def whole() -> None:
        nonlocal clock
        for number, request in enumerate(requests):
            if not number % PER_MS:
                clock += 1
                if not clock % 1_000:
                    engine.observe(_nodes(clock), clock)
            nodes = engine.snapshot.nodes
            decision = engine.decide(request, clock)
            chosen = [nodes[index] for index in decision.candidates]
            signer.sign(ticket_of(request, decision, chosen, issuer="0123456789", arm=decision.arm, now_s=1, exp=61))

    def decide() -> None:
        nonlocal clock
        for number, request in enumerate(requests):
            if not number % PER_MS:
                clock += 1
                if not clock % 1_000:
                    engine.observe(_nodes(clock), clock)
            engine.decide(request, clock)

    passes = 1 if options.quick else PASSES
    seconds = min(_cpu_s(whole) for _ in range(passes))
    decide_s = min(_cpu_s(decide) for _ in range(passes))
    explain_s = _explain_s()
    observe_s = min(_cpu_s(lambda: engine.observe(_nodes(clock), clock)) for _ in range(5))
    return Result(
        name="schedule_engine",
        value=round(count / seconds),
        unit="decisions per CPU second, ticket included",
        goal=100_000,
        better="higher",
        details={
            "nodes": NODES,
            "candidates": CANDIDATES,
            "us_per_decision": round(seconds / count * 1e6, 2),
            "of_it_without_ticket_us": round(decide_s / count * 1e6, 2),
            "explaining_one_us": round(explain_s / EXPLAINED * 1e6, 1),
            "taking_a_view_ms": round(observe_s * 1e3, 1),
        },
    )


def _explain_s() -> float:
    """Return how long it takes to explain the decisions of one view."""
    engine, requests = _engine(), _requests(EXPLAINED)
    decisions = [engine.decide(request, 0) for request in requests]

    def work() -> None:
        for request, decision in zip(requests, decisions, strict=True):
            explain(engine.snapshot, DEFAULT_POLICY, request, decision)

    return _cpu_s(work)


def _cpu_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _engine() -> Engine:
    rollout = parse_rollout(ROLLOUT)
    assert isinstance(rollout, Rollout)
    engine = Engine(Settings(candidates=CANDIDATES), Random(1))
    regions = [Region(name, (place,), latitude, longitude) for name, place, latitude, longitude in REGIONS]
    engine.configure(
        rollouts=[ActiveRollout(rollout, 10_000)], policy=DEFAULT_POLICY, lists={}, regions=Regions(regions), now=0
    )
    engine.observe(_nodes(0), 0)
    return engine


def _nodes(now: int) -> list[AccessNode]:
    return [
        AccessNode(
            id=NodeId(f"access-{number}"),
            url=f"https://access-{number}.example.com",
            region=REGIONS[number % len(REGIONS)][0],
            carrier=("CT", "CU", "")[number // 3 % 3],
            version="2.4.0" if number % 10 == 9 else "2.3.0",
            capacity=15_000,
            accepts_per_s=1_000,
            connections=5_000 + number * 7 % 500,
            incarnation=1,
            report=1 + now // 1_000,
            reported_at=now,
            uptime_ms=86_400_000,
        )
        for number in range(NODES)
    ]


def _requests(count: int) -> list[Request]:
    places = [Location(name, place, "CT", "mmdb") for name, place, _, _ in REGIONS]
    return [
        Request(f"user-{number}", "phone", "ios", "5.1.0", "192.0.2.1", places[number % 3]) for number in range(count)
    ]
