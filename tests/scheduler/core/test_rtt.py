"""The learned table: the promises by example, then a state machine against a plain list of reports."""

from __future__ import annotations

from random import Random
from statistics import median_low

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from base.clock import Instant
from scheduler.core.networks import parse_address
from scheduler.core.rtt import MARGIN_MS, REPORTERS_MIN, REPORTS, RTT_MAX_MS, Learned, RttTable, prefix_of

NOW = Instant(1_000)
HOUR_MS = 3_600_000


def key(text: str) -> int:
    address = parse_address(text)
    assert address is not None
    return prefix_of(address)


def region(table: RttTable, instead_of: str = "", now: int = NOW, prefix: int = 1) -> str:
    learned = table.learned(prefix, instead_of, Instant(now))
    return learned.region if learned else ""


def filled(times: dict[str, list[int]], *, now: int = NOW) -> RttTable:
    """A table in which the n-th user of prefix 1 reported the n-th time to each region."""
    table = RttTable(times)
    for name, reported in times.items():
        for number, ms in enumerate(reported):
            table.report(1, f"u{number}", {name: ms}, Instant(now))
    return table


def test_a_prefix_is_24_bits_of_ipv4_and_48_of_ipv6():
    """An IPv4 address in IPv6 form is the IPv4 one, and no IPv6 prefix is an IPv4 one."""
    assert key("192.0.2.1") == key("192.0.2.255") == key("::ffff:192.0.2.7") != key("192.0.3.1")
    assert key("2001:db8:1::1") == key("2001:db8:1:ffff::") != key("2001:db8:2::1")
    assert key("::c000:201") != key("192.0.2.1")
    assert len({key(f"{'' if four else '::'}{n}{'.0.0.1' if four else ''}") for four in (0, 1) for n in (0, 1)}) == 3


def test_the_nearest_of_two_known_regions_is_given_with_its_figures():
    """Known is what five users measured."""
    table = filled({"sh": [20, 22, 21, 90, 19], "bj": [40, 44, 41, 42, 43]})
    assert table.learned(1, "bj", NOW) == Learned("sh", 21, 5, "bj", 42)
    assert table.learned(1, "gz", NOW) == Learned("sh", 21, 5, "gz", -1)
    assert table.learned(1, "", NOW) == Learned("sh", 21, 5, "", -1)
    assert table.learned(2, "bj", NOW) is None


def test_four_users_are_not_enough():
    """Neither for the nearest region nor for the one to compare it with."""
    assert region(filled({"sh": [20] * 4, "bj": [40] * 9}), "bj") == ""
    assert region(filled({"sh": [20] * 9, "bj": [40] * 4}), "bj") == ""
    assert region(filled({"sh": [20] * 5, "bj": [40] * 5}), "bj") == "sh"


def test_a_region_that_too_few_measured_is_not_overruled_yet():
    """One that nobody measured is: it has no nodes, and no fifth report would ever come."""
    table = filled({"sh": [20] * 5, "bj": [40] * 5, "gz": [90] * 4})
    assert region(table, "gz") == ""
    assert region(table, "cd") == "sh"
    table.report(1, "u4", {"gz": 90}, NOW)
    assert region(table, "gz") == "sh"


@pytest.mark.parametrize(("ahead", "given_"), [(0, ""), (MARGIN_MS - 1, ""), (MARGIN_MS, "sh"), (1_000, "sh")])
def test_a_region_that_is_known_is_overruled_by_the_margin_only(ahead: int, given_: str):
    """A table of places is right until shown wrong; where it is right already, nothing is given."""
    table = filled({"sh": [20] * 5, "bj": [20 + ahead] * 5})
    assert region(table, "bj") == given_
    assert region(table, "sh") == ""


def test_the_nearest_region_stays_until_another_one_is_nearer_by_the_margin():
    """Two regions as near as each other do not take turns."""
    table = filled({"sh": [30] * 5, "bj": [35] * 5, "gz": [90] * 5})
    assert region(table) == "sh"
    for user, (ms, nearest) in enumerate([(25, "sh"), (21, "sh"), (20, "bj"), (22, "bj"), (41, "sh")]):
        for voice in range(REPORTS):
            table.report(1, f"v{user}-{voice}", {"bj": ms}, NOW)
        assert region(table) == nearest, ms


def test_of_two_equal_regions_the_first_by_name_is_given():
    """Every scheduler says the same, whatever the order of reports."""
    for names in (["bj", "sh"], ["sh", "bj"]):
        assert region(filled({name: [20] * 5 for name in names})) == "bj"


def test_a_users_newer_report_replaces_the_older_one():
    """I2: many reports of one user are one voice."""
    table = filled({"sh": [20] * 5, "bj": [40] * 4})
    for _ in range(50):
        table.report(1, "u0", {"bj": 40}, NOW)
    assert region(table) == ""
    table.report(1, "u4", {"bj": 40}, NOW)
    assert table.learned(1, "", NOW) == Learned("sh", 20, 5, "", -1)
    table.report(1, "u4", {"sh": 25}, NOW)
    assert table.learned(1, "", NOW) == Learned("sh", 20, 5, "", -1)


def test_the_last_nine_users_count():
    """I2: a prefix that was routed anew is learned anew in five reports."""
    table = filled({"sh": [20] * 30, "bj": [40] * 9})
    for number in range(5):
        assert region(table) == "sh"
        table.report(1, f"new{number}", {"sh": 80}, NOW)
    assert table.learned(1, "", NOW) == Learned("bj", 40, REPORTS, "", -1)


def test_reports_expire_after_an_hour():
    """I3: to the ms, whether or not others come; nothing is held of a prefix whose reports have all expired."""
    table = filled({"sh": [20] * 5, "bj": [40] * 5})
    table.report(1, "u9", {"sh": 20}, Instant(NOW + 10))
    assert region(table, now=NOW + HOUR_MS - 1) == "sh"
    assert region(table, now=NOW + HOUR_MS) == ""
    assert len(table) == 1
    assert region(table, now=NOW + HOUR_MS + 10) == ""
    assert len(table) == 0


def test_the_prefixes_reported_on_or_asked_for_last_are_held():
    """I1."""
    table = RttTable(["sh", "bj"], prefixes_max=2)
    for prefix in (1, 2):
        for user in range(5):
            table.report(prefix, f"u{user}", {"sh": 20, "bj": 40}, NOW)
    assert region(table, prefix=1) == "sh"
    table.report(3, "u0", {"sh": 20}, NOW)
    assert [region(table, prefix=prefix) for prefix in (1, 2, 3)] == ["sh", "", ""]
    assert len(table) == 2
    table.report(1, "u0", {"sh": 20}, NOW)
    table.report(4, "u0", {"sh": 20}, NOW)
    assert region(table, prefix=1) == "sh"


def test_regions_that_the_operator_does_not_have_are_not_taken():
    """I4: a client's text makes no region and no entry."""
    table = RttTable(["sh"])
    for user in range(5):
        table.report(1, f"u{user}", {"mars": 1}, NOW)
        table.report(1, f"u{user}", {}, NOW)
    assert len(table) == 0
    for user in range(5):
        table.report(1, f"u{user}", {"mars": 1, "sh": 20}, NOW)
    assert region(table) == ""


def test_a_region_that_is_given_up_is_forgotten():
    """I4: the next nearest takes its place."""
    table = filled({"sh": [20] * 5, "bj": [40] * 5, "gz": [60] * 5})
    table.retain(["sh", "bj", "gz", "cd"])
    assert region(table) == "sh"
    table.retain(["bj", "gz", "cd"])
    assert table.learned(1, "", NOW) == Learned("bj", 40, 5, "", -1)
    table.report(1, "u0", {"sh": 1}, NOW)
    table.check_invariants()
    table.retain([])
    assert region(table) == ""
    assert len(table) == 0


@pytest.mark.parametrize("ms", [-1, RTT_MAX_MS + 1])
def test_a_time_out_of_range_is_our_own_bug(ms: int):
    """The parser of requests has refused it before."""
    with pytest.raises(AssertionError):
        RttTable(["sh"]).report(1, "u", {"sh": ms}, NOW)


@pytest.mark.parametrize("seed", range(20))
def test_a_prefix_in_the_wrong_place_is_corrected_after_20_reports(seed: int):
    """Each client measures the region it was sent to and one other; times scatter, and a tenth of them are far off."""
    random = Random(seed)
    true_ms = {"us": 180, "sh": 25, "bj": 60}
    table = RttTable(true_ms)
    for number in range(20):
        probed = ["us", random.choice(["sh", "bj"])]
        times = {name: true_ms[name] + random.randrange(15) for name in probed}
        if random.random() < 0.1:
            times[random.choice(probed)] += 400
        table.report(1, f"u{number}", times, NOW)
    # Either is right: whichever of the two was measured often enough.
    assert region(table, "us") in {"sh", "bj"}
    assert region(table, "sh") == "", "what was right is not overruled"


TIMES = st.integers(0, RTT_MAX_MS)
HONEST = st.lists(st.tuples(st.integers(20, 40), st.integers(60, 90)), min_size=4, max_size=12)


@given(
    HONEST, st.lists(st.tuples(st.sampled_from(["near", "far"]), TIMES), max_size=20), st.randoms(use_true_random=False)
)
def test_one_hostile_user_never_moves_a_prefix(
    honest: list[tuple[int, int]], lies: list[tuple[str, int]], random: Random
):
    """Whatever it says, how often and when: `far` is never given, and `near` is not taken away from who is far."""
    events = [(f"u{n}", {"near": near, "far": far}) for n, (near, far) in enumerate(honest)]
    events += [("liar", {name: ms}) for name, ms in lies]
    random.shuffle(events)
    table = RttTable(["near", "far", "other"])
    for user, times in events:
        table.report(1, user, times, NOW)
        assert region(table) in {"", "near"}
        assert region(table, "near") == ""
        table.report(1, "liar", {"other": 0}, NOW)
    assert region(table, "far") == ("near" if len(honest) >= REPORTERS_MIN else region(table, "far"))


# ---------------------------------------------------------------- against a plain list of reports

REGIONS = ("a", "b", "c")
PREFIXES_MAX = 3
EXPIRY_MS = 100


class TableAgainstList(RuleBasedStateMachine):
    """Every report that ever came, searched anew at each question."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000
        self.table = RttTable(REGIONS, prefixes_max=PREFIXES_MAX, expiry_ms=EXPIRY_MS)
        self.reports: list[tuple[int, str, str, int, int]] = []
        self.recent: list[int] = []
        """Prefixes that may be held, the one reported on or asked for last at the end."""
        self.nearest: dict[int, str] = {}

    def medians(self, prefix: int) -> dict[str, tuple[int, int]]:
        """Region to (median, reporters)."""
        found = {}
        for name in REGIONS:
            newest: dict[str, tuple[int, int]] = {}
            for whose, user, of, ms, at in self.reports:
                if (whose, of) == (prefix, name):
                    newest.pop(user, None)
                    newest[user] = ms, at
            last = [ms for ms, at in [*newest.values()][-REPORTS:] if at + EXPIRY_MS > self.now]
            if len(last) >= REPORTERS_MIN:
                found[name] = median_low(last), len(last)
        return found

    def is_measured(self, prefix: int, name: str) -> bool:
        return any((whose, of) == (prefix, name) and at + EXPIRY_MS > self.now for whose, _, of, _, at in self.reports)

    def judge(self, prefix: int) -> dict[str, tuple[int, int]]:
        medians = self.medians(prefix)
        if len(medians) < 2:
            self.nearest[prefix] = ""
            return medians
        best = min(medians, key=lambda name: (medians[name][0], name))
        old = self.nearest.get(prefix, "")
        if old not in medians or medians[old][0] >= medians[best][0] + MARGIN_MS:
            self.nearest[prefix] = best
        return medians

    @rule(
        prefix=st.integers(1, PREFIXES_MAX + 1),
        users=st.lists(st.integers(0, 11), min_size=1, max_size=6),
        times=st.dictionaries(st.sampled_from(REGIONS), st.integers(0, 40), min_size=1),
    )
    def report(self, prefix: int, users: list[int], times: dict[str, int]) -> None:
        if prefix not in self.recent and len(self.recent) == PREFIXES_MAX:
            gone = self.recent.pop(0)
            self.nearest.pop(gone, None)
            self.reports = [report for report in self.reports if report[0] != gone]
        for user in users:
            self.table.report(prefix, f"u{user}", times, Instant(self.now))
            self.reports += [(prefix, f"u{user}", name, ms, self.now) for name, ms in times.items()]
            self.judge(prefix)
        self.touch(prefix)

    @rule(prefix=st.integers(1, PREFIXES_MAX + 1), instead_of=st.sampled_from([*REGIONS, ""]))
    def ask(self, prefix: int, instead_of: str) -> None:
        medians = self.judge(prefix)
        nearest = self.nearest[prefix]
        expected = None
        if nearest:
            other_ms = medians.get(instead_of, (-1, 0))[0]
            if other_ms >= medians[nearest][0] + MARGIN_MS or not self.is_measured(prefix, instead_of):
                expected = Learned(nearest, *medians[nearest], instead_of, other_ms)
        assert self.table.learned(prefix, instead_of, Instant(self.now)) == expected
        if prefix in self.recent:
            if any(whose == prefix and at + EXPIRY_MS > self.now for whose, _, _, _, at in self.reports):
                self.touch(prefix)
            else:
                self.recent.remove(prefix)
                self.nearest.pop(prefix)

    def touch(self, prefix: int) -> None:
        self.recent = [other for other in self.recent if other != prefix] + [prefix]

    @rule(ms=st.integers(0, EXPIRY_MS))
    def wait(self, ms: int) -> None:
        self.now += ms

    @invariant()
    def invariants_hold(self) -> None:
        self.table.check_invariants()
        assert len(self.table) == len(self.recent), "I1"


TestTableAgainstList = TableAgainstList.TestCase
TestTableAgainstList.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
