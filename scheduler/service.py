"""A scheduler: the shell that follows the access nodes' reports and answers `GET /v1/access`.

Stateless but for its snapshot and its own recent decisions: any number of schedulers work side by side without
talking to each other, and each goes on with its last snapshot when the registry is away.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from access.api import SERVICE as ACCESS_SERVICE
from access.api import capacity_of, report_of, transport_urls
from base.core.origins import Origins
from base.cors import Cors
from base.errors import BadRequest, NotReady, StoreError, Unauthenticated
from base.http import Role, bearer, json_response, query_param
from base.ids import NodeId, checked_id, entropy, name_order, new_uuid
from base.node import Node
from base.registry import ServiceInstance, follow
from base.site import Site
from scheduler.api import AccessAnswer, Backoff, Candidate, Ticket
from scheduler.config import SchedulerConfig
from scheduler.core.assignment import AccessNode, Decision, LoadEstimate, assign
from scheduler.metrics import SchedulerMetrics
from scheduler.tokens import mint_ticket, user_of

__all__ = ["Scheduler"]

SERVICE = "scheduler"
_PARAMS = {"user", "device", "platform", "why"}


class Scheduler:
    """One scheduler on its HTTP port."""

    def __init__(
        self,
        config: SchedulerConfig,
        site: Site,
        *,
        user_key: str,
        ticket_key: tuple[str, str],
    ) -> None:
        """`user_key` checks user tokens; `ticket_key` is the (kid, secret) that tickets are signed with."""
        self.node = Node(site, SERVICE, statistics=self.statistics)
        self._config = config
        self._registry = site.registry
        self._clock = site.clock
        self._credentials = site.credentials
        self._user_key = user_key
        self._kid, self._ticket_secret = ticket_key
        self._nodes: tuple[AccessNode, ...] = ()
        self._load = LoadEstimate()
        self._random = entropy()
        self._metrics = SchedulerMetrics(self.node.metrics, access_nodes=lambda: len(self._nodes))
        self._instances: tuple[ServiceInstance, ...] = ()
        self.node.http.app.router.add_get("/v1/access", self._access)
        self._cors = Cors(Origins(config.origins).allows)
        self._cors.guard(self.node.http.app, "/v1/access", "GET")
        self.node.http.app.router.add_get("/v1/admin/access/nodes", self._admin_nodes)

    async def start(self) -> None:
        """Listen and join."""
        await self.node.listen()
        await self.node.join()

    async def run(self) -> None:
        """Follow the access nodes."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.node.run())
            async for view in follow(self._registry.services, ACCESS_SERVICE, self._clock, on_outage=self._outage):
                self._instances = tuple(view.items)
                self._nodes = tuple(_read(instance) for instance in view.items)
                self._load.forget_all_but(self._nodes)

    async def drain(self) -> None:
        """Take no new work: a decision is over as soon as it is made."""
        self.node.http.is_ready = False

    async def stop(self) -> None:
        """Deregister and close."""
        await self.node.close()

    def statistics(self) -> dict[str, Any]:
        """Return a snapshot for `/debug/statistics`."""
        return {
            "access_nodes": {
                node.id: {
                    "connections": node.connections,
                    "estimate": self._load.connections(node),
                    "capacity": node.capacity,
                    "is_draining": node.is_draining,
                }
                for node in self._nodes
            },
        }

    async def _access(self, request: web.Request) -> web.Response:
        """Answer `GET /v1/access`, asked by a client with a user token, or by a backend with an API key and `user`."""
        self._cors.require_origin(request)
        unknown = set(request.query) - _PARAMS
        if unknown:
            raise BadRequest(f"unknown query parameters: {', '.join(sorted(unknown))}")
        user = self._user(request)
        device = checked_id(query_param(request, "device", "default"), "device")
        platform = checked_id(query_param(request, "platform", "unknown"), "platform")
        decision = assign(self._nodes, self._load, self._random, k=self._config.candidates)
        if not decision.candidates:
            self._metrics.refusals.inc()
            raise NotReady("no access node takes clients now", retry_after_ms=1_000, why=decision.why)
        self._load.assigned(decision.candidates[0])
        self._metrics.decisions.inc()
        return json_response(self._answer(decision, user, device, platform, explain="why" in request.query))

    async def _admin_nodes(self, request: web.Request) -> web.Response:
        """Answer with the access nodes as they last reported; `url` is where operators reach each."""
        self._credentials.require(request, Role.VIEWER)
        nodes = []
        for instance in sorted(self._instances, key=lambda instance: name_order(instance.id)):
            report = report_of(instance.note)
            nodes.append(
                {
                    "node": instance.id,
                    "url": instance.url,
                    "client_url": instance.meta.get("client_url", ""),
                    "region": instance.meta.get("region", ""),
                    "version": report.version,
                    "capacity": capacity_of(instance.meta),
                    "connections": report.connections,
                    "estimate": self._load.connections(_read(instance)),
                    "is_draining": report.is_draining,
                    "accepted": report.accepted,
                    "refused": report.refused,
                    "rejected": report.rejected,
                    "abnormal": report.abnormal,
                    "loop_lag_ms": report.loop_lag_ms,
                    "resident_bytes": report.resident_bytes,
                }
            )
        return json_response({"nodes": nodes})

    def _user(self, request: web.Request) -> str:
        credential = bearer(request)
        if credential is None:
            raise Unauthenticated("send a user token or an API key as `Authorization: Bearer ...`")
        if self._credentials.role_of(credential) is not None:
            self._credentials.require(request, Role.BACKEND)
            return checked_id(query_param(request, "user"), "user")
        user = user_of(credential, key=self._user_key, now=self._clock.realtime())
        if request.query.get("user", user) != user:
            raise BadRequest("the query parameter user differs from the user token's; leave it out")
        return user

    def _answer(self, decision: Decision, user: str, device: str, platform: str, *, explain: bool) -> AccessAnswer:
        now_s = self._clock.realtime() // 1000
        ticket = Ticket(
            sub=user,
            jti=new_uuid(),
            iat=now_s,
            exp=now_s + self._config.ticket_ttl_ms // 1000,
            device=device,
            platform=platform,
            nodes=tuple(node.id for node in decision.candidates),
        )
        return AccessAnswer(
            decision=ticket.jti,
            ttl_ms=self._config.ticket_ttl_ms,
            candidates=tuple(Candidate(node.id, node.region, transport_urls(node.url)) for node in decision.candidates),
            ticket=mint_ticket(ticket, kid=self._kid, key=self._ticket_secret),
            backoff=Backoff(self._config.backoff_base_ms, self._config.backoff_ceiling_ms),
            why=decision.why if explain else None,
        )

    def _outage(self, error: StoreError) -> None:
        self.node.log.warning("registry_unreachable", error=str(error))


def _read(instance: ServiceInstance) -> AccessNode:
    """An access node from its registration."""
    report = report_of(instance.note)
    return AccessNode(
        id=NodeId(instance.id),
        url=instance.meta.get("client_url", instance.url),
        region=instance.meta.get("region", ""),
        capacity=capacity_of(instance.meta),
        connections=report.connections,
        is_draining=report.is_draining,
        # A new life counts its reports from 1 again.
        report=(instance.incarnation, report.number),
    )
