"""What an access node writes into a store whose records expire: its sessions, in rounds, and what changed at once.

In such a store a record stays only while it is refreshed. The article refreshes with every client's heartbeat; here an
access node refreshes all its sessions once an interval, in batches, and each user has a fixed phase of the interval,
drawn from the hash of its name, so that the writes are spread evenly whenever the clients came.

A *lane* is one range of the store's hash slots and has one batch in flight, so that the writes of one user never
overtake each other, and a part of the store that hangs holds up its own lanes only.

Whose write failed waits apart, to be tried again when the shell says so: a part of the store that is away for long has
any number of them, and they must not keep the others of their lane from being refreshed.

Invariants:
    I1  Every held session is written at least once in each round of phases, and soon after it changed; but for users
        whose last write failed, who are written again with the retries.
    I2  Per session the connection with the greatest conn_seq wins; closing an earlier one changes nothing.
    I3  A session is confirmed only by a write that carried it as it was reported.
    I4  What was written and is not held any more is removed, unless too much is waiting: then it expires by itself.
    I5  Retries take what the others leave of a batch, and half of it if there is more of both.
    I6  A user waits in one queue: what changed, what is due, or what failed.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterable
from itertools import islice

import msgspec

from base.clock import Timestamp
from base.ids import Incarnation, NodeId
from status.api import OFFLINE, Closed, Opened, SessionView, State, UserStatus

__all__ = ["BATCH_MAX", "LANES", "PHASES", "RefreshLane", "Write", "key_of", "lane_of", "status_of"]

LANES = 8
PHASES = 16
BATCH_MAX = 500
GONE_MAX = 10_000
SLOTS = 16_384

_RANK: dict[str, int] = {"busy": 3, "online": 2, "away": 1, "invisible": 0}


class Member(msgspec.Struct, frozen=True, array_like=True):
    """One session as it stands in the store. A change of any field makes another member."""

    session: str
    device: str
    platform: str
    node: str
    incarnation: int
    conn_seq: int
    state: State
    since: Timestamp


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Member)


class Write(msgspec.Struct, frozen=True):
    """What is to be done to one user's records in one step: remove `gone`, then write or refresh `held`."""

    user: str
    gone: tuple[bytes, ...]
    held: tuple[bytes, ...]
    sessions: tuple[str, ...]
    """The sessions of `held`."""


class RefreshLane:
    """The sessions of one lane, and what of them must be written."""

    def __init__(self, node: NodeId, incarnation: Incarnation) -> None:
        self._node = node
        self._incarnation = incarnation
        self._users: dict[str, dict[str, tuple[Opened, bytes]]] = {}
        self._gone: dict[str, dict[bytes, None]] = {}
        self._gone_count = 0
        self._urgent: dict[str, None] = {}
        self._due: dict[str, None] = {}
        self._failed: dict[str, None] = {}
        self._phases: list[dict[str, None]] = [{} for _ in range(PHASES)]

    @property
    def has_work(self) -> bool:
        """Whether `next_batch` would return something, retries apart."""
        return bool(self._urgent or self._due)

    @property
    def has_failed(self) -> bool:
        """Whether there is something to retry."""
        return bool(self._failed)

    def open(self, opened: Opened) -> bytes:
        """Hold a session that was opened or changed; return the member that stands for it once it is written."""
        sessions = self._users.setdefault(opened.user, {})
        before = sessions.get(opened.session)
        if before is not None and before[0].conn_seq > opened.conn_seq:
            self._hurry(opened.user)
            return before[1]  # I2
        member = self._member(opened)
        if before is not None and before[1] != member:
            self._remove(opened.user, before[1])
        self._keep(opened.user, member)
        sessions[opened.session] = (opened, member)
        self._phase(opened.user)[opened.user] = None
        self._hurry(opened.user)
        return member

    def close(self, closed: Closed) -> None:
        """Let go of a session, unless a later connection has it."""
        sessions = self._users.get(closed.user, {})
        held = sessions.get(closed.session)
        if held is None or held[0].conn_seq > closed.conn_seq:
            return  # I2
        del sessions[closed.session]
        if not sessions:
            del self._users[closed.user]
            del self._phase(closed.user)[closed.user]
        self._remove(closed.user, held[1])
        self._hurry(closed.user)

    def tick(self, number: int) -> None:
        """The phase with this number, counted on and on, is due."""
        self._make_due(self._phases[number % PHASES])

    def resync(self) -> None:
        """Everything is due: the store may have lost what was written."""
        self._make_due(self._users)

    def next_batch(self, *, is_retrying: bool = False) -> list[Write]:
        """Return what to write now, changes first; each must be followed by `written` or `failed`.

        `is_retrying`: with some of whom the last write failed, those first who wait longest (I5).
        """
        retries = min(len(self._failed), BATCH_MAX // 2) if is_retrying else 0
        users = self._taken(self._urgent, BATCH_MAX - retries)
        users += self._taken(self._due, BATCH_MAX - retries - len(users))
        if is_retrying:
            users += self._taken(self._failed, BATCH_MAX - len(users))
        writes = [self._write(user) for user in users]
        return [write for write in writes if write.held or write.gone]

    def written(self, write: Write) -> tuple[tuple[str, bytes], ...]:
        """The store did it. Return the sessions that are confirmed, each with the member that was written (I3)."""
        for member in write.gone:
            self._keep(write.user, member)
        return tuple(zip(write.sessions, write.held, strict=True))

    def failed(self, write: Write) -> None:
        """The store did not do it, or did not say so: it comes again with the retries, or sooner if it changed."""
        self._due.pop(write.user, None)
        if write.user not in self._urgent:
            self._failed[write.user] = None

    def statistics(self) -> dict[str, int]:
        """Return a snapshot of sizes."""
        return {
            "sessions": sum(map(len, self._users.values())),
            "backlog": len(self._urgent) + len(self._due) + len(self._failed),
            "removals": self._gone_count,
        }

    def check_invariants(self) -> None:
        """Assert I6, and what one state shows of I1 and I4."""
        phased = [user for phase in self._phases for user in phase]
        assert sorted(phased) == sorted(self._users), "I1"
        assert all(self._users.values())
        assert all(self._gone.values())
        assert self._gone_count == sum(map(len, self._gone.values())) <= GONE_MAX, "I4"
        queued = self._urgent.keys() | self._due.keys() | self._failed.keys()
        assert len(queued) == len(self._urgent) + len(self._due) + len(self._failed), "I6"

    def _write(self, user: str) -> Write:
        sessions = self._users.get(user, {})
        held = tuple(member for _, member in sessions.values())
        return Write(user, tuple(self._gone.get(user, ())), held, tuple(sessions))

    def _phase(self, user: str) -> dict[str, None]:
        return self._phases[_slot(user) % PHASES]

    def _hurry(self, user: str) -> None:
        self._failed.pop(user, None)
        self._due.pop(user, None)
        self._urgent[user] = None

    def _make_due(self, users: Iterable[str]) -> None:
        self._due.update((user, None) for user in users if user not in self._urgent and user not in self._failed)

    @staticmethod
    def _taken(queue: dict[str, None], count: int) -> list[str]:
        """Take the first users out of a queue."""
        users = list(islice(queue, count))
        for user in users:
            del queue[user]
        return users

    def _member(self, opened: Opened) -> bytes:
        return _ENCODER.encode(
            Member(
                session=opened.session,
                device=opened.device,
                platform=opened.platform,
                node=self._node,
                incarnation=self._incarnation,
                conn_seq=opened.conn_seq,
                state=opened.state,
                since=opened.since,
            )
        )

    def _remove(self, user: str, member: bytes) -> None:
        if self._gone_count < GONE_MAX:
            self._gone.setdefault(user, {})[member] = None
            self._gone_count += 1

    def _keep(self, user: str, member: bytes) -> None:
        """The member needs no removal (any more)."""
        gone = self._gone.get(user)
        if gone is not None and member in gone:
            del gone[member]
            self._gone_count -= 1
            if not gone:
                del self._gone[user]


def status_of(encoded: Iterable[bytes]) -> UserStatus:
    """Return the status that a user's live members make. What is no member of ours is ignored.

    Of one session the connection with the greatest (incarnation, conn_seq) counts, of equals the last given; of one
    access node only its newest life that is seen here.
    """
    newest: dict[str, Member] = {}
    lives: dict[str, int] = {}
    for data in encoded:
        try:
            member = _DECODER.decode(data)
        except msgspec.MsgspecError:
            continue
        lives[member.node] = max(member.incarnation, lives.get(member.node, 0))
        before = newest.get(member.session)
        if before is None or (before.incarnation, before.conn_seq) <= (member.incarnation, member.conn_seq):
            newest[member.session] = member
    views = tuple(
        SessionView(member.session, member.device, member.platform, member.node, member.state, member.since)
        for member in sorted(newest.values(), key=lambda member: (member.since, member.session))
        if member.incarnation == lives[member.node]
    )
    if not views:
        return OFFLINE
    return UserStatus(max((view.state for view in views), key=_RANK.__getitem__), views)


def key_of(user: str) -> bytes:
    """Return the key of a user's records. Its hash tag is the user, so all keys of one user are in one slot."""
    return b"status:{%s}" % _tag(user)


def lane_of(user: str) -> int:
    """Return the user's lane. Lanes are ranges of slots, as the shards of a Redis Cluster are."""
    return _slot(user) * LANES // SLOTS


def _slot(user: str) -> int:
    return crc_hqx(_tag(user), 0) % SLOTS


def _tag(user: str) -> bytes:
    # A brace would end the tag early.
    return user.replace("%", "%25").replace("}", "%7D").encode("utf-8", "surrogatepass")
