"""The fine print: what is no violation though it looks like one, and what is though it does not."""

from __future__ import annotations

import pytest

from base.clock import SimClock
from roadstead.history.check import check
from roadstead.history.events import DisplayEntry, Event, LogEntry, ReadEntry, TimelineEntry, UnreadPart
from roadstead.history.report import KEPT_MAX, Findings, Report
from tests.roadstead.history.tiny_model import MemoryRecorder

Q = ("bob", "phone")


class Story(MemoryRecorder):
    """A recorder whose clock goes on by a ms with each event. Conversation 1 is of ann and bob."""

    __slots__ = ("sim",)

    def __init__(self) -> None:
        self.sim = SimClock(start_ms=1)
        super().__init__([], "p", self.sim)

    @property
    def events(self) -> list[Event]:
        return self._events

    def _write(self, event: Event) -> None:
        super()._write(event)
        self.sim.advance(1)

    def sent(self, name: str, seq: int, *, cid: int = 1, user: str = "ann", device: str = "phone") -> None:
        call = self.invoke("send", user=user, device=device, client_msg_id=name, cid=cid, digest=f"{name}!")
        self.ok(call, cid=cid, seq=seq, mid=seq + 100 * cid)

    def pushed(self, name: str, seq: int, *, offset: int = 0, cid: int = 1, device: str = "phone") -> None:
        self.deliver(
            user="bob",
            device=device,
            channel="inbox:bob",
            offset=offset or seq,
            cid=cid,
            seq=seq,
            mid=seq + 100 * cid,
            sender="ann",
            client_msg_id=name,
            digest=f"{name}!",
        )

    def logged(self, *names: str, cid: int = 1, first: int = 1) -> None:
        entries = [entry(name, seq, cid=cid) for seq, name in enumerate(names, first)]
        self.final_log(cid=cid, entries=entries, first=first)

    def over(self) -> Report:
        for user in ("ann", "bob"):
            self.members(cid=1, user=user)
        return check(self.events)


def entry(name: str, seq: int, *, cid: int = 1, cseq: int | None = None, prev: int | None = None) -> LogEntry:
    return LogEntry(seq, seq if cseq is None else cseq, seq + 100 * cid, "ann", name, f"{name}!", prev=prev)


def said(report: Report) -> set[str]:
    return {f"{violation.invariant} {violation.kind}" for violation in report.violations}


# ---------------------------------------------------------------- verdicts


def test_an_empty_history_does_not_pass():
    """It violates nothing, and proves nothing."""
    report = check([])
    assert report.violations == ()
    assert len(report.vacuous) == 13
    assert not report.holds()
    assert not report.holds(frozenset())
    assert report.blind == ("it never got quiet: nobody knows what devices should have seen",)


def test_what_was_not_written_down_is_told():
    """Without logs, members or devices nothing can be said of them."""
    story = Story()
    story.sent("a", 1)
    story.ok(77, cid=1, seq=9)
    story.quiet(devices=[])
    story.logged("x", cid=2)
    report = check(story.events)
    assert report.blind == (
        "process p has an outcome of call 77, which nobody made",
        "conversation 1 has no final log",
        "conversation 2 has no members",
        "no device was there when it got quiet",
    )


def test_the_smallest_good_history_passes():
    """And says what it lacks for the other invariants."""
    story = Story()
    story.sent("a", 1)
    story.pushed("a", 1)
    story.quiet(devices=[Q])
    story.logged("a")
    report = story.over()
    assert report.holds()
    assert {"I9", "I10", "I11", "I12", "I13"} < report.vacuous
    assert not report.holds(frozenset({"I11"}))


def test_violations_beyond_the_first_are_counted():
    """A system that breaks everything does not fill the memory."""
    findings = Findings("I1", "things")
    for _ in range(KEPT_MAX + 5):
        findings.add("lost", "it is lost")
    finding = findings.done()
    assert (finding.found, len(finding.violations)) == (KEPT_MAX + 5, KEPT_MAX)


# ---------------------------------------------------------------- I1, I2


def test_an_unknown_outcome_may_be_in_the_log_or_not():
    """But what is there must be seen."""
    for is_logged in (True, False):
        story = Story()
        story.sent("a", 1)
        call = story.invoke("send", user="ann", device="phone", client_msg_id="b", digest="b!")
        story.info(call)
        story.pushed("a", 1)
        story.quiet(devices=[Q])
        story.logged(*("a", "b")[: 1 + is_logged])
        assert said(story.over()) == ({"I1 unobserved"} if is_logged else set())


def test_a_gap_that_the_device_knows_of_is_no_loss():
    """Neither in what reached it, nor in what it shows, nor where it goes on."""
    for knows in (True, False):
        story = Story()
        names = "abcd"
        for seq, name in enumerate(names, 1):
            story.sent(name, seq)
        story.pushed("a", 1)
        if knows:
            story.gap(user="bob", device="phone", cid=1, after=1, before=4)
        story.pushed("d", 4)
        shown = [DisplayEntry(1, 101, "a!"), DisplayEntry(4, 104, "d!")]
        story.display(user="bob", device="phone", cid=1, entries=shown)
        story.quiet(devices=[Q])
        story.logged(*names)
        story.final_timeline(
            user="bob", channel="inbox:bob", entries=[TimelineEntry(seq, 1, seq, 100 + seq) for seq in range(1, 5)]
        )
        assert said(story.over()) == (set() if knows else {"I1 unobserved", "I8 skip", "I8 view_hole"})


def test_who_left_need_not_see_what_came_then_and_must_not():
    """And sees it again from when it is back."""
    for is_told in (False, True):
        story = Story()
        for seq, name in enumerate("abc", 1):
            story.sent(name, seq)
        story.pushed("a", 1)
        if is_told:
            story.pushed("b", 2)
        story.pushed("c", 3)
        story.quiet(devices=[Q])
        story.logged(*"abc")
        story.members(cid=1, user="ann")
        story.members(cid=1, user="bob", leave_seq=1)
        story.members(cid=1, user="bob", join_seq=3)
        assert said(check(story.events)) == ({"I2 not_entitled"} if is_told else set())


def test_the_system_may_write_group_changes_itself_and_nothing_else():
    """A message without a sender is a phantom."""
    for form in ("change", "message"):
        story = Story()
        story.final_log(cid=1, entries=[LogEntry(1, 0, 5, "", "", form=form)])
        assert said(story.over()) == (set() if form == "change" else {"I2 phantom"})


def test_a_message_in_another_conversation_is_astray():
    """Though it is the right one otherwise."""
    story = Story()
    call = story.invoke("send", user="ann", device="phone", client_msg_id="a", cid=2, digest="a!")
    story.info(call)
    story.logged("a")
    assert said(story.over()) == {"I2 astray"}


def test_a_mid_that_only_a_page_names_is_a_phantom():
    """Even where there is no log to compare with."""
    story = Story()
    story.read(user="bob", device="phone", channel="inbox:bob", since=0, head=1, entries=[ReadEntry(1, 7, 1, 5)])
    assert said(story.over()) == {"I2 phantom"}


# ---------------------------------------------------------------- I4, I5


@pytest.mark.parametrize(
    ("entries", "options", "expected"),
    [
        ([entry("a", 2, cseq=1), entry("b", 7, cseq=2)], {"mode": "monotonic"}, set()),
        ([entry("a", 2, cseq=1), entry("b", 7, cseq=2)], {}, {"I4 hole"}),
        ([entry("b", 7, cseq=1), entry("a", 2, cseq=2)], {"mode": "monotonic"}, {"I4 order"}),
        ([entry("a", 2, prev=0, cseq=1), entry("b", 7, prev=2, cseq=2)], {"mode": "monotonic"}, set()),
        ([entry("a", 2, prev=0, cseq=1), entry("b", 7, prev=1, cseq=2)], {"mode": "monotonic"}, {"I4 chain"}),
        ([entry("a", 5, prev=4, cseq=3), entry("b", 6, prev=5, cseq=4)], {"first": 5}, set()),
        ([entry("a", 1), entry("b", 2, cseq=3)], {}, {"I4 cseq"}),
        ([entry("a", 1), entry("b", 2, cseq=0)], {}, {"I4 cseq"}),
        ([entry("a", 1, cseq=0), entry("b", 2, cseq=1)], {}, set()),
        ([entry("a", 1), LogEntry(2, 2, 101, "ann", "b", "b!")], {}, {"I4 mid_twice"}),
    ],
)
def test_logs_are_dense_or_ascend_and_their_links_form_a_chain(
    entries: list[LogEntry], options: dict[str, str], expected: set[str]
):
    """By the mode that they are in."""
    story = Story()
    for name in "ab":
        story.info(story.invoke("send", user="ann", device="phone", client_msg_id=name, digest=f"{name}!"))
    story.final_log(cid=1, entries=entries, **options)
    assert said(story.over()) == expected


def test_pages_of_a_log_follow_one_another():
    """The second goes on where the first ended."""
    story = Story()
    for seq, name in enumerate("ab", 1):
        story.sent(name, seq)
    story.final_log(cid=1, entries=[entry("a", 1)])
    story.final_log(cid=1, entries=[entry("b", 2)])
    assert said(story.over()) == set()


def test_a_place_with_two_messages_is_seen_without_a_log():
    """Two devices disagree."""
    story = Story()
    story.sent("a", 1)
    story.pushed("a", 1)
    story.sent("b", 1)
    story.pushed("b", 1, device="laptop")
    assert "I5 changed" in said(story.over())


def test_what_a_rule_dropped_need_not_be_there():
    """Neither acknowledged nor seen nor durable is asked for below `first`."""
    story = Story()
    for seq, name in enumerate("abc", 1):
        story.sent(name, seq)
        story.pushed(name, seq)
    story.fault("kill")
    story.quiet(devices=[Q])
    story.logged("c", first=3)
    story.final_timeline(user="bob", channel="inbox:bob", entries=[TimelineEntry(3, 1, 3, 103)], first=3)
    assert said(story.over()) == set()


# ---------------------------------------------------------------- I6, I7, I8, I9


def test_what_was_tried_again_may_come_after_the_next():
    """Nobody can tell which attempt it was; but what was tried once may not."""
    for is_tried_again in (True, False):
        story = Story()
        story.info(story.invoke("send", user="ann", device="phone", client_msg_id="a", digest="a!"))
        story.info(story.invoke("send", user="ann", device="phone", client_msg_id="b", digest="b!"))
        if is_tried_again:
            story.sent("a", 2)
        story.logged("b", "a")
        assert said(story.over()) == (set() if is_tried_again else {"I6 conversation"})


@pytest.mark.parametrize(("shards", "expected"), [(1, {"I6 timeline"}), (2, set())])
def test_a_timeline_keeps_order_among_the_conversations_of_a_shard(shards: int, expected: set[str]):
    """Conversation 2 is in another one than 1 and 3 if there are two; those two are judged in each case."""
    story = Story()
    for cid, name in ((1, "a"), (2, "b"), (3, "c")):
        story.sent(name, 1, cid=cid)
        story.logged(name, cid=cid)
        for user in ("ann", "bob"):
            story.members(cid=cid, user=user)
    placed = [TimelineEntry(offset, cid, 1, 1 + 100 * cid) for offset, cid in enumerate((2, 1, 3), 1)]
    for user in ("ann", "bob"):
        story.final_timeline(user=user, channel=f"inbox:{user}", entries=placed)
    story.quiet(devices=[])
    assert said(check(story.events, shards=shards)) == expected


def test_an_attempt_after_the_acknowledgement_changed_nothing():
    """So it does not excuse the first."""
    story = Story()
    story.sent("a", 2)
    story.info(story.invoke("send", user="ann", device="phone", client_msg_id="b", digest="b!"))
    story.sent("a", 2)
    story.logged("b", "a")
    assert said(story.over()) == {"I6 conversation", "I7 real_time"}


def test_a_key_that_two_devices_use_has_no_order_of_its_own():
    """Each of them had its own reasons."""
    story = Story()
    story.info(story.invoke("send", user="ann", device="phone", client_msg_id="a", digest="a!"))
    story.info(story.invoke("send", user="ann", device="laptop", client_msg_id="a", digest="a!"))
    story.info(story.invoke("send", user="ann", device="laptop", client_msg_id="b", digest="b!"))
    story.logged("b", "a")
    assert said(story.over()) == set()


def test_a_subscription_may_begin_later_if_what_is_between_is_read():
    """And go on from what was read and pushed together; never from beyond."""
    for resumed, expected in ((6, set()), (7, {"I8 skip"})):
        story = Story()
        names = "abcdefg"
        for seq, name in enumerate(names, 1):
            story.sent(name, seq)
        story.subscribe(user="bob", device="phone", channel="inbox:bob", since=0)
        story.pushed("a", 1)
        story.subscribe(user="bob", device="phone", channel="inbox:bob", since=4)
        story.pushed("e", 5)
        page = [ReadEntry(seq, 1, seq, 100 + seq) for seq in (2, 3, 4)]
        story.read(user="bob", device="phone", channel="inbox:bob", since=1, head=5, entries=page)
        story.pushed("f", 6)
        story.subscribe(user="bob", device="phone", channel="inbox:bob", since=resumed, is_recovered=True)
        story.final_timeline(
            user="bob", channel="inbox:bob", entries=[TimelineEntry(seq, 1, seq, 100 + seq) for seq in range(1, 8)]
        )
        story.logged(*names)
        assert said(story.over()) == expected


def test_a_conversation_may_be_read_anywhere_and_a_timeline_only_from_its_cursor():
    """Somebody scrolls; a cursor that jumps has lost what is between."""
    for cid, expected in ((1, set()), (None, {"I8 skip"})):
        story = Story()
        for seq, name in enumerate("abc", 1):
            story.sent(name, seq)
        story.pushed("a", 1)
        story.pushed("b", 2, device="laptop")
        page = [ReadEntry(3, 1, 3, 103)]
        story.read(user="bob", device="phone", channel="inbox:bob", since=2, head=3, entries=page, cid=cid)
        story.logged(*"abc")
        assert said(story.over()) == expected


def test_a_view_that_says_so_may_append_what_comes_late():
    """It sorts when it is opened again."""
    for is_sorted, expected in ((False, set()), (True, {"I8 view_order"})):
        story = Story()
        for seq, name in enumerate("ab", 1):
            story.sent(name, seq)
        shown = [DisplayEntry(2, 102, "b!"), DisplayEntry(1, 101, "a!")]
        story.display(user="bob", device="phone", cid=1, entries=shown, is_sorted=is_sorted)
        story.display(user="bob", device="phone", cid=9, entries=[])
        story.logged(*"ab")
        assert said(story.over()) == expected


def test_a_channel_that_is_a_conversation_knows_its_entries_from_the_log():
    """What was passed over was pushed to nobody."""
    story = Story()
    for seq, name in enumerate("abc", 1):
        story.sent(name, seq)
    for seq, name in ((1, "a"), (3, "c")):
        story.deliver(
            user="bob",
            device="phone",
            channel="conv:1",
            offset=seq,
            cid=1,
            seq=seq,
            mid=100 + seq,
            sender="ann",
            client_msg_id=name,
            digest=f"{name}!",
        )
    story.final_log(cid=1, entries=[entry(name, seq) for seq, name in enumerate("abc", 1)], channel="conv:1")
    assert said(story.over()) == {"I8 skip"}


# ---------------------------------------------------------------- I10, I12, I13


def counted(*parts: UnreadPart, is_asked: bool = True, total: int | None = None, leave: int | None = None) -> set[str]:
    """Check what bob was told when three messages of ann are there, and he has marked the second as read."""
    story = Story()
    for seq, name in enumerate("abc", 1):
        story.sent(name, seq)
    call = story.invoke("mark_read", user="bob", device="phone", client_msg_id="r", cid=1, ref=2)
    story.ok(call, cid=1, seq=2)
    story.quiet(devices=[])
    asked_at = story.now() if is_asked else None
    total = sum(part.unread for part in parts) if total is None else total
    story.unread_obs(user="bob", device="phone", total=total, parts=parts, asked_at=asked_at)
    story.logged(*"abc")
    story.members(cid=1, user="ann")
    story.members(cid=1, user="bob", leave_seq=leave)
    return said(check(story.events))


def test_counts_are_what_the_log_says_at_their_positions():
    """And the newest ones, once it is quiet."""
    assert counted(UnreadPart(1, 1, 2, 3)) == set()
    assert counted(UnreadPart(1, 1, 2, 3), total=0) == {"I10 total"}
    assert counted(UnreadPart(1, 2, 2, 3)) == {"I10 oracle"}
    assert counted(UnreadPart(1, 0, 2, 2)) == {"I10 stale"}
    assert counted(UnreadPart(1, 2, 1, 3)) == {"I10 went_back"}


def test_counts_that_cannot_be_judged_are_not():
    """Without positions, told unasked, of what was left, or of a conversation whose log nobody read."""
    assert counted(UnreadPart(1, 9)) == set()
    assert counted(UnreadPart(1, 2, 1, 3), is_asked=False) == set()
    assert counted(UnreadPart(1, 7, 2, 3), leave=2) == set()
    assert counted(UnreadPart(2, 7, 1, 3)) == set()


def test_own_messages_and_recalled_ones_are_not_unread():
    """An own message reads all before it; a recall counts from its own seq on."""
    story = Story()
    story.sent("a", 1)
    story.sent("b", 2, user="bob")
    story.sent("c", 3)
    story.sent("d", 4)
    call = story.invoke("recall", user="ann", device="phone", client_msg_id="e", cid=1, ref=3)
    story.ok(call, cid=1, seq=5, mid=105)
    for max_seq, unread in ((1, 1), (2, 0), (3, 1), (4, 2), (5, 1)):
        story.unread_obs(user="bob", device="phone", total=unread, parts=[UnreadPart(1, unread, 0, max_seq)])
    story.final_log(
        cid=1,
        entries=[
            entry("a", 1),
            LogEntry(2, 2, 102, "bob", "b", "b!"),
            entry("c", 3),
            entry("d", 4),
            LogEntry(5, 4, 105, "ann", "e", "", "recall", 3),
        ],
    )
    report = story.over()
    assert said(report) == set()
    assert next(finding.looked for finding in report.findings if finding.invariant == "I10") == 5


def test_a_failure_notice_comes_once_to_a_device_and_only_for_what_was_queued():
    """Two devices of the sender may each get one. A call that was not answered may have been queued."""
    for devices, outcome, expected in (
        (["phone", "laptop"], Story.queued, set()),
        (["phone", "phone"], Story.queued, {"I12 twice"}),
        (["phone"], Story.fail, {"I12 unasked"}),
        (["phone"], Story.info, set()),
        (["phone"], None, set()),
    ):
        story = Story()
        call = story.invoke("send", user="ann", device="phone", client_msg_id="a", digest="a!")
        if outcome is not None:
            outcome(story, call)
        for device in devices:
            story.failure(user="ann", device=device, client_msg_id="a")
        assert said(story.over()) == expected
    story = Story()
    story.failure(user="ann", device="phone", client_msg_id="never")
    assert said(story.over()) == {"I12 unasked"}


def test_who_left_need_not_show_what_was_edited_or_recalled_since():
    """What was changed before it left it must; what it shows of later changes is right as well."""
    for shown, expected in (("a!", {"I13 outdated"}), ("x", set()), ("y", set()), (None, set())):
        story = Story()
        story.sent("a", 1)
        for seq, op, body in ((2, "edit", "x"), (3, "edit", "y"), (4, "recall", "")):
            call = story.invoke(op, user="ann", device="phone", client_msg_id=str(seq), cid=1, digest=body, ref=1)
            story.ok(call, cid=1, seq=seq, mid=seq + 100)
        story.quiet(devices=[])
        story.display(user="bob", device="phone", cid=1, entries=[DisplayEntry(1, 101, shown)])
        story.members(cid=1, user="ann")
        story.members(cid=1, user="bob", leave_seq=2)
        log = [
            LogEntry(1, 1, 101, "ann", "a", "a!"),
            LogEntry(2, 1, 102, "ann", "2", "x", "edit", 1),
            LogEntry(3, 1, 103, "ann", "3", "y", "edit", 1),
            LogEntry(4, 1, 104, "ann", "4", "", "recall", 1),
        ]
        story.final_log(cid=1, entries=log)
        assert {one for one in said(check(story.events)) if one.startswith("I13")} == expected


def test_when_it_is_quiet_the_last_edit_is_shown():
    """Before that an older one may be; and a recall is not undone by an edit that comes after it."""
    for shown, expected in (("x", {"I13 outdated"}), ("y", set()), ("a!", {"I13 outdated"})):
        story = Story()
        story.sent("a", 1)
        for seq, body in ((2, "x"), (3, "y")):
            call = story.invoke("edit", user="ann", device="phone", client_msg_id=body, cid=1, digest=body, ref=1)
            story.ok(call, cid=1, seq=seq, mid=seq + 100)
        story.display(user="bob", device="phone", cid=1, entries=[DisplayEntry(1, 101, "x")])
        story.quiet(devices=[])
        story.display(user="bob", device="phone", cid=1, entries=[DisplayEntry(1, 101, shown)])
        edits = [LogEntry(seq, 1, 100 + seq, "ann", body, body, "edit", 1) for seq, body in ((2, "x"), (3, "y"))]
        story.final_log(cid=1, entries=[entry("a", 1), *edits])
        assert said(story.over()) == expected
