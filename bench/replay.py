"""All chats of the Chit-Chat data set, 258,145 messages of 1,315 people, as fast as they go, judged: messages a second.

Every person is a stock client (centrifuge-python, with the way in around it) of `roadstead up`, which runs as it is.
A message leaves when its sender has the one before it in its conversation, so it is the system's latency, and how many
people talk at once, that bound the rate, beside the clients: they run in processes of their own on the same machine,
and take about as much CPU as the server. At the end every device comes once more; logs, devices and unread counts
are compared with what was sent.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from bench.process import cpu_s
from bench.replay_worker import Order, Saw, plan_of
from bench.result import Options, Result, percentile
from roadstead.local import running_system
from roadstead.replay.core.day import Choice
from roadstead.replay.core.figures import Happened
from roadstead.replay.core.plan import Pace
from roadstead.replay.core.proof import Seen, prove
from roadstead.replay.doors import Doors
from roadstead.replay.stage import SETTINGS

__all__ = ["run"]

PROCESSES = 2
PACE = Pace(speed=100_000, quiet_s=0)
"""All is due within a second."""
IN_FLIGHT = 64
"""Of one user: it is in up to 62 conversations at once."""
QUICK = Choice(date=17_662, most=8)
"""Some of the chats of 2018-05-11."""
GOAL = 1_000


def run(options: Options) -> Result:
    """Measure, see the module."""
    choice = QUICK if options.quick else Choice()
    settings = {**SETTINGS, "access.accepts_per_second": 0}
    flags = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    with TemporaryDirectory(prefix="replay-") as folder, running_system(*flags) as system:
        order = Order(
            choice=choice,
            pace=PACE,
            doors=Doors([system.scheduler], list(system.endpoints.status.values()), system.data.secrets().api_key),
            in_flight=IN_FLIGHT,
            part=0,
            parts=PROCESSES,
            file="",
        )
        orders = [
            msgspec.structs.replace(order, part=part, file=f"{folder}/{part}.msgpack") for part in range(PROCESSES)
        ]
        pid = system.endpoints.pid
        with _workers(orders) as workers:
            _until_said(workers)
            before_s = cpu_s(pid)
            _go_on(workers)
            _until_said(workers)
            server_s = cpu_s(pid) - before_s
            _go_on(workers)
            for worker in workers:
                assert worker.wait() == 0, "a process of clients failed"
        saw = [msgspec.msgpack.decode(Path(one.file).read_bytes(), type=Saw) for one in orders]
    return _result(order, saw, server_s)


def _result(order: Order, saw: Sequence[Saw], server_s: float) -> Result:
    seen, happened = Seen(), Happened()
    for one in saw:
        seen.add(one.seen)
        happened.add(one.happened)
    proof = prove(plan_of(order), seen)
    for violation in proof.violations[:10]:
        print(violation, file=sys.stderr)
    sends = sorted(took for _, took in happened.sends)
    deliveries = sorted(took for _, took in happened.deliveries)
    seconds = (max(at for at, _ in happened.sends) - PACE.start_ms) / 1_000
    return Result(
        name="replay",
        value=round(len(sends) / seconds, 1),
        unit="messages a second, end to end",
        goal=GOAL,
        better="higher",
        details={
            "violations": len(proof.violations),
            "looked": proof.looked,
            "seconds": round(seconds, 1),
            "server_cpu_us": round(server_s / len(sends) * 1e6, 1),
            "client_processes": PROCESSES,
            "client_cpu_us": round(sum(one.cpu_s for one in saw) / len(sends) * 1e6, 1),
            "ack_ms": {"p50": percentile(sends, 50), "p99": percentile(sends, 99)},
            "delivery_ms": {"p50": percentile(deliveries, 50), "p99": percentile(deliveries, 99)},
            "calls_given_up_and_made_again": happened.unknown,
        },
    )


@contextmanager
def _workers(orders: Sequence[Order]) -> Iterator[list[subprocess.Popen[bytes]]]:
    with ExitStack() as stack:
        workers = []
        for order in orders:
            worker = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "bench.replay_worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            )
            stack.callback(worker.kill)
            assert worker.stdin is not None
            worker.stdin.write(msgspec.json.encode(order) + b"\n")
            worker.stdin.flush()
            workers.append(worker)
        yield workers


def _until_said(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline(), "a process of clients ended"


def _go_on(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(b"\n")
        worker.stdin.flush()
