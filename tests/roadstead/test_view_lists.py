"""The view model: the list of conversations, what is unread, groups, and when the list is asked for."""

from __future__ import annotations

import pytest

from base.clock import Instant
from roadstead.client.conversation import GAP_WAIT_MS
from roadstead.client.view import (
    HINT_PAUSE_MS,
    PAGE,
    AskList,
    Follow,
    Listed,
    Unfollow,
    ViewModel,
)
from tests.roadstead.view_world import BOB, CID, LATER, ME, NOW, Log, Server, begun, feed, listed, note, seen

# ---------------------------------------------------------------- unread


def test_unread_is_what_the_pointers_say() -> None:
    """Others' messages after what was read or written, without recalled ones; edits and events do not count."""
    log = Log(is_group=True)
    for _ in range(4):
        log.message()
    log.read_seq = 1
    view, _ = begun(log)
    conversation = view.conversation(CID)
    assert conversation is not None

    def check() -> None:
        assert conversation.unread == log.unread() == view.total_unread()

    check()
    feed(view, log.message(), log.edit(3), log.event("rename", name="x"))
    check()
    for target in (2, 5):
        feed(view, log.recall(target))
        check()
    log.read_seq = 2
    view.read(CID, 2, NOW)
    assert conversation.is_doubtful, "what was before the list's newest is not held"
    assert view.advance(NOW) == [AskList()]
    listed(view, log.document(), now=NOW)
    check()
    feed(view, log.message(), log.message())
    log.read_seq = 9
    feed(view, note("read", read_seq=9, is_marked_unread=True))
    check()
    assert conversation.listed["is_marked_unread"]
    assert view.read(CID, 8, NOW) == []
    feed(view, log.message(ME))
    check()
    feed(view, log.message())
    log.read_seq = 50
    assert view.read(CID, 50, NOW) == [Listed(CID)]
    check()


def test_a_read_mark_within_what_is_held_needs_no_list() -> None:
    """It is counted anew."""
    log = Log()
    view, server = begun(log)
    for _ in range(6):
        feed(view, log.message())
    feed(view, log.recall(5))
    server.answer(view.ask_list(), NOW)
    log.read_seq = 3
    view.read(CID, 3, NOW)
    assert view.total_unread() == log.unread() == 2
    assert view.due is None


def test_a_guess_is_made_good_by_what_is_read_before_the_list_is() -> None:
    """Then all that the number stands for is held."""
    log = Log()
    for _ in range(5):
        log.message()
    view, server = begun(log)
    conversation = view.conversation(CID)
    assert conversation is not None
    log.read_seq = 2
    view.read(CID, 2, NOW)
    assert conversation.is_doubtful
    view.older(CID, 5, log.as_read(range(1, 5)), is_all=True)
    assert (conversation.is_doubtful, conversation.unread) == (False, log.unread())
    server.settle(NOW)
    assert view.total_unread() == log.unread() == 3


def test_what_came_after_the_list_was_made_is_counted_on_top_of_it() -> None:
    """A list may be older than pushes that were quicker, and than the user's last mark."""
    log = Log()
    log.message(), log.message()
    view, _ = begun(log)
    feed(view, log.message())
    old = log.document()
    feed(view, log.recall(2), log.message(), log.message())
    view.read(CID, 1, NOW)
    listed(view, old, now=NOW)
    log.read_seq = 1
    assert view.total_unread() == log.unread() == 3
    older = {**old, "max_seq": 1, "unread": 1, "last": log.entries[0]}
    listed(view, older, now=NOW)
    assert view.total_unread() == 3, "one that knows less says nothing new"


@pytest.mark.spec("UN-04")
def test_devices_that_replay_the_same_marks_agree_and_the_list_repairs_one_that_lost_some() -> None:
    """Who only counts, and lost a mark, shows unread messages that were read elsewhere."""
    log = Log()
    phone, server = begun(log)
    tablet, _ = begun(log)
    for entry in (log.message(), log.message(), log.message()):
        feed(phone, entry)
        feed(tablet, entry)
    log.read_seq = 2
    feed(phone, note("read", read_seq=2, is_marked_unread=False))
    assert (phone.total_unread(), tablet.total_unread()) == (1, 3), "the tablet lost its note"
    server.view = tablet
    server.answer(tablet.ask_list(), NOW)
    assert phone.total_unread() == tablet.total_unread() == log.unread() == 1


def test_a_mention_lasts_until_it_is_read() -> None:
    """Of the user, or of everybody."""
    log = Log(is_group=True)
    view, _ = begun(log)
    feed(view, log.message(mentions=[BOB]))
    conversation = view.conversation(CID)
    assert conversation is not None
    assert conversation.mentioned_seq == 0
    for mentions in ([ME], ["*"]):
        entry = log.message(mentions=mentions)
        feed(view, entry)
        assert conversation.mentioned_seq == entry["seq"]
        view.read(CID, entry["seq"], NOW)
        assert conversation.mentioned_seq == 0


def test_what_is_dropped_for_room_stays_counted() -> None:
    """And is read again when somebody looks back."""
    log = Log()
    view, _ = begun(log, entries_max=PAGE)
    conversation = view.conversation(CID)
    assert conversation is not None
    view.open(conversation)
    for number in range(3 * PAGE):
        feed(view, log.message() if number % 7 else log.edit(number) if number else log.message())
    assert conversation.unread == log.unread()
    assert conversation.lo > 100
    assert seen(view) == log.shown(conversation.lo)
    before = conversation.lo
    page = view.older(CID, before, log.as_read(range(before - 20, before)), is_all=False)
    assert len(page) >= 15, "shown to whoever asked"
    assert conversation.lo == before, "and not kept, since there is no room"
    conversation.close()
    for _ in range(PAGE):
        feed(view, log.message())
    assert conversation.unread == log.unread()


def test_a_hidden_conversation_comes_back_with_news() -> None:
    """Hidden by a note, or by being in no list; nothing of it is unread."""
    log, other = Log(), Log("8", is_group=True)
    log.message(), other.message()
    view, server = begun(log)
    server.logs["8"] = other
    server.answer(view.ask_list(), NOW)
    one, two = view.conversation(CID), view.conversation("8")
    assert one is not None
    assert two is not None
    assert view.conversations() == [one, two] or view.conversations() == [two, one]
    feed(view, note("settings", hidden_seq=1, is_muted=True, pinned_at=0))
    feed(view, note("settings", cid="8", is_muted=True, pinned_at=5, hidden_seq=0))
    assert (one.is_hidden, one.unread, two.is_hidden, two.listed["pinned_at"]) == (True, 0, False, 5)
    feed(view, log.message())
    assert (one.is_hidden, one.unread) == (False, 1)
    feed(view, note("settings", hidden_seq=2, is_muted=True, pinned_at=0))
    assert (one.is_hidden, one.unread) == (True, 0)
    feed(view, note("settings", hidden_seq=0, is_muted=True, pinned_at=0))
    assert (one.is_hidden, one.unread) == (False, 0)
    view.ask_list()
    assert view.ask_list() == [], "one at a time"
    effects = listed(view, log.document(), now=NOW)
    assert Listed("8") in effects
    assert two.is_hidden


def test_what_no_list_had_is_asked_about_when_it_has_news() -> None:
    """It was hidden further than this client knows, so that it cannot tell which of the news are unread."""
    log, other = Log(), Log("8", is_group=True)
    log.message(), other.message()
    view, server = begun(log)
    server.logs["8"] = other
    server.answer(view.ask_list(), NOW)
    view.ask_list()
    listed(view, log.document(), now=NOW)
    for _ in range(3):
        other.message()
    other.read_seq = 3
    feed(view, other.entries[3])
    effects = view.advance(NOW)
    assert effects == [AskList()]
    server.answer(effects, NOW)
    server.settle(NOW)
    two = view.conversation("8")
    assert two is not None
    assert (two.is_hidden, two.unread) == (False, other.unread()) == (False, 1)


def test_a_hidden_chat_that_was_never_listed_is_asked_about_when_it_has_news() -> None:
    """What it begins with is not its beginning: that was read, or at least hidden."""
    view, server = begun(Log("8", is_group=True))
    chat = Log()
    chat.message(), chat.message()
    chat.read_seq = 1
    server.logs[CID] = chat
    feed(view, chat.entries[1])
    effects = view.advance(NOW)
    assert effects == [AskList()]
    server.answer(effects, NOW)
    server.settle(NOW)
    assert view.total_unread() == chat.unread() == 1


# ---------------------------------------------------------------- lists


def test_a_list_that_cannot_be_read_is_asked_for_again_later() -> None:
    """And later each time."""
    view = ViewModel(ME)
    assert view.ask_list() == [AskList()]
    view.list_failed(NOW)
    assert view.due == LATER
    assert view.advance(LATER) == [AskList()]
    view.list_failed(LATER)
    assert view.due == LATER + 2 * GAP_WAIT_MS


def test_what_asks_for_the_list_while_it_is_read_is_answered_by_another_one() -> None:
    """The one that is being read may have been made before."""
    view = ViewModel(ME)
    listed(view, now=NOW)
    view.ask_list()
    log = Log(is_group=True)
    feed(view, log.event("invite", ME, fan_out="read"))
    assert view.due is None
    assert view.advance(NOW) == []
    listed(view, log.document(), now=NOW)
    assert view.due == NOW
    assert view.advance(NOW) == [AskList()]


def test_an_operators_event_in_a_chat_that_is_not_known_asks_for_the_list() -> None:
    """It does not say who the other user is."""
    log = Log()
    log.message()
    entry = {**log.event("fan_out", by="", fan_out="read"), "to": BOB}
    view = ViewModel(ME)
    assert feed(view, entry) == []
    assert view.due is None
    server = Server(view, log)
    listed(view, now=NOW)
    feed(view, entry)
    server.settle(NOW)
    assert server.lists == 1
    assert view.with_peer(BOB) is view.conversation(CID) is not None


@pytest.mark.spec("FO-03", "MD-02")
def test_a_list_shows_what_no_push_did() -> None:
    """The last message of every conversation is lost: all of them are repaired."""
    logs = [Log(str(cid)) for cid in range(1, 30)]
    for log in logs:
        log.message()
    view = ViewModel(ME)
    server = Server(view, *logs)
    for log in logs:
        log.entries[0]["from"] = f"user-{log.cid}"
    documents = [log.document(peer=f"user-{log.cid}") for log in logs]
    view.ask_list()
    listed(view, *documents[:20], now=NOW, is_last=False)
    listed(view, *documents[20:], now=NOW)
    for log in logs:
        log.message(f"user-{log.cid}"), log.message(f"user-{log.cid}")
    view.ask_list()
    listed(view, *(log.document(peer=f"user-{log.cid}") for log in logs), now=NOW)
    server.settle(NOW)
    assert all(seen(view, log.cid) == log.shown() for log in logs)
    assert len(server.pulls) == len(logs)


@pytest.mark.spec("FO-03", "MI-09")
def test_a_thousand_idle_conversations_ask_for_nothing() -> None:
    """No pull, and one comparison a heartbeat."""
    view = ViewModel(ME)
    view.ask_list()
    documents = []
    for cid in range(1_000):
        log = Log(str(cid), is_group=True)
        log.message()
        documents.append(log.document(fan_out="read"))
    listed(view, *documents, now=NOW)
    for minute in range(60):
        now = Instant(NOW + 60_000 * minute)
        assert view.apply({"kind": "sync", "sync_version": 1_000}, now) == []
        assert view.due is None
        assert view.advance(now) == []


@pytest.mark.spec("MD-02")
def test_a_sync_version_that_stays_another_asks_for_the_list_once() -> None:
    """A last message that nobody pushed; what is merely late makes it equal in time."""
    log = Log()
    log.fan_out = "read"
    log.message()
    view, server = begun(log)
    assert feed(view, {"kind": "sync", "sync_version": 2}) == []
    assert view.due == LATER
    feed(view, log.message(), {"kind": "sync", "sync_version": 2})
    assert view.due is None, "equal again"
    log.message()
    feed(view, {"kind": "sync", "sync_version": 3})
    server.settle(NOW)
    assert server.lists == 2
    assert seen(view) == log.shown()
    feed(view, {"kind": "sync", "sync_version": 9}, {"kind": "sync", "sync_version": 9})
    assert view.due == LATER + HINT_PAUSE_MS, "not one list after another"
    assert view.advance(Instant(LATER + HINT_PAUSE_MS)) == [AskList()]
    listed(view, log.document(), hidden=6, now=NOW)
    feed(view, {"kind": "sync", "sync_version": 9})
    assert view.due is None, "the rest is of conversations that are hidden"


def test_what_came_in_the_meantime_makes_the_question_needless() -> None:
    """More than the hint knew of."""
    log = Log()
    log.fan_out = "read"
    view, server = begun(log)
    one, two = log.message(), log.message()
    feed(view, {"kind": "sync", "sync_version": 1})
    feed(view, one, two)
    server.settle(NOW)
    assert server.lists == 1


def test_after_a_reconnect_pushes_that_nothing_brings_again_are_looked_for() -> None:
    """In the list; where all conversations are in the timeline or have channels, nothing is asked."""
    log = Log()
    log.message()
    view, server = begun(log)
    view.reconnected(NOW)
    assert view.due is None
    log.event("fan_out", fan_out="read")
    feed(view, log.entries[-1])
    server.settle(NOW)
    log.message()
    view.reconnected(NOW)
    server.settle(NOW)
    assert seen(view) == log.shown()
    assert server.lists == 3


# ---------------------------------------------------------------- groups


def test_the_channel_of_a_large_group_is_followed_as_long_as_it_has_one() -> None:
    """The list says so; a switch back, or leaving, ends it."""
    for end in ("fan_out", "leave", "kick", "dissolve", "list"):
        log = Log(is_group=True)
        log.message()
        view, _ = begun(log)
        effects = feed(view, log.event("fan_out", fan_out="read"))
        assert effects == [Listed(CID)]
        assert view.advance(NOW) == [AskList()]
        document = log.document(channel="conv")
        assert Follow(CID, 2) in listed(view, document, now=NOW)
        conversation = view.conversation(CID)
        assert conversation is not None
        assert conversation.is_followed
        assert feed(view, log.event("rename", name="x"))[0] == Listed(CID)
        assert view.due is None
        document["max_seq"], document["last"] = len(log.entries), log.entries[-1]
        assert not any(isinstance(e, Follow) for e in listed(view, document, now=NOW)), "once"
        if end == "fan_out":
            effects = feed(view, log.event("fan_out", fan_out="write"))
        elif end == "leave":
            effects = feed(view, log.event("leave", by=ME))
        elif end == "list":
            effects = listed(view, log.document(), now=NOW)
        else:
            effects = feed(view, log.event(end, ME))
        assert effects.count(Unfollow(CID)) == 1
        assert not conversation.is_followed
        assert (conversation.last_seq > 0) == (end not in {"fan_out", "list"})


def test_who_left_has_nothing_unread_and_is_told_nothing_more() -> None:
    """Until the user is let in again."""
    log = Log(is_group=True)
    view, server = begun(log)
    feed(view, log.message(), log.message())
    assert view.total_unread() == 2
    feed(view, log.event("kick", BOB), log.event("kick", ME))
    assert view.total_unread() == 0
    assert feed(view, log.message()) == []
    view.heard_of(CID, 50, NOW)
    assert view.due is None
    feed(view, log.event("invite", ME))
    server.settle(NOW)
    assert view.total_unread() == 0
    feed(view, log.message())
    assert view.total_unread() == 1
    assert seen(view) == log.shown()


def test_what_waited_behind_the_end_is_dropped() -> None:
    """An entry after the one that the user left by was for others."""
    log = Log(is_group=True)
    view, server = begun(log)
    log.message(), log.message(), log.event("kick", ME), log.message()
    feed(view, log.entries[0], log.entries[3], log.entries[2])
    server.settle(NOW)
    assert seen(view) == log.shown()[:3]


def test_an_event_of_old_changes_nothing() -> None:
    """It may be read with a gap after a later one was minded."""
    log = Log(is_group=True)
    view, _ = begun(log)
    one, two = log.event("kick", ME), log.event("join", ME)
    feed(view, two, one)
    conversation = view.conversation(CID)
    assert conversation is not None
    assert conversation.last_seq == 0
    assert seen(view) == log.shown()


def test_a_group_that_is_new_is_asked_about() -> None:
    """Its name, over what its entries come, what is unread: the event does not say."""
    view = ViewModel(ME)
    server = Server(view)
    server.answer(view.ask_list(), NOW)
    log = server.logs["9"] = Log("9", is_group=True)
    for _ in range(3):
        log.message()
    feed(view, log.event("invite", ME, fan_out="read"))
    log.read_seq = 4
    feed(view, log.message())
    server.settle(NOW)
    assert server.lists == 2
    assert seen(view, "9") == log.shown(4)
    assert view.total_unread() == log.unread() == 1


def test_a_list_that_is_older_than_an_event_does_not_undo_it() -> None:
    """What the user left is left."""
    log = Log(is_group=True)
    log.message()
    view, _ = begun(log)
    old = log.document()
    feed(view, log.event("kick", ME))
    listed(view, old, now=NOW)
    conversation = view.conversation(CID)
    assert conversation is not None
    assert conversation.last_seq == 2
