"""Users of the message services, each by a stock SDK client at a device, in a system that is as small as can be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import centrifuge
import pytest

from im.config import ImConfig
from roadstead.api import call_api
from roadstead.config import Config, UpConfig
from tests.system.conftest import Connect, StockClient, System, eventually, running

SMALL = UpConfig(access_nodes=1, status_nodes=1, spare_status_nodes=0)
LIMITS_OFF = {"user_calls_per_second": 0.0, "device_calls_per_second": 0.0, "conversation_calls_per_second": 0.0}


class Person:
    """A user at one device, and what that device was told."""

    def __init__(self, user: str, device: str, client: StockClient) -> None:
        self.user = user
        self._device = device
        self.client = client
        self._keys = 0

    async def call(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        result = await self.client.sdk.rpc(f"im.{name}", arguments)
        assert isinstance(result.data, dict)
        return result.data

    async def say(self, place: str, body: Any, /, **more: Any) -> dict[str, Any]:
        """Send under a new key; `place` is a cid if it is a number, else a user."""
        self._keys += 1
        where = "cid" if place.isdigit() else "to"
        arguments = {where: place, "client_msg_id": f"{self._device}-{self._keys}", "body": body, **more}
        return await self.call("send", **arguments)

    async def refused(self, code: int, name: str, /, **arguments: Any) -> str:
        """Call in vain; return the message."""
        with pytest.raises(centrifuge.ReplyError) as caught:
            await self.call(name, **arguments)
        assert caught.value.code == code, caught.value
        assert caught.value.message
        return str(caught.value.message)

    def told(self, kind: str) -> list[dict[str, Any]]:
        """What was pushed of this kind, in order."""
        return [one.data for one in self.client.server_publications if one.data["kind"] == kind]

    async def hears(self, kind: str, /, **fields: Any) -> dict[str, Any]:
        """Wait until something of this kind, with these fields, was pushed."""
        found: list[dict[str, Any]] = []

        async def look() -> bool:
            found[:] = [one for one in self.told(kind) if fields.items() <= one.items()]
            return bool(found)

        await eventually(look)
        return found[-1]

    async def log(self, cid: str) -> list[dict[str, Any]]:
        """All of a conversation that the user may see."""
        return list((await self.call("history", cid=cid, after=0, limit=1_000))["entries"])

    async def group(self, *members: str, key: str = "g") -> str:
        """Make a group of the user and these; return its cid."""
        made = await self.call("group_create", client_msg_id=key, name="team", members=members)
        return str(made["cid"])

    async def listed(self, cid: str) -> dict[str, Any] | None:
        """The conversation as the user's list has it; None: it is not in it."""
        found = (await self.call("conversations"))["conversations"]
        return next((one for one in found if one["cid"] == cid), None)


class Town:
    """A running system, and people."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.connect = Connect(system)

    async def person(self, user: str, device: str = "phone") -> Person:
        return Person(user, device, await self.connect(user, device=device))

    async def backend(self, user: str, name: str, /, **arguments: Any) -> Any:
        """Call a method for a user as a backend."""
        return await self.http("POST", f"/v1/users/{user}/im/{name}", arguments)

    async def change(self, cid: str, action: str, /, **more: Any) -> Any:
        """Change a conversation as an operator."""
        return await self.http("POST", f"/v1/conversations/{cid}/changes", {"action": action, **more})

    async def http(self, method: Any, path: str, body: Any = None) -> Any:
        return await call_api(method, self.system.im + path, credential=self.system.key, body=body)


@asynccontextmanager
async def town(folder: Path, **im: Any) -> AsyncIterator[Town]:
    """Run a small system whose message services have these settings, and no quotas unless they say so."""
    async with running(folder / "data", Config(up=SMALL, im=ImConfig(**{**LIMITS_OFF, **im}))) as system:
        made = Town(system)
        try:
            yield made
        finally:
            await made.connect.close()
