"""What operators ask and order of the scheduler over HTTP: access nodes, panic, rebalancing.

GET  /v1/admin/access/nodes                   the access nodes, the arms, and how the scheduler sees them
POST /v1/admin/access/nodes/{node}/cordon     send no newcomers there, `{"reason"}`
POST /v1/admin/access/nodes/{node}/uncordon   send newcomers there again
POST /v1/admin/access/panic/accept            nodes that panic keeps are dead, at this scheduler
GET  /v1/admin/access/rebalance               the last order to even out live connections, and how moves are getting on
POST /v1/admin/access/rebalance               even them out, `{"rate_per_s", "tolerance", ...}`
POST /v1/admin/access/rebalance/pause         tell nobody more
POST /v1/admin/access/rebalance/resume        go on
POST /v1/admin/access/rebalance/abort         tell nobody more, for good

What rollouts, policies, lists, explanations and recordings have is in modules of their own. Orders are written to the
registry, which all schedulers follow; who ordered what is logged, and kept with the order.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec.structs import replace

from base.errors import BadRequest, CasConflict, Conflict, NotFound
from base.http import Role, json_body, json_response
from base.ids import name_order, new_uuid
from base.log import logger
from base.site import Site
from scheduler.access_api import Locate
from scheduler.admin_answers import assigned_to, percent_of
from scheduler.core.arm_counts import ArmCounts
from scheduler.core.balance import TOLERANCE
from scheduler.core.move_accounts import RATE_MIN
from scheduler.core.moving import MoveRequest
from scheduler.core.node import AccessNode
from scheduler.core.snapshot import Snapshot
from scheduler.decider import Decider
from scheduler.following import Seen
from scheduler.lists_api import ListsApi
from scheduler.orders import CORDONS, REBALANCE, UNREADABLE, Cordon, Orders, RebalanceRecord, rebalance_record
from scheduler.policies_api import PoliciesApi
from scheduler.recorder import Recorder
from scheduler.rollouts import Rollouts
from scheduler.rollouts_api import RolloutsApi

__all__ = ["CordonRequest", "RebalanceRequest", "SchedulerAdmin"]

REASON_CHARS_MAX = 500
RATE_MAX = 100_000.0
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


class CordonRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why the node gets no newcomers, for people."""

    reason: Annotated[str, msgspec.Meta(max_length=REASON_CHARS_MAX)] = ""


class RebalanceRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to even out live connections; see `MoveRequest` for the fields."""

    rate_per_s: Annotated[float, msgspec.Meta(ge=RATE_MIN, le=RATE_MAX)] = 100.0
    """Clients that are told to go, a second."""
    accept_per_s: Annotated[float, msgspec.Meta(ge=RATE_MIN, le=RATE_MAX)] = 20.0
    """The most newcomers a second that any one node is sent."""
    accept_percent: Annotated[int, msgspec.Meta(ge=1, le=100)] = 50
    """The same, in percent of the connections a second that the node takes, where it names them."""
    grace_ms: Annotated[int, msgspec.Meta(ge=100, le=HOUR_MS)] = 30_000
    """How long a client that was told may stay."""
    deadline_ms: Annotated[int, msgspec.Meta(ge=0, le=DAY_MS)] = 0
    """After which time it should be over; it is then said to be late, and not hurried. 0: whenever."""
    tolerance: Annotated[int, msgspec.Meta(ge=0, le=1_000)] = TOLERANCE
    """How far from its share a node may stay, in thousandths of it."""
    region: str = ""
    """Only nodes of this region; empty: all."""


class SchedulerAdmin:
    """All routes that operators have at a scheduler."""

    def __init__(
        self,
        site: Site,
        *,
        decider: Decider,
        orders: Orders,
        rollouts: Rollouts,
        seen: Seen,
        schedulers: Callable[[], int],
        locate: Locate,
    ) -> None:
        """`schedulers`: how many there are; `locate`: where a client is, for explanations."""
        self._credentials = site.credentials
        self._registry = site.registry
        self._clock = site.clock
        self._decider = decider
        self._orders = orders
        self._seen = seen
        self._schedulers = schedulers
        self._parts = (
            RolloutsApi(site, decider=decider, orders=orders, rollouts=rollouts),
            PoliciesApi(site, decider=decider, orders=orders),
            ListsApi(site, orders=orders),
            Recorder(site, decider=decider, locate=locate),
        )
        self._log = logger(node=site.name)

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get("/v1/admin/access/nodes", self._get_nodes)
        router.add_post("/v1/admin/access/nodes/{node}/cordon", self._post_cordon)
        router.add_post("/v1/admin/access/nodes/{node}/uncordon", self._post_uncordon)
        router.add_post("/v1/admin/access/panic/accept", self._post_accept)
        router.add_get("/v1/admin/access/rebalance", self._get_rebalance)
        router.add_post("/v1/admin/access/rebalance", self._post_rebalance)
        router.add_post("/v1/admin/access/rebalance/pause", self._rebalance_order("pause", _paused))
        router.add_post("/v1/admin/access/rebalance/resume", self._rebalance_order("resume", _resumed))
        router.add_post("/v1/admin/access/rebalance/abort", self._rebalance_order("abort", _aborted))
        for part in self._parts:
            part.add_to(router)

    # ---------------------------------------------------------------- nodes

    async def _get_nodes(self, request: web.Request) -> web.Response:
        """Answer with the access nodes as they last reported; `url` is where operators reach each."""
        self._credentials.require(request, Role.VIEWER)
        snapshot = self._decider.snapshot
        known = sorted(enumerate(snapshot.nodes), key=lambda item: name_order(item[1].id))
        return json_response(
            {
                "nodes": [self._shown(snapshot, index, node) for index, node in known if node.id in self._seen.nodes],
                "vanished": [node.id for _, node in known if node.id not in self._seen.nodes],
                "arms": arms_of(snapshot, self._decider.arm_counts, self._clock.monotonic()),
                "share": snapshot.share,
                "schedulers": self._schedulers(),
                "is_panic": self._decider.engine.is_panic,
            }
        )

    def _shown(self, snapshot: Snapshot, index: int, node: AccessNode) -> dict[str, Any]:
        sighting = self._seen.nodes[node.id]
        report, admitted = sighting.report, node.admitted_of_all
        return {
            "node": node.id,
            "url": sighting.instance.url,
            "client_url": sighting.instance.meta.get("client_url", ""),
            "region": node.region,
            "carrier": node.carrier,
            "version": node.version,
            "arm": snapshot.arm_of(node),
            "capacity": node.capacity,
            "connections": node.connections,
            "estimate": round(snapshot.load[index]),
            "weight": round(snapshot.weight_of(node)),
            "left_out": snapshot.left_out.get(index, ""),
            "is_draining": node.is_draining,
            "cordon": self._orders.cordons.get(node.id),
            "admitted": admitted,
            "admitted_percent": percent_of(node.admitted, admitted),
            "accepted": report.accepted,
            "refused": report.refused,
            "rejected": report.rejected,
            "abnormal": report.abnormal,
            "loop_lag_ms": report.loop_lag_ms,
            "resident_bytes": report.resident_bytes,
        }

    async def _post_cordon(self, request: web.Request) -> web.Response:
        """Cordon a node; a reason that is given anew replaces the old one."""
        self._credentials.require(request, Role.OPERATOR)
        wanted = await json_body(request, CordonRequest) if request.can_read_body else CordonRequest()
        node, who = self._known(request), self._credentials.who(request)
        cordon = Cordon(self._clock.realtime(), who, wanted.reason)
        await self._registry.put(CORDONS + node, msgspec.json.encode(cordon))
        self._log.info("cordoned", access_node=node, who=who, reason=wanted.reason)
        return json_response({"node": node, "cordon": cordon})

    async def _post_uncordon(self, request: web.Request) -> web.Response:
        """Take a cordon away. One that is not there is no error."""
        self._credentials.require(request, Role.OPERATOR)
        node = self._known(request)
        if await self._registry.delete(CORDONS + node):
            self._log.info("uncordoned", access_node=node, who=self._credentials.who(request))
        return json_response({"node": node, "cordon": None})

    def _known(self, request: web.Request) -> str:
        """Return the node of the path. Raises NotFound for one that is neither there nor cordoned."""
        node = request.match_info["node"]
        known = {known.id for known in self._decider.snapshot.nodes} | self._seen.nodes.keys()
        if node not in known and node not in self._orders.cordons:
            names = ", ".join(sorted(known, key=name_order))
            raise NotFound(f"there is no access node {node}; there are: {names or 'none'}")
        return node

    async def _post_accept(self, request: web.Request) -> web.Response:
        """Believe that the nodes which panic keeps are dead. Each scheduler that is in panic has to be told."""
        self._credentials.require(request, Role.OPERATOR)
        if not self._decider.engine.is_panic:
            raise Conflict("this scheduler is not in panic: it goes by what the registry shows")
        lost = [node.id for node in self._decider.snapshot.nodes if node.id not in self._seen.nodes]
        self._decider.accept_loss()
        self._log.warning("loss_accepted", who=self._credentials.who(request), lost=lost)
        return json_response({"is_panic": self._decider.engine.is_panic, "lost": lost})

    # ---------------------------------------------------------------- rebalancing

    async def _get_rebalance(self, request: web.Request) -> web.Response:
        """Answer with the last order, and with how moving live connections is getting on, for whomever."""
        self._credentials.require(request, Role.VIEWER)
        return json_response(self._rebalance_shown(self._orders.rebalance))

    async def _post_rebalance(self, request: web.Request) -> web.Response:
        """Order it. Raises Conflict while another order is carried out."""
        self._credentials.require(request, Role.OPERATOR)
        wanted = await json_body(request, RebalanceRequest) if request.can_read_body else RebalanceRequest()
        regions = {node.region for node in self._decider.snapshot.nodes}
        if wanted.region and wanted.region not in regions:
            known = ", ".join(sorted(regions - {""})) or "none"
            raise BadRequest(f"no access node is in the region {wanted.region}; there are: {known}")
        # Without a hyphen: a plan's id is that of its request, a hyphen, and the fencing token of who carries it out.
        order = MoveRequest(id=f"b{new_uuid().partition('-')[0]}", kind="rebalance", **msgspec.structs.asdict(wanted))

        def change(before: RebalanceRecord | None) -> MoveRequest:
            if before is not None and not self._is_over(before):
                raise Conflict("connections are being rebalanced; abort that before you order it anew")
            return order

        return await self._change_rebalance(request, "rebalance", change)

    def _rebalance_order(
        self, name: str, change: Callable[[RebalanceRecord], RebalanceRecord]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        def checked(before: RebalanceRecord | None) -> RebalanceRecord:
            if before is None or self._is_over(before):
                raise NotFound("no rebalancing is under way")
            return change(before)

        async def handle(request: web.Request) -> web.Response:
            self._credentials.require(request, Role.OPERATOR)
            return await self._change_rebalance(request, name, checked)

        return handle

    async def _change_rebalance(
        self,
        request: web.Request,
        action: str,
        change: Callable[[RebalanceRecord | None], RebalanceRecord | MoveRequest],
    ) -> web.Response:
        who = self._credentials.who(request)
        entry = await self._registry.get(REBALANCE)
        made = change(_decoded(entry.value) if entry is not None else None)
        if isinstance(made, MoveRequest):
            made = RebalanceRecord(made, self._clock.realtime(), who)
        record = replace(made, at=self._clock.realtime(), who=who)
        try:
            await self._registry.put(REBALANCE, msgspec.json.encode(record), expect=entry.index if entry else 0)
        except CasConflict as error:
            raise Conflict("somebody else ordered something at the same time; look, and order again") from error
        self._log.info("rebalance_ordered", action=action, request=record.request.id, who=who)
        return json_response(self._rebalance_shown(record))

    def _is_over(self, record: RebalanceRecord) -> bool:
        moves = self._orders.moves
        is_complete = moves is not None and moves.request == record.request.id and moves.is_complete
        return record.is_aborted or record.is_complete or is_complete

    def _rebalance_shown(self, record: RebalanceRecord | None) -> dict[str, Any]:
        is_over = record is None or self._is_over(record)
        return {"order": record, "is_over": is_over, "moves": self._orders.moves}


# ---------------------------------------------------------------- helpers


def arms_of(snapshot: Snapshot, counts: ArmCounts, now: int) -> dict[str, dict[str, Any]]:
    """Return of each arm its nodes, its live connections as estimated, and what this scheduler assigned to it."""
    live, minute = snapshot.totals(), counts.last_minute(now)
    nodes = dict.fromkeys(live, 0)
    for node in snapshot.nodes:
        nodes[snapshot.arm_of(node)] += 1
    return {
        arm: {
            "nodes": nodes[arm],
            "live": round(connections),
            "live_percent": percent_of(connections, sum(live.values())),
            "assigned": assigned_to(arm, counts.totals, minute),
        }
        for arm, connections in live.items()
    }


def _decoded(value: bytes) -> RebalanceRecord | None:
    """Return the record; None for one that cannot be read: an order that nobody carries out may be replaced."""
    try:
        return rebalance_record(value)
    except UNREADABLE:
        return None


def _paused(record: RebalanceRecord) -> RebalanceRecord:
    if record.request.is_paused:
        raise Conflict("the rebalancing is paused already")
    return replace(record, request=replace(record.request, is_paused=True))


def _resumed(record: RebalanceRecord) -> RebalanceRecord:
    # Also of one that is not paused by an order: the plan may have paused itself.
    return replace(record, request=replace(record.request, is_paused=False, resumes=record.request.resumes + 1))


def _aborted(record: RebalanceRecord) -> RebalanceRecord:
    return replace(record, is_aborted=True)
