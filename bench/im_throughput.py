"""Server CPU of a message between single chats, from socket to socket and fsynced, all services in one process: us.

`roadstead up` runs as it is, with one access node, and a program in C plays its clients, so that the machine's second
core is left to the server: users who are all online, each sending to a few others. A message is done when its sender
has the acknowledgement and its receiver the publication; the sender gets the publication too, as its other devices
would.

Three runs. With so many messages under way that the server is never idle: the value, and the rate that it sustains with
the generator on the same machine. By a schedule that waits for nobody, at half of the rate that a billion messages a
day need: latencies, counted from when a message was meant to leave. And the first one again under a profiler, if py-spy
is there: the five functions that took most of the CPU. What the event loop and the writer took, in user space and in
the kernel, is told in any case.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import msgspec

from access.api import transport_urls
from bench.load.messenger import Messenger, Run, messenger
from bench.process import cpu_s
from bench.result import Options, Result
from roadstead.local import System, running_system

__all__ = ["run"]

SPEC = ("RT-04",)  # rows of docs/spec-coverage.md

CONNECTIONS = 2_000
"""So many that none has to send more than one may."""
IN_FLIGHT = 900
A_BILLION_A_DAY = 11_574
"""A second."""
ROUNDS = 3
WARM_UP_S = 2.0
SECONDS = 5.0
PROFILED_S = 8.0
SAMPLES_A_SECOND = 500
SETTINGS = (
    "--set",
    "up.access_nodes=1",
    "--set",
    "access.accepts_per_second=0",
    # As many clients as there are play many more: the limits are kept, at what those would not reach.
    "--set",
    "im.user_calls_per_second=100000",
    "--set",
    "im.user_calls_burst=100000",
    "--set",
    "im.device_calls_per_second=100000",
    "--set",
    "im.device_calls_burst=100000",
)


class Measured(msgspec.Struct, frozen=True):
    """A run, and what the server did meanwhile."""

    run: Run
    cpu_us: float
    """Of the server's process, a message."""
    threads_us: dict[str, float]
    """Of its busiest threads: the event loop and the store's writer, in user space and in the kernel."""
    group: float
    """Messages in a commit."""
    costs: dict[str, str]

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.run.done / self.run.seconds


def run(options: Options) -> Result:
    """Measure, see the module."""
    connections = options.connections or (100 if options.quick else CONNECTIONS)
    rounds, seconds, warm_up = (1, 1.0, 0.5) if options.quick else (ROUNDS, SECONDS, WARM_UP_S)
    rate = 500 if options.quick else A_BILLION_A_DAY / 2
    in_flight = min(IN_FLIGHT, connections)
    with _server_and_clients(connections) as bench:
        busy = [bench.measure("closed", in_flight, warm_up, seconds) for _ in range(rounds)]
        half = bench.measure("open", rate, warm_up, seconds)
        profiled = None if options.quick else bench.measure("closed", in_flight, warm_up, PROFILED_S, profiles=True)
    for one in (*busy, half):
        assert not one.run.gaps, "a client missed an entry, or got one twice"
    typical = sorted(busy, key=lambda one: one.cpu_us)[len(busy) // 2]
    return Result(
        name="im_throughput",
        value=round(typical.cpu_us, 1),
        unit="us of server CPU a message",
        goal=60,
        better="lower",
        details={
            "connections": connections,
            "sustained_a_second": round(median(one.rate for one in busy)),
            "sustained_goal": A_BILLION_A_DAY,
            "half_load": {
                "a_second": round(half.rate),
                "errors": half.run.errors,
                "ack_ms": half.run.ack_us.ms() if half.run.done else None,
                "delivery_ms": half.run.delivery_us.ms() if half.run.done else None,
                "delivery_p99_goal_ms": 100,
                "cpu_us": round(half.cpu_us, 1),
                "group": round(half.group, 1),
            },
            "group": round(typical.group, 1),
            "threads_us": typical.threads_us,
            "generator_us": round(typical.run.cpu_s / typical.run.done * 1e6, 1),
            "rounds_us": [round(one.cpu_us, 1) for one in busy],
            "errors": sum(one.run.errors for one in (*busy, half)),
            "largest_costs": profiled.costs if profiled is not None else {},
        },
    )


class _Bench:
    """A running system with its clients."""

    def __init__(self, system: System, clients: Messenger, folder: Path) -> None:
        self._pid = system.endpoints.pid
        self._metrics = next(iter(system.endpoints.im.values())) + "/metrics"
        self._clients = clients
        self._folder = folder

    def measure(self, kind: str, amount: float, warm_up: float, seconds: float, *, profiles: bool = False) -> Measured:
        """Run an order of the generator's, see there."""
        self._clients.begin(kind, amount, warm_up, seconds)
        cpu, threads, commits = cpu_s(self._pid), _threads_s(self._pid), self._commits()
        with _profiler(self._pid, self._folder / "samples", seconds, wanted=profiles) as samples:
            run = self._clients.end()
            cpu = cpu_s(self._pid) - cpu
        messages, groups = (after - before for after, before in zip(self._commits(), commits, strict=True))
        assert run.done, "not one message came through"
        made = Measured(
            run=run,
            cpu_us=cpu / run.done * 1e6,
            threads_us=_busiest(threads, _threads_s(self._pid), run.done),
            group=messages / max(groups, 1),
            costs=_costs(samples, cpu / run.done * 1e6),
        )
        print(f"{kind} {amount:g}: {made.rate:.0f}/s, {made.cpu_us:.1f} us", file=sys.stderr)
        return made

    def _commits(self) -> tuple[float, float]:
        """Return how many messages were committed so far, and in how many groups."""
        with urllib.request.urlopen(self._metrics) as answer:  # noqa: S310 - our own
            text = answer.read().decode()
        return _sample(text, "im_commit_messages_sum"), _sample(text, "im_commit_messages_count")


def _sample(text: str, name: str) -> float:
    found = re.search(rf"^roadstead_{name}{{.*}} (\S+)$", text, re.MULTILINE)
    return float(found.group(1)) if found is not None else 0.0


@contextmanager
def _server_and_clients(connections: int) -> Iterator[_Bench]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="messages-")))
        system = stack.enter_context(running_system(*SETTINGS))
        (client_url,) = system.endpoints.clients.values()
        secrets = system.data.secrets()
        ticket_key = secrets.ticket_kid, secrets.ticket_key
        clients = messenger(transport_urls(client_url)["websocket"], connections, ticket_key)
        yield _Bench(system, stack.enter_context(clients), folder)


# ---------------------------------------------------------------- where the CPU goes


def _threads_s(pid: int) -> dict[str, tuple[float, float]]:
    """Return the CPU seconds of each thread so far: in user space, and in the kernel."""
    found = {}
    for thread in Path(f"/proc/{pid}/task").iterdir():
        fields = (thread / "stat").read_text(encoding="ascii").rpartition(")")[2].split()
        # In ticks of 10 ms (proc_pid_stat(5), fields 14 and 15).
        found[thread.name] = int(fields[11]) / 100, int(fields[12]) / 100
    return found


def _busiest(
    before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]], messages: int
) -> dict[str, float]:
    """Return what the two busiest threads took for a message: the event loop's and the store's writer."""
    spent = []
    for thread, (user, kernel) in after.items():
        user_before, kernel_before = before.get(thread, (0.0, 0.0))
        spent.append((user - user_before, kernel - kernel_before))
    spent.sort(key=sum, reverse=True)
    parts = ("loop_user", "loop_kernel", "writer_user", "writer_kernel")
    return {part: round(s / messages * 1e6, 1) for part, s in zip(parts, chain(*spent[:2]), strict=False)}


@contextmanager
def _profiler(pid: int, file: Path, seconds: float, *, wanted: bool) -> Iterator[Path]:
    """Sample who holds the interpreter's lock while the block runs; no file without py-spy."""
    program = shutil.which("py-spy")
    if not wanted or program is None:
        yield file
        return
    command = [program, "record", "--gil", "--nonblocking", "-r", str(SAMPLES_A_SECOND), "-d", str(int(seconds))]
    command += ["-f", "raw", "-o", str(file), "-p", str(pid)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        yield file


def _costs(samples: Path, cpu_us: float) -> dict[str, str]:
    """Return the five functions that the most samples were in, with their part of the CPU of a message."""
    if not samples.exists():
        return {}
    found: Counter[str] = Counter()
    for line in samples.read_text(encoding="utf-8").splitlines():
        stack, _, count = line.rpartition(" ")
        found[re.sub(r":\d+\)", ")", stack.rpartition(";")[2])] += int(count)
    total = found.total()
    return {
        name: f"{count / total:.1%}, {count / total * cpu_us:.1f} us" for name, count in found.most_common(5) if total
    }
