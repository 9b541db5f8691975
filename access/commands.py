"""What a client's commands do, once it is let in: each is a call that ends with one result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from access.brokers import Brokers
from access.client import Client
from access.config import AccessConfig
from access.connecting import VERSION
from access.core.protocol import (
    EMPTY,
    ClientError,
    Close,
    Command,
    RefreshRequest,
    RefreshResult,
    ReplyError,
    Result,
    RpcRequest,
    RpcResult,
    SubscribeResult,
    error_of,
)
from access.identity import Identities, ttl_of
from access.metrics import AccessMetrics
from access.presence import GET_PRESENCE, SET_PRESENCE
from base.errors import NotReady, Overloaded, PeerUnavailable, RoadsteadError, TokenExpired
from base.log import logger
from base.site import Site
from im.api import RpcReply
from im.client import ImClient
from status.client import SessionReports

__all__ = ["Commands"]

_Finished = Callable[[Client, int, str, Result | Close], bool]


class Commands:
    """Runs commands."""

    def __init__(
        self,
        config: AccessConfig,
        site: Site,
        *,
        brokers: Brokers,
        identities: Identities,
        im: ImClient,
        reports: SessionReports,
        metrics: AccessMetrics,
    ) -> None:
        self._config = config
        self._clock = site.clock
        self._brokers = brokers
        self._identities = identities
        self._im = im
        self._reports = reports
        self._metrics = metrics
        self._waiting: dict[str, int] = {}
        """By client id: calls of the message services that wait for a stream."""
        self._log = logger(node=site.name)

    def begin(self, client: Client, command: Command, kind: str, finished: _Finished) -> bool:
        """Begin what needs no task: a call of the message services, which is nearly all that clients ask.

        False, and nothing was begun, for everything else.
        """
        request = command.rpc
        if kind != "rpc" or request is None or request.method in {SET_PRESENCE, GET_PRESENCE}:
            return False
        opened = client.opened
        assert opened is not None
        if client.id in self._waiting:
            self._waiting[client.id] += 1
            return False  # calls of a client leave in their order
        started = self._clock.stopwatch()

        def done(reply: RpcReply | RoadsteadError) -> None:
            self._metrics.rpcs.observe(self._clock.stopwatch() - started)
            result = error_of(reply) if isinstance(reply, RoadsteadError) else RpcResult(msgspec.Raw(reply.data))
            self._count(kind, result)
            finished(client, command.id, kind, result)

        try:
            self._im.ask(opened.user, opened.device, request.method, bytes(request.data), done=done)
        except PeerUnavailable:
            self._waiting[client.id] = 1
            return False  # a task waits for the stream, for a while
        except RoadsteadError as error:
            done(error)
        return True

    async def run(self, client: Client, command: Command, kind: str, finished: _Finished) -> None:
        """Do what a command asks, and tell its result.

        What a client sent before it went is still done, but nothing is opened for it any more.
        """
        if kind == "subscribe" and not client.session.is_waiting(command.id):
            return
        result: Result | Close
        try:
            result = await self._do(client, command, kind)
        except RoadsteadError as error:
            result = error_of(error)
        except Exception:  # noqa: BLE001 - our own bug costs this command, not the node its clients
            self._log.exception("command_failed", kind=kind, client=client.id)
            result = ClientError.INTERNAL.wire
        self._count(kind, result)
        was_told = finished(client, command.id, kind, result)
        if was_told and isinstance(result, SubscribeResult):
            assert command.subscribe is not None
            channel = command.subscribe.channel
            self._brokers.of(channel).subscribed(client, channel, result)

    def _count(self, kind: str, result: Result | Close) -> None:
        if isinstance(result, ReplyError):
            self._metrics.command_errors.inc(kind, str(result.code))

    async def _do(self, client: Client, command: Command, kind: str) -> Result | Close:
        request = getattr(command, kind)
        if kind == "rpc":
            return await self._rpc(client, command.id, request)
        if kind == "refresh":
            return self._refresh(client, request)
        return await self._of_channel(client, kind, request)

    async def _of_channel(self, client: Client, kind: str, request: Any) -> Result:
        broker = self._brokers.of(request.channel)
        result: Result
        match kind:
            case "subscribe":
                result = await broker.subscribe(client, request)
            case "unsubscribe":
                broker.unsubscribe(client, request.channel)
                result = EMPTY
            case "publish":
                result = await broker.publish(client, request) or EMPTY
            case "history":
                result = await broker.history(client, request)
            case "presence":
                result = await broker.presence(client, request.channel)
            case "presence_stats":
                result = await broker.presence_stats(client, request.channel)
            case _:
                assert kind == "sub_refresh", kind
                result = await broker.refresh(client, request)
        return result

    def _refresh(self, client: Client, request: RefreshRequest) -> RefreshResult | Close:
        now = self._clock.realtime()
        try:
            client.expires_at = self._identities.renew(request.token, client.user, now)
        except TokenExpired:
            # An SDK stops for good at any error here. Closed by this, it comes back with a token that it asks for anew.
            return Close.EXPIRED
        ttl = ttl_of(client.expires_at, now)
        return RefreshResult(client=client.id, version=VERSION, expires=ttl > 0, ttl=ttl)

    async def _rpc(self, client: Client, command_id: int, request: RpcRequest) -> RpcResult:
        started = self._clock.stopwatch()
        opened = client.opened
        assert opened is not None
        try:
            if request.method == SET_PRESENCE:
                data = await self._set_presence(client, command_id, bytes(request.data))
            elif request.method == GET_PRESENCE:
                data = await self._brokers.presences.get(opened.user, bytes(request.data))
            else:
                data = await self._call(client, request)
        finally:
            self._metrics.rpcs.observe(self._clock.stopwatch() - started)
        return RpcResult(msgspec.Raw(data))

    async def _call(self, client: Client, request: RpcRequest) -> bytes:
        """Make a call of the message services that `begin` had to leave to wait."""
        assert client.opened is not None
        try:
            return await self._im.rpc(client.opened.user, client.opened.device, request.method, bytes(request.data))
        finally:
            self._waiting[client.id] -= 1
            if not self._waiting[client.id]:
                del self._waiting[client.id]

    async def _set_presence(self, client: Client, command_id: int, data: bytes) -> bytes:
        """Change what others see of the session; the answer comes when they do."""
        assert client.opened is not None
        opened = self._brokers.presences.changed(client.opened, data)
        if not client.session.is_waiting(command_id):
            raise NotReady("the connection is closed")  # and nothing of it may be reported any more
        former, client.opened = client.opened, opened
        try:
            is_confirmed = await self._reports.open(opened, deadline_ms=self._config.publish_deadline_ms)
        except Overloaded:
            client.opened = former  # nothing of it was reported, and nothing shall be with the next change
            raise
        if not is_confirmed:
            raise NotReady("not confirmed in time; it will be, or set it again")
        return b"{}"
