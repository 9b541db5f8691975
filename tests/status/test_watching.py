"""The owner's side of watches: users of whom nothing is known yet are looked at again, each in its turn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from base.clock import Instant
from base.ids import Epoch, Incarnation
from base.metrics import Metrics
from status.api import Notices, Watch
from status.core.visibility import UNKNOWN, Presence, Sight
from status.metrics import PresenceMetrics
from status.watching import UNSURE_LOOKS_PER_TICK, Watching
from tests.status.core.status_node import GATE, A

ONLINE = Presence("online")
TICK_MS = 100


class Owner:
    """An owner of every partition that knows of its users what a test says."""

    def __init__(self) -> None:
        self.now = Instant(1_000)
        self.seen: dict[str, Presence] = {}
        self.told: dict[str, Presence] = {}
        ownership: Any = SimpleNamespace(silent=lambda _: frozenset(), store=lambda _: object())
        sights: Any = SimpleNamespace(sight=self.sight)
        table: Any = SimpleNamespace(table=SimpleNamespace(epoch=Epoch(1), owner_epoch=lambda _: Epoch(1)))
        peers: Any = SimpleNamespace(
            serve=lambda *_: None, stream_of=lambda _: SimpleNamespace(push=lambda _, notices: self.push(notices))
        )
        site: Any = SimpleNamespace(name=A, incarnation=Incarnation(1))
        self.watching = Watching(
            site,
            ownership,
            sights,
            table,
            peers=peers,
            observe=lambda: self.now,
            metrics=PresenceMetrics(Metrics("a")),
            grace_ms=0,
            jitter_ms=0,
        )

    def sight(self, now: Instant, user: str) -> Sight:
        assert now == self.now
        return self.seen.get(user, UNKNOWN)

    def push(self, notices: Notices) -> None:
        self.told.update({notice.user: shown.presence for notice in notices.notices for shown in notice.shown})

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.now = Instant(self.now + TICK_MS)
            self.watching.tick(self.now)


def test_who_stays_unknown_holds_up_nobody():
    """Each has its turn: also the first of very many, of whom the others are never known."""
    owner = Owner()
    users = [f"u{number}" for number in range(5 * UNSURE_LOOKS_PER_TICK)]
    owner.watching._watch(Watch(Epoch(1), is_anew=True, added={user: ["v"] for user in users}, removed={}), GATE)
    assert set(owner.told.values()) == {UNKNOWN}
    owner.tick(7)
    found = [users[0], users[len(users) // 2], users[-1]]
    owner.seen = dict.fromkeys(found, ONLINE)
    owner.tick(6)
    assert [owner.told[user] for user in found] == [ONLINE] * 3
    assert owner.watching.statistics()["unsure"] == len(users) - 3
