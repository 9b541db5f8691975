"""The Python SDK's own test suite, unchanged, against our access nodes: all of it passes, in JSON and in protobuf.

Its live tests connect to port 8000 of this machine, where upstream runs its own server; here our system listens there,
configured as upstream's is. None of them is left out: what the design declines (delta compression, numeric channel ids)
is negotiated by the protocol, and the SDK goes on without.

The suite is not in this repository. It is fetched as the source distribution of the very release in the lock file, and
its hash is compared with the lock's.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from roadstead.api import call_api
from roadstead.local import System, UpProcess

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
PORT = 8000
DEADLINE_S = 240
TESTS = 185
"""In the suite, all modules; 62 of them in its `test_client`, most of which talk to the server."""
CONNECTS_MIN = 40
"""Connections that the live tests make at least, as a proof that it was our server to which they talked."""
CONFIGURATION = """
[access]
token_key = "secret"
subscribe_inbox = false
client_port = {port}
[access.channels]
subscribe_personal = true
[[access.namespaces]]
presence = true
join_leave = true
force_push_join_leave = true
history_size = 100
history_ttl_ms = 300000
force_recovery = true
allow_publish = "subscriber"
allow_history = "subscriber"
allow_presence = "subscriber"
[[access.namespaces]]
name = "smallhistory"
history_size = 2
history_ttl_ms = 300000
force_recovery = true
allow_publish = "subscriber"
allow_history = "subscriber"
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    lock = (ROOT / "requirements.lock").read_text()
    locked = re.search(r"centrifuge-python==(\S+) \\\n((?:\s+--hash=\S+.*\n)+)", lock)
    assert locked is not None
    folder = tmp_path_factory.mktemp("upstream")
    wanted = ["--no-binary", "centrifuge-python", f"centrifuge-python=={locked[1]}"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-build-isolation", "--dest", str(folder), *wanted]
    subprocess.run(command, check=True, timeout=120)
    (archive,) = folder.glob("*.tar.gz")
    assert f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}" in locked[2]
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return next(path for path in folder.iterdir() if path.is_dir())


@contextmanager
def running(folder: Path, *, port: int, nodes: int) -> Iterator[System]:
    """A system configured as upstream's server is."""
    file = folder / "upstream.toml"
    file.write_text(CONFIGURATION.format(port=port))
    process = UpProcess(folder / "data", "--config", str(file), "--set", f"up.access_nodes={nodes}")
    try:
        yield process.start()
    finally:
        process.stop()


async def run_suite(suite: Path, *arguments: str) -> tuple[int, str]:
    """Run tests of the suite; return how many, and what they printed last. Fails if any of them does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "unittest",
        *arguments,
        cwd=suite,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    text = output.decode(errors="replace")
    tail = text[-4_000:]
    assert process.returncode == 0, tail
    ran = re.search(r"^Ran (\d+) tests? in", text, re.MULTILINE)
    assert ran is not None, tail
    return int(ran[1]), text.splitlines()[-1]


async def connects(system: System) -> int:
    """How many connect commands were accepted, at all nodes together."""
    total = 0.0
    for url in system.endpoints.access.values():
        async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
            metrics = await response.text()
        found = re.search(r'^roadstead_access_connects_total\{.*outcome="accepted".*\} (\S+)$', metrics, re.MULTILINE)
        total += float(found[1]) if found is not None else 0
    return round(total)


@asynccontextmanager
async def balancer(port: int, targets: list[str]) -> AsyncIterator[None]:
    """An L4 balancer: each connection goes to the next target."""
    turn = 0

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal turn
        url = urlsplit(targets[turn % len(targets)])
        turn += 1
        there, back = await asyncio.open_connection(url.hostname, url.port)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pipe(reader, back))
            tasks.create_task(pipe(there, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", port)
    async with server:
        yield
        server.close()


async def test_the_whole_suite_passes(suite: Path, tmp_path: Path) -> None:
    """Every test that upstream has, with one access node on the port that it expects."""
    with running(tmp_path, port=PORT, nodes=1) as system:
        ran, last = await run_suite(suite, "discover", "-s", "tests", "-t", ".")
        assert (ran, last) == (TESTS, "OK")
        assert await connects(system) >= CONNECTS_MIN


async def test_the_live_tests_pass_when_each_client_lands_on_another_node(suite: Path, tmp_path: Path) -> None:
    """Two nodes behind a balancer: publishers and subscribers, presence and recovery meet across them."""
    with running(tmp_path, port=0, nodes=2) as system:
        assert len(system.endpoints.clients) == 2
        async with balancer(PORT, list(system.endpoints.clients.values())):
            _, last = await run_suite(suite, "tests.test_client")
        assert last == "OK"
        for url in system.endpoints.access.values():
            statistics = await call_api("GET", f"{url}/debug/statistics")
            assert statistics["connections"] == 0
        assert await connects(system) >= CONNECTS_MIN
