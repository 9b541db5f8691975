"""A fleet on simulated time: nodes, several balancers, and clients who ask, wait, connect, fall back and leave.

Time goes in ticks. In each tick connections end, clients arrive at nodes, clients ask balancers, nodes report, and
balancers read the reports. Clients who are on their way are objects; those who are connected are counts at their node,
so that a million of them cost nothing.

A client asks one balancer, waits for its slot if it was given one, and connects after the connect delay to the first
candidate. Is it refused, it goes on with the next; after the last one it backs off and asks again. Some newcomers never
connect at all. Who lost a connection always comes back.

Invariants:
    I1  Every client is in one place: newcomers = abandoned + departed + given up + waiting + connected.
    I2  A run is a function of its settings and the balancers.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from roadstead.sim.fleet.balancers import Balancer, Choice
from roadstead.sim.fleet.chance import stream
from roadstead.sim.fleet.figures import Recorder
from roadstead.sim.fleet.nodes import PLAN_ISSUERS, NodeSpec, SimNode
from scheduler.core.node import AccessNode
from scheduler.core.request import Location, Request

__all__ = ["NO_ISSUER", "Client", "Fleet", "FleetSettings"]

SECOND_MS = 1_000
REFUSED_MS = 200
"""What a client loses with a candidate that refuses it."""
DEAD_MS = 3_000
"""What it loses with one that does not answer."""
NO_ISSUER = -1
REGISTRATION_TTL_MS = 10_000
OBSERVE_MS = 1_000
BACKOFF_CEILING_MS = 30_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """What the nodes and clients of a run are like, whoever balances them."""

    seed: int
    seconds: int
    nodes: tuple[NodeSpec, ...]
    shares: tuple[float, ...] = (1.0,)
    """Part of the clients that each balancer is asked by; one for each balancer."""
    arrivals_per_s: float = 0.0
    lifetime_s: float = 0.0
    """Mean time that a client stays; 0: for ever."""
    connect_delay_ms: int = 2_000
    abandons: float = 0.0
    """Part of the newcomers who ask and never connect."""
    report_ms: int = 10_000
    tick_ms: int = 100
    backoff_ms: int = 1_000
    """Before a client asks again after all its candidates failed: doubled each time, full jitter."""
    regions: tuple[tuple[str, float], ...] = (("", 1.0),)
    """Where clients are, and which part of them."""


class Client:
    """A client without a connection, on its way to one."""

    __slots__ = ("choice", "failures", "is_back", "issuer", "leaves", "next", "request", "slot", "wanted_at")

    def __init__(self, request: Request, wanted_at: int, *, is_back: bool) -> None:
        self.request = request
        self.wanted_at = wanted_at
        self.is_back = is_back
        """It had a connection, and will not give up."""
        self.leaves: SimNode | None = None
        """Where it still is, while it is being moved."""
        self.choice = Choice(())
        self.next = 0
        self.issuer = NO_ISSUER
        self.failures = 0
        self.slot = 0


class Fleet:
    """One run. Scenarios put actions on the timeline with `at` and `every`, then call `run`."""

    def __init__(self, settings: FleetSettings) -> None:
        self.settings = settings
        issuers = len(settings.shares)
        self.plan_issuer = issuers
        self.nodes = [
            SimNode(index=index, spec=spec, issuers=issuers + PLAN_ISSUERS) for index, spec in enumerate(settings.nodes)
        ]
        self.by_id = {str(node.id): node for node in self.nodes}
        self.recorder = Recorder()
        self.balancers: list[Balancer] = []
        """Set before `run`, one for each of the settings' shares."""
        self.is_registry_up = True
        self.newcomers = sum(node.connections for node in self.nodes)
        self.abandoned = self.departed = self.waiting = self.decisions = self.in_vain = self.asked_again = 0
        self.waits_ms: list[int] = []
        """How long each who came back was without a connection."""
        self.on_connect: Callable[[Client, SimNode, int], None] | None = None
        self._arrivals = stream(settings.seed, "arrivals")
        self._ends = stream(settings.seed, "ends")
        self._delays = stream(settings.seed, "delays")
        self._asks: dict[int, list[Client]] = {}
        self._connects: dict[int, list[Client]] = {}
        self._actions: dict[int, list[Callable[[int], None]]] = {}
        self._views: list[dict[int, tuple[int, int, AccessNode]]] = [{} for _ in range(issuers)]
        self._locations = [Location(region, source="hint") for region, _ in settings.regions]
        self._region_edges = list(accumulate(part for _, part in settings.regions))
        self._share_edges = list(accumulate(settings.shares))
        self._users = 0
        ticks = settings.report_ms // settings.tick_ms
        phases = stream(settings.seed, "phases")
        self._report_phase = [phases.randrange(ticks) for _ in self.nodes]
        self._reporters: list[list[SimNode]] = [[] for _ in range(ticks)]
        for node, phase in zip(self.nodes, self._report_phase, strict=True):
            self._reporters[phase].append(node)

    # ---------------------------------------------------------------- the timeline

    def at(self, ms: int, action: Callable[[int], None]) -> None:
        """Call `action(now)` at the tick of that time, before anything else of the tick."""
        self._actions.setdefault(ms // self.settings.tick_ms, []).append(action)

    def every(self, ms: int, action: Callable[[int], None], *, since: int = 0) -> None:
        """Call `action(now)` every `ms` from `since` on."""
        for at in range(since, self.settings.seconds * SECOND_MS, ms):
            self.at(at, action)

    def run(self) -> None:
        """Run to the end."""
        assert len(self.balancers) == len(self.settings.shares)
        tick_ms = self.settings.tick_ms
        for node in self.nodes:
            node.make_report(0)
        for issuer, balancer in enumerate(self.balancers):
            balancer.observe(self.view(issuer, 0), 0)
        for tick in range(self.settings.seconds * SECOND_MS // tick_ms):
            self._step(tick, tick * tick_ms)

    def _step(self, tick: int, now: int) -> None:
        for action in self._actions.pop(tick, ()):
            action(now)
        self._end_connections()
        for client in self._connects.pop(tick, ()):
            self._connect(client, now)
        for client in self._asks.pop(tick, ()):
            self._ask(client, now)
        self._arrive(now)
        for node in self._reporters[tick % len(self._reporters)]:
            if node.is_up and node.is_registered(now) and self.is_registry_up:
                node.make_report(now)
        self._observe(now)
        if now and now % SECOND_MS == 0:
            self.recorder.look(self.nodes, now, self.waiting)

    # ---------------------------------------------------------------- what scenarios do to it

    def crash(self, node: SimNode, now: int, *, spread: float = 0.0, after_ms: int = 0) -> None:
        """The node dies: its clients come back as `drop` says, its registration lapses later."""
        node.is_up = False
        node.expires_at = now + REGISTRATION_TTL_MS
        self.drop(node, now, spread=spread, after_ms=after_ms)

    def drain(self, node: SimNode, now: int) -> None:
        """The node takes nobody more, and says so at once."""
        node.is_draining = True
        if self.is_registry_up:
            node.make_report(now)

    def drop(self, node: SimNode, now: int, *, spread: float = 0.0, after_ms: int = 0) -> None:
        """All connections of the node break. Clients ask again within the backoff, or `after_ms` +- the spread."""
        for _ in range(node.connections):
            client = self.new_client(now, is_back=True, location=node.spec.region)
            delay = self._delays.spread(after_ms, spread) if after_ms else self._backoff(0)
            self.ask_later(client, now + delay)
        self.waiting += node.connections
        node.connections = 0

    def move(self, source: SimNode, choice: Choice, now: int, *, issuer: int = NO_ISSUER) -> None:
        """Tell one client of the node to go elsewhere. It leaves once it is connected there; no candidates: it asks."""
        client = self.new_client(now, is_back=True, location=source.spec.region)
        client.leaves = source
        client.issuer = issuer
        client.choice = choice
        if choice.nodes:
            self._connect_later(client, now + self._delays.delay(self.settings.connect_delay_ms))
        else:
            self.ask_later(client, now)

    def new_client(self, now: int, *, is_back: bool, location: str | None = None) -> Client:
        """Make a client, whose region is drawn if it is not given."""
        self._users += 1
        if location is None:
            edges = self._region_edges
            where = (
                self._locations[bisect(edges, self._arrivals.random() * edges[-1])]
                if edges[1:]
                else (self._locations[0])
            )
        else:
            where = Location(location, source="hint")
        return Client(Request(f"u{self._users}", location=where), now, is_back=is_back)

    def ask_later(self, client: Client, at: int) -> None:
        """The client asks a balancer at that time, at the next tick at the earliest."""
        self._asks.setdefault(max(at, client.wanted_at) // self.settings.tick_ms + 1, []).append(client)

    def check_invariants(self) -> None:
        """Assert that everybody is somewhere, and nobody in two places."""
        connected = sum(node.connections for node in self.nodes)
        assert self.newcomers == self.abandoned + self.departed + self.waiting + connected, "I1"
        on_the_way = [client for later in (self._asks, self._connects) for some in later.values() for client in some]
        assert sum(client.leaves is None for client in on_the_way) == self.waiting, "I1"
        assert all(0 <= node.connections <= node.spec.capacity for node in self.nodes)

    # ---------------------------------------------------------------- one tick

    def _end_connections(self) -> None:
        if not self.settings.lifetime_s:
            return
        poisson = self._ends.poisson
        part = self.settings.tick_ms / SECOND_MS / self.settings.lifetime_s
        for node in self.nodes:
            if node.connections:
                ended = min(poisson(node.connections * part), node.connections)
                node.connections -= ended
                self.departed += ended

    def _arrive(self, now: int) -> None:
        settings = self.settings
        for _ in range(self._arrivals.poisson(settings.arrivals_per_s * settings.tick_ms / SECOND_MS)):
            client = self.new_client(now, is_back=False)
            self.newcomers += 1
            self.waiting += 1
            self._ask(client, now)

    def _ask(self, client: Client, now: int) -> None:
        edges = self._share_edges
        issuer = bisect(edges, self._arrivals.random() * edges[-1])
        choice = self.balancers[issuer].decide(client.request, now)
        self.decisions += 1
        self.asked_again += client.failures > 0
        if not choice.nodes:
            self.in_vain += 1
            self.ask_later(client, now + max(choice.not_before_ms, self._backoff(client.failures)))
            client.failures += 1
            return
        if not client.is_back and self._delays.random() < self.settings.abandons:
            self.abandoned += 1
            self.waiting -= 1
            return
        client.choice = choice
        client.next = 0
        client.issuer = issuer
        client.slot = now + choice.not_before_ms
        self._connect_later(client, client.slot + self._delays.delay(self.settings.connect_delay_ms))

    def _connect_later(self, client: Client, at: int) -> None:
        tick_ms = self.settings.tick_ms
        self.by_id[client.choice.nodes[client.next]].coming += 1
        self._connects.setdefault(max(at // tick_ms, client.wanted_at // tick_ms) + 1, []).append(client)

    def _connect(self, client: Client, now: int) -> None:
        node = self.by_id[client.choice.nodes[client.next]]
        node.coming -= 1
        if node.admit(now, client.issuer):
            if client.leaves is not None:
                self._leave(client.leaves, node)
            else:
                self.waiting -= 1
                if client.is_back:
                    self.waits_ms.append(now - client.wanted_at)
            if self.on_connect is not None:
                self.on_connect(client, node, now)
            return
        client.next += 1
        if client.next < len(client.choice.nodes):
            self._connect_later(client, now + (REFUSED_MS if node.is_up else DEAD_MS))
        else:
            self._fail(client, now)

    def _leave(self, source: SimNode, target: SimNode) -> None:
        """Who moved leaves the node that it came from, if its connection there did not end meanwhile."""
        if source.connections and source is not target:
            source.connections -= 1
        else:
            target.connections -= 1

    def _fail(self, client: Client, now: int) -> None:
        """All candidates failed it, or there was none."""
        self.ask_later(client, now + self._backoff(client.failures))
        client.failures += 1

    def _backoff(self, failures: int) -> int:
        ceiling = min(self.settings.backoff_ms * 2 ** min(failures, 16), BACKOFF_CEILING_MS)
        return int(self._delays.random() * ceiling)

    def _observe(self, now: int) -> None:
        """Let those balancers read the registry whose turn it is."""
        if not self.is_registry_up:
            return
        count = len(self.balancers)
        tick_ms = self.settings.tick_ms
        for issuer, balancer in enumerate(self.balancers):
            if (now - OBSERVE_MS * issuer // count // tick_ms * tick_ms) % OBSERVE_MS == 0:
                balancer.observe(self.view(issuer, now), now)

    def view(self, issuer: int, now: int) -> list[AccessNode]:
        """Return the registered nodes as a scheduler sees them.

        A node that did not report anew since is the same object as before.
        """
        seen = self._views[issuer]
        view = []
        for node in self.nodes:
            if not node.is_registered(now):
                continue
            known = seen.get(node.index)
            if known is None or known[:2] != (node.incarnation, node.report.number):
                known = (node.incarnation, node.report.number, node.seen_by(issuer, now))
                seen[node.index] = known
            view.append(known[2])
        return view
