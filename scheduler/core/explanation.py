"""Why a client was sent where it was sent, stage by stage, in words.

Made from a decision's facts, the request, and the snapshot that it was made on; nothing is decided again. What a
client or backend sees with `?why`, and what operators see of any decision that is still remembered or was recorded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import zip_longest

import msgspec

from scheduler.core.engine import Decision, Passed, Picked
from scheduler.core.policy import Policy
from scheduler.core.request import Request
from scheduler.core.snapshot import STABLE, Snapshot

__all__ = ["Stage", "explain"]

_LEFT = {
    Passed.NO_CREDIT: "its nodes accept nobody more in this moment",
    Passed.NO_ROOM: "used up to its share",
    Passed.ARM_NOT_HERE: "it has no node there, where stable takes the client",
    Passed.ARM_FULL: "its nodes take nobody more now",
    Passed.NO_SLOT: "its next slot is too far away",
}
_OF_ARMS = {Passed.ARM_NOT_HERE, Passed.ARM_FULL}
_PICKED = {
    Picked.NEAREST: "the first in the client's order with room and credit",
    Picked.BY_ROOM: "drawn by the room that is left",
    Picked.BY_SLOT: "the earliest slot, nobody has credit now",
    Picked.NOBODY: "nobody takes clients now",
}


class Stage(msgspec.Struct, frozen=True):
    """One stage of a decision: what came out of it, and what it dropped."""

    stage: str
    says: str
    dropped: tuple[str, ...] = ()


def explain(snapshot: Snapshot, policy: Policy, request: Request, decision: Decision) -> tuple[Stage, ...]:
    """Return the stages in order. `snapshot` and `policy` are those that the decision was made on."""
    assert decision.generation == snapshot.generation
    rule = policy.rules[decision.rule]
    stages = [
        _located(request),
        Stage(
            "filter",
            f"{len(snapshot.nodes) - len(snapshot.left_out)} of {len(snapshot.nodes)} access nodes take clients",
            tuple(f"{snapshot.nodes[index].id}: {reason}" for index, reason in snapshot.left_out.items()),
        ),
        Stage("rule", f"{rule.name}: {', '.join(sorted(rule.strategies))}"),
        _arm(snapshot, decision),
        _region(request, decision),
    ]
    if decision.candidates:
        stages.append(_drawn(snapshot, decision))
        wait = f"wait {decision.not_before_ms} ms for the slot" if decision.not_before_ms else "may connect at once"
        stages.append(Stage("slot", wait))
    return tuple(stages)


def _located(request: Request) -> Stage:
    where = request.location
    known = [
        f"{name} {value}"
        for name, value in (("region", where.region), ("place", where.place), ("carrier", where.carrier))
        if value
    ]
    return Stage("locate", f"{', '.join(known) or 'nowhere in particular'}, by {where.source}")


def _arm(snapshot: Snapshot, decision: Decision) -> Stage:
    says = []
    for cohort, placed in zip(snapshot.cohorts, decision.placed, strict=False):
        if placed.segment:
            how = f"segment {placed.segment}"
        elif placed.bucket < 0:
            how = "nothing to make a bucket of"
        else:
            how = f"bucket {placed.bucket / 1000:.3f} of {cohort.percent / 1000:g} %"
        if cohort.is_failed:
            how += "; it failed, and takes nobody"
        says.append(f"{cohort.rollout.name} {'takes' if placed.is_canary else 'does not take'} the client ({how})")
    if decision.arm != STABLE and (STABLE, "", Passed.ARM_FULL) in decision.passed:
        says.append("as the last resort, since stable takes nobody")
    dropped = tuple(
        f"{arm}, {region or 'anywhere'}: {_LEFT[Passed(why)]}"
        for arm, region, why in decision.passed
        if why in _OF_ARMS
    )
    return Stage("arm", f"{decision.arm}{': ' if says else ''}{'; '.join(says)}", dropped)


def _region(request: Request, decision: Decision) -> Stage:
    dropped = tuple(
        f"{region or 'unnamed'}{'' if arm == STABLE else f' ({arm})'}: {_LEFT[Passed(why)]}"
        for arm, region, why in decision.passed
        if why not in _OF_ARMS
    )
    name = decision.region or ("none" if not decision.candidates else "unnamed")
    spilled = decision.candidates and request.location.region not in {"", decision.region}
    from_where = f", for a client of {request.location.region}" if spilled else ""
    carrier = f", nodes in the network of {decision.carrier}" if decision.carrier else ""
    return Stage("region", f"{name}{from_where}: {_PICKED[Picked(decision.picked)]}{carrier}", dropped)


def _drawn(snapshot: Snapshot, decision: Decision) -> Stage:
    says, nowhere = [], "no region"
    for index in decision.candidates:
        node = snapshot.nodes[index]
        is_elsewhere = node.region != decision.region
        says.append(f"{node.id}{f' ({node.region or nowhere})' if is_elsewhere else ''}")
    return Stage("draw", ", ".join(says), tuple(_compared(snapshot, decision)))


def _compared(snapshot: Snapshot, decision: Decision) -> Iterator[str]:
    """Each node that was drawn: what it was compared by, and what became of it."""
    for index, load in zip_longest(decision.drawn, decision.loads):
        if load is None:
            by = "by its weight alone"
        else:
            by = "no credit" if math.isinf(load) else f"load {load:.3%} of its weight"
        doubt = snapshot.vague[index] if snapshot.vague is not None else 0.0
        if doubt and load is not None:
            by += f", doubted by {doubt:.0%} as its report is old"
        place = f"candidate {decision.candidates.index(index) + 1}" if index in decision.candidates else "not chosen"
        yield f"{snapshot.nodes[index].id}: {by}, {place}"
