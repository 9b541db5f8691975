"""Carries out what the view model asks for, over the client's connections, and tells the application what to show."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, assert_never

import centrifuge

from base.clock import Instant
from base.errors import RoadsteadError
from roadstead.client.channel import Ask, Handler, Incoming, Position, report
from roadstead.client.rows import Changed, RowState, Shown
from roadstead.client.view import (
    PAGE,
    AskList,
    Effect,
    Follow,
    Listed,
    Pull,
    PullOlder,
    Redrawn,
    Told,
    Unfollow,
    ViewModel,
)

__all__ = ["FAILURES", "Update", "Viewer"]

Update = Shown | Changed | Redrawn | Listed | Told
"""What an application is told of its view."""

FAILURES = (RoadsteadError, centrifuge.CentrifugeError, TimeoutError)
"""How a call may fail."""

LIST_PAGE = 200
AT_ONCE = 4
"""Readings under way at the same time."""


class Viewer:
    """The view of one client. `run` must run for anything to be read that is missing."""

    def __init__(
        self,
        view: ViewModel,
        tell: Callable[[Update], None],
        *,
        ask: Ask,
        follow: Callable[[str, Handler, Position], Awaitable[None]],
        leave: Callable[[str], Awaitable[None]],
    ) -> None:
        """Nothing is asked before `run`.

        Args:
            view: what it keeps up to date; for reading only.
            tell: told of each change, in order. Should it raise, that is reported.
            ask: calls a method over whatever connection there is.
            follow: subscribes to a channel from a position on, over connections.
            leave: unsubscribes from it.
        """
        self.view = view
        self._told = tell
        self._ask = ask
        self._follow = follow
        self._leave = leave
        self._epoch = ""
        # Both are short: a conversation has one reading under way, and is followed or left as lists and events say.
        self._readings: asyncio.Queue[Pull | PullOlder | AskList] = asyncio.Queue()
        self._channels: asyncio.Queue[Follow | Unfollow] = asyncio.Queue()
        self._is_changed = asyncio.Event()

    async def run(self) -> None:
        """Read what is missing, when it is due, until cancelled. What is being read then is due again afterwards."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(self._read_all())
            tasks.create_task(self._follow_all())
            while True:
                self._show(self.view.advance(_now()))
                self._is_changed.clear()
                due = self.view.due
                try:
                    async with asyncio.timeout(None if due is None else (due - _now()) / 1000):
                        await self._is_changed.wait()
                except TimeoutError:
                    pass

    # ---------------------------------------------------------------- what comes

    def take(self, at: Position, data: Any, *, is_start: bool) -> None:
        """Take an entry of the timeline, or a push with the offset 0, or the start of the inbox."""
        self._is_of(at.epoch)
        if not is_start and isinstance(data, dict):
            self._show(self.view.apply(data, _now(), offset=at.offset))

    def connected(self) -> None:
        """There is a connection, perhaps after a time without one."""
        if self.view.is_loaded:
            self.view.reconnected(_now())
            self._is_changed.set()
        else:
            self._show(self.view.ask_list())

    async def load(self, ask: Ask) -> Position:
        """Read the list, and return from where on the timeline tells what is not in it. Raises what `ask` does."""
        self.view.ask_list()
        start = await self._read_list(ask)
        self.view.position = start.offset
        return start

    # ---------------------------------------------------------------- what the application does

    def echo(self, key: str, data: dict[str, Any], *, to: str, cid: str) -> None:
        """See `ViewModel.echo`."""
        self._show(self.view.echo(key, data, to=to, cid=cid))

    def answered(self, key: str, state: RowState, result: Any) -> None:
        """See `ViewModel.answered`; where a message was stored is news of its conversation, too."""
        self._show(self.view.answered(key, state, result if state == "failed" else None))
        if state == "stored" and "seq" in result:
            self.view.heard_of(str(result["cid"]), result["seq"], _now())
            self._is_changed.set()

    def read(self, cid: str, seq: int) -> None:
        """See `ViewModel.read`."""
        self._show(self.view.read(cid, seq, _now()))

    def older(self, cid: str, before: int, document: dict[str, Any], limit: int) -> None:
        """See `ViewModel.older`."""
        entries = document["entries"]
        self._is_of(document["epoch"])
        # A page is bounded by bytes too: a short one is the last one only if it goes back to the first entry.
        begins = not entries or entries[0]["seq"] <= document.get("first_seq", before)
        if self.view.older(cid, before, entries, is_all=begins and len(entries) < limit):
            self._tell(Redrawn(cid))

    def open(self, cid: str) -> None:
        """A window shows the conversation."""
        conversation = self.view.conversation(cid)
        if conversation is not None:
            self._show(self.view.open(conversation))

    # ---------------------------------------------------------------- inside

    def _show(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Pull() | PullOlder() | AskList():
                    self._readings.put_nowait(effect)
                case Follow() | Unfollow():
                    self._channels.put_nowait(effect)
                case _:
                    self._tell(effect)
        self._is_changed.set()

    def _tell(self, update: Update) -> None:
        try:
            self._told(update)
        except Exception as error:  # noqa: BLE001 - the application's own: what else changes is told all the same
            report("on_update raised", error)

    def _is_of(self, epoch: str) -> None:
        """What comes is of this epoch. If that is another one, all that is known is gone."""
        if epoch and epoch != self._epoch:
            is_another, self._epoch = bool(self._epoch), epoch
            if is_another:
                self._show([*self.view.forget(), *self.view.ask_list()])

    async def _read_all(self) -> None:
        while True:
            effect = await self._readings.get()
            match effect:
                case Pull(cid, after):
                    await self._pull(cid, after)
                case PullOlder(cid, before):
                    await self._pull_older(cid, before)
                case AskList():
                    with suppress(*FAILURES):
                        await self._read_list(self._ask)
                case _:
                    assert_never(effect)
            self._is_changed.set()

    async def _pull(self, cid: str, after: int) -> None:
        try:
            document = await self._ask("im.history", {"cid": cid, "after": after, "limit": PAGE})
        except BaseException as error:  # a close in the midst of it, too: nobody reads it any more
            self.view.page_failed(cid, _now())
            if isinstance(error, FAILURES):
                return
            raise
        self._is_of(document["epoch"])
        self._show(self.view.page(cid, document["entries"], document["head"], _now()))

    async def _pull_older(self, cid: str, before: int) -> None:
        with suppress(*FAILURES):  # it is asked for again when a window is opened
            self.older(cid, before, await self._ask("im.history", {"cid": cid, "before": before, "limit": PAGE}), PAGE)

    async def _read_list(self, ask: Ask) -> Position:
        """Read all pages. Where the timeline was before the first one is where it goes on."""
        start: Position | None = None
        after = ""
        try:
            while start is None or after:
                document = await ask("im.conversations", {"limit": LIST_PAGE} | ({"after": after} if after else {}))
                self._is_of(document["epoch"])
                if start is not None and start.epoch != document["epoch"]:
                    start, after = None, ""
                    continue
                start = start or Position(document["epoch"], document["timeline"])
                after = document["next"]
                counted = document["sync_version"] - document["timeline"]
                listed = self.view.listed(document["conversations"], _now(), is_last=not after, counted=counted)
                self._show(listed)
        except BaseException:  # a close in the midst of it, too: nobody reads it any more
            self.view.list_failed(_now())
            raise
        return start

    async def _follow_all(self) -> None:
        while True:
            effect = await self._channels.get()
            if isinstance(effect, Follow):
                start = Position(self._epoch, effect.after)
                await self._follow(f"conv:{effect.cid}", partial(self._take_of, effect.cid), start)
            else:
                await self._leave(f"conv:{effect.cid}")

    async def _take_of(self, cid: str, incoming: Incoming) -> None:
        """Take what the channel of a conversation tells: an entry, or only how far the log goes."""
        if incoming.is_start:
            self.view.heard_of(cid, incoming.position.offset, _now())
            self._is_changed.set()
        else:
            self._show(self.view.apply(incoming.data, _now()))


def _now() -> Instant:
    return Instant(int(asyncio.get_running_loop().time() * 1000))
