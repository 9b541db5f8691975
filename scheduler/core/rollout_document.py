"""Whether the text of a rollout is one, and which: the schema, and what must hold between its parts.

```yaml
rollout: access-2.4.0                       # its name
pool: {version: 2.4.0, max_share_of_capacity: 0.9}
seed: access-2.4.0                          # default: the name
bucket_by: user                             # or device
segments:                                   # the first that holds decides
  - {name: staff, when: {user: {in: staff}}, to: canary}
steps:
  - {percent: 1, hold: 10m, min_sample: {connects: 500}}
  - {pause: manual}                         # until somebody resumes
  - {percent: 100, migrate: {rate: 200/s}}  # moves live connections too
analysis:
  interval: 30s
  failure_limit: 3
  inconclusive: pause                       # or continue
  checks:
    - {metric: connect_success, min: 0.995, vs_stable: -0.2%}
on_failure: {assign: stop, move: {rate: 300/s, deadline: 120s}}
```

Shares rise from step to step and end at 100 %: a rollout that is over has everybody on the new version. One that should
stay below for long pauses there. A first step of 0 % lets segments go before all others.

A check's bounds point the way in which its metric is good: `min` and a negative `vs_stable` for a rate of success,
`max` and a positive one for times and rates of failure. A check that is turned round would pass when all is broken.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final, Literal, cast, get_args

from scheduler.core.condition_document import read_condition
from scheduler.core.conditions import AnyOf, Condition
from scheduler.core.document import Fault, Faults, Node, read_tree, render_faults
from scheduler.core.fields import (
    Fields,
    Read,
    choice,
    complain,
    duration,
    entries,
    items,
    name,
    named_twice,
    number,
    rate,
    relative,
    share,
    text,
    whole,
)
from scheduler.core.rollout import FULL, Analysis, Check, Metric, OnFailure, Rollout, Segment, Step
from scheduler.core.snapshot import STABLE

__all__ = ["Fault", "parse_rollout", "render_faults"]

SEGMENTS_MAX: Final = 100
STEPS_MAX: Final = 100
CHECKS_MAX: Final = 50
DAY_MS: Final = 86_400_000
HOLD_MAX_MS: Final = 30 * DAY_MS
"""A longer hold is a pause that somebody forgot."""

TEXT_MAX: Final = 128
NUMBER_MAX: Final = 1e15

METRICS: Final[tuple[str, ...]] = get_args(Metric)
GROWING_IS_GOOD: Final = frozenset({"connect_success"})
_BOUNDS: Final = {"connect_success": (0.0, 1.0), "promql": (-NUMBER_MAX, NUMBER_MAX)}
"""What else is measured is not negative."""

_WHEN: Final[Read[Condition]] = read_condition
_NOBODY: Final = AnyOf(())


def parse_rollout(source: str | bytes) -> Rollout | tuple[Fault, ...]:
    """Return the rollout, or all that is wrong with the text, by line: at least one fault then."""
    faults = Faults()
    root = read_tree(source, faults)
    rollout = None if root is None else _rollout(root, faults)
    return rollout if rollout is not None and not faults else faults.listed()


def _rollout(node: Node, faults: Faults) -> Rollout | None:
    fields = Fields(node, faults)
    rollout_name = fields.required("rollout", _arm, "")
    version, max_share = fields.required("pool", _pool, ("", 1.0))
    rollout = Rollout(
        name=rollout_name,
        version=version,
        seed=fields.optional("seed", _short_text, rollout_name),
        steps=fields.required("steps", _steps, ()),
        bucket_by=cast("Literal['user', 'device']", fields.optional("bucket_by", choice("user", "device"), "user")),
        max_share_of_capacity=max_share,
        segments=fields.optional("segments", _segments, ()),
        analysis=fields.optional("analysis", _analysis, Analysis()),
        on_failure=fields.optional("on_failure", _on_failure, OnFailure()),
    )
    return rollout if fields.close() else None


def _arm(node: Node, faults: Faults) -> str | None:
    value = name(node, faults)
    if value == STABLE:
        complain(node, faults, f"{STABLE} is what everything else is called: give the rollout another name")
        return None
    return value


def _pool(node: Node, faults: Faults) -> tuple[str, float] | None:
    fields = Fields(node, faults)
    version = fields.required("version", _short_text, "")
    max_share = fields.optional("max_share_of_capacity", number(0.01, 1), 1.0)
    return (version, max_share) if fields.close() else None


def _short_text(node: Node, faults: Faults) -> str | None:
    value = text(node, faults)
    if value is not None and len(value) > TEXT_MAX:
        complain(node, faults, f"has more than {TEXT_MAX} characters")
        return None
    return value


# ---------------------------------------------------------------- segments


def _segments(node: Node, faults: Faults) -> tuple[Segment, ...] | None:
    segments = entries(_segment, most=SEGMENTS_MAX)(node, faults)
    if segments is None:
        return None
    named_twice([(place, segment.name) for place, segment in segments if segment is not None], faults)
    return tuple(segment for _, segment in segments if segment is not None)


def _segment(node: Node, faults: Faults) -> Segment | None:
    fields = Fields(node, faults)
    segment_name = fields.required("name", name, "")
    when = fields.required("when", _WHEN, _NOBODY)
    to = fields.required("to", choice("canary", "stable"), "stable")
    if not fields.close():
        return None
    return Segment(segment_name, when, cast("Literal['canary', 'stable']", to))


# ---------------------------------------------------------------- steps


def _steps(node: Node, faults: Faults) -> tuple[Step, ...] | None:
    steps = entries(_step, most=STEPS_MAX)(node, faults)
    if steps is None:
        return None
    place, first = steps[0]
    if first is not None and first.is_pause:
        faults.add(place.line, f"{place.path}: a pause cannot come first: there is no share to hold yet")
    shares = [(place, step) for place, step in steps if step is None or not step.is_pause]
    good = [(place, step.percent) for place, step in shares if step is not None]
    for (before, lower), (place, higher) in pairwise(good):
        if higher <= lower:
            message = f"shares must rise, and {lower / 1_000:g} % was in line {before.line} already"
            faults.add(place.line, f"{place.path}: {message}")
    place, last = shares[-1] if shares else steps[-1]
    if last is not None and last.percent != FULL:
        faults.add(place.line, f"{place.path}: the last share must be 100; to stay below, pause before it")
    return tuple(step for _, step in steps if step is not None)


def _step(node: Node, faults: Faults) -> Step | None:
    fields = Fields(node, faults)
    if "pause" in fields:
        fields.required("pause", choice("manual"), "manual")
        return Step(is_pause=True) if fields.close() else None
    step = Step(
        percent=fields.required("percent", share, 0),
        hold_ms=fields.optional("hold", duration(0, HOLD_MAX_MS), 0),
        connects_min=fields.optional("min_sample", _min_sample, 0),
        move_per_s=fields.optional("migrate", _migrate, 0.0),
    )
    return step if fields.close() else None


def _min_sample(node: Node, faults: Faults) -> int | None:
    fields = Fields(node, faults)
    connects = fields.required("connects", whole(1, 1_000_000_000), 0)
    return connects if fields.close() else None


def _migrate(node: Node, faults: Faults) -> float | None:
    fields = Fields(node, faults)
    per_s = fields.required("rate", rate, 0.0)
    return per_s if fields.close() else None


# ---------------------------------------------------------------- analysis


def _analysis(node: Node, faults: Faults) -> Analysis | None:
    fields = Fields(node, faults)
    inconclusive = fields.optional("inconclusive", choice("pause", "continue"), "pause")
    analysis = Analysis(
        interval_ms=fields.optional("interval", duration(1_000, 3_600_000), Analysis().interval_ms),
        failure_limit=fields.optional("failure_limit", whole(1, 1_000), Analysis().failure_limit),
        inconclusive=cast("Literal['pause', 'continue']", inconclusive),
        checks=fields.required("checks", items(_check, most=CHECKS_MAX), ()),
    )
    return analysis if fields.close() else None


def _check(node: Node, faults: Faults) -> Check | None:
    fields = Fields(node, faults)
    metric = fields.required("metric", choice(*METRICS), "")
    low, high = _BOUNDS.get(metric, (0.0, NUMBER_MAX))
    check = Check(
        metric=cast("Metric", metric),
        min=fields.optional("min", number(low, high), None),
        max=fields.optional("max", number(low, high), None),
        vs_stable=fields.optional("vs_stable", relative, None),
        query=fields.optional("query", text, ""),
    )
    if fields.close():
        _judge(check, fields)
    return check if fields.is_good else None


def _judge(check: Check, fields: Fields) -> None:
    """Find what is wrong with a check whose fields are good, each for itself."""
    if check.min is None and check.max is None and check.vs_stable is None:
        fields.fault("metric", "a check needs a bound: min, max or vs_stable")
    if check.min is not None and check.max is not None and check.min > check.max:
        fields.fault("max", f"max {check.max:g} is below min {check.min:g}")
    if check.metric == "promql":
        if not check.query:
            fields.fault("metric", "promql needs a query")
        if check.vs_stable is not None:
            fields.fault("vs_stable", "vs_stable is not for promql: its query sees what it asks for, and no arm")
        return
    if check.query:
        fields.fault("query", f"query is for promql, and not for {check.metric}")
    is_growing_good = check.metric in GROWING_IS_GOOD
    if is_growing_good and check.max is not None:
        fields.fault("max", f"{check.metric} is good when it is high: it needs min, not max")
    if not is_growing_good and check.min is not None:
        fields.fault("min", f"{check.metric} is good when it is low: it needs max, not min")
    if check.vs_stable is None:
        return
    if is_growing_good and not -1 <= check.vs_stable <= 0:
        fields.fault("vs_stable", f"{check.metric} is good when it is high: vs_stable is from -100% to 0%")
    if not is_growing_good and check.vs_stable < 0:
        fields.fault("vs_stable", f"{check.metric} is good when it is low: vs_stable is 0% or more")


# ---------------------------------------------------------------- failure


def _on_failure(node: Node, faults: Faults) -> OnFailure | None:
    fields = Fields(node, faults)
    fields.optional("assign", choice("stop"), "stop")
    on_failure = fields.optional("move", _move_back, OnFailure())
    return on_failure if fields.close() else None


def _move_back(node: Node, faults: Faults) -> OnFailure | None:
    fields = Fields(node, faults)
    on_failure = OnFailure(
        move_per_s=fields.required("rate", rate, 0.0),
        deadline_ms=fields.optional("deadline", duration(1_000, DAY_MS), OnFailure().deadline_ms),
    )
    return on_failure if fields.close() else None
