"""Looking users up from outside: page by page, at the next node where one does not answer, until it is as expected."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.test_utils import TestServer

from roadstead.ports import free_ports
from roadstead.replay import lookups as module
from roadstead.replay.core.proof import GONE, Shown
from roadstead.replay.lookups import Lookups

PHONE = Shown("online", ("phone",))


class Node:
    """A status node that shows everybody online, and after some questions offline."""

    def __init__(self, *, right_after: int = 0) -> None:
        self.url = ""
        self.asked: list[list[str]] = []
        self._right_after = right_after

    async def answer(self, request: web.Request) -> web.Response:
        users = (await request.json())["users"]
        self.asked.append(users)
        is_late = len(self.asked) <= self._right_after
        shown = (
            {"state": "online", "sessions": [{"device": "phone"}]} if is_late else {"state": "offline", "sessions": []}
        )
        return web.json_response({"statuses": [{"user": user, **shown} for user in users]})


@asynccontextmanager
async def a_node(*, right_after: int = 0) -> AsyncIterator[Node]:
    node, app = Node(right_after=right_after), web.Application()
    app.router.add_post("/v1/users/status", node.answer)
    async with TestServer(app) as server:
        node.url = str(server.make_url("")).rstrip("/")
        yield node


def away() -> str:
    (port,) = free_ports([0])
    return f"http://127.0.0.1:{port}"


async def test_many_are_asked_for_page_by_page_and_a_node_that_is_away_is_passed_over() -> None:
    """Each user once, if the answer is as expected."""
    users = [f"u{number}" for number in range(module.USERS_MAX + 5)]
    async with a_node() as node:
        lookups = Lookups([away(), node.url], credential="key", credible_s=5)
        assert await lookups.look_up(dict.fromkeys(users, GONE)) == dict.fromkeys(users, GONE)
    assert [len(page) for page in node.asked] == [module.USERS_MAX, 5]


async def test_an_answer_may_be_late_but_only_for_a_while() -> None:
    """Then the last one stands, whatever it is."""
    async with a_node(right_after=2) as node:
        assert await Lookups([node.url], credential="key", credible_s=5).look_up({"ann": GONE}) == {"ann": GONE}
        assert len(node.asked) == 3
    async with a_node(right_after=1_000) as node:
        assert await Lookups([node.url], credential="key", credible_s=0.3).look_up({"ann": GONE}) == {"ann": PHONE}
        assert len(node.asked) > 1


async def test_where_nobody_answers_nothing_is_said() -> None:
    """Which is no status."""
    assert await Lookups([away()], credential="key", credible_s=0.2).look_up({"ann": GONE}) == {}
