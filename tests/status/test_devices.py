"""The device policy at the owner: who has to go is told so, however many have to go at once."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from base.ids import NodeId
from base.metrics import Metrics
from status import devices
from status.api import Evict
from status.core.ownership import Turn
from status.core.partitions import partition_of
from status.core.policy import DevicePolicy
from status.core.records import Kind, packed
from status.devices import REPEAT_MS, Devices
from status.metrics import PresenceMetrics
from tests.status.core.status_node import GATE, TABLE, A, Node, at


def users(count: int) -> list[str]:
    """Names of users of partition 0, the one that the node owns."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        if partition_of(f"user-{number}") == 0:
            found.append(f"user-{number}")
        number += 1
    return found


class Owner:
    """A status node that one access node reports to, and what the device policy makes it tell that one."""

    def __init__(self) -> None:
        self.node = Node(A, GATE)
        self.told: list[Evict] = []
        stream = SimpleNamespace(push=lambda _, evict: self.told.append(evict))
        site: Any = SimpleNamespace(name=A)
        peers: Any = SimpleNamespace(stream_of=lambda node: stream if node == GATE else None)
        metrics = PresenceMetrics(Metrics("a"))
        policy = DevicePolicy("one", "newest")
        self.devices = Devices(site, policy, self.node.core, peers=peers, metrics=metrics)
        self.node.read(at(0), TABLE)
        self.beat(floor=0)
        self.beat(floor=0)
        self.ms = 0

    def beat(self, *entries: bytes, user: str = "u", floor: int | None = None, node: NodeId = GATE) -> None:
        self.node.beat(at(0), *entries, user=user, floor=floor, node=node)
        self.devices.changed(at(0), self.node.core.take_turns(), self.node.core.take_changes())

    def connect_twice(self, names: Iterable[str]) -> None:
        for number, user in enumerate(names):
            for conn in (2 * number + 1, 2 * number + 2):
                body = msgspec.msgpack.encode((f"{user}/{conn % 2}", "phone", "ios", GATE, "online", conn))
                self.beat(packed(conn, conn, Kind.OPEN, body), user=user)

    def close_told(self) -> None:
        """The access node closes whom it was told to close."""
        for evict in self.told:
            store = self.node.core.store(0)
            assert store is not None
            for entry in store.open_of(evict.user):
                if evict.session.encode() in entry:
                    conn = int.from_bytes(entry[2:8], "big")
                    self.beat(packed(conn, 1_000 + conn, Kind.CLOSED, b""), user=evict.user)
        self.told.clear()

    def tick(self) -> None:
        self.ms += REPEAT_MS
        self.node.beat(at(self.ms))
        self.devices.tick(at(self.ms))

    def left(self, names: Iterable[str]) -> int:
        """How many users have a connection too many."""
        store = self.node.core.store(0)
        assert store is not None
        return sum(len(store.open_of(user)) > 1 for user in names)


NAMES = users(7)


def test_the_older_connection_has_to_go():
    """At once, and again every second while it is still there."""
    owner = Owner()
    owner.connect_twice(NAMES[:1])
    assert [evict.session for evict in owner.told] == [f"{NAMES[0]}/1"]
    owner.tick()
    assert len(owner.told) == 2
    owner.close_told()
    owner.tick()
    assert owner.told == []


@pytest.mark.parametrize("undecided_max", [100, 2, 1])
def test_whoever_has_to_go_goes_however_many_they_are(monkeypatch: pytest.MonkeyPatch, undecided_max: int):
    """For whom there is no room at first, there is when others have gone: remembered by user, or by partition."""
    monkeypatch.setattr(devices, "EVICTING_MAX", 2)
    monkeypatch.setattr(devices, "UNDECIDED_MAX", undecided_max)
    owner = Owner()
    owner.connect_twice(NAMES)
    assert len(owner.told) == 2
    assert owner.left(NAMES) == len(NAMES)
    for _ in range(len(NAMES)):
        owner.close_told()
        owner.tick()
    assert owner.left(NAMES) == 0


def test_partitions_wait_while_there_is_no_room(monkeypatch: pytest.MonkeyPatch):
    """They would be looked at in vain, a pass over all their users each."""
    monkeypatch.setattr(devices, "EVICTING_MAX", 1)
    owner = Owner()
    owner.connect_twice(NAMES)
    owner.devices._undecided.clear()  # as if it had just begun to serve the partition
    owner.devices.changed(at(0), [Turn(0, owner.node.core.table.owner_epoch(0), is_served=True)], [])  # type: ignore[union-attr]
    owner.tick()
    assert list(owner.devices._to_check) == [0]
    for _ in range(len(NAMES) + 1):
        owner.close_told()
        owner.tick()
    assert owner.left(NAMES) == 0
    assert not owner.devices._to_check
