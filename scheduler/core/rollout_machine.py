"""How a rollout goes on: its share of new assignments, step by step, until it is complete or comes to nothing.

```
               ┌──────────── resume ───────────┐
               ▼                               │
    start ─▶ running ── pause, doubt, no room ─▶ paused
             │ │  ▲                              │ │
             │ │  └── step over: the next one    │ │       next one is a pause: paused
             │ └── last step over, promote ──────┼─┼──▶ complete ── abort ──▶ aborted
             └──── abort ────────────────────────┴─┼──▶ aborted
                   analyses failed ────────────────┴──▶ failed
```

A step is over when it was held for its time, enough clients connected, what is to be moved has been moved, and the
analysis made at its end found nothing wrong. An end in doubt pauses the rollout, if the document says so; that pause
gives the step its whole time anew. After a pause by an operator the step goes on where it was. Analyses go on while a
rollout is paused: its users are on the canary all the same.

Evidence is collected in epochs: one begins with each step, one with each hour of a long step, so that what begins late
is not drowned in what was good before, and one when somebody else goes on with the judging, who has none. An epoch
does not end before it has the samples that the step asks for, nor within an hour of the step's end.

Times are wall ms of whichever scheduler writes the state. `at` is the latest that any of them wrote; a clock that is
behind counts as standing still. So a clock that goes back makes a hold longer, never shorter.

Invariants:
    I1  The share is 0 before the first step and after a failure or an abort, a step's share, or after promotion 100 %.
    I2  The share rises only by a step that is entered or by promotion, and never after a failure or an abort.
    I3  What is paused changes neither its step nor its share by itself, except that it may fail.
    I4  No step is over before it was held for its time.
    I5  Failed, aborted and complete are final but for aborting what is complete.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec.structs import replace

from scheduler.core.analysis import Outcome, Verdict
from scheduler.core.rollout import FULL, Rollout, Step

__all__ = [
    "EPOCH_MS",
    "Live",
    "MovesWanted",
    "Order",
    "Phase",
    "Refused",
    "RolloutState",
    "check_invariants",
    "command",
    "judged",
    "misfit",
    "next_deadline",
    "renewed",
    "start",
    "tick",
    "wanted_moves",
]

EPOCH_MS: Final = 3_600_000
MOVED_PERCENT: Final = 97
"""Live connections count as moved when their share is this part of the wanted one: they come and go meanwhile."""

COUNT_MAX: Final = 2**53
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]

Phase: TypeAlias = Literal["running", "paused", "failed", "aborted", "complete"]
Order: TypeAlias = Literal["step", "pause", "resume", "promote", "abort"]


class RolloutState(msgspec.Struct, frozen=True, kw_only=True):
    """How far a rollout is. All that the machine remembers, as the registry keeps it."""

    phase: Phase
    step: Count = 0
    """Which one of the document's, from 0."""
    percent: Count = 0
    """The canary's share of new assignments, in thousandths of a percent."""
    since: Count
    """When the phase, or in `running` the step or the rest of it, began."""
    at: Count
    """The latest time that was written."""
    reason: str = ""
    """Why it is not running, for people."""
    held_ms: Count = 0
    """How long the step had been held before `since`."""
    failures: Count = 0
    """Analyses that failed in this step."""
    epoch: Annotated[int, msgspec.Meta(ge=1, le=COUNT_MAX)] = 1
    """Number of the epoch of evidence, counted over the whole rollout."""
    epoch_since: Count
    judged_at: Count = 0
    """When the last analysis of this epoch was made; 0: none was."""
    outcome: Outcome | None = None
    """Its outcome."""
    connects: Count = 0
    """Clients that connected to the canary in this epoch, as of the last analysis."""
    findings: tuple[str, ...] = ()
    """Its sentences."""


class Live(NamedTuple):
    """The live connections, as the nodes reported them last."""

    canary: int
    total: int
    """The canary's among them."""
    canary_capacity: int
    is_moved: bool = False
    """Whether nobody is left whom a move would bring to the arm that is wanted."""


class Refused(NamedTuple):
    """An order cannot be carried out; the sentence says why."""

    sentence: str


class MovesWanted(NamedTuple):
    """Move live connections to an arm, `per_s` a second, until the canary has `share` of them."""

    to: Literal["canary", "stable"]
    per_s: float
    share: int
    """In thousandths of a percent."""
    deadline: int | None = None
    """By when, in wall ms; whoever is late is told to people, not hurried."""


def start(rollout: Rollout, now: int, live: Live | None = None) -> RolloutState:
    """Return the state of a new rollout, or of a new revision: in its first step, or paused before it for want of room.

    Without `live`, here and below, room is not looked at.
    """
    state = RolloutState(phase="running", since=now, at=now, epoch=0, epoch_since=now)
    entered = _enter(rollout, state, 0, now, live)
    return _paused(replace(state, epoch=1), now, entered.sentence) if isinstance(entered, Refused) else entered


def tick(rollout: Rollout, state: RolloutState, now: int, live: Live | None = None) -> RolloutState:
    """Return the state after what time and live connections bring; the very same object if they bring nothing.

    Call it every second or so, and again if it brought something: a step may be over as soon as it begins.
    """
    at = max(now, state.at)
    if state.phase == "running":
        lack = _lack(rollout, state.percent, live)
        if lack is not None:
            return _paused(state, at, lack)
        if _is_over(rollout, state, at, live):
            return _end_of_step(rollout, state, at, live)
    elif state.phase != "paused":
        return state
    return renewed(state, at) if _is_epoch_over(rollout, state, at) else state


def judged(rollout: Rollout, state: RolloutState, verdict: Verdict, now: int) -> RolloutState:
    """Return the state after an analysis. One of another epoch, or of a rollout that is over, changes nothing."""
    if state.phase not in {"running", "paused"} or verdict.epoch != state.epoch:
        return state
    at = max(now, state.at)
    is_failed = verdict.outcome == "failed"
    state = replace(
        state,
        at=at,
        judged_at=at,
        outcome=verdict.outcome,
        connects=verdict.connects,
        findings=tuple(finding.sentence for finding in verdict.findings),
        failures=state.failures + is_failed,
    )
    if not is_failed or state.failures < rollout.analysis.failure_limit:
        return state
    harm = "; ".join(finding.sentence for finding in verdict.findings if finding.outcome == "failed")
    return _stopped(state, "failed", at, f"failed {_times(state.failures)} in {_named(rollout, state.step)}: {harm}")


def command(  # noqa: PLR0911 - one return for each order and for what stands against it
    rollout: Rollout, state: RolloutState, order: Order, now: int, *, who: str, live: Live | None = None
) -> RolloutState | Refused:
    """Return the state after an operator's order, or why it cannot be carried out.

    Args:
        rollout: the document.
        state: before.
        order: `step` goes to the next step now, `promote` to 100 % and the end, `abort` to 0 %.
        now: wall time in ms.
        who: the operator, for the reason.
        live: room for `step`, `resume` and `promote`.
    """
    at = max(now, state.at)
    if state.phase in {"failed", "aborted"}:
        return Refused(f"the rollout is {state.phase}: only a new revision of its document starts it again")
    if order == "abort":
        return _stopped(state, "aborted", at, f"aborted by {who}")
    if state.phase == "complete":
        return Refused("the rollout is complete: it can only be aborted")
    if order == "pause":
        if state.phase == "paused":
            return Refused(f"the rollout is paused already: {state.reason}")
        return _paused(state, at, f"paused by {who}")
    if order == "resume":
        return _resumed(rollout, state, at, live)
    if order == "step":
        return _enter(rollout, state, state.step + 1, at, live)
    lack = _lack(rollout, FULL, live)
    if lack is not None:
        return Refused(lack)
    return replace(state, phase="complete", percent=FULL, since=at, at=at, reason=f"promoted by {who}")


def renewed(state: RolloutState, now: int) -> RolloutState:
    """Return the state with a new epoch of evidence. For whoever takes the judging over from somebody else."""
    at = max(now, state.at)
    return replace(
        state, at=at, epoch=state.epoch + 1, epoch_since=at, judged_at=0, outcome=None, connects=0, findings=()
    )


def next_deadline(rollout: Rollout, state: RolloutState) -> int | None:
    """Return at which wall time in ms the next analysis is due; None: never.

    Analyses are made at even intervals and at the end of a hold, with checks or without: they count the connects too.
    """
    if state.phase not in {"running", "paused"}:
        return None
    due = max(state.judged_at, state.epoch_since) + rollout.analysis.interval_ms
    step = rollout.steps[state.step]
    end = _hold_end(state, step)
    return min(due, end) if state.phase == "running" and step.hold_ms and state.judged_at < end else due


def wanted_moves(rollout: Rollout, state: RolloutState, live: Live) -> MovesWanted | None:
    """Return which live connections should be moved now."""
    if state.phase in {"failed", "aborted"}:
        back = rollout.on_failure
        if not back.move_per_s or not live.canary or live.is_moved:
            return None
        return MovesWanted("stable", back.move_per_s, 0, state.since + back.deadline_ms)
    # Nobody is moved to what was just found bad.
    if state.phase == "paused" or state.outcome == "failed":
        return None
    # What is complete may have been promoted out of any step: the last one says how the rest is moved.
    step = rollout.steps[-1 if state.phase == "complete" else state.step]
    if not step.move_per_s or _is_moved(state, live):
        return None
    return MovesWanted("canary", step.move_per_s, state.percent)


def misfit(rollout: Rollout, state: RolloutState) -> str | None:
    """Say why a state that was read from somewhere cannot be one of the document; None if it can."""
    if state.step >= len(rollout.steps):
        return f"it is in step {state.step + 1} of {len(rollout.steps)}"
    if state.percent > FULL or (state.percent and state.phase in {"failed", "aborted"}):
        return f"its share cannot be {_share(state.percent)}: it is {state.phase}"
    if max(state.since, state.epoch_since, state.judged_at) > state.at:
        return "something in it is later than its latest time"
    return None


def check_invariants(rollout: Rollout, state: RolloutState) -> None:
    """Assert I1, and what the other invariants rest on."""
    shares = {step.percent for step in rollout.steps[: state.step + 1] if not step.is_pause}
    if state.phase in {"failed", "aborted"}:
        assert state.percent == 0, "I1"
    elif state.phase == "complete":
        assert state.percent == FULL or state.percent in shares, "I1"
    else:
        assert state.percent in shares or (state.phase == "paused" and state.step == state.percent == 0), "I1"
    assert misfit(rollout, state) is None, "I1, I2, I4"
    assert state.held_ms >= 0, "I4"
    assert state.epoch >= 1, "I4"
    assert state.failures < rollout.analysis.failure_limit or state.phase in {"failed", "aborted"}, "I5"


# ---------------------------------------------------------------- steps


def _enter(rollout: Rollout, state: RolloutState, index: int, at: int, live: Live | None) -> RolloutState | Refused:
    """Return the state at the beginning of a step. Behind the last one it is complete."""
    if index == len(rollout.steps):
        text = f"all steps are over, {_share(state.percent)} of new assignments"
        return replace(state, phase="complete", since=at, at=at, reason=text)
    step = rollout.steps[index]
    fresh = replace(renewed(state, at), step=index, since=at, held_ms=0, failures=0, reason="")
    if step.is_pause:
        return replace(fresh, phase="paused", reason=f"{_named(rollout, index)} is a pause: it waits to be resumed")
    assert step.percent >= state.percent, "I2"
    lack = _lack(rollout, step.percent, live)
    if lack is not None:
        return Refused(lack)
    return replace(fresh, phase="running", percent=step.percent)


def _end_of_step(rollout: Rollout, state: RolloutState, at: int, live: Live | None) -> RolloutState:
    if state.outcome == "inconclusive" and rollout.analysis.inconclusive == "pause":
        doubts = "; ".join(state.findings)
        text = f"{_named(rollout, state.step)} ended in doubt: {doubts}"
        # Held anew, on evidence of its own: the same evidence would end in the same doubt.
        return replace(renewed(_paused(state, at, text), at), held_ms=0)
    entered = _enter(rollout, state, state.step + 1, at, live)
    return _paused(state, at, entered.sentence) if isinstance(entered, Refused) else entered


def _is_over(rollout: Rollout, state: RolloutState, at: int, live: Live | None) -> bool:
    step = rollout.steps[state.step]
    end = _hold_end(state, step)
    if at < end or state.connects < step.connects_min or state.outcome == "failed":
        return False
    if step.move_per_s and not (live is not None and _is_moved(state, live)):
        return False
    if not rollout.analysis.checks or not (step.hold_ms or step.connects_min):
        return True
    # The evidence is that of the whole hold, or at least of an hour, however often it changed hands.
    is_whole = at - state.epoch_since >= min(step.hold_ms, EPOCH_MS)
    return state.outcome is not None and state.judged_at >= end and is_whole


def _is_epoch_over(rollout: Rollout, state: RolloutState, at: int) -> bool:
    step = rollout.steps[state.step]
    if at - state.epoch_since < EPOCH_MS or not state.judged_at or state.connects < step.connects_min:
        return False
    left_ms = _hold_end(state, step) - at
    return state.phase == "paused" or left_ms <= 0 or left_ms >= EPOCH_MS


def _hold_end(state: RolloutState, step: Step) -> int:
    return state.since - state.held_ms + step.hold_ms


def _resumed(rollout: Rollout, state: RolloutState, at: int, live: Live | None) -> RolloutState | Refused:
    if state.phase == "running":
        return Refused("the rollout is running already")
    step = rollout.steps[state.step]
    if step.is_pause:
        return _enter(rollout, state, state.step + 1, at, live)
    if state.percent < step.percent:  # there was no room for its first step
        return _enter(rollout, state, state.step, at, live)
    lack = _lack(rollout, state.percent, live)
    return Refused(lack) if lack is not None else replace(state, phase="running", since=at, at=at, reason="")


def _paused(state: RolloutState, at: int, reason: str) -> RolloutState:
    held_ms = state.held_ms + at - state.since
    return replace(state, phase="paused", since=at, at=at, held_ms=held_ms, reason=reason)


def _stopped(state: RolloutState, phase: Phase, at: int, reason: str) -> RolloutState:
    return replace(state, phase=phase, percent=0, since=at, at=at, reason=reason)


# ---------------------------------------------------------------- live connections


def _lack(rollout: Rollout, percent: int, live: Live | None) -> str | None:
    """Say why the canary is too small for a share of all live connections; None if it is not."""
    if live is None or percent * live.total <= FULL * rollout.max_share_of_capacity * live.canary_capacity:
        return None
    return (
        f"the canary is too small: {_share(percent)} of {live.total:,} live connections are more than "
        f"{100 * rollout.max_share_of_capacity:g} % of its capacity of {live.canary_capacity:,}"
    )


def _is_moved(state: RolloutState, live: Live) -> bool:
    return live.is_moved or 100 * FULL * live.canary >= MOVED_PERCENT * state.percent * live.total


# ---------------------------------------------------------------- sentences


def _named(rollout: Rollout, index: int) -> str:
    return f"step {index + 1} of {len(rollout.steps)}"


def _share(percent: int) -> str:
    return f"{percent / 1_000:g} %"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
