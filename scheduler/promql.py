"""One number from a Prometheus: its instant query, for the checks of a rollout that are written in PromQL.

A query must come to a single value: a scalar, or a vector of one sample. What is no number (nothing was scraped yet, a
ratio of nothing to nothing) is *no data*, which decides nothing; a query that cannot be answered is a *failure*. Both
are outcomes, not exceptions: somebody else's Prometheus is in trouble, and the rollout must go on being watched.

Source: Prometheus, "HTTP API", instant queries.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import aiohttp
import msgspec

__all__ = ["Failed", "Measured", "Measurement", "NoData", "Prometheus"]

DEADLINE_MS = 5_000
ANSWER_BYTES_MAX = 256 * 1024
REASON_CHARS_MAX = 300


class Measured(msgspec.Struct, frozen=True, tag="measured"):
    """What the query came to; finite."""

    value: float


class NoData(msgspec.Struct, frozen=True, tag="no_data"):
    """There is nothing to judge by."""

    reason: str


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """There is no answer, or none that is a value."""

    reason: str


Measurement: TypeAlias = Measured | NoData | Failed


class _Result(msgspec.Struct, rename="camel"):
    result_type: str
    result: Any


class _Answer(msgspec.Struct, rename="camel"):
    status: str
    data: _Result | None = None
    error_type: str = ""
    error: str = ""


class _Sample(msgspec.Struct):
    value: tuple[float, str] | None = None
    """Time and value; none in a sample that is a native histogram."""


_decode = msgspec.json.Decoder(_Answer).decode


class Prometheus:
    """A client of one server."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        *,
        authorization: str = "",
        deadline_ms: int = DEADLINE_MS,
    ) -> None:
        """Nothing is asked yet.

        Args:
            session: the caller's, who closes it.
            url: base URL, as in a browser: `http://prometheus:9090`.
            authorization: value of that header, `Bearer ...` or `Basic ...`; "" sends none.
            deadline_ms: for a whole answer.
        """
        self._session = session
        self._url = f"{url.rstrip('/')}/api/v1/query"
        self._headers = {"Authorization": authorization} if authorization else {}
        self._deadline_ms = deadline_ms
        self._asking: set[str] = set()

    async def measure(self, check: str, query: str) -> Measurement:
        """Ask for the value of a query now. One question at a time for each `check`, however slow the server is."""
        if check in self._asking:
            return Failed("the last query is not answered yet")
        self._asking.add(check)
        try:
            return await self._ask(query)
        except TimeoutError:
            return Failed(f"no answer within {self._deadline_ms} ms")
        except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: a URL that is none
            return _failed(str(error) or type(error).__name__)
        finally:
            self._asking.discard(check)

    async def _ask(self, query: str) -> Measurement:
        # The server is told the deadline too, so that it does not go on with what nobody waits for.
        asked = {"query": query, "timeout": f"{self._deadline_ms}ms"}
        timeout = aiohttp.ClientTimeout(total=self._deadline_ms / 1000)
        # A redirect would carry the credential to where the operator did not send it.
        async with self._session.post(
            self._url, data=asked, headers=self._headers, timeout=timeout, allow_redirects=False
        ) as response:
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > ANSWER_BYTES_MAX:
                    return Failed(f"the answer is over {ANSWER_BYTES_MAX} bytes: aggregate to one value")
        return _read(response.status, bytes(body))


def _read(status: int, body: bytes) -> Measurement:
    """Return what an answer says. Errors of the query come as JSON with status 400, 422 or 503."""
    try:
        answer = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Failed(f"HTTP {status}, and not an answer of a Prometheus")
    if answer.status != "success":
        return _failed(f"{answer.error_type or 'error'}: {answer.error}")
    if answer.data is None:
        return Failed("the answer has no data")
    try:
        return _value(answer.data)
    except (msgspec.ValidationError, ValueError) as error:
        return _failed(f"the answer's data is malformed: {error}")


def _value(data: _Result) -> Measurement:
    """Raises ValueError or ValidationError for what no Prometheus sends."""
    if data.result_type == "scalar":
        _, text = msgspec.convert(data.result, tuple[float, str])
    elif data.result_type == "vector":
        samples = msgspec.convert(data.result, list[_Sample])
        if not samples:
            return NoData("the result is empty")
        if len(samples) > 1:
            return Failed(f"the result has {len(samples)} samples: aggregate to one, with sum() or max()")
        if samples[0].value is None:
            return Failed("the result is a histogram: take a quantile of it")
        _, text = samples[0].value
    else:
        return _failed(f"the result is a {data.result_type}: ask for a scalar or a vector of one sample")
    value = float(text)
    # An infinite ratio is one to nothing: as little to judge by as nothing to nothing.
    return Measured(value) if math.isfinite(value) else NoData(f"the result is {text}")


def _failed(reason: str) -> Failed:
    return Failed(reason if len(reason) <= REASON_CHARS_MAX else f"{reason[:REASON_CHARS_MAX]}...")
