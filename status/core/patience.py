"""How long a leader waits for moves that get nowhere: then it ends them, and the pair of nodes has to rest.

Source and target of a move may both reach the leader and not each other. Then the copy never comes to its end: the
source remembers every change for a target that does not ask, and once sealed it answers nobody. Before COMMIT an abort
is always safe, so such a move is *stalled* after a while, to be ended. Its pair *rests* from then on: nothing begins
and nothing is sealed between the two, since it would stall again at once.

Progress is what targets report:

    COPY, CATCHUP   an answer of that source, for whichever partition: a copy waits while others of its pair have turn
    SEAL            ready, which is the next stage: only a small rest is left to copy

PREPARE waits for what all nodes know, and holds nothing up.

Invariants:
    I1  A move is stalled only if this leader saw no progress of it for as long as its stage may last without any.
    I2  A pair rests until `REST_MS` after its last stalled move was seen.
    I3  Nothing is kept of moves that are over.

Nothing here is a fence. A new leader counts anew; patience that ends too early or too late costs time, never truth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from base.clock import Instant
from base.ids import Epoch, NodeId
from status.core.partitions import Move, Stage

__all__ = ["COPY_PATIENCE_MS", "REST_MS", "SEAL_PATIENCE_MS", "Pair", "Patience"]

SEAL_PATIENCE_MS = 3_000
"""For so long a move may be sealed, while nobody is answered. A seal lasts some milliseconds; two lost questions of the
target cost two seconds."""
COPY_PATIENCE_MS = 10_000
"""For so long a move may be in COPY or CATCHUP without an answer of its source at its target."""
REST_MS = 10_000
"""For so long no move of a pair begins or is sealed after one of them stalled."""

Pair = tuple[NodeId, NodeId]
"""Source and target."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What of a move changes with its progress, and since when it did not."""

    stage: Stage
    answers: int
    since: Instant


class Patience:
    """One leader's patience with all moves. `stalled` and `resting` are as of the last look."""

    def __init__(self) -> None:
        self.stalled: frozenset[int] = frozenset()
        """Partitions whose move is to be ended."""
        self._seen: dict[tuple[int, Epoch], _Seen] = {}
        self._rests: dict[Pair, Instant] = {}

    @property
    def resting(self) -> frozenset[Pair]:
        """Pairs that shall begin and seal no move."""
        return frozenset(self._rests)

    def look(self, now: Instant, moves: Iterable[Move], answers: Callable[[NodeId, NodeId], int]) -> None:
        """Compare the moves with what was seen of them last.

        Args:
            now: the instant.
            moves: all moves of the table.
            answers: of a source and a target, how many answers the target says that it took in.
        """
        seen: dict[tuple[int, Epoch], _Seen] = {}
        stalled: list[Move] = []
        for move in moves:
            if move.stage not in _PATIENCE_MS:
                continue
            key = (move.partition, move.move_id)
            count = answers(move.source, move.target) if move.stage is not Stage.SEAL else 0
            last = self._seen.get(key)
            if last is None or (last.stage, last.answers) != (move.stage, count):
                last = _Seen(move.stage, count, now)
            seen[key] = last
            if now >= last.since + _PATIENCE_MS[move.stage]:
                stalled.append(move)
        self._seen = seen
        self.stalled = frozenset(move.partition for move in stalled)
        self._rests = {pair: until for pair, until in self._rests.items() if now < until}
        self._rests.update(((move.source, move.target), Instant(now + REST_MS)) for move in stalled)

    def check_invariants(self) -> None:
        """Assert what one state shows of I1 and I3."""
        assert self.stalled <= {partition for partition, _ in self._seen}, "I3"
        assert not self.stalled or self._rests, "I2"


_PATIENCE_MS = {
    Stage.COPY: COPY_PATIENCE_MS,
    Stage.CATCHUP: COPY_PATIENCE_MS,
    Stage.SEAL: SEAL_PATIENCE_MS,
}
