"""What is done to the system while people talk: a script, each step when a part of the messages is due, in order.

What cannot be done to one process alone is left out of its script, and said in the report.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from base.errors import RoadsteadError
from roadstead.replay.core.figures import Mark
from roadstead.replay.stage import BAD, CANARY, THIRD, ClusterStage, OperatedStage, UpStage

__all__ = ["NOT_IN_ONE_PROCESS", "Operation", "carried_out", "script_of"]

VERSION = "2.0.0"
ROLLOUT, TESTERS = "replay", "testers"
DOCUMENT = f"""\
rollout: {ROLLOUT}
pool: {{version: {VERSION}}}
segments:
  - {{name: testers, when: {{user: {{in: {TESTERS}}}}}, to: canary}}
steps:
  - {{percent: 0}}
  - {{pause: manual}}
  - {{percent: 1, hold: 10m, migrate: {{rate: 20/s}}}}
  - {{percent: 10, hold: 10m, migrate: {{rate: 20/s}}}}
  - {{percent: 100}}
analysis:
  interval: 1s
  failure_limit: 2
  checks:
    - {{metric: connect_success, min: 0.9}}
on_failure: {{move: {{rate: 50/s, deadline: 20s}}}}
"""
LOOK_ON_S = 3.0
"""How long a share is looked at."""

NOT_IN_ONE_PROCESS = (
    "a scheduler is killed: it dies with the whole process",
    "the message services are restarted: they are with the whole process",
)
"""What the script of `up` leaves out, and why."""


class Operation(NamedTuple):
    """Something to do, when a part of the messages (0 to 1) is due; it returns what came of it."""

    at: float
    name: str
    do: Callable[[], Awaitable[str]]


def script_of(stage: UpStage | ClusterStage, testers: Sequence[str]) -> list[Operation]:
    """Return what is done to a system. `testers`: users who get a new version first."""
    common = [
        Operation(0.05, "resize 3 to 5", lambda: _resize(stage, 5)),
        Operation(0.15, "drain access-1", lambda: _drain(stage)),
        Operation(0.50, "canary", lambda: _canary(stage, testers)),
        Operation(0.90, "resize 5 to 3", lambda: _resize(stage, 3)),
    ]
    if isinstance(stage, UpStage):
        own = [
            Operation(0.28, f"kill -9 {THIRD}", lambda: _kill_third(stage)),
            Operation(0.78, "kill -9 the whole process", lambda: _kill_all(stage)),
        ]
    else:
        own = [
            Operation(0.28, f"kill -9 {THIRD}", lambda: _kill(stage, THIRD)),
            Operation(0.40, "kill -9 scheduler-1", lambda: _kill(stage, "scheduler-1")),
            Operation(0.78, "restart im-1", lambda: _restart(stage, "im-1")),
        ]
    return sorted([*common, *own], key=lambda one: one.at)


async def carried_out(
    script: Sequence[Operation],
    *,
    due_ms: Callable[[float], int],
    now_ms: Callable[[], int],
    tell: Callable[[Mark], None],
) -> list[Mark]:
    """Do one after the other, each at its time or when the one before is over. What fails is said; the next follows.

    `due_ms` tells when a part of the messages is due, and `now_ms` the time, both since the replay began.
    """
    marks: list[Mark] = []
    for one in script:
        await asyncio.sleep(max(0, due_ms(one.at) - now_ms()) / 1_000)
        began_ms = now_ms()
        try:
            says, is_done = await one.do(), True
        except RoadsteadError as error:
            says, is_done = error.message, False
        marks.append(Mark(one.name, began_ms, now_ms(), says, is_done))
        tell(marks[-1])
    return marks


async def _resize(stage: OperatedStage, to: int) -> str:
    return _last(await stage.command("status", "resize", "--to", str(to), "--yes"))


async def _drain(stage: OperatedStage) -> str:
    said = await stage.command("access", "drain", "access-1", "--over", "3s", "--grace", "3s")
    await stage.command("access", "abort", "access-1")
    *_, went, _empty = said.splitlines()
    return f"{went}; then it takes clients again"


async def _kill_third(stage: UpStage) -> str:
    await stage.end_node(THIRD, signal.SIGKILL)
    await asyncio.sleep(LOOK_ON_S)
    await stage.begin_node(THIRD)
    return f"back {LOOK_ON_S:g} s later"


async def _kill_all(stage: UpStage) -> str:
    await asyncio.to_thread(stage.process.kill)
    await stage.start_process()
    return "all roles at once; started again at once"


async def _kill(stage: ClusterStage, name: str) -> str:
    await stage.kill(name)
    return "the supervisor brought it back"


async def _restart(stage: ClusterStage, name: str) -> str:
    await stage.command("cluster", "stop", name)
    await stage.command("cluster", "start", name)
    return "stopped and started"


async def _canary(stage: OperatedStage, testers: Sequence[str]) -> str:
    """Roll a version out to testers, 1 % and 10 % of all; put a bad build of it there; look on as it is taken back."""
    document, users = stage.folder / "rollout.yaml", stage.folder / "testers.txt"
    await asyncio.to_thread(_write, users, "".join(f"{user}\n" for user in testers))
    await asyncio.to_thread(_write, document, DOCUMENT)
    await stage.command("lists", "write", TESTERS, str(users))
    said = [_last(await stage.command("rollout", "create", str(document)))]
    settings = (f"access.version={VERSION}", "access.stop_drain_ms=1000", "access.drain_grace_ms=1000")
    await stage.begin_node(CANARY, *settings)
    for order in ("resume", "step"):
        said.append(_last(await stage.command("rollout", order, ROLLOUT)))
        await asyncio.sleep(LOOK_ON_S)
    await stage.begin_node(BAD, *settings, is_bad=True)
    await stage.end_node(CANARY, signal.SIGTERM)
    said.append(_last(await stage.command("rollout", "status", ROLLOUT, "--watch", codes=(1,))))
    await stage.end_node(BAD, signal.SIGTERM)
    await stage.command("rollout", "delete", ROLLOUT)
    return "; ".join(one.removeprefix(f"{ROLLOUT}: ") for one in said)


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")


def _last(said: str) -> str:
    return said.splitlines()[-1]
