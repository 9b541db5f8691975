"""Calling our HTTP APIs: one request, with a deadline, and the server's error as the exception that it is.

Servers are believed by the machine's own CAs. A program that talks to a cluster with a CA of its own says so once, with
`trust_ca`, for whatever it calls from then on.
"""

from __future__ import annotations

import ssl
from collections.abc import Collection
from contextvars import ContextVar
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from base.errors import ConfigError, PeerUnavailable, RemoteProtocolError, Retry, RoadsteadError, from_wire
from base.http import OPERATOR_HEADER

__all__ = ["ambient", "call_api", "connector", "context_of", "trust_ca"]

DEADLINE_S = 5.0
SUCCESS = 2
"""The hundred of those HTTP statuses."""
RETRY_AFTER_MAX_S = 3_600
"""The longest that a gateway is believed about when to come back."""

_ambient: ContextVar[ssl.SSLContext | None] = ContextVar("tls", default=None)


def context_of(ca: Path) -> ssl.SSLContext:
    """Return a client's context that believes a CA beside those of the machine. Raises ConfigError."""
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError([f"{ca} is no certificate of a CA that can be read: {error}"]) from error
    return context


def trust_ca(ca: Path) -> None:
    """Believe a CA from here on in this task, and in those that it starts. Raises ConfigError."""
    _ambient.set(context_of(ca))


def ambient() -> ssl.SSLContext | None:
    """Return whom to believe, as `trust_ca` said; None: the machine's own CAs."""
    return _ambient.get()


def connector(tls: ssl.SSLContext | None = None) -> aiohttp.TCPConnector:
    """Return what an HTTP session connects with. `tls`: whom to believe; None: as `trust_ca` said."""
    return aiohttp.TCPConnector(ssl=tls or ambient() or True)


class _Failure(msgspec.Struct, frozen=True):
    """How our APIs say what failed, see `base.http`. Others' errors have no `retry` of these, or are no objects."""

    code: int
    name: str
    retry: Retry
    message: str
    detail: dict[str, Any] = {}


class _Failed(msgspec.Struct, frozen=True):
    error: _Failure


_failed = msgspec.json.Decoder(_Failed)


async def call_api(
    method: str,
    url: str,
    *,
    credential: str | None = None,
    params: dict[str, str] | None = None,
    body: Any = None,
    operator: str = "",
    deadline_s: float = DEADLINE_S,
    answers: Collection[int] = (),
    tls: ssl.SSLContext | None = None,
) -> Any:
    """Send one request and return its JSON answer.

    Args:
        method: GET, POST, ...
        url: the whole URL without its query.
        credential: an API key or user token.
        params: the query.
        body: sent as JSON unless None.
        operator: who asks, by the name that they give themselves: for the audit log.
        deadline_s: how long the answer may take.
        answers: HTTP statuses beside those of success that come with an answer, as the 503 of `/readyz` does.
        tls: whom to believe; None: as `trust_ca` said.

    Raises:
        RoadsteadError: what the server answered, by its code.
        PeerUnavailable: it did not answer in time; or something before it answered for it with a 5xx or 429, with
            `detail["retry_after_ms"]` if that said when to come back.
        RemoteProtocolError: what answered is none of our APIs.
    """
    headers = {"Authorization": f"Bearer {credential}"} if credential else {}
    if operator:
        headers[OPERATOR_HEADER] = operator
    timeout = aiohttp.ClientTimeout(total=deadline_s)
    try:
        async with (
            aiohttp.ClientSession(connector=connector(tls), timeout=timeout, headers=headers) as session,
            session.request(method, url, params=params, json=body) as response,
        ):
            answer = await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        reason = str(error) or f"no answer within {deadline_s:g} s"
        raise PeerUnavailable(f"{url} cannot be reached: {reason}") from error
    if response.status // 100 != SUCCESS and response.status not in answers:
        raise _failure_of(url, response, answer)
    try:
        return msgspec.json.decode(answer) if answer.strip() else None
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RemoteProtocolError(f"{url} answered {response.status}, but not with JSON") from error


def _failure_of(url: str, response: aiohttp.ClientResponse, answer: bytes) -> RoadsteadError:
    """Return what an answer says that is no success: ours by its code, a gateway's by its status."""
    try:
        failure = _failed.decode(answer).error
    except (msgspec.MsgspecError, RecursionError):
        pass
    else:
        return from_wire(failure.code, failure.message, failure.detail)
    message = f"{url} answered {response.status} {response.reason}, without an error of ours"
    if response.status < HTTPStatus.INTERNAL_SERVER_ERROR and response.status != HTTPStatus.TOO_MANY_REQUESTS:
        return RemoteProtocolError(message)
    # RFC 9110, section 10.2.3. It may also be a date, which is not worth to believe another clock for.
    seconds = response.headers.get("Retry-After", "")
    if not (seconds.isascii() and seconds.isdecimal()):
        return PeerUnavailable(message)
    # Before `int`, which refuses thousands of digits.
    after_s = int(seconds) if len(seconds) <= len(str(RETRY_AFTER_MAX_S)) else RETRY_AFTER_MAX_S
    return PeerUnavailable(message, retry_after_ms=1_000 * min(after_s, RETRY_AFTER_MAX_S))
