"""The access nodes, as the registry shows them: each registration and its newest report, read into a node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from access.api import NodeReport, capacity_of, report_of
from base.clock import Instant
from base.ids import NodeId
from base.registry import ServiceInstance
from scheduler.core.node import AccessNode

__all__ = ["Seen", "Sighting", "accepts_of"]


class Sighting:
    """One access node: its registration, its report, and when this scheduler saw that report first."""

    __slots__ = ("instance", "report", "seen_at")

    def __init__(self, instance: ServiceInstance, report: NodeReport, seen_at: Instant) -> None:
        self.instance = instance
        self.report = report
        self.seen_at = seen_at


class Seen:
    """All access nodes, by id."""

    def __init__(self, issuer: str) -> None:
        """`issuer`: the `sid` of this scheduler's tickets."""
        self.nodes: dict[str, Sighting] = {}
        self._issuer = issuer

    def take(self, instances: Iterable[ServiceInstance], now: Instant) -> None:
        """Take a view of the registry."""
        nodes = {}
        for instance in instances:
            known = self.nodes.get(instance.id)
            if known is not None and known.instance == instance:
                nodes[instance.id] = known
                continue
            report = report_of(instance.note)
            nodes[instance.id] = Sighting(instance, report, now)
        self.nodes = nodes

    def access_nodes(self, cordoned: Mapping[str, object]) -> list[AccessNode]:
        """Return them as the engine sees them."""
        return [self._node(sighting, is_cordoned=name in cordoned) for name, sighting in self.nodes.items()]

    def _node(self, sighting: Sighting, *, is_cordoned: bool) -> AccessNode:
        instance, report = sighting.instance, sighting.report
        meta = instance.meta
        return AccessNode(
            id=NodeId(instance.id),
            url=meta.get("client_url", instance.url),
            region=meta.get("region", ""),
            carrier=meta.get("carrier", ""),
            version=report.version or meta.get("version", ""),
            capacity=capacity_of(meta),
            accepts_per_s=accepts_of(meta),
            connections=report.connections,
            is_draining=report.is_draining,
            is_cordoned=is_cordoned,
            incarnation=instance.incarnation,
            report=report.number,
            reported_at=sighting.seen_at,
            uptime_ms=report.uptime_ms,
            accepted=report.accepted,
            admitted=report.admitted.get(self._issuer, 0),
            # The issuers of plans of moves have a `-` in their names: those are nobody's assignments.
            admitted_of_all=sum(count for issuer, count in report.admitted.items() if "-" not in issuer),
        )


def accepts_of(meta: Mapping[str, str]) -> float:
    """Return how many newcomers a second a registered node takes; 0 where it does not say."""
    value = meta.get("accepts_per_second", "")
    return float(value) if value.isascii() and value.isdecimal() and len(value) < 10 else 0.0
