"""Which processes a local cluster has, and on which ports: chosen once, kept over restarts if they are still free."""

from __future__ import annotations

import msgspec

from roadstead.ports import free_ports

__all__ = ["ROLES", "Counts", "Plan", "PlannedNode", "made_plan"]

ROLES = ("status", "im", "access", "scheduler")
"""Whoever is asked comes before whoever asks. They may be started in any order, and are ended from the last on."""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """How many processes of each role."""

    status: int = 3
    im: int = 2
    access: int = 2
    scheduler: int = 2


class PlannedNode(msgspec.Struct, frozen=True):
    """One node. `client_port` is an access node's port for clients, 0 for others."""

    name: str
    role: str
    port: int = 0
    client_port: int = 0


class Plan(msgspec.Struct, frozen=True):
    """A cluster: its nodes in the order of `ROLES`."""

    nodes: tuple[PlannedNode, ...]
    has_tls: bool

    def count(self, role: str) -> int:
        """Return how many nodes have the role."""
        return sum(node.role == role for node in self.nodes)


def made_plan(counts: Counts, *, has_tls: bool, former: Plan | None) -> Plan:
    """Plan a cluster, with the ports of a former plan where they are still free.

    Raises ConfigError when there are not enough free ports.
    """
    known = {node.name: node for node in former.nodes} if former is not None else {}
    names = [(f"{role}-{number}", role) for role in ROLES for number in range(1, getattr(counts, role) + 1)]
    before = [known.get(name, PlannedNode(name, role)) for name, role in names]
    ports = free_ports([node.port for node in before] + [node.client_port for node in before])
    nodes = tuple(
        PlannedNode(node.name, node.role, port, client_port if node.role == "access" else 0)
        for node, port, client_port in zip(before, ports, ports[len(before) :], strict=False)
    )
    return Plan(nodes, has_tls)
