"""Whom a Prometheus should scrape: its HTTP service discovery, `GET /v1/discovery/prometheus`.

Answers with the access nodes at their internal addresses, where `/metrics` is, each with the labels by which a canary
is compared with the rest:

    node      its name; our samples say it too, so scrape with `honor_labels: true`
    service   access
    region    "" where the operator has none
    version   what it runs
    canary    "true" for a node of a rollout's canary, else "false"

`?service=NAME` asks for the instances of another service, whose labels are node, service and region.

The key goes into `authorization: {type: Bearer, credentials: KEY}`; some builds do not add the type by themselves.
Prometheus keeps its last list when it gets an error. So a scheduler that knows no access node yet answers with one.

Source: Prometheus, "HTTP service discovery"; every value is a string.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from access.api import SERVICE as ACCESS_SERVICE
from base.core.registry import ServiceInstance
from base.errors import NotReady, StoreUnavailable
from base.http import Credentials, Role, json_response, query_param
from base.ids import checked_id, name_order
from scheduler.core.node import AccessNode

__all__ = ["PATH", "TargetGroup", "Targets"]

PATH = "/v1/discovery/prometheus"
DEADLINE_S = 5.0
"""For the registry."""
RETRY_MS = 1_000


class TargetGroup(msgspec.Struct, frozen=True):
    """Addresses, `host:port`, and the labels that all their samples get."""

    targets: tuple[str, ...]
    labels: Mapping[str, str]


class Targets:
    """The route."""

    def __init__(
        self,
        *,
        instances: Callable[[], Sequence[ServiceInstance]],
        nodes: Callable[[], Sequence[AccessNode]],
        arm_of: Callable[[AccessNode], str],
        services: Callable[[str], Awaitable[Sequence[ServiceInstance]]],
        credentials: Credentials,
    ) -> None:
        """Nothing is served before `add_to`.

        Args:
            instances: registrations of the access nodes, as this scheduler follows them.
            nodes: the access nodes as they are now.
            arm_of: `stable`, or the name of the rollout whose canary the node is.
            services: asks the registry for the instances of another service; may raise StoreError.
            credentials: a viewer's key is asked for.
        """
        self._instances = instances
        self._nodes = nodes
        self._arm_of = arm_of
        self._services = services
        self._credentials = credentials

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Serve on the router."""
        router.add_get(PATH, self._list)

    async def _list(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.VIEWER)
        service = checked_id(query_param(request, "service", ACCESS_SERVICE), "service")
        if service == ACCESS_SERVICE:
            nodes = {str(node.id): node for node in self._nodes()}
            if not nodes:
                raise NotReady("no access node is known yet", retry_after_ms=RETRY_MS)
            return _answer(self._instances(), lambda instance: self._labels(nodes.get(instance.id)))
        try:
            async with asyncio.timeout(DEADLINE_S):
                instances = await self._services(service)
        except TimeoutError as error:
            raise StoreUnavailable(f"the registry did not answer within {DEADLINE_S:g} s") from error
        return _answer(instances, lambda _: {})

    def _labels(self, node: AccessNode | None) -> dict[str, str]:
        if node is None:  # registered since the last decision about all nodes
            return {}
        return {
            "region": node.region,
            "version": node.version,
            "canary": "true" if self._arm_of(node) != "stable" else "false",
        }


def _answer(
    instances: Iterable[ServiceInstance], labels_of: Callable[[ServiceInstance], Mapping[str, str]]
) -> web.Response:
    groups = []
    for instance in sorted(instances, key=lambda instance: name_order(instance.id)):
        try:
            address = urlsplit(instance.url).netloc
        except ValueError:  # one address that is none would spoil the whole list
            continue
        labels = {"node": instance.id, "service": instance.service, "region": instance.meta.get("region", "")}
        groups.append(TargetGroup((address,), {**labels, **labels_of(instance)}))
    return json_response(groups)
