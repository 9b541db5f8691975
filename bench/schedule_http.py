"""Access requests a second over HTTP, whole pipeline, against a bare aiohttp handler that returns a constant.

The same load generator (wrk, 64 connections) asks both in turn, several rounds in one run; the value is the ratio of
the medians. Clients show user tokens, 2,000 different ones, so what is measured is the way of a real request: token,
address, location, decision, ticket, JSON. The details have the latencies, and the ratio by the servers' CPU time, which
does not depend on who else uses the machine.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import msgspec

from bench.process import Child, child
from bench.result import Comparison, Options, Result
from bench.schedule_server import ACCESS_NODES, Asked

SPEC = ("RT-04",)  # rows of docs/spec-coverage.md

CONNECTIONS = 64
SECONDS = 5
ROUNDS = 5
_SCRIPT = """
local tokens = {}
for line in io.lines("%s") do tokens[#tokens + 1] = line end
local requests = {}
init = function()
  for i, token in ipairs(tokens) do
    requests[i] = wrk.format("GET", "/v1/access?device=phone&platform=ios", {["Authorization"] = "Bearer " .. token})
  end
end
local at = 0
request = function() at = at %% #requests + 1; return requests[at] end
done = function(summary, latency)
  io.write(string.format("RESULT %%d %%d %%d %%d\\n", summary.requests, summary.duration, latency:percentile(99),
    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout))
end
"""


class Round(msgspec.Struct, frozen=True):
    """What one round came to."""

    requests_per_s: float
    p99_ms: float
    errors: int
    cpu_us: float
    """CPU time of the server per request."""


def run(options: Options) -> Result:
    """Ask both servers in turn."""
    seconds, rounds = (1, 1) if options.quick else (SECONDS, ROUNDS)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="roadstead-")))
        servers = {
            kind: stack.enter_context(child([sys.executable, "-m", "bench.schedule_server", kind]))
            for kind in ("bare", "scheduler")
        }
        asked = {kind: msgspec.json.decode(server.said, type=Asked) for kind, server in servers.items()}
        (folder / "tokens").write_text("\n".join(asked["scheduler"].tokens))
        script = folder / "ask.lua"
        script.write_text(_SCRIPT % (folder / "tokens"))
        seen: dict[str, list[Round]] = {kind: [] for kind in servers}
        for kind, server in _turns(servers, rounds):
            seen[kind].append(_ask(server, asked[kind].url, script, seconds))
    bare, ours = seen["bare"], seen["scheduler"]
    rates = {kind: median(one.requests_per_s for one in all_) for kind, all_ in seen.items()}
    return Result(
        name="schedule_http",
        value=round(rates["scheduler"] / rates["bare"], 3),
        unit="our requests/s / those of a bare aiohttp handler",
        goal=0.55,
        better="higher",
        details={
            "connections": CONNECTIONS,
            "access_nodes": ACCESS_NODES,
            "requests_per_s": round(rates["scheduler"]),
            "p99_ms": round(median(one.p99_ms for one in ours), 2),
            "cpu_us_per_request": round(median(one.cpu_us for one in ours), 1),
            "bare_requests_per_s": round(rates["bare"]),
            "bare_p99_ms": round(median(one.p99_ms for one in bare), 2),
            "bare_cpu_us_per_request": round(median(one.cpu_us for one in bare), 1),
            "ratio_by_cpu": round(median(one.cpu_us for one in bare) / median(one.cpu_us for one in ours), 3),
            "errors": sum(one.errors for one in ours),
        },
        comparison=Comparison(
            unit="requests a second",
            better="higher",
            ours=round(rates["scheduler"]),
            others={"bare aiohttp handler": round(rates["bare"])},
        ),
    )


def _turns(servers: dict[str, Child], rounds: int) -> Iterator[tuple[str, Child]]:
    for _ in range(rounds):
        yield from servers.items()


def _ask(server: Child, url: str, script: Path, seconds: int) -> Round:
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(script), url]
    before = server.cpu_s()
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 30).stdout
    cpu_s = server.cpu_s() - before
    found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+)", said)
    assert found is not None, said
    requests, micros, p99_us, errors = (int(number) for number in found.groups())
    return Round(requests / micros * 1e6, p99_us / 1e3, errors, cpu_s / max(requests, 1) * 1e6)
