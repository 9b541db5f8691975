"""Other people's programs beside ours: run one, and wait until it says what it should."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import aiohttp

__all__ = ["running", "until"]

SETTLE_S = 10.0
STOP_S = 2.0
LOOK_S = 0.02

T = TypeVar("T")


@asynccontextmanager
async def running(log: Path, *command: str) -> AsyncIterator[None]:
    """Run a program until the end of the block; what it wrote is told when something in the block fails."""
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(*command, stdout=out, stderr=out)
    try:
        yield
    except BaseException:
        sys.stderr.write(log.read_text())  # noqa: ASYNC240 - nothing else matters any more
        raise
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def until(what: Callable[[], Awaitable[T]], *, within_s: float = SETTLE_S) -> T:
    """Return the first result that is neither false nor an error of a program that is still starting."""
    async with asyncio.timeout(within_s):
        while True:
            with suppress(aiohttp.ClientError, OSError):
                if found := await what():
                    return found
            await asyncio.sleep(LOOK_S)
