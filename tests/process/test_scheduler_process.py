"""The access scheduler as operators run it: `roadstead up`, further access nodes in processes, and the commands.

A new node is filled, a version rolled out on three hundred live connections and taken back, and failed by what a real
Prometheus says of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from access.api import transport_urls
from roadstead.local import System, UpProcess
from tests.support.command import exit_code
from tests.system.light_clients import Clients, LightClient, clients

pytestmark = pytest.mark.process

SETTLE_S = 15.0
USERS = [f"user-{number}" for number in range(300)]
STABLE, CANARY, BAD = "1.0.0", "2.0.0", "2.0.1"
ROLLOUT = f"""\
rollout: next
pool: {{version: {CANARY}}}
steps:
  - {{percent: 20, hold: 1h}}
  - {{percent: 60, migrate: {{rate: 500/s}}}}
  - {{pause: manual}}
  - {{percent: 100}}
on_failure: {{assign: stop, move: {{rate: 500/s, deadline: 60s}}}}
"""
QUERY = 'sum(roadstead_access_connects_total{canary="true", outcome!="accepted"}) or vector(0)'
JUDGED = f"""\
rollout: worse
pool: {{version: {BAD}}}
steps:
  - {{percent: 50, hold: 1h}}
  - {{percent: 100}}
analysis:
  interval: 1s
  failure_limit: 2
  checks:
    - {{metric: promql, query: '{QUERY}', max: 5}}
"""
PROMETHEUS = """\
global:
  scrape_interval: 1s
scrape_configs:
  - job_name: access
    honor_labels: true
    http_sd_configs:
      - url: {url}/v1/discovery/prometheus
        refresh_interval: 1s
        authorization: {{type: Bearer, credentials: {key}}}
"""


class Operator:
    """Runs commands of `roadstead` for one system, while clients go on."""

    def __init__(self, system: System) -> None:
        self.system = system

    async def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Run a command on the system."""
        return await asyncio.to_thread(self.run, [*map(str, arguments), "--data", str(self.system.data.path)])

    @staticmethod
    def run(arguments: list[str]) -> tuple[int, str, str]:
        """Run a command to its end; return its exit code and what it said."""
        said, complained = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
            code = exit_code(*arguments)
        return code, said.getvalue(), complained.getvalue()

    async def said(self, *arguments: str | Path) -> str:
        """Run a command that ends well; return what it said."""
        code, said, complained = await self(*arguments)
        assert code == 0, complained
        return said

    async def told(self, *arguments: str | Path) -> Any:
        """Run a command that ends well; return its last line of JSON."""
        return json.loads((await self.said(*arguments, "--json")).splitlines()[-1])

    async def until(self, is_so: Callable[[Any], bool], *arguments: str | Path) -> Any:
        """Run a command until what it tells is so; return that."""
        async with asyncio.timeout(SETTLE_S):
            while not is_so(told := await self.told(*arguments)):  # noqa: ASYNC110 - seen as from outside
                await asyncio.sleep(0.2)
        return told


@pytest.fixture(scope="module")
def prometheus_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, prometheus_port: int) -> Iterator[System]:
    settings = {
        "up.access_nodes": 2,
        "up.spare_status_nodes": 0,
        "access.version": STABLE,
        "scheduler.slow_start_ms": 0,
        "scheduler.prometheus_url": f"http://127.0.0.1:{prometheus_port}",
    }
    flags = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    process = UpProcess(tmp_path_factory.mktemp("up") / "data", *flags)
    yield process.start()
    assert process.stop() == 0


@pytest.fixture
def operator(system: System) -> Operator:
    return Operator(system)


@contextmanager
def serving(system: System, name: str, version: str) -> Iterator[dict[str, Any]]:
    """One more access node, which says it is of that version; it is ready. At the end it is told to stop, and does."""
    command = [sys.executable, "-m", "roadstead", "access", "serve", "--json", "--name", name]
    command += ["--data", str(system.data.path), "--set", f"access.version={version}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()


@asynccontextmanager
async def connected(system: System) -> AsyncIterator[Clients]:
    key = system.data.secrets().api_key
    urls = system.endpoints.nodes()
    async with clients(urls.__getitem__, key, schedulers=lambda: ["scheduler-1"], im="im-1") as made:
        yield made


def held(made: Clients) -> Counter[str]:
    """How many clients are at each node, by what they know themselves."""
    return Counter(client.node for client in made.all)


# ---------------------------------------------------------------- live connections


async def test_a_node_is_filled_and_a_version_rolled_out_and_taken_back(operator: Operator, tmp_path: Path) -> None:
    """Three hundred clients go where operators want them, and none of them is closed without having been told to go."""
    system = operator.system
    async with connected(system) as made:
        await made.join(USERS)
        await operator.until(lambda nodes: sum(node["connections"] for node in nodes) == 300, "access", "nodes")
        with ExitStack() as stack:
            stack.enter_context(serving(system, "access-3", STABLE))
            await a_new_node_is_filled(operator, made)
            await a_cordoned_node_gets_nobody(operator)
            stack.enter_context(serving(system, "access-4", CANARY))
            await a_version_is_rolled_out(operator, made, tmp_path)
            await decisions_are_replayed(operator, made, tmp_path)
            await it_is_taken_back(operator, made)
            assert made.untold == []
            await made.close()


async def a_new_node_is_filled(operator: Operator, made: Clients) -> None:
    """By the fewest moves, each verified by the node where it arrived."""
    await operator.until(lambda nodes: len(nodes) == 3, "access", "nodes")
    done = await operator.told("access", "rebalance", "start", "--rate", "500/s", "--accept", "500/s")
    progress = done["moves"]["progress"]
    assert (progress["phase"], done["is_over"]) == ("complete", True)
    moved = progress["moved"]
    assert (progress["verified"], progress["arrived"], held(made)["access-3"]) == (moved, moved, moved)
    assert 90 <= moved <= 1.1 * progress["minimum"]
    assert max(held(made).values()) <= 1.04 * len(USERS) / 3


async def a_cordoned_node_gets_nobody(operator: Operator) -> None:
    """As the explanation says."""
    await operator.said("access", "cordon", "access-1", "--reason", "disk")
    explain = ("explain", "--user", "ann")
    told = await operator.until(lambda told: "access-1" not in told["candidates"], *explain)
    (stage,) = [stage for stage in told["stages"] if stage["stage"] == "filter"]
    assert stage["dropped"] == ["access-1: cordoned"]
    await operator.said("access", "uncordon", "access-1")
    await operator.until(lambda told: "access-1" in told["candidates"], *explain)


async def a_version_is_rolled_out(operator: Operator, made: Clients, folder: Path) -> None:
    """A share of newcomers first, then of live connections, then everybody who comes."""
    good, bad = folder / "good.yaml", folder / "bad.yaml"
    good.write_text(ROLLOUT)
    bad.write_text(ROLLOUT.replace("percent: 60", "percent: 6"))
    code, _, complained = await operator("rollout", "create", bad)
    assert (code, complained.startswith(f"{bad}:5: ")) == (1, True), complained
    assert "good, 3 shares to 100 %" in await operator_validates(good)
    await operator.until(lambda nodes: len(nodes) == 4, "access", "nodes")
    assert (await operator.told("rollout", "create", good))["percent"] == 20
    assert {(await made.ask(user, "scheduler-1"))["arm"] for user in USERS[:60]} == {"stable", "next"}
    status = ("rollout", "status", "next")
    assert (await operator.told(*status))["live"]["connections"] == 0
    await operator.said("rollout", "step", "next")
    await operator.until(lambda shown: shown["phase"] == "paused", *status)
    # A report is of a second ago, and of some clients the move is not over yet.
    shown = await operator.until(lambda shown: shown["live"]["connections"] == held(made)["access-4"], *status)
    assert 0.97 * 60 <= shown["live"]["percent"] <= 62
    assert "of live connections" in await operator.said(*status)
    assert (await operator.told("rollout", "promote", "next"))["phase"] == "complete"
    assert {(await made.ask(user, "scheduler-1"))["arm"] for user in USERS[:60]} == {"next"}


async def operator_validates(file: Path) -> str:
    """What the command says of a document, without a system."""
    code, said, complained = await asyncio.to_thread(Operator.run, ["rollout", "validate", str(file)])
    assert code == 0, complained
    return said


async def decisions_are_replayed(operator: Operator, made: Clients, folder: Path) -> None:
    """In the midst of it all, to the last bit."""
    file = folder / "decisions"
    recording = asyncio.ensure_future(operator.told("record", file, "--for", "20s", "--decisions", "200"))
    asked = 0
    while not recording.done():
        await made.ask(f"asking-{asked}", "scheduler-1")
        asked += 1
    assert (await recording)["is_whole"] is True
    code, said, _ = await asyncio.to_thread(Operator.run, ["replay", "decisions", str(file)])
    assert (code, said) == (0, "200 decisions, all the same to the last bit\n")


async def it_is_taken_back(operator: Operator, made: Clients) -> None:
    """Nobody is left on the canary, and nobody new comes there."""
    await operator.said("rollout", "abort", "next")
    shown = await operator.until(lambda shown: shown["live"]["connections"] == 0, "rollout", "status", "next")
    assert shown["phase"] == "aborted"
    assert held(made)["access-4"] == 0
    assert sum(held(made).values()) == len(USERS)
    assert {(await made.ask(user, "scheduler-1"))["arm"] for user in USERS[:60]} == {"stable"}
    await operator.said("rollout", "delete", "next")


# ---------------------------------------------------------------- by what Prometheus says


async def test_what_a_prometheus_says_of_the_canary_fails_it(
    operator: Operator, prometheus_port: int, tmp_path: Path
) -> None:
    """It finds the nodes by the scheduler, and tells canary from stable by the labels that it is given."""
    system = operator.system
    (tmp_path / "worse.yaml").write_text(JUDGED)
    with serving(system, "access-5", BAD) as node, prometheus(system, prometheus_port, tmp_path):
        async with connected(system) as made:
            assert (await operator.told("rollout", "create", tmp_path / "worse.yaml"))["percent"] == 50
            status = ("rollout", "status", "worse")
            shown = await operator.until(lambda shown: shown["outcome"] == "passed", *status)
            assert shown["findings"] == ["promql 0: within its bounds"]
            await made.join(USERS[:20])
            assert 0 < held(made)["access-5"] < 20
            url = transport_urls(node["client_url"])["websocket"]
            for _ in range(10):
                assert not await LightClient(made, "mallory", "").use(forged(url))
            shown = await operator.until(lambda shown: shown["phase"] == "failed", *status)
            assert shown["reason"] == "failed 2 times in step 1 of 2: promql 10: above 5"
            assert (await operator("rollout", "status", "worse", "--watch"))[0] == 1
            assert {(await made.ask(user, "scheduler-1"))["arm"] for user in USERS[:60]} == {"stable"}
            await made.close()


def forged(url: str) -> dict[str, Any]:
    """An answer with a ticket that nobody signed."""
    return {"candidates": [{"urls": {"websocket": url}}], "ticket": "e30.e30.e30"}


@contextmanager
def prometheus(system: System, port: int, folder: Path) -> Iterator[None]:
    """Run one that asks the scheduler whom to scrape."""
    written = PROMETHEUS.format(url=system.scheduler, key=system.data.secrets().api_key)
    (folder / "prometheus.yml").write_text(written)
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield
        finally:
            process.kill()
