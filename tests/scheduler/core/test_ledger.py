"""The ledger: examples by invariant, then random lives of nodes against a twin that keeps every report."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from base.core.histogram import Histogram
from scheduler.core.ledger import ArmTotals, Ledger, NodeTotals


def report(
    node: str = "a",
    life: int = 1,
    number: int = 1,
    accepted: int = 0,
    *,
    version: str = "2.0",
    region: str = "sh",
    is_draining: bool = False,
    connections: int = 0,
    rejected: int = 0,
    abnormal: int = 0,
    replies: int = 0,
    pushes: int = 0,
) -> NodeTotals:
    return NodeTotals(
        node=node,
        incarnation=life,
        report=number,
        version=version,
        region=region,
        is_draining=is_draining,
        connections=connections,
        accepted=accepted,
        rejected=rejected,
        abnormal=abnormal,
        handshakes=Histogram([0, replies]),
        pushes=Histogram([pushes]),
    )


def accepted(ledger: Ledger) -> dict[str, int]:
    return {region: totals.accepted for region, totals in ledger.totals("canary").items()}


def test_counts_go_to_the_arm_of_the_version_and_to_the_region():
    """Whatever the node is called."""
    ledger = Ledger("2.0")
    views = [
        [report("a", 1, n, 10 * n), report("b", 1, n, n, region="gz"), report("c", 1, n, 100 * n, version="1.9")]
        for n in (1, 2)
    ]
    for view in views:
        ledger.observe(view)
    assert accepted(ledger) == {"sh": 10, "gz": 1}
    assert {region: totals.accepted for region, totals in ledger.totals("stable").items()} == {"sh": 100}


def test_everything_that_nodes_count_is_counted_on():
    """Connects are those that got their reply and the rejected ones; refused newcomers are none."""
    ledger = Ledger("2.0")
    ledger.observe([report("a", 1, 1, 5, rejected=1, abnormal=2, replies=3, pushes=4)])
    ledger.observe([report("a", 1, 9, 55, rejected=11, abnormal=22, replies=33, pushes=44)])
    totals = ledger.totals("canary")["sh"]
    assert totals == ArmTotals(50, 10, 20, Histogram([0, 30]), Histogram([40]))
    assert totals.connects == 40


def test_what_a_node_counted_before_it_was_seen_is_no_evidence():
    """I1: it may be from before the epoch."""
    ledger = Ledger("2.0")
    ledger.observe([report("a", 1, 1, 1_000)])
    ledger.observe([report("a", 1, 2, 1_003)])
    assert accepted(ledger) == {"sh": 3}


def test_a_restart_takes_nothing_away_and_adds_nothing():
    """I1, I2: the next life counts from zero, its first report included."""
    ledger = Ledger("2.0")
    for seen in (report("a", 1, 1, 100), report("a", 1, 2, 107), report("a", 2, 1, 5), report("a", 2, 2, 6)):
        ledger.observe([seen])
        ledger.check_invariants()
    assert accepted(ledger) == {"sh": 7 + 6}


def test_a_node_can_come_back_with_another_version():
    """What each life counted stays with its arm."""
    ledger = Ledger("2.0")
    for seen in (report("a", 1, 1, 0, version="1.9"), report("a", 1, 2, 7, version="1.9"), report("a", 2, 1, 5)):
        ledger.observe([seen])
    assert accepted(ledger) == {"sh": 5}
    assert ledger.totals("stable")["sh"].accepted == 7


def test_the_connections_of_a_node_that_died_ended_abnormally():
    """Those of its last report; not if it was draining, and not before it is known that it died."""
    ledger = Ledger("2.0")
    ledger.observe([report("a", 1, 1, connections=40), report("b", 1, 1, connections=40)])
    ledger.observe([report("a", 1, 2, connections=50), report("b", 1, 2, connections=50, is_draining=True)])
    ledger.observe([])
    assert ledger.totals("canary")["sh"].abnormal == 0
    ledger.observe([report("a", 2, 1), report("b", 2, 1)])
    assert ledger.totals("canary")["sh"].abnormal == 50


def test_a_node_that_was_out_of_view_goes_on_where_it_was():
    """What it counted meanwhile is counted."""
    ledger = Ledger("2.0")
    for view in ([report("a", 1, 1, 10)], [], [report("a", 1, 9, 30)]):
        ledger.observe(view)
    assert accepted(ledger) == {"sh": 20}


def test_late_reports_change_nothing():
    """I2: of the same life or of one before."""
    ledger = Ledger("2.0")
    for seen in (report("a", 2, 1, 0), report("a", 2, 3, 9), report("a", 2, 2, 5), report("a", 1, 99, 999)):
        ledger.observe([seen])
        ledger.check_invariants()
    assert accepted(ledger) == {"sh": 9}
    for seen in (report("a", 2, 5, connections=7), report("a", 2, 4, connections=70), report("a", 3, 1)):
        ledger.observe([seen])
    assert ledger.totals("canary")["sh"].abnormal == 7


def test_a_damaged_report_costs_itself_only():
    """I2: a histogram that could not be read is empty; the next good one does not count all over again."""
    ledger = Ledger("2.0")
    ledger.observe([report("a", 1, 1, 100, replies=100, pushes=100)])
    ledger.observe([report("a", 1, 2, 0)])
    assert ledger.totals("canary")["sh"] == ArmTotals()
    ledger.observe([report("a", 1, 3, 101, replies=102, pushes=103)])
    assert ledger.totals("canary")["sh"] == ArmTotals(1, 0, 0, Histogram([0, 2]), Histogram([3]))


def test_a_new_epoch_begins_with_nothing():
    """Where the last reports were; who was gone by then is seen for the first time when it comes back."""
    ledger = Ledger("2.0")
    assert ledger.epoch == 1
    ledger.observe([report("a", 1, 1, 0), report("b", 1, 1, 0), report("c", 1, 1, 0)])
    ledger.observe([report("a", 1, 2, 10), report("b", 2, 1, 10)])
    ledger.begin(2)
    ledger.check_invariants()
    assert ledger.epoch == 2
    assert accepted(ledger) == {"sh": 0}
    ledger.observe([report("a", 1, 3, 11), report("b", 2, 2, 12), report("c", 1, 9, 50)])
    assert accepted(ledger) == {"sh": 1 + 2}


class Lives(RuleBasedStateMachine):
    """Nodes that work, restart and leave; views that come late or not at all. The twin keeps every report there was."""

    @initialize()
    def begin(self) -> None:
        self.ledger = Ledger("2.0")
        self.numbers: dict[str, list[int]] = {node: [1, 0, 0] for node in "abc"}  # life, report, accepted
        self.made: list[NodeTotals] = []
        self.seen: dict[tuple[str, int], list[int]] = defaultdict(list)
        self.starts: dict[tuple[str, int], int] = {}
        self.known: set[str] = set()

    @rule(node=st.sampled_from("abc"), gained=st.integers(0, 5))
    def work(self, node: str, gained: int) -> None:
        self.numbers[node][1] += 1
        self.numbers[node][2] += gained
        self.made.append(report(node, *self.numbers[node]))

    @rule(node=st.sampled_from("abc"))
    def restart(self, node: str) -> None:
        self.numbers[node] = [self.numbers[node][0] + 1, 0, 0]

    @rule(data=st.data())
    def view(self, data: st.DataObject) -> None:
        if not self.made:
            return
        picked = data.draw(st.lists(st.sampled_from(self.made[-8:]), unique_by=lambda made: made.node))
        self.ledger.observe(picked)
        for made in picked:
            life = (made.node, made.incarnation)
            if any(node == made.node and later > made.incarnation for node, later in self.seen):
                continue
            self.starts.setdefault(life, 0 if made.node in self.known else made.accepted)
            self.known.add(made.node)
            self.seen[life].append(made.accepted)

    @invariant()
    def agrees(self) -> None:
        self.ledger.check_invariants()
        expected = sum(max(counts) - self.starts[life] for life, counts in self.seen.items())
        # A late report of the life that is the first one seen may be below where its counting began.
        assert sum(accepted(self.ledger).values()) == expected


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=25, stateful_step_count=20)
