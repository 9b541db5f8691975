"""Who may number: each rule by example, on nodes that talk by direct calls, some of which are lost.

Copies in doubt are in `test_custody_doubt`, channels that gave way in `test_custody_room`, histories of whole clusters
in `tests/access/test_channel_histories.py`.
"""

from __future__ import annotations

from access.core.custody import ASKED_MAX, FORK_AFTER_MS, TAIL_BYTES_MAX, TAIL_MAX, Duty, Outcome, Progress
from access.core.holding import PROMISE_MS, QUIET_MS
from access.core.placement import Node, View
from access.core.stream import Draft
from access.peers import NO_BALLOT, Ballot, Collect, Collected, Replicate, Replicated
from base.clock import Instant, Timestamp
from tests.access.core.custody_nodes import CHANNEL, NAMES, NOW, WALL, Nodes, in_order, settled

# ---------------------------------------------------------------- one node, two nodes


def test_a_node_alone_owns_and_commits_at_once():
    """It asks nobody, and waits for nobody."""
    nodes = Nodes("a")
    assert nodes.claim("a", "c") == Outcome(is_owned=True)
    entry = nodes["a"].number("c", Draft(b"1"), WALL)
    assert entry is not None
    assert (entry.offset, entry.time) == (1, WALL)
    assert nodes["a"].is_committed("c", 1)
    assert nodes["a"].pending("c") is None
    assert nodes["a"].duty("c") is Duty.NOTHING
    assert nodes.epoch("a", "c") == "e1"


def test_a_publication_is_committed_when_the_backup_has_it():
    """The first time it gets the whole, then what follows."""
    nodes = Nodes("a", "b", "c")
    assert nodes.claim("a") == Outcome(is_owned=True)
    assert nodes["a"].duty(CHANNEL) is Duty.REPLICATE
    nodes["a"].number(CHANNEL, Draft(b"1"), WALL)
    assert not nodes["a"].is_committed(CHANNEL, 1)
    assert not nodes["a"].is_settled(CHANNEL)
    pending = nodes["a"].pending(CHANNEL)
    assert pending is not None
    backup, request = pending
    assert (backup, request.is_whole, request.after, len(request.entries)) == ("b", True, 0, 1)
    assert nodes["a"].pending(CHANNEL) is None, "one thing at a time"
    progress = nodes["a"].replicated(CHANNEL, request.ballot, nodes["b"].replicate(request, NOW, WALL))
    assert [entry.draft.data for entry in progress.committed] == [b"1"]
    assert nodes["a"].is_settled(CHANNEL)
    for data in (b"2", b"3"):
        nodes["a"].number(CHANNEL, Draft(data), WALL)
    assert [entry.draft.data for entry in nodes.pump("a").committed] == [b"2", b"3"]
    assert nodes.texts("b") == nodes.texts("a") == [b"1", b"2", b"3"]


def test_times_of_publications_never_fall():
    """A clock that was set back is not believed, neither against what is committed nor against what waits."""
    nodes = settled()
    for wall in (4_000, 6_000, 3_000):
        nodes["a"].number(CHANNEL, Draft(b"x"), Timestamp(wall))
    nodes.pump("a")
    stream = nodes["a"].stream(CHANNEL)
    assert stream is not None
    assert [entry.time for entry in stream.entries()] == [5_000, 5_000, 6_000, 6_000]


def test_a_publication_is_found_by_its_key_before_and_after_its_commit():
    """So that sending it again is harmless at any time."""
    nodes = settled()
    nodes["a"].number(CHANNEL, Draft(b"2", key="k"), WALL)
    assert nodes["a"].find(CHANNEL, "k") == 2
    nodes.pump("a")
    assert nodes["a"].find(CHANNEL, "k") == 2
    assert nodes["a"].find(CHANNEL, "other") is None


def test_the_tail_is_bounded():
    """A backup that hangs must not cost the owner its memory."""
    nodes = settled()
    for _ in range(TAIL_MAX):
        assert nodes["a"].number(CHANNEL, Draft(b""), WALL) is not None
    assert nodes["a"].number(CHANNEL, Draft(b""), WALL) is None
    nodes.pump("a")
    for _ in range(3):
        assert nodes["a"].number(CHANNEL, Draft(bytes(TAIL_BYTES_MAX // 3)), WALL) is not None
    assert nodes["a"].number(CHANNEL, Draft(b""), WALL) is None
    nodes.pump("a")
    assert nodes["a"].number(CHANNEL, Draft(b""), WALL) is not None
    nodes.check()


def test_a_backup_that_did_not_answer_gets_it_again():
    """What it had after all is no harm."""
    nodes = settled()
    nodes["a"].number(CHANNEL, Draft(b"2"), WALL)
    pending = nodes["a"].pending(CHANNEL)
    assert pending is not None
    nodes["b"].replicate(pending[1], NOW, WALL)
    assert nodes["a"].replicated(CHANNEL, pending[1].ballot, None) == Progress()
    nodes["a"].number(CHANNEL, Draft(b"3"), WALL)
    assert len(nodes.pump("a").committed) == 2
    assert nodes.texts("b") == [b"1", b"2", b"3"]


def test_a_backup_that_lost_its_copy_gets_the_whole():
    """It says so when something comes that does not fit."""
    nodes = settled()
    nodes.restart("b")
    nodes.see("a", "b", "c", by="b")
    nodes["a"].number(CHANNEL, Draft(b"2"), WALL)
    assert nodes.pump("a") == Progress()
    assert len(nodes.pump("a").committed) == 1
    assert nodes.texts("b") == [b"1", b"2"]


def test_a_whole_that_comes_late_takes_nothing_away():
    """Only one that begins beyond what the backup has replaces it."""
    nodes = settled()
    term = nodes["a"].term(CHANNEL)
    stream = nodes["a"].stream(CHANNEL)
    assert stream is not None
    late = Replicate(CHANNEL, term, "e1", 0, stream.entries(), is_whole=True)
    nodes.publish("a", b"2")
    assert nodes["b"].replicate(late, NOW, WALL) == Replicated(2, term)
    assert nodes.texts("b") == [b"1", b"2"]
    beyond = Replicate(CHANNEL, term, "e1", 9, [], is_whole=True)
    assert nodes["b"].replicate(beyond, NOW, WALL) == Replicated(9, term)
    assert nodes.texts("b") == []
    nodes.check()


def test_a_backup_that_restarted_gets_the_whole_before_it_has_to_say_so():
    """The owner sees its new life in the view."""
    nodes = settled()
    nodes.restart("b")
    nodes.see("a", "b", "c")
    assert nodes["a"].duty(CHANNEL) is Duty.REPLICATE
    nodes.pump("a")
    assert nodes.texts("b") == [b"1"]
    assert nodes["a"].duty(CHANNEL) is Duty.NOTHING


def test_answers_to_an_older_term_change_nothing():
    """Late ones, and those of who owns no more."""
    nodes = settled()
    term = nodes["a"].term(CHANNEL)
    assert nodes["a"].replicated("unknown", term, None) == Progress()
    assert nodes["b"].replicated(CHANNEL, term, None) == Progress()
    assert nodes["a"].replicated(CHANNEL, Ballot(9, "x"), Replicated(99, NO_BALLOT)) == Progress()


def test_nobody_has_pending_what_it_does_not_own():
    """Nor who has no backup, nor who never heard of it."""
    nodes = settled()
    assert nodes["b"].pending(CHANNEL) is None
    assert nodes["c"].pending("unknown") is None


# ---------------------------------------------------------------- a node dies


def test_the_backup_goes_on_where_the_owner_died():
    """Same epoch, next offset, nothing lost."""
    nodes = settled()
    nodes.down.add("a")
    nodes.see("b", "c")
    assert nodes["b"].duty(CHANNEL) is Duty.CLAIM
    assert nodes.claim("b").is_owned
    assert nodes.publish("b", b"2") == 2
    assert (nodes.epoch("b"), nodes.texts("b"), nodes.texts("c")) == ("e1", [b"1", b"2"], [b"1", b"2"])


def test_what_waited_for_the_backup_may_survive_its_owner():
    """It was not acknowledged, and the backup may have it."""
    nodes = settled()
    nodes["a"].number(CHANNEL, Draft(b"2"), WALL)
    pending = nodes["a"].pending(CHANNEL)
    assert pending is not None
    nodes["b"].replicate(pending[1], NOW, WALL)
    nodes.down.add("a")
    nodes.see("b", "c")
    nodes.claim("b")
    assert nodes.publish("b", b"3") == 3


def test_an_owner_whose_backup_died_takes_another():
    """And commits nothing until that one has it."""
    nodes = settled()
    nodes.down.add("b")
    nodes["a"].number(CHANNEL, Draft(b"2"), WALL)
    assert nodes.pump("a") == Progress()
    nodes.see("a", "c")
    assert nodes["a"].duty(CHANNEL) is Duty.CLAIM
    assert nodes.claim("a") == Outcome(is_owned=True)
    assert len(nodes.pump("a").committed) == 1
    assert (nodes.texts("c"), nodes.epoch("c")) == ([b"1", b"2"], "e1")


def test_the_last_node_commits_what_waited_for_the_dead():
    """Alone again."""
    nodes = settled("a", "b")
    nodes["a"].number(CHANNEL, Draft(b"2"), WALL)
    nodes.see("a")
    outcome = nodes.claim("a")
    assert [entry.draft.data for entry in outcome.committed] == [b"2"]
    assert nodes.texts("a") == [b"1", b"2"]


def test_an_owner_that_was_alone_waits_for_the_new_backup():
    """Or the first publications after a node joined would have one copy."""
    nodes = Nodes("a", "b", "c")
    nodes.see("a")
    nodes.claim("a")
    nodes.see("a", "b")
    nodes["a"].number(CHANNEL, Draft(b"1"), WALL)
    assert not nodes["a"].is_committed(CHANNEL, 1)
    assert nodes.claim("a") == Outcome(is_owned=True)
    assert len(nodes.pump("a").committed) == 1


# ---------------------------------------------------------------- a node comes, or drains


def test_a_new_owner_takes_the_channel_from_the_former_one():
    """With everything, and the former one and its backup forget it once the new backup has it."""
    nodes = Nodes("a", "b", "c")
    nodes.see("b", "c")
    nodes.age()
    nodes.claim("b")
    nodes.publish("b", b"1")
    nodes.see("a", "b", "c")
    assert [nodes[name].duty(CHANNEL) for name in "abc"] == [Duty.NOTHING, Duty.NUDGE, Duty.NUDGE]
    assert nodes.claim("a").is_owned
    assert not nodes["b"].is_owner(CHANNEL)
    assert nodes.pump("a").drop == ("c",)
    assert [nodes.texts(name) for name in "abc"] == [[b"1"], [b"1"], []]
    assert nodes.publish("a", b"2") == 2
    assert nodes.epoch("a") == "e1"
    assert [nodes[name].duty(CHANNEL) for name in "abc"] == [Duty.NOTHING] * 3


def test_a_draining_owner_gives_the_channel_away():
    """It is asked, although it is in no order any more."""
    nodes = settled()
    nodes.draining.add("a")
    nodes.see("a", "b", "c")
    assert nodes["a"].duty(CHANNEL) is Duty.NUDGE
    assert nodes.claim("b").is_owned
    assert nodes.pump("b").drop == ("a",)
    assert nodes.publish("b", b"2") == 2
    assert nodes.texts("c") == [b"1", b"2"]


def test_what_was_in_the_tail_goes_with_the_channel():
    """An owner that gives away commits nothing any more."""
    nodes = settled()
    nodes.draining.add("a")
    nodes["a"].number(CHANNEL, Draft(b"2"), WALL)
    pending = nodes["a"].pending(CHANNEL)
    assert pending is not None
    nodes.see("a", "b", "c")
    nodes.claim("b")
    reply = nodes["b"].replicate(pending[1], NOW, WALL)
    assert nodes["a"].replicated(CHANNEL, pending[1].ballot, reply) == Progress()
    nodes.pump("b")
    assert nodes.texts("c") == [b"1", b"2"]


def test_a_copy_is_found_behind_any_number_of_new_nodes():
    """R2: young nodes that have nothing are no answer."""
    order = ("a", "b", "c", "d", "e", "f")
    channel = in_order(*order)
    nodes = Nodes(*order)
    nodes.see("e", "f", by=("e", "f"))
    nodes.age()
    for name in "abcd":
        nodes.restart(name)
    nodes.claim("e", channel)
    nodes.publish("e", b"1", channel)
    nodes.see(*order)
    assert nodes.claim("a", channel).is_owned
    assert nodes.texts("a", channel) == [b"1"]


def test_among_old_nodes_two_are_asked_for_a_new_channel():
    """Every channel begins like this, so it must not cost much; and nobody asks all of many young ones."""
    channel = in_order(*NAMES[:4])
    nodes = Nodes(*NAMES[:4])
    nodes.claim("a", channel)
    assert nodes.asked == ["b", "c", "d"], "all are young, and there are no more"
    nodes.age()
    other = next(f"o{n}" for n in range(999) if nodes["a"].view.owner(f"o{n}") == "a")
    nodes.asked.clear()
    nodes.claim("a", other)
    assert len(nodes.asked) == 2
    many = Nodes(*NAMES)
    first = many["a"].view.owner("x")
    assert first is not None
    many.claim(first, "x")
    assert len(many.asked) == ASKED_MAX


def test_whoever_is_pointed_to_is_asked_as_well():
    """A subscribers' node knows who owned the channel before."""
    channel = in_order("a", "b", "c", "d")
    nodes = Nodes("a", "b", "c", "d")
    nodes.see("d", by="d")
    nodes.claim("d", channel)
    nodes["d"].number(channel, Draft(b"1"), WALL)
    nodes.age()
    nodes.see("a", "b", "c", "d")
    assert nodes.claim("a", channel, former=("d", "gone")).is_owned
    assert nodes.texts("a", channel) == [b"1"]


def test_the_members_of_a_copys_term_are_asked_as_well():
    """R2: the backup may be anywhere, and its owner be ahead of it."""
    channel = in_order("a", "b", "c", "d")
    nodes = Nodes("a", "b", "c", "d")
    nodes.age()
    nodes.see("c", "d", by="cd")
    nodes.claim("c", channel)
    nodes.publish("c", b"1", channel)
    nodes.see("a", "b", "c", "d")
    nodes.claim("a", channel)
    assert "d" in nodes.asked[-3:]


# ---------------------------------------------------------------- views that differ


def test_a_node_promises_only_to_whom_it_considers_the_owner():
    """R1: the claimant learns who that is."""
    nodes = Nodes("a", "b", "c")
    nodes.see("b", "c", by="bc")
    nodes.claim("b")
    assert nodes.claim("a") == Outcome(is_owned=False, owner="b")
    nodes.see()
    assert nodes["b"].collect(Collect(CHANNEL, Ballot(9, "a", 1)), NOW) == Collected(NO_BALLOT, "")


def test_a_claim_by_an_old_view_ends_when_the_view_does():
    """There is another owner now."""
    nodes = Nodes("a", "b", "c")
    nodes.see("b", "c", by="bc")
    step = nodes["b"].begin(CHANNEL, NOW, new_epoch="e")
    assert step.ask == ("c",)
    nodes.see("a", "b", "c", by="b")
    reply = nodes["c"].collect(Collect(CHANNEL, step.ballot), NOW)
    step = nodes["b"].answered(CHANNEL, step.ballot, "c", reply, NOW)
    if step.ask:  # it asks on, since c is young
        step = nodes["b"].answered(CHANNEL, step.ballot, step.ask[0], None, NOW)
    assert step.outcome == Outcome(is_owned=False, owner="a")


def test_of_two_claims_the_greater_ballot_counts():
    """The smaller one is refused, begins again above it, and ends if it is refused even so."""
    nodes = Nodes("a", "b", "c")
    nodes["b"].collect(Collect(CHANNEL, Ballot(7, "a", 9)), NOW)
    assert nodes.claim("a") == Outcome(is_owned=True)
    assert nodes["a"].term(CHANNEL) == Ballot(8, "a", 1)
    other = Nodes("a", "b", "c")["a"]
    step = other.begin(CHANNEL, NOW, new_epoch="e")
    again = other.answered(CHANNEL, step.ballot, "b", Collected(Ballot(7, "x")), NOW)
    assert (again.ballot, again.ask, again.outcome) == (Ballot(8, "a", 1), step.ask, None)
    last = other.answered(CHANNEL, again.ballot, "b", Collected(Ballot(9, "x")), NOW)
    assert last.outcome == Outcome(is_owned=False)


def test_who_is_refused_when_nobody_else_is_left_owns_at_once():
    """It begins again above the refusal, and there is nobody to ask."""
    nodes = Nodes("a", "b", "c")
    step = nodes["a"].begin(CHANNEL, NOW, new_epoch="e")
    nodes.see("a", by="a")
    assert nodes["a"].answered(CHANNEL, step.ballot, "b", Collected(Ballot(7, "x")), NOW).ask == ()
    assert nodes["a"].is_owner(CHANNEL)
    nodes.check()


def test_an_owner_that_was_replaced_learns_it_from_its_backup():
    """This is the fence: it can commit nothing, whatever it believes."""
    nodes = settled()
    nodes["b"].adopt(View([Node("b", 1), Node("c", 1)]), NOW)
    nodes["c"].adopt(View([Node("b", 1), Node("c", 1)]), NOW)
    nodes.claim("b")
    nodes["a"].number(CHANNEL, Draft(b"2"), WALL)
    assert nodes.pump("a") == Progress(is_deposed=True)
    assert not nodes["a"].is_owner(CHANNEL)
    assert nodes["a"].duty(CHANNEL) is Duty.CLAIM, "by its own view"
    assert nodes.claim("a").owner == "b"


def test_a_greater_claim_ends_the_one_under_way():
    """Whoever promised another cannot own any more."""
    nodes = Nodes("a", "b", "c")
    nodes.see("b", "c", by="bc")
    step = nodes["b"].begin(CHANNEL, NOW, new_epoch="e")
    assert nodes["b"].is_claiming(CHANNEL)
    nodes.see("a", "b", "c", by="bc")
    nodes["b"].collect(Collect(CHANNEL, Ballot(5, "a", 1)), NOW)
    assert not nodes["b"].is_claiming(CHANNEL)
    late = nodes["b"].answered(CHANNEL, step.ballot, "c", Collected(step.ballot), NOW)
    assert (late.ask, late.outcome) == ((), None)
    assert nodes["b"].answered("unknown", step.ballot, "c", None, NOW).outcome is None


def test_a_claim_that_begins_anew_leaves_nothing_of_the_one_before():
    """Nor does one that failed: an owner that did not ask notices nothing of it."""
    nodes = settled()
    nodes.see("b", "c", by="b")
    first = nodes["b"].begin(CHANNEL, nodes.now, new_epoch="e")
    second = nodes["b"].begin(CHANNEL, nodes.now, new_epoch="e")
    assert second.ballot > first.ballot
    assert nodes["b"].answered(CHANNEL, first.ballot, "c", None, nodes.now).outcome is None
    refusal = Collected(NO_BALLOT, "a")
    assert nodes["b"].answered(CHANNEL, second.ballot, "c", refusal, nodes.now).outcome == Outcome(
        is_owned=False, owner="a"
    )
    nodes.check()
    assert nodes.publish("a", b"2") == 2


def test_a_copy_that_is_installed_ends_what_the_node_did_with_the_channel():
    """Its claim, and its ownership."""
    nodes = Nodes("a", "b", "c")
    nodes.see("b", by="b")
    nodes.claim("b")
    nodes["b"].begin(CHANNEL, NOW, new_epoch="e")
    newer = Ballot(9, "a", 1)
    reply = nodes["b"].replicate(Replicate(CHANNEL, newer, "f", 0, [], is_whole=True), NOW, WALL)
    assert reply == Replicated(0, newer)
    assert not nodes["b"].is_owner(CHANNEL)
    assert not nodes["b"].is_claiming(CHANNEL)
    assert nodes.epoch("b") == "f"
    nodes.check()


def test_a_collection_that_comes_twice_gives_the_same_answer():
    """With the doubts as they were before the first."""
    nodes = settled()
    nodes.draining.add("a")
    nodes.see("a", "b", "c")
    request = Collect(CHANNEL, Ballot(7, "b", 1))
    first = nodes["a"].collect(request, NOW)
    assert first.copy is not None
    assert first.copy.promised == []
    assert nodes["a"].collect(request, NOW) == first


def test_an_owner_whose_backup_follows_a_later_claim_of_its_own_claims_again():
    """The claim came to nothing, and the promise stands."""
    nodes = settled()
    step = nodes["a"].begin(CHANNEL, NOW, new_epoch="e")
    nodes["b"].collect(Collect(CHANNEL, step.ballot), NOW)
    nodes["a"].answered(CHANNEL, step.ballot, "b", None, NOW)
    nodes["a"].number(CHANNEL, Draft(b"2"), WALL)
    assert nodes.pump("a") == Progress(must_claim=True)
    assert nodes.claim("a").is_owned
    assert len(nodes.pump("a").committed) == 1


def test_a_claim_that_came_to_nothing_is_no_doubt():
    """Its node says that it never owned under it, whoever asks."""
    nodes = settled()
    nodes.draining.add("a")
    nodes.see("a", "b", "c")
    nodes.down.add("c")
    assert nodes.claim("b") == Outcome(is_owned=False)
    nodes.down.clear()
    assert nodes.claim("b").is_owned, "its own word"
    nodes.draining = {"b"}
    nodes.see("a", "b", "c")
    nodes.pump("b")
    nodes.down.add("c")
    assert nodes.claim("a") == Outcome(is_owned=False)
    nodes.down.clear()
    nodes.draining = {"a", "b"}
    nodes.see("a", "b", "c")
    assert nodes.claim("c").is_owned, "the word of a"
    assert nodes.epoch("c") == "e1"


def test_an_owner_whose_former_backup_hangs_goes_on_in_a_new_epoch():
    """R3 and R5: the copy there could be taken for new."""
    nodes = settled()
    nodes.draining.add("b")
    nodes.see("a", "b", "c")
    nodes.down.add("b")
    assert nodes.claim("a") == Outcome(is_owned=False)
    assert nodes["a"].is_owner(CHANNEL), "under its old term"
    nodes.now = Instant(nodes.now + FORK_AFTER_MS - 1)
    nodes.claim("a")
    nodes.now = Instant(nodes.now + 1)
    assert nodes.claim("a").is_owned
    assert nodes.epoch("a") == f"e{nodes.epochs}"
    assert nodes.publish("a", b"2") == 2
    assert nodes.texts("c") == [b"1", b"2"]


# ---------------------------------------------------------------- dropping, forgetting


def test_only_older_copies_are_dropped():
    """Not those of the present term, and never those of an owner."""
    nodes = settled()
    term = nodes["a"].term(CHANNEL)
    nodes["b"].drop(CHANNEL, term)
    assert nodes.texts("b") == [b"1"]
    nodes["a"].drop(CHANNEL, Ballot(9, "x"))
    assert nodes.texts("a") == [b"1"]
    nodes["b"].drop(CHANNEL, Ballot(9, "x"))
    assert nodes.texts("b") == []
    assert nodes["b"].replicate(Replicate(CHANNEL, term, "e1", 1, []), NOW, WALL).promised == Ballot(9, "x")
    nodes["b"].drop("unknown", term)
    nodes.check()


def test_what_follows_a_copy_that_is_not_there_is_refused():
    """A gap, or another term: the backup asks for the whole."""
    nodes = settled()
    term = nodes["a"].term(CHANNEL)
    assert nodes["b"].replicate(Replicate(CHANNEL, term, "e1", 5, []), NOW, WALL) == Replicated(-1, term)
    later = Ballot(99, "a", 1)
    assert nodes["b"].replicate(Replicate(CHANNEL, later, "e1", 1, []), NOW, WALL) == Replicated(-1, later)


def test_what_nobody_uses_is_forgotten():
    """A channel that somebody follows or claims is not."""
    nodes = Nodes("a", "b", "c")
    nodes.claim("a")
    assert nodes["a"].statistics() == {"known": 1, "owned": 1, "bytes": 0}
    later = Instant(nodes.now + QUIET_MS)
    nodes.followed.add(CHANNEL)
    nodes["a"].sweep(later, WALL)
    assert nodes["a"].channels() == [CHANNEL]
    nodes.followed.clear()
    nodes["a"].touch(CHANNEL, later)
    nodes["a"].touch("unknown", later)
    nodes["a"].sweep(later, WALL)
    assert nodes["a"].channels() == [CHANNEL]
    nodes["a"].sweep(Instant(later + QUIET_MS), WALL)
    assert nodes["a"].statistics() == {"known": 0, "owned": 0, "bytes": 0}
    nodes["a"].begin(CHANNEL, nodes.now, new_epoch="e")
    nodes["a"].sweep(Instant(nodes.now + PROMISE_MS), WALL)
    assert nodes["a"].channels() == [CHANNEL]
    assert nodes["b"].channels() == [CHANNEL], "it promised"
    nodes["b"].sweep(Instant(nodes.now + PROMISE_MS), WALL)
    assert nodes["b"].channels() == []
    nodes.check()


def test_a_node_owns_a_bounded_number_of_channels():
    """It says when it has room for one more."""
    nodes = Nodes("a", owned_max=1)
    assert nodes["a"].has_room()
    nodes.claim("a")
    assert not nodes["a"].has_room()


def test_a_channel_without_publications_and_followers_gives_way_to_another():
    """R7: of several the one that was unused for longest; not one that is followed, claimed, or was published in."""
    nodes = Nodes("a", "b")
    nodes.age()
    names = (f"c{number}" for number in range(99))
    claimed, followed, x, y, full, *_ = [name for name in names if nodes["a"].view.owner(name) == "a"]
    for channel in (claimed, followed, x, y, full):
        assert nodes.claim("a", channel).is_owned
    nodes["a"].number(full, Draft(b"1"), WALL)
    nodes["a"].begin(claimed, nodes.now, new_epoch="e")
    nodes.followed.add(followed)
    for channel in (full, x):
        nodes["a"].touch(channel, nodes.now)
    for channel in (y, x):
        forgotten = nodes["a"].make_room(nodes.now)
        assert forgotten is not None
        assert (forgotten.channel, forgotten.nodes) == (channel, ("b",))
        nodes.check()
    assert nodes["a"].make_room(nodes.now) is None
    held = [channel for channel in nodes["a"].channels() if nodes["a"].stream(channel) is not None]
    assert held == [claimed, followed, full]
    assert nodes["a"].statistics()["owned"] == 3


def test_there_is_nothing_to_do_about_what_is_not_held_or_has_no_owner():
    """Nor is anything known of it."""
    nodes = settled()
    assert nodes["a"].duty("unknown") is Duty.NOTHING
    assert nodes["a"].stream("unknown") is None
    assert nodes["a"].is_settled("unknown")
    assert not nodes["a"].is_owner("unknown")
    nodes["b"].adopt(View(), NOW)
    assert nodes["b"].duty(CHANNEL) is Duty.NOTHING
    assert nodes["a"].backup(CHANNEL) == "b"
