"""`make demo`: two clients talk through a system of their own, and the one that was away gets what it missed.

Starts `roadstead up` in another process and a temporary folder, connects stock SDKs to it, tells what happens, and
ends with exit code 0 only if every message arrived once and in order.
"""

from __future__ import annotations

import asyncio
import sys

from rich.console import Console

from roadstead.api import call_api
from roadstead.client import Client, Incoming
from roadstead.local import System, running_system

__all__ = ["main"]

DEADLINE_S = 20.0
_console = Console(highlight=False)


class _Talker:
    """A demo user: a client, what it received, and a way to wait for more."""

    def __init__(self, system: System, user: str) -> None:
        self.received: list[str] = []
        self._more = asyncio.Condition()
        self.client = Client(
            system.scheduler, user=user, credential=system.data.secrets().api_key, on_message=self._take
        )

    async def _take(self, incoming: Incoming) -> None:
        async with self._more:
            if incoming.data["from"] != self.client.user:
                self.received.append(incoming.data["body"])
                _console.print(
                    f"  {self.client.user} got:  {incoming.data['body']}  [dim](from {incoming.data['from']})[/]"
                )
            self._more.notify_all()

    async def wait(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE_S), self._more:
            await self._more.wait_for(lambda: len(self.received) >= count)


async def _state(system: System, user: str) -> str:
    url = next(iter(system.endpoints.status.values()))
    answer = await call_api("GET", f"{url}/v1/users/{user}/status", credential=system.data.secrets().api_key)
    return str(answer["state"])


async def _talk(system: System) -> bool:
    alice, bob = _Talker(system, "alice"), _Talker(system, "bob")
    _console.print("[bold]alice connects; bob is away[/]")
    await alice.client.connect()
    _console.print(f"  alice is {await _state(system, 'alice')}, bob is {await _state(system, 'bob')}")
    _console.print("[bold]alice writes to bob all the same[/]")
    away = ["are you there?", "call me when you are back"]
    for text in away:
        result = await alice.client.send("bob", text)
        _console.print(f"  stored as message {result['seq']} of conversation {result['cid']}: {text}")
    _console.print("[bold]bob connects and catches up[/]")
    await bob.client.connect()
    await bob.wait(2)
    _console.print("[bold]both are online[/]")
    await bob.client.send("alice", "back now")
    await alice.wait(1)
    await alice.client.send("bob", "good to see you")
    await bob.wait(3)
    await alice.client.close()
    await bob.client.close()
    return alice.received == ["back now"] and bob.received == [*away, "good to see you"]


def main() -> None:
    """Run the demo and exit."""
    with running_system() as system:
        is_right = asyncio.run(_talk(system))
    _console.print(
        "[bold green]every message arrived once and in order[/]" if is_right else "[bold red]not as it should be[/]"
    )
    sys.exit(0 if is_right else 1)


if __name__ == "__main__":
    main()
