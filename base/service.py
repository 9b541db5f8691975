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
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from base.errors import DeadlineExceeded, RoadsteadError
from base.log import logger
from base.node import Node

__all__ = ["Service", "first_failure", "run_services", "stop_signals", "unless_stopped"]

STOP_DEADLINE_S = 5.0
SIGNALS = (signal.SIGTERM, signal.SIGINT)

T = TypeVar("T")


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
    services: Sequence[Service],
    *,
    on_ready: Callable[[], None],
    stop: asyncio.Event | None = None,
    start_deadline_s: float | None = None,
) -> None:
    """Run the services until `stop` is set or one of them fails; returns after an orderly end.

    Without a `stop`, SIGTERM and SIGINT end them. Whoever gives one takes the signals (`stop_signals`). A stop while
    they start ends the start.

    Raises:
        DeadlineExceeded: they were not ready within `start_deadline_s`.
        RoadsteadError: the first failure of our tree that ended a service; or the group of what crashed.
    """
    if stop is None:
        stop = asyncio.Event()
        with stop_signals(stop):
            await run_services(services, on_ready=on_ready, stop=stop, start_deadline_s=start_deadline_s)
        return
    begun: list[Service] = []
    running: list[asyncio.Task[None]] = []
    try:
        async with asyncio.TaskGroup() as tasks:
            starting = _start(services, tasks, begun, running)
            try:
                is_ready = await unless_stopped(starting, stop, deadline_s=start_deadline_s)
            except TimeoutError as error:
                late = begun[-1].node.site.name
                raise DeadlineExceeded(f"{late} was not ready within {start_deadline_s:g} s") from error
            if is_ready:
                on_ready()
                await stop.wait()
                for service in reversed(services):
                    await _bounded(service.node.site.name, "drain", service.drain(), service.node.drain_deadline_s)
            for task in running:
                task.cancel()
    except BaseExceptionGroup as group:
        raise first_failure(group) from group
    finally:
        for service in reversed(begun):
            await _bounded(service.node.site.name, "stop", service.stop(), STOP_DEADLINE_S)


async def _start(
    services: Sequence[Service],
    tasks: asyncio.TaskGroup,
    begun: list[Service],
    running: list[asyncio.Task[None]],
) -> bool:
    """Start one after another; `begun` and `running` say how far it came. Returns True at the end."""
    for service in services:
        begun.append(service)
        # Some services need their own background work to become ready, so it runs from the start.
        running.append(tasks.create_task(service.run(), name=f"{service.node.site.name}.run"))
        await service.start()
        logger().info("service_started", service=service.node.site.name)
    return True


async def unless_stopped(
    work: Coroutine[Any, Any, T], stop: asyncio.Event, *, deadline_s: float | None = None
) -> T | None:
    """Return what `work` returns, None if `stop` is set before: it is cancelled then.

    Raises what it raises, and TimeoutError when it is not over within `deadline_s`.
    """
    scope = asyncio.timeout(deadline_s)
    failure: Exception | None = None
    result: T | None = None
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(_end_at(stop, scope))
        try:
            async with scope:
                result = await work
        except Exception as error:  # noqa: BLE001 - raised below, where no group is made of it
            failure = error
        finally:
            watching.cancel()
    if scope.expired() and stop.is_set():
        return None
    if failure is not None:
        raise failure
    return result


async def _end_at(stop: asyncio.Event, scope: asyncio.Timeout) -> None:
    await stop.wait()
    scope.reschedule(asyncio.get_running_loop().time())


def first_failure(group: BaseExceptionGroup[BaseException]) -> BaseException:
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
def stop_signals(stop: asyncio.Event) -> Iterator[None]:
    """Turn SIGTERM and SIGINT into `stop`; a second one interrupts for good."""
    loop = asyncio.get_running_loop()
    current = asyncio.current_task()
    assert current is not None

    def on_signal() -> None:
        if stop.is_set():
            current.cancel()
        stop.set()

    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
