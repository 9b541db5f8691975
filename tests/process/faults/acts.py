"""What can happen to a scene: each function does one thing, has it measured, and leaves all as it was."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from base.faultpoint import CRASH_AT
from tests.process.faults.apart import Apart
from tests.process.faults.clocks import WallClock
from tests.process.faults.namespaces import Namespace
from tests.process.faults.scene import Scene
from tests.process.faults.wires import Wires

__all__ = [
    "CONSUL",
    "armed",
    "crash_in_move",
    "crash_in_resize",
    "cut_off",
    "fill_disk",
    "freeze",
    "jump",
    "kill",
    "kill_in_resize",
    "lose",
    "lose_registry",
    "on_small_disk",
    "slow_down",
    "stop_consul",
    "with_clocks",
    "with_wires",
]

CONSUL = "consul-1"
ACCESS_BOUND_MS, STATUS_BOUND_MS = 3_000, 4_000
POLL_S = 0.005
MOVED_S, RESIZED_S, DEAD_S = 30.0, 60.0, 30.0
BALLAST_BYTES = 1 << 20
STAGES = ("prepare", "copy", "catchup", "seal", "commit", "cleanup")


def role_of(name: str) -> str:
    """Return a node's role."""
    return name.partition("-")[0]


def bound_of(name: str) -> int:
    """Return how long a node's death may be noticed (ms), 0 where nothing is promised."""
    return {"access": ACCESS_BOUND_MS, "status": STATUS_BOUND_MS}.get(role_of(name), 0)


# ---------------------------------------------------------------- one process


async def kill(scene: Scene, name: str, *, label: str = "") -> None:
    """It dies at once, and its supervisor starts it again after a second."""
    async with scene.fault(label or f"kill -9 {role_of(name)}", name, bound_ms=bound_of(name), down=[name]):
        pid = await scene.kill(name)
        await scene.back(name, other_than=pid)


async def lose(scene: Scene, name: str, *, label: str = "", bound_ms: int = 0) -> None:
    """It dies at once, and nobody starts it again until all is normal without it."""
    what = label or f"kill -9 {role_of(name)}"
    async with scene.fault(f"{what}, stays dead", name, bound_ms=bound_ms or bound_of(name), down=[name]):
        await scene.kill(name)
        await asyncio.to_thread(scene.cluster.stop_node, name)
        await scene.calm()
        outcome = dict(scene.watch.last_bad)
        await asyncio.to_thread(scene.cluster.start_node, name)
        await scene.calm()
        scene.watch.last_bad = outcome  # what its return disturbed is no part of it


async def freeze(scene: Scene, name: str, lasts_s: float = 5.0) -> None:
    """It hangs, as in swap or in a debugger, and goes on as if nothing had been."""
    is_access = role_of(name) == "access"
    what = f"SIGSTOP {role_of(name)} for {lasts_s:g} s"
    async with scene.fault(what, name, down=[name], doubtful=[name] if is_access else []) as fault:
        pid = await scene.kill(name, signal.SIGSTOP)
        try:
            await asyncio.sleep(lasts_s)
        finally:
            scene.over(fault)
            os.kill(pid, signal.SIGCONT)


async def stop_consul(scene: Scene, lasts_s: float) -> None:
    """The registry is gone for a while; its data is still there after it."""
    async with scene.fault(f"Consul killed, back after {lasts_s:g} s", CONSUL) as fault:
        await scene.kill(CONSUL)
        await asyncio.to_thread(scene.cluster.stop_node, CONSUL)
        await asyncio.sleep(lasts_s)
        scene.over(fault)
        await asyncio.to_thread(scene.cluster.start_node, CONSUL)
        await scene.registered()


async def lose_registry(scene: Scene, lasts_s: float) -> None:
    """The registry is gone for a while, and comes back empty."""
    async with scene.fault(f"Consul's data lost, back after {lasts_s:g} s", CONSUL) as fault:
        await asyncio.to_thread(scene.cluster.stop_node, CONSUL)
        await asyncio.to_thread(shutil.rmtree, scene.folder / "consul" / "data")
        await asyncio.sleep(lasts_s)
        scene.over(fault)
        await asyncio.to_thread(scene.cluster.start_node, CONSUL)
        await scene.registered()


# ---------------------------------------------------------------- other surroundings


@asynccontextmanager
async def armed(scene: Scene, name: str, point: str) -> AsyncIterator[Apart]:
    """Run a node that dies at a point until the block ends; its supervisor has it again after it."""
    node = Apart(name, folder=scene.folder, flags=scene.settings, env={CRASH_AT: point})
    with scene.absent(name):
        await asyncio.to_thread(scene.cluster.stop_node, name)
        await asyncio.to_thread(node.start)
    await scene.calm()
    try:
        yield node
    finally:
        with scene.absent(name):
            await asyncio.to_thread(node.end)
            await asyncio.to_thread(scene.cluster.start_node, name)
    await scene.calm()


@asynccontextmanager
async def with_wires(scene: Scene, name: str) -> AsyncIterator[Wires]:
    """Have a node in a network of its own until the block ends."""
    ports = {node.name: (node.port, node.client_port) for node in scene.plan.nodes}
    inside = {port for port in ports.pop(name) if port}
    outside = {port for pair in ports.values() for port in pair if port} | {scene.consul_port}
    namespace = Namespace()
    node = Apart(name, folder=scene.folder, flags=scene.settings, enter=namespace.enter)
    try:
        with scene.absent(name):
            await asyncio.to_thread(scene.cluster.stop_node, name)
        async with Wires(namespace, inside=inside, outside=outside).running() as wires:
            with scene.absent(name):
                await asyncio.to_thread(node.start)
            try:
                await scene.spread()
                yield wires
            finally:
                wires.mend()
                scene.watch.down.add(name)
                await asyncio.to_thread(node.end)
        with scene.absent(name):
            await asyncio.to_thread(scene.cluster.start_node, name)
    finally:
        namespace.close()
    await scene.calm()


async def cut_off(scene: Scene, name: str, wires: Wires, lasts_s: float, *, way: str = "both") -> None:
    """Nobody reaches it, and it reaches nobody, the registry neither; or one of the two."""
    is_access = role_of(name) == "access"
    if is_access:
        await scene.spread()  # its clients may all be elsewhere since the last time
    what = {"both": "cut off", "to": "hears nobody", "from": "is heard by nobody"}[way]
    label = f"{role_of(name)} {what} for {lasts_s:g} s"
    async with scene.fault(label, name, down=[name], doubtful=[name] if is_access else []) as fault:
        wires.cut(to_node=way != "from", from_node=way != "to")
        await asyncio.sleep(lasts_s)
        scene.over(fault)
        wires.mend()


async def slow_down(scene: Scene, name: str, wires: Wires, lasts_s: float, *, delay_ms: int) -> None:
    """Everything to it and from it takes so long."""
    async with scene.fault(f"{role_of(name)} {delay_ms} ms away for {lasts_s:g} s", name) as fault:
        wires.slow(delay_ms / 1_000)
        await asyncio.sleep(lasts_s)
        scene.over(fault)
        wires.mend()


@asynccontextmanager
async def with_clocks(scene: Scene, *names: str) -> AsyncIterator[dict[str, WallClock]]:
    """Give nodes wall clocks of their own until the block ends."""
    clocks = {name: WallClock(_made(scene.folder / "clocks" / name)) for name in names}
    nodes = [Apart(name, folder=scene.folder, flags=scene.settings, env=clocks[name].env) for name in names]

    def begin(node: Apart) -> None:
        scene.cluster.stop_node(node.name)
        node.start()

    def end(node: Apart) -> None:
        node.end()
        scene.cluster.start_node(node.name)
        clocks[node.name].close()

    with scene.absent(*names):
        await asyncio.gather(*(asyncio.to_thread(begin, node) for node in nodes))
    await scene.spread()
    try:
        yield clocks
    finally:
        with scene.absent(*names):
            await asyncio.gather(*(asyncio.to_thread(end, node) for node in nodes))
    await scene.calm()


async def jump(scene: Scene, name: str, clock: WallClock, ahead_s: int, lasts_s: float) -> None:
    """Its wall clock is wrong for a while, and some clients come anew meanwhile."""
    label = f"{role_of(name)} clock {ahead_s / 3_600:+g} h for {lasts_s:g} s"
    if name in scene.system.endpoints.scheduler:
        scene.front.prefer(scene.urls[name])
    async with scene.fault(label, name) as fault:
        clock.set(ahead_s)
        for person in scene.random.sample(scene.people, 6):
            person.drop(0.1)
        await asyncio.sleep(lasts_s)
        scene.over(fault)
        clock.set(0)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# ---------------------------------------------------------------- disks


@asynccontextmanager
async def on_small_disk(folder: Path, *, size_mb: int) -> AsyncIterator[None]:
    """Have a folder be a file system of its own, in memory, until the block ends. Needs the right to mount one."""
    await asyncio.to_thread(_made, folder)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=700", "tmpfs", str(folder)]
    await asyncio.to_thread(subprocess.run, mount, check=True)
    try:
        yield
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", "--lazy", str(folder)], check=True)


async def fill_disk(scene: Scene, name: str, folder: Path, lasts_s: float) -> None:
    """There is no room left for its messages for a while."""
    ballast = folder / "ballast"
    async with scene.fault(f"{role_of(name)} disk full for {lasts_s:g} s", name) as fault:
        await asyncio.to_thread(_fill, ballast)
        await asyncio.sleep(lasts_s)
        scene.over(fault)
        ballast.unlink()


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        for size in (BALLAST_BYTES, 4_096, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass


# ---------------------------------------------------------------- resizes


async def kill_in_resize(scene: Scene, stage: str, names: list[str]) -> None:
    """The leader dies when partitions are in a stage of their move, or beyond it; another one ends the resize."""
    leader = await scene.leader()
    label = f"kill -9 leader from {stage} on"
    from_stage = {*STAGES[STAGES.index(stage) :]}
    async with scene.fault(label, leader, bound_ms=STATUS_BOUND_MS, down=[leader]):
        await scene.resize(names)
        async with asyncio.timeout(RESIZED_S):
            while not from_stage & await scene.stages():  # noqa: ASYNC110 - seen from outside
                await asyncio.sleep(POLL_S)
        pid = await scene.kill(leader)
        scene.restart()
        await scene.back(leader, other_than=pid)
        await scene.resized(names)


async def crash_in_resize(scene: Scene, point: str, name: str, *, before: list[str], after: list[str]) -> None:
    """A node dies at a point of a resize from the owners before to those after; the resize ends all the same."""
    async with armed(scene, name, point) as node:
        await scene.resized(before)  # to be armed it was started anew, and others may have had its partitions
        label = f"kill -9 {point.partition('.')[0]} at {point.partition('.')[2]}"
        async with scene.fault(label, name, bound_ms=bound_of(name), down=[name]):
            await scene.resize(after)
            await node.until_dead(DEAD_S)
            scene.restart()
            await asyncio.to_thread(scene.cluster.start_node, name)
            await scene.resized(after)


async def crash_in_move(scene: Scene, point: str, name: str, *, source: str, target: str) -> None:
    """A process dies at a point of a shard's move; the shard is at one of the two, whole, when it is back."""
    async with armed(scene, name, point) as node:
        shard = next(shard for shard, owner in enumerate(await scene.owners()) if owner == source)
        async with scene.fault(f"kill -9 at {point.replace('_', ' ')}", name, down=[name]):
            await scene.move(shard, source, target)
            await node.until_dead(DEAD_S)
            scene.restart()
            await asyncio.to_thread(scene.cluster.start_node, name)
            await scene.at_one_place(shard)
        if (await scene.owners())[shard] == target:
            await scene.move(shard, target, source)
            await scene.moved(shard, source)
