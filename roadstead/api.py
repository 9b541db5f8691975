"""Calling our HTTP APIs: one request, with a deadline, and the server's error as the exception that it is.

Servers are believed by the machine's own CAs. A program that talks to a cluster with a CA of its own says so once, with
`trust_ca`, for whatever it calls from then on.
"""

from __future__ import annotations

import ssl
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import aiohttp

from base.errors import ConfigError, PeerUnavailable, RemoteProtocolError, from_wire
from base.http import OPERATOR_HEADER

__all__ = ["ambient", "call_api", "connector", "context_of", "trust_ca"]

DEADLINE_S = 5.0

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


async def call_api(
    method: str,
    url: str,
    *,
    credential: str | None = None,
    params: dict[str, str] | None = None,
    body: Any = None,
    operator: str = "",
    deadline_s: float = DEADLINE_S,
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
        tls: whom to believe; None: as `trust_ca` said.

    Raises:
        RoadsteadError: what the server answered, by its code; PeerUnavailable when it did not answer in time.
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
            answer = await response.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        reason = str(error) or f"no answer within {deadline_s:g} s"
        raise PeerUnavailable(f"{url} cannot be reached: {reason}") from error
    except ValueError as error:
        raise RemoteProtocolError(f"{url} did not answer with JSON") from error
    failure = answer.get("error") if isinstance(answer, dict) else None
    if failure is not None:
        raise from_wire(failure["code"], failure["message"], failure.get("detail", {}))
    return answer
