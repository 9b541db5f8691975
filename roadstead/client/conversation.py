"""One conversation, as a client has it: which stretch of its log is known, what is missing, what is shown, what unread.

The client knows one stretch of the log, `lo` to `hi`: all in it that the server shows the user is held, and nothing is
assumed about what is before or after. What arrives is put by its seq:

    lo <= seq <= hi      known: drop; what is not held is from before the user was put out and came back: shown late
    seq == hi + 1        next: the stretch grows, and takes what waits ahead of it
    seq >  hi + 1        ahead of a possible gap: kept, and shown in the order of arrival if the view appends
    seq <  lo            read when somebody looks so far back

A gap that lasts `GAP_WAIT_MS` is read from the server; what was only late costs nothing. A gap wider than what is held
is not read, nor one with more behind it than is held: the stretch begins anew behind it, and says so by its `lo`. So
neither the newest seq that was heard of nor the newest that was read ever stands for what is in between. When too much
is held the oldest goes, and `lo` with it.

What a page leaves out the server does not show *now*: who was put out and came back does not see what was before, but
its timeline still brings it. So nothing that came is dropped because a page would bring it again.

Edits and recalls are entries with a seq of their own that cover another one: the newest edit counts, a recall is final.
They are noted when they arrive, before their target too. Unread is what pointers say, never a counter alone:
`surplus` of what the last list counted, up to `counted`, and the messages held after it, both above the read position.

Invariants:
    I1  lo - 1 <= hi <= head; all held seqs are within lo and hi; all that wait ahead are above hi + 1.
    I2  No seq is held twice, and none is shown twice while a window is open.
    I3  At most `entries_max` and a quarter more are held, at most `entries_max` wait ahead.
    I4  unread >= 0, and 0 for who has left.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from typing import Any

from base.clock import Instant
from roadstead.client.rows import Changed, Publication, Row, RowState, Shown, covered, is_row, row_of

__all__ = ["GAP_WAIT_MS", "Conversation"]

GAP_WAIT_MS = 500
"""How long something may be late before it counts as lost."""
RETRY_MAX_MS = 30_000


class Conversation:
    """See the module. What the list says of the conversation (`name`, `role` ...) is in `listed`, as it came."""

    def __init__(self, cid: str, me: str, *, entries_max: int, appends: bool) -> None:
        """`entries_max`: no less than a page of history.

        `appends`: what waits ahead of a gap is shown at once, at the end; else when the gap is closed.
        """
        self.cid = cid
        self.peer = ""
        """The other user of a single conversation."""
        self.fan_out = "write"
        self.is_followed = False
        """Whether the client follows the conversation's own channel."""
        self.last_seq = 0
        """The seq that the user left by; 0 while the user is in."""
        self.version = 0
        """Seq of the newest event that was minded."""
        self.listed: Publication = {}
        self.is_doubtful = False
        """Whether the number of unread ones is a guess, until the next list."""
        self.lo, self.hi, self.head = 1, 0, 0
        self.read_seq = self.sent_seq = self.join_seq = self.hidden_seq = self.mention = 0
        self.last_at = 0
        """When the newest that is to be seen was stored, in ms since the Unix epoch."""
        self._me = me
        self._entries_max = entries_max
        self._appends = appends
        self._seqs: list[int] = []
        self._entries: dict[int, Publication] = {}
        self._ahead: dict[int, Publication] = {}
        self._covers: dict[int, Publication] = {}
        self._echoes: dict[str, Row] = {}
        self._window: list[int | str] | None = None
        self._surplus = self._counted = 0
        self._due: Instant | None = None
        self._retry_ms = 0
        self._is_pulling = False

    # ---------------------------------------------------------------- the log

    def begin(self, at: int) -> None:
        """Know nothing up to `at`, and everything from there on to nothing. What was held is forgotten."""
        self._surplus = self._unread_until(self.hi)
        self._counted = max(self._counted, at)
        self.lo, self.hi = at + 1, at
        self._seqs.clear()
        self._entries.clear()
        self._covers = {target: cover for target, cover in self._covers.items() if cover["seq"] > at}
        self._ahead = {seq: entry for seq, entry in self._ahead.items() if seq > at}
        was_open, self._window = self.is_open, None
        self._show(self._drain())
        self.head = max(self.hi, self.head)
        if was_open:
            self.open()

    def take(self, entry: Publication, now: Instant) -> list[Shown | Changed]:
        """Take an entry of the log, from wherever it comes."""
        seq: int = entry["seq"]
        is_known = seq < self.lo or seq in self._entries or seq in self._ahead
        if is_known or (self.last_seq and seq > self.last_seq):
            return []
        effects: list[Shown | Changed] = [*self._cover(entry)]
        if is_row(entry):
            self.last_at = max(self.last_at, entry.get("at", 0))
        entry = covered(entry, self._covers.get(seq))
        if seq <= self.hi:
            insort(self._seqs, seq)
            self._entries[seq] = entry
            self._make_room()
            return effects + self._show([seq])
        self._ahead[seq] = entry
        grown = self._drain()
        if len(self._ahead) > self._entries_max:
            grown = self._skip()
        if grown:
            self._due = None  # what is missing now is another gap than before
        self.know(seq, now)
        return effects + self._show([seq] if self._appends else grown)

    def know(self, head: int, now: Instant) -> None:
        """There are entries up to `head`. A gap that is new becomes due; one that is closed is not any more."""
        self.head = max(self.head, self.hi, min(head, self.last_seq or head))
        if self.head == self.hi:
            self._due, self._retry_ms = None, 0
        elif self._due is None and not self._is_pulling:
            self._due = Instant(now + GAP_WAIT_MS)

    @property
    def due(self) -> Instant | None:
        """When the gap has lasted long enough; None without one, or while it is read."""
        return self._due

    def pull(self, now: Instant) -> int | None:
        """Begin to read the gap: return the seq that it follows. None: it is too wide, and the stretch began anew.

        Call `page` or `page_failed` with what came of it.
        """
        self._due = None
        before = min(self._ahead, default=self.head + 1)
        if before - self.hi - 1 > self._entries_max:
            self.is_doubtful |= self._counted < before - 1
            self.begin(before - 1)
            self.know(self.head, now)
            return None
        self._is_pulling = True
        return self.hi

    def page(self, entries: Sequence[Publication], head: int, now: Instant) -> list[Shown | Changed]:
        """Take a page that follows `hi`: all entries that the user is shown now up to its last one, or up to `head`."""
        before = self.hi
        effects = [effect for entry in entries for effect in self.take(entry, now)]
        reached = entries[-1]["seq"] if entries else min(head, self.last_seq or head)
        grown: list[int] = []
        while self.hi < reached:  # what is not in the page the server does not show
            self.hi = min(min(self._ahead, default=reached + 1) - 1, reached)
            grown += self._drain()
        if not self._appends:
            effects += self._show(grown)
        self._make_sure()
        if self.hi == before:
            self.page_failed(now)
        else:
            self._is_pulling, self._retry_ms, self._due = False, 0, None
            self.know(reached, Instant(now - GAP_WAIT_MS))  # what else is missing has been for long enough
        return effects

    def page_failed(self, now: Instant) -> None:
        """The gap was not read: later, and later each time."""
        self._is_pulling = False
        self._retry_ms = min(max(2 * self._retry_ms, GAP_WAIT_MS), RETRY_MAX_MS)
        self._due = Instant(now + self._retry_ms) if self.head > self.hi else None

    def older(self, before: int, entries: Sequence[Publication], *, is_all: bool) -> list[Row]:
        """Take a page of what is before `before`; `is_all`: nothing is before it. Returns its rows.

        It is held if it is next to what is, and there is room; it is on top of the window then.
        """
        page = {entry["seq"]: covered(entry, self._covers.get(entry["seq"])) for entry in entries}
        seqs = sorted(page)
        for entry in entries:
            if entry.get("from") == self._me and self._echoes.pop(entry.get("client_msg_id", ""), None) is not None:
                self._window = self._window and [key for key in self._window if key != entry["client_msg_id"]]
        if before == self.lo and len(seqs) + len(self._seqs) <= self._entries_max:
            self._seqs[:0] = seqs
            self._entries.update(page)
            self.lo = 1 if is_all else min([self.lo, *seqs])
            if self._window is not None:
                self._window[:0] = [seq for seq in seqs if is_row(page[seq])]
            self._make_sure()
        return [row_of(page[seq]) for seq in seqs if is_row(page[seq])]

    # ---------------------------------------------------------------- who reads

    def list_as(self, listed: Publication, now: Instant) -> list[Shown | Changed]:
        """Take what the list says: settings, pointers, how far the log goes, and its newest entry."""
        max_seq, last = listed["max_seq"], listed.get("last")
        self.listed = listed
        self.peer = listed.get("peer") or self.peer
        if max_seq >= self.version:  # else what happened since is known already
            self.version, self.fan_out, self.last_seq = max_seq, listed["fan_out"], listed.get("last_seq") or 0
        self.mention = max(self.mention, listed.get("mentioned_seq") or 0)
        is_news = max_seq >= self._counted or self.is_doubtful
        self.is_doubtful = False
        if is_news:
            self._count_as(listed["unread"], listed["read_seq"], max_seq)
        if not self.head:
            self.begin(max_seq - 1 if last and last["seq"] == max_seq else max_seq)
        effects = self.take(last, now) if last else []
        self.know(max_seq, now)
        self._make_sure()
        return effects

    def read(self, seq: int) -> None:
        """The user has read up to `seq`. Backwards is nothing."""
        before = self._floor
        self.read_seq = max(self.read_seq, seq)
        self._pass(before)

    def hide(self, seq: int) -> None:
        """The user does not want to see the conversation until there is an entry after `seq`; 0: wants to again."""
        before = self._floor
        self.read_seq = max(self.read_seq, self.hidden_seq if seq < self.hidden_seq else 0)  # it is not unread again
        self.hidden_seq = seq
        self._pass(before)

    @property
    def is_hidden(self) -> bool:
        """Whether it is to be left out of the list."""
        return 0 < self.head <= self.hidden_seq

    def join(self, seq: int) -> None:
        """The user came in, perhaps again, by the entry `seq`: what was before it is none of the unread ones."""
        before = self._floor
        self.last_seq, self.join_seq = 0, seq
        self._pass(before)

    def leave(self, seq: int) -> None:
        """The user left by the entry `seq`: nothing after it is for it."""
        self.last_seq = seq
        self.is_followed = False
        self._ahead = {at: entry for at, entry in self._ahead.items() if at <= seq}
        self.head = max(self.hi, min(self.head, seq))

    @property
    def unread(self) -> int:
        """How many messages of others are after what the user read or wrote, without those that were recalled."""
        return 0 if self.last_seq else self._unread_until(self.hi)

    @property
    def mentioned_seq(self) -> int:
        """The newest unread message that mentions the user; 0: none."""
        return self.mention if self.mention > self._floor else 0

    # ---------------------------------------------------------------- what is shown

    def open(self) -> None:
        """Show a window: sorted now, and from here on only appended to."""
        self._window = [*self._sorted(), *self._echoes]

    def close(self) -> None:
        """The window is not shown any more; its order is forgotten."""
        self._window = None

    @property
    def is_open(self) -> bool:
        """Whether a window shows it."""
        return self._window is not None

    def rows(self) -> list[Row]:
        """Return what is to be seen: in the window's order while one is open, else by seq, the unsent last."""
        keys: Sequence[int | str] = [*self._sorted(), *self._echoes] if self._window is None else self._window
        return [self._at(key) for key in keys]

    def echo(self, key: str, data: Publication) -> Row:
        """Show a message that is being sent."""
        if key not in self._echoes and self._window is not None:
            self._window.append(key)
        row = self._echoes[key] = Row(0, key, data, "sending")
        return row

    def answered(self, key: str, state: RowState, error: Any = None) -> list[Shown | Changed]:
        """Note what became of a send whose message the server has not told yet; of another one nothing."""
        echo = self._echoes.get(key)
        if echo is None:
            return []
        self._echoes[key] = Row(0, key, echo.data, state, error)
        return [Changed(self.cid, self._echoes[key])]

    def check_invariants(self) -> None:
        """Assert I1 to I4."""
        assert self.lo - 1 <= self.hi <= self.head, "I1"
        assert all(self.lo <= seq <= self.hi for seq in self._seqs), "I1"
        assert all(seq > self.hi + 1 for seq in self._ahead), "I1"
        assert self._seqs == sorted(set(self._entries)), "I2"
        assert self._window is None or len(self._window) == len(set(self._window)), "I2"
        assert len(self._seqs) <= self._entries_max * 5 // 4, "I3"
        assert len(self._ahead) <= self._entries_max, "I3"
        assert self.unread >= 0, "I4"

    # ---------------------------------------------------------------- inside

    def _drain(self) -> list[int]:
        """Let the stretch grow by what waits next to it; return the new seqs."""
        grown = []
        while (entry := self._ahead.pop(self.hi + 1, None)) is not None:
            seq = self.hi = self.hi + 1
            self._seqs.append(seq)
            self._entries[seq] = entry
            grown.append(seq)
            if entry["kind"] == "message":
                self._mind(entry)
        self._make_room()
        return grown

    def _skip(self) -> list[int]:
        """Leave the gap behind; return the new seqs. What is before it would have to make room for them anyway."""
        at = min(self._ahead) - 1
        self.is_doubtful |= self._counted < at
        self._evict(at)
        self.hi = at
        grown = self._drain()
        self._make_sure()
        return grown

    @property
    def _floor(self) -> int:
        """Nothing up to here is unread."""
        return max(self.read_seq, self.sent_seq, self.join_seq, self.hidden_seq)

    def _pass(self, before: int) -> None:
        """The floor may have gone up: of what was counted only what is above it is unread."""
        floor = self._floor
        if floor >= self._counted:
            self._surplus = 0
        elif floor > before and self.lo - 1 <= floor and self._counted <= self.hi:
            self._surplus = self._count(floor, self._counted)
        elif floor > before:
            self._surplus = min(self._surplus, self._counted - floor)
            self.is_doubtful = True

    def _make_sure(self) -> None:
        """Count a number that is a guess, if all that it stands for is held by now."""
        if self.is_doubtful and self.lo - 1 <= self._floor and self._counted <= self.hi:
            self._surplus = self._count(self._floor, self._counted)
            self.is_doubtful = False

    def _count_as(self, unread: int, read_seq: int, max_seq: int) -> None:
        """So many were unread when the log ended at `max_seq`, the user having read up to `read_seq`."""
        mine, self.read_seq = self.read_seq, read_seq
        self._counted = max_seq
        floor = self._floor
        recalled_since = sum(
            cover["kind"] == "recall" and cover["seq"] > max_seq and floor < target <= max_seq
            for target, cover in self._covers.items()
        )
        self._surplus = max(0, unread - recalled_since)
        self.read(mine)

    def _mind(self, message: Publication) -> None:
        seq = message["seq"]
        if message["from"] == self._me:
            self.sent_seq = seq
            if seq > self._counted:
                self._surplus = 0
        elif not {self._me, "*"}.isdisjoint(message.get("mentions") or ()):
            self.mention = seq

    def _cover(self, entry: Publication) -> list[Changed]:
        """Note an edit or a recall; return the row that changes."""
        if entry["kind"] not in {"edit", "recall"}:
            return []
        target, seq = entry["target"], entry["seq"]
        former = self._covers.get(target)
        if former is not None and (former["kind"] == "recall" or (former["seq"] > seq and entry["kind"] == "edit")):
            return []
        self._covers[target] = entry
        if entry["kind"] == "recall" and self._floor < target <= self._counted < seq:
            self._surplus = max(0, self._surplus - 1)
        for held in (self._entries, self._ahead):
            if target in held:
                held[target] = covered(held[target], entry)
                return [Changed(self.cid, row_of(held[target]))] if held is self._entries or self._appends else []
        return []

    def _show(self, seqs: Iterable[int]) -> list[Shown | Changed]:
        """Show the rows among these, at the end, or in the place of what this client showed when it sent them."""
        effects: list[Shown | Changed] = []
        for seq in seqs:
            entry = self._entries.get(seq) or self._ahead.get(seq)
            if entry is None or not is_row(entry):
                continue  # it went to make room, or is not to be seen
            row = row_of(entry)
            is_mine = entry.get("from") == self._me and self._echoes.pop(row.key, None) is not None
            if self._window is not None and is_mine:
                self._window[self._window.index(row.key)] = seq
            elif self._window is not None:
                self._window.append(seq)
            effects.append(Changed(self.cid, row) if is_mine else Shown(self.cid, row))
        return effects

    def _at(self, key: int | str) -> Row:
        if isinstance(key, str):
            return self._echoes[key]
        return row_of(self._entries[key] if key in self._entries else self._ahead[key])

    def _sorted(self) -> list[int]:
        rows = [seq for seq in self._seqs if is_row(self._entries[seq])]
        return rows + [seq for seq in sorted(self._ahead) if self._appends and is_row(self._ahead[seq])]

    def _make_room(self) -> None:
        if len(self._seqs) > self._entries_max * 5 // 4:
            self._evict(self._seqs[-self._entries_max - 1])

    def _evict(self, until: int) -> None:
        """Forget what is held up to a seq; what of it was unread stays so."""
        gone = self._seqs[: bisect_right(self._seqs, until)]
        self._surplus = self._unread_until(until)
        del self._seqs[: len(gone)]
        self._counted = max(self._counted, until)
        self.lo = until + 1
        for seq in gone:
            entry = self._entries.pop(seq)
            cover = self._covers.get(entry.get("target", 0))
            if cover is not None and cover["seq"] == seq:
                del self._covers[entry["target"]]
        if self._window is not None:
            self._window = [key for key in self._window if isinstance(key, str) or key >= self.lo]

    def _unread_until(self, seq: int) -> int:
        return self._surplus + self._count(self._counted, seq)

    def _count(self, after: int, until: int) -> int:
        """Count the unread ones that are held, of these seqs."""
        after = max(after, self._floor)
        seqs = self._seqs[bisect_right(self._seqs, after) : bisect_left(self._seqs, until + 1)]
        entries = (self._entries[seq] for seq in seqs)
        return sum(entry["kind"] == "message" and not entry.get("recalled") for entry in entries)
