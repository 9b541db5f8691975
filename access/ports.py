"""What the parts of an access node need of each other.

`Connection` is a transport as everybody else sees it, `Member` a client as the channels see it, `Broker` a kind of
channels as the clients see it. Each kind of channels (a user's inbox, a conversation, somebody's presence, plain
application channels) has a broker; `access/clients.py` picks it by the channel's name.
"""

from __future__ import annotations

from typing import Protocol

from access.core.outgoing import Form
from access.core.protocol import (
    Close,
    HistoryRequest,
    HistoryResult,
    Position,
    PresenceResult,
    PresenceStatsResult,
    PublishRequest,
    ReplyError,
    SubRefreshRequest,
    SubRefreshResult,
    SubscribeRequest,
    SubscribeResult,
)

__all__ = ["ABNORMAL", "Broker", "Connection", "Gateway", "Member"]

ABNORMAL = 1006
"""The close code of a connection that just broke (RFC 6455, section 7.4.1): it never travels."""


class Connection(Protocol):
    """A client's way out. Neither call waits, both may be made at any time; after the close they do nothing."""

    form: Form
    client: object | None
    """The gateway's: what it knows the connection by."""
    code: int
    """Why it ended, once it has: the close code, ABNORMAL where the transport just broke."""
    session: str
    """A secret by which requests beside the connection name it; empty for a transport that needs none."""

    def write(self, frame: bytes, replaces: int | None = None) -> None:
        """Send a frame in the connection's form, after what was written before.

        A frame that still waits gives way to a later one with the same `replaces`: of states only the last one counts.
        A client for whom too much waits is closed with 3008, and nobody else notices.
        """
        ...

    def close(self, close: Close) -> None:
        """Close, after what was written unless the client is too slow to take it."""
        ...

    def abort(self) -> None:
        """Drop it now, without a goodbye."""
        ...

    def queued(self) -> int:
        """Return how many bytes wait for the client."""
        ...


class Member(Protocol):
    """A client. Its identity is the object; `id` is its name for other clients and for logs."""

    @property
    def id(self) -> str:
        """The client id, unique over all nodes and time."""
        ...

    @property
    def user(self) -> str:
        """Who it is."""
        ...

    @property
    def info(self) -> bytes:
        """JSON that the client's token says about it, for other clients to see; empty for none."""
        ...

    @property
    def connection(self) -> Connection:
        """Its way out."""
        ...


class Broker(Protocol):
    """One kind of channels. Requests raise RoadsteadError for what failed outside; refusals are a ReplyError.

    A subscription's life: `subscribe` decides and reads the start, then its reply is written, then `subscribed` lets
    publications through, from exactly where the reply ended. Between the two they are kept back or noted as missing.
    If the client is gone meanwhile, `gone` ends the subscription, before or after its start was read.
    """

    async def subscribe(self, member: Member, request: SubscribeRequest) -> SubscribeResult | ReplyError:
        """Begin a subscription that the client asks for."""
        ...

    async def subscribe_by_server(self, member: Member, channel: str, position: Position) -> SubscribeResult | None:
        """Begin a subscription that the node makes when a client connects.

        None if the channel is not for it, or there is no room for the channel.
        """
        ...

    def subscribed(self, member: Member, channel: str, result: SubscribeResult) -> None:
        """The result was written to the client."""
        ...

    def unsubscribe(self, member: Member, channel: str) -> None:
        """End a subscription; one that is not there does not matter."""
        ...

    def gone(self, member: Member) -> None:
        """End all subscriptions of a client."""
        ...

    async def publish(self, member: Member, request: PublishRequest) -> ReplyError | None:
        """Publish for a client; None when it is done."""
        ...

    async def history(self, member: Member, request: HistoryRequest) -> HistoryResult | ReplyError:
        """Read a page of the channel's past."""
        ...

    async def presence(self, member: Member, channel: str) -> PresenceResult | ReplyError:
        """Return who is subscribed."""
        ...

    async def presence_stats(self, member: Member, channel: str) -> PresenceStatsResult | ReplyError:
        """Return how many are subscribed."""
        ...

    async def refresh(self, member: Member, request: SubRefreshRequest) -> SubRefreshResult | ReplyError:
        """Prolong a subscription that expires."""
        ...


class Gateway(Protocol):
    """What a transport tells the node. All calls come from the loop, in the order in which things happened."""

    def arrived(self, connection: Connection, address: str) -> str:
        """A client is there, from an address; return its id. Its first frame must be a connect command, soon."""
        ...

    def received(self, connection: Connection, frame: bytes) -> None:
        """It sent one or more commands, in the connection's encoding."""
        ...

    def crowded(self, connection: Connection) -> None:
        """It does not read as fast as it is written to: from here on what waits for it counts."""
        ...

    def relieved(self, connection: Connection) -> None:
        """It has caught up. Not called for every `crowded`: it may be gone instead."""
        ...

    def gone(self, connection: Connection) -> None:
        """It is gone, whoever ended it. Called once for each `arrived`, and nothing after it."""
        ...
