"""A right outcome is found right, and each way in which it can be wrong is told, with the message that it is about."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roadstead.replay.core.day import Said, Timed
from roadstead.replay.core.plan import Pace, Plan, planned
from roadstead.replay.core.proof import GONE, Entry, Place, Seen, Shown, Unread, digest, prove

PLAN = planned(
    [
        Timed(
            "x",
            ("a", "b"),
            tuple((place, place, Said(place, sender, f"x {place}")) for place, sender in enumerate("abaab")),
        ),
        Timed(
            "y",
            ("b", "a"),
            tuple((place, 2 + place, Said(place, sender, f"y {place}")) for place, sender in enumerate("ba")),
        ),
        Timed("z", ("c",), tuple((place, place, Said(place, "c", f"z {place}")) for place in range(4))),
    ],
    Pace(speed=1),
)
(Z_PARTNER,) = {message.to for message in PLAN.messages.values() if message.key.startswith("z")}
Z_CID = 2


def seen_of(plan: Plan, *, order: list[str] | None = None) -> Seen:
    """What a right system answers, if it stores in this order."""
    seen, cids = Seen(), dict[frozenset[str], int]()
    for mid, key in enumerate(order or sorted(plan.messages, key=lambda key: plan.messages[key].at_ms), start=100):
        message = plan.messages[key]
        cid = cids.setdefault(frozenset((message.sender, message.to)), len(cids) + 1)
        log = seen.logs.setdefault(cid, [])
        entry = Entry(Place(cid, len(log) + 1, mid), key, message.sender, digest(message.text))
        log.append(entry)
        seen.acknowledged[key] = entry.place
    for one in plan.people:
        mine = {cid: log for pair, cid in cids.items() if one.user in pair for log in [seen.logs[cid]]}
        for device in one.devices:
            seen.devices[one.user, device] = sorted(
                (entry for log in mine.values() for entry in log), key=lambda entry: entry.place.mid
            )
        counts = {cid: _unread(plan, one.user, log) for cid, log in mine.items()}
        seen.there[one.user], seen.gone[one.user] = Shown("online", tuple(sorted(one.devices))), GONE
        seen.unread[one.user] = Unread(sum(counts.values()), {cid: count for cid, count in counts.items() if count})
    return seen


def _unread(plan: Plan, user: str, log: list[Entry]) -> int:
    """Count from the end, up to what the user sent or read: another way than the judge's."""
    read = {message.key for reader, message in plan.reads() if reader == user}
    count = 0
    for entry in reversed(log):
        if entry.sender == user or entry.key in read:
            break
        count += 1
    return count


def right() -> Seen:
    return seen_of(PLAN)


def cid_of(seen: Seen, key: str) -> int:
    return seen.acknowledged[key].cid


def test_what_is_right_is_found_right_and_says_how_much_was_looked_at() -> None:
    """Nothing to say, and figures of everything."""
    proof = prove(PLAN, right())
    assert proof.violations == ()
    assert proof.looked["messages"] == proof.looked["acknowledged"] == proof.looked["log entries"] == 11
    assert proof.looked["conversations"] == 2
    assert proof.looked["devices"] == sum(len(one.devices) for one in PLAN.people)
    assert proof.looked["deliveries"] == sum(
        count * len(one.devices) for one in PLAN.people for count in [PLAN.expected()[one.user]]
    )
    assert proof.looked["unread counts"] >= 3
    assert proof.looked["statuses"] == 2 * len(PLAN.people)


def test_nothing_planned_and_nothing_seen_is_right() -> None:
    """And looked at nothing."""
    empty = planned([], Pace(speed=1))
    assert set(prove(empty, Seen()).looked.values()) == {0}


def test_what_two_processes_saw_is_right_only_together() -> None:
    """Each has its own users."""
    whole = right()
    parts = [
        Seen(
            {key: place for key, place in whole.acknowledged.items() if (PLAN.messages[key].sender == "a") is mine},
            {cid: log for cid, log in whole.logs.items() if (cid == Z_CID) is mine},
            {device: entries for device, entries in whole.devices.items() if (device[0] == "a") is mine},
            {user: told for user, told in whole.unread.items() if (user == "a") is mine},
            {user: told for user, told in whole.there.items() if (user == "a") is mine},
            {user: told for user, told in whole.gone.items() if (user == "a") is mine},
        )
        for mine in (True, False)
    ]
    assert all(prove(PLAN, part).violations for part in parts)
    parts[0].add(parts[1])
    assert prove(PLAN, parts[0]).violations == ()


# ---------------------------------------------------------------- what can be wrong


def never_acknowledged(seen: Seen) -> None:
    del seen.acknowledged["x/2"]


def lost(seen: Seen) -> None:
    log = seen.logs[cid_of(seen, "x/4")]
    log[:] = [entry for entry in log if entry.key != "x/4"]


def elsewhere(seen: Seen) -> None:
    place = seen.acknowledged["x/2"]
    seen.acknowledged["x/2"] = place._replace(mid=place.mid + 1_000)


def doubled(seen: Seen) -> None:
    log = seen.logs[cid_of(seen, "x/2")]
    log.append(log[2]._replace(place=Place(log[2].place.cid, len(log) + 1, 999)))


def unknown(seen: Seen) -> None:
    log = seen.logs[cid_of(seen, "x/2")]
    log.append(Entry(Place(log[0].place.cid, len(log) + 1, 999), "nobody's", "a", 0))


def hole(seen: Seen) -> None:
    log = seen.logs[Z_CID]
    log[3] = log[3]._replace(place=log[3].place._replace(seq=5))


def altered(seen: Seen) -> None:
    log = seen.logs[cid_of(seen, "x/2")]
    number = next(number for number, entry in enumerate(log) if entry.key == "x/2")
    log[number] = log[number]._replace(digest=1)


def from_another(seen: Seen) -> None:
    log = seen.logs[cid_of(seen, "x/2")]
    number = next(number for number, entry in enumerate(log) if entry.key == "x/2")
    log[number] = log[number]._replace(sender="b")


def two_conversations(seen: Seen) -> None:
    log = seen.logs[cid_of(seen, "y/1")]
    moved = log.pop()
    seen.logs[77] = [moved._replace(place=Place(77, 1, moved.place.mid))]


def missing(seen: Seen) -> None:
    got = seen.devices["a", "phone"]
    got[:] = [entry for entry in got if entry.key != "x/2"]


def repeated(seen: Seen) -> None:
    seen.devices["b", "phone"].append(seen.devices["b", "phone"][-1])


def late(seen: Seen) -> None:
    got = seen.devices["b", "phone"]
    got.insert(0, got.pop(1))


def strange(seen: Seen) -> None:
    got = seen.devices["b", "phone"]
    got[0] = got[0]._replace(digest=5)


def astray(seen: Seen) -> None:
    seen.devices["c", "phone"].append(Entry(Place(50, 1, 50), "x/0", "a", 0))


def absent(seen: Seen) -> None:
    del seen.devices["a", "phone"]


def miscounted(seen: Seen) -> None:
    (cid,) = seen.unread["a"].conversations.keys() - {Z_CID}
    seen.unread["a"] = Unread(seen.unread["a"].total, {**seen.unread["a"].conversations, cid: 7})


def invented(seen: Seen) -> None:
    seen.unread["a"] = Unread(seen.unread["a"].total, {**seen.unread["a"].conversations, 40: 1})


def wrong_total(seen: Seen) -> None:
    seen.unread["a"] = Unread(99, seen.unread["a"].conversations)


def untold(seen: Seen) -> None:
    del seen.unread[Z_PARTNER]


def shown_away(seen: Seen) -> None:
    seen.there["a"] = GONE


def shown_with_another_device(seen: Seen) -> None:
    seen.there["a"] = Shown("online", (*seen.there["a"].devices, "watch"))


def not_shown(seen: Seen) -> None:
    del seen.there["a"]


def shown_for_ever(seen: Seen) -> None:
    seen.gone["a"] = Shown("online", ("phone",))


@pytest.mark.parametrize(
    ("broken", "kind", "key"),
    [
        (never_acknowledged, "unacknowledged", "x/2"),
        (lost, "lost", "x/4"),
        (elsewhere, "elsewhere", "x/2"),
        (doubled, "doubled", "x/2"),
        (unknown, "unknown", "nobody's"),
        (hole, "hole", "z/3"),
        (altered, "altered", "x/2"),
        (from_another, "altered", "x/2"),
        (two_conversations, "apart", "x/4"),
        (missing, "missing", "x/2"),
        (repeated, "repeated", "x/4"),
        (late, "late", "x/0"),
        (strange, "strange", "x/0"),
        (astray, "astray", "x/0"),
        (absent, "missing", "x/0"),
        (miscounted, "unread", "x/4"),
        (invented, "unread", ""),
        (wrong_total, "unread", ""),
        (untold, "unread", "z/0"),
        (shown_away, "presence", ""),
        (shown_with_another_device, "presence", ""),
        (not_shown, "presence", ""),
        (shown_for_ever, "presence", ""),
    ],
)
def test_each_way_to_be_wrong_is_told_with_its_message(broken: Callable[[Seen], None], kind: str, key: str) -> None:
    """By the right name; the line has the message's id."""
    seen = right()
    broken(seen)
    found = [one for one in prove(PLAN, seen).violations if one.kind == kind]
    assert found
    assert not key or any(key in one.messages and key in str(one) for one in found)


def test_recorded_conversations_that_are_stored_in_another_order_are_told() -> None:
    """Messages of different ones may be stored in any order; those of one may not."""
    order = ["y/0", "x/0", "x/1", "y/1", "x/2", "x/3", "x/4", "z/0", "z/1", "z/2", "z/3"]
    assert prove(PLAN, seen_of(PLAN, order=order)).violations == ()
    order[1:3] = ["x/1", "x/0"]
    found = [one for one in prove(PLAN, seen_of(PLAN, order=order)).violations if one.kind == "disorder"]
    assert [one.messages for one in found] == [("x/0", "x/1")]


def test_a_violation_names_the_first_ten_of_many() -> None:
    """And says how many there are."""
    seen = right()
    seen.acknowledged.clear()
    (first, *_) = prove(PLAN, seen).violations
    assert len(first.messages) == 10
    assert "11 messages" in str(first)


def test_a_violation_without_a_message_says_so() -> None:
    """As that of a total."""
    seen = right()
    wrong_total(seen)
    (one,) = prove(PLAN, seen).violations
    assert str(one).endswith(": no message")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_order_of_storing_that_keeps_conversations_in_order_is_right(data: st.DataObject) -> None:
    """And taking any one entry from any one device is noticed."""
    queues = [[message.key for message in messages] for messages in PLAN.conversations]
    order = []
    while any(queues):
        queue = data.draw(st.sampled_from([queue for queue in queues if queue]))
        order.append(queue.pop(0))
    seen = seen_of(PLAN, order=order)
    assert prove(PLAN, seen).violations == ()
    device = data.draw(st.sampled_from(sorted(seen.devices)))
    entry = seen.devices[device].pop(data.draw(st.integers(0, len(seen.devices[device]) - 1)))
    assert [(one.kind, one.messages) for one in prove(PLAN, seen).violations] == [("missing", (entry.key,))]
