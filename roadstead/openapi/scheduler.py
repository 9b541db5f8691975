"""The operations of the scheduler: for clients and backends, for operators, and for other systems by their standards.

Decides nothing; what the bodies look like is in `scheduler_schemas`.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

from base.errors import Code
from base.http import Role
from base.ids import ID_BYTES_MAX
from roadstead.openapi.operations import Operation, query
from roadstead.openapi.scheduler_schemas import scheduler_schemas
from roadstead.openapi.schemas import Schema, integer, ref, text
from scheduler.core.rollout_machine import Order
from scheduler.lists_api import NAME
from scheduler.recorder import DECISIONS_MAX, FOR_MS, FOR_MS_MAX

__all__ = ["SCHEDULER_OPERATIONS", "scheduler_schemas"]

YAML = "application/yaml"
_Method: TypeAlias = Literal["get", "post", "put", "delete"]
_ORDERED = (Code.BAD_REQUEST, Code.CONFLICT, Code.STORE_UNAVAILABLE)


def _operation(
    method: _Method,
    path: str,
    name: str,
    summary: str,
    answer: str | Schema,
    **more: Any,
) -> Operation:
    """Return an operation whose key is a viewer's if it reads, and an operator's otherwise, unless more says so."""
    least = Role.VIEWER if method == "get" else Role.OPERATOR
    given: dict[str, Any] = {"key": least, **more}
    return Operation(
        method=method,
        path=path,
        name=name,
        served_by="scheduler",
        summary=summary,
        answer=ref(answer) if isinstance(answer, str) else answer,
        **given,
    )


def _in_path(name: str, meaning: str, **schema: Any) -> Schema:
    return {"name": name, "in": "path", "required": True, "description": meaning, "schema": text(**schema)}


# ---------------------------------------------------------------- clients and backends

_USER = query("user", ref("Id"), "The user; required with an API key. With a user token the token's, or left out.")
_ID_OR_NONE = text(maxLength=ID_BYTES_MAX, default="")
_DEVICE = query(
    "device", _ID_OR_NONE, "The client's device, one of the user's; sessions call one that is not named `default`."
)
_PLATFORM = query("platform", _ID_OR_NONE, "What the client runs on; `unknown` to sessions if it is not named.")
_APP = query("app", _ID_OR_NONE, "Version of the client's application.")
_REGION = query("region", _ID_OR_NONE, "The region where the client believes to be.")
_ADDRESS = query("address", text(), "The client's IP address; only with an API key. A client's is seen.")
_RTT = query("rtt", text(examples=["sh:23,bj:40"]), "Round-trip times that the client measured, in ms by region.")
_WHY = query(
    "why", text(), "The answer says why these nodes; only with an API key. `0` and `false`: not.", allowEmptyValue=True
)
_ACCESS_ERRORS = (Code.BAD_REQUEST, Code.TOKEN_EXPIRED, Code.NOT_READY)
_ASKED_BY = "Asked by a client with its user token, or by a backend with an API key and `user`."

_CLIENTS: tuple[Operation, ...] = (
    _operation(
        "get",
        "/v1/access",
        "getAccess",
        "Access nodes to connect to, and a ticket",
        "AccessAnswer",
        description=f"{_ASKED_BY} Unknown parameters are refused.",
        key=Role.BACKEND,
        user_token=True,
        parameters=(_USER, _DEVICE, _PLATFORM, _APP, _REGION, _ADDRESS, _RTT, _WHY),
        errors=_ACCESS_ERRORS,
    ),
    _operation(
        "post",
        "/v1/access",
        "postAccess",
        "The same, with what is asked in the body",
        "AccessAnswer",
        description=f"{_ASKED_BY} What the body names does not stand in logs of URLs.",
        key=Role.BACKEND,
        user_token=True,
        body="AccessQuery",
        errors=_ACCESS_ERRORS,
    ),
)

# ---------------------------------------------------------------- nodes, rebalancing

_NODE = _in_path("node", "The access node.", minLength=1)


def _rebalance(what: str, summary: str) -> Operation:
    path, name = f"/v1/admin/access/rebalance/{what}", f"{what}Rebalance"
    return _operation("post", path, name, summary, "Rebalancing", errors=(*_ORDERED, Code.NOT_FOUND))


_NODES: tuple[Operation, ...] = (
    _operation(
        "get", "/v1/admin/access/nodes", "getAccessNodes", "The access nodes and arms, as they are seen", "AccessNodes"
    ),
    _operation(
        "post",
        "/v1/admin/access/nodes/{node}/cordon",
        "cordonAccessNode",
        "Send no newcomers to an access node",
        "CordonedNode",
        description="Its clients stay. A cordon outlasts the node's process.",
        parameters=(_NODE,),
        body="CordonRequest",
        body_required=False,
        errors=(Code.BAD_REQUEST, Code.NOT_FOUND, Code.STORE_UNAVAILABLE),
    ),
    _operation(
        "post",
        "/v1/admin/access/nodes/{node}/uncordon",
        "uncordonAccessNode",
        "Send newcomers to an access node again",
        "CordonedNode",
        parameters=(_NODE,),
        errors=(Code.NOT_FOUND, Code.STORE_UNAVAILABLE),
    ),
    _operation(
        "post",
        "/v1/admin/access/panic/accept",
        "acceptLoss",
        "Take the access nodes that vanished at once for dead",
        "LossAccepted",
        description="`conflict` where this scheduler is not in panic. Each scheduler that is has to be told.",
        errors=(Code.CONFLICT,),
    ),
    _operation(
        "get",
        "/v1/admin/access/rebalance",
        "getRebalance",
        "The last order to even out live connections, and how moves are getting on",
        "Rebalancing",
    ),
    _operation(
        "post",
        "/v1/admin/access/rebalance",
        "rebalance",
        "Even out live connections, with the fewest moves",
        "Rebalancing",
        description="Answered when it is ordered; `conflict` while another order is carried out.",
        body="RebalanceRequest",
        body_required=False,
        errors=_ORDERED,
    ),
    _rebalance("pause", "Tell nobody more to go"),
    _rebalance("resume", "Go on, also after a pause that it made itself"),
    _rebalance("abort", "Tell nobody more to go, for good"),
)

# ---------------------------------------------------------------- rollouts, policies, lists

_NAME = _in_path("name", "The rollout.", minLength=1)
_VALIDATE = query(
    "validate",
    text(),
    "If there, the document is only checked, for which a viewer's key is enough.",
    allowEmptyValue=True,
)
_DOCUMENT_ERRORS = (*_ORDERED, Code.TOO_LARGE)

_ROLLOUTS: tuple[Operation, ...] = (
    _operation(
        "get", "/v1/admin/rollouts", "getRollouts", "The rollouts, in the order in which they are asked", "Rollouts"
    ),
    _operation(
        "post",
        "/v1/admin/rollouts",
        "createRollout",
        "Start a rollout, or a new revision of one that is over",
        "RolloutOrChecked",
        description="A bad document is refused with every fault and its line, in `detail.faults`.",
        parameters=(_VALIDATE,),
        body="Document",
        text_body=YAML,
        errors=_DOCUMENT_ERRORS,
    ),
    _operation(
        "get",
        "/v1/admin/rollouts/{name}",
        "getRollout",
        "Everything about a rollout",
        "Rollout",
        parameters=(_NAME,),
        errors=(Code.NOT_FOUND,),
    ),
    _operation(
        "delete",
        "/v1/admin/rollouts/{name}",
        "deleteRollout",
        "Forget a rollout that is over",
        "Deleted",
        parameters=(_NAME,),
        errors=(Code.NOT_FOUND, Code.CONFLICT, Code.STORE_UNAVAILABLE),
    ),
    _operation(
        "post",
        "/v1/admin/rollouts/{name}/{order}",
        "orderRollout",
        "Go to the next step, pause, resume, promote or abort",
        "Rollout",
        parameters=(_NAME, _in_path("order", "What to do.", enum=list(get_args(Order)))),
        errors=(Code.NOT_FOUND, Code.CONFLICT, Code.STORE_UNAVAILABLE),
    ),
    _operation(
        "get",
        "/v1/admin/rollouts/{name}/flagd",
        "getRolloutFlag",
        "A rollout as a flag definition of flagd",
        "FlagdFlag",
        parameters=(_NAME,),
        errors=(Code.NOT_FOUND,),
    ),
)

_POLICIES: tuple[Operation, ...] = (
    _operation(
        "get",
        "/v1/admin/policy",
        "getPolicy",
        "The policy in force, and its history",
        "PolicyShown",
        errors=(Code.CONFLICT, Code.STORE_UNAVAILABLE),
    ),
    _operation(
        "put",
        "/v1/admin/policy",
        "putPolicy",
        "Decide by this policy",
        "PolicyOrChecked",
        description="An empty document is the built-in policy. Faults are in `detail.faults`.",
        parameters=(_VALIDATE,),
        body="Document",
        text_body=YAML,
        errors=_DOCUMENT_ERRORS,
    ),
    _operation(
        "get",
        "/v1/admin/policy/shadow",
        "getShadow",
        "The shadow policy, and how it differs",
        "Shadow",
        errors=(Code.NOT_FOUND, Code.CONFLICT, Code.STORE_UNAVAILABLE),
    ),
    _operation(
        "put",
        "/v1/admin/policy/shadow",
        "putShadow",
        "Evaluate this policy beside the one in force, and act on nothing of it",
        "ShadowOrChecked",
        parameters=(_VALIDATE,),
        body="Document",
        text_body=YAML,
        errors=_DOCUMENT_ERRORS,
    ),
    _operation(
        "delete",
        "/v1/admin/policy/shadow",
        "deleteShadow",
        "End the shadow policy",
        "PolicyShown",
        errors=(Code.NOT_FOUND, Code.CONFLICT, Code.STORE_UNAVAILABLE),
    ),
)

_LIST = _in_path("name", "The list.", pattern=NAME)
_LISTS: tuple[Operation, ...] = (
    _operation("get", "/v1/admin/lists", "getLists", "The lists that conditions name", "Lists"),
    _operation(
        "get",
        "/v1/admin/lists/{name}",
        "getList",
        "The values of a list",
        "ListShown",
        parameters=(_LIST,),
        errors=(Code.BAD_REQUEST, Code.NOT_FOUND, Code.STORE_UNAVAILABLE),
    ),
    _operation(
        "put",
        "/v1/admin/lists/{name}",
        "putList",
        "Write a list anew",
        "ListWritten",
        parameters=(_LIST,),
        body="ListValues",
        text_body="text/plain",
        errors=(Code.BAD_REQUEST, Code.TOO_LARGE, Code.STORE_UNAVAILABLE),
    ),
    _operation(
        "delete",
        "/v1/admin/lists/{name}",
        "deleteList",
        "Forget a list that nothing names",
        "Deleted",
        parameters=(_LIST,),
        errors=(Code.BAD_REQUEST, Code.NOT_FOUND, Code.CONFLICT, Code.STORE_UNAVAILABLE),
    ),
)

# ---------------------------------------------------------------- looking into decisions

_DECISION = query("decision", text(examples=["0123456789-1f"]), "The id of a late decision; goes with nothing else.")
_LOOKING: tuple[Operation, ...] = (
    _operation(
        "get",
        "/v1/admin/explain",
        "explain",
        "What would be decided for a client now, or why a decision was made",
        "Explained",
        description="Nothing is counted, and nobody is sent anywhere.",
        parameters=(
            _DECISION,
            _USER,
            _DEVICE | {"schema": ref("Id")},
            _PLATFORM | {"schema": ref("Id")},
            _APP,
            _REGION,
            _ADDRESS,
        ),
        errors=(Code.BAD_REQUEST, Code.NOT_FOUND),
    ),
    _operation(
        "get",
        "/v1/admin/recording",
        "record",
        "All that the scheduler is told and decides from now on, as it comes",
        text(),
        description="One at a time; not in panic. HEAD is not answered.",
        key=Role.OPERATOR,
        parameters=(
            query("for_ms", integer(least=1, most=FOR_MS_MAX, default=FOR_MS), "How long."),
            query("decisions_max", integer(least=1, most=DECISIONS_MAX), "End it after so many decisions."),
        ),
        answer_type="application/octet-stream",
        answer_meaning="For `roadstead replay`. A reader that is too slow gets one without its last chunk.",
        errors=(Code.BAD_REQUEST, Code.CONFLICT),
    ),
)

# ---------------------------------------------------------------- standards

_FLAG_ERRORS = {400: ("The context is not good; the protocol's own shape.", "OfrepFault")}
_STANDARDS: tuple[Operation, ...] = (
    _operation(
        "post",
        "/v3/discovery:endpoints",
        "discoverEndpoints",
        "Envoy's endpoint discovery (EDS), REST and JSON",
        "DiscoveryResponse",
        key=Role.VIEWER,
        body="DiscoveryRequest",
        unchanged="What has the `version_info` of the request is all there is.",
        errors=(Code.BAD_REQUEST, Code.NOT_READY),
    ),
    _operation(
        "get",
        "/v1/discovery/prometheus",
        "discoverTargets",
        "Prometheus' HTTP service discovery",
        "TargetGroups",
        parameters=(query("service", ref("Id") | {"default": "access"}, "Whose instances."),),
        errors=(Code.BAD_REQUEST, Code.NOT_READY, Code.STORE_UNAVAILABLE),
    ),
    _operation(
        "post",
        "/ofrep/v1/evaluate/flags",
        "evaluateFlags",
        "All rollouts as feature flags, of a user (OFREP)",
        "OfrepFlags",
        key=Role.BACKEND,
        body="OfrepContext",
        unchanged="The answer has the ETag that `If-None-Match` names.",
        own_errors=_FLAG_ERRORS,
    ),
    _operation(
        "post",
        "/ofrep/v1/evaluate/flags/{key}",
        "evaluateFlag",
        "A rollout as a feature flag, of a user (OFREP)",
        "OfrepFlag",
        key=Role.BACKEND,
        parameters=(_in_path("key", "The rollout.", minLength=1),),
        body="OfrepContext",
        own_errors={**_FLAG_ERRORS, 404: ("There is no such rollout; the protocol's own shape.", "OfrepFault")},
    ),
)

SCHEDULER_OPERATIONS: tuple[Operation, ...] = (
    *_CLIENTS,
    *_NODES,
    *_ROLLOUTS,
    *_POLICIES,
    *_LISTS,
    *_LOOKING,
    *_STANDARDS,
)
