"""Which requests a rollout sends to its canary: its segments in their order, then the user's bucket.

A user who is on the canary at 10 % is on it at 50 %: the share is a threshold in fixed buckets. Segments decide
whatever the share is, so that staff can be there before anybody else. When the rollout failed nobody is on the canary.

A request without what the rollout buckets by, a device id say, is stable: it could not be sent to the same place twice.

A rollout can be written as a flag for flagd, so that an application finds out by itself what its users will get: same
hash, same buckets, same conditions as far as flagd has them.

Source: flagd flag definition (JsonLogic with `fractional`, `sem_ver`, `starts_with`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, assert_never

import msgspec

from scheduler.core.buckets import bucket
from scheduler.core.conditions import (
    AddressIn,
    All,
    AnyOf,
    AppIn,
    Condition,
    Field,
    FieldIn,
    Listed,
    Lists,
    Not,
    PlaceIn,
    Reason,
    Test,
    compile_condition,
    explain,
    list_names,
)
from scheduler.core.request import Request
from scheduler.core.rollout import FULL, Rollout
from scheduler.core.versions import parse_range

__all__ = ["ActiveRollout", "Cohort", "Exported", "Placed", "SegmentReason", "export_flagd", "lists_of"]


class ActiveRollout(msgspec.Struct, frozen=True):
    """A rollout as it stands now, and the lists that it names."""

    rollout: Rollout
    percent: int
    """Share of new assignments in thousandths of a percent, 0 to 100,000."""
    is_failed: bool = False
    lists: Mapping[str, frozenset[str]] = {}


class Placed(NamedTuple):
    """Where a request belongs, and by what: its bucket, or else the segment of that name.

    `bucket` is -1 if a segment decided, and if there is nothing to bucket by; `segment` is "" if the bucket decided.
    """

    is_canary: bool
    bucket: int
    segment: str


class SegmentReason(NamedTuple):
    """Whether a segment takes a request, and why."""

    segment: str
    to: str
    reason: Reason


STABLE = Placed(is_canary=False, bucket=-1, segment="")
_placed = tuple.__new__
"""Makes one without the detour by its keyword arguments, which costs more than the hash."""


class Cohort:
    """A rollout that is ready to place requests. Immutable."""

    __slots__ = ("_by_user", "_limit", "_seed", "_segments", "active", "missing_lists")

    def __init__(self, active: ActiveRollout) -> None:
        rollout = active.rollout
        assert 0 <= active.percent <= FULL
        self.active = active
        self._by_user = rollout.bucket_by == "user"
        self._limit = 0 if active.is_failed else active.percent
        self._seed = rollout.seed
        self._segments: tuple[tuple[Test, Placed], ...] = tuple(
            (
                compile_condition(segment.when, active.lists),
                Placed(is_canary=segment.to == "canary" and not active.is_failed, bucket=-1, segment=segment.name),
            )
            for segment in rollout.segments
        )
        self.missing_lists = tuple(sorted(_named(rollout) - active.lists.keys()))
        """Lists that segments name and nobody has written: nobody is in them."""

    @property
    def rollout(self) -> Rollout:
        """The document."""
        return self.active.rollout

    @property
    def percent(self) -> int:
        """Share of new assignments in thousandths of a percent, even if it failed."""
        return self.active.percent

    @property
    def is_failed(self) -> bool:
        """Whether nobody goes to the canary any more."""
        return self.active.is_failed

    def place(self, request: Request) -> Placed:
        """Return where the request belongs. Always the same for the same request, whoever asks."""
        for test, placed in self._segments:
            if test(request):
                return placed
        key = request.user if self._by_user else request.device
        if not key:
            return STABLE
        number = bucket(self._seed, key)
        return _placed(Placed, (number < self._limit, number, ""))

    def explain(self, request: Request) -> tuple[SegmentReason, ...]:
        """Return what each segment says, up to the one that takes the request."""
        reasons: list[SegmentReason] = []
        for segment in self.active.rollout.segments:
            reason = explain(segment.when, request, self.active.lists)
            reasons.append(SegmentReason(segment.name, segment.to, reason))
            if reason.holds:
                break
        return tuple(reasons)


def lists_of(rollout: Rollout, lists: Lists) -> dict[str, frozenset[str]]:
    """Return those of the lists that the rollout's segments name, by name."""
    return {name: lists[name] for name in sorted(_named(rollout)) if name in lists}


def _named(rollout: Rollout) -> set[str]:
    return {name for segment in rollout.segments for name in list_names(segment.when)}


# ---------------------------------------------------------------- as a flag

SCHEMA: Final = "https://flagd.dev/schema/v0/flags.json"
INLINE_MAX: Final = 1_000
"""Longer lists are not written into a flag."""

_VARIABLES: Final[dict[Field, str]] = {
    "user": "targetingKey",
    "device": "device",
    "platform": "platform",
    "region": "region",
    "carrier": "carrier",
}


class Exported(NamedTuple):
    """A flagd flag definition, and the segments that flagd has no means for: it decides as if they were not there."""

    flags: dict[str, Any]
    left_out: tuple[str, ...]


def export_flagd(rollout: Rollout, percent: int, lists: Lists | None = None) -> Exported:
    """Return the rollout at that share as a flag with the variants `canary` and `stable`.

    The evaluation context has the user as `targetingKey`, and `device`, `platform`, `app`, `region`, `place` and
    `carrier` where they are known. Named lists are written out; networks have no operator in flagd.
    """
    key = {"var": "targetingKey" if rollout.bucket_by == "user" else "device"}
    shares = {"fractional": [{"cat": [rollout.seed, key]}, ["canary", percent], ["stable", FULL - percent]]}
    branches: list[Any] = []
    left_out: list[str] = []
    for segment in rollout.segments:
        logic = _logic(segment.when, lists or {})
        if logic is None:
            left_out.append(segment.name)
        else:
            branches += [logic, segment.to]
    flag = {
        "state": "ENABLED",
        "variants": {"canary": "canary", "stable": "stable"},
        "defaultVariant": "stable",
        "targeting": {"if": [*branches, key, shares, "stable"]},
    }
    return Exported({"$schema": SCHEMA, "flags": {rollout.name: flag}}, tuple(left_out))


def _logic(condition: Condition, lists: Lists) -> dict[str, Any] | None:
    """Return the condition as JsonLogic, or None if flagd cannot express it."""
    match condition:
        case FieldIn(field=field, values=values):
            return {"in": [{"var": _VARIABLES[field]}, list(values)]}
        case Listed(field=field, name=name):
            members = lists.get(name, frozenset())
            return {"in": [{"var": _VARIABLES[field]}, sorted(members)]} if 0 < len(members) <= INLINE_MAX else None
        case PlaceIn(places=places):
            place = {"var": "place"}
            inside = [{"starts_with": [place, f"{country}-"]} for country in places if len(country) == 2]
            return {"or": [{"in": [place, list(places)]}, *inside]}
        case AppIn(range=version_range):
            app = {"var": "app"}
            bounds = parse_range(version_range)
            assert not isinstance(bounds, str), "ranges are checked when they are read"
            return {"and": [{"sem_ver": [app, bound.sign, str(bound.version)]} for bound in bounds]}
        case AddressIn():
            return None
        case All(conditions=conditions) | AnyOf(conditions=conditions):
            parts = [_logic(each, lists) for each in conditions]
            return None if None in parts else {"and" if isinstance(condition, All) else "or": parts}
        case Not(condition=inner):
            logic = _logic(inner, lists)
            return None if logic is None else {"!": [logic]}
        case _:
            assert_never(condition)
