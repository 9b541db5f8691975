"""The operations of access nodes, and what their bodies look like.

Decides nothing: the paths are those of the nodes' own port. Clients speak the client protocol on another one.
"""

from __future__ import annotations

from access.admin import DrainRequest, KickRequest
from access.channel_api import BROADCAST_MAX, HISTORY_MAX, BroadcastBody, PublishBody, UnsubscribeBody
from access.core.outgoing import Form
from base.errors import Code
from base.http import Role
from roadstead.openapi.operations import Operation, query
from roadstead.openapi.schemas import Schema, by_name, either, integer, many, obj, of_types, ref, text, yes_no

__all__ = ["ACCESS_OPERATIONS", "access_schemas"]

OFFSET_MAX = (1 << 63) - 1
_NULL: Schema = {"type": "null"}
_CHANNEL = {
    "name": "channel",
    "in": "path",
    "required": True,
    "description": "The channel, with its namespace: `chat:42`.",
    "schema": text(minLength=1),
}
_DRAIN_STATES = ["none", "draining", "paused", "done"]

# ---------------------------------------------------------------- operators


def _order(what: str, summary: str) -> Operation:
    return Operation(
        method="post",
        path=f"/v1/admin/access/{what}",
        name=f"{what}AccessDrain",
        served_by="access",
        summary=summary,
        description="Takes no body. `not_found` when nothing drains.",
        key=Role.OPERATOR,
        answer=ref("AccessNodeShown"),
        errors=(Code.NOT_FOUND,),
    )


_ADMIN: tuple[Operation, ...] = (
    Operation(
        method="get",
        path="/v1/admin/access",
        name="getAccessNode",
        served_by="access",
        summary="What this access node does, and how far its drain is",
        key=Role.VIEWER,
        answer=ref("AccessNodeShown"),
    ),
    Operation(
        method="get",
        path="/v1/admin/access/clients",
        name="getAccessClients",
        served_by="access",
        summary="A user's clients at this access node",
        key=Role.VIEWER,
        parameters=(query("user", ref("Id"), "The user.") | {"required": True},),
        answer=ref("AccessClients"),
        errors=(Code.BAD_REQUEST,),
    ),
    Operation(
        method="post",
        path="/v1/admin/access/drain",
        name="drainAccess",
        served_by="access",
        summary="Send all clients of this access node elsewhere, and take no new ones",
        description="Answered when it has begun. One that is under way goes on as it is.",
        key=Role.OPERATOR,
        body="DrainRequest",
        body_required=False,
        answer=ref("AccessNodeShown"),
        errors=(Code.BAD_REQUEST,),
    ),
    _order("pause", "Tell nobody more to go"),
    _order("resume", "Go on"),
    _order("abort", "Stop draining, and take clients again"),
    Operation(
        method="post",
        path="/v1/admin/access/kick",
        name="kickUser",
        served_by="access",
        summary="Close a user's connections to this access node",
        key=Role.OPERATOR,
        body="KickRequest",
        answer=ref("Kicked"),
        errors=(Code.BAD_REQUEST,),
    ),
)

# ---------------------------------------------------------------- channels, for backends

_CHANNEL_ERRORS = (
    Code.NOT_FOUND,
    Code.BAD_REQUEST,
    Code.LIMIT_EXCEEDED,
    Code.OVERLOADED,
    Code.NOT_READY,
    Code.UNAVAILABLE,
    Code.DEADLINE_EXCEEDED,
)


def _of_channel(
    what: str, name: str, summary: str, answer: str, *parameters: Schema, key: Role = Role.BACKEND
) -> Operation:
    return Operation(
        method="get",
        path=f"/v1/channels/{{channel}}/{what}",
        name=name,
        served_by="access",
        summary=summary,
        key=key,
        parameters=(_CHANNEL, *parameters),
        answer=ref(answer),
        errors=_CHANNEL_ERRORS,
    )


def _to_channel(what: str, summary: str, body: str, answer: Schema, description: str = "") -> Operation:
    return Operation(
        method="post",
        path=f"/v1/channels/{what}",
        name=f"{what}Channel",
        served_by="access",
        summary=summary,
        description=description,
        key=Role.BACKEND,
        body=body,
        answer=answer,
        errors=_CHANNEL_ERRORS,
    )


_CHANNELS: tuple[Operation, ...] = (
    _to_channel(
        "publish",
        "Publish into a channel",
        "PublishBody",
        ref("ChannelPlace"),
        "At any access node. Of 503 and 504 the outcome is unknown: repeat it with the same `idempotency_key`.",
    ),
    _to_channel(
        "broadcast",
        "Publish the same into many channels",
        "BroadcastBody",
        ref("BroadcastResult"),
        "Each channel has its own answer: 200 does not mean that all of it was published.",
    ),
    _to_channel("unsubscribe", "End a user's subscriptions at all nodes", "UnsubscribeBody", ref("NothingElse")),
    _of_channel(
        "history",
        "getChannelHistory",
        "A page of what was published",
        "ChannelHistory",
        query("limit", integer(most=HISTORY_MAX, default=HISTORY_MAX), "Most publications of the page."),
        query("offset", integer(most=OFFSET_MAX), "Read after this offset; before it if `reverse`."),
        query("epoch", text(default=""), "The epoch of the offset; another one than the channel's is `not_found`."),
        query("reverse", text(enum=["true", "false"], default="false"), "Newest first."),
    ),
    _of_channel("presence", "getChannelPresence", "Who is subscribed", "ChannelPresence"),
    _of_channel(
        "presence_stats",
        "getChannelPresenceStats",
        "How many are subscribed",
        "ChannelPresenceStats",
        key=Role.VIEWER,
    ),
)

ACCESS_OPERATIONS: tuple[Operation, ...] = (*_ADMIN, *_CHANNELS)

# ---------------------------------------------------------------- bodies


def access_schemas() -> dict[str, Schema]:
    """Return every named schema of these operations."""
    made = of_types((DrainRequest, KickRequest, PublishBody, BroadcastBody, UnsubscribeBody))
    kick = made["KickRequest"]["properties"]
    kick["user"] = ref("Id")
    kick["device"] = either(ref("Id"), _NULL) | {"default": None}
    made["UnsubscribeBody"]["properties"]["user"] = ref("Id")
    made["BroadcastBody"]["properties"]["channels"] |= {"maxItems": BROADCAST_MAX}
    for body in ("PublishBody", "BroadcastBody"):
        made[body]["properties"]["data"] = {"description": "Any JSON value."}
    return {**made, **_nodes(), **_clients(), **_channels()}


def _nodes() -> dict[str, Schema]:
    load = {
        "node": text("The access node."),
        "region": text(),
        "client_url": text("Where clients reach it."),
        "version": text(),
        "capacity": integer("The most connections that it takes.", least=1),
        "connections": integer(),
        "is_draining": yes_no(),
        "accepted": integer("Total of connections let in before the upgrade, since it started."),
        "refused": integer("Total of those that were not."),
        "loop_lag_ms": integer("How late its event loop was, the worst of the last second."),
        "resident_bytes": integer("Resident memory of its process."),
    }
    drain = {
        "state": text("How it is with the drain.", enum=_DRAIN_STATES),
        "total": integer("Clients that were here when it began; the sum of the next five."),
        "pending": integer("Not told yet."),
        "waiting": integer("Told to go, and still here."),
        "arrived": integer("Told to go, and gone in time."),
        "closed": integer("Closed, since they were still here after their time."),
        "departed": integer("Gone by themselves before they were told."),
        "eta_ms": either(integer(), _NULL, meaning="When it will be over at the latest; null while that is not known."),
    }
    return {
        "AccessDrain": obj(drain, "How far a drain is."),
        "AccessNodeShown": obj({**load, "drain": ref("AccessDrain")}, "An access node, as it is now."),
        "Kicked": obj({"user": ref("Id"), "kicked": integer("How many connections were closed.")}),
    }


def _clients() -> dict[str, Schema]:
    client = {
        "client": text("The id of the client and its session."),
        "device": text(),
        "platform": text(),
        "state": text(),
        "since": integer("When it connected, in ms since the Unix epoch."),
        "address": text("Where it connects from."),
        "form": text("Its transport and encoding.", enum=[form.name.lower() for form in Form]),
    }
    return {"AccessClients": obj({"user": ref("Id"), "clients": many(obj(client))})}


def _channels() -> dict[str, Schema]:
    epoch, given = text("Offsets of different epochs do not compare."), {"description": "Any JSON value."}
    place = {"epoch": epoch, "offset": integer("0 in a channel without a history.")}
    info = {"user": text(), "client": text(), "conn_info": given, "chan_info": given}
    publication = {
        "data": given,
        "offset": integer(least=1),
        "info": ref("ChannelMember"),
        "tags": by_name(text()),
        "time": integer("When it was published, in ms since the Unix epoch."),
    }
    error = {"code": integer(), "name": text(), "message": text()}
    return {
        "ChannelPlace": obj(place, "Where a publication stands in its channel."),
        "BroadcastResult": obj(
            {"responses": many(either(ref("ChannelPlace"), obj({"error": obj(error)})), "One a channel, as asked.")}
        ),
        "ChannelMember": obj(info, "A client in a channel.", optional=("conn_info", "chan_info")),
        "ChannelPublication": obj(publication, optional=("info", "tags", "time")),
        "ChannelHistory": obj(
            {"publications": many(ref("ChannelPublication")), **place},
            "A page, and where the channel is. What is empty is absent.",
            optional=("publications", "epoch", "offset"),
        ),
        "ChannelPresence": obj(
            {"presence": by_name(ref("ChannelMember"), "By client id; absent if nobody is there.")},
            optional=("presence",),
        ),
        "ChannelPresenceStats": obj({"num_clients": integer(), "num_users": integer()}),
    }
