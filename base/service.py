"""How a process lives: start in order, run in one task group, drain in reverse order, stop.

    start    each service binds, joins and becomes ready, in the order given
    run      each service's background work, until it is cancelled; a crash takes the whole process down, since a
             process that lost a part must not look alive: its leases end and others take over
    drain    on SIGTERM or SIGINT, in reverse order: not ready any more, no new work, what is open is finished or moved
    stop     leases and registrations are given back, listeners and files closed

Each drain and stop has a deadline; a service that does not finish in time is left behind and said so. A second signal
skips what is left of draining.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from base.errors import RoadsteadError
from base.log import logger
from base.node import Node

__all__ = ["Service", "run_services"]

STOP_DEADLINE_S = 5.0


class Service(Protocol):
    """One role of the system, as its process sees it."""

    @property
    def node(self) -> Node:
        """Its place in the cluster."""
        ...

    async def start(self) -> None:
        """Bind, join the cluster, become ready. Raises ConfigError for what the operator must mend."""
        ...

    async def run(self) -> None:
        """Do the background work until cancelled."""
        ...

    async def drain(self) -> None:
        """Finish or hand over what is open; take nothing new."""
        ...

    async def stop(self) -> None:
        """Give back what is held and close. Called also when `start` failed half-way; idempotent."""
        ...


async def run_services(
    services: Sequence[Service], *, on_ready: Callable[[], None], stop: asyncio.Event | None = None
) -> None:
    """Run the services until a signal, `stop`, or a failure; returns after an orderly end.

    Raises the first failure of our tree that ended a service, or the group of what crashed.
    """
    stop = stop or asyncio.Event()
    log = logger()
    with _signals(stop):
        started: list[Service] = []
        try:
            async with asyncio.TaskGroup() as tasks:
                running: list[asyncio.Task[None]] = []
                for service in services:
                    started.append(service)
                    # Some services need their own background work to become ready, so it runs from the start.
                    running.append(tasks.create_task(service.run(), name=f"{service.node.site.name}.run"))
                    await service.start()
                    log.info("service_started", service=service.node.site.name)
                on_ready()
                await stop.wait()
                for service in reversed(services):
                    await _bounded(service.node.site.name, "drain", service.drain(), service.node.drain_deadline_s)
                for task in running:
                    task.cancel()
        except BaseExceptionGroup as group:
            raise _first_failure(group) from group
        finally:
            for service in reversed(started):
                await _bounded(service.node.site.name, "stop", service.stop(), STOP_DEADLINE_S)


def _first_failure(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What to tell the operator: a failure of our tree says in one line what to mend; our own bugs need the group."""
    failures, bugs = group.split(RoadsteadError)
    if bugs is not None or failures is None:
        return group
    first: BaseException = failures
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first


async def _bounded(name: str, phase: str, work: Awaitable[None], deadline_s: float) -> None:
    log = logger(service=name, phase=phase)
    try:
        async with asyncio.timeout(deadline_s):
            await work
        log.debug("service_phase_finished")
    except TimeoutError:
        log.warning("service_phase_timed_out", deadline_s=deadline_s)
    except Exception:
        # One service's bad ending must not keep the others from giving back their leases.
        log.exception("service_phase_failed")


@contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    """Turn SIGTERM and SIGINT into `stop`; a second one interrupts for good."""
    loop = asyncio.get_running_loop()
    current = asyncio.current_task()
    assert current is not None

    def on_signal() -> None:
        if stop.is_set():
            current.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
