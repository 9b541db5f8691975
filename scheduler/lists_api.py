"""Named lists of values, which conditions of rollouts and policies name (`user: {in: staff}`), over HTTP.

GET    /v1/admin/lists          their sizes, and who names them
GET    /v1/admin/lists/{name}   the values of one
PUT    /v1/admin/lists/{name}   its values anew: one a line, or a JSON array
DELETE /v1/admin/lists/{name}   forget it; not while something names it

A list is one value of the registry: at most 400 kB, some 30,000 user ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from aiohttp import web

from base.errors import BadRequest, Conflict, NotFound, TooLarge
from base.http import Role, body_of, json_body, json_response
from base.ids import checked_id
from base.log import logger
from base.site import Site
from scheduler.admin_answers import unreadable
from scheduler.core.conditions import Condition, list_names
from scheduler.core.policy import Policy
from scheduler.orders import BYTES_MAX as ORDERS_MAX
from scheduler.orders import LISTS, Orders

__all__ = ["BYTES_MAX", "NAME", "ListsApi"]

NAME = "^[a-z0-9][a-z0-9._-]{0,62}$"
"""As conditions name them."""
BYTES_MAX = 400_000
_name = re.compile(NAME)


class ListsApi:
    """The routes."""

    def __init__(self, site: Site, *, orders: Orders) -> None:
        self._credentials = site.credentials
        self._registry = site.registry
        self._orders = orders
        self._log = logger(node=site.name)

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get("/v1/admin/lists", self._get_all)
        router.add_get("/v1/admin/lists/{name}", self._get)
        router.add_put("/v1/admin/lists/{name}", self._put)
        router.add_delete("/v1/admin/lists/{name}", self._delete)

    async def _get_all(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.VIEWER)
        used = self._used()
        lists = {
            name: {"values": len(self._orders.lists.get(name, ())), "used_by": used.get(name, [])}
            for name in sorted(self._orders.lists.keys() | used.keys())
        }
        missing = sorted(used.keys() - self._orders.lists.keys())
        return json_response({"lists": lists, "missing": missing, "unreadable": unreadable(self._orders, LISTS)})

    async def _get(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.VIEWER)
        name = _checked(request)
        entry = await self._registry.get(LISTS + name)
        if entry is None:
            raise NotFound(f"there is no list {name}")
        return json_response({"name": name, "values": _lines(entry.value.decode(errors="replace"))})

    async def _put(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.OPERATOR)
        name = _checked(request)
        values = sorted(set(await _values(request)))
        value = "\n".join(values).encode()
        if len(value) > BYTES_MAX:
            raise TooLarge(f"the list has {len(value)} bytes, over {BYTES_MAX}", limit=BYTES_MAX)
        if not self._orders.room_for(LISTS + name, len(value)):
            raise TooLarge(f"with it all orders would have over {ORDERS_MAX} bytes; delete a list", limit=ORDERS_MAX)
        await self._registry.put(LISTS + name, value)
        self._log.info("list_written", list=name, values=len(values), who=self._credentials.who(request))
        return json_response({"name": name, "values": len(values)})

    async def _delete(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.OPERATOR)
        name = _checked(request)
        users = self._used().get(name)
        if users:
            raise Conflict(f"the list {name} is named by {', '.join(users)}")
        if not await self._registry.delete(LISTS + name):
            raise NotFound(f"there is no list {name}")
        self._log.info("list_deleted", list=name, who=self._credentials.who(request))
        return json_response({"name": name})

    def _used(self) -> dict[str, list[str]]:
        """Return who names which list, by list."""
        used: dict[str, list[str]] = {}
        for user, conditions in self._conditions():
            for name in sorted({name for condition in conditions for name in list_names(condition)}):
                used.setdefault(name, []).append(user)
        return used

    def _conditions(self) -> Iterator[tuple[str, Iterable[Condition]]]:
        for name, running in self._orders.rollouts.items():
            yield f"the rollout {name}", [segment.when for segment in running.rollout.segments]
        yield "the policy", _of_policy(self._orders.policy)
        if self._orders.shadow is not None:
            yield "the shadow policy", _of_policy(self._orders.shadow)


def _of_policy(policy: Policy) -> list[Condition]:
    return [rule.when for rule in policy.rules if rule.when is not None]


def _checked(request: web.Request) -> str:
    name = request.match_info["name"]
    if not _name.fullmatch(name):
        raise BadRequest("a list's name has 1 to 64 of a-z, 0-9 and -")
    return name


async def _values(request: web.Request) -> list[str]:
    if request.content_type == "application/json":
        values = await json_body(request, list[str])
    else:
        try:
            values = _lines((await body_of(request)).decode())
        except UnicodeDecodeError as error:
            raise BadRequest("the body is not UTF-8") from error
    return [checked_id(value, f"value {number}") for number, value in enumerate(values, 1)]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]
