"""The simulated world itself: if it lied, every history would prove nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.clock import Instant, SimClock
from roadstead.sim.dice import Dice
from roadstead.sim.faults import Faults
from roadstead.sim.host import Host, LocalClock
from roadstead.sim.network import Network
from roadstead.sim.report import Violation
from roadstead.sim.world import SimWorld

PERIOD_MS = 10
QUIET = Faults(delay_ms_min=1, delay_ms_max=1, drift_ppm_max=0).healed()
"""Nothing happens by chance, and every message takes 1 ms."""


class Chatter:
    """Sends a number to every other host each `PERIOD_MS`, and keeps what it gets."""

    def __init__(self, host: Host, peers: list[str]) -> None:
        self.host = host
        self.peers = [peer for peer in peers if peer != host.name]
        self.heard: list[tuple[Instant, str, object]] = []
        self.woken: list[Instant] = []
        self.due_at = Instant(0)

    def start(self, now: Instant) -> None:
        self.due_at = Instant(now + PERIOD_MS)
        self.host.disk["lives"] = self.host.disk.get("lives", 0) + 1

    def receive(self, now: Instant, source: str, message: object) -> None:
        self.heard.append((now, source, message))

    def wake(self, now: Instant) -> None:
        self.woken.append(now)
        self.due_at = Instant(now + PERIOD_MS)
        for peer in self.peers:
            self.host.send(peer, len(self.woken))

    def next_deadline(self) -> Instant | None:
        return self.due_at


class Town:
    """A world of chatters; `of` is each one's newest life."""

    def __init__(self, seed: int = 0, faults: Faults = QUIET, names: str = "ab") -> None:
        self.world = SimWorld(seed, faults)
        self.of: dict[str, Chatter] = {}
        self.lives: list[Chatter] = []
        for name in names:
            self.world.add(name, self.factory(list(names)))

    def factory(self, names: list[str]) -> Callable[[Host], Chatter]:
        def make(host: Host) -> Chatter:
            chatter = self.of[host.name] = Chatter(host, names)
            self.lives.append(chatter)
            return chatter

        return make

    def heard_by(self, name: str) -> list[object]:
        return [message for _, _, message in self.of[name].heard]


# ---------------------------------------------------------------- I1: determinism


def history(seed: int) -> str:
    town = Town(seed, Faults(), "abcd")
    town.world.run(20_000)
    return town.world.trace_digest()


def test_a_seed_is_a_history():
    """I1."""
    assert history(7) == history(7)


def test_other_seeds_are_other_histories():
    """I1, else a thousand seeds would test one."""
    assert len({history(seed) for seed in range(5)}) == 5


def test_every_fault_strikes_in_a_history_of_a_minute():
    """What never happens is not tested."""
    world = Town(1, Faults(), "abcd").world
    seen: set[str] = set()
    world.on_event(lambda: seen.update(world.last_lines()))
    world.run(60_000)
    for sign in ("crashes", "stalls", "resumes", "cut off", "starts life 2", "lost at the cut", "nobody is up"):
        assert any(sign in line for line in seen), sign


# ---------------------------------------------------------------- time


def test_an_actor_is_woken_at_its_deadline():
    """On its own clock, to the millisecond, when nothing drifts."""
    town = Town()
    town.world.run(35)
    started = town.world.local("a") - 35
    assert [at - started for at in town.of["a"].woken] == [10, 20, 30]


def test_an_actor_whose_deadline_is_past_does_not_hold_time_still():
    """It is woken at the next instant, as a loop without anything to wait for runs on."""

    class Restless(Chatter):
        def wake(self, now: Instant) -> None:
            self.woken.append(now)

    world = SimWorld(0, QUIET)
    lives: list[Restless] = []

    def make(host: Host) -> Restless:
        lives.append(Restless(host, []))
        return lives[-1]

    world.add("a", make)
    world.run(15)
    assert len(lives[0].woken) == 6


def test_an_actor_may_have_no_deadline():
    """Then only messages wake it."""

    class Sleeper(Chatter):
        def next_deadline(self) -> Instant | None:
            return None

    world = SimWorld(0, QUIET)
    lives: list[Sleeper] = []
    world.add("a", lambda host: lives.append(Sleeper(host, [])) or lives[-1])
    world.run(1_000)
    assert lives[0].woken == []


@given(drift_ppm=st.integers(-500_000, 500_000), true_ms=st.integers(0, 10**9))
def test_a_local_clock_drifts_as_the_clock_that_tests_use(drift_ppm: int, true_ms: int):
    """The twin is `SimClock`."""
    twin = SimClock(start_ms=77, drift_ppm=drift_ppm)
    twin.advance(true_ms)
    assert LocalClock(start_ms=77, drift_ppm=drift_ppm).at(true_ms) == twin.monotonic()


@given(drift_ppm=st.integers(-500_000, 500_000), wait_ms=st.integers(1, 10**9))
def test_a_local_deadline_is_reached_at_the_first_true_instant(drift_ppm: int, wait_ms: int):
    """Not one earlier."""
    clock = LocalClock(start_ms=77, drift_ppm=drift_ppm)
    deadline = Instant(77 + wait_ms)
    reached = clock.reaches(deadline)
    assert clock.at(reached) >= deadline > clock.at(reached - 1)


# ---------------------------------------------------------------- the network


def test_a_cut_stops_one_direction_only():
    """A one-way partition, the kind that fools failure detectors."""
    town = Town()
    town.world.run(25)
    town.world.cut("a", "b", lasting_ms=50)
    town.world.run(75)
    assert town.heard_by("b") == [1, 2]
    assert town.heard_by("a") == [1, 2, 3, 4, 5, 6, 7]


def test_messages_flow_again_when_the_cut_is_over():
    """Those sent meanwhile are gone."""
    town = Town()
    town.world.run(25)
    town.world.cut("a", "b", lasting_ms=50)
    town.world.run(95)
    assert town.heard_by("b") == [1, 2, 8, 9]


def test_a_cut_takes_what_is_in_flight():
    """I1 of the network: nothing lands during a cut."""
    town = Town()
    town.world.run(10)
    town.world.cut("a", "b", lasting_ms=5)
    town.world.run(15)
    assert town.heard_by("b") == []


def test_every_message_may_be_lost_or_doubled():
    """At a thousand in a thousand, all are."""
    lossy, doubling = (
        Network(Dice(0), Faults(loss_permille=1_000)),
        Network(Dice(0), Faults(loss_permille=0, duplicate_permille=1_000)),
    )
    assert lossy.fates(0, "a", "b") == []
    assert len(doubling.fates(0, "a", "b")) == 2


def test_each_link_has_its_own_delays_and_a_rare_tail():
    """Within what the faults say."""
    faults = Faults(loss_permille=0, duplicate_permille=0)
    network = Network(Dice(0), faults)
    delays = [network.fates(0, "a", "b")[0] for _ in range(5_000)]
    ordinary = [ms for ms in delays if ms <= faults.delay_ms_max]
    assert faults.delay_ms_min <= min(delays)
    assert max(delays) <= faults.tail_ms_max
    assert 0.95 < len(ordinary) / len(delays) < 1
    other = [network.fates(0, "b", "a")[0] for _ in range(5_000)]
    assert min(other) != min(delays)


def test_a_healed_network_delivers_everything_once_and_soon():
    """I2 of the network."""
    network = Network(Dice(0), Faults())
    network.cut("a", "b", until=1_000_000)
    network.heal()
    fates = [network.fates(0, "a", "b") for _ in range(5_000)]
    assert all(len(delays) == 1 and delays[0] <= Faults().delay_ms_max for delays in fates)


# ---------------------------------------------------------------- faults of hosts


def test_a_stalled_host_gets_everything_late_and_at_once():
    """SIGSTOP: nothing is lost, and the host finds out by its own clock."""
    town = Town()
    town.world.run(15)
    town.world.stall("b", lag_ms=50)
    town.world.run(64)
    assert town.heard_by("b") == [1]
    town.world.run(66)
    assert town.heard_by("b") == [1, 2, 3, 4, 5, 6]
    resumed = town.world.local("b") - 1
    assert [at for at, _, _ in town.of["b"].heard[1:]] == [resumed] * 5
    assert town.of["b"].woken[-1] - resumed in (0, 1)
    assert town.world.lost_ms("b") == 50
    assert town.world.lost_ms("a") == 0


def test_after_a_stall_either_the_timer_or_the_messages_come_first():
    """A real loop promises neither, so there are seeds for both."""
    orders: set[str] = set()
    for seed in range(20):
        town = Town(seed)
        town.world.run(15)
        town.world.stall("b", lag_ms=50)
        town.world.run(66)
        lines = [line.split(" ", 1)[1] for line in town.world.last_lines()]
        lines = lines[lines.index("b resumes, 5 messages wait") :]
        orders.add("timer" if lines.index("b wakes") < lines.index("a > b: 2") else "messages")
    assert orders == {"timer", "messages"}


def test_a_crashed_host_restarts_as_a_greater_incarnation():
    """Its disk is all that it keeps."""
    town = Town()
    town.world.run(25)
    town.world.crash("b", down_ms=30)
    assert not town.world.is_up("b")
    town.world.run(54)
    assert not town.world.is_up("b")
    town.world.run(56)
    assert town.world.is_up("b")
    assert town.of["b"].host.incarnation == 2
    assert town.of["b"].host.disk == {"lives": 2}
    assert town.heard_by("b") == []


def test_a_former_life_is_never_called_again():
    """I3, with a wake-up and messages on their way to it."""
    town = Town()
    town.world.run(25)
    former = town.of["b"]
    heard, woken = len(former.heard), len(former.woken)
    town.world.crash("b", down_ms=1)
    town.world.run(1_000)
    assert (len(former.heard), len(former.woken)) == (heard, woken)
    assert town.lives[-1].heard


def test_what_waits_for_a_stalled_host_is_lost_when_it_crashes():
    """The socket buffers die with the process, and the end of the stall finds nobody."""
    town = Town()
    town.world.run(15)
    town.world.stall("b", lag_ms=50)
    town.world.run(45)
    town.world.crash("b", down_ms=0)
    town.world.run(60)
    assert town.heard_by("b") == [5]
    town.world.run(70)
    assert town.world.lost_ms("b") == 0


def test_healing_ends_everything_at_once():
    """Cuts close, the stalled resume, the crashed restart."""
    town = Town(names="abcd")
    town.world.run(15)
    town.world.crash("a", down_ms=100_000)
    town.world.stall("b", lag_ms=100_000)
    town.world.cut("c", "d", lasting_ms=100_000)
    town.world.heal()
    town.world.run(35)
    assert town.of["a"].host.incarnation == 2
    assert len(town.of["b"].woken) == 3
    assert town.world.lost_ms("b") == 0
    assert [message for _, source, message in town.of["d"].heard if source == "c"] == [1, 2, 3]


def test_nothing_strikes_after_healing():
    """Which is what makes a bound on recovery worth asserting."""
    town = Town(3, Faults(), "abcd")
    town.world.run(10_000)
    town.world.heal()
    town.world.run(10_000 + Faults().tail_ms_max)
    lives, lost_ms = len(town.lives), [town.world.lost_ms(name) for name in "abcd"]
    assert lives > 4
    assert sum(lost_ms) > 0
    town.world.run(60_000)
    assert (len(town.lives), [town.world.lost_ms(name) for name in "abcd"]) == (lives, lost_ms)


def test_healing_resumes_a_stalled_host_once():
    """The end that the stall had planned for itself finds it running."""
    town = Town()
    town.world.run(15)
    town.world.stall("b", lag_ms=50)
    town.world.run(35)
    town.world.heal()
    town.world.run(200)
    assert town.world.lost_ms("b") == 20
    assert town.heard_by("b") == list(range(1, 20))


# ---------------------------------------------------------------- checkers


def test_every_checker_looks_after_every_call():
    """I4: starts, messages and wake-ups alike."""
    town = Town()
    looks: list[int] = []
    town.world.on_event(lambda: looks.append(town.world.now))
    town.world.on_event(lambda: None)
    town.world.run(11)
    assert looks == [0, 0, 10, 10, 11, 11]
    report = town.world.report({"x": 1})
    assert (report.seed, report.simulated_ms, report.events, report.checks) == (0, 11, 6, 12)
    assert (report.digest, report.counts) == (town.world.trace_digest(), {"x": 1})


def test_a_violation_says_the_seed_the_time_and_what_came_before():
    """All that is needed to see it again."""
    town = Town(seed=5)
    town.world.run(0)
    town.world.on_event(lambda: town.world.fail("b heard of it") if town.heard_by("b") else None)
    with pytest.raises(Violation) as caught:
        town.world.run(1_000)
    violation = caught.value
    assert (violation.seed, violation.at, violation.message) == (5, 11, "b heard of it")
    assert str(violation) == "seed 5, at 11 ms: b heard of it"
    assert violation.trace[-1] == "11 a > b: 1"


def test_an_assertion_of_a_core_is_a_violation():
    """`check_invariants` of any actor ends the history with its seed."""

    class Faulty(Chatter):
        def wake(self, now: Instant) -> None:
            assert now < 0, "I9"

    world = SimWorld(6, QUIET)
    world.add("a", lambda host: Faulty(host, []))
    with pytest.raises(Violation, match="seed 6, at 10 ms: assertion failed: I9"):
        world.run(1_000)
