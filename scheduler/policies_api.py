"""The policies over HTTP: the one in force, and the one in its shadow.

GET    /v1/admin/policy          the policy in force, who changed it when
PUT    /v1/admin/policy          go by this document; an empty one is the built-in policy; `?validate` only checks
GET    /v1/admin/policy/shadow   the policy in its shadow, and how it differs on this scheduler's decisions
PUT    /v1/admin/policy/shadow   evaluate this document beside it, and act on nothing of it; `?validate` only checks
DELETE /v1/admin/policy/shadow   end that

A document is the body as it is (YAML), or `{"document": "..."}` as JSON. Both are one value in the registry with their
history, so that each change is written by the same compare-and-set as the line that says whose it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import msgspec
from aiohttp import web
from msgspec.structs import replace

from base.errors import CasConflict, Conflict, NotFound
from base.http import Role, json_response
from base.log import logger
from base.site import Site
from scheduler.admin_answers import document_of, is_check, validated
from scheduler.core.conditions import list_names
from scheduler.core.policy import DEFAULT_POLICY, Policy, parse_policy
from scheduler.core.rollout_record import BYTES_MAX, HISTORY_MAX, Change
from scheduler.decider import Decider
from scheduler.orders import POLICY, UNREADABLE, Orders, PolicyRecord
from scheduler.rollouts import bad_document

__all__ = ["PoliciesApi"]

TRIES: Final = 8
_Update = Callable[[PolicyRecord], PolicyRecord]


class PoliciesApi:
    """The routes."""

    def __init__(self, site: Site, *, decider: Decider, orders: Orders) -> None:
        self._credentials = site.credentials
        self._registry = site.registry
        self._clock = site.clock
        self._decider = decider
        self._orders = orders
        self._log = logger(node=site.name)

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get("/v1/admin/policy", self._get)
        router.add_put("/v1/admin/policy", self._put)
        router.add_get("/v1/admin/policy/shadow", self._get_shadow)
        router.add_put("/v1/admin/policy/shadow", self._put_shadow)
        router.add_delete("/v1/admin/policy/shadow", self._delete_shadow)

    async def _get(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.VIEWER)
        return json_response(self._shown(await self._read()))

    async def _put(self, request: web.Request) -> web.Response:
        return await self._take(request, "policy", lambda record, document: replace(record, document=document))

    async def _get_shadow(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.VIEWER)
        record = await self._read()
        if not record.shadow:
            raise NotFound("there is no shadow policy")
        return json_response(self._shadow_shown(record))

    async def _put_shadow(self, request: web.Request) -> web.Response:
        return await self._take(request, "shadow", lambda record, document: replace(record, shadow=document))

    async def _delete_shadow(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.OPERATOR)

        def change(record: PolicyRecord) -> PolicyRecord:
            if not record.shadow:
                raise NotFound("there is no shadow policy")
            return replace(record, shadow="")

        return json_response(self._shown(await self._change(request, "shadow ended", change)))

    async def _take(
        self, request: web.Request, what: str, put: Callable[[PolicyRecord, str], PolicyRecord]
    ) -> web.Response:
        """Check the document that the request brings, and write it unless that was all."""
        self._credentials.require(request, Role.VIEWER)
        is_dry = is_check(request)
        self._credentials.require(request, Role.VIEWER if is_dry else Role.OPERATOR)
        document = await document_of(request)
        is_built_in = what == "policy" and not document.strip()
        # It may be long, and made to take long: others go on meanwhile.
        parsed = DEFAULT_POLICY if is_built_in else await asyncio.to_thread(parse_policy, document)
        if is_dry:
            return json_response(validated("policy", parsed, self._policy))
        if isinstance(parsed, tuple):
            raise bad_document(parsed)
        document = "" if is_built_in else document
        record = await self._change(request, what, lambda before: put(before, document), document)
        return json_response(self._shown(record) if what == "policy" else self._shadow_shown(record))

    # ---------------------------------------------------------------- the record

    async def _read(self) -> PolicyRecord:
        entry = await self._registry.get(POLICY)
        return _decoded(entry.value) if entry is not None else PolicyRecord(0)

    async def _change(self, request: web.Request, action: str, update: _Update, document: str = "") -> PolicyRecord:
        who = self._credentials.who(request)
        for _ in range(TRIES):
            entry = await self._registry.get(POLICY)
            before = _decoded(entry.value) if entry is not None else PolicyRecord(0)
            line = Change(self._clock.realtime(), who, action, document=document)
            changed = replace(update(before), revision=before.revision + 1, history=(*before.history, line))
            record = _fitting(changed)
            try:
                await self._registry.put(POLICY, msgspec.json.encode(record), expect=entry.index if entry else 0)
            except CasConflict:
                continue
            self._log.info("policy_changed", action=action, revision=record.revision, who=who)
            return record
        raise Conflict("others change the policies all the time")

    # ---------------------------------------------------------------- how it is shown

    def _shown(self, record: PolicyRecord) -> dict[str, Any]:
        return {
            "revision": record.revision,
            "document": record.document,
            "policy": self._policy(_parsed(record.document)),
            "has_shadow": bool(record.shadow),
            "is_in_force": self._orders.policy_record.document == record.document,
            "unreadable": self._orders.bad.get(POLICY, ""),
            "history": record.history,
        }

    def _shadow_shown(self, record: PolicyRecord) -> dict[str, Any]:
        policy, shadow = _parsed(record.shadow), self._decider.shadow
        is_running = shadow is not None and shadow.policy == policy
        return {
            "document": record.shadow,
            "policy": self._policy(policy),
            "difference": shadow.difference() if is_running and shadow is not None else None,
        }

    def _policy(self, policy: Policy | None) -> dict[str, Any] | None:
        """Return what a document says; None for one that cannot be read any more."""
        if policy is None:
            return None
        named = {name for rule in policy.rules if rule.when is not None for name in list_names(rule.when)}
        return {
            "name": policy.name,
            "rules": [
                {"name": rule.name, "strategies": sorted(rule.strategies), "when": msgspec.to_builtins(rule.when)}
                for rule in policy.rules
            ],
            "missing_lists": sorted(named - self._orders.lists.keys()),
        }


def _decoded(value: bytes) -> PolicyRecord:
    """Return the record. Raises Conflict for one that cannot be read: to write over it would lose its history."""
    try:
        return msgspec.json.decode(value, type=PolicyRecord)
    except UNREADABLE as error:
        raise Conflict(f"the policies in the registry cannot be read: {error}") from error


def _parsed(document: str) -> Policy | None:
    parsed = parse_policy(document) if document else DEFAULT_POLICY
    return None if isinstance(parsed, tuple) else parsed


def _fitting(record: PolicyRecord) -> PolicyRecord:
    """Return the record with as much of its history as the registry takes."""
    record = replace(record, history=record.history[-HISTORY_MAX:])
    while len(msgspec.json.encode(record)) > BYTES_MAX:
        record = replace(record, history=record.history[1:])
    return record
