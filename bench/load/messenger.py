"""The program in C that plays clients who send each other messages (`messages.c`): one thread, real sockets."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from base.ids import new_uuid
from bench.load.wire import user_name
from bench.process import Child, child
from scheduler.api import Ticket
from scheduler.tokens import mint_ticket

__all__ = ["Messenger", "Run", "Times", "messenger"]

PAD_BYTES = 64
"""Of a body, which makes a send 180 bytes long and a publication 300."""
TICKET_TTL_S = 600

T = TypeVar("T")


class Times(msgspec.Struct, frozen=True):
    """In microseconds, of so many messages."""

    count: int
    p50: int = 0
    p99: int = 0
    p999: int = 0
    max: int = 0

    def ms(self) -> dict[str, float]:
        """Return them in milliseconds."""
        return {name: round(getattr(self, name) / 1000, 1) for name in ("p50", "p99", "p999", "max")}


class Run(msgspec.Struct, frozen=True):
    """What the generator says of a run: messages, and its own CPU."""

    sent: int
    acked: int
    delivered: int
    done: int
    errors: int
    gaps: int
    lost: int
    in_flight: int
    seconds: float
    cpu_s: float
    behind_us: int
    ack_us: Times
    delivery_us: Times


class Messenger:
    """The program, with all its clients connected."""

    def __init__(self, program: Child) -> None:
        self._program = program

    def begin(self, kind: str, amount: float, warm_up: float, seconds: float) -> None:
        """Give an order, see the program, and return when its warm-up is over."""
        stdin, stdout = self._program.process.stdin, self._program.process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{kind} {amount} {warm_up} {seconds}\n".encode())
        stdin.flush()
        begun = stdout.readline()
        assert begun == b"begin\n", begun

    def end(self) -> Run:
        """Return what happened since the warm-up, when the order is carried out."""
        assert self._program.process.stdout is not None
        return msgspec.json.decode(self._program.process.stdout.readline(), type=Run)

    def run(
        self, kind: str, amount: float, warm_up: float, seconds: float, *, count: Callable[[], T]
    ) -> tuple[Run, T, T]:
        """Carry out an order; return also what was counted when its warm-up was over, and at its end."""
        self.begin(kind, amount, warm_up, seconds)
        before = count()
        run = self.end()
        return run, before, count()


@contextmanager
def messenger(websocket: str, connections: int, ticket_key: tuple[str, str]) -> Iterator[Messenger]:
    """Connect so many clients to an access node of this machine until the block ends; `ticket_key`: kid and secret."""
    with TemporaryDirectory(prefix="messenger-") as folder:
        program = Path(folder) / "messages"
        source = Path(__file__).parent / "messages.c"
        subprocess.run(["cc", "-O2", "-o", str(program), str(source)], check=True)
        port = urlsplit(websocket).port
        with child([str(program), str(port), str(connections), str(PAD_BYTES)]) as started:
            stdin, stdout = started.process.stdin, started.process.stdout
            assert stdin is not None
            assert stdout is not None
            for number in range(connections):
                stdin.write(_ticket(number, *ticket_key).encode() + b"\n")
            stdin.flush()
            opened = stdout.readline()
            assert opened == b"open\n", opened
            yield Messenger(started)


def _ticket(number: int, kid: str, key: str) -> str:
    now_s = time.time_ns() // 1_000_000_000
    ticket = Ticket(
        sub=user_name(number), jti=new_uuid(), iat=now_s, exp=now_s + TICKET_TTL_S, device="load", platform="bench"
    )
    return mint_ticket(ticket, kid=kid, key=key)
