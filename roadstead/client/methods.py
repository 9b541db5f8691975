"""What a client asks of the message services, over whatever connection it has.

Whatever changes something is tried again over lost answers and reconnects, with the same idempotency key where it needs
one. Sends into one conversation leave one at a time, in the order in which they were begun, so that none overtakes
another one that has to be sent again. An application that wants no two under way at all awaits each.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal
from weakref import WeakValueDictionary

import centrifuge

from access.core.protocol import code_number
from base.core.backoff import Backoff
from base.errors import DeadlineExceeded, RoadsteadError, from_wire
from base.ids import entropy, new_uuid
from roadstead.client.view import PAGE
from roadstead.client.viewer import Viewer

__all__ = ["Methods"]

TRIES = 5
"""How often something is asked for until its outcome is said to be unknown."""


class Methods(ABC):
    """The methods, for `Client` to have."""

    def __init__(self, viewer: Viewer | None) -> None:
        self._viewer = viewer
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Who sends into a conversation; of those into which nobody does there is none."""

    @abstractmethod
    async def call(self, method: str, arguments: Any) -> Any:
        """Call a method of the server, once."""

    # ---------------------------------------------------------------- messages

    async def send(
        self,
        to: str = "",
        body: Any = None,
        *,
        cid: str = "",
        client_msg_id: str | None = None,
        kind: str = "text",
        reply_to: int = 0,
        mentions: Sequence[str] = (),
        ack: Literal["committed", "queued"] = "committed",
    ) -> dict[str, Any]:
        """Send a message to the user `to`, or into the conversation `cid`; return {mid, cid, seq, at, is_new}.

        It returns once the message is durable. With `ack` "queued" that is all there is to tell: whether it may be
        there is found out later, and if not, a note of kind `failure` says so.

        Tried again with the same `client_msg_id`, up to five times, so that it is stored at most once. Raises
        DeadlineExceeded when the outcome is still unknown then: send again with the same id.
        """
        key = client_msg_id or new_uuid()
        arguments: dict[str, Any] = {"cid": cid} if cid else {"to": to}
        arguments |= {"client_msg_id": key, "type": kind, "body": body}
        arguments |= {"reply_to": reply_to} if reply_to else {}
        arguments |= {"mentions": list(mentions)} if mentions else {}
        arguments |= {"ack": ack} if ack != "committed" else {}
        viewer = self._viewer
        if viewer is not None:
            viewer.echo(key, arguments | {"kind": "message"}, to=to, cid=cid)
        turn = self._turns.setdefault(self._place(to, cid), asyncio.Lock())
        try:
            async with turn:
                result = await self._acknowledged("im.send", arguments)
        except RoadsteadError as error:
            if viewer is not None:
                viewer.answered(key, "failed", error)
            raise
        if viewer is not None:
            viewer.answered(key, "stored" if ack == "committed" else "queued", result)
        return result

    async def edit(
        self, cid: str, seq: int, body: Any, *, client_msg_id: str | None = None, mentions: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Replace the body of an own message."""
        arguments = {"cid": cid, "seq": seq, "client_msg_id": client_msg_id or new_uuid(), "body": body}
        arguments |= {"mentions": list(mentions)} if mentions else {}
        return await self._acknowledged("im.edit", arguments)

    async def recall(self, cid: str, seq: int, *, client_msg_id: str | None = None) -> dict[str, Any]:
        """Take a message back."""
        arguments = {"cid": cid, "seq": seq, "client_msg_id": client_msg_id or new_uuid()}
        return await self._acknowledged("im.recall", arguments)

    async def typing(self, cid: str) -> None:
        """Tell the others in the conversation that the user is typing; may be lost."""
        await self.call("im.typing", {"cid": cid})

    # ---------------------------------------------------------------- conversations

    async def conversations(self, *, limit: int = PAGE, after: str = "") -> dict[str, Any]:
        """Read a page of the user's conversations; `after` is `next` of the page before."""
        return await self._acknowledged("im.conversations", {"limit": limit} | ({"after": after} if after else {}))

    async def history(
        self, cid: str, *, before: int | None = None, after: int | None = None, limit: int = PAGE
    ) -> dict[str, Any]:
        """Read entries of a conversation: the last `limit` before a seq, or the first `limit` after one.

        With a view, what is read before what it holds is on top of it from here on.
        """
        position = {"before": before} if before is not None else {"after": after or 0}
        document = await self._acknowledged("im.history", {"cid": cid, **position, "limit": limit})
        if self._viewer is not None and before is not None:
            self._viewer.older(cid, before, document, limit)
        return document

    async def unread(self) -> dict[str, Any]:
        """Read how many messages are unread, in all and by conversation."""
        return await self._acknowledged("im.unread", {})

    async def mark_read(self, cid: str, seq: int) -> dict[str, Any]:
        """The user has read the conversation up to a seq."""
        if self._viewer is not None:
            self._viewer.read(cid, seq)
        return await self._acknowledged("im.mark", {"cid": cid, "read_seq": seq})

    async def set(
        self, cid: str, *, mute: bool | None = None, pin: bool | None = None, hide: bool | None = None
    ) -> dict[str, Any]:
        """Mute, pin or hide a conversation, or take that back."""
        wanted = {"mute": mute, "pin": pin, "hide": hide}
        arguments = {"cid": cid} | {name: value for name, value in wanted.items() if value is not None}
        return await self._acknowledged("im.set", arguments)

    async def receipts(self, cid: str, seq: int) -> dict[str, Any]:
        """Read who of the others has read an entry: {members, read, readers}."""
        return await self._acknowledged("im.receipts", {"cid": cid, "seq": seq})

    async def search(self, cid: str, text: str, *, before: int | None = None, limit: int = PAGE) -> dict[str, Any]:
        """Find messages of a conversation by words, newest first."""
        arguments = {"cid": cid, "text": text, "limit": limit}
        return await self._acknowledged("im.search", arguments | ({"before": before} if before is not None else {}))

    # ---------------------------------------------------------------- groups

    async def create_group(
        self, name: str, members: Sequence[str], *, client_msg_id: str | None = None, **settings: str
    ) -> dict[str, Any]:
        """Make a group of the user and others; `settings`: who_invites, who_joins, history."""
        arguments = {"client_msg_id": client_msg_id or new_uuid(), "name": name, "members": list(members)}
        return await self._acknowledged("im.group_create", arguments | ({"settings": settings} if settings else {}))

    async def change_group(
        self, cid: str, action: str, *, users: Sequence[str] = (), value: str = "", **settings: str
    ) -> dict[str, Any]:
        """Change a group, or who is in it. What has its effect already is no error, so that it may be tried again."""
        arguments: dict[str, Any] = {"cid": cid, "action": action}
        arguments |= {"users": list(users)} if users else {}
        arguments |= {"value": value} if value else {}
        return await self._acknowledged("im.group_change", arguments | ({"settings": settings} if settings else {}))

    async def members(self, cid: str, *, limit: int = PAGE, after: str = "") -> dict[str, Any]:
        """Read a page of who is in a group; `after` is `next` of the page before."""
        return await self._acknowledged("im.members", {"cid": cid, "limit": limit, "after": after})

    # ---------------------------------------------------------------- inside

    def _place(self, to: str, cid: str) -> str:
        """Return the name of the conversation by which its sends take turns."""
        conversation = self._viewer.view.conversation(cid) if self._viewer is not None and cid else None
        peer = to or (conversation.peer if conversation is not None else "")
        return f"to {peer}" if peer else cid

    async def _acknowledged(self, method: str, arguments: Any) -> dict[str, Any]:
        """Call until there is an answer. Raises RoadsteadError: the server's, or DeadlineExceeded without one."""
        backoff = Backoff(entropy(), base_ms=100, ceiling_ms=2_000)
        for _ in range(TRIES):
            try:
                result: dict[str, Any] = await self.call(method, arguments)
                return result
            except (centrifuge.CentrifugeError, TimeoutError) as error:
                if isinstance(error, centrifuge.ReplyError) and not error.temporary:
                    raise from_wire(code_number(error.code), error.message, {}) from error
                await asyncio.sleep(backoff.next_ms() / 1000)
        raise DeadlineExceeded(f"{method} was not acknowledged; ask again with the same client_msg_id")
