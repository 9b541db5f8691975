"""What the bodies of the scheduler's operations look like, as named schemas of the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final, get_args

from roadstead.openapi.schemas import Schema, by_name, either, integer, many, obj, of_types, ref, text, yes_no
from scheduler.access_api import Query
from scheduler.admin import CordonRequest, RebalanceRequest
from scheduler.admin_answers import Document
from scheduler.api import AccessAnswer
from scheduler.core.analysis import Outcome
from scheduler.core.engine import Passed, Picked
from scheduler.core.explanation import Stage
from scheduler.core.moving import Progress
from scheduler.core.policy import Strategy
from scheduler.core.rollout_machine import Phase
from scheduler.core.rollout_record import Change
from scheduler.core.shadow import Difference
from scheduler.orders import Cordon, MovesRecord, RebalanceRecord

__all__ = ["scheduler_schemas"]

_NULL: Final[Schema] = {"type": "null"}
_ANY: Final[Schema] = {"type": "object"}


def scheduler_schemas() -> dict[str, Schema]:
    """Return every named schema of these operations."""
    return {**_structs(), **_nodes(), **_rollouts(), **_policies(), **_lists(), **_explained(), **_standards()}


def _number(meaning: str = "") -> Schema:
    return {"type": "number", "minimum": 0, **({"description": meaning} if meaning else {})}


def _percent(meaning: str) -> Schema:
    return either(_number(), _NULL, meaning=f"{meaning}, in percent; null while there is nothing to take it of.")


def _time(meaning: str) -> Schema:
    return integer(f"{meaning}, in ms since the Unix epoch.")


def _or_null(schema: Schema, meaning: str) -> Schema:
    return either(schema, _NULL, meaning=meaning)


# ---------------------------------------------------------------- from the types


def _structs() -> dict[str, Schema]:
    """Return the schemas of the structs, with what their types do not say."""
    kinds = (AccessAnswer, Query, CordonRequest, RebalanceRequest, Document, Cordon, RebalanceRecord, MovesRecord)
    made = of_types((*kinds, Change, Difference, Stage, Progress))
    made["AccessQuery"] = made.pop("Query") | {"description": "What is asked, and of whom: see the parameters of GET."}
    made["MovesProgress"] = made.pop("Progress")
    made["MovesRecord"]["properties"]["progress"] = ref("MovesProgress")
    why = many(ref("Stage"), "Why these nodes, stage by stage; only for those who ask.")
    made["AccessAnswer"]["properties"]["why"] = either(why, _NULL) | {"default": None}
    return made


# ---------------------------------------------------------------- nodes


def _assigned() -> Schema:
    counts = {
        "count": integer("Clients that this scheduler sent there since it started."),
        "percent": _percent("Of all that it sent anywhere"),
        "minute_count": integer("The same of the last minute."),
        "minute_percent": _percent("The same of the last minute"),
    }
    return obj(counts, "This scheduler's part of new connections.")


def _nodes() -> dict[str, Schema]:
    node = {
        "node": text("The access node."),
        "url": text("Where operators reach it."),
        "client_url": text("Where clients reach it."),
        "region": text(),
        "carrier": text("Whose network its address is in; empty: any carrier's clients reach it equally well."),
        "version": text(),
        "arm": text("`stable`, or the name of the rollout whose canary it is."),
        "capacity": integer("The most connections that it takes; 0 where it does not say."),
        "connections": integer("As it last reported."),
        "estimate": integer("The same, with those that were sent there since."),
        "weight": integer("How many connections it may have now: its capacity times its slow start."),
        "left_out": text("Why it gets no newcomers: draining, cordoned or full; empty if it does."),
        "is_draining": yes_no(),
        "cordon": _or_null(ref("Cordon"), "Who cordoned it, and why."),
        "admitted": integer("Total of connections let in by a ticket, as far as it reports issuers."),
        "admitted_percent": _percent("This scheduler's part of them"),
        "accepted": integer("Total of connections let in before the upgrade, since it started."),
        "refused": integer("Total of those that were not."),
        "rejected": integer("Total of connect commands that failed."),
        "abnormal": integer("Total of connections that ended without a close code."),
        "loop_lag_ms": integer("How late its event loop was, the worst of the last second."),
        "resident_bytes": integer("Resident memory of its process."),
    }
    arm = {
        "nodes": integer(),
        "live": integer("Its live connections, as estimated."),
        "live_percent": _percent("Of all live connections"),
        "assigned": ref("Assigned"),
    }
    fleet = {
        "nodes": many(ref("AccessNodeReport")),
        "vanished": many(text(), "Nodes that are not registered any more, and that panic keeps."),
        "arms": by_name(obj(arm), "`stable`, and one for each rollout."),
        "share": _number("This scheduler's part of all assignments, 0 to 1, by the nodes' reports."),
        "schedulers": integer("How many schedulers are registered.", least=1),
        "is_panic": yes_no("Whether so many nodes vanished at once that it is taken for a failure of the registry."),
    }
    rebalancing = {
        "order": _or_null(ref("RebalanceRecord"), "The last order; null if there never was one."),
        "is_over": yes_no("Whether nothing of it is left to do."),
        "moves": _or_null(ref("MovesRecord"), "How the last moves of live connections got on, for whomever."),
    }
    return {
        "Assigned": _assigned(),
        "AccessNodeReport": obj(node, "An access node, as it last reported and as it is seen."),
        "AccessNodes": obj(fleet),
        "CordonedNode": obj({"node": text(), "cordon": _or_null(ref("Cordon"), "Null once it is uncordoned.")}),
        "LossAccepted": obj({"is_panic": yes_no(), "lost": many(text(), "Nodes that get no clients any more.")}),
        "Rebalancing": obj(rebalancing),
    }


# ---------------------------------------------------------------- rollouts


def _summary() -> dict[str, Schema]:
    live = {
        "connections": integer("The canary's live connections, as reported."),
        "total": integer("Those of all."),
        "percent": _percent("The canary's part"),
    }
    return {
        "name": text(),
        "version": text("Nodes that run it are the canary."),
        "revision": integer("Number of the last change.", least=1),
        "created_at": _time("When it was started"),
        "phase": text(enum=list(get_args(Phase))),
        "reason": text("Why it does not run."),
        "step": integer("From 1.", least=1),
        "steps": integer(least=1),
        "percent": _number("The wanted share of new connections, in percent."),
        "since": _time("When the phase or step began"),
        "outcome": _or_null(text(enum=list(get_args(Outcome))), "What the last analysis of this epoch came to."),
        "assigned": ref("Assigned"),
        "live": obj(live),
    }


def _rollouts() -> dict[str, Schema]:
    step = {
        "is_pause": yes_no(),
        "percent": _number(),
        "hold_ms": integer(),
        "connects_min": integer(),
        "move_per_s": _number(),
    }
    pool = {
        "nodes": integer("Nodes of its version."),
        "open_nodes": integer("Those of them that get newcomers."),
        "capacity": integer("Connections that those take which neither drain nor are cordoned."),
        "max_share_of_capacity": _number(),
    }
    wanted = {"to": text(enum=["canary", "stable"]), "per_s": _number(), "share": integer()}
    wanted["deadline"] = _or_null(integer(), "By when, in ms since the Unix epoch.")
    moves = {
        "wanted": _or_null(obj(wanted), "Which live connections should be moved now; `share` in 1/1,000 %."),
        "progress": _or_null(ref("MovesRecord"), "How that is getting on."),
    }
    rollout = {
        **_summary(),
        "all_steps": many(obj(step)),
        "held_ms": integer("How long the step was held."),
        "left_ms": _or_null(integer(), "How long it is still to be held; null once the rollout is over."),
        "connects": integer("Clients that connected to the canary in this epoch of evidence."),
        "connects_min": integer("How many must, before the step is over."),
        "failures": integer("Analyses that failed in this step."),
        "failure_limit": integer("How many make the rollout fail."),
        "checks": integer("How many checks the document has."),
        "findings": many(text(), "What the last analysis found, for people."),
        "judged_at": _or_null(integer(), "When it was made; null if none was in this epoch."),
        "next_analysis_at": _or_null(integer(), "When the next one is due."),
        "pool": obj(pool),
        "moves": obj(moves),
        "missing_lists": many(text(), "Lists that it names and nobody has written: nobody is in them."),
        "document_revision": integer("The revision that brought the document.", least=1),
        "document": text(),
        "history": many(ref("Change"), "Who changed what, the oldest first."),
    }
    unreadable = by_name(text(), "What cannot be read, and why; what was in force before stays.")
    return {
        "Rollouts": obj({"rollouts": many(obj(_summary())), "unreadable": unreadable}),
        "Rollout": obj(rollout, "A rollout with its two shares: of new connections, and of live ones."),
        "RolloutOrChecked": either(ref("Rollout"), ref("CheckedRollout")),
        "CheckedRollout": _checked("rollout"),
        "Fault": obj({"line": integer("From 1.", least=1), "message": text()}),
        "Deleted": obj({"name": text()}),
        "FlagdFlag": obj({"flags": _ANY, "left_out": many(text(), "Segments that flagd has no means for.")}),
    }


def _checked(name: str) -> Schema:
    parsed = _or_null(_ANY, "The document as it was understood.")
    return obj({"ok": yes_no(), "faults": many(ref("Fault")), name: parsed}, "What a check found.")


# ---------------------------------------------------------------- policies, lists


def _policies() -> dict[str, Schema]:
    rule = {
        "name": text(),
        "strategies": many(text(enum=sorted(get_args(Strategy)))),
        "when": _or_null(_ANY, "Null: for every request."),
    }
    policy = {
        "name": text(),
        "rules": many(obj(rule), "The first that holds decides."),
        "missing_lists": many(text(), "Lists that it names and nobody has written."),
    }
    parsed = _or_null(ref("Policy"), "Null where this version cannot read it.")
    shown = {
        "revision": integer("Number of the last change; 0: there was none."),
        "document": text("Empty for the built-in policy."),
        "policy": parsed,
        "has_shadow": yes_no(),
        "is_in_force": yes_no("Whether this scheduler goes by it already."),
        "unreadable": text("Why the last one cannot be read; empty if it can."),
        "history": many(ref("Change")),
    }
    difference = _or_null(ref("Difference"), "Since it runs at this scheduler; null while it does not.")
    return {
        "Policy": obj(policy),
        "PolicyShown": obj(shown),
        "PolicyOrChecked": either(ref("PolicyShown"), ref("CheckedPolicy")),
        "CheckedPolicy": _checked("policy"),
        "Shadow": obj({"document": text(), "policy": parsed, "difference": difference}),
        "ShadowOrChecked": either(ref("Shadow"), ref("CheckedPolicy")),
    }


def _lists() -> dict[str, Schema]:
    size = obj({"values": integer(), "used_by": many(text(), "What names it.")})
    lists = {
        "lists": by_name(size),
        "missing": many(text(), "Lists that are named and not there: nobody is in them."),
        "unreadable": by_name(text()),
    }
    return {
        "Lists": obj(lists),
        "ListShown": obj({"name": text(), "values": many(text())}),
        "ListWritten": obj({"name": text(), "values": integer("How many.")}),
        "ListValues": many(ref("Id"), "At most 400 kB in all. As text: one a line."),
    }


# ---------------------------------------------------------------- explanations


def _explained() -> dict[str, Schema]:
    names = ("region", "place", "carrier", "source")
    location = obj({name: text() for name in names}, "Where the client is, and which locator said so.")
    request = {name: text() for name in ("user", "device", "platform", "app", "address")} | {"location": location}
    placed = {"rollout": text(), "is_canary": yes_no(), "bucket": integer(least=-1), "segment": text()}
    passed = {"arm": text(), "region": text(), "why": text(enum=[why.name.lower() for why in Passed])}
    load = _or_null(_number(), "Connections per unit of its weight; null: no credit, or not compared.")
    explained: dict[str, Any] = {
        "decision": _or_null(text(), "Null for what would be decided now."),
        "age_ms": integer("How long ago it was made."),
        "request": obj(request),
        "policy": text(),
        "rule": text("The rule that decided."),
        "arm": text(),
        "region": text(),
        "picked": text("How the region was found.", enum=[picked.name.lower() for picked in Picked]),
        "carrier": text("The carrier whose nodes it was drawn from; empty: from all of the region."),
        "candidates": many(text(), "Nobody takes clients if there are none."),
        "not_before_ms": integer("How long the client has to wait for its slot, or before it asks again."),
        "placed": many(obj(placed), "How each rollout that was asked places the client."),
        "passed": many(obj(passed), "What was left for something better."),
        "drawn": many(obj({"node": text(), "load": load}), "The nodes that were drawn, in order."),
        "stages": many(ref("Stage"), "The same in words."),
    }
    return {"Explained": obj(explained)}


# ---------------------------------------------------------------- standards


def _standards() -> dict[str, Schema]:
    flag = {
        "key": text("The rollout."),
        "value": yes_no("Whether the user belongs on the canary."),
        "reason": text(enum=["TARGETING_MATCH", "SPLIT", "DEFAULT", "DISABLED"]),
        "variant": text(enum=["canary", "stable"]),
        "metadata": _ANY,
    }
    fault = {"errorCode": text(), "errorDetails": text(), "key": text()}
    asked = {"resource_names": many(text()), "version_info": text(), "type_url": text()}
    answer = {"version_info": text(), "type_url": text(), "resources": many(_ANY, "ClusterLoadAssignments.")}
    group = {"targets": many(text("host:port")), "labels": by_name(text())}
    context = obj({"targetingKey": text("The user.")}) | {"additionalProperties": True}
    return {
        "DiscoveryRequest": obj(asked, "As far as it matters.", optional=("version_info", "type_url")),
        "DiscoveryResponse": obj(answer),
        "TargetGroups": many(obj(group)),
        "OfrepContext": obj({"context": context}),
        "OfrepFlag": obj(flag),
        "OfrepFlags": obj({"flags": many(ref("OfrepFlag"))}),
        "OfrepFault": obj(fault, optional=("key",)),
    }
