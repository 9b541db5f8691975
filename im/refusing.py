"""What a refused command is told to whoever asked: the ledger's causes as errors with codes."""

from __future__ import annotations

from collections.abc import Mapping

from base.errors import (
    BadRequest,
    Conflict,
    Dissolved,
    GroupFull,
    Muted,
    NotFound,
    NotMember,
    Overloaded,
    PermissionDenied,
    Recalled,
    RoadsteadError,
    TooLate,
)
from im.core.commands import Cause, KeyConflict, Refused

__all__ = ["ERRORS", "error_of"]

ERRORS: Mapping[Cause, type[RoadsteadError]] = {
    Cause.NO_CONVERSATION: NotMember,
    Cause.MUTED: Muted,
    Cause.DISSOLVED: Dissolved,
    Cause.NO_MESSAGE: NotFound,
    Cause.NOT_YOURS: PermissionDenied,
    Cause.WINDOW_CLOSED: TooLate,
    Cause.RECALLED: Recalled,
    Cause.NOT_ALLOWED: PermissionDenied,
    Cause.GROUP_FULL: GroupFull,
    Cause.TOO_MANY_GROUPS: GroupFull,
    Cause.NO_MEMBER: NotFound,
    Cause.BAD_CHANGE: BadRequest,
    Cause.BLANK: BadRequest,
    Cause.BUSY: Overloaded,
}


def error_of(outcome: Refused | KeyConflict) -> RoadsteadError:
    """Return the error that the caller gets."""
    if isinstance(outcome, KeyConflict):
        return Conflict("this client_msg_id was used for something else")
    return ERRORS[outcome.cause](outcome.cause.value, **outcome.detail)
