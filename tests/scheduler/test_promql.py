"""What a Prometheus answers, and what is made of it; the real one is in the tests of other people's programs."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from scheduler.promql import ANSWER_BYTES_MAX, REASON_CHARS_MAX, Failed, Measured, NoData, Prometheus, _read

SOON_S = 5.0


def success(kind: str, result: Any) -> dict[str, Any]:
    return {"status": "success", "data": {"resultType": kind, "result": result}, "warnings": ["slow"]}


def vector(*values: str) -> dict[str, Any]:
    return success("vector", [{"metric": {"node": str(i)}, "value": [1.5, value]} for i, value in enumerate(values)])


NOT_ONE = "ask for a scalar or a vector of one sample"
HISTOGRAM = success("vector", [{"metric": {}, "histogram": [1.5, {"count": "3"}]}])
TABLE: list[tuple[int, Any, Measured | NoData | Failed]] = [
    (200, success("scalar", [1435781451.781, "0.25"]), Measured(0.25)),
    (200, success("scalar", [1, "-1e-3"]), Measured(-0.001)),
    (200, vector("12"), Measured(12.0)),
    (200, vector("NaN"), NoData("the result is NaN")),
    (200, vector("+Inf"), NoData("the result is +Inf")),
    (200, vector("-Inf"), NoData("the result is -Inf")),
    (200, vector(), NoData("the result is empty")),
    (200, vector("1", "2"), Failed("the result has 2 samples: aggregate to one, with sum() or max()")),
    (200, HISTOGRAM, Failed("the result is a histogram: take a quantile of it")),
    (200, success("matrix", []), Failed(f"the result is a matrix: {NOT_ONE}")),
    (200, success("string", [1, "a"]), Failed(f"the result is a string: {NOT_ONE}")),
    (400, {"status": "error", "errorType": "bad_data", "error": "parse error"}, Failed("bad_data: parse error")),
    (503, {"status": "error", "errorType": "timeout", "error": "expanding"}, Failed("timeout: expanding")),
    (200, {"status": "odd"}, Failed("error: ")),
    (200, {"status": "success"}, Failed("the answer has no data")),
    (502, "<html>", Failed("HTTP 502, and not an answer of a Prometheus")),
    (200, [], Failed("HTTP 200, and not an answer of a Prometheus")),
    (200, "\ud800", Failed("HTTP 200, and not an answer of a Prometheus")),
]


def encoded(body: Any) -> bytes:
    return body.encode(errors="surrogatepass") if isinstance(body, str) else json.dumps(body).encode()


@pytest.mark.parametrize(("status", "body", "outcome"), TABLE)
def test_an_answer_is_a_value_no_data_or_a_failure(status: int, body: Any, outcome: object) -> None:
    """One line for each form that the protocol has, and for those that are none."""
    assert _read(status, encoded(body)) == outcome


@pytest.mark.parametrize(
    "body",
    [
        success("scalar", "1"),
        success("scalar", [1]),
        success("scalar", [1, 2]),
        success("scalar", [1, "one"]),
        success("vector", {}),
        success("vector", [1]),
        success("vector", [{"value": "1"}]),
    ],
)
def test_a_result_of_another_form_is_a_failure(body: Any) -> None:
    """Somebody else answers there, or a version that we do not know."""
    outcome = _read(200, encoded(body))
    assert isinstance(outcome, Failed)
    assert outcome.reason.startswith("the answer's data is malformed: ")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.sampled_from(["success", "vector", "scalar", "1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["status", "data", "resultType", "result", "value", "error"]), inner)
    ),
    max_leaves=8,
)


def test_an_answer_that_is_too_deep_is_a_failure() -> None:
    """As any other that is none."""
    assert isinstance(_read(200, b'{"status":"success","data":{"resultType":"x","result":' + b"[" * 100_000), Failed)


@given(JSON | st.binary())
def test_whatever_comes_is_an_outcome(body: Any) -> None:
    """Never an exception, and never a value that is no number."""
    outcome = _read(200, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert outcome.value < math.inf if isinstance(outcome, Measured) else outcome.reason


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_value_comes_through_as_it_is(value: float) -> None:
    """Prometheus writes numbers as text so that none is lost."""
    assert _read(200, encoded(vector(repr(value)))) == Measured(value)


# ---------------------------------------------------------------- over HTTP

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def prometheus(handler: Handler, **options: Any) -> AsyncIterator[Prometheus]:
    """Return a client of a server that answers like this."""
    app = web.Application()
    app.router.add_post("/prefix/api/v1/query", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(SOON_S):
            yield Prometheus(session, f"http://127.0.0.1:{port}/prefix/", **options)
    finally:
        await runner.cleanup()


async def test_a_query_is_sent_as_a_form_with_its_deadline_and_the_credential() -> None:
    """However long it is; the server stops at the deadline too."""
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append((dict(await request.post()), request.headers.get("Authorization")))
        return web.json_response(vector("1"))

    query = f"sum(rate(x[1m])) or {'1 + ' * 5_000} 1"
    for options in ({}, {"authorization": "Basic YTpi", "deadline_ms": 1_500}):
        async with prometheus(answer, **options) as server:
            assert await server.measure("c", query) == Measured(1.0)
    assert asked == [
        ({"query": query, "timeout": "5000ms"}, None),
        ({"query": query, "timeout": "1500ms"}, "Basic YTpi"),
    ]


async def test_a_server_that_does_not_answer_in_time_has_failed() -> None:
    """Before its answer begins, and in the middle of it."""

    async def silent(_request: web.Request) -> web.Response:
        await asyncio.sleep(SOON_S)
        raise AssertionError

    async def stalled(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"status":')
        await asyncio.sleep(SOON_S)
        return response

    for handler in (silent, stalled):
        async with prometheus(handler, deadline_ms=50) as server:
            assert await server.measure("c", "up") == Failed("no answer within 50 ms")


async def test_an_answer_without_end_is_left_at_its_bound() -> None:
    """A query that was forgotten to be aggregated may match millions of series."""

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 65_536)

    async with prometheus(endless) as server:
        expected = f"the answer is over {ANSWER_BYTES_MAX} bytes: aggregate to one value"
        assert await server.measure("c", "up") == Failed(expected)


async def test_a_redirect_is_not_followed() -> None:
    """The credential goes where the operator said."""

    async def moved(_request: web.Request) -> web.Response:
        raise web.HTTPTemporaryRedirect("http://192.0.2.1/")

    async with prometheus(moved, authorization="Bearer secret") as server:
        assert await server.measure("c", "up") == Failed("HTTP 307, and not an answer of a Prometheus")


async def test_a_check_has_one_query_in_flight_and_others_go_on() -> None:
    """A slow server gets no second question on top of the first; after the answer the next one is asked."""
    release = asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        if (await request.post())["query"] == "slow":
            await release.wait()
        return web.json_response(vector("1"))

    async with prometheus(slow) as server, asyncio.TaskGroup() as tasks:
        first = tasks.create_task(server.measure("one", "slow"))
        await asyncio.sleep(0)
        assert await server.measure("one", "up") == Failed("the last query is not answered yet")
        assert await server.measure("two", "up") == Measured(1.0)
        release.set()
        assert await first == Measured(1.0)
        assert await server.measure("one", "up") == Measured(1.0)


async def test_a_cancelled_query_does_not_block_its_check() -> None:
    """The rollout was aborted, say, and another one of that name begins."""

    async def answer(request: web.Request) -> web.Response:
        if (await request.post())["query"] == "slow":
            await asyncio.sleep(SOON_S)
        return web.json_response(vector("1"))

    async with prometheus(answer) as server:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await server.measure("one", "slow")
        assert await server.measure("one", "up") == Measured(1.0)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://", "nonsense", "http://[::1", "ftp://127.0.0.1"])
async def test_a_server_that_cannot_be_reached_is_a_failure(url: str) -> None:
    """With a reason that is not endless."""
    async with aiohttp.ClientSession() as session:
        outcome = await Prometheus(session, url).measure("c", "up")
    assert isinstance(outcome, Failed)
    assert outcome.reason


def test_a_reason_is_cut_where_nobody_reads_on() -> None:
    """The server's error text goes into the rollout's history."""
    told = {"status": "error", "errorType": "bad_data", "error": "x" * 10_000}
    outcome = _read(400, encoded(told))
    assert isinstance(outcome, Failed)
    assert len(outcome.reason) == REASON_CHARS_MAX + len("...")
