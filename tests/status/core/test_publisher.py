"""The publisher of one link: examples by invariant, then both ends of the link over a channel that does its worst."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from base.clock import Instant, Timestamp
from base.ids import Epoch, Incarnation, NodeId
from status.api import OFFLINE, Beat, BeatReply, Closed, Delta, Opened
from status.core.publisher import BACKLOG_MAX, DELTAS_PER_BEAT, LinkPublisher
from status.core.sessions import SessionTable

LEASE_MS = 3_000
EPOCH = Epoch(4)
OK = BeatReply(needs_resync=False, epoch=EPOCH, lease_ms=LEASE_MS)
RESYNC = BeatReply(needs_resync=True, epoch=EPOCH, lease_ms=LEASE_MS)


def opened(number: int) -> Opened:
    """The session of a user of its own."""
    return Opened(f"u{number}", f"s{number}", number, "phone", "ios", "online", Timestamp(7))


def closed(number: int) -> Closed:
    return Closed(f"u{number}", f"s{number}", number)


def beat(generation: int, seq: int, *deltas: Delta, is_complete: bool = True) -> Beat:
    return Beat("a", 2, generation, seq, is_complete, EPOCH, list(deltas))


def new_link() -> LinkPublisher:
    return LinkPublisher(NodeId("a"), Incarnation(2))


def next_beat(link: LinkPublisher) -> Beat:
    made = link.next_beat(EPOCH)
    assert made is not None
    return made


def exchange(link: LinkPublisher, reply: BeatReply = OK) -> list[str]:
    """Send the next beat and take its answer; return what is confirmed."""
    return link.answered(next_beat(link), reply)


@pytest.fixture
def link() -> LinkPublisher:
    """A link whose first synchronisation, of session 1, was answered."""
    link = new_link()
    link.open(opened(1))
    exchange(link)
    return link


# ---------------------------------------------------------------- beats


def test_the_first_beat_says_everything():
    """I2 and I3: the first generation, complete at once if it fits into a beat."""
    link = new_link()
    assert link.has_news
    link.open(opened(1))
    link.open(opened(2))
    assert next_beat(link) == beat(1, 1, opened(1), opened(2))


def test_a_link_without_sessions_synchronises_too():
    """The receiver must know that it has nobody."""
    assert next_beat(new_link()) == beat(1, 1)


def test_a_session_that_ended_before_the_first_beat_is_not_mentioned():
    """Nobody heard of it."""
    link = new_link()
    link.open(opened(1))
    link.close(closed(1))
    assert next_beat(link) == beat(1, 1)


def test_later_beats_carry_what_changed_in_its_order(link: LinkPublisher):
    """I2: numbered without a gap; a beat without news renews the lease."""
    assert not link.has_news
    link.open(opened(2))
    link.close(closed(1))
    assert link.has_news
    made = next_beat(link)
    assert made == beat(1, 2, opened(2), closed(1))
    link.answered(made, OK)
    assert next_beat(link) == beat(1, 3)


def test_while_a_beat_is_in_flight_there_is_no_other(link: LinkPublisher):
    """I1: what happens meanwhile gathers for the next one."""
    made = next_beat(link)
    link.open(opened(2))
    link.close(closed(2))
    assert link.next_beat(EPOCH) is None
    assert not link.has_news
    link.answered(made, OK)
    assert next_beat(link) == beat(1, 3, opened(2), closed(2))


def test_a_beat_without_an_answer_is_sent_again_as_it_was(link: LinkPublisher):
    """I1: the receiver knows it by its number and content."""
    made = next_beat(link)
    link.open(opened(2))
    assert link.failed(made) is made
    assert made == beat(1, 2)


def test_closing_an_unknown_session_is_told_all_the_same(link: LinkPublisher):
    """It may have been opened over a link that this one took over from."""
    link.close(closed(9))
    assert next_beat(link) == beat(1, 2, closed(9))


# ---------------------------------------------------------------- generations


def test_a_great_synchronisation_comes_in_chunks_and_is_complete_with_the_last():
    """I3: and news since then comes after it."""
    link = new_link()
    everybody = [opened(number) for number in range(2 * DELTAS_PER_BEAT)]
    for one in everybody:
        link.open(one)
    made = next_beat(link)
    assert made == beat(1, 1, *everybody[:DELTAS_PER_BEAT], is_complete=False)
    link.close(closed(0))
    link.answered(made, OK)
    made = next_beat(link)
    assert made == beat(1, 2, *everybody[DELTAS_PER_BEAT:], is_complete=False)
    link.answered(made, OK)
    assert next_beat(link) == beat(1, 3, closed(0))


def test_a_receiver_that_missed_something_gets_everything_again(link: LinkPublisher):
    """A new generation, with what is open by then."""
    link.open(opened(2))
    assert exchange(link, RESYNC) == []
    link.open(opened(3))
    link.close(closed(1))
    assert link.has_news
    assert next_beat(link) == beat(2, 1, opened(2), opened(3))


def test_a_new_stream_voids_the_beat_in_flight(link: LinkPublisher):
    """Its answer, or the news that there is none, comes too late to matter."""
    link.open(opened(2))
    made = next_beat(link)
    link.resync()
    assert link.failed(made) is None
    assert link.answered(made, OK) == []
    again = next_beat(link)
    assert again == beat(2, 1, opened(1), opened(2))
    assert link.answered(made, RESYNC) == []
    assert link.answered(again, OK) == ["s1", "s2"]


def test_a_resync_before_the_last_one_was_sent_is_one_resync(link: LinkPublisher):
    """A stream that flaps costs no generations."""
    link.resync()
    link.resync()
    assert next_beat(link).generation == 2


def test_what_waits_for_a_receiver_that_is_away_is_bounded(link: LinkPublisher):
    """Beyond the bound everything is told anew, which voids the beat in flight as well."""
    made = next_beat(link)
    for _ in range(BACKLOG_MAX // 2 + 1):
        link.open(opened(2))
        link.close(closed(2))
    assert link.statistics() == {"sessions": 1, "backlog": 0, "generation": 1}
    assert link.failed(made) is None
    assert next_beat(link) == beat(2, 1, opened(1))


def test_a_change_during_a_synchronisation_of_very_many_does_not_begin_it_anew():
    """Else an access node with many clients, of whom some always come and go, would never be done."""
    link = new_link()
    for number in range(BACKLOG_MAX + 2 * DELTAS_PER_BEAT):
        link.open(opened(number))
    exchange(link)
    link.close(closed(0))
    link.open(opened(0))
    assert (next_beat(link).generation, link.statistics()["generation"]) == (1, 1)


# ---------------------------------------------------------------- confirmations


def test_a_session_is_confirmed_by_the_answer_to_the_beat_that_carried_it(link: LinkPublisher):
    """I4: not by an earlier beat, and once."""
    made = next_beat(link)
    link.open(opened(2))
    assert link.answered(made, OK) == []
    made = next_beat(link)
    assert link.answered(made, OK) == ["s2"]
    assert link.answered(made, OK) == []


def test_a_closing_confirms_nothing(link: LinkPublisher):
    """There is nobody to tell."""
    link.close(closed(1))
    assert exchange(link) == []


def test_the_statistics_and_sessions_show_what_the_link_stands_for(link: LinkPublisher):
    """Sessions oldest first."""
    link.open(opened(3))
    link.open(opened(2))
    assert link.sessions() == (opened(1), opened(3), opened(2))
    assert link.statistics() == {"sessions": 3, "backlog": 2, "generation": 1}


# ---------------------------------------------------------------- both ends of a link


class LinkOverBadChannel(RuleBasedStateMachine):
    """A publisher and a table; between them beats and answers are lost, repeated, late and out of order.

    Two things the transport does promise, and the channel keeps: an answer comes within a lease of its beat or not at
    all, and what an old stream had on the way does not reach a receiver that was started after it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = Instant(0)
        self.table = SessionTable(lease_ms=LEASE_MS)
        self.link = new_link()
        self.outstanding: Beat | None = None
        self.beats: list[Beat] = []
        self.answers: list[tuple[Beat, BeatReply]] = []
        self.numbers = 0
        self.told: set[str] = set()

    def arrive(self, beat: Beat) -> BeatReply:
        """Take a beat from the wire at the table."""
        taken = msgspec.msgpack.decode(msgspec.msgpack.encode(beat), type=Beat)
        outcome = self.table.beat(self.now, taken)
        assert not outcome.is_fenced
        return BeatReply(outcome.needs_resync, EPOCH, LEASE_MS)

    def answer(self, beat: Beat, reply: BeatReply) -> None:
        confirmed = self.link.answered(beat, reply)
        is_open = {one.session: one.user for one in self.link.sessions()}
        for session in confirmed:
            if session in is_open:
                (status,) = self.table.lookup(self.now, [is_open[session]])
                assert session in {view.session for view in status.sessions}
        self.told |= set(confirmed)

    def send(self) -> Beat | None:
        """Send the next beat, or the one in flight again."""
        made = self.link.next_beat(EPOCH)
        if made is None and self.outstanding is not None:
            made = self.link.failed(self.outstanding)
        self.outstanding = made
        return made

    @rule(count=st.integers(1, 3))
    def open(self, count: int) -> None:
        for _ in range(count):
            self.numbers += 1
            self.link.open(opened(self.numbers))

    @precondition(lambda self: self.numbers < DELTAS_PER_BEAT)
    @rule()
    def open_more_than_fit_into_a_beat(self) -> None:
        self.open(DELTAS_PER_BEAT + 1)

    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        sessions = self.link.sessions()
        if sessions:
            self.link.close(closed(data.draw(st.sampled_from(sessions)).conn_seq))

    @rule()
    def send_on_the_wire(self) -> None:
        made = self.send()
        if made is not None:
            self.beats.append(made)

    @precondition(lambda self: self.beats)
    @rule(data=st.data())
    def deliver_beat(self, data: st.DataObject) -> None:
        """Any that was ever sent."""
        one = data.draw(st.sampled_from(self.beats))
        self.answers.append((one, self.arrive(one)))

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def deliver_answer(self, data: st.DataObject) -> None:
        self.answer(*data.draw(st.sampled_from(self.answers)))

    @rule()
    def talk(self) -> None:
        """Once without trouble."""
        made = self.send()
        if made is not None:
            self.beats.append(made)
            self.answer(made, self.arrive(made))

    @rule()
    def reconnect(self) -> None:
        self.link.resync()

    @rule()
    def begin_anew(self) -> None:
        """A new table of partitions: another link of the same life takes the sessions over."""
        sessions = self.link.sessions()
        self.link = new_link()
        for one in sessions:
            self.link.open(one)

    @rule()
    def be_silent_for_a_lease(self) -> None:
        self.now = Instant(self.now + LEASE_MS)
        self.answers.clear()

    @rule()
    def restart_the_table(self) -> None:
        self.table = SessionTable(lease_ms=LEASE_MS)
        self.table.await_nodes(self.now, [NodeId("a")])
        self.beats.clear()
        self.answers.clear()
        self.link.resync()

    @rule()
    def calm_down(self) -> None:
        """After quiet both ends know the same sessions, and each of them was confirmed."""
        for _ in range(50):
            made = self.send()
            assert made is not None
            reply = self.arrive(made)
            self.answer(made, reply)
            if not reply.needs_resync and not self.link.has_news:
                break
        else:
            pytest.fail("the ends never agree")
        sessions = {one.session for one in self.link.sessions()}
        statuses = self.table.lookup(self.now, [f"u{number}" for number in range(1, self.numbers + 1)])
        assert {view.session for status in statuses for view in status.sessions} == sessions
        assert sessions <= self.told
        assert not self.table.is_recovering

    @invariant()
    def both_ends_are_sound(self) -> None:
        self.link.check_invariants()
        self.table.check_invariants()

    @invariant()
    def nobody_is_offline_whom_the_publisher_was_told_to_be_online(self) -> None:
        """As long as the lease runs, over resyncs, new links and restarts."""
        users = [one.user for one in self.link.sessions() if one.session in self.told]
        statuses = self.table.lookup(self.now, users)
        if self.table.statistics()["access_nodes"]:
            assert OFFLINE not in statuses

    def teardown(self) -> None:
        self.calm_down()


TestLinkOverBadChannel = LinkOverBadChannel.TestCase
TestLinkOverBadChannel.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
