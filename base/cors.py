"""Lets pages of allowed origins, and no others, use some paths of an HTTP port from a browser (CORS).

What a page may send is what our APIs read: a JSON body, and a bearer token that the page itself adds. Credentials that
a browser adds by itself, such as cookies, are never looked at, so none are allowed.

Source: WHATWG, Fetch, "CORS protocol".
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import hdrs, web

from base.errors import PermissionDenied

__all__ = ["Cors"]

PREFLIGHT_AGE_S = 3_600
_VARY = (hdrs.VARY, hdrs.ORIGIN)


class Cors:
    """The guarded paths of one port."""

    def __init__(self, allows: Callable[[str], bool]) -> None:
        """`allows`: whether pages of an origin may ask."""
        self._allows = allows
        self._paths: set[str] = set()

    def guard(self, app: web.Application, path: str, method: str) -> None:
        """Answer preflight requests for the path, and mark what is answered there, errors too."""

        async def preflight(request: web.Request) -> web.Response:
            self.require_origin(request)
            return web.Response(
                status=204,
                headers={
                    hdrs.ACCESS_CONTROL_ALLOW_METHODS: method,
                    hdrs.ACCESS_CONTROL_ALLOW_HEADERS: f"{hdrs.CONTENT_TYPE}, {hdrs.AUTHORIZATION}",
                    hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_AGE_S),
                },
            )

        if not self._paths:
            app.on_response_prepare.append(self._mark)
        self._paths.add(path)
        app.router.add_route(hdrs.METH_OPTIONS, path, preflight)

    def require_origin(self, request: web.Request) -> None:
        """Raises PermissionDenied if a page of another origin asks. Clients that are no browsers have none."""
        self.check(request.headers.get(hdrs.ORIGIN))

    def check(self, origin: str | None) -> None:
        """The same by the value of the header `Origin`, None without one."""
        if origin is not None and not self._allows(origin):
            raise PermissionDenied("pages of this origin may not connect here")

    def headers(self, origin: str | None) -> tuple[tuple[str, str], ...]:
        """Return the headers of every answer on a guarded path, errors too, to a page of the origin."""
        if origin is None or not self._allows(origin):
            return (_VARY,)
        return (
            _VARY,
            (hdrs.ACCESS_CONTROL_ALLOW_ORIGIN, origin),
            (hdrs.ACCESS_CONTROL_EXPOSE_HEADERS, hdrs.RETRY_AFTER),
        )

    async def _mark(self, request: web.Request, response: web.StreamResponse) -> None:
        if request.path not in self._paths:
            return
        for name, value in self.headers(request.headers.get(hdrs.ORIGIN)):
            response.headers[name] = value
