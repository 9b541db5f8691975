"""One connection of the Python client: an SDK object that never reconnects, and says when and why it is over."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import centrifuge
import msgspec

from access.core.protocol import ClientError, code_number
from base.errors import (
    Code,
    PeerUnavailable,
    PermissionDenied,
    RemoteProtocolError,
    RoadsteadError,
    TokenExpired,
    from_wire,
)
from roadstead.api import ambient
from roadstead.client.channel import Channel, Position

__all__ = ["DEADLINE_S", "Connection", "Move"]

DEADLINE_S = 5.0
NEVER_S = 86_400.0
SYNC_PAGE = 500
SERVER_CODES = 3_000
"""From here on a close code is the server's; those below are the SDK's, which could not read what it was sent."""


class Move(msgspec.Struct, frozen=True):
    """The server asks to go to another node: `url` is its WebSocket endpoint, empty for wherever the scheduler says."""

    url: str = ""
    ticket: str = ""


class _Message(msgspec.Struct, frozen=True):
    move: Move | None = None


class Connection(centrifuge.Client, centrifuge.ClientEventHandler):
    """An SDK object for one connection to one node. `news` is set whenever `is_open`, `move` or `end` is."""

    def __init__(
        self,
        address: str,
        ticket: str,
        inbox: Channel,
        *,
        lifetime_s: float = 0.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`address` is a node's WebSocket endpoint. Nothing is sent before `open`.

        After `lifetime_s` it is to be replaced, as if the server had asked for that; 0: never. `tls`: whom to believe.
        """
        super().__init__(
            address,
            self,
            ticket,
            name="roadstead-python",
            timeout=DEADLINE_S,
            min_reconnect_delay=NEVER_S,
            max_reconnect_delay=NEVER_S,
            ssl_context=(tls or ambient()) if address.startswith("wss:") else None,
            proxy=None,  # an environment's HTTP proxy is not meant for this
        )
        self.news = asyncio.Event()
        self.is_open = False
        self.move: Move | None = None
        self.end: RoadsteadError | None = None
        """Why it is over: PermissionDenied if for good, TokenExpired if the ticket was, RemoteProtocolError if the
        server sent nonsense, else PeerUnavailable."""
        self.inbox = inbox
        self._opened_at = 0.0
        self._lifetime_s = lifetime_s

    async def open(self) -> None:
        """Connect and follow the inbox. Raises `end` if that fails."""
        try:
            async with asyncio.timeout(DEADLINE_S) as self._deadline:
                await self.connect()
                if self.state is centrifuge.ClientState.CONNECTED:
                    await self.follow(self.inbox)
                else:
                    self.over(PeerUnavailable("closed before it was open"))
                while not self.is_open and self.end is None:
                    await self.news.wait()
                    self.news.clear()
        except TimeoutError:
            self.over(PeerUnavailable(f"no answer within {DEADLINE_S:g} s"))
        except BaseException:  # cancelled, even if it is open by now: nobody else knows it
            await self.disconnect()
            raise
        if self.end is not None:
            await self.disconnect()
            raise self.end
        self._opened_at = self._loop.time()

    async def changed(self) -> None:
        """Wait for news. The end of its lifetime is some, and again after twice that, if there was no replacement."""
        until = self._opened_at + self._lifetime_s if self._lifetime_s else None
        try:
            async with asyncio.timeout_at(until):
                await self.news.wait()
        except TimeoutError:
            self.move = self.move or Move()
            self._lifetime_s *= 2
        self.news.clear()

    def age_s(self) -> float:
        """Return for how long it has been open, in seconds."""
        return self._loop.time() - self._opened_at

    async def follow(self, channel: Channel) -> None:
        """Subscribe to a channel, from its position on."""
        feed = _Feed(self, channel)
        has_start = channel is self.inbox or channel.position.epoch
        start = feed.start if has_start else None
        await self.new_subscription(channel.name, feed, recoverable=True, get_state=start).subscribe()

    async def leave(self, name: str) -> None:
        """Unsubscribe from a channel, if it is followed."""
        subscription = self.get_subscription(name)
        if subscription is not None:
            await subscription.unsubscribe()
            self.remove_subscription(subscription)

    def over(self, end: RoadsteadError) -> None:
        """Note that the connection is of no use any more; the first reason counts."""
        self.end = self.end or end
        self.news.set()

    async def ask(self, method: str, arguments: Any) -> Any:
        """Call a method on this connection. As long as answers come, the inbox has time to be opened."""
        result = (await self.rpc(method, arguments, timeout=DEADLINE_S)).data
        if not self.is_open:
            self._deadline.reschedule(self._loop.time() + DEADLINE_S)
        return result

    async def catch_up(self) -> None:
        """Page through the timeline from the inbox's position on.

        From its beginning if the server's data was replaced; and from where the watcher's state ends, if what follows
        the position is not kept any more.
        """
        inbox, has_more = self.inbox, True
        while has_more:
            at = inbox.position
            try:
                page = await self.ask("im.sync", {"since": at.offset, "limit": SYNC_PAGE})
            except centrifuge.ReplyError as error:
                if code_number(error.code) != Code.POSITION_LOST.number or not at.offset:
                    raise
                inbox.position = Position()
                continue
            epoch = page["epoch"]
            if at.epoch not in {"", epoch}:
                inbox.position = Position(epoch)
            elif page.get("too_old"):
                await inbox.restart(self.ask, Position(epoch, page["head"]))
            else:
                if not at.epoch:
                    inbox.position = Position(epoch, at.offset)
                for entry in page["entries"]:
                    if self.state is centrifuge.ClientState.DISCONNECTED:
                        return  # by us, as when a handler closes the client
                    await inbox.deliver(Position(epoch, entry["offset"]), entry["data"])
                has_more = page["has_more"]

    async def on_error(self, ctx: centrifuge.ErrorContext) -> None:
        """A try to connect failed."""
        number = ctx.error.code if isinstance(ctx.error, centrifuge.ReplyError) else None
        reason = str(ctx.error) or type(ctx.error).__name__
        is_expired = number == ClientError.TOKEN_EXPIRED.value[0]
        self.over(TokenExpired(reason) if is_expired else PeerUnavailable(reason))

    async def on_connecting(self, ctx: centrifuge.ConnectingContext) -> None:
        """The SDK lost the connection and would reconnect; with code 0 it begins."""
        if ctx.code:
            self.over(PeerUnavailable(f"the connection was closed: {ctx.reason} ({ctx.code})"))

    async def on_disconnected(self, ctx: centrifuge.DisconnectedContext) -> None:
        """The SDK stopped for good; with code 0 we told it to."""
        if ctx.code:
            reason = f"the connection was closed for good: {ctx.reason} ({ctx.code})"
            kind = PermissionDenied if ctx.code >= SERVER_CODES else RemoteProtocolError
            self.over(kind(reason, close_code=ctx.code))

    async def _process_reply(self, reply: dict[str, Any]) -> None:
        """Take the message pushes. This SDK drops them; those of other languages hand them to the application."""
        push = reply.get("push") or {}
        if "message" not in push:
            await super()._process_reply(reply)
            return
        try:
            self.move = msgspec.convert(push["message"].get("data"), _Message).move or self.move
        except msgspec.ValidationError:
            return  # a message of another kind
        self.news.set()


class _Feed(centrifuge.SubscriptionEventHandler):
    """One channel on one connection."""

    def __init__(self, connection: Connection, channel: Channel) -> None:
        self._connection = connection
        self._channel = channel
        self._epoch = ""
        self._was_asked = False

    async def start(self, name: str) -> centrifuge.StreamPosition:
        """Where to begin, asked by the SDK. Asked again, that was refused: page through the timeline, or begin anew."""
        channel, connection = self._channel, self._connection
        if channel is connection.inbox and not self._was_asked:
            if channel.position == Position() and channel.watcher is not None:
                await channel.restart(connection.ask, Position())
        elif channel is connection.inbox:
            await connection.catch_up()
        elif self._was_asked:
            self._channel.position = Position()
            await self._connection.leave(name)
            await self._connection.follow(self._channel)
        self._was_asked = True
        return centrifuge.StreamPosition(offset=self._channel.position.offset, epoch=self._channel.position.epoch)

    async def on_subscribed(self, ctx: centrifuge.SubscribedContext) -> None:
        """The subscription begins; its first publication comes next."""
        at = Position(ctx.stream_position.epoch, ctx.stream_position.offset) if ctx.stream_position else Position()
        self._epoch = at.epoch
        await self._channel.begin(at, ctx.data, is_recovered=ctx.recovered)
        if self._channel is self._connection.inbox:
            self._connection.is_open = True
            self._connection.news.set()

    async def on_publication(self, ctx: centrifuge.PublicationContext) -> None:
        """A publication, in order."""
        await self._channel.deliver(Position(self._epoch, ctx.pub.offset), ctx.pub.data)

    async def on_unsubscribed(self, ctx: centrifuge.UnsubscribedContext) -> None:
        """The server refused or ended the subscription; with code 0 we did."""
        if ctx.code:
            number = code_number(ctx.code) if ctx.code < 2_000 else Code.PERMISSION_DENIED.number
            error = from_wire(number, f"{self._channel.name}: {ctx.reason}", {"channel": self._channel.name})
            if self._channel is self._connection.inbox:
                self._connection.over(error)
            else:
                await self._connection.leave(self._channel.name)
                self._channel.refused(self._channel.name, error)
