"""A rollout as its document says it: which nodes are the canary, who goes there, in which steps, judged by what.

Shares are in thousandths of a percent, 0 to 100,000: integers, so that every scheduler computes the same.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from scheduler.core.conditions import Condition

__all__ = ["FULL", "Analysis", "Check", "Metric", "OnFailure", "Rollout", "Segment", "Step"]

FULL = 100_000
"""100 %."""

Metric: TypeAlias = Literal["connect_success", "handshake_p99_ms", "abnormal_close_rate", "push_p99_ms", "promql"]
"""What a check looks at. `connect_success` is good when it is high, the next three when they are low."""


class Segment(msgspec.Struct, frozen=True):
    """Requests that match `when` go `to` one arm, whatever their bucket; of several the first decides."""

    name: str
    when: Condition
    to: Literal["canary", "stable"]


class Step(msgspec.Struct, frozen=True):
    """One step: a share that is held for a time, or a pause until somebody resumes.

    The step is over when it was held for `hold_ms` and at least `connects_min` clients connected to the canary in it.
    """

    percent: int = 0
    """Share of new assignments, in thousandths of a percent. A pause keeps the share of the step before."""
    hold_ms: int = 0
    connects_min: int = 0
    move_per_s: float = 0.0
    """Move live connections too, at this rate, until their share is the same; 0: only new ones."""
    is_pause: bool = False


class Check(msgspec.Struct, frozen=True):
    """One thing that must hold for the canary; at least one of the three bounds is set.

    `vs_stable` is relative: -0.002 means "at most 0.2 % below stable", +0.15 "at most 15 % above it".
    """

    metric: Metric
    min: float | None = None
    max: float | None = None
    vs_stable: float | None = None
    query: str = ""
    """PromQL, for the metric `promql` alone."""


class Analysis(msgspec.Struct, frozen=True):
    """How often the checks are made, how many failed ones end the rollout, what a doubtful step end does."""

    interval_ms: int = 30_000
    failure_limit: int = 3
    inconclusive: Literal["pause", "continue"] = "pause"
    checks: tuple[Check, ...] = ()


class OnFailure(msgspec.Struct, frozen=True):
    """What happens to a rollout that failed: new assignments stop always; live connections move back at a rate."""

    move_per_s: float = 0.0
    """0: those on the canary stay there."""
    deadline_ms: int = 120_000


class Rollout(msgspec.Struct, frozen=True):
    """A document that was found good."""

    name: str
    version: str
    """Nodes that report this version are the canary; all others are stable."""
    seed: str
    steps: tuple[Step, ...]
    bucket_by: Literal["user", "device"] = "user"
    max_share_of_capacity: float = 1.0
    """How much of the canary's capacity may be used before its users overflow to stable."""
    segments: tuple[Segment, ...] = ()
    analysis: Analysis = Analysis()
    on_failure: OnFailure = OnFailure()
