"""Access nodes for Envoy: endpoint discovery (EDS) by xDS over REST and JSON.

An Envoy in front of the access nodes asks `POST /v3/discovery:endpoints` as often as its `refresh_delay` says. Its
clusters of type EDS choose by their `service_name` which nodes they get:

    access            all
    access-ARM        those of one arm: `access-stable`, or `access-NAME` for the canary of a rollout
    access@REGION     those of one region

A cluster that names anything else gets no endpoints. Every endpoint has a weight (what the node takes now, slow start
included), a locality (its region) and metadata for subsets (`envoy.lb`: canary, node, version). A node that takes no
new clients is DRAINING: Envoy opens no connections to it and leaves those alone that it has.

The version of an answer is a hash of its content, so that every scheduler answers alike; who has that version already
gets 304, which Envoy takes for "nothing new".

Source: Envoy, "xDS REST and gRPC protocol"; envoy/config/endpoint/v3/endpoint.proto; proto3's JSON mapping.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec
import xxhash
from aiohttp import web

from base.errors import BadRequest, NotReady
from base.http import Credentials, Role, json_body
from base.ids import name_order
from base.log import logger
from scheduler.core.node import AccessNode

__all__ = ["PATH", "Eds"]

PATH = "/v3/discovery:endpoints"
TYPE = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
NAMES_MAX = 1_000
"""Clusters that one request may ask for."""
UINT32_MAX = 2**32 - 1
STEPS = 10
"""Slow start shows in tenths: a weight that changed with every report would be a new version at every poll."""
RETRY_MS = 1_000
DEFAULT_PORTS = {"http": 80, "https": 443}
_CLUSTER = "access"
_encode = msgspec.json.Encoder().encode
_Member = tuple[AccessNode, tuple[str, int]]
"""A node, and its IP address and port."""


class _Asked(msgspec.Struct):
    """A DiscoveryRequest, as far as it matters. proto3's JSON may spell a field either way, and null is the default."""

    resource_names: list[str] | None = None
    version_info: str | None = None
    type_url: str | None = None
    resource_names_: list[str] | None = msgspec.field(default=None, name="resourceNames")
    version_info_: str | None = msgspec.field(default=None, name="versionInfo")
    type_url_: str | None = msgspec.field(default=None, name="typeUrl")


class _Endpoint(msgspec.Struct):
    endpoint: dict[str, Any]
    health_status: str
    load_balancing_weight: int
    metadata: dict[str, Any]


class _Locality(msgspec.Struct, omit_defaults=True):
    locality: dict[str, str]
    lb_endpoints: list[_Endpoint]
    load_balancing_weight: int | None = None
    """Absent: Envoys that weigh localities send nobody there."""


class _Assignment(msgspec.Struct, tag_field="@type", tag=TYPE):
    cluster_name: str
    endpoints: list[_Locality]


class _Answer(msgspec.Struct):
    version_info: str
    resources: msgspec.Raw
    type_url: str = TYPE


class Eds:
    """The route. The callables are asked at every request and must be cheap."""

    def __init__(
        self,
        *,
        nodes: Callable[[], Sequence[AccessNode]],
        arm_of: Callable[[AccessNode], str],
        weight: Callable[[AccessNode], float],
        credentials: Credentials,
    ) -> None:
        """Nothing is served before `add_to`.

        Args:
            nodes: the access nodes as they are now.
            arm_of: `stable`, or the name of the rollout whose canary the node is.
            weight: how many connections a node may have now: its capacity times its slow start.
            credentials: a viewer's key is asked for.
        """
        self._nodes = nodes
        self._arm_of = arm_of
        self._weight_of = weight
        self._credentials = credentials
        self._log = logger()
        self._left_out: set[tuple[str, str]] = set()

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Serve on the router."""
        router.add_post(PATH, self._discover)

    async def _discover(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.VIEWER)
        asked = await json_body(request, _Asked)
        type_url = asked.type_url or asked.type_url_ or TYPE
        if type_url != TYPE:
            raise BadRequest(f"only endpoints are served here: type_url must be {TYPE}, not {type_url}")
        names = dict.fromkeys(asked.resource_names or asked.resource_names_ or ())
        if not 0 < len(names) <= NAMES_MAX:
            raise BadRequest(f"resource_names must name 1 to {NAMES_MAX} clusters, it names {len(names)}")
        members = self._members()
        resources = _encode([self._assignment(name, members.get(name, ())) for name in names])
        version = xxhash.xxh3_64_hexdigest(resources)
        if version == (asked.version_info or asked.version_info_):
            return web.Response(status=304)
        answer = _encode(_Answer(version_info=version, resources=msgspec.Raw(resources)))
        return web.Response(body=answer, content_type="application/json")

    def _reachable(self) -> list[_Member]:
        """The nodes with their addresses, in the order of their names. One bad address would spoil a whole answer."""
        nodes = self._nodes()
        if not nodes:
            raise NotReady("no access node is known yet", retry_after_ms=RETRY_MS)
        found = []
        left_out = set()
        for node in sorted(nodes, key=lambda node: name_order(node.id)):
            address = _address(node.url)
            if address is None:
                left_out.add((str(node.id), node.url))
            else:
                found.append((node, address))
        for name, url in sorted(left_out - self._left_out):  # once, not at every poll
            self._log.warning("endpoint_left_out", access_node=name, url=url, why="its host is not an IP address")
        self._left_out = left_out
        return found

    def _members(self) -> dict[str, list[_Member]]:
        """The nodes of each cluster: a request may name a thousand that are none, which must not cost much."""
        members: dict[str, list[_Member]] = {}
        for member in self._reachable():
            node = member[0]
            for name in {_CLUSTER, f"{_CLUSTER}-{self._arm_of(node)}", f"{_CLUSTER}@{node.region}"}:
                members.setdefault(name, []).append(member)
        return members

    def _assignment(self, name: str, members: Sequence[_Member]) -> _Assignment:
        localities: dict[str, _Locality] = {}
        for node, address in members:
            # Envoy refuses an answer whose weights add up to more than 32 bits hold.
            weight = min(self._weight(node), UINT32_MAX // len(members))
            locality = localities.setdefault(node.region, _Locality({"region": node.region}, []))
            is_open = node.capacity > 0 and not node.is_draining and not node.is_cordoned
            if is_open:
                locality.load_balancing_weight = (locality.load_balancing_weight or 0) + weight
            locality.lb_endpoints.append(
                _Endpoint(
                    endpoint={"address": {"socket_address": {"address": address[0], "port_value": address[1]}}},
                    health_status="HEALTHY" if is_open else "DRAINING",
                    load_balancing_weight=weight,
                    metadata={
                        "filter_metadata": {
                            "envoy.lb": {
                                "canary": self._arm_of(node) != "stable",
                                "node": node.id,
                                "version": node.version,
                            }
                        }
                    },
                )
            )
        return _Assignment(cluster_name=name, endpoints=[localities[region] for region in sorted(localities)])

    def _weight(self, node: AccessNode) -> int:
        steps = round(self._weight_of(node) * STEPS / max(1, node.capacity))
        return max(1, node.capacity * min(max(1, steps), STEPS) // STEPS)


def _address(url: str) -> tuple[str, int] | None:
    """Return the IP address and port behind a URL, None if Envoy could not use them."""
    try:
        parts = urlsplit(url)
        address = ipaddress.ip_address(parts.hostname or "")
        port = parts.port or DEFAULT_PORTS.get(parts.scheme, 0)
    except ValueError:
        return None
    # A scope (fe80::1%eth0) means something on one machine only.
    return (str(address), port) if port and "%" not in str(address) else None
