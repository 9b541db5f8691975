"""The Python client: a thin wrapper over the stock `centrifuge-python` SDK.

Protocol, pings and subscriptions are the SDK's; where to connect is decided here. Each connection is an SDK object of
its own: when it is lost, or the server sends a `move`, the scheduler or the move names the next node. Positions outlive
connections, so that every publication is handed over once and in order.

    client = Client(scheduler_url, user="alice", credential=user_token, on_message=show, position=saved)
    await client.connect()
    await client.send("bob", "hello")
    saved = client.position

With `on_update` it keeps a view as well (`view`): conversations with their windows, whatever way their messages come.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from base.errors import PeerUnavailable, Retry, RoadsteadError
from base.ids import entropy
from base.service import unless_stopped
from roadstead.client.channel import Channel, Handler, Incoming, Position, report
from roadstead.client.connection import DEADLINE_S, Connection
from roadstead.client.dialer import Dialer
from roadstead.client.methods import Methods
from roadstead.client.view import ViewModel
from roadstead.client.viewer import FAILURES, Update, Viewer

__all__ = ["Client", "Incoming", "Position"]

JITTER_PERCENT = 20
CLOSED = "the client was closed"


async def _ignore(_incoming: Incoming) -> None:
    """For an application that only wants the view."""


class Client(Methods):
    """One user's place in the system, from one device, over as many connections as it takes."""

    def __init__(
        self,
        scheduler: str | Sequence[str],
        *,
        user: str,
        credential: str,
        on_message: Handler = _ignore,
        on_end: Callable[[RoadsteadError], None] = lambda _error: None,
        on_update: Callable[[Update], None] | None = None,
        device: str = "python",
        platform: str = "python",
        app: str = "",
        position: Position | None = None,
        appends: bool = True,
        sync_interval_ms: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Nothing is sent before `connect`. Raises ConfigError without any scheduler.

        Args:
            scheduler: the scheduler's base URL; or those of several, of which any is asked first, and another one when
                that does not answer.
            user: who connects.
            credential: that user's token, or an API key that may act for users; may be replaced at any time.
            on_message: awaited for each entry of the user's timeline, in order, each offset once, and for what is told
                beside it. With `is_start` what came before the position was not told: it is not kept any more. While it
                runs the connection does not read, so it must not wait for a call of this client. What it raises goes
                to the event loop's exception handler, and the next entry follows.
            on_end: told why there will be no further connection: the server closed with a code that forbids to
                reconnect (`detail["close_code"]`), or a scheduler refuses the credential; RoadsteadError itself for
                a defect of the client. Told of a channel that was refused or ended by the server, too
                (`detail["channel"]`); the rest goes on then.
            on_update: told of each change of `view`, which the client keeps then. Must not wait.
            device: name of this device; the user's other devices have other names.
            platform: kind of this device, see `status.device_policy`.
            app: version of the application, such as `5.1.0`, by which a rollout may choose.
            position: where to go on reading the timeline. None: from the beginning, or with a view from when its list
                was read.
            appends: see `ViewModel`.
            sync_interval_ms: how often to look for what no push told, give or take a fifth; 0 never, since the access
                node does so by itself.
            tls: which servers to believe where addresses are `https` and `wss`; None: those of the machine's CAs.
        """
        self.user = user
        self.credential = credential
        self._on_end = on_end
        start = position or Position()
        super().__init__(self._viewer_of(ViewModel(user, appends=appends), on_update, start) if on_update else None)
        self._inbox = Channel(f"inbox:{user}", on_message, start, self._refused, self._viewer)
        self._channels = {self._inbox.name: self._inbox}
        params = {"user": user, "device": device, "platform": platform} | ({"app": app} if app else {})
        schedulers = [scheduler] if isinstance(scheduler, str) else list(scheduler)
        self._dialer = Dialer(schedulers, params, self._inbox, credential=lambda: self.credential, tls=tls)
        self._sync_interval_ms = sync_interval_ms
        self._connection: Connection | None = None
        self._end: RoadsteadError | None = PeerUnavailable("connect first")
        """Why there is no connection, nor will be one by itself; None while the keeper sees to it that there is."""
        self._is_settled = asyncio.Event()  # there is a connection, or an end
        self._is_settled.set()
        self._keeper: asyncio.Task[None] | None = None
        self._is_closed = asyncio.Event()
        """Set once what the last `connect` began is not wanted any more. Each has its own."""

    @property
    def position(self) -> Position:
        """How far the user's timeline was read."""
        return self._inbox.position

    @property
    def positions(self) -> dict[str, Position]:
        """How far each channel was read, `inbox:<user>` among them."""
        return {name: channel.position for name, channel in self._channels.items()}

    @property
    def view(self) -> ViewModel:
        """What there is to show; for reading only. Only with `on_update`."""
        assert self._viewer is not None, "give it on_update"
        return self._viewer.view

    def open_window(self, cid: str) -> None:
        """Show a window of the conversation: sorted now, and from here on only appended to. Only with `on_update`."""
        assert self._viewer is not None, "give it on_update"
        self._viewer.open(cid)

    async def connect(self) -> None:
        """Connect to a candidate and follow the inbox; returns when both work, and keeps it so until `close`.

        Raises:
            RoadsteadError: a scheduler's refusal, PeerUnavailable when no candidate let us in or no scheduler answers,
                RemoteProtocolError when what answers is none, PermissionDenied when a candidate closed for good;
                PeerUnavailable, too, when meanwhile it is closed, or another `connect` begins.
        """
        self._is_closed.set()
        is_closed = self._is_closed = asyncio.Event()
        await self._leave()
        await unless_stopped(self._begin(is_closed), is_closed)
        if is_closed.is_set():
            raise PeerUnavailable(CLOSED)

    async def subscribe(self, name: str, handler: Handler, position: Position | None = None) -> None:
        """Follow a channel from now on, or on from a position that was kept. Refused: `on_end` is told."""
        assert name not in self._channels, "one handler a channel"
        self._channels[name] = Channel(name, handler, position or Position(), self._refused)
        await self._follow_all()

    async def unsubscribe(self, name: str) -> None:
        """Leave a channel. Its position is forgotten."""
        del self._channels[name]
        if self._connection is not None:
            await self._connection.leave(name)

    async def call(self, method: str, arguments: Any) -> Any:
        """Call a method of the server and return its JSON result, waiting for a connection if there is none just now.

        Raises what the SDK raises, TimeoutError without a connection, after the end what `on_end` was told, and
        PeerUnavailable before `connect` and once the client is closed.
        """
        async with asyncio.timeout(DEADLINE_S):
            while self._connection is None:  # one that came may be lost before we are woken
                if self._end is not None:
                    raise self._end.with_traceback(None)
                await self._is_settled.wait()
        return (await self._connection.rpc(method, arguments, timeout=DEADLINE_S)).data

    async def close(self) -> None:
        """Disconnect, or stop connecting. Idempotent."""
        self._is_closed.set()
        await self._leave()

    async def _begin(self, is_closed: asyncio.Event) -> None:
        """Get the first connection and the keeper; there is no pause between these two in which a close misses one."""
        connection = await self._dialer.dial()
        if is_closed.is_set():  # in this very moment, as by a handler that was told the first entry
            await connection.disconnect()
            return
        self._end = None
        # The one task of this object: `close` cancels it and waits for it.
        self._keeper = asyncio.get_running_loop().create_task(self._keep(connection))
        await self._use(connection)

    async def _leave(self) -> None:
        """Have no connection, none that is being opened, and no keeper."""
        keeper, opening = self._keeper, self._dialer.opening  # from the first wait on there may be others
        if keeper is not None:
            keeper.cancel()
        # Before that is over: a handler that closes may be run by the keeper, and is cancelled with it.
        await self._stop(PeerUnavailable(CLOSED))
        if opening is not None:
            await opening.disconnect()
        if keeper is not None:
            await asyncio.wait([keeper])
            if self._keeper is keeper:
                self._keeper = None

    async def _stop(self, end: RoadsteadError) -> None:
        """Have calls fail with this, those that wait, too, and leave the connection if there is one."""
        self._end = end
        connection, self._connection = self._connection, None
        self._is_settled.set()
        if connection is not None:
            await connection.disconnect()

    async def _keep(self, connection: Connection) -> None:
        """Replace the connection whenever that is due, until there can be no other. Whatever ends that is told."""
        try:
            async with asyncio.TaskGroup() as tasks:
                helpers = [tasks.create_task(self._look_again())] if self._sync_interval_ms else []
                if self._viewer is not None:
                    helpers.append(tasks.create_task(self._viewer.run()))
                try:
                    while True:
                        tasks.create_task(self._dialer.measure())
                        connection = await self._successor(connection)
                        await self._use(connection)
                except RoadsteadError as error:
                    for helper in helpers:
                        helper.cancel()
                    await self._stop(error)
                    self._tell_end(error)
        except Exception as error:  # noqa: BLE001 - a defect, of which calls that wait for ever would not tell
            report("the client came to an end by a defect", error)
            if self._end is None:
                end = RoadsteadError(f"the client came to an end by a defect: {_first(error)!r}")
                await self._stop(end)
                self._tell_end(end)

    def _tell_end(self, error: RoadsteadError) -> None:
        try:
            self._on_end(error)
        except Exception as raised:  # noqa: BLE001 - the application's own
            report("on_end raised", raised)

    async def _use(self, connection: Connection) -> None:
        old, self._connection = self._connection, connection
        self._is_settled.set()
        if old is not None:
            await old.disconnect()
        elif self._viewer is not None:
            self._viewer.connected()
        await self._follow_all()

    async def _follow_all(self) -> None:
        connection = self._connection
        for channel in tuple(self._channels.values()):
            if connection is not None and connection.get_subscription(channel.name) is None:
                await connection.follow(channel)

    async def _successor(self, connection: Connection) -> Connection:
        """Wait until the connection is to be replaced, and return the open one in its place."""
        while connection.end is None:
            move, connection.move = connection.move, None
            if move is None:
                await connection.changed()
            elif (successor := await self._dialer.follow(move)) is not None:
                return successor
        self._is_settled.clear()
        self._connection = None
        await connection.disconnect()
        if connection.end.retry is Retry.NEVER:
            raise connection.end
        return await self._dialer.redial(connection)

    async def _look_again(self) -> None:
        """Read on in the timeline from time to time."""
        random = entropy()
        while True:
            percent = 100 - JITTER_PERCENT + random.randrange(2 * JITTER_PERCENT + 1)
            await asyncio.sleep(self._sync_interval_ms * percent / 100_000)
            if self._connection is not None:
                with suppress(*FAILURES):
                    await self._connection.catch_up()

    def _viewer_of(self, view: ViewModel, tell: Callable[[Update], None], start: Position) -> Viewer:
        view.position = start.offset

        async def follow(name: str, handler: Handler, position: Position) -> None:
            if name not in self._channels:
                self._channels[name] = Channel(name, handler, position, self._left)
                await self._follow_all()

        async def leave(name: str) -> None:
            if name in self._channels:
                await self.unsubscribe(name)

        return Viewer(view, tell, ask=self._acknowledged, follow=follow, leave=leave)

    def _left(self, name: str, _error: RoadsteadError) -> None:
        """The server says that a conversation's channel is not for the user any more; so does the timeline."""
        self._channels.pop(name, None)

    def _refused(self, name: str, error: RoadsteadError) -> None:
        self._channels.pop(name, None)
        self._tell_end(error)


def _first(error: BaseException) -> BaseException:
    """Return what is at the bottom of a task group's error."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
