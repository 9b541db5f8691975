"""The methods of the message services, in one table: names, arguments, results, and what carries them out.

Clients call them by `rpc`, backends by `POST /v1/users/{user}/im/<name>`; the arguments and results are the same JSON
documents, and the OpenAPI document is made from this table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from base.errors import BadRequest, RoadsteadError, UnknownMethod
from im.core import arguments as args
from im.core.arguments import cid_of
from im.core.book import DIRECT_MAX
from im.core.commands import Draft, Marked, Outcome
from im.core.publications import receipt, typing
from im.reading import Reading
from im.writing import Writing, sent

__all__ = ["METHODS", "Caller", "Method", "Methods", "require_method"]

Cost = Literal["send", "read", "moment"]
"""Which quota a call is counted on, and what is shed first: `moment` is of no worth a second later."""


class Caller(NamedTuple):
    """Who calls: a user at a device, or a backend for it."""

    user: str
    device: str
    is_backend: bool = False


class Method(NamedTuple):
    """A method's declaration. `name` is without `im.`; `results` are the structs that it may return."""

    name: str
    arguments: type[msgspec.Struct]
    results: tuple[type[msgspec.Struct], ...]
    cost: Cost
    summary: str


METHODS = (
    Method("send", args.Send, (args.SendResult, args.QueuedResult), "send", "Send a message."),
    Method("edit", args.EditArguments, (args.SendResult,), "send", "Edit a message of one's own."),
    Method("recall", args.RecallArguments, (args.SendResult,), "send", "Take a message back."),
    Method("typing", args.TypingArguments, (args.Nothing,), "moment", "Tell that one is writing."),
    Method("sync", args.SyncArguments, (args.SyncResult,), "read", "Read one's timeline."),
    Method("history", args.HistoryArguments, (args.Entries,), "read", "Read a conversation."),
    Method("search", args.SearchArguments, (args.Search,), "read", "Search a conversation."),
    Method("conversations", args.ConversationsArguments, (args.Conversations,), "read", "List one's conversations."),
    Method("unread", args.UnreadArguments, (args.Unread,), "read", "Count what is unread."),
    Method("mark", args.MarkArguments, (args.ViewResult,), "send", "Say how far one has read."),
    Method("set", args.SetArguments, (args.ViewResult,), "send", "Mute, pin or hide a conversation."),
    Method("receipts", args.ReceiptsArguments, (args.Receipts,), "read", "Ask who has read a message."),
    Method("members", args.MembersArguments, (args.Members,), "read", "List the members of a group."),
    Method("group_create", args.CreateGroupArguments, (args.GroupView,), "send", "Make a group."),
    Method("group_change", args.ChangeGroupArguments, (args.GroupView,), "send", "Change a group."),
)

_BY_NAME = {method.name: method for method in METHODS}

_encode = msgspec.json.Encoder().encode
_NOTHING = args.Nothing()


class Methods:
    """Carries out calls: decodes arguments, asks whether the caller may just now, encodes results."""

    def __init__(
        self,
        reading: Reading,
        writing: Writing,
        *,
        admit: Callable[[Caller, Cost, str], None],
        in_turn: Callable[[Caller, Callable[[], Awaitable[msgspec.Struct]]], Awaitable[msgspec.Struct]],
        type_to: Callable[[Sequence[str], bytes], None],
        receipt_to: Callable[[Sequence[str], bytes], None],
    ) -> None:
        """Take what does the work.

        Args:
            reading: reads.
            writing: changes.
            admit: raises RateLimited or Overloaded when a call of this cost, about this conversation (`cid`, or ""), is
                too much now.
            in_turn: reads when it is the turn of this read, and raises RateLimited when too many wait.
            type_to: tells users who are online that somebody is writing.
            receipt_to: tells them how far somebody has read.
        """
        self._reading = reading
        self._writing = writing
        self._admit = admit
        self._in_turn = in_turn
        self._type_to = type_to
        self._receipt_to = receipt_to
        self._decoders = {method.name: msgspec.json.Decoder(method.arguments) for method in METHODS}
        self._run: dict[str, Callable[[Caller, Any], Awaitable[msgspec.Struct]]] = {
            "send": lambda caller, one: writing.send(caller.user, caller.device, one),
            "edit": lambda caller, one: writing.edit(caller.user, caller.device, one),
            "recall": lambda caller, one: writing.recall(caller.user, caller.device, one),
            "typing": self._typing,
            "sync": lambda caller, one: reading.sync(caller.user, one),
            "history": lambda caller, one: reading.history(caller.user, one),
            "search": lambda caller, one: reading.search(caller.user, one),
            "conversations": lambda caller, one: reading.conversations(caller.user, one),
            "unread": lambda caller, one: reading.unread(caller.user, one),
            "mark": self._mark,
            "set": lambda caller, one: writing.mark(caller.user, caller.device, one),
            "receipts": lambda caller, one: reading.receipts(caller.user, one),
            "members": lambda caller, one: reading.members(caller.user, one),
            "group_create": lambda caller, one: writing.create_group(caller.user, caller.device, one),
            "group_change": lambda caller, one: writing.change_group(caller.user, caller.device, one),
        }
        assert self._run.keys() == _BY_NAME.keys()

    def call(self, caller: Caller, name: str, data: bytes) -> Awaitable[bytes]:
        """Begin a call; what is awaited is its result as JSON.

        What changes something has its place in the order of the caller's changes when this returns.

        Raises:
            UnknownMethod: there is no such method.
            BadRequest: the arguments are malformed; the message names the field.
            RoadsteadError: what the method raises.
        """
        require_method(name)
        return self._run_decoded(caller, name, self._decode(name, data))

    def draft(self, caller: Caller, data: bytes) -> Draft:
        """Return what an `im.send` asks to be stored: most calls are such, and need no task to be carried out.

        Raises as `call` does.
        """
        arguments: args.Send = self._decode("send", data)
        self._admit(caller, "send", arguments.cid)
        return self._writing.draft(caller.user, caller.device, arguments)

    def sent(self, outcome: Outcome | RoadsteadError) -> bytes:
        """Return the result of an `im.send` as JSON. Raises what the outcome stands for."""
        if isinstance(outcome, RoadsteadError):
            raise outcome
        return _encode(sent(outcome))

    def _decode(self, name: str, data: bytes) -> Any:
        try:
            return self._decoders[name].decode(data or b"{}")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f"bad argument: {error}") from error

    def _run_decoded(self, caller: Caller, name: str, arguments: msgspec.Struct) -> Awaitable[bytes]:
        cost = _BY_NAME[name].cost
        self._admit(caller, cost, getattr(arguments, "cid", ""))
        run = self._run[name]
        return _encoded(
            self._in_turn(caller, lambda: run(caller, arguments)) if cost == "read" else run(caller, arguments)
        )

    async def _typing(self, caller: Caller, arguments: args.TypingArguments) -> args.Nothing:
        cid = cid_of(arguments.cid)
        users = await self._reading.users(cid, caller.user, at_most=DIRECT_MAX)
        self._type_to([user for user in users if user != caller.user], typing(cid, caller.user))
        return _NOTHING

    def _mark(self, caller: Caller, arguments: args.MarkArguments) -> Awaitable[args.ViewResult]:
        return self._writing.mark(caller.user, caller.device, arguments, then=self._marked)

    def _marked(self, marked: Marked) -> None:
        if marked.receivers:
            view = marked.view
            told = receipt(view.cid, view.user, read_seq=view.read_seq, delivered_seq=view.delivered_seq)
            self._receipt_to(marked.receivers, told)


def require_method(name: str) -> None:
    """Raises UnknownMethod if there is no such method."""
    if name not in _BY_NAME:
        raise UnknownMethod(f"there is no method im.{name}; there are {', '.join(sorted(_BY_NAME))}")


async def _encoded(result: Awaitable[msgspec.Struct]) -> bytes:
    return _encode(await result)
