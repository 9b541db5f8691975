"""What an engine was told and what it decided, as a stream of records; and the same told to another engine.

A recording begins with the engine's birth: its settings and the seed of its dice. So another engine that is told the
same must decide the same, to the last bit; and one with another policy shows what it would have done.

Framing: each record is a MessagePack document after its length in 4 bytes, big-endian. A recording may be cut off
anywhere: what is whole is good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec

from scheduler.core.cohorts import ActiveRollout
from scheduler.core.engine import Credit, Decision, Engine
from scheduler.core.node import AccessNode
from scheduler.core.policy import Policy
from scheduler.core.pools import Dice
from scheduler.core.regions import Region, Regions
from scheduler.core.request import Request
from scheduler.core.snapshot import Settings

__all__ = ["Born", "Configured", "Decided", "LossAccepted", "Observed", "Record", "Replay", "born"]
__all__ += ["encode", "records"]

FORMAT = 1
RECORD_BYTES_MAX = 1 << 26


class Born(msgspec.Struct, frozen=True, tag="born"):
    """The first record: how to make the same engine, with the slots that were given before it."""

    format: int
    scheduler: str
    settings: Settings
    seed: int
    seq: int
    """Number of the last decision before it."""
    credit: Credit = Credit()


class Configured(msgspec.Struct, frozen=True, tag="configured"):
    """`Engine.configure`."""

    at: int
    rollouts: tuple[ActiveRollout, ...]
    policy: Policy
    lists: dict[str, frozenset[str]]
    """What the policy's conditions may name; those of a rollout are with it."""
    regions: tuple[Region, ...]
    default_region: str


class Observed(msgspec.Struct, frozen=True, tag="observed"):
    """`Engine.observe`; `nodes` as they were read off the registry."""

    at: int
    schedulers: int
    nodes: tuple[AccessNode, ...]


class LossAccepted(msgspec.Struct, frozen=True, tag="loss_accepted"):
    """`Engine.accept_loss`."""


class Decided(msgspec.Struct, frozen=True, tag="decided", gc=False):
    """`Engine.decide` and what came of it."""

    request: Request
    decision: Decision


Record = Born | Configured | Observed | LossAccepted | Decided

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


def encode(record: Record) -> bytes:
    """Return the record with its length before it."""
    body = _encoder.encode(record)
    return len(body).to_bytes(4, "big") + body


def records(chunks: Iterable[bytes]) -> Iterator[Record]:
    """Yield the records of a recording that is read in chunks of any size. Raises ValueError for what is none."""
    waiting = bytearray()
    for chunk in chunks:
        waiting += chunk
        at = 0
        while len(waiting) - at >= 4:
            length = int.from_bytes(waiting[at : at + 4], "big")
            if not 0 < length <= RECORD_BYTES_MAX:
                raise ValueError("this is no recording: a record's length is out of bounds")
            if len(waiting) - at - 4 < length:
                break
            try:
                yield _decoder.decode(waiting[at + 4 : at + 4 + length])
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise ValueError(f"this is no recording, or one of another version: {error}") from error
            at += 4 + length
        del waiting[:at]


class Replay:
    """Tells an engine of its own what a recording says. `policy` replaces the recorded ones; None: as it was."""

    def __init__(self, random_of: Callable[[int], Dice], *, policy: Policy | None = None) -> None:
        """`random_of` makes a source from a seed, the same kind that was recorded with."""
        self._random_of = random_of
        self._policy = policy
        self.engine: Engine | None = None

    def tell(self, record: Record) -> Decision | None:
        """Tell one record; return what this engine decides if it is a decision. Raises ValueError out of order."""
        if isinstance(record, Born):
            if record.format != FORMAT:
                raise ValueError(f"this recording has format {record.format}, this version reads {FORMAT}")
            self.engine = Engine(record.settings, self._random_of(record.seed), seq=record.seq, credit=record.credit)
            return None
        engine = self.engine
        if engine is None:
            raise ValueError("this is no recording: it does not begin with its engine")
        match record:
            case Configured():
                engine.configure(
                    rollouts=record.rollouts,
                    policy=self._policy or record.policy,
                    lists=record.lists,
                    regions=Regions(record.regions, default=record.default_region),
                    now=record.at,
                )
            case Observed():
                engine.observe(record.nodes, record.at, schedulers=record.schedulers)
            case Decided():
                return engine.decide(record.request, record.decision.at)
            case _:
                engine.accept_loss()
        return None


def born(scheduler: str, settings: Settings, seed: int, *, seq: int, credit: Credit) -> Born:
    """Return the first record of a recording."""
    return Born(FORMAT, scheduler, settings, seed, seq, credit)
