"""Every failure that crosses a boundary: one tree, one table of codes, one retry meaning each.

    RoadsteadError(code, message, detail)
     ├─ ConfigError            every error of a configuration at once
     ├─ StoreError
     │   ├─ StoreUnavailable   the store did not answer; a write may or may not have happened
     │   ├─ CasConflict        somebody else wrote first: read again, decide again
     │   └─ SessionLost        the registry session ended: step down now
     ├─ ProtocolError
     │   ├─ LocalProtocolError   the caller on this side broke the rules
     │   └─ RemoteProtocolError  the other side broke the rules
     ├─ PeerError
     │   ├─ PeerUnavailable    no stream, or it broke before the reply
     │   └─ DeadlineExceeded   no reply in time; the outcome is unknown
     ├─ OwnershipError
     │   ├─ NotOwner           ask the owner that the newer table names
     │   └─ StaleEpoch         the caller acts on an older epoch
     ├─ Unavailable: NotReady, Draining, Overloaded, RateLimited
     ├─ AuthError: Unauthenticated, TokenExpired, PermissionDenied
     ├─ Conflict               an idempotency key came back with another payload
     ├─ Refusal: NotMember, Muted, TooLate, Recalled, GroupFull, Dissolved, PositionLost
     └─ RequestError: BadRequest, NotFound, UnknownMethod, LimitExceeded, TooLarge

Three kinds of trouble are never mixed. Our own bug is an `assert`. An expected outcome is a *value* that a core
returns. A failure outside is an exception of this tree, raised by shells and adapters only.

Codes are ranged so that a client that does not know a code still acts right on it:
1xx try the same node again, 2xx ask the scheduler again, 3xx give up, 4xx the caller's bug.
"""

from __future__ import annotations

from enum import Enum, unique
from typing import Any, ClassVar

__all__ = [
    "AuthError",
    "BadRequest",
    "CasConflict",
    "Code",
    "ConfigError",
    "Conflict",
    "DeadlineExceeded",
    "Dissolved",
    "Draining",
    "GroupFull",
    "LimitExceeded",
    "LocalProtocolError",
    "Muted",
    "NotFound",
    "NotMember",
    "NotOwner",
    "NotReady",
    "Overloaded",
    "OwnershipError",
    "PeerError",
    "PeerUnavailable",
    "PermissionDenied",
    "PositionLost",
    "ProtocolError",
    "RateLimited",
    "Recalled",
    "Refusal",
    "RemoteProtocolError",
    "RequestError",
    "Retry",
    "RoadsteadError",
    "SessionLost",
    "StaleEpoch",
    "StoreError",
    "StoreUnavailable",
    "TokenExpired",
    "TooLarge",
    "TooLate",
    "Unauthenticated",
    "Unavailable",
    "UnknownMethod",
    "from_wire",
]


class Retry(Enum):
    """What the receiver of an error may do next. Part of the wire contract."""

    SAME_NODE = "same_node"
    REROUTE = "reroute"
    NEVER = "never"


@unique
class Code(Enum):
    """A wire code: (number, HTTP status, meaning). The hundred decides the retry meaning."""

    INTERNAL = (100, 500, "a defect on our side; it is logged with its traceback")
    UNAVAILABLE = (101, 503, "a node or stream that is needed cannot be reached now")
    OVERLOADED = (102, 503, "a bounded queue is full; retry after `retry_after_ms`")
    DEADLINE_EXCEEDED = (103, 504, "no answer in time; the outcome is unknown, retry with the same key")
    NOT_READY = (104, 503, "the node is still starting or rebuilding its state")
    STORE_UNAVAILABLE = (105, 503, "the store did not answer; a write's outcome is unknown")
    CAS_CONFLICT = (106, 409, "somebody else wrote first; read again and decide again")
    RATE_LIMITED = (107, 429, "too many of these in a short time; retry after `retry_after_ms`")

    DRAINING = (201, 503, "the node takes no new work; ask the scheduler for another")
    NOT_OWNER = (202, 421, "another node owns this key; `owner` and `epoch` name it")
    STALE_EPOCH = (203, 409, "the request was made on an older table; `epoch` is the current one")
    TOKEN_EXPIRED = (204, 401, "the ticket or token is expired or already used; get a new one")

    UNAUTHENTICATED = (301, 401, "no valid credential")
    PERMISSION_DENIED = (302, 403, "the credential does not allow this")
    CONFLICT = (303, 409, "this idempotency key was used with another payload")
    SESSION_LOST = (304, 409, "the registry session behind a lock ended")
    NOT_MEMBER = (305, 403, "there is no such conversation, or the user is no member of it")
    MUTED = (306, 403, "the member may not send there for now; `until` says how long, if it is known")
    TOO_LATE = (307, 409, "the window in which a message can be edited or recalled is over")
    RECALLED = (308, 410, "the message was recalled")
    GROUP_FULL = (309, 409, "the group, or the number of the user's groups, has reached its `limit`")
    DISSOLVED = (310, 410, "the group was dissolved")
    POSITION_LOST = (311, 410, "the position is of another epoch, or beyond the end; begin from a snapshot")

    BAD_REQUEST = (400, 400, "malformed or of the wrong type; the message says where")
    CONFIG_INVALID = (401, 400, "the configuration is invalid; every error is listed")
    LOCAL_PROTOCOL = (402, 500, "this side broke the protocol")
    REMOTE_PROTOCOL = (403, 400, "the other side broke the protocol")
    NOT_FOUND = (404, 404, "there is no such thing")
    UNKNOWN_METHOD = (405, 404, "there is no such method")
    LIMIT_EXCEEDED = (406, 400, "`what` is over its `limit`")
    TOO_LARGE = (413, 413, "the body or frame is over its limit in bytes")

    def __init__(self, number: int, http_status: int, meaning: str) -> None:
        self.number = number
        self.http_status = http_status
        self.meaning = meaning

    @property
    def label(self) -> str:
        """The code's name on the wire, for people: `not_owner`."""
        return self.name.lower()

    @property
    def retry(self) -> Retry:
        """What the receiver may do next, read off the code's hundred."""
        return retry_of(self.number)


def retry_of(number: int) -> Retry:
    """Return the retry meaning of a code, known or not: its hundred decides."""
    if 100 <= number < 200:
        return Retry.SAME_NODE
    if 200 <= number < 300:
        return Retry.REROUTE
    return Retry.NEVER


class RoadsteadError(Exception):
    """The root. `code` says what and whether to retry, `detail` carries the fields that the code promises."""

    code: ClassVar[Code] = Code.INTERNAL

    def __init__(self, message: str = "", **detail: Any) -> None:
        message = message or self.code.meaning
        if not message.isascii():
            # It may quote what somebody sent, and must stand in an answer: a lone surrogate has no UTF-8.
            message = message.encode(errors="backslashreplace").decode()
        super().__init__(message)
        self.message = message
        self.detail = detail

    def __str__(self) -> str:
        return self.message

    @property
    def retry(self) -> Retry:
        """What the receiver may do next."""
        return self.code.retry


class ConfigError(RoadsteadError):
    """A configuration that cannot be used. `errors` lists every fault found, one clear line each."""

    code = Code.CONFIG_INVALID

    def __init__(self, errors: list[str]) -> None:
        assert errors
        super().__init__("\n".join(errors), errors=errors)
        self.errors = errors


class StoreError(RoadsteadError):
    """A store answered with a failure or not at all."""

    code = Code.STORE_UNAVAILABLE


class StoreUnavailable(StoreError):
    """The store did not answer. A write may have happened: read before acting on it."""

    code = Code.STORE_UNAVAILABLE


class CasConflict(StoreError):
    """A compare-and-set lost. `index` is the entry's current modify index, 0 when it does not exist."""

    code = Code.CAS_CONFLICT


class SessionLost(StoreError):
    """A registry session ended: whatever it held may belong to somebody else already."""

    code = Code.SESSION_LOST


class ProtocolError(RoadsteadError):
    """A wire protocol was broken."""

    code = Code.REMOTE_PROTOCOL


class LocalProtocolError(ProtocolError):
    """The caller on this side asked for something the protocol forbids."""

    code = Code.LOCAL_PROTOCOL


class RemoteProtocolError(ProtocolError):
    """The other side sent something the protocol forbids."""

    code = Code.REMOTE_PROTOCOL


class PeerError(RoadsteadError):
    """A call over a peer stream failed below the application."""

    code = Code.UNAVAILABLE


class PeerUnavailable(PeerError):
    """No stream to the peer, or it broke before the reply came (the outcome is then unknown)."""

    code = Code.UNAVAILABLE


class DeadlineExceeded(PeerError):
    """No reply before the deadline. The peer may have acted: the outcome is unknown."""

    code = Code.DEADLINE_EXCEEDED


class OwnershipError(RoadsteadError):
    """The request reached a node that may not serve it."""

    code = Code.NOT_OWNER


class NotOwner(OwnershipError):
    """Another node owns the key. `owner` and `epoch` come from this node's table."""

    code = Code.NOT_OWNER


class StaleEpoch(OwnershipError):
    """The caller's epoch is older than this node's. `epoch` is the current one."""

    code = Code.STALE_EPOCH


class Unavailable(RoadsteadError):
    """This node cannot serve now."""

    code = Code.UNAVAILABLE


class NotReady(Unavailable):
    """Still starting, or rebuilding state. `retry_after_ms` says when to come back."""

    code = Code.NOT_READY


class Draining(Unavailable):
    """Takes no new work. Ask the scheduler."""

    code = Code.DRAINING


class Overloaded(Unavailable):
    """A bounded queue is full. `what` names it, `retry_after_ms` says when to come back."""

    code = Code.OVERLOADED


class RateLimited(Unavailable):
    """One user, device or conversation asks too much. `what` names which, `retry_after_ms` says when to come back."""

    code = Code.RATE_LIMITED


class AuthError(RoadsteadError):
    """The caller may not do this."""

    code = Code.UNAUTHENTICATED


class Unauthenticated(AuthError):
    """No valid credential."""

    code = Code.UNAUTHENTICATED


class TokenExpired(AuthError):
    """The token was good once: expired, or single-use and used."""

    code = Code.TOKEN_EXPIRED


class PermissionDenied(AuthError):
    """The credential is valid and does not allow this."""

    code = Code.PERMISSION_DENIED


class Conflict(RoadsteadError):
    """An idempotency key was used before with another payload."""

    code = Code.CONFLICT


class Refusal(RoadsteadError):
    """The message services will not do this, as things stand there. Nothing was changed."""

    code = Code.PERMISSION_DENIED


class NotMember(Refusal):
    """There is no such conversation, or the user is no member: nobody finds out which by asking."""

    code = Code.NOT_MEMBER


class Muted(Refusal):
    """The member, or the group, is muted."""

    code = Code.MUTED


class TooLate(Refusal):
    """The window for this is over."""

    code = Code.TOO_LATE


class Recalled(Refusal):
    """The message was recalled before."""

    code = Code.RECALLED


class GroupFull(Refusal):
    """A `limit` of members or groups is reached."""

    code = Code.GROUP_FULL


class Dissolved(Refusal):
    """The group was dissolved."""

    code = Code.DISSOLVED


class PositionLost(Refusal):
    """A position that means nothing here any more."""

    code = Code.POSITION_LOST


class RequestError(RoadsteadError):
    """The caller's bug: repeating the request unchanged cannot help."""

    code = Code.BAD_REQUEST


class BadRequest(RequestError):
    """Malformed, or a field of the wrong type; the message says where."""

    code = Code.BAD_REQUEST


class NotFound(RequestError):
    """There is no such thing."""

    code = Code.NOT_FOUND


class UnknownMethod(RequestError):
    """There is no such method."""

    code = Code.UNKNOWN_METHOD


class LimitExceeded(RequestError):
    """`what` was `seen`, over its `limit`."""

    code = Code.LIMIT_EXCEEDED


class TooLarge(RequestError):
    """A body or frame is over its `limit` in bytes."""

    code = Code.TOO_LARGE


def _leaves(cls: type[RoadsteadError]) -> list[type[RoadsteadError]]:
    below = cls.__subclasses__()
    return [leaf for sub in below for leaf in _leaves(sub)] if below else [cls]


_NAMED: list[type[RoadsteadError]] = [RoadsteadError, *_leaves(RoadsteadError)]
_BY_NUMBER = {cls.code.number: cls for cls in _NAMED}


def from_wire(number: int, message: str, detail: dict[str, Any]) -> RoadsteadError:
    """Rebuild the typed exception that a peer sent.

    An unknown number becomes the class that carries its range's retry meaning, so that a node of an older
    version still does the right thing.
    """
    cls = _BY_NUMBER.get(number)
    if cls is None:
        fallback: dict[Retry, type[RoadsteadError]] = {
            Retry.SAME_NODE: PeerUnavailable,
            Retry.REROUTE: Draining,
            Retry.NEVER: BadRequest,
        }
        cls = fallback[retry_of(number)]
        message = f"{message} (code {number})"
    if cls is ConfigError:
        return ConfigError([str(error) for error in detail.get("errors") or [message]])
    error = cls(message)
    error.detail = detail  # as it came: its keys are the peer's, not ours to spread over parameters
    return error
