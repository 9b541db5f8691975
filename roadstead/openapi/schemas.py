"""What the bodies of the HTTP APIs look like, as the named schemas of the OpenAPI document.

Decides where each schema comes from. A body that is a struct gets its schema from the type, and only the limits that
its handler checks are written here. Answers that handlers put together from dicts are written here by hand, and a test
holds answers of a running system against them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, get_args

import msgspec

from base.errors import Code, Retry
from base.ids import ID_BYTES_MAX
from status.api import LOOKUP_USERS_MAX, State, UserStatus
from status.core.events import EventKind
from status.core.partitions import PARTITIONS, Stage
from status.lookup_api import StatusesRequest
from status.resize import WEIGHT_MAX, ResizeRequest

__all__ = [
    "REF",
    "Schema",
    "by_name",
    "either",
    "integer",
    "many",
    "obj",
    "of_types",
    "ref",
    "schemas",
    "text",
    "yes_no",
]

Schema = dict[str, Any]

REF = "#/components/schemas/{name}"
BODIES = (StatusesRequest, ResizeRequest)
_USER_STATES = sorted(get_args(msgspec.structs.fields(UserStatus)[0].type))
_NULL: Schema = {"type": "null"}
_YES_NO: Schema = {"type": "boolean"}


def schemas() -> dict[str, Schema]:
    """Return every named schema."""
    return {**_bodies(), **_common(), **_statuses(), **_events(), **_cluster()}


def ref(name: str) -> Schema:
    """Return a reference to a named schema."""
    return {"$ref": REF.format(name=name)}


def text(meaning: str = "", **more: Any) -> Schema:
    """Return the schema of a text."""
    return {"type": "string", **_meant(meaning), **more}


def integer(meaning: str = "", least: int | None = 0, most: int | None = None, **more: Any) -> Schema:
    """Return the schema of a whole number, from 0 up unless told otherwise."""
    bounds = {} if least is None else {"minimum": least}
    if most is not None:
        bounds["maximum"] = most
    return {"type": "integer", **bounds, **_meant(meaning), **more}


def _meant(meaning: str) -> Schema:
    return {"description": meaning} if meaning else {}


def _time(meaning: str) -> Schema:
    return integer(f"{meaning}, in ms since the Unix epoch.")


def yes_no(meaning: str = "") -> Schema:
    """Return the schema of a yes or no."""
    return {"type": "boolean", **_meant(meaning)}


def either(*kinds: Schema, meaning: str = "") -> Schema:
    """Return the schema of what is one of several kinds."""
    return {"anyOf": list(kinds), **_meant(meaning)}


def many(items: Schema, meaning: str = "", **more: Any) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "items": items, **_meant(meaning), **more}


def by_name(values: Schema, meaning: str = "") -> Schema:
    """Return the schema of an object with names that are not known before."""
    return {"type": "object", "additionalProperties": values, **_meant(meaning)}


def obj(properties: dict[str, Schema], meaning: str = "", *, optional: tuple[str, ...] = ()) -> Schema:
    """Return the schema of an object with known fields, required but for some."""
    required = sorted(set(properties) - set(optional))
    return {"type": "object", "properties": properties, "required": required, **_meant(meaning)}


# ---------------------------------------------------------------- from the types


def of_types(types: Iterable[type]) -> dict[str, Schema]:
    """Return the schemas of structs, by their names."""
    _, made = msgspec.json.schema_components(types, ref_template=REF)
    for schema in made.values():
        if "description" in schema:
            schema["description"] = inspect.cleandoc(schema["description"])
    return made


def _bodies() -> dict[str, Schema]:
    """Return the schemas of the structs, with the limits that their handlers check."""
    made = of_types(BODIES)
    lookup, resize = (made[name]["properties"] for name in ("StatusesRequest", "ResizeRequest"))
    lookup["users"] |= {"items": ref("Id"), "maxItems": LOOKUP_USERS_MAX}
    lookup["viewer"] = either(ref("Id"), _NULL) | {"default": None}
    weight = {"minimum": 1, "maximum": WEIGHT_MAX}
    resize["to"]["anyOf"][0] |= {"minimum": 1}
    resize["to"] |= _meant("Grow or shrink to so many nodes. Not together with `weights`, `add` or `remove`.")
    resize["weights"]["anyOf"][0]["additionalProperties"] |= weight
    resize["weights"] |= _meant("All nodes that shall own partitions, with their weights. Goes with nothing else.")
    resize["add"] |= _meant("Status nodes to add.")
    resize["remove"] |= _meant("Status nodes to remove.")
    resize["weight"]["additionalProperties"] |= weight
    resize["weight"] |= _meant("New weights of nodes that own partitions, or are added.")
    resize["plan"] |= _meant("Say what would be done, and do nothing.")
    return made


# ---------------------------------------------------------------- by hand


def _common() -> dict[str, Schema]:
    codes = [f"- `{code.label}` ({code.number}, HTTP {code.http_status}): {code.meaning}" for code in Code]
    error = obj(
        {
            "code": integer("The hundred says what to do, for unknown codes as well.", enum=[c.number for c in Code]),
            "name": text("\n".join(codes), enum=[code.label for code in Code]),
            "retry": text("What the caller may do next.", enum=[retry.value for retry in Retry]),
            "message": text("For people."),
            "detail": {"type": "object", "description": "The fields that the code promises; absent without any."},
        },
        optional=("detail",),
    )
    return {
        "Error": obj({"error": error}, "Every failure has this shape."),
        "Id": text("1 to 128 bytes of UTF-8 without control characters.", minLength=1, maxLength=ID_BYTES_MAX),
        "Health": obj({"status": text(const="ok")}),
        "Readiness": obj({"status": text(enum=["ready", "not ready"])}),
        "Statistics": obj({"node": text()}, "The node's name, and a snapshot that each role has of its own.")
        | {"additionalProperties": True},
    }


def _session() -> dict[str, Schema]:
    return {
        "session": text("The session's id."),
        "device": text(),
        "platform": text(),
        "node": text("The access node that holds it."),
        "state": text(enum=sorted(get_args(State))),
        "since": _time("When it was opened"),
        "last_active": _time("When its client was last active, 0 if it never said"),
    }


def _statuses() -> dict[str, Schema]:
    last_seen = either(
        _time("A time"), _NULL, meaning="When everybody could see the user last; null while all can, or if unknown."
    )
    shown = {
        "user": ref("Id"),
        "state": text("`unknown` is said while nobody can tell; it never means offline.", enum=_USER_STATES),
        "last_seen": last_seen,
        "sessions": many(ref("Session"), "Every open session; absent in what a viewer sees."),
    }
    return {
        "Session": obj(_session(), "One open session."),
        "UserStatus": obj(shown, "A user's status.", optional=("sessions",)),
        "UserStatuses": obj({"statuses": many(ref("UserStatus"), "One a user, in the order asked.")}),
        "OnlineCount": obj(_count(), "How many are online: those of whom a lookup would say it."),
        "SessionPage": obj(_session_page(), "A page of the sessions behind an access node."),
    }


def _count() -> dict[str, Schema]:
    each = {
        "node": text(),
        "users": integer("Users with a session there; who has sessions behind two access nodes is one of each."),
        "sessions": integer(),
    }
    return {
        "epoch": integer("The number of the partition table by which it was counted."),
        "is_exact": _YES_NO | _meant("Whether all partitions were counted completely."),
        "unknown": many(text(), "Status nodes that did not answer: nobody of their partitions is counted."),
        "partitions": integer("How many partitions were counted completely.", most=PARTITIONS),
        "users": integer(),
        "sessions": integer(),
        "access_nodes": many(obj(each), "Those that are registered, and those that have sessions."),
    }


def _session_page() -> dict[str, Schema]:
    partition = integer(most=PARTITIONS - 1)
    return {
        "node": text("The access node."),
        "is_registered": _YES_NO | _meant("Whether there is an access node of that name now."),
        "sessions": many(ref("UserSession"), "A user's sessions follow each other."),
        "cursor": either(text(), _NULL, meaning="Hand it back for the next page; null at the end."),
        "missing_partitions": many(
            partition, "Partitions within the page that are not, or not completely, listed in it."
        ),
        "unknown": many(text(), "Status nodes that did not answer."),
    }


def _events() -> dict[str, Schema]:
    placed = {
        "partition": integer(most=PARTITIONS - 1),
        "user_seq": text("Grows within a partition; compare it as text."),
    }
    session = {"user": ref("Id"), **_session()}
    event = {
        "kind": text(enum=sorted(get_args(EventKind))),
        **placed,
        "at": _time("When the status node heard of it"),
        **session,
    }
    sessions = many(ref("UserSession"), "All that is open in the partition; sessions that are not in it are gone.")
    return {
        "UserSession": obj(session, "An open session and whose it is."),
        "SessionEvent": obj(event, "One thing that happened to a session."),
        "Resync": obj({"kind": text(const="resync"), **placed, "sessions": sessions}, "A partition, said anew."),
        "Event": either(ref("SessionEvent"), ref("Resync")),
        "EventPage": obj(
            {
                "events": many(ref("Event")),
                "cursor": text("Hand it back for what comes next; it is good at every status node."),
                "is_at_end": _YES_NO | _meant("Whether nothing more is to be read at once."),
                "missing": many(text(), "Status nodes that did not answer in time; the cursor waits for them."),
            }
        ),
    }


# ---------------------------------------------------------------- the status cluster


def _cluster() -> dict[str, Schema]:
    epoch = {"epoch": integer("The table's number.")}
    move = {"partition": integer(most=PARTITIONS - 1), "source": text(), "target": text()}
    stage = text(enum=[stage.value for stage in Stage])
    owners = many(
        integer(),
        "By partition, its owner's place in `nodes`.",
        minItems=PARTITIONS,
        maxItems=PARTITIONS,
    )
    table = {
        **epoch,
        "nodes": many(ref("NodeShare"), "`wanted_partitions` is there while a resize is under way."),
        "moves": many(obj({**move, "stage": stage})),
        "owners": owners,
    }
    life = {"node": text(), "incarnation": integer(), "entries": integer(), "xor": text(pattern="^[0-9a-f]{16}$")}
    digest = {
        **epoch,
        "is_exact": _YES_NO | _meant("Whether every partition was counted, and once."),
        "unknown": many(text(), "Status nodes that did not answer."),
        "access_nodes": many(obj(life, "What is held of one life of an access node.")),
    }
    return {
        "NodeShare": _node_share(),
        "PartitionTable": obj(table),
        "Digest": obj(digest),
        "ResizeProgress": obj(_progress(), "How far the table is from what is wanted."),
        "AbortResult": obj({**_progress(), "rolled_back": integer("How many moves are rolled back.")}),
        "ResizePlan": obj(_plan(), "The moves that lead from the table to these weights."),
    }


def _node_share() -> Schema:
    share = {
        "node": text(),
        "weight": integer("0 for a node that leaves.", most=WEIGHT_MAX),
        "partitions": integer("How many it owns.", most=PARTITIONS),
        "wanted_partitions": integer("How many it shall own.", most=PARTITIONS),
        "is_registered": _YES_NO | _meant("Whether it is there now; only in a resize's progress."),
    }
    return obj(share, optional=("wanted_partitions", "is_registered"))


def _weights(meaning: str) -> Schema:
    return by_name(integer(least=1, most=WEIGHT_MAX), meaning)


def _progress() -> dict[str, Schema]:
    return {
        "epoch": integer("The table's number."),
        "leader": either(text(), _NULL, meaning="The status node that leads; null if none does now."),
        "is_paused": _YES_NO,
        "is_done": _YES_NO | _meant("Whether nothing is left to do; nodes that left may be stopped then."),
        "weights": _weights("The wanted nodes and their weights."),
        "nodes": many(ref("NodeShare")),
        "moves": obj({stage.value: integer() for stage in Stage}, "How many moves are in each stage."),
        "left": integer("Partitions that are not yet where they shall be."),
        "spares": many(text(), "Status nodes that are there and shall own nothing."),
    }


def _plan() -> dict[str, Schema]:
    unknown = either(integer(), _NULL, meaning="Null where the source did not answer.")
    pair = {"source": text(), "target": text(), "partitions": integer(), "sessions": unknown, "bytes": unknown}
    return {
        "epoch": integer("The table's number."),
        "weights": _weights("The nodes and weights that were asked for."),
        "before": _weights("Those that were wanted before."),
        "nodes": many(ref("NodeShare")),
        "moves": many(obj(pair, "What goes from one node to another.")),
        "partitions": integer("How many move."),
        "minimum": integer("How many must move at least."),
        "sessions": integer("How many sessions move, of the nodes that answered."),
        "bytes": integer("About how much they take."),
        "unknown": many(text(), "Status nodes that did not answer."),
        "expected_s": {"type": "number", "minimum": 0, "description": "A rough expectation."},
        "is_planned_only": _YES_NO,
        "is_paused": _YES_NO,
    }
