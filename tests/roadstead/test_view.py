"""The view model: gaps, edits, windows; and that any way of being told ends in the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.clock import Instant
from roadstead.client.conversation import GAP_WAIT_MS, RETRY_MAX_MS
from roadstead.client.rows import Changed, Shown
from roadstead.client.view import (
    PAGE,
    AskList,
    Pull,
    PullOlder,
    Redrawn,
    Told,
    Unfollow,
    ViewModel,
)
from tests.roadstead.view_world import BOB, CID, LATER, ME, NOW, Log, Server, begun, feed, listed, note, seen

# ---------------------------------------------------------------- gaps


@pytest.mark.spec("MI-08", "MD-01")
def test_what_is_late_but_in_time_causes_no_pull() -> None:
    """A gap has to last half a second; when the missing one comes, nothing is due."""
    log = Log()
    view, server = begun(log)
    one, two, three = (log.message() for _ in range(3))
    feed(view, one, three)
    assert view.due == LATER
    assert view.advance(Instant(LATER - 1)) == []
    feed(view, two, now=Instant(LATER - 1))
    assert view.due is None
    assert view.advance(LATER) == []
    assert seen(view) == log.shown()
    assert server.pulls == []


@pytest.mark.spec("MI-08")
def test_each_gap_has_its_own_half_second() -> None:
    """A second one that is seen just before the first one closes is not read with the first one's patience."""
    log = Log()
    view, _ = begun(log)
    one, two, three, _, five = (log.message() for _ in range(5))
    feed(view, one, three)
    feed(view, five, two, now=Instant(LATER - 1))
    assert view.due == LATER - 1 + GAP_WAIT_MS
    assert view.advance(LATER) == []


@pytest.mark.spec("MI-02", "MI-08", "MD-01")
def test_a_gap_that_lasts_is_read_once() -> None:
    """From where the known stretch ends."""
    log = Log()
    view, _ = begun(log)
    entries = [log.message() for _ in range(5)]
    feed(view, entries[0], entries[3], entries[4])
    assert view.advance(LATER) == [Pull(CID, 1)]
    assert view.due is None
    assert view.advance(Instant(LATER + 60_000)) == []
    effects = view.page(CID, log.as_read(range(2, 6)), 5, LATER)
    assert [effect.row.seq for effect in effects if isinstance(effect, Shown)] == [2, 3]
    assert seen(view) == log.shown()
    assert view.due is None


@pytest.mark.spec("MI-08")
def test_a_pull_that_fails_is_tried_again_later_and_later() -> None:
    """Whether there was no answer, or one that brought nothing."""
    log = Log()
    view, _ = begun(log)
    feed(view, log.message(), (log.message(), log.message())[1])
    now, waits = LATER, []
    for attempt in range(9):
        assert view.advance(now) == [Pull(CID, 1)]
        if attempt % 2:
            view.page(CID, [], 1, now)
        else:
            view.page_failed(CID, now)
        assert view.due is not None
        waits.append(view.due - now)
        now = view.due
    assert waits == [500, 1_000, 2_000, 4_000, 8_000, 16_000, RETRY_MAX_MS, RETRY_MAX_MS, RETRY_MAX_MS]
    assert view.advance(now) == [Pull(CID, 1)]
    view.page(CID, log.as_read(range(2, 4)), 3, now)
    assert seen(view) == log.shown()


def test_a_gap_that_closes_while_it_is_read_leaves_nothing_behind() -> None:
    """And the next one waits its half second again."""
    log = Log()
    view, _ = begun(log)
    one, two, three = (log.message() for _ in range(3))
    feed(view, one, three)
    assert view.advance(LATER) == [Pull(CID, 1)]
    feed(view, two, now=LATER)
    feed(view, (log.message(), log.message())[1], now=LATER)
    assert view.due is None, "one reading at a time"
    view.page(CID, [two], 3, LATER)
    assert view.due == LATER + GAP_WAIT_MS
    feed(view, log.entries[3], now=LATER)
    assert view.due is None


def test_more_pages_are_read_at_once_while_they_bring_something() -> None:
    """A gap wider than a page costs no further waiting."""
    log = Log()
    log.message()
    view, server = begun(log)
    for _ in range(PAGE + 20):
        log.message()
    feed(view, log.entries[-1])
    server.answer(view.advance(LATER), LATER)
    assert server.pulls == [Pull(CID, 1), Pull(CID, PAGE + 1)]
    assert seen(view) == log.shown()


def test_a_gap_wider_than_what_is_held_is_left_behind_and_known_to_be_missing() -> None:
    """The newest seq never stands for what is before it: looking back reads it."""
    log = Log()
    log.message()
    view, server = begun(log, entries_max=PAGE)
    conversation = view.conversation(CID)
    assert conversation is not None
    view.open(conversation)
    for _ in range(300):
        log.message()
    feed(view, log.entries[-1])
    server.settle(NOW)
    assert Redrawn(CID) in server.effects
    assert server.pulls == []
    assert server.lists == 2, "how many were unread is asked"
    assert (conversation.lo, conversation.hi, conversation.unread) == (301, 301, 301)
    assert seen(view) == log.shown(301)
    rows = view.older(CID, 301, log.as_read(range(251, 301)), is_all=False)
    assert [row.seq for row in rows] == list(range(251, 301))
    assert seen(view) == log.shown(251)


def test_what_a_page_leaves_out_is_not_for_the_user() -> None:
    """Who was away from a group does not see what was said meanwhile, and does not ask for it for ever."""
    log = Log(is_group=True)
    for _ in range(3):
        log.message()
    for appends in (True, False):
        view, server = begun(log, appends=appends)
        feed(view, log.event("kick", ME))
        for _ in range(3):
            log.message()
        feed(view, log.event("join", ME))
        log.first_seq = len(log.entries)
        feed(view, log.message())
        server.settle(NOW)
        assert seen(view) == [(seq, body) for seq, body in log.shown(3) if seq <= 4 or seq >= 8]
        log.entries = log.entries[:3]
        log.first_seq = 1


def test_an_empty_page_ends_where_the_answer_says() -> None:
    """Of what is not for the user even the end may be hidden."""
    log = Log(is_group=True)
    view, _ = begun(log)
    feed(view, log.message())
    view.heard_of(CID, 4, NOW)
    assert view.advance(LATER) == [Pull(CID, 1)]
    view.page(CID, [], 4, LATER)
    assert view.due is None
    conversation = view.conversation(CID)
    assert conversation is not None
    assert conversation.hi == 4


@pytest.mark.parametrize("appends", [True, False])
def test_a_gap_with_too_much_behind_it_is_left_behind(appends: bool) -> None:  # noqa: FBT001
    """What waits is bounded; what came is kept, and what is before the gap is read when somebody looks back."""
    log = Log()
    view, server = begun(log, entries_max=PAGE, appends=appends)
    conversation = view.conversation(CID)
    assert conversation is not None
    view.open(conversation)
    entries = [log.message() for _ in range(PAGE + 12)]
    effects = feed(view, entries[0], *entries[2:5], *entries[12:], *entries[5:12])
    shown = [*range(3, 6), *range(13, PAGE + 13), *range(6, 13)] if appends else [*range(3, PAGE + 13)]
    assert [row.seq for row in conversation.rows()] == shown
    assert [effect.row.seq for effect in effects] == [1, *shown], "each is told once"
    assert (conversation.lo, conversation.hi, conversation.is_doubtful) == (3, PAGE + 12, True)
    server.settle(NOW)
    assert (server.pulls, server.lists, conversation.unread) == ([], 2, PAGE + 12)
    view.older(CID, 3, log.as_read(range(1, 3)), is_all=True)
    conversation.close()
    assert seen(view) == log.shown(conversation.lo)


def test_pages_and_heads_of_unknown_conversations_are_of_no_interest() -> None:
    """The view was begun anew while they were read."""
    view = ViewModel(ME)
    assert view.page(CID, [], 4, NOW) == []
    assert view.older(CID, 4, [], is_all=True) == []
    view.page_failed(CID, NOW)
    view.heard_of(CID, 4, NOW)
    assert view.read(CID, 3, NOW) == []
    assert feed(view, note("read", read_seq=3)) == []
    assert view.due is None


def test_a_conversation_that_is_not_known_begins_with_what_comes_if_there_was_no_list() -> None:
    """What is before may be long; it is read when somebody looks."""
    log = Log()
    for _ in range(9):
        log.message()
    view = ViewModel(ME)
    feed(view, log.entries[-1])
    assert view.due is None
    conversation = view.conversation(CID)
    assert conversation is not None
    assert view.with_peer(BOB) is conversation
    assert view.open(conversation) == [PullOlder(CID, 9)]
    view.older(CID, 9, log.as_read(range(1, 9)), is_all=True)
    assert seen(view) == log.shown()
    assert view.open(conversation) == []


def test_a_single_conversation_that_was_in_no_list_is_read_from_its_beginning() -> None:
    """It began since, so that all of it is news."""
    view = ViewModel(ME)
    server = Server(view)
    server.answer(view.ask_list(), NOW)
    log = server.logs[CID] = Log()
    log.message()
    feed(view, log.message())
    server.settle(NOW)
    assert seen(view) == log.shown()
    assert view.total_unread() == 2


# ---------------------------------------------------------------- duplicates, edits, recalls


def test_an_entry_is_shown_once_however_often_it_comes() -> None:
    """Over the timeline, the channel and history."""
    log = Log()
    view, _ = begun(log)
    one, _, three = (log.message() for _ in range(3))
    effects = [*view.apply(one, NOW, offset=1), *view.apply(one, NOW, offset=1), *feed(view, one, three, three)]
    assert [effect.row.seq for effect in effects] == [1, 3]
    assert view.position == 1


@pytest.mark.parametrize("appends", [True, False])
def test_a_cover_counts_whether_it_comes_before_or_after_its_message(appends: bool) -> None:  # noqa: FBT001
    """The newest edit, and a recall above all."""
    log = Log()
    for _ in range(3):
        log.message()
    log.edit(1, "first"), log.edit(1, "second", mentions=[ME]), log.edit(2), log.recall(2), log.edit(3, "x")
    for order in (range(8), reversed(range(8)), (3, 4, 5, 6, 7, 0, 1, 2), (4, 3, 6, 5, 7, 0, 1, 2)):
        view = ViewModel(ME, appends=appends)
        server = Server(view, Log())
        server.answer(view.ask_list(), NOW)
        feed(view, *(log.entries[at] for at in order))
        assert seen(view) == [(1, "second"), (2, None), (3, "x")] == log.shown()


def test_what_history_tells_as_edited_is_not_undone_by_an_older_edit() -> None:
    """The page was read after the second one."""
    log = Log()
    view, _ = begun(log)
    feed(view, log.message())
    log.message()
    first, second = log.edit(2, "first"), log.edit(2, "second")
    view.heard_of(CID, 2, NOW)
    assert view.advance(LATER) == [Pull(CID, 1)]
    view.page(CID, log.as_read(range(2, 3)), 4, LATER)
    assert seen(view)[-1] == (2, "second")
    feed(view, first, second)
    assert seen(view) == log.shown()


def test_a_change_is_told_of_what_is_shown_only() -> None:
    """Where rows wait for a gap to close, nobody has seen those behind it."""
    for appends, told in ((True, [2]), (False, [])):
        log = Log()
        log.message(), log.message(), log.edit(2)
        view, server = ViewModel(ME, appends=appends), None
        Server(view, Log()).answer(view.ask_list(), NOW)
        assert server is None
        effects = feed(view, log.entries[1], log.entries[2])
        assert [effect.row.seq for effect in effects if isinstance(effect, Changed)] == told
        assert seen(view) == (log.shown(2) if appends else [])
        feed(view, log.entries[0])
        assert seen(view) == log.shown()


# ---------------------------------------------------------------- windows and echoes


@pytest.mark.spec("OR-03")
def test_an_open_window_is_only_appended_to_and_sorted_when_it_is_opened_anew() -> None:
    """Append then re-sort: no line moves under the reader's eyes."""
    log = Log()
    view, _ = begun(log)
    conversation = view.conversation(CID)
    assert conversation is not None
    view.open(conversation)
    assert conversation.is_open
    entries = [log.message() for _ in range(4)]
    order = []
    for at in (0, 3, 1, 2):
        before = [row.seq for row in conversation.rows()]
        feed(view, entries[at])
        order = [row.seq for row in conversation.rows()]
        assert order[: len(before)] == before
    assert order == [1, 4, 2, 3]
    view.open(conversation)
    assert seen(view) == log.shown()
    conversation.close()
    feed(view, log.message())
    assert seen(view) == log.shown()


def test_a_view_that_does_not_append_shows_no_row_before_its_turn() -> None:
    """It waits for the gap instead."""
    log = Log()
    view, _ = begun(log, appends=False)
    conversation = view.conversation(CID)
    assert conversation is not None
    view.open(conversation)
    entries = [log.message() for _ in range(4)]
    shown = [feed(view, entries[at]) for at in (0, 3, 2, 1)]
    assert [[effect.row.seq for effect in effects] for effects in shown] == [[1], [], [], [2, 3, 4]]
    assert [row.seq for row in conversation.rows()] == [1, 2, 3, 4]


def test_an_own_message_is_shown_at_once_and_takes_its_place_when_it_is_told() -> None:
    """One line, whatever comes first: the answer, or the message itself."""
    log = Log()
    log.message()
    view, _ = begun(log)
    conversation = view.conversation(CID)
    assert conversation is not None
    view.open(conversation)
    assert view.echo("k", {"body": "hi"}, cid=CID) == [Shown(CID, conversation.rows()[-1])]
    view.echo("k", {"body": "hi"}, cid=CID)
    feed(view, log.message())
    assert [(row.seq, row.state) for row in conversation.rows()] == [(1, "stored"), (0, "sending"), (2, "stored")]
    (changed,) = view.answered("k", "stored")
    assert isinstance(changed, Changed)
    assert (changed.row.key, changed.row.state) == ("k", "stored")
    (told,) = feed(view, log.message(ME, "hi", client_msg_id="k"))
    assert isinstance(told, Changed)
    assert [row.seq for row in conversation.rows()] == [1, 3, 2]
    assert view.answered("k", "stored") == []
    view.open(conversation)
    assert [row.seq for row in conversation.rows()] == [1, 2, 3]
    assert feed(view, log.message(ME, client_msg_id="of another device"))
    view.echo("l", {"body": "ho"}, cid=CID)
    feed(view, log.message(ME, "ho", client_msg_id="l"))
    assert view.answered("l", "stored") == [], "the message came before the answer"


def test_a_message_to_somebody_new_has_a_window_before_it_has_a_conversation() -> None:
    """The first answer, or push, says which conversation it is."""
    view = ViewModel(ME)
    view.echo("k", {"body": "hi"}, to=BOB)
    waiting = view.with_peer(BOB)
    assert waiting is not None
    view.open(waiting)
    view.check_invariants()
    assert [(row.key, row.state) for row in waiting.rows()] == [("k", "sending")]
    log = Log()
    feed(view, log.message(ME, "hi", client_msg_id="k"), log.message())
    assert view.conversation(CID) is waiting
    assert seen(view) == log.shown()
    assert view.echo("l", {"body": "x"}, cid="unknown") == []


def test_a_send_that_fails_is_shown_as_failed() -> None:
    """By the answer, or by a note after it was queued; sent again it is shown as being sent."""
    log = Log()
    log.message()
    view, _ = begun(log)
    view.echo("k", {"body": "hi"}, cid=CID)
    view.answered("k", "queued")
    assert view.conversation(CID).rows()[-1].state == "queued"  # type: ignore[union-attr]
    failure = {"kind": "failure", "client_msg_id": "k", "cid": CID, "seq": 0, "body": {"cause": "MUTED"}}
    changed, told = view.apply(failure, NOW, offset=4)
    assert isinstance(changed, Changed)
    assert (changed.row.state, changed.row.error) == ("failed", {"cause": "MUTED"})
    assert told == Told(failure)
    assert view.answered("k", "stored") == []
    view.echo("k", {"body": "hi"}, cid=CID)
    assert view.conversation(CID).rows()[-1].state == "sending"  # type: ignore[union-attr]


def test_an_own_message_found_by_looking_back_is_not_shown_as_being_sent() -> None:
    """Nor twice."""
    log = Log()
    log.message()
    view, server = begun(log, entries_max=PAGE)
    conversation = view.conversation(CID)
    assert conversation is not None
    view.open(conversation)
    view.echo("k", {"body": "hi"}, cid=CID)
    log.message(ME, "hi", client_msg_id="k")
    for _ in range(PAGE + 5):
        log.message()
    feed(view, log.entries[-1])
    server.settle(NOW)
    assert [row.key for row in conversation.rows()][-1] == "k"
    view.older(CID, conversation.lo, log.as_read(range(1, conversation.lo)), is_all=True)
    conversation.close()
    view.older(CID, conversation.lo, [], is_all=False)
    assert [row.seq for row in conversation.rows()].count(0) == 0


def test_when_the_data_was_replaced_everything_is_forgotten() -> None:
    """Windows are to be drawn anew, channels to be left."""
    log = Log(is_group=True)
    log.message()
    view = ViewModel(ME)
    view.ask_list()
    listed(view, log.document(fan_out="read", channel="conv"), now=NOW)
    conversation = view.conversation(CID)
    assert conversation is not None
    view.open(conversation)
    assert view.forget() == [Unfollow(CID), Redrawn(CID)]
    assert view.conversations() == []
    assert not view.is_loaded


def test_what_is_not_known_here_is_passed_on() -> None:
    """Typing, receipts, and whatever a newer server tells."""
    view = ViewModel(ME)
    for data in ({"kind": "typing", "cid": CID, "from": BOB}, {"kind": "new"}, {}, {"kind": "message"}):
        assert view.apply(data, NOW) == [Told(data)]


# ---------------------------------------------------------------- any way of being told

STEP = st.sampled_from(["message", "message", "mine", "edit", "recall", "rename", "switch"])
FATE = st.sampled_from(["on time", "on time", "lost", "twice", "late", "very late"])


@pytest.mark.spec("MI-08", "OR-03")
@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.tuples(STEP, FATE, st.integers(0, 5)), max_size=40), appends=st.booleans(), opens=st.booleans()
)
def test_any_way_of_being_told_ends_in_the_log(steps: list[tuple[str, str, int]], appends: bool, opens: bool) -> None:  # noqa: FBT001
    """Losses, repeats, reorders and both strategies: the same rows as the log's, and the same number of unread ones."""
    log = Log(is_group=True)
    log.message()
    view, server = begun(log, appends=appends)
    conversation = view.conversation(CID)
    assert conversation is not None
    if opens:
        view.open(conversation)
    now, later = NOW, []
    shown: list[int] = []
    for number, (step, fate, which) in enumerate(steps):
        now = Instant(now + 100 * which)
        messages = [e["seq"] for e in log.entries if e["kind"] == "message"]
        recalled = {e["target"] for e in log.entries if e["kind"] == "recall"}
        target = messages[-1 - which % len(messages)]
        if step in {"edit", "recall"} and target not in recalled:
            entry = log.edit(target, f"edit {number}") if step == "edit" else log.recall(target)
        elif step == "rename":
            entry = log.event("rename", name=f"name {number}")
        elif step == "switch":
            entry = log.event("fan_out", fan_out="read" if log.fan_out == "write" else "write")
        else:
            entry = log.message(ME if step == "mine" else BOB)
        if fate != "lost":
            later += [(number + {"late": which, "very late": 20}.get(fate, 0), entry)] * (2 if fate == "twice" else 1)
        for when, one in [pair for pair in later if pair[0] <= number]:
            later.remove((when, one))
            effects = view.apply(one, now)
            shown += [effect.row.seq for effect in effects if isinstance(effect, Shown)]
        before = [row.seq for row in conversation.rows()]
        server.answer(view.advance(now), now)
        after = [row.seq for row in conversation.rows()]
        assert not opens or after[: len(before)] == before, "no line moves while the window is open"
        assert appends or after == sorted(after)
        view.check_invariants()
    for _, one in later:
        view.apply(one, now)
    view.ask_list()
    server.answer([AskList()], now)
    server.settle(now)
    conversation.close()
    assert seen(view) == log.shown()
    assert view.total_unread() == log.unread()
    shown += [effect.row.seq for effect in server.effects if isinstance(effect, Shown)]
    assert len(shown) == len(set(shown)), "each is told once"
