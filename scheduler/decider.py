"""The engine in use, and who looks over its shoulder: the shadow policy, the recorder, and the memory of why.

Everything that the engine is told goes through here, so that all of them are told the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from random import Random  # noqa: TID251 - the engine's dice, from a recorded seed
from typing import NamedTuple

from base.clock import Clock
from base.errors import Conflict
from base.ids import entropy
from base.log import logger
from scheduler.core.arm_counts import ArmCounts
from scheduler.core.cohorts import ActiveRollout
from scheduler.core.engine import Credit, Decision, Engine
from scheduler.core.explanation import Stage, explain
from scheduler.core.node import AccessNode
from scheduler.core.policy import Policy
from scheduler.core.recording import Configured, Decided, LossAccepted, Observed, born, encode
from scheduler.core.regions import Regions
from scheduler.core.request import Request
from scheduler.core.shadow import Comparison, Difference
from scheduler.core.snapshot import Settings, Snapshot

__all__ = ["Decider", "Rules", "Shadow"]

SNAPSHOTS_MAX = 64
NODES_MAX = 64_000
"""How many snapshots are kept for explaining decisions that were made on them, and of how many nodes together."""

Sink = Callable[[bytes], None]
"""Where a recording goes, record by record. It must not wait."""


class Rules(NamedTuple):
    """What decisions go by beside the nodes."""

    rollouts: tuple[ActiveRollout, ...]
    policy: Policy
    lists: Mapping[str, frozenset[str]]
    regions: Regions


class Remembered(NamedTuple):
    """A decision of late with what it takes to explain it."""

    request: Request
    decision: Decision
    snapshot: Snapshot
    policy: Policy


class Shadow:
    """A policy that is evaluated beside the one in force."""

    def __init__(self, engine: Engine, policy: Policy) -> None:
        self.engine = engine
        self.policy = policy
        self.comparison = Comparison()

    def difference(self) -> Difference:
        """Return how it differs, since it began."""
        return self.comparison.difference()


class Decider:
    """See the module. Not thread-safe."""

    def __init__(self, scheduler_id: str, settings: Settings, clock: Clock, rules: Rules, *, remembered: int) -> None:
        """`scheduler_id` names this life of this scheduler; `remembered`: how many decisions can be explained."""
        self.id = scheduler_id
        self._settings = settings
        self._clock = clock
        self.rules = rules
        self._nodes: tuple[AccessNode, ...] = ()
        self._schedulers = 1
        self._recent: deque[tuple[int, Remembered]] = deque(maxlen=remembered)
        """Each with the number of its snapshot, over all engines."""
        self._sink: Sink | None = None
        self._shadow: Shadow | None = None
        self._log = logger(node=scheduler_id)
        self._views = 0
        self.arm_counts = ArmCounts()
        """Clients who were sent somewhere, by arm."""
        self.engine, _ = self._born(0, Credit())

    # ---------------------------------------------------------------- told

    def observe(self, nodes: Sequence[AccessNode], *, schedulers: int) -> None:
        """Take a view of the registry."""
        self._nodes, self._schedulers = tuple(nodes), max(1, schedulers)
        now = self._clock.monotonic()
        was_panic = self.engine.is_panic
        for engine in self._engines():
            engine.observe(self._nodes, now, schedulers=self._schedulers)
        if self._sink is not None:
            self._sink(encode(Observed(now, self._schedulers, self._nodes)))
        if self.engine.is_panic != was_panic:
            self._log.warning("panic" if self.engine.is_panic else "panic_over", registered=len(self._nodes))
        self._forget()

    def configure(self, rules: Rules) -> None:
        """Go by these rules."""
        self.rules = rules
        now = self._clock.monotonic()
        self._configure(self.engine, rules.policy, now)
        if self._shadow is not None:
            self._configure(self._shadow.engine, self._shadow.policy, now)
        if self._sink is not None:
            self._sink(encode(self._configured(now)))
        self._forget()

    def accept_loss(self) -> None:
        """The nodes that panic keeps are dead, an operator says."""
        for engine in self._engines():
            engine.accept_loss()
        if self._sink is not None:
            self._sink(encode(LossAccepted()))
        self.observe(self._nodes, schedulers=self._schedulers)

    # ---------------------------------------------------------------- asked

    def decide(self, request: Request) -> Decision:
        """Decide for a client who will act on it."""
        now = self._clock.monotonic()
        engine = self.engine
        decision = engine.decide(request, now)
        if decision.candidates:
            self.arm_counts.add(decision.arm, now)
        self._recent.append((self._views, Remembered(request, decision, engine.snapshot, engine.policy)))
        if self._sink is not None:
            self._sink(encode(Decided(request, decision)))
        if self._shadow is not None:
            other = self._shadow.engine.decide(request, now)
            self._shadow.comparison.add(engine, decision, self._shadow.engine, other)
        return decision

    def consider(self, request: Request) -> tuple[Decision, tuple[Stage, ...]]:
        """Return what would be decided now, and why. Nobody is sent anywhere, and nothing is counted."""
        engine = self.engine
        decision = engine.consider(request, self._clock.monotonic(), entropy())
        return decision, explain(engine.snapshot, engine.policy, request, decision)

    def explain(self, request: Request, decision: Decision) -> tuple[Stage, ...]:
        """Explain a decision that was just made."""
        return explain(self.engine.snapshot, self.engine.policy, request, decision)

    def explain_past(self, seq: int) -> tuple[Remembered, tuple[Stage, ...]] | None:
        """Explain a decision by its number; None if it is not remembered any more."""
        for _, past in reversed(self._recent):
            if past.decision.seq == seq:
                return past, explain(past.snapshot, past.policy, past.request, past.decision)
        return None

    @property
    def snapshot(self) -> Snapshot:
        """What is known now."""
        return self.engine.snapshot

    # ---------------------------------------------------------------- shadow and recording

    @property
    def shadow(self) -> Shadow | None:
        """The shadow policy, if there is one."""
        return self._shadow

    @property
    def shadow_policy(self) -> Policy | None:
        """Which policy is evaluated beside the one in force."""
        return self._shadow.policy if self._shadow is not None else None

    def set_shadow(self, policy: Policy | None) -> None:
        """Evaluate a policy beside the one in force, from now on; None ends that."""
        if policy is None:
            self._shadow = None
            return
        engine = Engine(self._settings, Random(entropy().getrandbits(64)))  # noqa: S311 - balance, not secrecy
        now = self._clock.monotonic()
        self._configure(engine, policy, now)
        for nodes in (self.engine.snapshot.nodes, self._nodes):  # first with those whom panic keeps: it shall keep them
            engine.observe(nodes, now, schedulers=self._schedulers)
        self._shadow = Shadow(engine, policy)

    def record(self, sink: Sink) -> None:
        """Begin a recording: with a new engine, so that another can be made that is the same. Raises Conflict.

        The new engine does not know who is on the way, but for the slots that were given; by the time that nodes have
        reported twice it is as good. It does not keep either the nodes that panic keeps: none is begun in panic.
        """
        if self._sink is not None:
            raise Conflict("a recording is under way")
        before = self.engine
        self.engine, records = self._born(before.seq, before.credit(self._clock.monotonic()))
        for record in records:
            sink(record)
        self._sink = sink
        self._forget()

    def stop_recording(self) -> None:
        """End the recording. Idempotent."""
        self._sink = None

    # ---------------------------------------------------------------- inside

    def _engines(self) -> list[Engine]:
        return [self.engine] if self._shadow is None else [self.engine, self._shadow.engine]

    def _born(self, seq: int, credit: Credit) -> tuple[Engine, list[bytes]]:
        seed = entropy().getrandbits(64)
        now = self._clock.monotonic()
        engine = Engine(self._settings, Random(seed), seq=seq, credit=credit)  # noqa: S311 - balance, not secrecy
        self._configure(engine, self.rules.policy, now)
        engine.observe(self._nodes, now, schedulers=self._schedulers)
        return engine, [
            encode(born(self.id, self._settings, seed, seq=seq, credit=credit)),
            encode(self._configured(now)),
            encode(Observed(now, self._schedulers, self._nodes)),
        ]

    def _configure(self, engine: Engine, policy: Policy, now: int) -> None:
        rules = self.rules
        engine.configure(rollouts=rules.rollouts, policy=policy, lists=rules.lists, regions=rules.regions, now=now)

    def _configured(self, now: int) -> Configured:
        rules = self.rules
        regions = rules.regions
        return Configured(now, rules.rollouts, rules.policy, dict(rules.lists), regions.all, regions.default)

    def _forget(self) -> None:
        """Forget decisions whose snapshots are too many back: those are what costs memory."""
        self._views += 1
        kept = min(SNAPSHOTS_MAX, max(2, NODES_MAX // max(1, len(self._nodes))))
        while self._recent and self._recent[0][0] <= self._views - kept:
            self._recent.popleft()
