"""What operators ordered, as the registry keeps it: cordons, lists of users, rollouts, policies, the rebalancing.

    scheduler/cordons/<node>     who cordoned it, when, why
    scheduler/lists/<name>       a list for conditions, one value a line
    scheduler/rollouts/<name>    a rollout: its document, its state, who changed what
    scheduler/policy             the policy in force, the shadow policy, who changed what
    scheduler/rebalance          the last order to rebalance
    scheduler/moves              how moving live connections is getting on

All schedulers follow them. An entry that cannot be read, of another version say, leaves the last good one in force: it
is logged, counted, and shown.

A registry that started over may have lost them all. Without its rollout a canary's nodes are like all others, and
everybody would go to the version that was under trial, or had failed. So what was in force stays, and is written back:
by whichever scheduler is first, and where nobody wrote anything else meanwhile.

A registry may look as if it had started over when nothing but an answer was lost, and it may have been put back as it
was some time ago. An entry that is there as it was, a lock too, shows that it counts as before. Then it lost what was
written after the index that it is at, all of it, and nothing else: what is missing besides was deleted. Where no entry
is there as it was, what is missing was lost; and so was a rollout or a policy that is there as it was some revisions
ago, from a backup of another registry say. In doubt an order that was deleted comes back: to lose a rollout is worse.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from base.clock import Clock, Instant
from base.core.registry import Entry
from base.errors import CasConflict, StoreError
from base.log import logger
from base.registry import Registry, follow
from scheduler.core.moving import MoveRequest
from scheduler.core.policy import DEFAULT_POLICY, Policy, parse_policy
from scheduler.core.rollout import Rollout
from scheduler.core.rollout_document import parse_rollout
from scheduler.core.rollout_machine import misfit
from scheduler.core.rollout_record import Change, RolloutRecord

__all__ = ["CORDONS", "LISTS", "MOVES", "POLICY", "PREFIX", "REBALANCE", "ROLLOUTS", "Cordon", "Orders", "PolicyRecord"]
__all__ += ["BYTES_MAX", "UNREADABLE", "MovesRecord", "RebalanceRecord", "RunningRollout", "rebalance_record"]
__all__ += ["running_rollout"]

PREFIX = "scheduler/"
CORDONS = "scheduler/cordons/"
LISTS = "scheduler/lists/"
ROLLOUTS = "scheduler/rollouts/"
POLICY = "scheduler/policy"
REBALANCE = "scheduler/rebalance"
MOVES = "scheduler/moves"

RESTORE_MS = 1_000
"""How long after a failure it is tried again to write back what the registry lost."""
LOST = "the registry lost it: it stays in force, and is written back"
UNREADABLE = (ValueError, RecursionError)
"""What decoding raises: errors of msgspec and of UTF-8 are ValueErrors."""

KEPT = (CORDONS, LISTS, ROLLOUTS, POLICY, REBALANCE, MOVES)
"""Locks are under the prefix, too, and are no orders."""
BYTES_MAX = 4 * 1024 * 1024
"""Of all orders together. Rollouts get longer by their histories: half of what a message holds is left for that."""

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
        self._entries: dict[str, Entry] = {}
        """The orders of the last view, by key; with those that are to be written back."""
        self._seen: dict[str, Entry] = {}
        """All entries of the last view, by key: locks, too."""
        self._made: dict[str, tuple[int, Any]] = {}
        """What was read of each, and at which index: a list has thousands of lines, and how moves get on is news."""
        self._lost: dict[str, Entry] = {}
        """What is to be written back; the index is what the registry has there now, 0 for nothing."""
        self._registry = registry
        self._clock = clock
        self._changed: list[Callable[[], None]] = []
        self._log = logger(node=node)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call whenever anything changed."""
        self._changed.append(listener)

    async def run(self) -> None:
        """Follow the registry until cancelled; the last view stays good while it is away."""
        index = -1
        async for view in follow(self._registry.scan, PREFIX, self._clock, on_outage=self._outage):
            self.read(view.items, anew_at=view.seen if view.index < index else None)
            index = view.index
            self.is_known.set()
            await self._restore()

    def read(self, entries: tuple[Entry, ...], *, anew_at: int | None = None) -> None:
        """Take all entries under the prefix.

        `anew_at`: the registry may have started over since the last ones, and this is its own index.
        """
        before, self._seen = self._seen, {entry.key: entry for entry in entries}
        orders = tuple(entry for entry in entries if entry.key.startswith(KEPT))
        if any(entry.key in before and entry.index < before[entry.key].index for entry in entries):
            # It was put back, and what was written since may hide how far.
            newest = max(entry.index for entry in before.values())
            anew_at = max(entry.index for entry in entries if entry.index <= newest)
        if anew_at is not None:
            counts_on = any(before.get(entry.key) == entry for entry in entries)
            self._find_lost(orders, anew_at if counts_on else None)
        bad: dict[str, str] = {}
        entries = self._with_lost(orders, bad)
        cordons, lists, rollouts, single = self._by_kind(entries, bad)
        for key in bad.keys() - self.bad.keys():
            self._log.error("order_unreadable", key=key, error=bad[key])
        self.cordons = cordons
        if lists != self.lists:  # the same object as long as they are the same: they are compared with every news
            self.lists = lists
        self._entries = {entry.key: entry for entry in entries}
        # The older rollout first: a later one does not take away what an earlier one has.
        self.rollouts = dict(sorted(rollouts.items(), key=lambda item: (item[1].record.created_at, item[0])))
        self.rebalance = single.get(REBALANCE)
        self.moves = single.get(MOVES)
        self._take_policies(single.get(POLICY, PolicyRecord(0)), bad)
        self.bad = bad
        for listener in self._changed:
            listener()

    def room_for(self, key: str, size: int) -> bool:
        """Return whether a value of that many bytes has room: all orders travel in one message."""
        others = sum(len(entry.value) for name, entry in self._entries.items() if name != key)
        return others + size <= BYTES_MAX

    # ---------------------------------------------------------------- a registry that started over

    def _find_lost(self, entries: tuple[Entry, ...], at: int | None) -> None:
        """Find out what a registry lost. `at`: its index, if it counts as before."""
        self._made = {}  # its indexes may have begun anew
        there = {entry.key: entry for entry in entries}
        known = {key: entry for key, entry in self._entries.items() if key != MOVES}
        for name, running in self.rollouts.items():
            key = ROLLOUTS + name
            index = max(running.index, known[key].index if key in known else 0)
            known[key] = Entry(key, msgspec.json.encode(running.record), index)
        self._lost = {}
        for key, entry in known.items():
            present = there.get(key)
            if present is not None:
                is_lost = _is_older(present, entry) or (at is not None and entry.index > at)
            else:  # what was to be written back may not have got an index there
                is_lost = at is None or entry.index == 0 or entry.index > at
            if is_lost:
                self._lost[key] = replace(entry, index=present.index if present is not None else 0)
        # Their indexes are those of another life.
        self.rollouts = {name: msgspec.structs.replace(one, index=0) for name, one in self.rollouts.items()}
        if self._lost:
            self._log.error("orders_lost", keys=sorted(self._lost))

    def _with_lost(self, entries: tuple[Entry, ...], bad: dict[str, str]) -> tuple[Entry, ...]:
        """Put what is to be written back in its place, but for what somebody wrote anew."""
        there = {entry.key: entry for entry in entries}
        self._lost = {
            key: lost for key, lost in self._lost.items() if (there[key].index if key in there else 0) == lost.index
        }
        bad.update(dict.fromkeys(self._lost, LOST))
        return tuple((there | self._lost).values())

    async def _restore(self) -> None:
        """Write back what was lost. Whoever was faster is right."""
        while self._lost:
            key, lost = next(iter(self._lost.items()))
            try:
                index = await self._registry.put(key, lost.value, expect=lost.index)
                self._entries[key] = replace(lost, index=index)
            except CasConflict:
                pass
            except StoreError as error:
                self._outage(error)
                await self._clock.sleep_until(Instant(self._clock.monotonic() + RESTORE_MS))
                continue
            # The next view shows it; what was in force is so until then.
            self._lost.pop(key, None)

    # ---------------------------------------------------------------- entries

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
            (REBALANCE, single, lambda entry: rebalance_record(entry.value), lambda _: None),
            (MOVES, single, _read(MovesRecord), lambda _: None),
        )
        made: dict[str, tuple[int, Any]] = {}
        for entry in entries:
            prefix, into, read, fallback = next(kind for kind in kinds if entry.key.startswith(kind[0]))
            name = entry.key if into is single else entry.key.removeprefix(prefix)
            known = self._made.get(entry.key)
            if known is None or known[0] != entry.index:
                known = entry.index, _attempt(read, entry)
            made[entry.key] = known
            value = known[1]
            if isinstance(value, Unreadable):
                bad[entry.key] = value.why
                value = fallback(name)
            elif into is rollouts:
                value = self._newest(name, value)
            if value is not None:
                into[name] = value
        self._made = made
        return cordons, lists, rollouts, single

    def wrote(self, running: RunningRollout) -> None:
        """Take a rollout that this scheduler just wrote, before the registry shows it."""
        name = running.record.name
        self._lost.pop(ROLLOUTS + name, None)
        rollouts = {**self.rollouts, name: self._newest(name, running)}
        self.rollouts = dict(sorted(rollouts.items(), key=lambda item: (item[1].record.created_at, item[0])))
        for listener in self._changed:
            listener()

    def _newest(self, name: str, running: RunningRollout) -> RunningRollout:
        """Return the newer of two: what this scheduler wrote may be known before a view shows it."""
        known = self.rollouts.get(name)
        return known if known is not None and known.index > running.index else running

    def _rollout(self, entry: Entry) -> RunningRollout:
        known = self.rollouts.get(entry.key.removeprefix(ROLLOUTS))
        return running_rollout(entry, known)

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
        self._log.debug("registry_unreachable", error=str(error))


class Unreadable(msgspec.Struct, frozen=True):
    """An entry that could not be read, and why."""

    why: str


def running_rollout(entry: Entry, known: RunningRollout | None = None) -> RunningRollout:
    """Return the rollout of an entry. `known`: as it was before, whose document need not be read again.

    Raises:
        ValueError, RecursionError: it cannot be read, or its parts do not belong together.
    """
    record = msgspec.json.decode(entry.value, type=RolloutRecord)
    rollout: Rollout | tuple[Any, ...]
    if known is not None and known.record.document == record.document:
        rollout = known.rollout
    else:
        rollout = parse_rollout(record.document)
    if not isinstance(rollout, Rollout):
        raise ValueError("; ".join(f"line {fault.line}: {fault.message}" for fault in rollout))  # noqa: TRY004
    if not entry.key.removeprefix(ROLLOUTS) == record.name == rollout.name:
        raise ValueError(f"it says that it is {record.name}, and its document that it is {rollout.name}")
    fault = misfit(rollout, record.state)
    if fault is not None:
        raise ValueError(fault)
    return RunningRollout(record, rollout, entry.index)


def _is_older(there: Entry, known: Entry) -> bool:
    """Return whether a rollout or the policies are there as they were before they became what is known."""
    try:
        if there.key.startswith(ROLLOUTS):
            old, new = (msgspec.json.decode(entry.value, type=RolloutRecord) for entry in (there, known))
            return old.created_at == new.created_at and old.revision < new.revision
        if there.key == POLICY:
            was, became = (msgspec.json.decode(entry.value, type=PolicyRecord) for entry in (there, known))
            # Whoever began anew with an empty registry made other changes.
            return was.revision < became.revision and set(was.history[-1:]) <= set(became.history)
    except UNREADABLE:
        pass
    return False


def _attempt(read: Callable[[Entry], Any], entry: Entry) -> Any:
    try:
        return read(entry)
    except UNREADABLE as error:
        return Unreadable(str(error))


def rebalance_record(value: bytes) -> RebalanceRecord:
    """Return the order to rebalance. Raises ValueError or RecursionError for what is none."""
    record = msgspec.json.decode(value, type=RebalanceRecord)
    if record.request.kind != "rebalance" or record.request.arm:
        raise ValueError("it is no order to rebalance")
    return record


def _read(kind: type[T]) -> Callable[[Entry], T]:
    decode = msgspec.json.Decoder(kind).decode
    return lambda entry: decode(entry.value)


def _lines(entry: Entry) -> frozenset[str]:
    return frozenset(entry.value.decode().split("\n")) - {""}
