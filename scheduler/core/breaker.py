"""When moving live connections must stop by itself, and when it may be tried again.

```
            something is wrong           15 s, and nothing is wrong any more
    closed ──────────────────▶ open ──────────────────────────────▶ probing
       ▲                        ▲                                     │ │
       │                        └──────────── again ──────────────────┘ │
       └──────────────── 10 s after the last of a small batch ──────────┘
```

Two kinds of things are wrong. A *condition* stands or not: panic, a node that was lost, the registry out of reach, a
drain. It holds the breaker open for as long as it stands. What the moves themselves did is *judged*: of the clients
that were told 10 s ago fewer than 90 % came through their targets' doors, or the doors turn newcomers away.

Whoever is told twenty times to look at a thing that ends by itself stops looking. So a drain, or an outage of the
registry, opens the breaker without counting; all else counts, and the third opening without a good batch between is for
an operator.

The arrivals of those told 10 s ago cannot be told from those of others, so all arrivals are compared with them: a way
that takes up to 10 s gives no false alarm, and a loss is seen later rather than wrongly.

Invariants:
    B1  Open allows nothing; probing allows at most `PROBE` clients in all; closed has no bound.
    B2  The breaker is open for at least `REST_MS`, and until the first step without a condition.
    B3  It is never closed by a step in which something is wrong.
    B4  `openings` counts those that count since the last good batch or `reset`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal, NamedTuple

from base.clock import Instant

__all__ = ["Breaker", "Condition", "Sample"]

REST_MS = 15_000
PROBE = 20
ARRIVAL_MS = 10_000
"""How long a client's way may take before its absence counts."""
ARRIVED_PERCENT = 90
SAMPLE_MIN = 20
MEMORY_MS = 60_000
"""Arrivals are judged over this time: a plan that went well for an hour must not hide that it no longer does."""
TURNED_AWAY_MIN = 10
TURNED_AWAY_PERCENT = 10
"""So many of those told may be turned away within `ARRIVAL_MS`, whoever they are: a door is not for ours alone."""


class Sample(NamedTuple):
    """Totals of a plan at an instant: clients told, of those let in at their targets, and who was turned away there."""

    at: Instant
    told: int
    verified: int
    turned_away: int


@dataclass(frozen=True, slots=True)
class Condition:
    """Something is wrong that stands by itself."""

    reason: str
    counts: bool
    """Whether it is one of the three openings after which an operator must look."""


class Breaker:
    """Closed at first. Call `step` before each batch, `spent` for each, and mind `allowance`."""

    __slots__ = ("_changed_at", "_probed_at", "_probes", "_samples", "openings", "reason", "state")

    def __init__(self) -> None:
        self.state: Literal["closed", "open", "probing"] = "closed"
        self.reason = ""
        """Why it was last opened; "" if it never was."""
        self.openings = 0
        """How often it was opened in a row."""
        self._changed_at = Instant(0)
        self._probes = 0
        self._probed_at: Instant | None = None
        self._samples: deque[Sample] = deque()

    @property
    def allowance(self) -> int | None:
        """How many clients may be told before the next step. None: as many as anything else allows."""
        if self.state == "closed":
            return None
        return max(PROBE - self._probes, 0) if self.state == "probing" else 0

    def step(self, sample: Sample, condition: Condition | None) -> None:
        """Take note of how things are at the sample's instant."""
        now = sample.at
        self._remember(sample)
        if self.state == "open":
            if condition is not None:
                self.reason = condition.reason
            elif now - self._changed_at >= REST_MS:
                self._turn("probing", sample)
            return
        wrong = condition or self._judge(sample)
        if wrong is not None:
            self.reason = wrong.reason
            self.openings += wrong.counts
            self._turn("open", sample)
        elif self._is_batch_over(sample):
            self.openings = 0
            self._turn("closed", sample)

    def spent(self, now: Instant, count: int) -> None:
        """So many clients were told. A negative count: so many of those were not after all."""
        if self.state == "probing" and count:
            self._probes += count
            self._probed_at = now if self._probes else None

    def reset(self) -> None:
        """An operator looked: close it, and forget what was."""
        self.openings = 0
        self.state = "closed"
        self._samples.clear()

    def _turn(self, state: Literal["closed", "open", "probing"], sample: Sample) -> None:
        self.state = state
        self._changed_at = sample.at
        self._probes, self._probed_at = 0, None
        if state == "probing":
            # The batch is judged by itself.
            self._samples.clear()
            self._samples.append(sample)

    def _remember(self, sample: Sample) -> None:
        self._samples.append(sample)
        while self._samples[0].at < sample.at - MEMORY_MS:
            self._samples.popleft()

    def _is_batch_over(self, now: Sample) -> bool:
        if self.state != "probing" or self._probed_at is None or now.at - self._probed_at < ARRIVAL_MS:
            return False
        return self._past(now).told >= now.told  # or the last of the batch were not judged yet

    def _past(self, now: Sample) -> Sample:
        """Return the last sample that is `ARRIVAL_MS` old, or the first of all."""
        old = [sample for sample in self._samples if sample.at <= now.at - ARRIVAL_MS]
        return old[-1] if old else self._samples[0]

    def _judge(self, now: Sample) -> Condition | None:
        first, past = self._samples[0], self._past(now)
        told, came = past.told - first.told, now.verified - first.verified
        if told >= SAMPLE_MIN and came * 100 < told * ARRIVED_PERCENT:
            return Condition(f"only {came} of {told} clients arrived within {ARRIVAL_MS // 1_000} s", counts=True)
        told, turned_away = now.told - past.told, now.turned_away - past.turned_away
        if turned_away >= TURNED_AWAY_MIN and turned_away * 100 > told * TURNED_AWAY_PERCENT:
            return Condition(f"the targets turned {turned_away} clients away while {told} were told", counts=True)
        return None
