"""The resize history: is any answer ever wrong while status nodes come, go, crash and move partitions?

A registry, three to five status nodes of which some begin in the table, two access nodes and two readers. The seed
mixes operations (add, remove, weights, abort, pause and resume) into the weather; then everything heals, a last wish
is made, and all moves must finish. The referee knows the truth and looks at each answer at the instant it is given.

Invariants (the numbers of the design of the status cluster):
    I1  Never offline while a connection that was confirmed is open and its access node's lease valid.
    I2  Never online later than 3 s after a disconnect.
    I3  What was answered after a confirmed disconnect never brings the session back.
    I4  No instant with two nodes that serve one partition.
    I5  After quiet, each partition's digest at its owner equals the union of the access nodes.
    I7  Nothing is parked for more than 250 ms of its node's own running time; while it is stopped it can answer nobody.
    H1  Once all is healed, all moves finish, with every partition served by its owner, within `HEAL_MS_MAX`.
    H2  While nothing is wrong but that the two nodes of a move are cut off from each other, none is sealed for longer
        than `SEALED_MS_MAX`. (Of histories that cut them so, see `run_history`.)

I6, the number of moves, is the planner's alone (see `status.core.partitions`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from base.clock import Instant
from base.ids import Epoch, NodeId
from roadstead.sim.dice import Dice
from roadstead.sim.faults import Faults
from roadstead.sim.host import Host
from roadstead.sim.report import Report
from roadstead.sim.resize_access import AccessNode, Reader
from roadstead.sim.resize_hosts import Guards, Registry, RegistryState, StatusNode
from roadstead.sim.resize_messages import Operate
from roadstead.sim.world import SimWorld
from status.api import Shown, status_of
from status.core.handoff import PARK_MS
from status.core.holding import Role
from status.core.migration import GONE_MS
from status.core.partitions import Move, PartitionTable, Stage, plan_table
from status.core.patience import SEAL_PATIENCE_MS

__all__ = ["run", "run_history"]

PARTITIONS = 6
ACCESS = (NodeId("a1"), NodeId("a2"))
READERS = ("c1", "c2")
CHAOS_MS = 10_000
HEAL_MS_MAX = 40_000
LATE_MS = 3_000
OPERATE_MS = 900
CUT_OFF_EVERY_MS = 2_500
FOR_EVER_MS = 10_000_000
UNPARK_MS = 50
SEALED_MS_MAX = SEAL_PATIENCE_MS + 1_000
FAULTS = Faults(
    down_ms_max=6_000, stall_ms_max=4_000, cut_ms_max=5_000, crash_every_ms=3_000, cut_every_ms=3_000, tail_ms_max=4_000
)

SERVES = {Role.SERVING, Role.ANSWERING, Role.RECOVERING}


class Referee:
    """Sees all hosts at true time."""

    def __init__(self, world: SimWorld, state: RegistryState) -> None:
        self._world = world
        self.state = state
        self.counts: Counter[str] = Counter()
        self.access: dict[str, AccessNode] = {}
        self.status: dict[str, StatusNode] = {}
        self.operators: list[Operator] = []
        self.apart_at: Stage | None = None
        self._apart: Move | None = None
        self._sealed: dict[tuple[int, Epoch], int] = {}
        self._ended: dict[str, int] = {}
        self._lives: dict[str, AccessNode] = {}

    def look(self) -> None:
        """Note when sessions end with their access node's life; see that no seal lasts where two are apart (H2)."""
        if self._apart is not None and any(self._world.now > at + SEALED_MS_MAX for at in self._sealed.values()):
            self._world.fail(f"H2: {self._apart.source} and {self._apart.target} are apart, and a seal lasts")
        for name, node in self._lives.items():
            if node is not self.access[name] or not self._world.is_up(name):
                for session in node.sessions:
                    self._ended.setdefault(session, self._world.now)
        self._lives = {name: node for name, node in self.access.items() if self._world.is_up(name)}

    def closed(self, session: str) -> None:
        """Note that a session ended."""
        self._ended[session] = self._world.now

    def answered(self, node: StatusNode, partition: int, user: str, shown: Shown) -> None:
        """Check one answer (I1, I2, I3)."""
        self.counts["lookups"] += 1
        status = status_of(shown)
        self.counts[status.state] += 1
        if status.state == "offline":
            for name, access in self.access.items():
                self._check_offline(node, name, access, partition, user)
        for session in status.sessions:
            self._check_online(node, session.session)

    def acted(self, node: StatusNode) -> None:
        """Check that nobody else serves what this node serves (I4)."""
        table = node.ownership.table
        if table is None:
            return
        now = self._world.local(node.node)
        for name, other in self.status.items():
            theirs = other.ownership.table
            if name == node.node or theirs is None or theirs is table or not self._world.is_up(name):
                continue  # the same table names one owner
            for partition in range(PARTITIONS):
                if table.owner(partition) != node.node or theirs.owner(partition) != name:
                    continue
                there = other.ownership.role(self._world.local(name), partition)
                if there in SERVES and node.ownership.role(now, partition) in SERVES:
                    self._world.fail(f"I4: {node.node} and {name} serve partition {partition}")

    def ran_ms(self, node: StatusNode) -> int:
        """Return how long the node ran so far, on its own clock."""
        return self._world.local(node.node) - self._world.lost_ms(node.node)

    def unparked(self, waited_ms: int) -> None:
        """Check how long a request was parked (I7)."""
        self.counts["parked"] += 1
        if waited_ms > PARK_MS + UNPARK_MS:
            self._world.fail(f"I7: a request was parked for {waited_ms} ms")

    def wrote(self, table: PartitionTable) -> None:
        """Count what is written."""
        self.counts["writes"] += 1
        for move in table.moves:
            if table.partition_epoch(move.partition) == table.epoch:
                self.counts[move.stage.value] += 1
                if move.stage is self.apart_at:
                    self._cut_apart(move)
        sealed = [(move.partition, move.move_id) for move in table.moves if move.stage is Stage.SEAL]
        self._sealed = {key: self._sealed.get(key, self._world.now) for key in sealed}

    def _cut_apart(self, move: Move) -> None:
        self._world.cut([move.source], [move.target], lasting_ms=FOR_EVER_MS)
        self._world.cut([move.target], [move.source], lasting_ms=FOR_EVER_MS)
        self._apart, self.apart_at = move, None
        self.counts["apart"] += 1

    def is_settled(self) -> bool:
        """Return whether the resize is done and all owners agree with the access nodes (H1, I5)."""
        table = self.state.table
        wanted = table.wanted()
        is_spread = not table.moves and not table.is_paused and len(wanted) == len(table.nodes)
        return is_spread and all(self._is_settled(table, partition) for partition in range(PARTITIONS))

    def _is_settled(self, table: PartitionTable, partition: int) -> bool:
        owner = self.status[table.owner(partition)].ownership
        if owner.table is None or owner.table.epoch != table.epoch:
            return False
        if owner.role(self._world.local(table.owner(partition)), partition) is not Role.SERVING:
            return False
        store = owner.store(partition)
        assert store is not None
        shown = {(owner.sources.life(entry[:2]).node, entry[2:]) for _, entry in store.entries()}
        return shown == {(access.node, entry) for access in self.access.values() for entry in access.open_in(partition)}

    def _check_offline(self, node: StatusNode, name: str, access: AccessNode, partition: int, user: str) -> None:
        if not self._world.is_up(name):
            return
        until = access.believes_until.get(partition, Instant(0))
        if self._world.local(name) >= until:
            return
        for session, opened in access.sessions.items():
            if opened.user == user and session in access.confirmed:
                self._world.fail(f"I1: {node.node} says that {user} is offline, but {session} is open")

    def _check_online(self, node: StatusNode, session: str) -> None:
        late_ms = self._world.now - self._ended.get(session, self._world.now)
        if late_ms > LATE_MS:
            self._world.fail(f"I2: {node.node} says that {session} is online {late_ms} ms after its end")
        if any(session in access.closed_confirmed for access in self.access.values()):
            self._world.fail(f"I3: {node.node} says that {session} is online, but its end was confirmed")


def run_history(
    seed: int,
    *,
    guards: Guards | None = None,
    faults: Faults | None = None,
    chaos_ms: int = CHAOS_MS,
    crash_at: str | None = None,
    apart_at: Stage | None = None,
) -> Report:
    """Run one history: operations in bad weather, healing, a last wish, and all must come true.

    Whoever first reaches the point `crash_at` (`status.core.faultpoints`) dies there, on top of the weather. The first
    move that enters the stage `apart_at` has its two nodes cut off from each other then, in fine weather.

    Raises:
        Violation: an invariant did not hold.
    """
    world = SimWorld(seed, faults or (FAULTS if apart_at is None else FAULTS.healed()), crash_at=crash_at)
    nodes = [NodeId(f"s{number}") for number in range(1, world.dice.between(3, 5) + 1)]
    members = nodes[: world.dice.between(2, len(nodes))]
    referee = _people(world, guards or Guards(), nodes, members)
    referee.apart_at = apart_at
    while world.now < chaos_ms:
        world.run(min(chaos_ms, world.now + world.dice.between(1, 2 * CUT_OFF_EVERY_MS)))
        if apart_at is None:
            _cut_off(world, referee, nodes)
    world.heal()
    world.run(chaos_ms + 1)
    _finish(world, referee, referee.operators[-1], nodes)
    return world.report({**referee.counts, **{f"reached {point}": times for point, times in world.reached.items()}})


def run(seed: int, without: Collection[str] = ()) -> Report:
    """Run the history for the command line, with the named guards removed."""
    return run_history(seed, guards=Guards().without(*without))


def _cut_off(world: SimWorld, referee: Referee, nodes: list[NodeId]) -> None:
    """Cut one status node off from some of the others and the registry, for longer than it takes to presume it gone.

    That is the weather in which an owner lives on in a minority, or by the grants of peers that the leader reaches.
    """
    node = world.dice.pick(nodes)
    peers = [other for other in nodes if other != node]
    leader = referee.state.holder[0]
    kind = world.dice.between(1, 3)
    if kind == 1:
        others = ["registry", *peers]
    elif kind == 2 and leader in peers:
        others = ["registry", leader]
    else:
        others = world.dice.some(["registry", *peers])
    lasting_ms = world.dice.between(GONE_MS, 3 * GONE_MS)
    world.cut([node], others, lasting_ms=lasting_ms)
    world.cut(others, [node], lasting_ms=lasting_ms)


def _finish(world: SimWorld, referee: Referee, operator: Operator, nodes: list[NodeId]) -> None:
    began = world.now
    weights = _weights(world.dice, nodes)
    operator.is_last = True
    while not (referee.state.table.wanted() == dict(weights) and referee.is_settled()):
        if world.now > began + HEAL_MS_MAX:
            world.fail(f"H1: not settled {HEAL_MS_MAX} ms after everything healed: {referee.state.table}")
        operator.order = Operate(weights, is_paused=False)
        if not referee.state.table.is_paused and referee.state.table.wanted() == dict(weights):
            for access in referee.access.values():
                access.is_quiet = True
        world.run(world.now + 200)


class Operator:
    """Tells the registry what it wants. By chance, and at the end what the history needs."""

    def __init__(self, host: Host, nodes: list[NodeId]) -> None:
        self._host = host
        self._nodes = nodes
        self._due = Instant(0)
        self.is_last = False
        self.order = Operate()

    def start(self, now: Instant) -> None:
        """Begin soon."""
        self._due = now

    def receive(self, now: Instant, source: str, message: object) -> None:
        """Nobody answers."""

    def wake(self, now: Instant) -> None:
        """Order something."""
        self._due = Instant(now + (500 if self.is_last else self._host.dice.between(1, 2 * OPERATE_MS)))
        self._host.send("registry", self.order if self.is_last else self._draw())

    def next_deadline(self) -> Instant | None:
        """Return the next order."""
        return self._due

    def _draw(self) -> Operate:
        kind = self._host.dice.between(0, 9)
        if kind == 0:
            return Operate(is_paused=True, is_abort=True)
        if kind <= 3:
            return Operate(is_paused=kind == 1)
        return Operate(_weights(self._host.dice, self._nodes))


def _weights(dice: Dice, nodes: list[NodeId]) -> tuple[tuple[NodeId, int], ...]:
    some = dice.some(nodes) if dice.chance(700) else nodes
    return tuple((node, dice.between(1, 2)) for node in sorted(some))


def _people(world: SimWorld, guards: Guards, nodes: list[NodeId], members: list[NodeId]) -> Referee:
    """Add the hosts and the referee to an empty world."""
    table = plan_table(dict.fromkeys(members, 1), partitions=PARTITIONS)
    state = RegistryState(table)
    referee = Referee(world, state)

    def status(host: Host) -> StatusNode:
        referee.status[host.name] = StatusNode(host, guards, ACCESS, referee)
        return referee.status[host.name]

    def access(host: Host) -> AccessNode:
        referee.access[host.name] = AccessNode(host, table, referee.closed)
        return referee.access[host.name]

    def operator(host: Host) -> Operator:
        referee.operators.append(Operator(host, nodes))
        return referee.operators[-1]

    world.on_event(referee.look)
    world.add("operator", operator)
    world.add("registry", lambda host: Registry(host, state, referee))
    for node in nodes:
        world.add(node, status)
    for node in ACCESS:
        world.add(node, access)
    for name in READERS:
        world.add(name, lambda host: Reader(host, table))
    assert PARK_MS <= 250
    assert state.table.epoch == Epoch(1)
    return referee
