"""The engine in random histories: two of them, one told by a recording, and every decision held against the rules."""

from __future__ import annotations

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scheduler.core.cohorts import ActiveRollout
from scheduler.core.engine import Credit, Decision, Engine, Passed, Picked
from scheduler.core.explanation import explain
from scheduler.core.policy import Policy, Rule
from scheduler.core.recording import Configured, Decided, LossAccepted, Observed, Record, Replay, born, encode, records
from scheduler.core.regions import Region
from scheduler.core.request import Request
from scheduler.core.snapshot import STABLE, Settings, Snapshot
from tests.scheduler.core.fleets import active, ask, node

REGIONS = (Region("east", latitude=0, longitude=0, spill=("west",)), Region("north", latitude=9, longitude=0))
WHERE = ("east", "north", "west", "")
PICKS = ("least_connections", "weighted", "sticky")

FIELDS = {
    "region": WHERE,
    "carrier": ("", "CT", "CU"),
    "version": ("old", "old", "fast", "slow"),
    "capacity": (1, 4, 1_000),
    "connections": (0, 0, 3, 900),
    "accepts_per_s": (0.0, 1.0, 50.0),
    "is_draining": (False, False, False, True),
    "is_cordoned": (False, False, False, True),
    "incarnation": (1, 1, 2),
    "admitted": range(9),
    "admitted_of_all": range(20),
    "uptime_ms": (0, 20_000, 86_400_000),
}
AGES = (0, 0, 1_000, 60_000)
rollouts = st.lists(
    st.builds(
        active,
        st.sampled_from(("fast", "slow")),
        st.sampled_from((0, 10_000, 50_000, 100_000)),
        is_failed=st.booleans(),
        max_share_of_capacity=st.sampled_from((0.5, 1.0)),
    ),
    max_size=2,
    unique_by=lambda one: one.rollout.name,
)
strategies = st.builds(
    lambda pick, others: frozenset({pick, *others}),
    st.sampled_from(PICKS),
    st.sets(st.sampled_from(("canary", "proximity"))),
)
policies = st.builds(
    lambda staff, others: Policy(
        "p", (Rule("staff", staff, active().rollout.segments[0].when), Rule("others", others))
    ),
    strategies,
    strategies,
)
requests = st.builds(
    ask, st.sampled_from(("staff", "ann", "bob", "eve")), st.sampled_from(WHERE), st.sampled_from(("", "CT", "CM"))
)


class Histories(RuleBasedStateMachine):
    """Views, rules and decisions in any order."""

    engine: Engine
    policy: Policy

    @initialize(
        candidates=st.integers(1, 5),
        overprovision=st.sampled_from((1.0, 1.4)),
        horizon=st.sampled_from((0, 2_000, 600_000)),
        percent=st.sampled_from((0, 50)),
        seed=st.integers(0, 99),
    )
    def begin(self, candidates: int, overprovision: float, horizon: int, percent: int, seed: int) -> None:
        self.settings = Settings(
            candidates=candidates, overprovision=overprovision, slot_horizon_ms=horizon, panic_percent=percent
        )
        self.now = 1_000_000
        self.replay = Replay(Random)
        self.engine = Engine(self.settings, Random(seed), seq=7)
        self.policy = self.engine.policy
        self.tell(born("s", self.settings, seed, seq=7, credit=Credit()))

    def tell(self, record: Record) -> Decision | None:
        """Tell the twin, by way of bytes."""
        (read,) = records([encode(record)])
        return self.replay.tell(read)

    @rule(seed=st.integers(0, 1 << 32), count=st.integers(1, 8), schedulers=st.integers(1, 4))
    def view(self, seed: int, count: int, schedulers: int) -> None:
        dice = Random(seed)
        nodes = [
            node(
                name,
                reported_at=self.now - dice.choice(AGES),
                **{field: dice.choice(values) for field, values in FIELDS.items()},
            )
            for name in dice.sample("abcdefgh", count)
        ]
        self.engine.observe(nodes, self.now, schedulers=schedulers)
        self.tell(Observed(self.now, schedulers, tuple(nodes)))

    @rule(chosen=rollouts, policy=policies, regions=st.sampled_from(((), REGIONS)))
    def configure(self, chosen: list[ActiveRollout], policy: Policy, regions: tuple[Region, ...]) -> None:
        told = Configured(self.now, tuple(chosen), policy, {}, regions, "")
        made = Replay(Random)
        made.engine = self.engine
        made.tell(told)
        self.tell(told)
        self.policy = policy

    @rule()
    def accept_loss(self) -> None:
        self.engine.accept_loss()
        self.tell(LossAccepted())

    @rule(ms=st.sampled_from((1, 100, 1_000, 60_000, 200_000)))
    def time_goes_on(self, ms: int) -> None:
        self.now += ms

    @precondition(lambda self: self.engine.snapshot.nodes)
    @rule(asked=st.lists(requests, min_size=1, max_size=6))
    def decide(self, asked: list[Request]) -> None:
        for request in asked:
            snapshot = self.engine.snapshot
            self.engine.consider(request, self.now, Random(0))
            decision = self.engine.decide(request, self.now)
            assert self.tell(Decided(request, decision)) == decision, "I3"
            check(self.settings, snapshot, request, decision)
            explained(self.policy, snapshot, request, decision)

    @invariant()
    def loads_and_pools_agree(self) -> None:
        snapshot = self.engine.snapshot
        for pool in snapshot.every_pool():
            assert len(set(pool.members)) == len(pool.members)
            assert all(pool in snapshot.homes[index] for index in pool.members)
        for tally in self.engine._tallies.values():
            tally.check_invariants()


def check(rules: Settings, snapshot: Snapshot, request: Request, decision: Decision) -> None:
    """Hold a decision against I1 and I2, and what the module says of arms."""
    candidates = decision.candidates
    assert 0 <= decision.not_before_ms <= max(rules.slot_horizon_ms, 0 if candidates else 1_000), "I2"
    assert len(set(candidates)) == len(candidates), "I1"
    assert not snapshot.left_out.keys() & {*candidates, *decision.drawn}, "I1"
    chosen = [snapshot.nodes[index] for index in candidates]
    assert not any(one.is_draining or one.is_cordoned for one in chosen), "I1"
    is_last_resort = (STABLE, "", Passed.ARM_FULL) in decision.passed
    if not candidates:
        assert decision.picked == Picked.NOBODY
        return
    assert {snapshot.arm_of(one) for one in chosen} == {decision.arm}
    assert chosen[0].region == decision.region
    of_the_arm = [pool for (arm, _), pool in snapshot.pools.items() if arm == decision.arm]
    assert len(candidates) == min(rules.candidates, sum(len(pool.members) for pool in of_the_arm)), "I1"
    if decision.arm != STABLE and not is_last_resort:
        (cohort,) = [one for one in snapshot.cohorts if one.rollout.name == decision.arm]
        assert cohort.place(request).is_canary
        assert not cohort.is_failed
    if decision.carrier:
        assert {snapshot.nodes[index].carrier for index in decision.drawn} <= {decision.carrier, ""}


def explained(policy: Policy, snapshot: Snapshot, request: Request, decision: Decision) -> None:
    """Hold an explanation against the decision: it names everybody who was left out, passed, drawn or chosen."""
    stages = {stage.stage: stage for stage in explain(snapshot, policy, request, decision)}
    assert (
        list(stages) == ["locate", "filter", "rule", "arm", "region", "draw", "slot"][: 7 if decision.candidates else 5]
    )
    left_out = [line.partition(":")[0] for line in stages["filter"].dropped]
    assert left_out == [snapshot.nodes[index].id for index in snapshot.left_out]
    assert len(stages["arm"].dropped) + len(stages["region"].dropped) == len(decision.passed)
    assert stages["arm"].says.startswith(decision.arm)
    if decision.candidates:
        drawn = [line.partition(":")[0] for line in stages["draw"].dropped]
        assert drawn == [snapshot.nodes[index].id for index in decision.drawn]
        assert all(snapshot.nodes[index].id in stages["draw"].says for index in decision.candidates)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=50, stateful_step_count=20, deadline=None)
