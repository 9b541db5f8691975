"""What clients and backends change: arguments checked, a command made, its outcome as a result or an error.

Nothing is retried here: after an unknown outcome it is the caller's to come again with the same key.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Callable
from typing import Protocol, TypeVar

from base.clock import Clock, Timestamp
from base.errors import Draining, RoadsteadError, Unavailable
from im.core.arguments import (
    ChangeGroupArguments,
    CreateGroupArguments,
    EditArguments,
    GroupView,
    MarkArguments,
    QueuedResult,
    RecallArguments,
    Send,
    SendResult,
    SetArguments,
    ViewResult,
    change_of,
    draft_of,
    group_of,
    mark_of,
    revise_of,
)
from im.core.commands import Appended, Command, Draft, GroupChanged, KeyConflict, Marked, Outcome, Queued, Refused
from im.core.ids import MessageIds
from im.core.snowflake import ClockWentBack
from im.refusing import error_of

__all__ = ["Writing"]


Result = TypeVar("Result")


class Commits(Protocol):
    """What has commands carried out, in the order of the calls; see `im.writer`."""

    def enqueue(self, command: Command, told: Callable[[Outcome | RoadsteadError], None]) -> None:
        """Have `told` told the command's outcome."""
        ...


class Writing:
    """The changing methods: each has its place in the order at once. `is_draining` refuses all."""

    def __init__(self, clock: Clock, ids: MessageIds, commits: Commits, *, body_bytes_max: int) -> None:
        self._clock = clock
        self._ids = ids
        self._commits = commits
        self._body_bytes_max = body_bytes_max
        self.is_draining = False

    def send(self, user: str, device: str, arguments: Send) -> Future[SendResult | QueuedResult]:
        """Store a message. Raises what `im.refusing` maps, BadRequest, LimitExceeded."""
        return self._begin(self.draft(user, device, arguments), sent)

    def edit(self, user: str, device: str, arguments: EditArguments) -> Future[SendResult]:
        """Replace a message's body."""
        return self._revise(user, device, arguments)

    def recall(self, user: str, device: str, arguments: RecallArguments) -> Future[SendResult]:
        """Take a message back."""
        return self._revise(user, device, arguments)

    def mark(
        self,
        user: str,
        device: str,
        arguments: MarkArguments | SetArguments,
        *,
        then: Callable[[Marked], None] = lambda _marked: None,
    ) -> Future[ViewResult]:
        """Change one's view of a conversation. `then` is called when that is durable; it neither waits nor raises."""

        def told(outcome: Outcome) -> ViewResult:
            marked = _marked(outcome)
            then(marked)
            return _view(marked)

        return self._begin(mark_of(arguments, user=user, device=device, at=self._now()), told)

    def create_group(self, user: str, device: str, arguments: CreateGroupArguments) -> Future[GroupView]:
        """Make a group."""
        mid, at = self._next()
        return self._begin(group_of(arguments, owner=user, device=device, mid=mid, at=at), _grouped)

    def change_group(self, by: str, device: str, arguments: ChangeGroupArguments) -> Future[GroupView]:
        """Change a group; `by` "" is the operator."""
        mid, at = self._next()
        return self._begin(change_of(arguments, by=by, device=device, mid=mid, at=at), _grouped)

    def _revise(self, user: str, device: str, arguments: EditArguments | RecallArguments) -> Future[SendResult]:
        mid, at = self._next()
        command = revise_of(arguments, sender=user, device=device, mid=mid, at=at, body_bytes_max=self._body_bytes_max)
        return self._begin(command, _revised)

    def _begin(self, command: Command, result_of: Callable[[Outcome], Result]) -> Future[Result]:
        """Have a command carried out, in the order of the calls; the future is what comes of it."""
        result: Future[Result] = asyncio.get_running_loop().create_future()

        def told(outcome: Outcome | RoadsteadError) -> None:
            if result.done():
                return  # its caller was cancelled
            try:
                if isinstance(outcome, RoadsteadError):
                    raise outcome
                result.set_result(result_of(outcome))
            except RoadsteadError as error:
                result.set_exception(error)

        self._commits.enqueue(command, told)
        return result

    def draft(self, user: str, device: str, arguments: Send) -> Draft:
        """Return the checked message, with its id. Raises BadRequest, LimitExceeded."""
        mid, at = self._next()
        return draft_of(arguments, sender=user, device=device, mid=mid, at=at, body_bytes_max=self._body_bytes_max)

    def _now(self) -> Timestamp:
        if self.is_draining:
            raise Draining("this node takes no new messages", retry_after_ms=500)
        return self._clock.realtime()

    def _next(self) -> tuple[int | str, Timestamp]:
        now = self._now()
        mid = self._ids.next(now)
        if isinstance(mid, ClockWentBack):
            raise Unavailable(f"the clock went back by {mid.by_ms} ms; waiting for it", retry_after_ms=mid.by_ms)
        return mid, now


def sent(outcome: Outcome) -> SendResult | QueuedResult:
    """Return the acknowledgement of a message, an edit or a recall. Raises what the outcome was refused with."""
    if isinstance(outcome, Appended):
        message = outcome.message
        return SendResult(str(message.mid), str(message.cid), message.seq, message.at, outcome.is_new)
    if isinstance(outcome, Queued):
        return QueuedResult(str(outcome.mid), outcome.is_new)
    assert isinstance(outcome, Refused | KeyConflict)
    raise error_of(outcome)


def _revised(outcome: Outcome) -> SendResult:
    result = sent(outcome)
    assert isinstance(result, SendResult)
    return result


def _marked(outcome: Outcome) -> Marked:
    if isinstance(outcome, Refused):
        raise error_of(outcome)
    assert isinstance(outcome, Marked)
    return outcome


def _view(marked: Marked) -> ViewResult:
    view = marked.view
    return ViewResult(
        str(view.cid),
        view.read_seq,
        view.delivered_seq,
        view.is_marked_unread,
        view.is_muted,
        view.pinned_at,
        view.hidden_seq,
        marked.is_new,
    )


def _grouped(outcome: Outcome) -> GroupView:
    if isinstance(outcome, Refused | KeyConflict):
        raise error_of(outcome)
    assert isinstance(outcome, GroupChanged)
    conversation, message = outcome.conversation, outcome.message
    group = conversation.group
    return GroupView(
        str(conversation.cid),
        message.seq if message is not None else 0,
        conversation.fan_out,
        group.name if group is not None else "",
        group.owner if group is not None else "",
        outcome.is_new,
    )
