"""Calling our HTTP APIs: one request, with a deadline, and the server's error as the exception that it is."""

from __future__ import annotations

from typing import Any

import aiohttp

from base.errors import PeerUnavailable, RemoteProtocolError, from_wire
from base.http import OPERATOR_HEADER

__all__ = ["call_api"]

DEADLINE_S = 5.0


async def call_api(
    method: str,
    url: str,
    *,
    credential: str | None = None,
    params: dict[str, str] | None = None,
    body: Any = None,
    operator: str = "",
    deadline_s: float = DEADLINE_S,
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

    Raises:
        RoadsteadError: what the server answered, by its code; PeerUnavailable when it did not answer in time.
    """
    headers = {"Authorization": f"Bearer {credential}"} if credential else {}
    if operator:
        headers[OPERATOR_HEADER] = operator
    timeout = aiohttp.ClientTimeout(total=deadline_s)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
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
