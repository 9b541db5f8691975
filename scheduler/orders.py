"""What operators ordered, as the registry keeps it: cordons, lists of users, rollouts, policies, the rebalancing.

    scheduler/cordons/<node>     who cordoned it, when, why
    scheduler/lists/<name>       a list for conditions, one value a line
    scheduler/rollouts/<name>    a rollout: its document, its state, who changed what
    scheduler/policy             the policy in force, the shadow policy, who changed what
    scheduler/rebalance          the last order to rebalance
    scheduler/moves              how moving live connections is getting on

All schedulers follow them. An entry that cannot be read, of another version say, leaves the last good one in force: it
is logged, counted, and shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from base.clock import Clock
from base.core.registry import Entry
from base.errors import StoreError
from base.log import logger
from base.registry import Registry, follow
from scheduler.core.moving import MoveRequest
from scheduler.core.policy import DEFAULT_POLICY, Policy, parse_policy
from scheduler.core.rollout import Rollout
from scheduler.core.rollout_document import parse_rollout
from scheduler.core.rollout_record import Change, RolloutRecord

__all__ = ["CORDONS", "LISTS", "MOVES", "POLICY", "PREFIX", "REBALANCE", "ROLLOUTS", "Cordon", "Orders", "PolicyRecord"]
__all__ += ["MovesRecord", "RebalanceRecord", "RunningRollout"]

PREFIX = "scheduler/"
CORDONS = "scheduler/cordons/"
LISTS = "scheduler/lists/"
ROLLOUTS = "scheduler/rollouts/"
POLICY = "scheduler/policy"
REBALANCE = "scheduler/rebalance"
MOVES = "scheduler/moves"

T = TypeVar("T")


class Cordon(msgspec.Struct, frozen=True):
    """A node that gets no newcomers. `at` is wall time in ms."""

    at: int
    who: str
    reason: str = ""


class PolicyRecord(msgspec.Struct, frozen=True):
    """The documents of the policies, empty for the built-in one and for no shadow."""

    revision: int
    document: str = ""
    shadow: str = ""
    history: tuple[Change, ...] = ()


class RebalanceRecord(msgspec.Struct, frozen=True):
    """The last order to even out live connections. `at` is wall time in ms."""

    request: MoveRequest
    at: int
    who: str
    is_aborted: bool = False
    is_complete: bool = False
    """It was carried out; whatever is uneven later is not its concern."""
    is_complete: bool = False
    """Whoever moved wrote that nothing is left to do."""


class MovesRecord(msgspec.Struct, frozen=True):
    """How the moves of live connections are getting on, as the scheduler that carries them out told last.

    `request` is the id of the request, `plan` that of what was made of it; `is_complete` once nobody is left to move.
    """

    at: int
    mover: str
    request: str
    plan: str
    is_complete: bool
    progress: dict[str, Any]


class RunningRollout(msgspec.Struct, frozen=True):
    """A rollout's record with its document parsed, and the index for compare-and-set."""

    record: RolloutRecord
    rollout: Rollout
    index: int


class Orders:
    """See the module. Everything is empty until the registry was read for the first time."""

    def __init__(self, registry: Registry, clock: Clock, *, node: str) -> None:
        self.cordons: Mapping[str, Cordon] = {}
        self.lists: Mapping[str, frozenset[str]] = {}
        self.rollouts: Mapping[str, RunningRollout] = {}
        """By name, in the order in which they are asked."""
        self.policy: Policy = DEFAULT_POLICY
        self.shadow: Policy | None = None
        self.policy_record = PolicyRecord(0)
        self.rebalance: RebalanceRecord | None = None
        self.moves: MovesRecord | None = None
        self.bad: Mapping[str, str] = {}
        """What cannot be read, by key, and why."""
        self.is_known = asyncio.Event()
        """Set once the registry was read."""
        self._policy_faults = ""
        self._registry = registry
        self._clock = clock
        self._changed: list[Callable[[], None]] = []
        self._log = logger(node=node)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call whenever anything changed."""
        self._changed.append(listener)

    async def run(self) -> None:
        """Follow the registry until cancelled; the last view stays good while it is away."""
        async for view in follow(self._registry.scan, PREFIX, self._clock, on_outage=self._outage):
            self.read(view.items)
            self.is_known.set()

    def read(self, entries: tuple[Entry, ...]) -> None:
        """Take all entries under the prefix."""
        bad: dict[str, str] = {}
        cordons, lists, rollouts, single = self._by_kind(entries, bad)
        for key in bad.keys() - self.bad.keys():
            self._log.error("order_unreadable", key=key, error=bad[key])
        self.cordons, self.lists = cordons, lists
        # The older rollout first: a later one does not take away what an earlier one has.
        self.rollouts = dict(sorted(rollouts.items(), key=lambda item: (item[1].record.created_at, item[0])))
        self.rebalance = single.get(REBALANCE)
        self.moves = single.get(MOVES)
        self._take_policies(single.get(POLICY, PolicyRecord(0)), bad)
        self.bad = bad
        for listener in self._changed:
            listener()

    def _by_kind(
        self, entries: tuple[Entry, ...], bad: dict[str, str]
    ) -> tuple[dict[str, Cordon], dict[str, frozenset[str]], dict[str, RunningRollout], dict[str, Any]]:
        cordons: dict[str, Cordon] = {}
        lists: dict[str, frozenset[str]] = {}
        rollouts: dict[str, RunningRollout] = {}
        single: dict[str, Any] = {}
        # By where it goes: how it is read, and what is good for one that cannot be.
        kinds: tuple[tuple[str, dict[str, Any], Callable[[Entry], Any], Callable[[str], Any]], ...] = (
            (CORDONS, cordons, _read(Cordon), lambda _: Cordon(0, "", "the order cannot be read")),
            (LISTS, lists, _lines, self.lists.get),
            (ROLLOUTS, rollouts, self._rollout, self.rollouts.get),
            (POLICY, single, _read(PolicyRecord), lambda _: self.policy_record),
            (REBALANCE, single, _read(RebalanceRecord), lambda _: None),
            (MOVES, single, _read(MovesRecord), lambda _: None),
        )
        for entry in entries:
            for prefix, into, read, fallback in kinds:
                if entry.key.startswith(prefix):
                    name = entry.key if into is single else entry.key.removeprefix(prefix)
                    try:
                        into[name] = read(entry)
                    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
                        bad[entry.key] = str(error)
                        good = fallback(name)
                        if good is not None:
                            into[name] = good
                    break
        return cordons, lists, rollouts, single

    def wrote(self, running: RunningRollout) -> None:
        """Take a rollout that this scheduler just wrote, before the registry shows it."""
        known = self.rollouts.get(running.record.name)
        if known is not None and known.index >= running.index:
            return
        rollouts = {**self.rollouts, running.record.name: running}
        self.rollouts = dict(sorted(rollouts.items(), key=lambda item: (item[1].record.created_at, item[0])))
        for listener in self._changed:
            listener()

    def _rollout(self, entry: Entry) -> RunningRollout:
        record = msgspec.json.decode(entry.value, type=RolloutRecord)
        known = self.rollouts.get(record.name)
        if known is not None and known.index > entry.index:
            return known  # written by this scheduler after the view was made
        if known is not None and known.record.document == record.document:
            return RunningRollout(record, known.rollout, entry.index)
        rollout = parse_rollout(record.document)
        if not isinstance(rollout, Rollout):
            raise ValueError("; ".join(f"line {fault.line}: {fault.message}" for fault in rollout))  # noqa: TRY004
        return RunningRollout(record, rollout, entry.index)

    def _take_policies(self, record: PolicyRecord, bad: dict[str, str]) -> None:
        if record != self.policy_record:
            self.policy_record = record
            self._policy_faults = self._parse_policies(record)
        if self._policy_faults:  # as long as they are there, and not only when they came
            bad.setdefault(POLICY, self._policy_faults)

    def _parse_policies(self, record: PolicyRecord) -> str:
        """Go by what can be read, and return what cannot."""
        faults = []
        for field, document in (("policy", record.document), ("shadow", record.shadow)):
            default = DEFAULT_POLICY if field == "policy" else None
            parsed = parse_policy(document) if document else default
            if isinstance(parsed, tuple):
                faults += [f"{field}, line {fault.line}: {fault.message}" for fault in parsed]
            elif field == "policy":
                assert parsed is not None
                self.policy = parsed
            else:
                self.shadow = parsed
        return "; ".join(faults)

    def _outage(self, error: StoreError) -> None:
        self._log.warning("registry_unreachable", error=str(error))


def _read(kind: type[T]) -> Callable[[Entry], T]:
    decode = msgspec.json.Decoder(kind).decode
    return lambda entry: decode(entry.value)


def _lines(entry: Entry) -> frozenset[str]:
    return frozenset(entry.value.decode().split("\n")) - {""}
