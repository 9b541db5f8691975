"""The HTTP interface of the message services, for backends and operators.

POST /v1/messages                               send for a user
GET  /v1/users/{user}/timeline?since=&limit=    what `im.sync` gives the user
POST /v1/users/{user}/im/{method}               any method that clients have, for the user
POST /v1/conversations/{cid}/changes            change a group without being in it; the strategy: operators only
GET  /v1/offline?cursor=&limit=&wait_ms=        messages that found their receiver offline, for push notifications;
                                                of users of shards of this process, unlike all the others
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from base.errors import BadRequest, RoadsteadError
from base.http import Credentials, Role, json_body, json_response, query_param
from base.ids import checked_id
from im.core.arguments import USERS_MAX, ChangeGroupArguments, Send
from im.core.commands import GroupAction
from im.core.model import EVERYBODY
from im.core.offline import Missed, OfflineFeed
from im.core.publications import shown, without_body
from im.core.shards import shard_of_cid
from im.gathering import Shards, elsewhere
from im.methods import METHODS, Caller
from im.reading import overlays_told, visible_of

__all__ = ["ConversationChange", "ImApi", "OfflineItem", "OfflinePage", "ServerSend"]

Call = Callable[[Caller, str, bytes], Awaitable[bytes]]
"""Carries out a client's method for a caller: its name, its arguments as JSON; the result is JSON, too."""

DEVICE = "server"
"""What messages that a backend sent name as their device."""
LIMIT_MAX = 1_000
WAIT_MS_MAX = 25_000


class ServerSend(Send, frozen=True, kw_only=True):
    """A backend sends for the user `from`."""

    sender: str = msgspec.field(name="from")


class ConversationChange(msgspec.Struct, frozen=True):
    """What is to become of a conversation; see `im.group_change`."""

    action: GroupAction
    users: Annotated[list[str], Meta(max_length=USERS_MAX)] = []
    value: Annotated[str, Meta(max_length=200)] = ""
    settings: dict[str, str] = {}


class OfflineItem(msgspec.Struct, frozen=True):
    """A message that its receiver has not been shown, as far as can be told."""

    user: str
    message: Any


class OfflinePage(msgspec.Struct, frozen=True):
    """Items in order, the cursor after them, and how many were forgotten before them."""

    items: list[OfflineItem]
    cursor: str
    lost: int


class ImApi:
    """The routes and what they answer."""

    def __init__(
        self,
        call: Call,
        *,
        offline: OfflineFeed,
        shards: Shards,
        credentials: Credentials,
        has_previews: Callable[[], bool],
    ) -> None:
        """Answer requests.

        Args:
            call: carries out a method, wherever its shard is.
            offline: what was missed by users of shards of this process.
            shards: have what became of that.
            credentials: the API keys.
            has_previews: whether the offline feed shows what messages say just now.
        """
        self._call = call
        self._offline = offline
        self._shards = shards
        self._credentials = credentials
        self._has_previews = has_previews
        self._more = asyncio.Event()

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_post("/v1/messages", self._post_message)
        router.add_get("/v1/users/{user}/timeline", self._get_timeline)
        for method in METHODS:
            router.add_post(f"/v1/users/{{user}}/im/{method.name}", partial(self._post_call, method.name))
        router.add_post("/v1/conversations/{cid}/changes", self._post_change)
        router.add_get("/v1/offline", self._get_offline)

    def offline_grew(self) -> None:
        """Wake those who wait for items."""
        self._more.set()

    async def _post_message(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.BACKEND)
        body = await json_body(request, ServerSend)
        caller = Caller(checked_id(body.sender, "from"), DEVICE, is_backend=True)
        return _answer(await self._call(caller, "send", await request.read()))

    async def _get_timeline(self, request: web.Request) -> web.Response:
        caller = self._user_of(request)
        arguments = {
            "since": _integer(query_param(request, "since", "0"), "since"),
            "limit": _integer(query_param(request, "limit", "100"), "limit"),
            "epoch": query_param(request, "epoch", ""),
        }
        return _answer(await self._call(caller, "sync", msgspec.json.encode(arguments)))

    async def _post_call(self, name: str, request: web.Request) -> web.Response:
        caller = self._user_of(request)
        return _answer(await self._call(caller, name, await request.read()))

    async def _post_change(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.BACKEND)
        body = await json_body(request, ConversationChange)
        if body.action == "fan_out":
            self._credentials.require(request, Role.OPERATOR)
        arguments = ChangeGroupArguments(request.match_info["cid"], body.action, body.users, body.value, body.settings)
        caller = Caller("", DEVICE, is_backend=True)
        return _answer(await self._call(caller, "group_change", msgspec.json.encode(arguments)))

    def _user_of(self, request: web.Request) -> Caller:
        self._credentials.require(request, Role.BACKEND)
        return Caller(checked_id(request.match_info["user"], "user"), DEVICE, is_backend=True)

    # ------------------------------------------------------------ offline

    async def _get_offline(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.BACKEND)
        cursor = query_param(request, "cursor", "")
        limit = _within(query_param(request, "limit", "100"), "limit", 1, LIMIT_MAX)
        wait_ms = _within(query_param(request, "wait_ms", "0"), "wait_ms", 0, WAIT_MS_MAX)
        page = self._offline.read(cursor, limit=limit)
        if page is not None and not page.items and wait_ms:
            await self._wait(wait_ms)
            page = self._offline.read(page.cursor, limit=limit)
        if page is None:
            raise BadRequest("the cursor is none that was given here")
        return json_response(OfflinePage(await self._to_notify(page.items), page.cursor, page.lost))

    async def _wait(self, wait_ms: int) -> None:
        self._more.clear()
        try:
            async with asyncio.timeout(wait_ms / 1000):
                await self._more.wait()
        except TimeoutError:
            pass

    async def _to_notify(self, items: Sequence[Missed]) -> list[OfflineItem]:
        """Leave out what its user muted and is not mentioned in, has read meanwhile or may not see, or was recalled.

        What cannot be looked up, since its shard does not answer, is told without what it says.
        """
        chosen: list[OfflineItem] = []
        silent: set[int] = set()
        for user, message in items:
            shard = shard_of_cid(message.cid, self._shards.count)
            try:
                if shard in silent:
                    raise elsewhere(shard)
                page = await self._shards.messages(message.cid, [message.seq])
                # Afterwards: whoever leaves meanwhile is not told what comes then.
                listed = await self._shards.listed(user, [message.cid])
            except RoadsteadError:
                silent.add(shard)
                chosen.append(OfflineItem(user, without_body(shown(message, None))))
                continue
            if not listed or message.seq < (visible := visible_of(listed[0])).first_seq:
                continue
            overlay = overlays_told(page.overlays, visible).get((message.cid, message.seq))
            if overlay is not None and overlay.is_recalled:
                continue
            view = listed[0].view
            is_quiet = view.is_muted and not _mentions(message.mentions, user)
            if not is_quiet and max(view.read_seq, view.sent_seq, view.hidden_seq) < message.seq:
                entry = shown(message, overlay)
                chosen.append(OfflineItem(user, entry if self._has_previews() else without_body(entry)))
        return chosen


def _mentions(mentions: bytes, user: str) -> bool:
    return bool(mentions) and not {user, EVERYBODY}.isdisjoint(msgspec.json.decode(mentions))


def _answer(result: bytes) -> web.Response:
    return web.Response(body=result, content_type="application/json")


def _integer(text: str, what: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 19):
        raise BadRequest(f"{what} must be an integer of at least 0")
    return int(text)


def _within(text: str, what: str, least: int, most: int) -> int:
    value = _integer(text, what)
    if not least <= value <= most:
        raise BadRequest(f"{what} must be from {least} to {most}")
    return value
