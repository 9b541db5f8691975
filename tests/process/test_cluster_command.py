"""A cluster of processes under one supervisor: messages pass, what dies comes back, and nothing is left at the end."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from base.clock import SystemClock
from base.errors import NotFound, PeerUnavailable
from roadstead.api import call_api, trust_ca
from roadstead.ca import CertificateAuthority
from roadstead.client import Client, Incoming
from roadstead.cluster.child import State
from roadstead.local import ClusterProcess, System
from roadstead.ports import free_ports

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("goodbyes")]

FEW = ("--status", "2", "--access", "2", "--im", "2", "--scheduler", "1")
ONE_EACH = ("--status", "1", "--access", "1", "--im", "1", "--scheduler", "1")
ARRIVE_S = 20.0


def roadstead(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "roadstead", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def is_running(pid: int) -> bool:
    """Whether there is such a process; one that nobody has buried yet does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def none_left(pids: list[int], within_s: float = 5.0) -> bool:
    """Whether all of these end within a moment: who is killed may take one to go."""
    clock = SystemClock()
    give_up = clock.stopwatch() + within_s
    while any(map(is_running, pids)):
        if clock.stopwatch() > give_up:
            return False
    return True


class Phone:
    """A user's client, which writes down what it gets."""

    def __init__(self, system: System, user: str) -> None:
        self.bodies: asyncio.Queue[Any] = asyncio.Queue()
        self.client = Client(
            system.scheduler, user=user, credential=system.data.secrets().api_key, on_message=self._take
        )

    async def _take(self, incoming: Incoming) -> None:
        self.bodies.put_nowait(incoming.data["body"])

    async def got(self, body: str) -> None:
        async with asyncio.timeout(ARRIVE_S):
            while await self.bodies.get() != body:
                pass


async def node_of(system: System, user: str) -> str:
    """The access node that a user is behind, by the status cluster's word."""
    url = f"{next(iter(system.endpoints.status.values()))}/v1/users/{user}/status"
    async with asyncio.timeout(ARRIVE_S):
        while not (seen := await call_api("GET", url, credential=system.data.secrets().api_key))["sessions"]:  # noqa: ASYNC110 - seen as from another process
            await asyncio.sleep(0.05)
    return str(seen["sessions"][0]["node"])


@asynccontextmanager
async def apart(system: System) -> AsyncIterator[tuple[Phone, Phone]]:
    """Two users on two access nodes: as many come as it takes."""
    async with AsyncExitStack() as stack:
        phones: dict[str, Phone] = {}
        for number in range(20):
            phone = Phone(system, f"user-{number}")
            await phone.client.connect()
            stack.push_async_callback(phone.client.close)
            phones.setdefault(await node_of(system, phone.client.user), phone)
            if len(phones) == 2:
                one, other = phones.values()
                yield one, other
                return
        raise AssertionError("all came to one node")


async def test_a_cluster_carries_messages_and_brings_back_what_dies(tmp_path: Path) -> None:
    """Over TLS, between two access nodes; one is killed and its users are back; then all end, none is left."""
    cluster = ClusterProcess(tmp_path / "data", *FEW)
    try:
        system = await asyncio.to_thread(cluster.start)
        assert all(
            url.startswith("https:") for url in (*system.endpoints.nodes().values(), *system.endpoints.clients.values())
        )
        trust_ca(system.data.ca)
        before = cluster.nodes()
        assert {seen.state for seen in before.values()} == {State.READY}
        async with apart(system) as (ann, ben):
            await ann.client.send(ben.client.user, "hello")
            await ben.got("hello")
            await killed_and_back(cluster, await node_of(system, ben.client.user))
            await ann.client.send(ben.client.user, "still there?")
            await ben.got("still there?")
        examined = await asyncio.to_thread(roadstead, "doctor", "--json", "--data", str(tmp_path / "data"))
        findings = json.loads(examined.stdout)
        assert examined.returncode == 0, [finding for finding in findings if not finding["is_ok"]]
        assert {f"{name} is ready" for name in system.endpoints.nodes()} < {finding["check"] for finding in findings}
        await asyncio.to_thread(operated_on_from_elsewhere, tmp_path)
        pids = [seen.pid for seen in cluster.nodes().values() if seen.pid is not None]
        assert len(pids) == len(before)
    finally:
        code = await asyncio.to_thread(cluster.stop)
    assert code == 0
    assert none_left(pids)


def operated_on_from_elsewhere(folder: Path) -> None:
    """By the configuration of any node, as where each was started by itself; one more message process is found."""
    files = folder / "data" / "cluster"
    settings = (files / "im-2.toml").read_text().replace("im-2", "im-3")
    (port,) = free_ports([9_000])
    (folder / "im-3.toml").write_text(re.sub(r"^port = .*$", f"port = {port}", settings, flags=re.MULTILINE))
    CertificateAuthority.open(files / "ca").issue("im-3", now=SystemClock().realtime())

    def told(*arguments: str, node: str = "access-1") -> Any:
        ran = roadstead(*arguments, "--json", "--config", str(files / f"{node}.toml"))
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    with subprocess.Popen(
        [sys.executable, "-m", "roadstead", "im", "--json", "--config", str(folder / "im-3.toml")],
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["name"] == "im-3"
            assert {node["node"] for node in told("access", "nodes")} == {"access-1", "access-2"}
            assert len(told("status", "table")["nodes"]) == 2
            assert told("status", "lookup", "nobody", node="im-1")[0]["state"] == "offline"
            assert told("send", "--from", "ann", "--to", "ben", "hi")["is_new"]
            assert told("token", "--user", "ann", node="scheduler-1")["user"] == "ann"
            assert {move["to"] for move in told("im", "rebalance")} == {"im-3"}
            assert set(told("im", "table")["owners"]) == {"im-1", "im-2", "im-3"}
            assert {move["from"] for move in told("im", "drain", "im-3")} == {"im-3"}
            config = ("--config", str(files / "access-1.toml"))
            resized = roadstead("status", "resize", "--weight", "status-2=2", "--yes", "--json", *config)
            assert resized.returncode == 0, resized.stderr
            assert json.loads(resized.stdout.splitlines()[-1])["is_done"]
        finally:
            process.terminate()


async def killed_and_back(cluster: ClusterProcess, name: str) -> None:
    """Kill a node and wait for its next life, which is found at the same addresses as the former one."""
    before = cluster.node(name)
    await asyncio.to_thread(cluster.kill, name)
    after = await asyncio.to_thread(cluster.wait_ready, name, other_than=before.pid)
    assert (after.restarts, after.exit_code) == (1, -signal.SIGKILL)
    assert (after.url, after.client_url) == (before.url, before.client_url)
    assert "ended with exit code -9" in cluster.log(name)
    assert f"{name}" in cluster.log("all")
    endpoints = cluster.endpoints
    assert (endpoints.access[name], endpoints.pids[name]) == (after.url, after.pid)


def test_nodes_are_stopped_and_started_and_nothing_outlives_the_supervisor(tmp_path: Path) -> None:
    """Each order is obeyed, mistakes are told, and a supervisor that is killed takes all processes with it."""
    folder = tmp_path / "data"
    cluster = ClusterProcess(folder, *ONE_EACH, "--no-tls", "--no-restart")
    data = ("--data", str(folder))
    try:
        system = cluster.start()
        assert all(url.startswith("http:") for url in system.endpoints.nodes().values())
        sent = roadstead("send", "--from", "a", "--to", "b", "--json", *data, "hello")
        assert json.loads(sent.stdout)["is_new"] is True
        assert roadstead("cluster", "stop", "im-1", *data).returncode == 0
        assert (cluster.node("im-1").state, cluster.node("im-1").pid, cluster.node("im-1").exit_code) == (
            State.STOPPED,
            None,
            0,
        )
        bad = json.loads(roadstead("doctor", "--json", *data).stdout)
        assert {finding["check"] for finding in bad if not finding["is_ok"]} >= {
            "im-1 is ready",
            "every shard has its process",
            "a message arrives",
        }
        assert cluster.start_node("im-1").state is State.READY
        again = roadstead("send", "--from", "a", "--to", "b", *data, "hello again")
        assert "message 2" in again.stdout, again.stderr
        with pytest.raises(NotFound, match="there is no process im-9; there are consul-1, "):
            cluster.kill("im-9")
        cluster.kill("scheduler-1")
        until_dead(cluster, "scheduler-1")
        shown = roadstead("cluster", "ps", *data).stdout
        assert "dead" in shown
        pids = [seen.pid for seen in cluster.nodes().values() if seen.pid is not None]
        assert len(pids) == 4
        assert roadstead("cluster", "up", *data).stderr.startswith("error: the data folder")
    finally:
        cluster.cut()
    assert none_left(pids)
    with pytest.raises(PeerUnavailable, match="no cluster runs from"):
        cluster.nodes()


def until_dead(cluster: ClusterProcess, name: str) -> None:
    while cluster.node(name).state is not State.DEAD:
        pass


def test_what_keeps_a_cluster_from_starting_is_one_error(tmp_path: Path) -> None:
    """No Consul: exit code 2. A node that ends before it is ready: its last words, and all others are ended."""
    data = ("--data", str(tmp_path / "data"))
    without = roadstead("cluster", "up", "--consul", str(tmp_path / "none"), *data)
    assert (without.returncode, without.stderr.count("\n")) == (2, 1)
    assert "Consul was expected there" in without.stderr
    failed = roadstead("cluster", "up", *ONE_EACH, *data, "--set", "access.capasity=1")
    assert failed.returncode == 3
    last = failed.stderr.splitlines()[-1]
    assert last.endswith("unknown key access.capasity; did you mean access.capacity?")
    assert " ended with exit code 2: error: --set access.capasity" in last
    assert failed.stdout == ""
    assert roadstead("cluster", "ps", *data).returncode == 3
