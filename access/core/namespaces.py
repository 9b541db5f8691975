"""Which application channels there are, and who may do what in them.

A channel's name is `namespace:rest`, or just `rest` for the namespace with the empty name. A namespace exists if it is
configured; by default there is none. What follows the last `#` of a name is its *user boundary*: only the users listed
there, parted by commas, may enter, and they need no token. `#42` is the personal channel of user 42.

| request           | is allowed                                                                              |
|-------------------|-----------------------------------------------------------------------------------------|
| subscribe         | inside a boundary: to the users named; else to anyone, or with a token for this channel |
| publish           | if the namespace says so: to subscribers, or to anyone who may be inside the boundary   |
| history, presence | the same, if the namespace keeps one at all                                             |

Whoever holds a valid token for a channel may subscribe to it whatever its boundary says: the backend signed it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from access.core.protocol import ClientError
from base.config import Section

__all__ = ["RESERVED", "Channel", "ChannelSettings", "Namespace", "Namespaces", "namespace_problems"]

NAME_BYTES_MAX = 255
RESERVED = frozenset({"inbox", "conv", "presence"})
"""Namespaces of the system's own channels."""

Audience = Literal["nobody", "subscriber", "anyone"]


class Namespace(Section, frozen=True, kw_only=True):
    """A table of `[[access.namespaces]]`: what all channels of a namespace have in common."""

    name: Annotated[
        str, Meta(max_length=64, description="What stands before the first `:`; empty: the channels without one.")
    ] = ""
    history_size: Annotated[
        int,
        Meta(
            ge=0,
            le=10_000,
            description="How many publications each channel keeps. 0: none, and publications have no offset, so that "
            "what is lost on the way to a client is not noticed.",
        ),
    ] = 0
    history_ttl_ms: Annotated[
        int, Meta(ge=1_000, description="How long a publication is kept (ms). Raising it costs memory.")
    ] = 300_000
    presence: Annotated[bool, Meta(description="Whether a channel knows who is subscribed.")] = False
    join_leave: Annotated[
        bool, Meta(description="Whether subscribers that ask for it are told who joins and leaves, at most once.")
    ] = False
    force_push_join_leave: Annotated[
        bool, Meta(description="Whether all subscribers are told who joins and leaves.")
    ] = False
    force_positioned: Annotated[
        bool, Meta(description="Whether every subscriber is told when it missed something, so that it starts over.")
    ] = False
    force_recovery: Annotated[
        bool, Meta(description="Whether every subscriber gets what it missed when it comes back.")
    ] = False
    allow_subscribe: Annotated[
        Literal["token", "anyone"],
        Meta(description="Who may subscribe: who has a token for the channel, or anyone who is connected."),
    ] = "token"
    allow_publish: Annotated[Audience, Meta(description="Which clients may publish. Backends always may.")] = "nobody"
    allow_history: Annotated[Audience, Meta(description="Which clients may read the history.")] = "nobody"
    allow_presence: Annotated[Audience, Meta(description="Which clients may ask who is subscribed.")] = "nobody"
    publish_bytes_max: Annotated[
        int, Meta(ge=1, le=1_048_576, description="Longest data of a publication (bytes), else error 106.")
    ] = 65_536

    def problems(self) -> Iterable[str]:
        """A name must be usable; recovery needs a history, and telling who joins needs to know it."""
        if ":" in self.name or "#" in self.name or not self.name.isprintable():
            yield f"name {self.name!r} must be printable, without `:` and `#`"
        if self.name in RESERVED:
            yield f"the namespace {self.name!r} is the system's own"
        if (self.force_recovery or self.force_positioned) and not self.history_size:
            yield "force_recovery and force_positioned need a history: set history_size"
        if self.force_push_join_leave and not self.join_leave:
            yield "force_push_join_leave needs join_leave"


class ChannelSettings(Section, frozen=True, kw_only=True):
    """The `[access.channels]` section: limits of application channels at one access node."""

    per_client_max: Annotated[
        int, Meta(ge=1, description="Application channels that one client may subscribe to, else error 106.")
    ] = 128
    subscribe_personal: Annotated[
        bool,
        Meta(description="Whether the server subscribes each client to the personal channel of its user, `#<user>`."),
    ] = False
    streams_max: Annotated[
        int,
        Meta(
            ge=1,
            description="Channels with a history that this node owns; it keeps about as many copies for other nodes. "
            "For one more it gives up one that keeps no publications and has no subscribers, or refuses it: error 111.",
        ),
    ] = 100_000
    history_bytes_max: Annotated[
        int,
        Meta(
            ge=1_048_576,
            description="Memory for all histories that this node keeps (bytes). Beyond, the channels that were quiet "
            "for longest lose theirs, and whoever comes back to them is told that it could not recover.",
        ),
    ] = 268_435_456


def namespace_problems(namespaces: Iterable[Namespace]) -> Iterable[str]:
    """Yield what is wrong between namespaces, one line each."""
    for name, count in Counter(namespace.name for namespace in namespaces).items():
        if count > 1:
            yield f"the namespace {name!r} is defined {count} times"


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel that exists by its name."""

    name: str
    namespace: Namespace
    users: frozenset[str] | None
    """Who may be inside, None for no boundary."""

    @property
    def has_members(self) -> bool:
        """Whether somebody has to know who is subscribed."""
        return self.namespace.presence or self.namespace.join_leave

    def admits(self, user: str) -> bool:
        """Return whether the boundary, if there is one, lets the user in."""
        return self.users is None or user in self.users


class Namespaces:
    """The rules. Each question returns the channel, or with which error the request is to be refused."""

    def __init__(self, namespaces: Iterable[Namespace]) -> None:
        """Of namespaces with the same name the last one counts; see `namespace_problems`."""
        self._by_name = {namespace.name: namespace for namespace in namespaces}

    def find(self, name: str) -> Channel | ClientError:
        """Return the channel: BAD_REQUEST for what is no name, UNKNOWN_CHANNEL without such a namespace."""
        if not _is_name(name):
            return ClientError.BAD_REQUEST
        before, colon, _ = name.partition(":")
        namespace = self._by_name.get(before if colon else "")
        if namespace is None:
            return ClientError.UNKNOWN_CHANNEL
        _, boundary, users = name.rpartition("#")
        return Channel(name, namespace, frozenset(users.split(",")) if boundary else None)

    def personal(self, user: str) -> str | None:
        """Return the name of a user's personal channel, None if it cannot be one."""
        name = f"#{user}"
        channel = self.find(name)
        return name if isinstance(channel, Channel) and channel.users == frozenset({user}) else None

    def may_subscribe(self, name: str, user: str, *, has_token: bool) -> Channel | ClientError:
        """Decide on a subscription. `has_token`: a token for this channel and user was checked and is good."""
        channel = self.find(name)
        if isinstance(channel, ClientError) or has_token:
            return channel
        is_open = user in channel.users if channel.users is not None else channel.namespace.allow_subscribe == "anyone"
        return channel if is_open else ClientError.PERMISSION_DENIED

    def may_publish(self, name: str, user: str, size: int, *, is_subscribed: bool) -> Channel | ClientError:
        """Decide on a client's publication of `size` bytes."""
        channel = self.find(name)
        if isinstance(channel, ClientError):
            return channel
        if not _is_allowed(channel, user, channel.namespace.allow_publish, is_subscribed=is_subscribed):
            return ClientError.PERMISSION_DENIED
        return channel if size <= channel.namespace.publish_bytes_max else ClientError.LIMIT_EXCEEDED

    def may_read_history(self, name: str, user: str, *, is_subscribed: bool) -> Channel | ClientError:
        """Decide on a look into the past; NOT_AVAILABLE where none is kept."""
        channel = self.find(name)
        if isinstance(channel, ClientError):
            return channel
        if not channel.namespace.history_size:
            return ClientError.NOT_AVAILABLE
        is_allowed = _is_allowed(channel, user, channel.namespace.allow_history, is_subscribed=is_subscribed)
        return channel if is_allowed else ClientError.PERMISSION_DENIED

    def may_see_presence(self, name: str, user: str, *, is_subscribed: bool) -> Channel | ClientError:
        """Decide on a look at who is subscribed; NOT_AVAILABLE where nobody knows."""
        channel = self.find(name)
        if isinstance(channel, ClientError):
            return channel
        if not channel.namespace.presence:
            return ClientError.NOT_AVAILABLE
        is_allowed = _is_allowed(channel, user, channel.namespace.allow_presence, is_subscribed=is_subscribed)
        return channel if is_allowed else ClientError.PERMISSION_DENIED


def _is_name(name: str) -> bool:
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return False
    return 0 < size <= NAME_BYTES_MAX and name.isprintable()


def _is_allowed(channel: Channel, user: str, audience: Audience, *, is_subscribed: bool) -> bool:
    if audience == "nobody":
        return False
    return is_subscribed or (audience == "anyone" and channel.admits(user))
