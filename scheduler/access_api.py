"""`/v1/access`: where a client is, where it shall go, and the ticket that lets it in there.

GET with a query, or POST with the same fields as a JSON body:

    user      whom a backend asks for; a client with a user token leaves it out
    device    of the user's devices
    platform  ios, android, web, ...
    app       version of the application
    region    the region where the client believes to be, if it is one of the operator's
    address   the client's IP address, if a backend asks for it; a client's is seen
    rtt       round-trip times that it measured, `sh:23,bj:40` (ms)
    why       explain the answer; for backends only, since it names nodes and their loads
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from typing import cast

import msgspec
from aiohttp import web

from access.api import PROBE_PATH, transport_urls
from base.clock import Clock, Timestamp
from base.cors import Cors
from base.errors import BadRequest, NotReady, PermissionDenied, Unauthenticated
from base.http import Credentials, Role, credential_of, json_body
from base.ids import checked_id, entropy
from base.keys import KeyList
from scheduler.api import AccessAnswer, Backoff, Candidate, Probe
from scheduler.config import SchedulerConfig
from scheduler.core.access_head import PATH
from scheduler.core.engine import Decision
from scheduler.core.forwarded import Network, client_address, forwarded_for, listed
from scheduler.core.node import AccessNode
from scheduler.core.request import Location, Request
from scheduler.decider import Decider
from scheduler.metrics import SchedulerMetrics
from scheduler.tickets import ticket_of
from scheduler.tokens import TicketSigner, user_of

__all__ = ["AccessApi", "Locate", "Query", "parse_rtts", "query_of"]

RTTS_MAX = 16
RTT_MAX_MS = 60_000
CANDIDATES_KEPT = 65_536
BODY_BYTES_MAX = 8_192
"""As long as the same in a GET may be: it is read before anybody knows who asks."""

Locate = Callable[[str, str, str, dict[str, int]], Location]
"""Where a client is, by (user, address, hint, round-trip times in ms by region); the latter are learned from."""


class Query(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """See the module."""

    user: str = ""
    device: str = ""
    platform: str = ""
    app: str = ""
    region: str = ""
    address: str = ""
    rtt: str = ""
    why: str | bool = False

    @property
    def explains(self) -> bool:
        """Whether the answer shall say why."""
        return self.why not in {False, "0", "false"}


class AccessApi:
    """The route, and what makes an answer."""

    def __init__(
        self,
        config: SchedulerConfig,
        clock: Clock,
        credentials: Credentials,
        *,
        decider: Decider,
        locate: Locate,
        signer: Callable[[], TicketSigner],
        user_keys: KeyList,
        cors: Cors,
        metrics: SchedulerMetrics,
    ) -> None:
        """`signer` gives the key to sign with now; `user_keys` check user tokens."""
        self.address_header = config.address_header
        self._config = config
        self._clock = clock
        self._credentials = credentials
        self._decider = decider
        self._locate = locate
        self._signer = signer
        self._user_keys = user_keys
        self._cors = cors
        self._metrics = metrics
        self._proxies: tuple[Network, ...] = tuple(ipaddress.ip_network(network) for network in config.proxies)
        self._backoff = Backoff(config.backoff_base_ms, config.backoff_ceiling_ms)
        self._encoded: dict[tuple[str, str, str], msgspec.Raw] = {}
        """Candidates as they stand in answers: what changes seldom is encoded once."""
        self._random = entropy()
        self._encode = msgspec.json.Encoder().encode

    def add_to(self, app: web.Application) -> None:
        """Add the route."""
        app.router.add_get(PATH, self._get)
        app.router.add_post(PATH, self._post)
        self._cors.guard(app, PATH, "GET, POST")

    async def _get(self, request: web.Request) -> web.Response:
        """Answer a client or backend, see the module."""
        self._cors.require_origin(request)
        return self._answered(request, query_of(request.query.items()))

    async def _post(self, request: web.Request) -> web.Response:
        """Answer a client or backend whose query is a JSON body."""
        self._cors.require_origin(request)
        return self._answered(request, await json_body(request, Query, bytes_max=BODY_BYTES_MAX))

    def _answered(self, http: web.Request, query: Query) -> web.Response:
        headers = http.headers
        written = ",".join(headers.getall(self.address_header, ()))
        body = self.answer(query, headers.get("Authorization", ""), http.remote or "", written)
        return web.Response(body=body, content_type="application/json")

    def answer(self, query: Query, authorization: str, peer: str, written: str) -> bytes:
        """Return the answer in JSON.

        Args:
            query: what is asked.
            authorization: the value of that header, "" without one.
            peer: the address of who connected.
            written: what proxies wrote into `address_header`; several of them joined by commas.

        Raises:
            Unauthenticated, TokenExpired, PermissionDenied: it does not say who asks, or who may not.
            BadRequest: the query is.
            NotReady: no access node takes clients.
        """
        now = self._clock.realtime()
        explain = query.explains
        request = self._request_of(query, credential_of(authorization), peer, written, now)
        decision = self._decider.decide(request)
        if not decision.candidates:
            self._metrics.refusals.inc()
            detail = {"why": msgspec.to_builtins(self._decider.explain(request, decision))} if explain else {}
            raise NotReady("no access node takes clients now", retry_after_ms=decision.not_before_ms, **detail)
        self._metrics.decided(decision)
        return self._encode(self._answer(request, decision, now // 1000, explain=explain))

    def _request_of(self, query: Query, credential: str | None, peer: str, written: str, now: Timestamp) -> Request:
        user, is_backend = self._user(query, credential, now)
        if not is_backend:
            if query.address:
                raise BadRequest("a client does not name its address; leave it out")
            if query.explains:  # it names nodes, their loads, what operators ordered
                raise PermissionDenied("only a backend is told why; leave it out")
        if query.address:
            address = _checked_address(query.address)
        else:
            address = self._address(peer, written) if self._proxies else peer
        app = checked_id(query.app, "app") if query.app else ""
        region = checked_id(query.region, "region") if query.region else ""
        location = self._locate(user, address, region, parse_rtts(query.rtt) if query.rtt else {})
        device = checked_id(query.device, "device") if query.device else ""
        platform = checked_id(query.platform, "platform") if query.platform else ""
        return Request(user, device, platform, app, address, location)

    def _user(self, query: Query, credential: str | None, now: Timestamp) -> tuple[str, bool]:
        if credential is None:
            raise Unauthenticated("send a user token or an API key as `Authorization: Bearer ...`")
        role = self._credentials.role_of(credential)
        if role is not None:
            role.require(Role.BACKEND)
            if not query.user:
                raise BadRequest("the query parameter user is missing")
            return checked_id(query.user, "user"), True
        user = user_of(credential, keys=self._user_keys.all, now=now)
        if query.user and query.user != user:
            raise BadRequest("the query parameter user differs from the user token's; leave it out")
        return user, False

    def _address(self, peer: str, written: str) -> str:
        entries = forwarded_for(written) if self.address_header == "Forwarded" else listed(written)
        return client_address(peer, entries, self._proxies)

    # ---------------------------------------------------------------- the answer

    def _answer(self, request: Request, decision: Decision, now_s: int, *, explain: bool) -> AccessAnswer:
        config, snapshot = self._config, self._decider.snapshot
        nodes = [snapshot.nodes[index] for index in decision.candidates]
        arm = decision.arm if snapshot.cohorts else ""
        expires_at = now_s + (config.ticket_ttl_ms + decision.not_before_ms) // 1000
        ticket = ticket_of(request, decision, nodes, issuer=self._decider.id, arm=arm, now_s=now_s, exp=expires_at)
        lifetime_ms = config.lifetime_ms
        if lifetime_ms:
            lifetime_ms = max(1, lifetime_ms - int(self._random.random() * config.lifetime_jitter_ms))
        return AccessAnswer(
            decision=ticket.jti,
            ttl_ms=config.ticket_ttl_ms,
            candidates=cast("tuple[Candidate, ...]", tuple([self._candidate(node) for node in nodes])),
            ticket=self._signer().sign(ticket),
            backoff=self._backoff,
            why=self._decider.explain(request, decision) if explain else None,
            region=decision.region,
            arm=arm,
            not_before_ms=decision.not_before_ms,
            lifetime_ms=lifetime_ms,
            probe=self._probes(request.location.region) if config.probe_regions else (),
        )

    def _candidate(self, node: AccessNode) -> msgspec.Raw:
        key = (node.id, node.region, node.url)
        encoded = self._encoded.get(key)
        if encoded is None:
            if len(self._encoded) >= CANDIDATES_KEPT:
                self._encoded.clear()
            candidate = Candidate(node.id, node.region, transport_urls(node.url))
            encoded = self._encoded[key] = msgspec.Raw(msgspec.json.encode(candidate))
        return encoded

    def _probes(self, region: str) -> tuple[Probe, ...]:
        """Return a node of each of the nearest regions."""
        snapshot = self._decider.snapshot
        regions: dict[str, AccessNode] = {}
        for (_, name), pool in snapshot.pools.items():
            regions.setdefault(name, snapshot.nodes[pool.members[int(self._random.random() * len(pool.members))]])
        order = [name for name in snapshot.regions.order(region, regions) if name]
        return tuple(Probe(name, regions[name].url + PROBE_PATH) for name in order[: self._config.probe_regions])


def query_of(parameters: Iterable[tuple[str, str]]) -> Query:
    """Return the query that a URL's parameters make. Raises BadRequest."""
    pairs = list(parameters)
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise BadRequest("a query parameter is given twice")
    try:
        return msgspec.convert(fields, Query)
    except msgspec.ValidationError as error:
        raise BadRequest(f"bad query: {error}") from error


def parse_rtts(text: str) -> dict[str, int]:
    """Return round-trip times in ms by region from `sh:23,bj:40`. Raises BadRequest."""
    rtts: dict[str, int] = {}
    for item in text.split(",", RTTS_MAX + 1):
        region, _, value = item.rpartition(":")
        if not (region and value.isascii() and value.isdecimal() and len(value) < 9):
            raise BadRequest("rtt: write region:ms,region:ms")
        rtts[checked_id(region, "rtt")] = min(int(value), RTT_MAX_MS)
    if len(rtts) > RTTS_MAX:
        raise BadRequest(f"rtt names more than {RTTS_MAX} regions")
    return rtts


def _checked_address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise BadRequest(f"address: {error}") from error
