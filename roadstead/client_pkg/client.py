"""The Python client: a thin wrapper over the stock `centrifuge-python` SDK.

It asks the scheduler for access nodes and a ticket, connects to the first candidate that answers, follows the user's
inbox from a position that the application keeps, and sends with an idempotency key, so that a retry after a lost
answer is stored once. Connecting, reconnecting, pings and recovery are the SDK's.

    client = Client(scheduler_url, user="alice", credential=user_token, on_message=show, position=saved)
    await client.connect()
    await client.send("bob", "hello")
    saved = client.position
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import centrifuge

from access.core.protocol import code_number
from base.core.backoff import Backoff
from base.errors import DeadlineExceeded, PeerUnavailable, from_wire
from base.ids import entropy, new_uuid
from roadstead.api import call_api

__all__ = ["Client", "Incoming", "Position"]

CONNECT_DEADLINE_S = 5.0
CALL_DEADLINE_S = 5.0
SYNC_PAGE = 500


@dataclass(frozen=True, slots=True)
class Position:
    """How far a client has read its timeline. Keep it with what was read; offset 0 is the very beginning."""

    epoch: str = ""
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Incoming:
    """A timeline entry: `data` is the publication as a dict, `position` what to keep once it is dealt with."""

    position: Position
    data: dict[str, Any]


class Client:
    """One user's connection from one device."""

    def __init__(
        self,
        scheduler: str,
        *,
        user: str,
        credential: str,
        on_message: Callable[[Incoming], Awaitable[None]],
        device: str = "python",
        position: Position | None = None,
    ) -> None:
        """Nothing is sent before `connect`.

        Args:
            scheduler: the scheduler's base URL.
            user: who connects.
            credential: that user's token, or an API key that may act for users.
            on_message: awaited for each entry, in order, each offset once in the life of this object.
            device: name of this device; the user's other devices have other names.
            position: where to go on reading, None from the beginning.
        """
        self.position = position or Position()
        self.user = user
        self._scheduler = scheduler
        self._credential = credential
        self._on_message = on_message
        self._device = device
        self._sdk: centrifuge.Client | None = None
        self._asked_state = False

    async def connect(self) -> None:
        """Connect to a candidate and follow the inbox; returns when both work.

        Raises:
            RoadsteadError: the scheduler's refusal, or PeerUnavailable when no candidate let us in.
        """
        answer = await self._ask()
        last: Exception | None = None
        for candidate in answer["candidates"]:
            try:
                await self._connect_to(candidate["urls"]["websocket"], answer["ticket"])
                return
            except (centrifuge.CentrifugeError, TimeoutError) as error:
                last = error
                await self.close()
                answer = await self._ask()  # the ticket may be used up
        raise PeerUnavailable(f"no access node let us in: {last}")

    async def send(self, to: str, body: Any, *, client_msg_id: str | None = None, kind: str = "text") -> dict[str, Any]:
        """Send a message; returns {mid, cid, seq, at, is_new} once it is durable.

        Retried with the same `client_msg_id` over lost answers and reconnects, up to five times, so that it is stored
        at most once. Raises DeadlineExceeded when the outcome is still unknown then: send again with the same id.
        """
        arguments = {"to": to, "client_msg_id": client_msg_id or new_uuid(), "type": kind, "body": body}
        backoff = Backoff(entropy(), base_ms=100, ceiling_ms=2_000)
        for _ in range(5):
            try:
                result: dict[str, Any] = await self.call("im.send", arguments)
                return result
            except (centrifuge.CentrifugeError, TimeoutError) as error:
                if isinstance(error, centrifuge.ReplyError) and not error.temporary:
                    raise from_wire(code_number(error.code), error.message, {}) from error
                await asyncio.sleep(backoff.next_ms() / 1000)
        raise DeadlineExceeded("the message was not acknowledged; send it again with the same client_msg_id")

    async def call(self, method: str, arguments: Any) -> Any:
        """Call a method of the server and return its JSON result. Raises what the SDK raises."""
        assert self._sdk is not None, "connect first"
        result = await self._sdk.rpc(method, arguments, timeout=CALL_DEADLINE_S)
        return result.data

    async def close(self) -> None:
        """Disconnect. Idempotent."""
        sdk, self._sdk = self._sdk, None
        if sdk is not None:
            await sdk.disconnect()

    async def _ask(self) -> dict[str, Any]:
        params = {"user": self.user, "device": self._device, "platform": "python"}
        answer: dict[str, Any] = await call_api(
            "GET", f"{self._scheduler}/v1/access", credential=self._credential, params=params
        )
        return answer

    async def _connect_to(self, address: str, ticket: str) -> None:
        async def get_token() -> str:
            # The SDK asks when the server said "expired", which a used ticket is too.
            return str((await self._ask())["ticket"])

        # No proxy: an environment's HTTP proxy is not meant for this.
        sdk = centrifuge.Client(address, token=ticket, get_token=get_token, proxy=None, name="roadstead-python")
        self._sdk = sdk
        self._asked_state = False
        await sdk.connect()
        await sdk.ready(CONNECT_DEADLINE_S)
        inbox = sdk.new_subscription(
            f"inbox:{self.user}",
            events=_InboxEvents(self._subscribed, self._arrived),
            recoverable=True,
            get_state=self._start_position,
        )
        await inbox.subscribe()
        await inbox.ready(CONNECT_DEADLINE_S)

    async def _start_position(self, _channel: str) -> centrifuge.StreamPosition:
        """Where to subscribe from. Asked again, the first answer was too far behind: page through the timeline."""
        if self._asked_state:
            await self._sync()
        self._asked_state = True
        return centrifuge.StreamPosition(offset=self.position.offset, epoch=self.position.epoch)

    async def _sync(self) -> None:
        has_more = True
        while has_more:
            page = await self.call("im.sync", {"since": self.position.offset, "limit": SYNC_PAGE})
            if self.position.epoch not in ("", page["epoch"]):
                # The server's data was replaced: what we read is not what it has. From its beginning, then.
                self.position = Position(page["epoch"], 0)
                continue
            for entry in page["entries"]:
                await self._deliver(entry["offset"], entry["data"])
            self.position = Position(page["epoch"], self.position.offset)
            has_more = page["has_more"]

    def _subscribed(self, epoch: str) -> None:
        self.position = Position(epoch, self.position.offset)

    async def _arrived(self, publication: centrifuge.Publication) -> None:
        if publication.offset > self.position.offset:
            await self._deliver(publication.offset, publication.data)

    async def _deliver(self, offset: int, data: dict[str, Any]) -> None:
        position = Position(self.position.epoch, offset)
        await self._on_message(Incoming(position, data))
        self.position = position


class _InboxEvents(centrifuge.SubscriptionEventHandler):
    """Hands the SDK's events on."""

    def __init__(
        self, subscribed: Callable[[str], None], arrived: Callable[[centrifuge.Publication], Awaitable[None]]
    ) -> None:
        self._subscribed = subscribed
        self._arrived = arrived

    async def on_subscribed(self, ctx: centrifuge.SubscribedContext) -> None:
        """Called by the SDK before the first publication of each subscription."""
        if ctx.stream_position is not None:
            self._subscribed(ctx.stream_position.epoch)

    async def on_publication(self, ctx: centrifuge.PublicationContext) -> None:
        """Called by the SDK for each publication, in order."""
        await self._arrived(ctx.pub)
