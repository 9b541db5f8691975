"""Rollouts over HTTP.

GET    /v1/admin/rollouts                 all of them, in the order in which they are asked
POST   /v1/admin/rollouts                 start one, or a new revision of one that is over; `?validate` only checks
GET    /v1/admin/rollouts/{name}          everything about one
POST   /v1/admin/rollouts/{name}/{order}  step, pause, resume, promote, abort
DELETE /v1/admin/rollouts/{name}          forget one that is over
GET    /v1/admin/rollouts/{name}/flagd    the same as a flag for flagd

A document is the body as it is (YAML, whatever content type says so), or `{"document": "..."}` as JSON.

Two numbers are always there: `assigned`, of this scheduler's new assignments, and `live`, of all live connections.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast, get_args

from aiohttp import web

from base.errors import NotFound
from base.http import Role, json_response
from base.log import logger
from base.site import Site
from scheduler.admin_answers import assigned_to, document_of, is_check, percent_of, unreadable, validated
from scheduler.core.cohorts import ActiveRollout, Cohort, export_flagd
from scheduler.core.rollout import Rollout, Step
from scheduler.core.rollout_document import parse_rollout
from scheduler.core.rollout_machine import Live, Order, RolloutState, next_deadline, wanted_moves
from scheduler.core.rollout_record import move_id
from scheduler.decider import Decider
from scheduler.orders import ROLLOUTS, Orders, RunningRollout
from scheduler.rollouts import Rollouts

__all__ = ["RolloutsApi"]

ORDERS: Final[tuple[str, ...]] = get_args(Order)


class RolloutsApi:
    """The routes."""

    def __init__(self, site: Site, *, decider: Decider, orders: Orders, rollouts: Rollouts) -> None:
        self._credentials = site.credentials
        self._clock = site.clock
        self._decider = decider
        self._orders = orders
        self._rollouts = rollouts
        self._log = logger(node=site.name)

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get("/v1/admin/rollouts", self._get_all)
        router.add_post("/v1/admin/rollouts", self._post)
        router.add_get("/v1/admin/rollouts/{name}", self._get)
        router.add_delete("/v1/admin/rollouts/{name}", self._delete)
        router.add_get("/v1/admin/rollouts/{name}/flagd", self._get_flagd)
        router.add_post("/v1/admin/rollouts/{name}/{order}", self._post_order)

    async def _get_all(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.VIEWER)
        return json_response(
            {
                "rollouts": [self._summary(running) for running in self._orders.rollouts.values()],
                "unreadable": unreadable(self._orders, ROLLOUTS),
            }
        )

    async def _get(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.VIEWER)
        return json_response(self._shown(self._found(request)))

    async def _post(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.VIEWER)
        is_dry = is_check(request)
        self._credentials.require(request, Role.VIEWER if is_dry else Role.OPERATOR)
        document = await document_of(request)
        if is_dry:
            return json_response(validated("rollout", await asyncio.to_thread(parse_rollout, document)))
        who = self._credentials.who(request)
        record = await self._rollouts.create(document, who=who)
        self._log.info("rollout_created", rollout=record.name, revision=record.revision, who=who)
        return json_response(self._shown(self._orders.rollouts[record.name]))

    async def _post_order(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.OPERATOR)
        name, order = request.match_info["name"], request.match_info["order"]
        if order not in ORDERS:
            raise NotFound(f"there is no order {order}; there are: {', '.join(ORDERS)}")
        who = self._credentials.who(request)
        record = await self._rollouts.order(name, cast("Order", order), who=who)
        self._log.info("rollout_ordered", rollout=name, order=order, who=who, phase=record.state.phase)
        return json_response(self._shown(self._orders.rollouts[name]))

    async def _delete(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.OPERATOR)
        name = request.match_info["name"]
        await self._rollouts.delete(name)
        self._log.info("rollout_deleted", rollout=name, who=self._credentials.who(request))
        return json_response({"name": name})

    async def _get_flagd(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.VIEWER)
        running = self._found(request)
        state = running.record.state
        exported = export_flagd(running.rollout, state.percent, self._orders.lists)
        return json_response({"flags": exported.flags, "left_out": exported.left_out})

    def _found(self, request: web.Request) -> RunningRollout:
        name = request.match_info["name"]
        running = self._orders.rollouts.get(name)
        if running is None:
            known = ", ".join(self._orders.rollouts) or "none"
            raise NotFound(f"there is no rollout {name}; there are: {known}")
        return running

    # ---------------------------------------------------------------- how it is shown

    def _summary(self, running: RunningRollout) -> dict[str, Any]:
        record, rollout = running.record, running.rollout
        state = record.state
        live, counts = self._rollouts.live(rollout), self._decider.arm_counts
        return {
            "name": record.name,
            "version": rollout.version,
            "revision": record.revision,
            "created_at": record.created_at,
            "phase": state.phase,
            "reason": state.reason,
            "step": state.step + 1,
            "steps": len(rollout.steps),
            "percent": state.percent / 1_000,
            "since": state.since,
            "outcome": state.outcome,
            "assigned": assigned_to(record.name, counts.totals, counts.last_minute(self._clock.monotonic())),
            "live": {
                "connections": live.canary,
                "total": live.total,
                "percent": percent_of(live.canary, live.total),
            },
        }

    def _shown(self, running: RunningRollout) -> dict[str, Any]:
        record, rollout = running.record, running.rollout
        state, live = record.state, self._rollouts.live(rollout)
        moves, wanted = self._orders.moves, wanted_moves(rollout, state, live)
        cohort = Cohort(ActiveRollout(rollout, state.percent, lists=self._orders.lists))
        return {
            **self._summary(running),
            **self._progress(rollout, state),
            "pool": self._pool(rollout, live),
            "moves": {
                "wanted": wanted._asdict() if wanted is not None else None,
                "progress": moves if moves is not None and moves.request.partition(".")[0] == move_id(record) else None,
            },
            "missing_lists": cohort.missing_lists,
            "document_revision": record.document_revision,
            "document": record.document,
            "history": record.history,
        }

    def _progress(self, rollout: Rollout, state: RolloutState) -> dict[str, Any]:
        now = max(self._clock.realtime(), state.at)
        step = rollout.steps[state.step]
        held_ms = state.held_ms + (now - state.since if state.phase == "running" else 0)
        return {
            "all_steps": [_step(one) for one in rollout.steps],
            "held_ms": held_ms,
            "left_ms": max(0, step.hold_ms - held_ms) if state.phase in {"running", "paused"} else None,
            "connects": state.connects,
            "connects_min": step.connects_min,
            "failures": state.failures,
            "failure_limit": rollout.analysis.failure_limit,
            "checks": len(rollout.analysis.checks),
            "findings": state.findings,
            "judged_at": state.judged_at or None,
            "next_analysis_at": next_deadline(rollout, state),
        }

    def _pool(self, rollout: Rollout, live: Live) -> dict[str, Any]:
        snapshot = self._decider.snapshot
        canary = [index for index, node in enumerate(snapshot.nodes) if node.version == rollout.version]
        return {
            "nodes": len(canary),
            "open_nodes": sum(index not in snapshot.left_out for index in canary),
            "capacity": live.canary_capacity,
            "max_share_of_capacity": rollout.max_share_of_capacity,
        }


def _step(step: Step) -> dict[str, Any]:
    return {
        "is_pause": step.is_pause,
        "percent": step.percent / 1_000,
        "hold_ms": step.hold_ms,
        "connects_min": step.connects_min,
        "move_per_s": step.move_per_s,
    }
