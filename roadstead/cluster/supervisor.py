"""Starts the processes of a local cluster, keeps them running, does what other terminals ask, and ends all in order."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence

import msgspec

from base.clock import SystemClock
from base.errors import BadRequest, NotFound, PeerUnavailable
from base.service import first_failure, unless_stopped
from roadstead.cluster.child import Child, Seen, State
from roadstead.cluster.control import Asked, ControlServer
from roadstead.cluster.files import ClusterFiles
from roadstead.cluster.plan import ROLES, Plan
from roadstead.cluster.view import LogView
from roadstead.consul import ConsulAgent
from roadstead.deployment import Endpoints

__all__ = ["CONSUL", "SIGNALS", "Cluster", "Supervisor"]

CONSUL = "consul-1"
SIGNALS = ("KILL", "TERM", "STOP", "CONT", "INT", "HUP")


class Cluster(msgspec.Struct, frozen=True):
    """A cluster that serves: where, and by which processes."""

    endpoints: Endpoints
    nodes: list[Seen]


class Supervisor:
    """See the module. It owns the cluster's folder while it runs."""

    def __init__(
        self,
        files: ClusterFiles,
        plan: Plan,
        consul: ConsulAgent,
        *,
        view: LogView,
        flags: Sequence[str] = (),
        restarts: bool = True,
        start_deadline_s: float = 60.0,
    ) -> None:
        """Nothing is started yet.

        Args:
            files: what the processes are started with, written.
            plan: which they are.
            consul: their registry.
            view: takes what they write.
            flags: more options of each role's command.
            restarts: whether to start again what ends by itself.
            start_deadline_s: how long all may take to become ready.
        """
        self._files = files
        self._plan = plan
        self._consul = consul
        self._view = view
        self._flags = flags
        self._restarts = restarts
        self._start_deadline_s = start_deadline_s
        self._stop = asyncio.Event()
        self._clock = SystemClock()
        self._children: dict[str, Child] = {}
        self._is_up = False

    async def run(self, *, on_ready: Callable[[Cluster], None], stop: asyncio.Event) -> None:
        """Run the cluster until `stop` is set or `cluster stop` asks; then end all processes in order.

        Raises:
            ConfigError: there is no Consul, or the folder cannot be used.
            PeerUnavailable: a process ended before all were ready, and the message has its last words; or they were
                not ready in time.
        """
        self._stop = stop
        self._children = {child.name: child for child in self._build(self._consul.prepare())}
        control = ControlServer(self._files.folder, self._do)
        await control.open()
        failure: Exception | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(child.run()) for child in self._children.values()]
                try:
                    if await unless_stopped(self._all_ready(), stop, deadline_s=self._start_deadline_s):
                        self._up(on_ready)
                        await stop.wait()
                except TimeoutError:
                    late = ", ".join(one.name for one in self.seen() if one.state is not State.READY)
                    failure = PeerUnavailable(f"not ready within {self._start_deadline_s:g} s: {late}")
                except Exception as error:  # noqa: BLE001 - raised below, where no group is made of it
                    failure = error
                await self._end()
                for task in running:
                    task.cancel()
        finally:
            await control.close()
        if failure is not None:
            raise failure

    def seen(self) -> list[Seen]:
        """Return how the processes are."""
        return [child.seen() for child in self._children.values()]

    # ---------------------------------------------------------------- inside

    def _build(self, consul: list[str]) -> list[Child]:
        def child(name: str, role: str, command: list[str]) -> Child:
            probe = self._consul.wait_serving if role == "consul" else None
            return Child(
                name,
                role,
                command,
                clock=self._clock,
                log=self._view.write,
                on_ready=self._publish,
                probe=probe,
            )

        nodes = [
            child(
                node.name,
                node.role,
                [
                    *(sys.executable, "-m", "roadstead", node.role),
                    *("--json", "--config", str(self._files.config_of(node.name)), *self._flags),
                ],
            )
            for node in self._plan.nodes
        ]
        return [child(CONSUL, "consul", consul), *nodes]

    async def _all_ready(self) -> bool:
        """Return True when all are ready. Raises PeerUnavailable when one ended instead."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for child in self._children.values():
                    tasks.create_task(child.wait_ready())
        except BaseExceptionGroup as group:
            raise first_failure(group) from group
        return True

    def _up(self, on_ready: Callable[[Cluster], None]) -> None:
        self._is_up = True
        for child in self._children.values():
            child.restarts_itself = self._restarts
        self._publish()
        on_ready(Cluster(self._endpoints(), self.seen()))

    def _publish(self) -> None:
        """Tell commands where the nodes listen: once all do, and whenever one is back."""
        if self._is_up:
            self._files.data.publish_endpoints(self._endpoints())

    def _endpoints(self) -> Endpoints:
        seen = [one for one in self.seen() if one.url]

        def urls(role: str) -> dict[str, str]:
            return {one.name: one.url for one in seen if one.role == role}

        return Endpoints(
            pid=os.getpid(),
            scheduler=urls("scheduler"),
            status=urls("status"),
            access=urls("access"),
            im=urls("im"),
            clients={one.name: one.client_url for one in seen if one.client_url},
            consul=urls("consul"),
            pids={one.name: one.pid for one in seen if one.pid is not None},
        )

    async def _end(self) -> None:
        """End role after role, the nodes of one together; Consul last, which all need to leave in order."""
        for role in (*reversed(ROLES), "consul"):
            async with asyncio.TaskGroup() as tasks:
                for child in self._children.values():
                    if child.role == role:
                        tasks.create_task(child.stop())

    # ---------------------------------------------------------------- what other terminals ask

    async def _do(self, asked: Asked) -> list[Seen]:
        if asked.do == "end":
            self._stop.set()
        elif asked.do != "list":
            await self._do_one(self._child(asked.name), asked)
        return self.seen()

    async def _do_one(self, child: Child, asked: Asked) -> None:
        if asked.do == "start":
            await child.start()
        elif asked.do == "stop":
            await child.stop()
            self._publish()
        elif asked.signal not in SIGNALS:
            raise BadRequest(f"{asked.signal} is none of the signals {', '.join(SIGNALS)}")
        else:
            child.signal(signal.Signals[f"SIG{asked.signal}"])

    def _child(self, name: str) -> Child:
        child = self._children.get(name)
        if child is None:
            raise NotFound(f"there is no process {name}; there are {', '.join(self._children)}")
        return child
