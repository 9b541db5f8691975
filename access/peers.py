"""What access nodes say to each other about application channels.

| method    | from, to                          | meaning                                                              |
|-----------|-----------------------------------|----------------------------------------------------------------------|
| publish   | any node, owner                   | number a publication and tell everybody                              |
| read      | any node, owner                   | a page of the past, or what a subscriber missed                      |
| join      | subscribers' node, owner          | tell me what happens from here on, and what I missed                 |
| audit     | subscribers' node, owner          | I am still there: do we agree?                                       |
| members   | subscribers' node, owner (push)   | who subscribed and who left                                          |
| part      | subscribers' node, owner (push)   | tell me no more                                                      |
| presence  | any node, owner                   | who is subscribed, or how many                                       |
| kick      | any node, owner                   | end a user's subscriptions everywhere                                |
| happened  | owner, subscribers' node (push)   | publications, joins and leaves, in order                             |
| moved     | owner, subscribers' node (push)   | I am not the owner any more: join again                              |
| collect   | new owner, who may have a copy    | promise to follow me, and give me your copy                          |
| replicate | owner, backup                     | keep these publications, or this copy                                |
| drop      | owner, who had a copy (push)      | I have one that is newer                                             |
| nudge     | who has a copy, owner (push)      | you own this, and I have it                                          |

Calls to an owner fail with NotOwner, naming who is, and with NotReady while it does not have the channel yet.
"""

from __future__ import annotations

import msgspec

from access.core.stream import Draft, Entry
from base.peer import Method

__all__ = [
    "AUDIT",
    "COLLECT",
    "DROP",
    "HAPPENED",
    "JOIN",
    "KICK",
    "MEMBERS",
    "MOVED",
    "NO_BALLOT",
    "NUDGE",
    "PART",
    "PRESENCE",
    "PUBLISH",
    "READ",
    "REPLICATE",
    "Audit",
    "Audited",
    "Ballot",
    "ChannelName",
    "Collect",
    "Collected",
    "Copy",
    "Done",
    "Drop",
    "Happened",
    "Join",
    "Joined",
    "Kick",
    "MemberInfo",
    "Members",
    "Page",
    "Place",
    "Presence",
    "Present",
    "Publish",
    "Read",
    "Replicate",
    "Replicated",
]


class Done(msgspec.Struct, array_like=True, frozen=True):
    """The reply that only says that it was done."""


class ChannelName(msgspec.Struct, array_like=True, frozen=True):
    """A message that is about a channel, and says nothing else."""

    channel: str


# ---------------------------------------------------------------- who owns it


class Ballot(msgspec.Struct, array_like=True, frozen=True, order=True):
    """A claim to a channel: of two, the greater one counts. `node` in its life `life` makes each of its own once."""

    number: int = 0
    node: str = ""
    life: int = 0


NO_BALLOT = Ballot()


class Copy(msgspec.Struct, array_like=True, frozen=True):
    """A channel's stream, as somebody holds it.

    `term` is the ballot under which it was owned, `backup` who else had it then. `promised` are the ballots that its
    holder has promised to follow since: somebody may have owned the channel under each of them, and gone on from here.
    """

    epoch: str
    term: Ballot
    backup: str
    promised: list[Ballot]
    offset: int
    entries: list[Entry]


class Collect(msgspec.Struct, array_like=True, frozen=True):
    """A node that will own a channel asks for a promise and a copy."""

    channel: str
    ballot: Ballot


class Collected(msgspec.Struct, array_like=True, frozen=True):
    """The answer. It was promised if `promised` is the ballot asked for.

    `owner`: if it was refused, who owns the channel to the knowledge of the answering node. `owned`: the last ballot of
    the answering node itself, in its present life, under which it owned; number 0 for none. `is_young`: it joined the
    cluster so lately that it may not have what is its to have.
    """

    promised: Ballot
    owner: str = ""
    copy: Copy | None = None
    owned: Ballot = NO_BALLOT
    is_young: bool = False


class Replicate(msgspec.Struct, array_like=True, frozen=True):
    """Publications that follow the offset `after`; `is_whole`: everything that the owner has, replacing what was."""

    channel: str
    ballot: Ballot
    epoch: str
    after: int
    entries: list[Entry]
    is_whole: bool = False


class Replicated(msgspec.Struct, array_like=True, frozen=True):
    """The answer; it was refused if `promised` is above the ballot.

    `offset`: up to where the backup has it now, -1 if it needs the whole.
    """

    offset: int
    promised: Ballot


class Drop(msgspec.Struct, array_like=True, frozen=True):
    """The channel is owned under this ballot, with a backup: older copies are of no use."""

    channel: str
    ballot: Ballot


COLLECT = Method("access.channel.collect", Collect, Collected)
REPLICATE = Method("access.channel.replicate", Replicate, Replicated)
DROP = Method("access.channel.drop", Drop, Done)
NUDGE = Method("access.channel.nudge", ChannelName, Done)


# ---------------------------------------------------------------- what is in it


class Place(msgspec.Struct, array_like=True, frozen=True):
    """A position; offset 0 with an empty epoch in a channel without history."""

    epoch: str = ""
    offset: int = 0


class Publish(msgspec.Struct, array_like=True, frozen=True):
    """A publication; the reply is its place."""

    channel: str
    draft: Draft


class Read(msgspec.Struct, array_like=True, frozen=True):
    """Ask for the past: a page after `since` (None: from the start), or, if `recovers`, all of what came after it."""

    channel: str
    since: Place | None
    limit: int = -1
    is_reverse: bool = False
    recovers: bool = False


class Page(msgspec.Struct, array_like=True, frozen=True):
    """Where the channel stands, and what was asked for; `is_known` false: the position cannot be told from."""

    place: Place
    entries: list[Entry]
    is_known: bool = True


PUBLISH = Method("access.channel.publish", Publish, Place)
READ = Method("access.channel.read", Read, Page)


# ---------------------------------------------------------------- who follows it


class MemberInfo(msgspec.Struct, array_like=True, frozen=True):
    """A subscriber."""

    client: str
    user: str
    conn_info: bytes = b""
    chan_info: bytes = b""


class Join(msgspec.Struct, array_like=True, frozen=True):
    """A node has subscribers. It stands at `place`, None if it has none yet; `former`: who owned the channel before."""

    channel: str
    place: Place | None
    former: str = ""


class Joined(msgspec.Struct, array_like=True, frozen=True):
    """As `Page`; the entries are all that came after the node's place, if that could be told."""

    place: Place
    entries: list[Entry]
    is_known: bool


class Audit(msgspec.Struct, array_like=True, frozen=True):
    """Channels that a node follows at their owner."""

    channels: list[str]


class Audited(msgspec.Struct, array_like=True, frozen=True):
    """Of each: where it stands, None if the node does not follow it here; and the digest of the node's members.

    What the owner told the node before is on its way before this answer, on the same stream.
    """

    places: list[Place | None]
    digests: list[int]


class Members(msgspec.Struct, array_like=True, frozen=True):
    """Who subscribed and who left, at one node. `restates`: forget what was said before; `is_news`: announce it."""

    channel: str
    entered: list[MemberInfo]
    left: list[str]
    restates: bool = False
    is_news: bool = True


class Happened(msgspec.Struct, array_like=True, frozen=True):
    """News of a channel. `kicked`: a user whose subscriptions end."""

    channel: str
    epoch: str
    entries: list[Entry] = []
    joined: list[MemberInfo] = []
    left: list[MemberInfo] = []
    kicked: str = ""


class Presence(msgspec.Struct, array_like=True, frozen=True):
    """Ask who is subscribed; `counts_only`: the list stays empty."""

    channel: str
    counts_only: bool


class Present(msgspec.Struct, array_like=True, frozen=True):
    """Who is subscribed, and how many clients and users that are."""

    clients: int
    users: int
    members: list[MemberInfo] = []


class Kick(msgspec.Struct, array_like=True, frozen=True):
    """End the subscriptions of a user."""

    channel: str
    user: str


JOIN = Method("access.channel.join", Join, Joined)
AUDIT = Method("access.channel.audit", Audit, Audited)
MEMBERS = Method("access.channel.members", Members, Done)
PART = Method("access.channel.part", ChannelName, Done)
PRESENCE = Method("access.channel.presence", Presence, Present)
KICK = Method("access.channel.kick", Kick, Done)
HAPPENED = Method("access.channel.happened", Happened, Done)
MOVED = Method("access.channel.moved", ChannelName, Done)
