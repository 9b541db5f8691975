"""Cohorts: against the bucket and the segments by hand, and as flags against flagd's own evaluator."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openfeature.contrib.tools.flagd.core import FlagdCore
from openfeature.evaluation_context import EvaluationContext

from scheduler.core.buckets import BUCKETS, bucket
from scheduler.core.cohorts import INLINE_MAX, ActiveRollout, Cohort, Placed, export_flagd, lists_of
from scheduler.core.conditions import AddressIn, All, AnyOf, AppIn, Condition, FieldIn, Listed, Not, PlaceIn
from scheduler.core.request import Location, Request
from scheduler.core.rollout import FULL, Rollout, Segment, Step

STAFF = Segment("staff", Listed("user", "staff"), "canary")
OLD = Segment("old-apps", AppIn("<5.0"), "stable")
LISTS = {"staff": frozenset({"alice", "bob"})}


def rollout(*segments: Segment, **values: Any) -> Rollout:
    return Rollout(
        **{"name": "access-2", "version": "2.0.0", "seed": "s", "steps": (Step(FULL),), "segments": segments} | values
    )


def cohort(percent: int, *segments: Segment, is_failed: bool = False, **values: Any) -> Cohort:
    return Cohort(ActiveRollout(rollout(*segments, **values), percent, is_failed, LISTS))


# ---------------------------------------------------------------- placing


@given(st.text(min_size=1, max_size=12), st.integers(0, FULL))
def test_without_segments_the_bucket_decides(user: str, percent: int):
    """Those below the share are on the canary."""
    number = bucket("s", user)
    assert cohort(percent).place(Request(user)) == Placed(number < percent, number, "")


@pytest.mark.spec("AL-05")
@given(st.text(min_size=1, max_size=12), st.integers(0, FULL), st.integers(0, FULL))
def test_raising_the_share_brings_nobody_back(user: str, one: int, other: int):
    """Nor does lowering it bring anybody new."""
    less, more = sorted((one, other))
    request = Request(user)
    assert cohort(less).place(request).is_canary <= cohort(more).place(request).is_canary


@pytest.mark.spec("AL-05")
@pytest.mark.parametrize(("percent", "everybody"), [(0, False), (FULL, True)])
def test_none_and_all_are_exact(percent: int, everybody: bool):  # noqa: FBT001
    """Nobody is left over by rounding."""
    placed = cohort(percent)
    assert {placed.place(Request(f"u{number}")).is_canary for number in range(1_000)} == {everybody}


def test_the_first_segment_that_takes_a_request_decides():
    """Whatever the share is; then there is no bucket."""
    request = Request("alice", app="4.0")
    assert cohort(0, STAFF, OLD).place(request) == Placed(True, -1, "staff")
    assert cohort(FULL, OLD, STAFF).place(request) == Placed(False, -1, "old-apps")
    assert cohort(FULL, STAFF, OLD).place(Request("carol", app="5.0")) == Placed(True, bucket("s", "carol"), "")


def test_of_a_failed_rollout_nobody_is_on_the_canary():
    """Neither by a segment nor by the bucket; who is taken by what stays visible."""
    failed = cohort(FULL, STAFF, is_failed=True)
    assert failed.place(Request("alice")) == Placed(False, -1, "staff")
    assert failed.place(Request("carol")) == Placed(False, bucket("s", "carol"), "")


def test_the_key_is_the_device_if_the_rollout_says_so():
    """A user's devices are then placed each for itself."""
    by_device = cohort(50_000, bucket_by="device")
    arms = {by_device.place(Request("alice", f"d{number}")).is_canary for number in range(20)}
    assert arms == {True, False}
    assert by_device.place(Request("alice", "d1")).bucket == bucket("s", "d1")


@pytest.mark.parametrize("values", [{"bucket_by": "device"}, {}])
def test_a_request_without_the_key_is_stable(values: dict[str, Any]):
    """Even at 100 %, for nothing would keep it there."""
    assert cohort(FULL, **values).place(Request("")) == Placed(False, -1, "")


def test_lists_that_nobody_wrote_are_named():
    """Nobody is in them, which an operator should know."""
    other = Segment(
        "vips", Not(AnyOf((Listed("user", "vips"), Listed("device", "beta"), Listed("user", "vips")))), "stable"
    )
    assert cohort(0, STAFF, other).missing_lists == ("beta", "vips")
    assert cohort(0, STAFF).missing_lists == ()


def test_a_cohort_shows_what_it_was_made_of():
    """For those who report it."""
    made = cohort(5, STAFF, is_failed=True)
    assert (made.rollout, made.percent, made.is_failed) == (rollout(STAFF), 5, True)


def test_a_share_beyond_all_is_our_own_bug():
    """Documents and states with such a one are refused."""
    with pytest.raises(AssertionError):
        cohort(FULL + 1)


def test_an_explanation_ends_with_the_segment_that_decides():
    """The ones behind it were not asked."""
    reasons = cohort(0, STAFF, OLD).explain(Request("carol", app="4.0"))
    assert [(each.segment, each.to, each.reason.holds) for each in reasons] == [
        ("staff", "canary", False),
        ("old-apps", "stable", True),
    ]
    assert [each.segment for each in cohort(0, STAFF, OLD).explain(Request("alice"))] == ["staff"]
    assert [each.reason.holds for each in cohort(0, STAFF, OLD).explain(Request("carol"))] == [False, False]


def test_an_active_rollout_survives_being_written_and_read():
    """As recordings keep it."""
    active = ActiveRollout(rollout(STAFF, OLD), 5, True, LISTS)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(active), type=ActiveRollout) == active


def test_a_rollout_carries_the_lists_that_it_names_and_no_others():
    """Each recording has them once for every rollout."""
    lists = LISTS | {"testers": frozenset({"eve"})}
    assert lists_of(rollout(STAFF, OLD, Segment("more", Listed("user", "nobody-wrote-it"), "canary")), lists) == LISTS
    assert lists_of(rollout(OLD), lists) == {}


# ---------------------------------------------------------------- as a flag


def context(request: Request) -> EvaluationContext:
    """What an application would know, and nothing of what is not known."""
    values = {
        "device": request.device,
        "platform": request.platform,
        "app": request.app,
        "region": request.location.region,
        "place": request.location.place,
        "carrier": request.location.carrier,
    }
    return EvaluationContext(request.user, {key: value for key, value in values.items() if value})


def drawn(dice: random.Random) -> Request:
    return Request(
        dice.choice(["alice", "bob", *[f"u{number}" for number in range(500)]]),
        dice.choice(["", "d1", "d2", f"d{dice.randrange(1_000)}"]),
        dice.choice(["", "ios", "android", "web"]),
        dice.choice(["", "4.9.1", "5", "5.0.0-beta", "v5.1", "6.0.0", "6.0.0+b", "x", "5.1.0.7"]),
        location=Location(
            dice.choice(["", "sh", "bj"]),
            dice.choice(["", "CN", "CN-SH", "JP", "CN-BJ"]),
            dice.choice(["", "CT", "CU"]),
        ),
    )


IOS = FieldIn("platform", ("ios",))
FLAGS: list[Rollout] = [
    rollout(),
    rollout(STAFF, OLD),
    rollout(bucket_by="device"),
    rollout(Segment("range", AppIn(">=4.9 <6"), "canary"), Segment("exact", AppIn("=6.0.0"), "stable")),
    rollout(Segment("place", PlaceIn(("CN", "JP")), "canary")),
    rollout(Segment("part", PlaceIn(("CN-SH",)), "canary")),
    rollout(Segment("both", All((IOS, Not(FieldIn("region", ("sh", "bj"))))), "canary")),
    rollout(Segment("one", AnyOf((FieldIn("carrier", ("CT",)), FieldIn("device", ("d1",)))), "stable")),
    rollout(Segment("not-old", Not(AppIn("<5.0")), "canary")),
    rollout(Segment("none", AnyOf(()), "canary"), Segment("all", All((IOS,)), "canary")),
]


@pytest.mark.parametrize("number", range(len(FLAGS)))
def test_flagd_places_every_request_in_the_same_arm(number: int):
    """With every kind of condition that it has."""
    exported = export_flagd(FLAGS[number], 30_000, LISTS)
    assert exported.left_out == ()
    flagd = FlagdCore()
    flagd.set_flags(msgspec.json.encode(exported.flags).decode())
    ours = Cohort(ActiveRollout(FLAGS[number], 30_000, lists=LISTS))
    dice = random.Random(number)
    arms = set()
    for _ in range(200):
        request = drawn(dice)
        is_canary = ours.place(request).is_canary
        answer = flagd.resolve_string_value("access-2", "neither", context(request))
        assert answer.value == ("canary" if is_canary else "stable"), request
        arms.add(is_canary)
    assert arms == {True, False}


NETWORK = AddressIn(("10.0.0.0/8",))


@pytest.mark.parametrize(
    "condition",
    [
        NETWORK,
        Not(NETWORK),
        All((IOS, NETWORK)),
        AnyOf((Not(NETWORK), IOS)),
        Listed("user", "unknown"),
        Listed("user", "long"),
    ],
)
def test_segments_that_flagd_cannot_express_are_left_out_and_named(condition: Condition):
    """The others stay."""
    lists = {"long": frozenset(f"u{number}" for number in range(INLINE_MAX + 1))}
    exported = export_flagd(rollout(Segment("hard", condition, "canary"), OLD), 10, lists)
    assert exported.left_out == ("hard",)
    assert exported.flags["flags"] == export_flagd(rollout(OLD), 10).flags["flags"]


def test_a_flag_says_the_share_in_the_weights():
    """Their sum is the number of buckets: only so are flagd's the same."""
    targeting = export_flagd(rollout(), 12_500).flags["flags"]["access-2"]["targeting"]
    shares = targeting["if"][1]["fractional"]
    assert shares[1:] == [["canary", 12_500], ["stable", BUCKETS - 12_500]]
