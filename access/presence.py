"""Presence for clients: the channel `presence:<user>`, and the calls `presence.set` and `presence.get`.

A subscription's reply carries the state as its data, and each publication the state from then on; both are
`{"state", "last_seen"}`, what this viewer may see. The status owner decides on that, so that nothing else ever comes to
this node. The channel carries a state and not a history: to recover is to be given the present one, and a client that
cannot keep up is given the last of those that waited for it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from access.config import AccessConfig
from access.core.outgoing import Outgoing
from access.core.presence import PresenceHub
from access.core.protocol import ClientError, Publication, ReplyError, SubscribeRequest, SubscribeResult
from access.metrics import AccessMetrics
from access.ports import Member
from access.refusing import RefusingBroker
from base.clock import Clock, Timestamp
from base.errors import BadRequest, LimitExceeded, NotReady
from base.ids import checked_id, new_epoch
from status.api import Opened
from status.client import StatusLookups, StatusWatches, checked_audience

__all__ = ["CHANNEL_PREFIX", "GET_PRESENCE", "SET_PRESENCE", "Presences"]

CHANNEL_PREFIX = "presence:"
SET_PRESENCE = "presence.set"
GET_PRESENCE = "presence.get"
GET_USERS_MAX = 100


class AudienceRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may see the user."""

    mode: Literal["everyone", "contacts", "listed", "nobody"]
    users: list[str] = []


class SetRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to change of this session: what is not named stays."""

    state: Literal["online", "away", "busy", "invisible"] | None = None
    audience: AudienceRequest | None = None


class ConnectData(msgspec.Struct, frozen=True):
    """What a client may say as it connects, so that it is never seen otherwise; the rest is not for us."""

    presence: SetRequest | None = None


class GetRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """At whom to look once."""

    users: Annotated[list[str], msgspec.Meta(min_length=1)]


_connect_decoder = msgspec.json.Decoder(ConnectData | None)
_set_decoder = msgspec.json.Decoder(SetRequest)
_get_decoder = msgspec.json.Decoder(GetRequest)
_encode = msgspec.json.Encoder().encode


class Presences(RefusingBroker):
    """The presence subscriptions of one node, a `Broker`, and its clients' calls."""

    def __init__(
        self,
        config: AccessConfig,
        clock: Clock,
        metrics: AccessMetrics,
        *,
        statuses: StatusLookups,
        watches: StatusWatches | None,
    ) -> None:
        """`watches` None: the status backend has none, and there are no presence channels."""
        self.hub: PresenceHub[Member] = PresenceHub(channels_max=config.presence_channels_max)
        self._deadline_ms = config.publish_deadline_ms
        self._clock = clock
        self._metrics = metrics
        self._statuses = statuses
        self._watches = watches
        if watches is not None:
            watches.on_told(self._told)
            metrics.show_presence(self.hub.statistics, watches.statistics)

    async def subscribe(self, member: Member, request: SubscribeRequest) -> SubscribeResult | ReplyError:
        """Begin a subscription; whatever is published from the return on follows the result.

        Raises:
            LimitExceeded: too many channels for the client, too many watches for the node.
            NotReady: the state is not known now.
        """
        if self._watches is None:
            return ClientError.NOT_AVAILABLE.wire
        try:
            user = checked_id(request.channel.removeprefix(CHANNEL_PREFIX), "user")
        except BadRequest:
            return ClientError.UNKNOWN_CHANNEL.wire
        subscription = self._attach(member, user)
        if subscription is None:
            return ClientError.ALREADY_SUBSCRIBED.wire
        start = None
        try:
            seen = await self._watches.watch(user, member.user, deadline_ms=self._deadline_ms)
            start = self.hub.started(member, user, subscription, (request.epoch, request.offset))
        finally:
            if start is None:
                self._release(member, user, subscription)
        if start is None:
            raise NotReady("unsubscribed before it was subscribed")
        state = _state(seen.state, seen.last_seen)
        is_behind = request.recover and not start.is_known
        return SubscribeResult(
            recoverable=True,
            positioned=True,
            epoch=start.epoch,
            offset=start.offset,
            was_recovering=request.recover,
            recovered=request.recover,
            publications=[Publication(state, start.offset)] if is_behind else [],
            data=state,
        )

    def subscribed(self, member: Member, channel: str, result: SubscribeResult) -> None:
        """See `Broker`. What is published after the result was made follows it by itself."""

    def unsubscribe(self, member: Member, channel: str) -> None:
        """End a subscription; one that is not there does not matter."""
        self._release(member, channel.removeprefix(CHANNEL_PREFIX), None)

    def gone(self, member: Member) -> None:
        """End all subscriptions of a client."""
        for user in self.hub.users(member):
            self._release(member, user, None)

    def connecting(self, opened: Opened, data: bytes) -> Opened:
        """Return the session as the client wants it to begin. Raises BadRequest or LimitExceeded."""
        try:
            wanted = _connect_decoder.decode(data)
        except msgspec.MsgspecError as error:
            raise BadRequest(f"connect data: {error}") from error
        return opened if wanted is None or wanted.presence is None else self._changed(opened, wanted.presence)

    def changed(self, opened: Opened, data: bytes) -> Opened:
        """Return the session as `presence.set` wants it. Raises BadRequest or LimitExceeded."""
        try:
            return self._changed(opened, _set_decoder.decode(data))
        except msgspec.MsgspecError as error:
            raise BadRequest(f"presence.set: {error}") from error

    async def get(self, viewer: str, data: bytes) -> bytes:
        """Answer `presence.get`: what the viewer may see of each user. Raises BadRequest or LimitExceeded."""
        try:
            users = _get_decoder.decode(data).users
        except msgspec.MsgspecError as error:
            raise BadRequest(f"presence.get: {error}") from error
        if len(users) > GET_USERS_MAX:
            message = f"{len(users)} users in one call, the limit is {GET_USERS_MAX}"
            raise LimitExceeded(message, what="users", limit=GET_USERS_MAX, seen=len(users))
        found = await self._statuses.lookup([checked_id(user, "user") for user in users], viewer=viewer)
        return _encode(
            {
                "presences": [
                    {"user": user, "state": found[user].state, "last_seen": found[user].last_seen} for user in users
                ]
            }
        )

    def statistics(self) -> dict[str, dict[str, int]]:
        """Return a snapshot of sizes: here, and of what is watched at the owners."""
        return {"here": self.hub.statistics(), "watches": self._watches.statistics() if self._watches else {}}

    # ---------------------------------------------------------------- inside

    def _changed(self, opened: Opened, wanted: SetRequest) -> Opened:
        audience = opened.audience
        if wanted.audience is not None:
            if self._watches is None:
                raise BadRequest("the status backend of this deployment keeps no audiences")
            audience = checked_audience(wanted.audience.mode, wanted.audience.users)
        # Of several sessions the one that said it last decides, so that this must not stand still.
        last_active = Timestamp(max(self._clock.realtime(), opened.last_active + 1))
        state = wanted.state or opened.state
        return msgspec.structs.replace(opened, state=state, audience=audience, last_active=last_active)

    def _told(self, user: str, viewer: str, state: str, last_seen: Timestamp | None) -> None:
        published = self.hub.published(user, viewer)
        if published is None or not published.sessions:
            return
        publication = Publication(_state(state, last_seen), published.offset)
        # Encoded once, for all devices of the viewer.
        outgoing = Outgoing(CHANNEL_PREFIX + user, publication)
        for member, subscription in published.sessions:
            connection = member.connection
            connection.write(outgoing.frame(connection.form), subscription)
        self._metrics.writes.inc(len(published.sessions))

    def _attach(self, member: Member, user: str) -> int | None:
        try:
            return self.hub.attach(member, member.user, user, new_epoch=new_epoch())
        except LimitExceeded as error:
            self._metrics.presence_refused.inc(error.code.label)
            raise

    def _release(self, member: Member, user: str, subscription: int | None) -> None:
        ended = self.hub.detach(member, user, subscription)
        if ended is not None and self._watches is not None:
            self._watches.unwatch(*ended)


def _state(state: str, last_seen: Timestamp | None) -> msgspec.Raw:
    return msgspec.Raw(_encode({"state": state, "last_seen": last_seen}))
