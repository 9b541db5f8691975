"""A system for benchmarks of access nodes: what `roadstead up` runs in one process, and each access node in its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import msgspec

from access.api import transport_urls
from bench.process import Child, child
from roadstead.local import System, running_system
from roadstead.role import Ready

__all__ = ["AccessProcess", "AccessSystem", "access_system"]

SETTINGS = ("access.capacity=19500", "access.accepts_per_second=0")
"""As many as there may be open files, and as fast as it can."""


class AccessProcess(msgspec.Struct, frozen=True):
    """An access node in a process of its own."""

    child: Child
    joined: Ready
    websocket: str
    """Where clients connect."""


class AccessSystem:
    """A running system and its access processes."""

    def __init__(self, system: System, flags: tuple[str, ...], stack: ExitStack) -> None:
        self.system = system
        self.nodes: list[AccessProcess] = []
        self._flags = flags
        self._stack = stack
        secrets = system.data.secrets()
        self.api_key = secrets.api_key
        self.ticket_key = (secrets.ticket_kid, secrets.ticket_key)

    def add_node(self) -> AccessProcess:
        """Start one more access node, and return when it is ready."""
        name = f"access-{101 + len(self.nodes)}"
        command = [sys.executable, "-m", "roadstead", "access", "serve", "--json", "--name", name]
        command += ["--data", str(self.system.data.path), *self._flags]
        process = self._stack.enter_context(child(command))
        joined = msgspec.json.decode(process.said, type=Ready)
        assert joined.client_url is not None
        node = AccessProcess(process, joined, transport_urls(joined.client_url)["websocket"])
        self.nodes.append(node)
        return node


@contextmanager
def access_system(nodes: int, *settings: str) -> Iterator[AccessSystem]:
    """Run a system with so many access processes beside its own access node, which no client is sent to.

    `settings` are `section.field=value`, for all of them.
    """
    flags = tuple(part for setting in (*SETTINGS, *settings) for part in ("--set", setting))
    up_flags = ("--set", "up.access_nodes=1", "--set", "up.spare_status_nodes=0", "--set", "up.status_nodes=1")
    with running_system(*up_flags, *flags) as system, ExitStack() as stack:
        made = AccessSystem(system, flags, stack)
        for _ in range(nodes):
            made.add_node()
        yield made
