"""Which web pages may connect: the allow-list for the `Origin` of a browser's request.

A browser attaches the user's cookies and network place to a WebSocket that any page opens, and asks nobody first; the
server has to look at the page's origin by itself (RFC 6455, section 10.2). Programs that are no browsers send no
origin and lose nothing by that, since they could send any: the list protects users of browsers, it authenticates
nobody.

| pattern                     | allows                                                                     |
|-----------------------------|----------------------------------------------------------------------------|
| `https://app.example.com`   | this scheme, host and port; a port left out is the scheme's own            |
| `https://*.example.com`     | every host below example.com at any depth, but not example.com             |
| `null`                      | pages without an origin: sandboxed frames, files, redirects between sites  |
| `*`                         | every origin but `null`, which anybody can have and nobody is              |

Sources: RFC 6454 (sections 4, 5 and 6.2: triple, default ports, text form); RFC 6455, sections 4.2.2 and 10.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv6Address
from typing import NamedTuple

__all__ = ["Origins", "origin_problems"]

DEFAULT_PORTS = {"http": 80, "https": 443}
ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>0|[1-9][0-9]{0,4}))?",
    re.IGNORECASE | re.ASCII,
)
ANY = "*"
NULL = "null"
BELOW = "*."


class _Origin(NamedTuple):
    """The triple of RFC 6454, section 4. `port` is None where the scheme has none."""

    scheme: str
    host: str
    port: int | None


class Origins:
    """An allow-list. An empty one lets in no browser."""

    __slots__ = ("_allows_any", "_allows_null", "_below", "_exact")

    def __init__(self, patterns: Iterable[str]) -> None:
        """Read the patterns of the configuration.

        Raises:
            ValueError: a pattern is none; the message names it and says what to write instead.
        """
        patterns = frozenset(patterns)
        self._allows_any = ANY in patterns
        self._allows_null = NULL in patterns
        self._exact: set[_Origin] = set()
        self._below: set[_Origin] = set()
        for pattern in sorted(patterns - {ANY, NULL}):
            _check_common_mistakes(pattern)
            # With the wildcard taken out what is left is an origin: that of the hosts' common parent.
            origin = _parse(pattern.replace(f"://{BELOW}", "://", 1))
            if origin is None:
                raise ValueError(
                    f"{pattern!r} is no origin: write scheme://host, scheme://host:port or scheme://*.host"
                )
            (self._below if f"://{BELOW}" in pattern else self._exact).add(origin)

    def allows(self, origin: str | None) -> bool:
        """Return whether a request with this `Origin` header may connect. None: it has no such header."""
        if origin is None:
            return True
        if origin == NULL:
            return self._allows_null
        asked = _parse(origin)
        if asked is None:
            return False
        if self._allows_any or asked in self._exact:
            return True
        parent = asked.host
        while "." in parent and self._below:
            parent = parent.partition(".")[2]
            if asked._replace(host=parent) in self._below:
                return True
        return False


def origin_problems(setting: str, patterns: Iterable[str]) -> Iterator[str]:
    """Yield what is wrong with the patterns of a setting, one line each."""
    for pattern in patterns:
        try:
            Origins([pattern])
        except ValueError as error:
            yield f"{setting}: {error}"


def _check_common_mistakes(pattern: str) -> None:
    scheme, _, rest = pattern.partition("://")
    if scheme.lower() in {"ws", "wss"}:
        raise ValueError(f"{pattern!r}: an origin is that of the page, so write http:// or https://")
    if "/" in rest:
        raise ValueError(f"{pattern!r}: an origin has no path, so end it after the host or port")
    if not pattern.isascii():
        raise ValueError(f"{pattern!r}: browsers send the host's ASCII form, so write that (xn--...)")
    if ANY in pattern.replace(f"://{BELOW}", "", 1):
        raise ValueError(f"{pattern!r}: a wildcard stands for the first labels of a host, as in https://*.example.com")


def _parse(text: str) -> _Origin | None:
    """Return the triple with its default port filled in, None where the text is no single origin."""
    found = ORIGIN.fullmatch(text)
    if found is None:
        return None
    scheme = found["scheme"].lower()
    host = found["host"].lower()
    port = DEFAULT_PORTS.get(scheme) if found["port"] is None else int(found["port"])
    if port is not None and port > 65_535:
        return None
    if host.startswith("["):
        try:
            host = f"[{IPv6Address(host[1:-1])}]"
        except ValueError:
            return None
    return _Origin(scheme, host, port)
