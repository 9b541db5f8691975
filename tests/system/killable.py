"""A system with two access nodes, of which one is a process of its own, to be killed; and the JavaScript SDK."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from roadstead.api import call_api
from roadstead.local import System, UpProcess
from tests.system.conftest import eventually

CLIENTS_JS = Path(__file__).parents[2] / "clients/js"
MORTAL = "access-9"
INSTALL_TIMEOUT_S = 120
SETTINGS = ["--set", "node.registration_ttl_ms=3000"]
FEW = ["--set", "up.access_nodes=1", "--set", "up.spare_status_nodes=0"]


class Killable:
    """The running system; its access node access-1 lives in the process of `up`, `MORTAL` in another one."""

    def __init__(self, system: System, mortal: subprocess.Popen[bytes], mortal_url: str) -> None:
        self.scheduler = system.scheduler
        self.key = system.data.secrets().api_key
        self._endpoints = system.endpoints
        self._mortal = mortal
        self._mortal_url = mortal_url

    def kill(self) -> None:
        """End the mortal node: kill -9."""
        self._mortal.kill()
        self._mortal.wait()

    async def drain(self) -> None:
        """Tell everybody on the mortal node to go, within a second."""
        url = f"{self._mortal_url}/v1/admin/access/drain"
        await call_api("POST", url, credential=self.key, body={"over_ms": 1_000, "grace_ms": 10_000})

    async def nodes_of(self, user: str) -> list[str]:
        """The access nodes of a user's sessions."""
        url = next(iter(self._endpoints.status.values()))
        status = await call_api("GET", f"{url}/v1/users/{user}/status", credential=self.key)
        return [session["node"] for session in status["sessions"]]

    async def is_mortal(self, user: str) -> bool:
        """Whether the user, who has just connected, is on the node that can be killed."""

        async def is_online() -> bool:
            return bool(await self.nodes_of(user))

        await eventually(is_online)
        return await self.nodes_of(user) == [MORTAL]

    async def send(self, to: str, *bodies: Any) -> None:
        """Store messages, one after the other."""
        url = next(iter(self._endpoints.im.values()))
        for body in bodies:
            message = {"from": "ann", "to": to, "client_msg_id": f"{to}-{body}", "body": body}
            await call_api("POST", f"{url}/v1/messages", credential=self.key, body=message)


@contextmanager
def killable(folder: Path) -> Iterator[Killable]:
    """Run it until the block ends."""
    up = UpProcess(folder, *FEW, *SETTINGS)
    system = up.start()
    command = [sys.executable, "-m", "roadstead", "access", "serve", "--json", "--name", MORTAL, "--data", str(folder)]
    try:
        with subprocess.Popen([*command, *SETTINGS], stdout=subprocess.PIPE) as mortal:
            try:
                assert mortal.stdout is not None
                line = mortal.stdout.readline()
                assert line, "the access node did not start"
                yield Killable(system, mortal, msgspec.json.decode(line)["url"])
            finally:
                mortal.kill()
    finally:
        up.stop()


def install_sdk() -> Path:
    """The JavaScript client's folder, with its dependencies, which are installed if they are not."""
    installed = CLIENTS_JS / "node_modules"
    # One test process installs, the others wait; nobody sees the half of it.
    with (CLIENTS_JS / "package.json").open() as lock, TemporaryDirectory(dir=CLIENTS_JS, prefix=".install-") as folder:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (installed / "ws").is_dir():
            for name in ("package.json", "package-lock.json"):
                shutil.copy(CLIENTS_JS / name, folder)
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
            subprocess.run(command, cwd=folder, check=True, timeout=INSTALL_TIMEOUT_S)
            shutil.rmtree(installed, ignore_errors=True)
            (Path(folder) / "node_modules").rename(installed)
    return CLIENTS_JS


async def until(count: int, seen: list[Any]) -> None:
    """Return once that many are there."""

    async def look() -> bool:
        return len(seen) >= count

    await eventually(look)
