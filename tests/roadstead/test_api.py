"""Calling HTTP APIs: what the answers of ours become, and those of whatever else may stand where one of ours should."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from base.errors import NotReady, PeerUnavailable, RemoteProtocolError, RoadsteadError, Unauthenticated
from base.http import failure
from roadstead.api import RETRY_AFTER_MAX_S, call_api

HTML = "<html><h1>502 Bad Gateway</h1></html>"


class Port:
    """Answers as it is told."""

    def __init__(self) -> None:
        self.url = ""
        self.answer = (200, "{}", {"Content-Type": "application/json"})

    async def serve(self, _request: web.Request) -> web.Response:
        status, text, headers = self.answer
        return web.Response(status=status, text=text, headers=headers)

    async def failure(self, status: int, text: str, **headers: str) -> RoadsteadError:
        """Return what such an answer raises."""
        self.answer = (status, text, {"Content-Type": "text/html", **headers})
        with pytest.raises(RoadsteadError) as raised:
            await call_api("GET", self.url)
        return raised.value


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    made = Port()
    app = web.Application()
    app.router.add_get("/", made.serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    yield made
    await runner.cleanup()


async def test_an_answer_is_its_json_whatever_its_type_says(port: Port) -> None:
    """And an empty one is none. An `error` in what succeeded is a field as any other."""
    for text, expected in (('{"a": [1]}', {"a": [1]}), ("", None), (" \n", None), ('{"error": 1}', {"error": 1})):
        port.answer = (200, text, {"Content-Type": "text/plain"})
        assert await call_api("GET", port.url) == expected


@pytest.mark.parametrize("error", [Unauthenticated("who?"), NotReady("starting", retry_after_ms=150)])
async def test_a_failure_of_ours_is_raised_as_what_it_is(port: Port, error: RoadsteadError) -> None:
    """With its message and detail, as every port writes them."""
    status, _, body = failure(error)
    raised = await port.failure(status, body.decode())
    assert (type(raised), raised.message, raised.detail) == (type(error), error.message, error.detail)


@pytest.mark.parametrize(
    "text",
    [
        HTML,
        "",
        "null",
        '{"message": "Service Unavailable"}',
        '{"error": "service unavailable"}',
        '{"error": {"code": 503, "message": "no healthy upstream", "status": "UNAVAILABLE"}}',
        '{"error": {"code": 503, "name": "ServiceUnavailable", "message": "upstream away"}}',
        '{"error": {"code": 503, "name": "x", "message": "x", "retry": true}}',
        '{"error": {"code": "x", "name": "x", "message": "x", "retry": "never"}}',
        '{"error": ' * 2_000,
    ],
)
async def test_what_a_gateway_answers_for_us_is_told_by_its_status(port: Port, text: str) -> None:
    """Its 5xx and 429 pass; the rest does not, and says the status."""
    for status in (429, 500, 502, 503, 504):
        raised = await port.failure(status, text)
        assert (type(raised), raised.detail) == (PeerUnavailable, {})
        assert str(status) in raised.message
    for status in (304, 401, 403, 404):
        raised = await port.failure(status, text)
        assert isinstance(raised, RemoteProtocolError)
        assert str(status) in raised.message


@pytest.mark.parametrize("text", [HTML, "{", "\xff", "[" * 100_000])
async def test_a_success_without_json_is_none_of_ours(port: Port, text: str) -> None:
    """As of a portal that wants a login first."""
    raised = await port.failure(200, text)
    assert isinstance(raised, RemoteProtocolError)
    assert "200" in raised.message


@pytest.mark.parametrize(
    ("header", "after_ms"),
    [
        ("0", 0),
        ("7", 7_000),
        ("99999999", 1_000 * RETRY_AFTER_MAX_S),
        ("9" * 5_000, 1_000 * RETRY_AFTER_MAX_S),
        ("-1", None),
        ("soon", None),
        ("Fri, 31 Dec 1999 23:59:59 GMT", None),
    ],
)
async def test_a_gateway_is_believed_about_when_to_come_back(port: Port, header: str, after_ms: int | None) -> None:
    """In seconds, within reason; what cannot be understood is left out."""
    raised = await port.failure(503, HTML, **{"Retry-After": header})
    assert raised.detail == ({} if after_ms is None else {"retry_after_ms": after_ms})
