"""Admission: each limit on its own, what each refusal says and costs, and what the node watches of itself."""

from __future__ import annotations

import asyncio
import builtins
import resource
import time
from typing import Any

import pytest

from access import admission as module
from access.admission import Admission
from access.config import AccessConfig
from access.metrics import AccessMetrics
from base.clock import SimClock
from base.errors import Draining, Overloaded, PermissionDenied, Retry
from base.metrics import Metrics

ANN, BOB = "192.0.2.1", "192.0.2.2"
UNLIMITED = {"accepts_per_second": 0}


class Door:
    """An admission on a simulated clock, and what it counted."""

    def __init__(self, **config: Any) -> None:
        self.clock = SimClock()
        self.metrics = AccessMetrics(Metrics("test"), node="access-1", connections=lambda: 0)
        self.admission = Admission(AccessConfig(**(UNLIMITED | config)), self.clock, self.metrics)

    def enters(self, address: str = ANN, origin: str | None = None) -> None:
        """Somebody is checked and lets himself in, or is refused."""
        self.admission.check(address, origin)
        self.admission.enter(address)

    def is_refused(self, what: str, address: str = ANN) -> int:
        """Return after how many ms to come back."""
        with pytest.raises(Overloaded) as caught:
            self.admission.check(address, None)
        assert caught.value.detail["what"] == what
        wait_ms: int = caught.value.detail["retry_after_ms"]
        assert wait_ms > 0
        return wait_ms

    def refused(self) -> dict[str, int]:
        """How many were refused, by reason."""
        samples = self.metrics.refused._counter.collect()[0].samples
        return {sample.labels["reason"]: int(sample.value) for sample in samples if sample.name.endswith("_total")}


def test_whoever_is_let_in_is_counted_until_he_leaves() -> None:
    """Those who are here, and those who came."""
    door = Door()
    for address in (ANN, BOB, ANN):
        door.enters(address)
    door.admission.leave(ANN)
    assert (door.admission.open, door.admission.accepted) == (2, 3)
    assert door.refused() == {}


def test_a_full_node_takes_one_for_each_who_leaves() -> None:
    """It says when to come back."""
    door = Door(capacity=2)
    door.enters()
    door.enters(BOB)
    assert door.is_refused("connections") == module.BACK_MS
    door.admission.leave(BOB)
    door.enters()
    door.is_refused("connections", BOB)
    assert door.refused() == {"full": 2}


def test_a_draining_node_takes_nobody_and_says_to_ask_the_scheduler() -> None:
    """Before any other reason: that one is final."""
    door = Door(capacity=1)
    door.enters()
    door.admission.is_draining = True
    with pytest.raises(Draining) as caught:
        door.admission.check(ANN, None)
    assert caught.value.retry is Retry.REROUTE
    assert caught.value.detail["retry_after_ms"] > 0
    assert door.refused() == {"draining": 1}


def test_a_node_without_memory_takes_nobody_until_it_has_some() -> None:
    """Above nine tenths of the limit, until it is below 85 hundredths."""
    door = Door(memory_bytes_max=1_000)
    for resident, is_taken in ((0, True), (900, True), (901, False), (880, False), (849, True), (880, True)):
        door.admission.resident = resident
        if is_taken:
            door.enters()
        else:
            door.is_refused("memory")
    assert door.refused() == {"memory": 2}


def test_a_page_of_another_origin_is_refused_for_good() -> None:
    """Who is no browser names none."""
    door = Door(origins=("https://app.example.com",))
    door.enters(origin="https://app.example.com")
    door.enters()
    with pytest.raises(PermissionDenied):
        door.admission.check(ANN, "https://evil.example.com")
    assert door.refused() == {"origin": 1}
    assert door.admission.allows_origin("https://app.example.com")
    assert not door.admission.allows_origin("https://evil.example.com")


def test_newcomers_are_let_in_at_the_rate_of_the_node() -> None:
    """Twice as many at once, then as time goes by; who waits as long as he was told gets in."""
    door = Door(accepts_per_second=10)
    for _ in range(20):
        door.enters()
    wait_ms = door.is_refused("accepts_per_second", BOB)
    door.clock.advance(wait_ms - 1)
    assert door.is_refused("accepts_per_second", BOB) == 1
    door.clock.advance(1)
    door.enters(BOB)
    door.is_refused("accepts_per_second")
    door.clock.advance(60_000)
    for _ in range(20):
        door.enters()
    door.is_refused("accepts_per_second")
    assert door.refused() == {"rate": 4}


def test_each_address_has_a_rate_of_its_own() -> None:
    """Of IPv6 addresses a whole /64 is one subscriber's."""
    door = Door(address_accepts_per_second=1)
    for number in range(2):
        door.enters(f"2001:db8::{number}")
    assert door.is_refused("address_accepts_per_second", "2001:db8::ffff") == 1_000
    door.enters("2001:db8:0:1::1")
    door.enters(ANN)
    door.clock.advance(1_000)
    door.enters("2001:db8::ffff")
    assert door.refused() == {"address_rate": 1}


def test_an_address_may_have_only_so_many_connections() -> None:
    """Until one of them leaves."""
    door = Door(address_connections_max=2)
    door.enters()
    door.enters("::ffff:192.0.2.1")
    assert door.is_refused("address_connections") == module.BACK_MS
    door.enters(BOB)
    door.admission.leave(ANN)
    door.enters()
    door.is_refused("address_connections")
    assert door.refused() == {"address": 2}


def test_whoever_was_checked_a_while_ago_is_asked_once_more() -> None:
    """By what is there now and not by rates: a request that took its time has paid for them."""
    door = Door(capacity=2, address_connections_max=1, accepts_per_second=1)
    door.admission.check_room(ANN)
    door.enters(ANN)
    with pytest.raises(Overloaded) as caught:
        door.admission.check_room(ANN)
    assert caught.value.detail["what"] == "address_connections"
    for _ in range(5):
        door.admission.check_room("192.0.2.200")
    door.enters("192.0.2.201")
    with pytest.raises(Overloaded) as caught:
        door.admission.check_room("192.0.2.200")
    assert caught.value.detail["what"] == "connections"
    door.admission.is_draining = True
    with pytest.raises(Draining):
        door.admission.check_room("192.0.2.200")


@pytest.mark.parametrize(
    ("limit", "what"),
    [
        ({"address_accepts_per_second": 1}, "address_accepts_per_second"),
        ({"address_connections_max": 2}, "address_connections"),
    ],
)
def test_an_address_that_has_its_share_takes_nothing_from_others(limit: dict[str, int], what: str) -> None:
    """However often it tries: what it is refused is not taken from the rate of the node."""
    door = Door(accepts_per_second=2, **limit)
    door.enters()
    door.enters()
    for _ in range(100):
        door.is_refused(what)
    door.enters(BOB)
    door.enters(BOB)
    door.is_refused("accepts_per_second", "192.0.2.3")


@pytest.mark.parametrize("reason", ["draining", "full", "memory", "rate"])
def test_what_refuses_everybody_is_known_without_asking_who_it_is(reason: str) -> None:
    """For whoever is so early in the handshake that nothing is known of him; it is counted as any refusal is."""
    door = Door(capacity=3, memory_bytes_max=1_000, accepts_per_second=1)
    door.enters()
    door.enters()
    assert door.admission.refusal_of_all() is None
    if reason == "draining":
        door.admission.is_draining = True
    elif reason == "full":
        door.admission.enter(ANN)
    elif reason == "memory":
        door.admission.resident = 1_000
    else:
        door.is_refused("accepts_per_second")
    before = door.refused().get(reason, 0)
    refusal = door.admission.refusal_of_all()
    assert refusal is not None
    assert refusal.detail["retry_after_ms"] > 0
    assert door.refused() == {reason: before + 1}
    door.clock.advance(1_000)
    assert (door.admission.refusal_of_all() is None) is (reason == "rate")


def test_those_with_the_longest_queues_are_named_to_be_closed() -> None:
    """When too much waits for all together."""
    door = Door(queued_bytes_max=1_048_576)
    assert door.admission.shed({"a": 1_048_576}) == ()
    assert door.admission.shed({"a": 400_000, "b": 800_000, "c": 1}) == ("b",)


# ---------------------------------------------------------------- what it watches


async def test_the_node_watches_its_memory_and_how_late_its_loop_is() -> None:
    """From the system: a loop that was held up for 0.4 s was late by that, but for the rest of a sleep."""
    door = Door()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        watch = tasks.create_task(door.admission.run())
        while not door.admission.resident:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # which lags behind by some pages
        assert 2**20 < door.admission.resident < 1.1 * most
        time.sleep(0.4)  # noqa: ASYNC251 - this is what it has to notice
        while door.admission.lag_s < 0.1:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)
        assert door.admission.lag_s < 5
        while door.admission.lag_s >= 0.1:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)
        watch.cancel()


def test_where_the_system_does_not_tell_the_memory_its_peak_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bytes, as far as the systems agree on what they count in."""

    def fails(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(builtins, "open", fails)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert module._resident_bytes() >= most * 1024
    monkeypatch.setattr(module.sys, "platform", "darwin")
    assert most <= module._resident_bytes() < most * 1024
