"""What most kinds of channels do not offer, refused in one way. A broker inherits this and defines what it does."""

from __future__ import annotations

from access.core.protocol import (
    ClientError,
    HistoryRequest,
    HistoryResult,
    Position,
    PresenceResult,
    PresenceStatsResult,
    PublishRequest,
    ReplyError,
    SubRefreshRequest,
    SubRefreshResult,
    SubscribeResult,
)
from access.ports import Member

__all__ = ["RefusingBroker"]

_NOT_AVAILABLE = ClientError.NOT_AVAILABLE.wire


class RefusingBroker:
    """The part of `Broker` that a kind of channels may leave out: each is answered with error 108."""

    async def subscribe_by_server(self, member: Member, channel: str, position: Position) -> SubscribeResult | None:
        """See `Broker`: no channel is subscribed by the server."""
        del member, channel, position
        return None

    async def publish(self, member: Member, request: PublishRequest) -> ReplyError | None:
        """See `Broker`: clients do not publish here."""
        del member, request
        return _NOT_AVAILABLE

    async def history(self, member: Member, request: HistoryRequest) -> HistoryResult | ReplyError:
        """See `Broker`: there is no history."""
        del member, request
        return _NOT_AVAILABLE

    async def presence(self, member: Member, channel: str) -> PresenceResult | ReplyError:
        """See `Broker`: who is subscribed is nobody's business."""
        del member, channel
        return _NOT_AVAILABLE

    async def presence_stats(self, member: Member, channel: str) -> PresenceStatsResult | ReplyError:
        """See `Broker`: see `presence`."""
        del member, channel
        return _NOT_AVAILABLE

    async def refresh(self, member: Member, request: SubRefreshRequest) -> SubRefreshResult | ReplyError:
        """See `Broker`: these subscriptions do not expire."""
        del member, request
        return _NOT_AVAILABLE
