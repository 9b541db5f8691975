"""Recordings: what was told is told again to the last bit, whole or cut off; what is none is refused."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.engine import Credit, Decision, Engine
from scheduler.core.policy import DEFAULT_POLICY
from scheduler.core.recording import (
    RECORD_BYTES_MAX,
    Born,
    Configured,
    Decided,
    LossAccepted,
    Observed,
    Record,
    Replay,
    born,
    encode,
    records,
)
from scheduler.core.regions import Region
from scheduler.core.snapshot import Settings
from tests.scheduler.core.fleets import active, ask, node, policy

REGIONS = (Region("east", ("CN-SH",), 31.2, 121.5, ("north",)), Region("north"))


def told(seed: int, decisions: int) -> Iterator[Record]:
    """Live through a random history, and give the records of it."""
    dice, rules, now = Random(seed), Settings(candidates=2), 5_000
    credit = Credit({"n1": 9_000.5}, {("stable", "east", "CT"): 7_000.25})
    yield born("s", rules, seed, seq=40, credit=credit)
    engine = Replay(Random)
    engine.tell(born("s", rules, seed, seq=40, credit=credit))
    for number in range(decisions):
        now += dice.choice((0, 0, 1, 7))
        record: Record
        if number % 400 == 0:
            rollouts = tuple(active(name, dice.randrange(100_000)) for name in ("fast", "slow")[: dice.randrange(3)])
            by = dice.choice((DEFAULT_POLICY, policy("sticky", "proximity"), policy("weighted", "canary")))
            record = Configured(now, rollouts, by, {"staff": frozenset(("ann", "bob"))}, REGIONS, "east")
            engine.tell(record)
            yield record
        if number % 50 == 0:
            nodes = tuple(
                node(
                    f"n{place}",
                    region=("east", "north")[place % 2],
                    carrier=("CT", "CU", "")[place % 3],
                    version=("old", "fast")[place % 4 // 3],
                    connections=dice.randrange(900),
                    accepts_per_s=dice.choice((0, 0.5, 200)),
                    reported_at=now - dice.randrange(40_000),
                    uptime_ms=dice.randrange(100_000),
                    admitted=number,
                    admitted_of_all=2 * number,
                )
                for place in range(dice.randrange(4, 12))
            )
            if dice.random() < 0.1:
                engine.tell(LossAccepted())
                yield LossAccepted()
            record = Observed(now, dice.randrange(1, 4), nodes)
            engine.tell(record)
            yield record
        request = ask(f"u{dice.randrange(500)}", dice.choice(("east", "north", "")), dice.choice(("CT", "")))
        assert engine.engine is not None
        yield Decided(request, engine.engine.decide(request, now))


def replayed(recording: bytes, *, chunk: int = 1 << 16) -> list[tuple[Decision, Decision]]:
    """Return what was decided and what is decided again."""
    replay = Replay(Random)
    pairs = []
    for record in records(recording[at : at + chunk] for at in range(0, len(recording), chunk)):
        again = replay.tell(record)
        assert (again is not None) == isinstance(record, Decided)
        if isinstance(record, Decided):
            assert again is not None
            pairs.append((record.decision, again))
    return pairs


def test_a_long_recording_is_decided_again_to_the_last_bit() -> None:
    """Twenty thousand decisions, by all strategies, over views and rules; numbers go on."""
    recording = b"".join(map(encode, told(1, 20_000)))
    pairs = replayed(recording)
    assert len(pairs) == 20_000
    assert all(was == again for was, again in pairs)
    assert msgspec.msgpack.encode([was for was, _ in pairs]) == msgspec.msgpack.encode([again for _, again in pairs])
    assert [was.seq for was, _ in pairs] == list(range(41, 20_041))


SHORT = [encode(record) for record in told(2, 60)]
WHOLE = b"".join(SHORT)


def test_a_recording_may_be_cut_off_at_any_byte() -> None:
    """What is whole is good, in chunks of any size."""
    full = list(records([WHOLE]))
    ends = [0]
    for one in SHORT:
        ends.append(ends[-1] + len(one))
    for cut in {*range(0, len(WHOLE), 97), *ends, *(end - 1 for end in ends[1:]), *(end + 3 for end in ends)}:
        assert list(records([WHOLE[:cut]])) == full[: sum(end <= cut for end in ends[1:])]
    assert list(records(bytes([byte]) for byte in WHOLE)) == full
    assert replayed(WHOLE, chunk=13) == replayed(WHOLE)


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_what_is_no_recording_is_refused(garbage: bytes) -> None:
    """A record may be missing its end; nothing else."""
    try:
        found = list(records([garbage]))
    except ValueError:
        return
    assert found == []


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
@settings(max_examples=100)
def test_a_byte_that_changed_raises_nothing_else(at: int, change: int) -> None:
    """Other facts, or a refusal."""
    damaged = bytearray(WHOLE)
    damaged[at] ^= change
    found = []
    try:
        found.extend(records([bytes(damaged)]))
    except ValueError as error:
        refusal = str(error)
    else:
        refusal = "this is no recording, or a good one"
    assert refusal.startswith("this is no recording")
    assert len(found) <= len(SHORT)


@pytest.mark.parametrize(
    "garbage",
    [
        bytes(4),
        (RECORD_BYTES_MAX + 1).to_bytes(4, "big"),
        b"\0\0\0\1\xc1",
        b"\0\0\0\3\x81\xa1a",
        (99_999).to_bytes(4, "big") + b"\x91" * 99_999,
    ],
    ids=["empty", "huge", "no document", "another document", "deep"],
)
def test_garbage_is_refused(garbage: bytes) -> None:
    """With a length that no record has, or a body that is none."""
    with pytest.raises(ValueError, match="no recording"):
        list(records([garbage]))


def test_a_recording_begins_with_its_engine() -> None:
    """In the one format that is known."""
    replay = Replay(Random)
    with pytest.raises(ValueError, match="does not begin"):
        replay.tell(Observed(0, 1, ()))
    with pytest.raises(ValueError, match="format 9"):
        replay.tell(Born(9, "s", Settings(), 1, 0))
    assert replay.engine is None


def test_another_policy_shows_what_it_would_have_done() -> None:
    """Instead of all that were recorded."""
    replay = Replay(Random, policy=policy("sticky"))
    decisions = [replay.tell(record) for record in records([WHOLE])]
    assert isinstance(replay.engine, Engine)
    assert replay.engine.policy == policy("sticky")
    assert {decision.arm for decision in decisions if decision is not None} == {"stable"}


def test_a_recording_tells_of_the_slots_that_were_given_before() -> None:
    """The first of a node whose slots are taken is not now."""
    view = (node("a", accepts_per_s=1),)
    replay = Replay(Random)
    for record in (
        born("s", Settings(), 1, seq=0, credit=Credit({"a": 50_000.0})),
        Observed(0, 1, view),
    ):
        (read,) = records([encode(record)])
        replay.tell(read)
    decision = replay.tell(Decided(ask(), Decision(1, 0, 1, "", "", ())))
    assert decision is not None
    assert decision.not_before_ms == 49_000
