"""A scheduler: follows the access nodes and the operators' orders, decides for clients, and sees orders through.

Any number of schedulers work side by side without talking to each other. Each goes by what the registry shows: the
nodes' reports, the orders, how many schedulers there are. When the registry is away each goes on with what it knows:
clients are assigned as before, while nothing that has to be agreed on (steps of rollouts, moves, orders) goes on.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from access.api import SERVICE as ACCESS_SERVICE
from access.api import ClientEntry
from base.core.origins import Origins
from base.cors import Cors
from base.errors import ConfigError, StoreError
from base.ids import NodeId, entropy
from base.keys import KeyList, KeyRing
from base.node import Node
from base.peer.pool import PeerPool
from base.proxied import Proxied
from base.registry import ServiceInstance, follow_services
from base.site import Site
from scheduler.access_api import AccessApi
from scheduler.admin import SchedulerAdmin
from scheduler.agent_check import AgentCheck
from scheduler.config import SchedulerConfig
from scheduler.core.cohorts import ActiveRollout
from scheduler.core.engine import Decision, Passed
from scheduler.core.moving import Fleet
from scheduler.core.node import AccessNode
from scheduler.core.request import Location, Request
from scheduler.core.snapshot import STABLE
from scheduler.decider import Decider, Rules
from scheduler.eds import Eds
from scheduler.following import Seen
from scheduler.front import Front
from scheduler.geography import Geography
from scheduler.metrics import Figures, SchedulerMetrics
from scheduler.movers import Movers
from scheduler.ofrep import Ofrep
from scheduler.orders import Orders
from scheduler.promql import Prometheus
from scheduler.rollouts import Rollouts
from scheduler.targets import Targets
from scheduler.tokens import TicketSigner, TicketSigners
from scheduler.wishes import Wishes

__all__ = ["SERVICE", "Scheduler"]

SERVICE = "scheduler"
ASK_S = 3.0
CONNECT_S = 0.5
AWAY_MS = 5_000
"""Without a view of the registry for so long it counts as away: nodes report every second."""


class Scheduler:
    """One scheduler on its HTTP port."""

    def __init__(
        self,
        config: SchedulerConfig,
        site: Site,
        *,
        user_keys: KeyList,
        ticket_keys: KeyRing,
    ) -> None:
        """Build it.

        Args:
            config: its settings.
            site: its place.
            user_keys: check user tokens.
            ticket_keys: sign tickets, the first that can.

        Raises:
            ConfigError: no key can sign, or the settings exclude each other.
        """
        if config.proxy_protocol and site.trust.server_ssl is not None:
            raise ConfigError(
                ["scheduler.proxy_protocol is for a port without TLS; let the proxies name clients in address_header"]
            )
        self.node = Node(site, SERVICE, statistics=self.statistics)
        self._config = config
        self._registry = site.registry
        self._clock = site.clock
        self._seen_at = site.clock.monotonic()
        self._schedulers = 1
        self._active: tuple[ActiveRollout, ...] = ()
        self._dice = entropy()
        issuer = f"{self._dice.getrandbits(40):010x}"
        self.seen = Seen(issuer)
        self.orders = Orders(site.registry, site.clock, node=site.name)
        self._regions = config.known_regions()
        self._geography = Geography(config, site.clock, self._regions, node=site.name)
        self.decider = Decider(
            issuer, config.settings(), site.clock, self._rules(()), remembered=config.remembered_decisions
        )
        self._metrics = SchedulerMetrics(self.node.metrics, node=site.name, figures=self._figures)
        self.rollouts = Rollouts(
            site.registry,
            site.clock,
            self.orders,
            node=site.name,
            nodes=lambda: self.decider.snapshot.nodes,
        )
        self._pool = PeerPool(site, ACCESS_SERVICE)
        self.movers = Movers(
            site,
            self._pool,
            self.node.metrics,
            fleet=self._fleet,
            node_arm=self._arm_of,
            client_arm=self._client_arm,
            choose=self._choose,
        )
        self._wishes = Wishes(site, self.orders, self.rollouts, self.movers)
        self._agent: AgentCheck | None = None
        ticket_keys.require_signing()
        self._signers = TicketSigners(ticket_keys)
        self._user_keys = user_keys
        self.orders.on_change(self._ordered)
        self._serve(site)

    def _serve(self, site: Site) -> None:
        app, credentials, decider = self.node.http.app, site.credentials, self.decider
        cors = Cors(Origins(self._config.origins).allows)
        api = AccessApi(
            self._config,
            site.clock,
            credentials,
            decider=decider,
            locate=self._geography.locate,
            signer=self._signer,
            user_keys=self._user_keys,
            cors=cors,
            metrics=self._metrics,
        )
        api.add_to(app)
        self._front = Front(api, http=self.node.http, cors=cors, clock=site.clock, metrics=self._metrics)
        self.node.http.layers.insert(0, self._front)  # it reads requests: what is before them is not for it
        if self._config.proxy_protocol:
            self.node.http.layers.append(Proxied(self._config.proxies, dropped=self._metrics.dropped))
        SchedulerAdmin(
            site,
            decider=decider,
            orders=self.orders,
            rollouts=self.rollouts,
            seen=self.seen,
            schedulers=lambda: self._schedulers,
            locate=self._geography.locate,
        ).add_to(app.router)
        Eds(nodes=self._nodes, arm_of=self._arm_of, weight=self._weight, credentials=credentials).add_to(app.router)
        Targets(
            instances=lambda: [sighting.instance for sighting in self.seen.nodes.values()],
            nodes=self._nodes,
            arm_of=self._arm_of,
            services=self._instances_of,
            credentials=credentials,
        ).add_to(app.router)
        Ofrep(rollouts=lambda: self._active, locate=self._found, credentials=credentials).add_to(app.router)
        if self._config.agent_check_port >= 0:
            self._agent = AgentCheck(nodes=self._nodes, weight=self._weight, proxies=self._config.agent_check_proxies)

    def _signer(self) -> TicketSigner:
        signer = self._signers.signer()
        assert signer is not None, "the ring never has none"
        return signer

    async def start(self) -> None:
        """Read the maps, listen and join."""
        await self._geography.open()
        await self.node.listen()
        if self._agent is not None:
            await self._agent.listen(self.node.site.host, self._config.agent_check_port)
        await self.node.join()

    async def run(self) -> None:
        """Follow the registry, and see orders through."""
        async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as tasks:
            if self._config.prometheus_url:
                deadline_ms = self._config.prometheus_deadline_ms
                self.rollouts.ask_with(Prometheus(http, self._config.prometheus_url, deadline_ms=deadline_ms).measure)
            for part in (
                self.node,
                self.orders,
                self._geography,
                self.rollouts,
                self.movers,
                self._wishes,
            ):
                tasks.create_task(part.run())
            tasks.create_task(self._count_schedulers())
            tasks.create_task(self._connect_while_moving())
            await self.orders.is_known.wait()  # or the canary's nodes would be anybody's until then
            keep_ms = self.node.site.config.registration_ttl_ms
            async for instances in follow_services(
                self._registry, ACCESS_SERVICE, self._clock, keep_ms=keep_ms, on_outage=self._outage
            ):
                self._saw(instances)

    async def drain(self) -> None:
        """Take no new work: a decision is over as soon as it is made."""
        self.node.http.is_ready = False
        self._front.drain()

    def statistics(self) -> dict[str, Any]:
        """Return a snapshot for `/debug/statistics`."""
        snapshot = self.decider.snapshot
        return {
            "access_nodes": {
                node.id: {
                    "connections": node.connections,
                    "estimate": round(snapshot.load[index], 1),
                    "capacity": node.capacity,
                    "left_out": snapshot.left_out.get(index),
                }
                for index, node in enumerate(snapshot.nodes)
            },
            "generation": snapshot.generation,
            "share": snapshot.share,
            "schedulers": self._schedulers,
            "is_panic": self.decider.engine.is_panic,
            "is_judging": self.rollouts.is_judging,
            "geography": self._geography.statistics(),
            "bad_orders": dict(self.orders.bad),
        }

    def _figures(self) -> Figures:
        snapshot = self.decider.snapshot
        return Figures(
            len(snapshot.nodes),
            len(snapshot.left_out),
            snapshot.share,
            self.decider.engine.is_panic,
            self.rollouts.is_judging,
            len(self.orders.bad),
            self._geography.statistics()["faults"],
        )

    async def stop(self) -> None:
        """Deregister and close."""
        if self._agent is not None:
            await self._agent.close()
        await self.node.close()

    # ---------------------------------------------------------------- what the registry says

    def _saw(self, instances: tuple[ServiceInstance, ...]) -> None:
        self._seen_at = self._clock.monotonic()
        self.seen.take(instances, self._seen_at)
        self._geography.serve({instance.meta.get("region", "") for instance in instances})
        self.rollouts.observe(self.seen.nodes.values())
        self._observe()

    def _ordered(self) -> None:
        active = self.rollouts.active()
        if active != self._active:
            self._active = active
        rules = self._rules(self._active)
        if rules != self.decider.rules:  # how moves get on is told every second
            self.decider.configure(rules)
        if self.decider.shadow_policy != self.orders.shadow:
            self.decider.set_shadow(self.orders.shadow)
        self._observe()

    def _observe(self) -> None:
        self.decider.observe(self.seen.access_nodes(self.orders.cordons), schedulers=self._schedulers)

    def _rules(self, rollouts: tuple[ActiveRollout, ...]) -> Rules:
        return Rules(rollouts, self.orders.policy, self.orders.lists, self._regions)

    async def _count_schedulers(self) -> None:
        keep_ms = self.node.site.config.registration_ttl_ms
        async for instances in follow_services(self._registry, SERVICE, self._clock, keep_ms=keep_ms):
            self._schedulers = max(1, len(instances))

    async def _connect_while_moving(self) -> None:
        """Keep streams to the access nodes for as long as there is something to move, and no longer."""
        while True:
            await asyncio.sleep(CONNECT_S)
            if not self.movers.has_work():
                continue
            async with asyncio.TaskGroup() as tasks:
                connected = tasks.create_task(self._pool.run())
                while self.movers.has_work():  # noqa: ASYNC110 - it is asked for by many
                    await asyncio.sleep(CONNECT_S)
                connected.cancel()

    def _outage(self, error: StoreError) -> None:
        self.node.log.debug("registry_unreachable", error=str(error))

    async def _instances_of(self, service: str) -> tuple[ServiceInstance, ...]:
        async with asyncio.timeout(ASK_S):
            return (await self._registry.services(service)).items

    # ---------------------------------------------------------------- what others ask

    def _nodes(self) -> tuple[AccessNode, ...]:
        return self.decider.snapshot.nodes

    def _arm_of(self, node: AccessNode) -> str:
        return self.decider.snapshot.arm_of(node)

    def _weight(self, node: AccessNode) -> float:
        return self.decider.snapshot.weight_of(node)

    def _found(self, address: str, hint: str) -> Location:
        return self._geography.locate("", address, hint, {})

    def _fleet(self, plan: str) -> Fleet:
        reports = {NodeId(name): sighting.report for name, sighting in self.seen.nodes.items()}
        return Fleet(
            self.decider.snapshot.nodes,
            admitted={name: report.admitted.get(plan, 0) for name, report in reports.items()},
            turned_away={name: report.refused + report.rejected for name, report in reports.items()},
            is_panic=self.decider.engine.is_panic,
            is_registry_away=self._clock.monotonic() - self._seen_at > AWAY_MS,
        )

    def _considered(self, entry: ClientEntry, source: NodeId) -> Decision:
        """Return what would be decided for a client of a node if it asked again. It is near to where it was sent."""
        snapshot = self.decider.snapshot
        index = snapshot.index.get(source)
        region = "" if index is None else snapshot.nodes[index].region
        location = self._geography.locate(entry.user, entry.address, region, {})
        request = Request(entry.user, entry.device, entry.platform, entry.app, entry.address, location)
        return self.decider.engine.consider(request, self._clock.monotonic(), self._dice)

    def _client_arm(self, entry: ClientEntry, source: NodeId) -> str:
        """Return whose users a client is of: not by whether there is room now, but by whether its canary is near."""
        decision = self._considered(entry, source)
        far = {arm for arm, _, why in decision.passed if why == Passed.ARM_NOT_HERE}
        for cohort, placed in zip(self.decider.snapshot.cohorts, decision.placed, strict=False):
            if placed.is_canary and cohort.rollout.name not in far:
                return cohort.rollout.name
        return STABLE

    def _choose(self, entry: ClientEntry, source: NodeId, arm: str) -> NodeId | None:
        decision = self._considered(entry, source)
        if not decision.candidates or decision.arm != arm:
            return None
        return self.decider.snapshot.nodes[decision.candidates[0]].id
