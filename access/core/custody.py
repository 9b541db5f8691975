"""Who may number a channel's publications: one node at a time, with a second one that has all of them.

`placement` says who should own a channel. This core makes it so, although every node decides by a view of its own,
nodes die, and messages come late, twice or never. A claim to a channel is a *ballot*. Before it owns, a node collects
the promise of everybody who may have a copy to follow no smaller ballot, and takes the newest copy; a ballot under
which it owns is a *term*. It numbers publications, and each is *committed* once its backup has it, too: only then the
publisher gets its answer and the subscribers get the publication. Whoever was promised a greater ballot refuses to be
the backup of an older term, so an owner that was replaced can commit nothing and learns of it.

```
             asked as owner         all have promised
    (nothing) ───────▶ collecting ──────────────────▶ owner ──▶ installs its copy at the backup, then commits
        ▲                  │  ▲                         │
        │   refused, or    │  │ asked again             │ promises a greater ballot, or is refused by the backup
        └── unreachable ◀──┘  └──────── copy ◀──────────┘
                                         └── told that a newer one is installed: dropped
```

Rules:
    R1  A node promises only to whom it considers the owner, and only ballots above those it promised before.
    R2  A new owner asks the two nodes next in order (draining ones included: the former owner is among them), whomever
        it was pointed to, and whomever a copy names as its owner, its backup, or as promised. While there is no copy,
        it goes on along the order until two nodes that are not young have answered, since any number of new nodes may
        stand before who had the channel until now. Each must answer, or be gone from the view.
    R3  An owner whose backup changes does the same, asking only the old backup: so its copy cannot be taken for new.
    R4  A copy whose holder has promised ballots since its term is in doubt: somebody may have gone on from it. Unless
        the nodes of all these ballots say that they never owned under them, the new owner keeps the publications and
        begins a new epoch, so that no offset of the old one can be given twice.
    R5  If somebody in R2 neither answers nor is gone for `FORK_AFTER_MS`, the new owner no longer waits for it: what it
        has is in doubt, then, and if it has nothing, the channel begins anew.
    R6  Who was missing from its own view was thought dead, and its copies are in doubt.
    R7  An owner without room for another channel gives one up that keeps no publications, of which its backup has all
        it has, and that nobody follows; one in which nothing was ever published comes first. It has others drop their
        copies, and remembers what it promised and that it owned. A copy that is left nevertheless is the backup's,
        which is as good as its own was, or in doubt by R4. So whoever makes up names, as everybody may who is in their
        boundary, keeps nobody else from a channel for longer than publications are kept.

Invariants:
    I1  In an epoch no two publications that were committed have the same offset.
    I2  What was committed is in every later copy that an owner goes on from, unless owner and backup died together, or
        R5 applied.
    I3  Claims are under way only for channels that are held, and under what was promised last.

I1 and I2 are of the whole cluster: `tests/access/test_channel_histories.py` runs histories of nodes. What a node holds
is `holding`, with invariants of its own.

Sources: L. Lamport, "The part-time parliament" (ACM TOCS 1998), for ballots and promises; L. Lamport, D. Malkhi and L.
Zhou, "Vertical Paxos and primary-backup replication" (PODC 2009), for primary and backup. Ours is weaker than both by
R5, which prefers an answer to safety where a node hangs but is not declared dead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from access.core.holding import Holding, Shelf
from access.core.placement import View
from access.core.stream import Draft, Entry, Stream
from access.peers import NO_BALLOT, Ballot, Collect, Collected, Copy, Replicate, Replicated
from base.clock import Instant, Timestamp

__all__ = ["Custody", "Duty", "Forgotten", "Outcome", "Progress", "Step"]

ASKED_BESIDE = 2
ASKED_MAX = 8
"""How far along the order a copy is looked for."""
YOUNG_MS = 60_000
"""How long after it joined a node counts as young: by then everything is where it should be."""
FORK_AFTER_MS = 3_000
"""How long a node that is registered but does not answer can keep a channel from its new owner."""
TAIL_MAX = 1_000
"""Publications that may wait for the backup; more are refused."""
TAIL_BYTES_MAX = 2 * 1024 * 1024
"""Their bytes. With what a stream keeps they must fit into one message to another node."""
LOOKS = 100
"""Channels of either kind looked at for one that may be given up (R7)."""


class Duty(Enum):
    """What a node has to do about a channel, by its view."""

    NOTHING = "nothing"
    CLAIM = "claim"
    """Own it, or make another node the backup: `begin`."""
    REPLICATE = "replicate"
    """Give the backup what it lacks: `pending`."""
    NUDGE = "nudge"
    """Tell the owner that there is a copy here."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a claim ended. Not owned: `owner` is who is, to the knowledge of somebody; empty: try again."""

    is_owned: bool
    owner: str = ""
    committed: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """What to do next for a claim: send Collect to `ask`; with an outcome it is over."""

    ballot: Ballot
    ask: tuple[str, ...] = ()
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """What an answer of the backup brought about."""

    committed: tuple[Entry, ...] = ()
    drop: tuple[str, ...] = ()
    """Nodes to be told that their copies are old."""
    is_deposed: bool = False
    """Not the owner any more: whoever waits for a commit is told that the outcome is unknown."""
    must_claim: bool = False
    """The backup follows a later ballot of this node: begin again."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A channel that gave way to another: `nodes` are to be told that copies older than the ballot are of no use."""

    channel: str
    ballot: Ballot
    nodes: tuple[str, ...]


@dataclass(slots=True)
class _Claim:
    ballot: Ballot
    new_epoch: str
    former: tuple[str, ...]
    before: Ballot
    """What was promised before it began."""
    asked: set[str]
    waiting: set[str]
    is_outbid: bool = False
    """It follows one that was refused for its number, and is not followed by another."""
    missing: set[str] = field(default_factory=set)
    copies: dict[str, Copy] = field(default_factory=dict)
    owned: dict[str, Ballot] = field(default_factory=dict)
    young: set[str] = field(default_factory=set)


class Custody:
    """The channels with a history of which a node is owner or backup, or has something to do with."""

    def __init__(
        self,
        node: str,
        life: int,
        *,
        keeps: Callable[[str], tuple[int, int]],
        is_followed: Callable[[str], bool],
        owned_max: int,
        bytes_max: int,
    ) -> None:
        """Begin with nothing.

        Args:
            node: this node's name.
            life: its restart number.
            keeps: how many publications a channel keeps, and for how long (ms).
            is_followed: whether a channel that this node owns has subscribers.
            owned_max: channels that it may own.
            bytes_max: memory for all publications; the channels that were quiet for longest lose theirs.
        """
        self.node = node
        self.view = View()
        self._life = life
        self._is_followed = is_followed
        self._owned_max = owned_max
        self._owned = 0
        # As many copies again are kept for others.
        self._shelf = Shelf(keeps=keeps, bytes_max=bytes_max, many=2 * owned_max)
        self._claims: dict[str, _Claim] = {}
        self._joined_at: Instant | None = None

    def adopt(self, view: View, now: Instant) -> list[str]:
        """Go by a newer view. What it obliges to is told by `duty`, for each of `channels()`.

        Returns the channels that this node owned until now, and does not any more.
        """
        self.view = view
        deposed: list[str] = []
        if self._joined_at is None and self.node in view:
            self._joined_at = now
        if self.node not in view:
            for channel, holding in self._shelf.items():
                if holding.is_owner:
                    self._depose(channel, holding)
                    deposed.append(channel)
                holding.is_doubtful = holding.stream is not None  # R6
        for channel in self._shelf:
            holding = self._held(channel)
            if holding.is_owner and view.lives.get(holding.backup, holding.backup_life) != holding.backup_life:
                holding.backup_life = view.lives[holding.backup]
                holding.is_installed = False  # it restarted, and remembers nothing
        return deposed

    def channels(self) -> list[str]:
        """Return the channels that there is something to know about."""
        return list(self._shelf)

    def is_owner(self, channel: str) -> bool:
        """Return whether this node may number the channel's publications."""
        holding = self._shelf.get(channel)
        return holding is not None and holding.is_owner and self.view.owner(channel) == self.node

    def has_room(self) -> bool:
        """Return whether this node may own one more channel."""
        return self._owned < self._owned_max

    def make_room(self, now: Instant) -> Forgotten | None:
        """Give up a channel that may be (R7), unless it is about to have another owner; None if none was found."""
        for channel in self._shelf.unused(LOOKS):
            holding = self._held(channel)
            is_used = channel in self._claims or self._is_followed(channel) or not self.is_owner(channel)
            if is_used or (holding.head() and not holding.is_installed):
                self._shelf.used(channel)
                continue
            nodes = tuple(sorted({*holding.former, holding.backup} - {""}))
            self._depose(channel, holding)
            self._let_go(channel, holding)
            holding.touched = now
            # The least ballot above the term: a copy of the next owner's is not dropped, however late it is told.
            return Forgotten(channel, Ballot(holding.term.number, self.node, self._life + 1), nodes)
        return None

    def stream(self, channel: str) -> Stream | None:
        """Return the committed past of a channel that is held here."""
        holding = self._shelf.get(channel)
        return holding.stream if holding is not None else None

    def duty(self, channel: str) -> Duty:
        """Return what is to be done about the channel, by the view."""
        holding = self._shelf.get(channel)
        owner = self.view.owner(channel)
        if holding is None or holding.stream is None or owner is None:
            return Duty.NOTHING
        if owner != self.node:
            return Duty.NUDGE if holding.is_owner or holding.term.node != owner else Duty.NOTHING
        if not holding.is_owner or holding.backup != (self.view.backup(channel) or ""):
            return Duty.CLAIM
        return Duty.REPLICATE if holding.tail or not holding.is_installed else Duty.NOTHING

    # ---------------------------------------------------------------- claiming

    def begin(self, channel: str, now: Instant, *, new_epoch: str, former: Iterable[str] = ()) -> Step:
        """Claim a channel, or claim it again with another backup.

        `new_epoch` is used if there is nothing to go on from; `former` are nodes that may have a copy. A claim that is
        under way is given up.
        """
        return self._begin(channel, now, new_epoch, tuple(former))

    def _begin(
        self, channel: str, now: Instant, new_epoch: str, former: tuple[str, ...], *, is_outbid: bool = False
    ) -> Step:
        holding = self._shelf.hold(channel, now)
        if channel in self._claims:
            self._fail(channel, holding, self._claims[channel])
        number = max(holding.promised.number, holding.seen) + 1
        ballot = Ballot(number, self.node, self._life)
        if holding.is_owner:
            asked = {holding.backup}  # R3
        else:
            asked = {*self.view.nearest(channel, ASKED_BESIDE, beside=self.node), *former}  # R2
            if holding.stream is not None:
                asked |= {holding.term.node, holding.backup, *(promise.node for promise in holding.since_term)}
        asked = {name for name in asked if name in self.view and name != self.node}
        if holding.trying_since is None or now - holding.tried >= FORK_AFTER_MS:
            holding.trying_since = now  # what failed long before says nothing about now
        holding.tried = now
        claim = _Claim(ballot, new_epoch, former, holding.promised, asked, set(asked), is_outbid)
        self._claims[channel] = claim
        holding.promise(ballot)
        return Step(ballot, tuple(sorted(asked))) if asked else self._conclude(channel, holding, claim, now)

    def answered(self, channel: str, ballot: Ballot, node: str, answer: Collected | None, now: Instant) -> Step:
        """Take the answer of a node that was asked; None: it could not be reached, or not in time."""
        claim = self._claims.get(channel)
        if claim is None or claim.ballot != ballot or node not in claim.waiting:
            return Step(ballot)
        holding = self._held(channel)
        claim.waiting.remove(node)
        if answer is None:
            claim.missing.add(node)
        elif answer.promised != ballot:
            return self._refused(channel, holding, claim, answer, now)
        else:
            claim.owned[node] = answer.owned
            if answer.is_young:
                claim.young.add(node)
            if answer.copy is not None:
                claim.copies[node] = answer.copy
        more = self._ask_also(channel, holding, claim)
        if more:
            claim.asked |= more
            claim.waiting |= more
            return Step(ballot, tuple(sorted(more)))
        return Step(ballot) if claim.waiting else self._conclude(channel, holding, claim, now)

    def _ask_also(self, channel: str, holding: Holding, claim: _Claim) -> set[str]:
        """Return whom the answers so far oblige to ask, too (R2)."""
        named: set[str] = set()
        for copy in claim.copies.values():
            named |= {copy.term.node, copy.backup, *(promise.node for promise in copy.promised)}
        more = {name for name in named if name in self.view and name != self.node} - claim.asked
        if more or claim.waiting or claim.copies or holding.stream is not None:
            return more
        if len(claim.owned.keys() - claim.young) >= ASKED_BESIDE:
            return more
        further = [name for name in self.view.nearest(channel, ASKED_MAX, beside=self.node) if name not in claim.asked]
        return set(further[:ASKED_BESIDE])

    def _refused(self, channel: str, holding: Holding, claim: _Claim, answer: Collected, now: Instant) -> Step:
        holding.seen = max(holding.seen, answer.promised.number)
        if answer.owner and answer.owner != self.node:
            holding.trying_since = None
            return self._fail(channel, holding, claim, answer.owner)
        failed = self._fail(channel, holding, claim)
        if claim.is_outbid:
            return failed
        # A node that is new to the channel does not know its numbers; now it does.
        return self._begin(channel, now, claim.new_epoch, claim.former, is_outbid=True)

    def _fail(self, channel: str, holding: Holding, claim: _Claim, owner: str = "") -> Step:
        del self._claims[channel]
        holding.retract(claim.ballot, claim.before)
        return Step(claim.ballot, outcome=Outcome(is_owned=False, owner=owner))

    def _conclude(self, channel: str, holding: Holding, claim: _Claim, now: Instant) -> Step:
        assert holding.trying_since is not None
        owner = self.view.owner(channel) or ""
        if owner != self.node:
            return self._fail(channel, holding, claim, owner)
        is_in_doubt = any(name in self.view for name in claim.missing)
        if is_in_doubt and now - holding.trying_since < FORK_AFTER_MS:
            return self._fail(channel, holding, claim)
        del self._claims[channel]
        holding.trying_since = None
        if not holding.is_owner:
            self._take(channel, holding, claim, is_in_doubt=is_in_doubt)
            holding.is_owner = True
            self._owned += 1
            self._shelf.sort(channel, holding)
        elif is_in_doubt:
            assert holding.stream is not None
            holding.stream.epoch = claim.new_epoch
        backup = self.view.backup(channel) or ""
        former = holding.former | {*claim.copies, holding.backup}
        holding.former = former - {"", self.node, backup}
        holding.install(claim.ballot, backup)
        holding.owned = claim.ballot.number
        holding.backup_life = self.view.lives.get(backup, 0)
        holding.is_installed, holding.is_in_flight = not backup, False
        committed = () if backup else self._commit(channel, holding, holding.head())
        return Step(claim.ballot, outcome=Outcome(is_owned=True, committed=committed))

    def _take(self, channel: str, holding: Holding, claim: _Claim, *, is_in_doubt: bool) -> None:
        """Go on from the newest copy, or begin anew."""
        own = holding.copy(claim.ballot)
        copies = [*claim.copies.values(), *([own] if own is not None else [])]
        best = max(copies, key=lambda copy: (copy.term, copy.offset), default=None)
        if best is None:
            self._shelf.put(channel, holding, Stream(claim.new_epoch))
            return
        claim.owned[self.node] = self._last_owned(holding)
        is_in_doubt = is_in_doubt or not all(_is_cleared(ballot, claim.owned) for ballot in best.promised)  # R4
        epoch = claim.new_epoch if is_in_doubt else best.epoch
        self._shelf.put(channel, holding, Stream(epoch, offset=best.offset, entries=best.entries))

    def _last_owned(self, holding: Holding) -> Ballot:
        return Ballot(holding.owned, self.node, self._life)

    # ---------------------------------------------------------------- owning

    def number(self, channel: str, draft: Draft, wall: Timestamp) -> Entry | None:
        """Give a publication its place, as owner; None if too many wait for the backup. See `pending`.

        Without a backup it is committed at once.
        """
        holding = self._held(channel)
        stream = holding.stream
        assert holding.is_owner
        assert stream is not None
        if len(holding.tail) >= TAIL_MAX or holding.tail_bytes >= TAIL_BYTES_MAX:
            return None
        last = holding.tail[-1].time if holding.tail else stream.last_time()
        entry = Entry(holding.head() + 1, Timestamp(max(wall, last)), draft)
        holding.tail.append(entry)
        holding.tail_bytes += entry.size()
        self._shelf.sort(channel, holding)
        if not holding.backup and self.view.backup(channel) is None:
            self._commit(channel, holding, entry.offset)
        return entry

    def is_committed(self, channel: str, offset: int) -> bool:
        """Return whether nothing up to the offset waits for the backup."""
        stream = self._held(channel).stream
        return stream is not None and offset <= stream.offset

    def find(self, channel: str, key: str) -> int | None:
        """Return the offset of the kept publication with the key, committed or not."""
        holding = self._held(channel)
        assert holding.stream is not None
        waiting = next((entry.offset for entry in holding.tail if entry.draft.key == key), None)
        return waiting if waiting is not None else holding.stream.find(key)

    def is_settled(self, channel: str) -> bool:
        """Return whether nothing waits for the backup's answer: a good moment to give the channel away."""
        holding = self._shelf.get(channel)
        return holding is None or not holding.is_owner or not holding.tail

    def is_claiming(self, channel: str) -> bool:
        """Return whether a claim to the channel is under way."""
        return channel in self._claims

    def backup(self, channel: str) -> str:
        """Return the backup of an owned channel, empty for none."""
        return self._held(channel).backup

    def term(self, channel: str) -> Ballot:
        """Return the ballot under which the channel is owned or kept."""
        return self._held(channel).term

    def pending(self, channel: str) -> tuple[str, Replicate] | None:
        """Return the backup and what to send it, if anything; nothing while something is under way."""
        holding = self._shelf.get(channel)
        if holding is None or not holding.is_owner or not holding.backup or holding.is_in_flight:
            return None
        stream = holding.stream
        assert stream is not None
        if holding.is_installed and not holding.tail:
            return None
        holding.is_in_flight = True
        if holding.is_installed:
            return holding.backup, Replicate(channel, holding.term, stream.epoch, stream.offset, list(holding.tail))
        entries = [*stream.entries(), *holding.tail]
        after = holding.head() - len(entries)
        return holding.backup, Replicate(channel, holding.term, stream.epoch, after, entries, is_whole=True)

    def replicated(self, channel: str, ballot: Ballot, answer: Replicated | None) -> Progress:
        """Take the backup's answer to what was sent under the ballot; None: it could not be reached, or not in time."""
        holding = self._shelf.get(channel)
        if holding is None or not holding.is_owner or holding.term != ballot:
            return Progress()
        holding.is_in_flight = False
        if answer is None:
            return Progress()
        holding.seen = max(holding.seen, answer.promised.number)
        if answer.promised > ballot and (answer.promised.node, answer.promised.life) == (self.node, self._life):
            return Progress(must_claim=True)
        if answer.promised > ballot:
            self._depose(channel, holding)
            return Progress(is_deposed=True)
        assert holding.stream is not None
        if answer.offset < holding.stream.offset:
            holding.is_installed = False
            return Progress()
        holding.is_installed = True
        drop, holding.former = tuple(sorted(holding.former)), frozenset()
        return Progress(self._commit(channel, holding, answer.offset), drop)

    def _commit(self, channel: str, holding: Holding, offset: int) -> tuple[Entry, ...]:
        stream = holding.stream
        assert stream is not None
        count = max(0, offset - stream.offset)
        committed = tuple(holding.tail[:count])
        for entry in committed:
            stream.append(entry)
            holding.tail_bytes -= entry.size()
        del holding.tail[:count]
        if committed:
            self._shelf.trim(channel, holding, committed[-1].time)
        return committed

    def _depose(self, channel: str, holding: Holding) -> None:
        self._claims.pop(channel, None)
        holding.step_down()
        self._shelf.put(channel, holding, holding.stream)  # it has the tail now
        self._owned -= 1

    def _let_go(self, channel: str, holding: Holding) -> None:
        """Forget a copy, but no promise."""
        self._shelf.put(channel, holding, None)
        holding.since_term.clear()

    # ---------------------------------------------------------------- answering

    def collect(self, request: Collect, now: Instant) -> Collected:
        """Promise to follow the ballot, if it may be. An owner that promises owns no more."""
        channel = request.channel
        owner = self.view.owner(channel) or ""
        if owner != request.ballot.node:  # R1
            return Collected(NO_BALLOT, owner)
        holding = self._shelf.hold(channel, now)
        if request.ballot < holding.promised:
            return Collected(holding.promised)
        if request.ballot != holding.promised:
            self._claims.pop(channel, None)
        if holding.is_owner:
            self._depose(channel, holding)
        holding.promise(request.ballot)
        is_young = self._joined_at is None or now - self._joined_at < YOUNG_MS
        return Collected(holding.promised, "", holding.copy(request.ballot), self._last_owned(holding), is_young)

    def replicate(self, request: Replicate, now: Instant, wall: Timestamp) -> Replicated:
        """Keep what the owner sends, as its backup."""
        channel = request.channel
        holding = self._shelf.hold(channel, now)
        if request.ballot < holding.promised:
            return Replicated(-1, holding.promised)
        stream = holding.stream if holding.term == request.ballot else None
        if stream is not None and request.after <= stream.offset:
            # Late or twice, it must not take away what came since, even if it is the whole.
            for entry in request.entries:
                if entry.offset > stream.offset:
                    stream.append(entry)
        elif request.is_whole:
            self._claims.pop(channel, None)
            if holding.is_owner:
                self._depose(channel, holding)
            holding.install(request.ballot, self.node)
            offset = request.after + len(request.entries)
            stream = Stream(request.epoch, offset=offset, entries=request.entries)
            self._shelf.put(channel, holding, stream)
        else:
            return Replicated(-1, request.ballot)
        self._shelf.trim(channel, holding, wall)
        return Replicated(stream.offset, request.ballot)

    def drop(self, channel: str, ballot: Ballot) -> None:
        """Forget a copy that is older than the ballot."""
        holding = self._shelf.get(channel)
        if holding is not None and not holding.is_owner and holding.term < ballot:
            self._let_go(channel, holding)
            holding.promised = max(ballot, holding.promised)

    # ---------------------------------------------------------------- what is held

    def sweep(self, now: Instant, wall: Timestamp) -> None:
        """Look at the next thousand channels: drop what is too old, forget what nobody asked about for long."""
        forgotten = self._shelf.sweep(
            now, wall, lambda channel, _: channel in self._claims or self._is_followed(channel)
        )
        self._owned -= sum(holding.is_owner for holding in forgotten.values())

    def touch(self, channel: str, now: Instant) -> None:
        """Somebody uses the channel: it is not forgotten soon."""
        holding = self._shelf.get(channel)
        if holding is not None:
            holding.touched = now
            self._shelf.used(channel)

    def statistics(self) -> dict[str, int]:
        """Return a snapshot of sizes."""
        return {"known": len(self._shelf), "owned": self._owned, "bytes": self._shelf.bytes}

    def check_invariants(self) -> None:
        """Assert I3, and what the holdings promise."""
        self._shelf.check_invariants()
        for channel, claim in self._claims.items():
            assert self._held(channel).promised == claim.ballot, "I3"
        assert self._owned == sum(holding.is_owner for _, holding in self._shelf.items())

    def _held(self, channel: str) -> Holding:
        holding = self._shelf.get(channel)
        assert holding is not None
        return holding


def _is_cleared(ballot: Ballot, owned: Mapping[str, Ballot]) -> bool:
    """Return whether the ballot's node has said that it never owned under it."""
    last = owned.get(ballot.node)
    return last is not None and last.life == ballot.life and last.number < ballot.number
