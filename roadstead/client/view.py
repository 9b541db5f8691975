"""What a client shows: all conversations of its user, put together from whatever comes, in whatever order.

A pure core: it is told what came, with the time, and says what to show and what to ask for. Entries of conversations
come from the timeline, from conversations' own channels, as pushes that may be lost, and from pages of history; each
is put by its seq (`conversation`), so that where it came from, and how it was fanned out, makes no difference.

What is asked for, and when:
    Pull            a gap that has lasted 500 ms
    PullOlder       a window was opened that shows less than a page
    AskList         something says that the list is out of date: the user came into a group, or a fan-out changed; a
                    number of unread ones became a guess; `sync_version` differs and 500 ms later still does
    Follow          the list says that a conversation has a channel of its own
Nothing is asked for by time alone: a thousand idle conversations cost nothing.

`sync_version` stands for everything that the user could have been told: the timeline's newest offset and the newest
seqs of those conversations whose entries are only pushed. Being equal to what this client has, nothing was lost, not
even the last message of a conversation.

Invariants:
    I1  Every conversation keeps its own invariants, and is found by its cid; a single one by its other user, too.
    I2  A conversation has a gap that is due or being read, or none.
    I3  At most one list is being asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from base.clock import Instant
from roadstead.client.conversation import GAP_WAIT_MS, RETRY_MAX_MS, Conversation
from roadstead.client.rows import Changed, Publication, Row, RowState, Shown

__all__ = [
    "PAGE",
    "AskList",
    "Effect",
    "Follow",
    "Listed",
    "Pull",
    "PullOlder",
    "Redrawn",
    "Told",
    "Unfollow",
    "ViewModel",
]

PAGE = 100
"""Entries to read at once, and to show in a window that is opened."""
ENTRIES_MAX = 400
HINT_PAUSE_MS = 5_000
"""How long a list that was asked for because of a `sync_version` has to do: while much happens, some differ."""
_LOGGED = frozenset({"message", "edit", "recall", "group"})
_JOINING = frozenset({"create", "invite", "join"})
_LEAVING = frozenset({"leave", "kick", "dissolve"})


@dataclass(frozen=True, slots=True)
class Redrawn:
    """The conversation is to be shown anew: what was held of it was too far behind."""

    cid: str


@dataclass(frozen=True, slots=True)
class Listed:
    """How the conversation stands in the list has changed: unread, settings, name, or that the user left."""

    cid: str


@dataclass(frozen=True, slots=True)
class Told:
    """Something without a place in a log: typing, a receipt, the failure of a send, or what is not known here."""

    data: Publication


@dataclass(frozen=True, slots=True)
class Pull:
    """Read a page of entries after a seq, then call `page` or `page_failed`."""

    cid: str
    after: int


@dataclass(frozen=True, slots=True)
class PullOlder:
    """Read the page of entries before a seq, then call `older`."""

    cid: str
    before: int


@dataclass(frozen=True, slots=True)
class AskList:
    """Read all pages of the list, giving each to `listed`; or call `list_failed`."""


@dataclass(frozen=True, slots=True)
class Follow:
    """Subscribe to the conversation's channel, from after a seq on."""

    cid: str
    after: int


@dataclass(frozen=True, slots=True)
class Unfollow:
    """Unsubscribe from it."""

    cid: str


Effect = Shown | Changed | Redrawn | Listed | Told | Pull | PullOlder | AskList | Follow | Unfollow


class ViewModel:
    """See the module."""

    def __init__(self, user: str, *, entries_max: int = ENTRIES_MAX, appends: bool = True) -> None:
        """`entries_max`: of each conversation; older ones are read again when they are looked at.

        `appends`: what comes out of order is shown at once, at the end of an open window, and is in its place when the
        window is next opened (append then re-sort). Else it is shown when what is missing before it has come.
        """
        assert entries_max >= PAGE
        self.user = user
        self.position = 0
        """The newest timeline offset that was given to `apply`."""
        self.is_loaded = False
        """Whether the list was read: what is not in it is new."""
        self._entries_max = entries_max
        self._appends = appends
        self._conversations: dict[str, Conversation] = {}
        self._by_peer: dict[str, Conversation] = {}
        self._sending: dict[str, Conversation] = {}
        """By client_msg_id, until it is known what became of it."""
        self._gaps: set[str] = set()
        self._list_due: Instant | None = None
        self._is_asking = False
        self._list_retry_ms = 0
        self._was_listed: dict[str, int] = {}
        """What was known when the list was asked for, and how far: if no page has it, it is hidden up to there."""
        self._unlisted: set[str] = set()
        """What no page had: it is hidden, perhaps further than is known."""
        self._hint: tuple[int, int] | None = None
        """A `sync_version` that differed, and what this client had then."""
        self._hint_due: Instant | None = None
        self._next_hint = Instant(0)
        """When a list may next be asked for because of one."""
        self._listed = 0
        """Of the list that is being read: where those conversations end that a `sync_version` counts, in sum."""
        self._unseen = 0
        """What a `sync_version` counts that this client was never told: hidden conversations."""

    # ---------------------------------------------------------------- what came

    def apply(self, data: Publication, now: Instant, *, offset: int = 0) -> list[Effect]:
        """Take a publication. `offset`: of the timeline, where it is from there; else 0."""
        if offset:
            if offset <= self.position:
                return []
            self.position = offset
        kind = data.get("kind")
        if kind in _LOGGED and "seq" in data:
            effects = self._entry(data, now)
        elif kind in {"read", "settings"}:
            effects = self._note(data, now)
        elif kind == "failure":
            effects = [*self.answered(data["client_msg_id"], "failed", data["body"]), Told(data)]
        else:
            effects = [Told(data)] if kind != "sync" else []
        if "sync_version" in data and self.is_loaded:
            self._heard(data["sync_version"], now)
        return effects

    def heard_of(self, cid: str, head: int, now: Instant) -> None:
        """The conversation's log goes up to `head`, as its channel says, or the answer to a send."""
        conversation = self._conversations.get(cid)
        if conversation is not None:
            conversation.know(head, now)
            self._after(conversation, now)

    def page(self, cid: str, entries: Sequence[Publication], head: int, now: Instant) -> list[Effect]:
        """Take the page that a `Pull` asked for: entries without a hole, as far as the user may see them."""
        conversation = self._conversations.get(cid)
        if conversation is None:
            return []
        effects: list[Effect] = []
        for entry in entries:
            effects += self._minded(conversation, entry, now)
        effects += conversation.page(entries, head, now)
        self._after(conversation, now)
        return [*effects, *self.advance(now)]

    def page_failed(self, cid: str, now: Instant) -> None:
        """It could not be read."""
        conversation = self._conversations.get(cid)
        if conversation is not None:
            conversation.page_failed(now)
            self._after(conversation, now)

    def older(self, cid: str, before: int, entries: Sequence[Publication], *, is_all: bool) -> list[Row]:
        """Take a page of what is before a seq, and return its rows; `is_all`: there is nothing before the page.

        Those next to what is held are on top of an open window from here on.
        """
        conversation = self._conversations.get(cid)
        return [] if conversation is None else conversation.older(before, entries, is_all=is_all)

    # ---------------------------------------------------------------- the list

    def ask_list(self) -> list[Effect]:
        """Ask for the list, unless that is under way. The reading of it begins after this."""
        if self._is_asking:
            return []
        self._is_asking, self._list_due = True, None
        self._was_listed, self._listed = {cid: each.head for cid, each in self._conversations.items()}, 0
        return [AskList()]

    def listed(
        self, conversations: Iterable[Publication], now: Instant, *, is_last: bool, counted: int | None = None
    ) -> list[Effect]:
        """Take a page of the list. What was known when it was asked for and is in none is hidden.

        `counted`: what the list's `sync_version` says beyond its `timeline`; None: the same as the list.
        """
        effects: list[Effect] = []
        for document in conversations:
            cid = str(document["cid"])
            self._was_listed.pop(cid, None)
            self._unlisted.discard(cid)
            conversation = self._conversations.get(cid) or self._meet(cid, document.get("peer") or "")
            effects += conversation.list_as(document, now)
            self._after(conversation, now)
            effects += [Listed(cid), *self._channel(conversation)]
            self._listed += document["max_seq"] if _is_direct(conversation) else 0
        if is_last:
            hidden = [self._conversations[cid] for cid in self._was_listed]
            for conversation in hidden:
                conversation.hide(self._was_listed[conversation.cid])
                self._unlisted.add(conversation.cid)
                effects.append(Listed(conversation.cid))
            self.is_loaded, self._is_asking, self._list_retry_ms = True, False, 0
            known = sum(conversation.head for conversation in hidden if _is_direct(conversation))
            self._unseen = 0 if counted is None else counted - self._listed - known
        return effects

    def list_failed(self, now: Instant) -> None:
        """The list could not be read, or not to its end: later, and later each time."""
        self._is_asking = False
        self._list_retry_ms = min(max(2 * self._list_retry_ms, GAP_WAIT_MS), RETRY_MAX_MS)
        self._list_due = Instant(now + self._list_retry_ms)

    def forget(self) -> list[Effect]:
        """The server's data was replaced: nothing of it holds any more. What is being sent is not shown any more."""
        effects: list[Effect] = [effect for each in self._conversations.values() for effect in self._unfollow(each)]
        effects += [Redrawn(cid) for cid, each in self._conversations.items() if each.is_open]
        self._conversations.clear()
        self._by_peer.clear()
        self._gaps.clear()
        self._sending.clear()
        self._was_listed.clear()
        self._unlisted.clear()
        self.position, self.is_loaded, self._hint, self._hint_due = 0, False, None, None
        return effects

    def reconnected(self, now: Instant) -> None:
        """Pushes may have been lost while there was no connection: those that no channel brings again."""
        if self.is_loaded and any(map(_is_direct, self._conversations.values())):
            self._list_due = now

    # ---------------------------------------------------------------- time

    @property
    def due(self) -> Instant | None:
        """When to call `advance`; None: not before something comes."""
        dues = [self._conversations[cid].due for cid in self._gaps]
        list_due = None if self._is_asking else self._list_due  # it is asked for again after this one
        return min((due for due in [*dues, list_due, self._hint_due] if due is not None), default=None)

    def advance(self, now: Instant) -> list[Effect]:
        """Return what has waited for long enough."""
        effects: list[Effect] = []
        for cid in sorted(self._gaps):
            conversation = self._conversations[cid]
            if conversation.due is not None and conversation.due <= now:
                after = conversation.pull(now)
                effects.append(Redrawn(cid) if after is None else Pull(cid, after))
                self._after(conversation, now)
        if self._hint_due is not None and self._hint_due <= now:
            self._hint_due = None
            assert self._hint is not None
            version, had = self._hint
            has = self._version()
            if has < version or has == had:
                self._list_due, self._next_hint = now, Instant(now + HINT_PAUSE_MS)
        if self._list_due is not None and self._list_due <= now:
            effects += self.ask_list()
        return effects

    # ---------------------------------------------------------------- the user

    def conversation(self, cid: str) -> Conversation | None:
        """Return a conversation; for reading only."""
        return self._conversations.get(cid)

    def conversations(self) -> list[Conversation]:
        """Return all of them, those with news first; for reading only."""
        return sorted(self._conversations.values(), key=lambda each: each.last_at, reverse=True)

    def with_peer(self, user: str) -> Conversation | None:
        """Return the single conversation with a user, which may have no cid before it has a message."""
        return self._by_peer.get(user)

    def total_unread(self) -> int:
        """Return the sum over all conversations."""
        return sum(conversation.unread for conversation in self._conversations.values())

    def open(self, conversation: Conversation) -> list[Effect]:
        """A window shows the conversation from here on; it is sorted now."""
        conversation.open()
        if conversation.cid and conversation.lo > 1 and len(conversation.rows()) < PAGE:
            return [PullOlder(conversation.cid, conversation.lo)]
        return []

    def read(self, cid: str, seq: int, now: Instant) -> list[Effect]:
        """The user has read up to a seq."""
        conversation = self._conversations.get(cid)
        if conversation is None or seq <= conversation.read_seq:
            return []
        conversation.read(seq)
        self._after(conversation, now)
        return [Listed(cid)]

    def echo(self, key: str, data: Publication, *, to: str = "", cid: str = "") -> list[Effect]:
        """Show a message that is being sent under its client_msg_id, to a user or into a conversation."""
        conversation = self._conversations.get(cid) if cid else self._by_peer.get(to)
        if conversation is None:
            if cid:
                return []  # not known yet: it will be seen when it comes
            conversation = self._by_peer[to] = self._new("", to)
            conversation.begin(0)
        self._sending[key] = conversation
        return [Shown(conversation.cid, conversation.echo(key, data))]

    def answered(self, key: str, state: RowState, error: Any = None) -> list[Effect]:
        """Note what became of a send: `stored`, `queued` or `failed`. No matter once the server told the message."""
        conversation = self._sending.get(key) if state == "queued" else self._sending.pop(key, None)
        return [] if conversation is None else [*conversation.answered(key, state, error)]

    def check_invariants(self) -> None:
        """Assert I1 and I2."""
        for cid, conversation in self._conversations.items():
            conversation.check_invariants()
            assert conversation.cid == cid, "I1"
            assert (cid in self._gaps) == (conversation.due is not None), "I2"
            assert not conversation.peer or self._by_peer[conversation.peer] is conversation, "I1"
        for peer, conversation in self._by_peer.items():
            assert conversation.peer == peer, "I1"

    # ---------------------------------------------------------------- inside

    def _new(self, cid: str, peer: str) -> Conversation:
        conversation = Conversation(cid, self.user, entries_max=self._entries_max, appends=self._appends)
        conversation.peer = peer
        return conversation

    def _meet(self, cid: str, peer: str) -> Conversation:
        """Return the conversation, which was not known by its cid."""
        conversation = self._by_peer.get(peer) if peer else None
        if conversation is None or conversation.cid:
            conversation = self._new(cid, peer)
        conversation.cid = cid
        self._conversations[cid] = conversation
        if peer:
            self._by_peer[peer] = conversation
        return conversation

    def _entry(self, entry: Publication, now: Instant) -> list[Effect]:
        cid = str(entry["cid"])
        conversation = self._conversations.get(cid)
        if conversation is None:
            to = entry.get("to") or ""
            if to and not entry["from"]:
                # An operator's event in a single conversation says nothing of the other user: the list does.
                if self.is_loaded:
                    self._list_due = now
                return []
            peer = (to if entry["from"] == self.user else entry["from"]) if to else ""
            is_waiting = peer in self._by_peer
            conversation = self._meet(cid, peer)
            # A single conversation that no list had began after it, and everything of it is the user's.
            is_new = self.is_loaded and peer
            if not (is_new or is_waiting):
                conversation.begin(entry["seq"] - 1)
            if self.is_loaded and (not peer or entry["seq"] > 1):
                conversation.is_doubtful = True  # a group, or what was hidden: what of it is unread the list says
        effects = self._minded(conversation, entry, now)
        effects += conversation.take(entry, now)
        self._after(conversation, now)
        return effects

    def _minded(self, conversation: Conversation, entry: Publication, now: Instant) -> list[Effect]:
        """Mind what an event of a group changes, unless a later one was minded before."""
        if entry["kind"] != "group" or entry["seq"] <= conversation.version:
            return []
        conversation.version = entry["seq"]
        body, effects = entry["body"], []
        is_about_me = self.user in (body.get("users") or ()) or (
            entry["from"] == self.user and body["event"] in {"create", "join", "leave"}
        )
        if body["event"] == "dissolve" or (body["event"] in _LEAVING and is_about_me):
            effects = self._unfollow(conversation)
            conversation.leave(entry["seq"])
            return [*effects, Listed(conversation.cid)]
        has_joined = body["event"] in _JOINING and is_about_me
        if has_joined:
            conversation.join(entry["seq"])
        was, conversation.fan_out = conversation.fan_out, body.get("fan_out") or conversation.fan_out
        if conversation.fan_out == "write":
            effects = self._unfollow(conversation)
        elif self.is_loaded and (has_joined or was == "write"):
            self._list_due = now  # which says over what its entries come
        return [*effects, Listed(conversation.cid)]

    def _note(self, note: Publication, now: Instant) -> list[Effect]:
        cid, body = str(note["cid"]), note["body"]
        conversation = self._conversations.get(cid)
        if conversation is None:
            return []
        if note["kind"] == "read":
            conversation.read(body["read_seq"])
        else:
            conversation.hide(body["hidden_seq"])
        conversation.listed = {**conversation.listed, **body}
        self._after(conversation, now)
        return [Listed(cid)]

    def _after(self, conversation: Conversation, now: Instant) -> None:
        """Note what is to be asked for after something was done to a conversation."""
        if conversation.due is None:
            self._gaps.discard(conversation.cid)
        else:
            self._gaps.add(conversation.cid)
        if conversation.cid in self._unlisted and not conversation.is_hidden:
            self._unlisted.discard(conversation.cid)
            conversation.is_doubtful = True  # there are news, but what is before them may be hidden or not
        if conversation.is_doubtful and self.is_loaded and self._list_due is None and not self._is_asking:
            self._list_due = now

    def _channel(self, conversation: Conversation) -> list[Effect]:
        """Follow the conversation's own channel, if the list says that it has one, or stop to."""
        has_one = conversation.listed.get("channel") == "conv" and not conversation.last_seq
        if not has_one:
            return self._unfollow(conversation)
        if conversation.is_followed:
            return []
        conversation.is_followed = True
        return [Follow(conversation.cid, conversation.hi)]

    def _unfollow(self, conversation: Conversation) -> list[Effect]:
        was_followed, conversation.is_followed = conversation.is_followed, False
        return [Unfollow(conversation.cid)] if was_followed else []

    def _heard(self, version: int, now: Instant) -> None:
        """Compare a `sync_version` with what this client has."""
        has = self._version()
        if version == has:
            self._hint = self._hint_due = None
        else:
            self._hint = version, has
            self._hint_due = self._hint_due or max(Instant(now + GAP_WAIT_MS), self._next_hint)

    def _version(self) -> int:
        """Return the `sync_version` of who was told all that this client was."""
        direct = sum(each.head for each in self._conversations.values() if _is_direct(each))
        return self.position + direct + self._unseen


def _is_direct(conversation: Conversation) -> bool:
    """Whether its entries are only pushed, and neither in the timeline nor in a channel that is recovered."""
    is_pushed = conversation.fan_out == "read" and conversation.listed.get("channel") != "conv"
    return is_pushed and not conversation.last_seq
