"""The operations of the message services, and what their bodies look like.

Decides nothing about the methods: they, their arguments and their results are those of the table that clients' calls go
by as well. Of results that hold publications the table does not say what those look like; that is written here by hand.
"""

from __future__ import annotations

from typing import Any

import msgspec

from base.errors import Code
from base.http import Role
from base.ids import ID_BYTES_MAX
from im.admin import ShardMove, ShardsView
from im.core.arguments import KIND_BYTES_MAX, MENTIONS_MAX
from im.core.groups import SETTINGS
from im.core.shards import SHARDS_MAX
from im.http import LIMIT_MAX, WAIT_MS_MAX, ConversationChange, OfflinePage, ServerSend
from im.methods import METHODS, Method
from im.shard import OFFSET_MAX
from roadstead.openapi.operations import Operation, query
from roadstead.openapi.schemas import Schema, either, integer, many, obj, of_types, ref, text

__all__ = ["MESSAGE_OPERATIONS", "message_schemas"]

_NULL: Schema = {"type": "null"}
_ENTRIES_MAX = 1_000
_USER = {"name": "user", "in": "path", "required": True, "description": "The user.", "schema": ref("Id")}
_CID = {
    "name": "cid",
    "in": "path",
    "required": True,
    "description": "The conversation.",
    "schema": text(pattern="^[1-9][0-9]{0,18}$"),
}

_READ_ERRORS = (Code.BAD_REQUEST, Code.OVERLOADED, Code.STORE_UNAVAILABLE)
_WRITE_ERRORS = (*_READ_ERRORS, Code.DRAINING, Code.UNAVAILABLE)
_ABOUT_MESSAGE = (Code.NOT_MEMBER, Code.DISSOLVED, Code.NOT_FOUND, Code.CONFLICT)
_ERRORS: dict[str, tuple[Code, ...]] = {
    "send": (*_ABOUT_MESSAGE, Code.LIMIT_EXCEEDED, Code.MUTED),
    "edit": (*_ABOUT_MESSAGE, Code.LIMIT_EXCEEDED, Code.MUTED, Code.TOO_LATE, Code.RECALLED),
    "recall": (*_ABOUT_MESSAGE, Code.TOO_LATE, Code.RECALLED),
    "typing": (Code.NOT_MEMBER,),
    "sync": (Code.POSITION_LOST,),
    "history": (Code.NOT_MEMBER,),
    "search": (Code.NOT_MEMBER, Code.NOT_READY, Code.DEADLINE_EXCEEDED),
    "conversations": (),
    "unread": (),
    "mark": (Code.NOT_MEMBER,),
    "set": (Code.NOT_MEMBER,),
    "receipts": (Code.NOT_MEMBER, Code.NOT_FOUND),
    "members": (Code.NOT_MEMBER,),
    "group_create": (Code.CONFLICT, Code.GROUP_FULL),
    "group_change": (Code.NOT_MEMBER, Code.DISSOLVED, Code.GROUP_FULL, Code.NOT_FOUND),
}
"""Beside those of all methods that read, or change something. Quotas are for clients, not for backends."""


def _call(method: Method) -> Operation:
    arguments = method.arguments
    results = [ref(one.__name__) for one in method.results]
    return Operation(
        method="post",
        path=f"/v1/users/{{user}}/im/{method.name}",
        name="im" + method.name.title().replace("_", ""),
        served_by="im",
        summary=method.summary.rstrip("."),
        description=f"What clients call as `im.{method.name}`, for a user.",
        key=Role.BACKEND,
        parameters=(_USER,),
        body=arguments.__name__,
        body_required=any(field.required for field in msgspec.structs.fields(arguments)),
        answer=either(*results) if len(results) > 1 else results[0],
        errors=(*(_WRITE_ERRORS if method.cost == "send" else _READ_ERRORS), *_ERRORS[method.name]),
    )


_SHARD = {
    "name": "shard",
    "in": "path",
    "required": True,
    "description": "The shard's number.",
    "schema": integer(most=SHARDS_MAX - 1),
}

MESSAGE_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="get",
        path="/v1/admin/im/shards",
        name="getShards",
        served_by="im",
        summary="See which process has which shard",
        description="The table as this process has it, its own shards, and its last move of one.",
        key=Role.VIEWER,
        answer=ref("ShardsView"),
        errors=(Code.UNAVAILABLE,),
    ),
    Operation(
        method="post",
        path="/v1/admin/im/shards/{shard}/move",
        name="moveShard",
        served_by="im",
        summary="Move a shard of this process to another one",
        description="Answered when it has begun; what becomes of it is in `GET /v1/admin/im/shards`, in `move`.",
        key=Role.OPERATOR,
        parameters=(_SHARD,),
        body="ShardMove",
        answer=ref("ShardsView"),
        errors=(Code.BAD_REQUEST, Code.NOT_FOUND, Code.CONFLICT, Code.UNAVAILABLE, Code.STORE_UNAVAILABLE),
    ),
    Operation(
        method="post",
        path="/v1/messages",
        name="sendMessage",
        served_by="im",
        summary="Send a message for a user",
        description="Answered when it is durable. The same `client_msg_id` makes a retry harmless.",
        key=Role.BACKEND,
        body="ServerSend",
        answer=either(ref("SendResult"), ref("QueuedResult")),
        errors=(*_WRITE_ERRORS, *_ERRORS["send"]),
    ),
    Operation(
        method="get",
        path="/v1/users/{user}/timeline",
        name="getTimeline",
        served_by="im",
        summary="What a user was told after an offset",
        key=Role.BACKEND,
        parameters=(
            _USER,
            query("since", integer(most=OFFSET_MAX, default=0), "The offset that was read last."),
            query(
                "limit",
                integer(least=1, most=_ENTRIES_MAX, default=100),
                "Most entries of the page. It has no more than `im.sync_entries_max`, and is shorter if they are long.",
            ),
            query("epoch", text(default=""), "What the offset is of, if that is known."),
        ),
        answer=ref("SyncResult"),
        errors=(*_READ_ERRORS, *_ERRORS["sync"]),
    ),
    *map(_call, METHODS),
    Operation(
        method="post",
        path="/v1/conversations/{cid}/changes",
        name="changeConversation",
        served_by="im",
        summary="Change a group without being in it, or a conversation's strategy",
        description="As `im.group_change`, with all rights. The action `fan_out` needs the role `operator`.",
        key=Role.BACKEND,
        parameters=(_CID,),
        body="ConversationChange",
        answer=ref("GroupView"),
        errors=(*_WRITE_ERRORS, *_ERRORS["group_change"]),
    ),
    Operation(
        method="get",
        path="/v1/offline",
        name="getOffline",
        served_by="im",
        summary="Messages that found their receivers offline",
        description="For push notifications. Of users whose shards this process has: read each process of the message"
        " services, at its own address and with a cursor of its own. In order, from a cursor on; without what was"
        " muted, read or recalled. A page without items may be followed by one that has some.",
        key=Role.BACKEND,
        parameters=(
            query("cursor", text(default=""), "What its last page gave; empty: the oldest item that is kept."),
            query("limit", integer(least=1, most=LIMIT_MAX, default=100), "Most items to look at."),
            query("wait_ms", integer(most=WAIT_MS_MAX, default=0), "How long to wait rather than say: nothing."),
        ),
        answer=ref("OfflinePage"),
        errors=_READ_ERRORS,
    ),
)


def message_schemas() -> dict[str, Schema]:
    """Return the named schemas of the message services."""
    structs = [one for method in METHODS for one in (method.arguments, *method.results)]
    made = of_types(dict.fromkeys([*structs, ServerSend, ConversationChange, OfflinePage, ShardMove, ShardsView]))
    fields = {name: schema["properties"] for name, schema in made.items()}
    ids = many(ref("Id"))
    for properties in fields.values():
        for name in properties.keys() & {"client_msg_id", "from", "peer", "user"}:
            properties[name] = ref("Id")
        for name in properties.keys() & {"mentions", "users", "readers"}:
            properties[name] |= ids
        if "body" in properties:
            properties["body"] = {"description": "Any JSON value, of at most `im.body_bytes_max` bytes as it is sent."}
        if "mentions" in properties:
            properties["mentions"]["maxItems"] = MENTIONS_MAX
        if "entries" in properties:
            properties["entries"] |= many(ref("Publication"))
    for name in ("Send", "ServerSend"):
        made[name]["oneOf"] = [_given("to"), _given("cid")]
        fields[name]["type"] |= {
            "minLength": 1,
            "maxLength": KIND_BYTES_MAX,
            "description": f"At most {KIND_BYTES_MAX} bytes of UTF-8, all printable.",
        }
        fields[name]["to"] |= {"maxLength": ID_BYTES_MAX, "description": "The user to send to; or give `cid`."}
        fields[name]["cid"] |= {
            "pattern": "^([1-9][0-9]{0,18})?$",
            "description": "The conversation to send into; or give `to`.",
        }
    fields["CreateGroupArguments"]["members"] |= ids
    fields["CreateGroupArguments"]["settings"] = _settings()
    for properties in (fields["ChangeGroupArguments"], fields["ConversationChange"]):
        properties["settings"]["description"] = "For the action `settings`, as when a group is made."
    fields["SyncResult"]["entries"] |= many(ref("TimelineEntry"))
    fields["ConversationView"]["last"] |= either(ref("Publication"), _NULL)
    fields["OfflineItem"]["message"] = ref("Publication")
    return made | {
        "TimelineEntry": obj({"offset": integer(least=1), "data": ref("Publication")}),
        "Publication": _publication(),
    }


def _given(name: str) -> Schema:
    return {"required": [name], "properties": {name: {"minLength": 1}}}


def _settings() -> Schema:
    values = {name: text(enum=list(values)) for name, values in SETTINGS.items()}
    return obj(values, optional=tuple(values)) | {"additionalProperties": False, "default": {}}


def _publication() -> Schema:
    entry: dict[str, Any] = {
        "kind": text(
            "An entry of a conversation, or a note about the user alone.",
            enum=["message", "edit", "recall", "group", "read", "settings", "failure"],
        ),
        "mid": text("The message's id, as text: it does not fit every JSON parser's numbers. `0` for a note."),
        "cid": text("The conversation's id."),
        "seq": integer("The entry's number in its conversation; 0 for a note."),
        "cseq": integer("How many messages the conversation has up to this entry."),
        "from": text("Who said it; empty for the operator."),
        "device": text("The sender's device, `server` for what a backend sent."),
        "to": text("The other user of a single conversation; empty in a group."),
        "client_msg_id": text("The sender's key; empty where there is none."),
        "type": text("The application's type of a message."),
        "body": {"description": "The JSON value that was sent, or what the services say; null once it was recalled."},
        "at": integer("When it was taken, in ms since the Unix epoch."),
        "reply_to": integer("The seq of the message that this one replies to."),
        "target": integer("The seq of the message that an edit or a recall is about."),
        "mentions": many(text(), "Users; `*` for everybody."),
        "edited": integer("The seq of the edit that is shown."),
        "recalled": integer("The seq of the recall."),
    }
    optional = ("reply_to", "target", "mentions", "edited", "recalled")
    return obj(entry, "What clients are told.", optional=optional)
