"""What the status cluster says of users to whoever looks them up from outside: at any status node, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from base.errors import RoadsteadError
from roadstead.api import call_api
from roadstead.replay.core.proof import Shown

__all__ = ["Lookups"]

USERS_MAX = 1_000
AGAIN_S = 0.1


class Lookups:
    """Asks until the answer is as expected, or time is up: then the last answer counts."""

    def __init__(self, nodes: Sequence[str], *, credential: str, credible_s: float) -> None:
        """`nodes`: base URLs of status nodes. `credible_s`: how long an answer may be behind what has happened."""
        self._nodes = nodes
        self._credential = credential
        self._credible_s = credible_s
        self._turn = 0

    async def look_up(self, expected: Mapping[str, Shown]) -> dict[str, Shown]:
        """Return what is said of these users. Whoever nobody answers for is left out."""
        users = list(expected)
        found: dict[str, Shown] = {}
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._credible_s
        while users:
            for begin in range(0, len(users), USERS_MAX):
                found |= await self._ask(users[begin : begin + USERS_MAX])
            users = [user for user in users if found.get(user) != expected[user]]
            if loop.time() >= give_up:
                break
            if users:
                await asyncio.sleep(AGAIN_S)
        return found

    async def _ask(self, users: Sequence[str]) -> dict[str, Shown]:
        """Ask the nodes in turn, the next one where one does not answer."""
        for _ in self._nodes:
            node = self._nodes[self._turn % len(self._nodes)]
            self._turn += 1
            try:
                answer = await call_api(
                    "POST", f"{node}/v1/users/status", credential=self._credential, body={"users": list(users)}
                )
            except RoadsteadError:
                continue
            return {one["user"]: Shown.of(one["state"], one["sessions"]) for one in answer["statuses"]}
        return {}
