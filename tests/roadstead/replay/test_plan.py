"""What a plan promises, over any recording; and the rules, one by one."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from roadstead.replay.core.day import Said, Timed
from roadstead.replay.core.plan import Pace, Person, Plan, planned

PACE = Pace(speed=100, start_ms=1_000, lead_ms=200, quiet_s=600)


def talk(name: str, *said: tuple[int, str]) -> Timed:
    speakers = tuple(dict.fromkeys(sender for _, sender in said))
    return Timed(
        name,
        speakers,
        tuple((place, at, Said(at, sender, f"{name} {place}")) for place, (at, sender) in enumerate(said)),
    )


def person(plan: Plan, user: str) -> Person:
    return next(one for one in plan.people if one.user == user)


def test_a_message_is_sent_at_its_time_to_the_other_one() -> None:
    """A hundred times as fast, after the beginning; each waits for the one before it."""
    plan = planned([talk("x", (50, "ann"), (60, "ben"), (60, "ben"))], PACE)
    assert [(one.key, one.at_ms, one.sender, one.to, one.after) for one in plan.conversations[0]] == [
        ("x/0", 1_000, "ann", "ben", ""),
        ("x/1", 1_100, "ben", "ann", "x/0"),
        ("x/2", 1_100, "ben", "ann", "x/1"),
    ]
    assert plan.messages["x/1"].text == "x 1"
    assert plan.end_ms == 1_100
    assert plan.expected() == {"ann": 3, "ben": 3}


def test_whoever_answers_reads_first_and_nobody_reads_after_its_last_message() -> None:
    """Up to the message that is answered to."""
    plan = planned([talk("x", (0, "ann"), (1, "ben"), (2, "ann"), (3, "ann"), (4, "ben"))], PACE)
    assert [(user, message.key) for user, message in plan.reads()] == [("ann", "x/1"), ("ben", "x/0"), ("ben", "x/3")]
    steps = person(plan, "ann").stretches[0].steps
    assert [(step.message and step.message.key, step.reads and step.reads.key) for step in steps] == [
        ("x/0", None),
        ("x/2", "x/1"),
        ("x/3", None),
    ]


def test_who_spoke_alone_gets_a_partner_that_reads_once() -> None:
    """The same one every time, never oneself, whoever else there is."""
    for number in range(40):
        alone = talk(f"alone-{number}", (0, "ann"), (10, "ann"), (20, "ann"))
        plan = planned([alone], PACE, senders=["ben", "cid"])
        assert plan == planned([alone], PACE, senders=["cid", "ben"])
        (partner,) = {message.to for message in plan.messages.values()}
        assert partner in {"ben", "cid"}
        (stretch,) = person(plan, partner).stretches
        assert [(step.at_ms, step.message, step.reads) for step in stretch.steps] == [
            (1_100, None, plan.messages[f"alone-{number}/1"])
        ]


def test_the_other_speaker_is_the_partner_where_it_says_nothing_of_what_is_replayed() -> None:
    """As in a window of a day: it reads the half of it."""
    part = Timed("x", ("ann", "ben"), talk("x", (0, "ben"), (5, "ben")).said)
    plan = planned([part], PACE, senders=["cid"])
    assert {message.to for message in plan.messages.values()} == {"ann"}
    assert [(user, message.key) for user, message in plan.reads()] == [("ann", "x/1")]


def test_users_are_there_around_what_they_do_and_away_in_between() -> None:
    """Ten minutes of quiet are six seconds here."""
    plan = planned([talk("x", (0, "ann"), (500, "ann"), (1_200, "ben"), (1_300, "ann"))], PACE)
    assert [(one.begin_ms, one.end_ms, len(one.steps)) for one in person(plan, "ann").stretches] == [
        (800, 12_000, 2),
        (13_800, 20_000, 1),
    ]
    assert [(one.begin_ms, one.end_ms) for one in person(plan, "ben").stretches] == [(12_800, 19_000)]


def test_every_fifth_user_has_a_second_device() -> None:
    """By name."""
    plan = planned([talk("x", (0, f"u{number}"), (1, f"u{number + 1}")) for number in range(0, 10, 2)], PACE)
    assert [one.user for one in plan.people if len(one.devices) == 2] == ["u0", "u5"]


def test_nothing_recorded_is_nothing_to_do() -> None:
    """An empty plan is over at once."""
    plan = planned([], PACE)
    assert (plan.people, plan.messages, plan.end_ms, plan.expected(), plan.due_ms(0.5)) == ((), {}, 0, {}, 0)


def test_a_part_of_the_messages_is_due_at_the_time_of_the_next_one() -> None:
    """Whatever the gaps: half of four are due with the third."""
    plan = planned([talk("x", (0, "ann"), (10, "ann"), (500, "ben"), (600, "ann"))], PACE)
    assert [plan.due_ms(part) for part in (0, 0.24, 0.25, 0.5, 0.99, 1)] == [1_000, 1_000, 1_100, 6_000, 7_000, 7_000]


said = st.lists(st.tuples(st.integers(0, 5_000), st.booleans()), min_size=1, max_size=12)
pairs = st.tuples(st.integers(0, 4), st.integers(1, 4))


@st.composite
def recordings(draw: st.DrawFn) -> list[Timed]:
    """Some conversations of five people, in pairs."""
    found = []
    for number, (first, distance) in enumerate(draw(st.lists(pairs, min_size=1, max_size=5))):
        pair = (f"u{first}", f"u{(first + distance) % 5}")
        rows = sorted(draw(said))
        found.append(talk(f"t{number}", *((at, pair[is_second]) for at, is_second in rows)))
    return found


@settings(max_examples=60, deadline=None)
@given(recordings())
def test_every_message_is_done_once_by_its_sender_in_order(recorded: list[Timed]) -> None:
    """Each when its user is online; stretches are apart; whoever waits waits for what was due before."""
    plan = planned(recorded, PACE, senders=["u9"])
    done = Counter(
        step.message.key
        for one in plan.people
        for stretch in one.stretches
        for step in stretch.steps
        if step.message is not None
    )
    assert done == Counter(f"{one.name}/{place}" for one in recorded for place, _, _ in one.said)
    for one in plan.people:
        for stretch in one.stretches:
            times = [step.at_ms for step in stretch.steps]
            assert times == sorted(times)
            assert stretch.begin_ms <= times[0] - PACE.lead_ms
            assert stretch.end_ms == times[-1] + PACE.quiet_ms
            for step in stretch.steps:
                assert step.message is None or step.message.sender == one.user
                assert step.reads is None or (step.reads.to == one.user and step.reads.at_ms <= step.at_ms)
        assert all(before.end_ms < after.begin_ms for before, after in pairwise(one.stretches))
    for messages in plan.conversations:
        assert [message.after for message in messages] == ["", *(message.key for message in messages[:-1])]
        assert len({frozenset((message.sender, message.to)) for message in messages}) == 1


def run_by_turns(plan: Plan) -> int:
    """Let everybody do its first step that waits for nothing, again and again; return how many were done."""
    left = {one.user: [step for stretch in one.stretches for step in stretch.steps] for one in plan.people}
    sent: set[str] = set()
    count = 0
    while True:
        ready = [
            (user, steps[0])
            for user, steps in left.items()
            if steps
            and (steps[0].message is None or steps[0].message.after in {"", *sent})
            and (steps[0].reads is None or steps[0].reads.key in sent)
        ]
        if not ready:
            return count
        for user, step in ready:
            left[user].pop(0)
            count += 1
            if step.message is not None:
                sent.add(step.message.key)


@settings(max_examples=60, deadline=None)
@given(recordings())
def test_nobody_waits_for_ever(recorded: list[Timed]) -> None:
    """Even if everybody does one thing after the other: all get to their ends."""
    plan = planned(recorded, PACE, senders=["u9"])
    assert run_by_turns(plan) == sum(len(stretch.steps) for one in plan.people for stretch in one.stretches)
