"""Makes the page of recovery times from what the fault suite measured.

    ROADSTEAD_TEST_FAULTS=long ROADSTEAD_TEST_RECOVERIES=FILE python -m pytest tests/process/faults
    python -m tests.process.faults.table FILE "2 cores, Linux 6.18"

It writes `docs/reference/recovery-times.json`, with the figures, and `recovery-times.md`, for people. Without arguments
only the page is made anew.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tests.process.faults.scene import Outcome
from tests.process.faults.watchers import ASSIGNMENTS, CLIENTS, LOOKUPS, SENDS

__all__ = ["FOLDER", "Figures", "page", "summarised"]

FOLDER = Path(__file__).parents[3] / "docs/reference"
NAME = "recovery-times"
KINDS = (LOOKUPS, SENDS, CLIENTS, ASSIGNMENTS)
SEEN = {
    "kill -9 access": "its users are offline at every reader; their clients connect to another node",
    "kill -9 im": "sends to its shards are tried again until it is back",
    "kill -9 scheduler": "another one answers",
    "kill -9 status, the leader, stays dead": "as another status node's, until another one leads",
    "kill -9 status": "lookups of its partitions answer UNKNOWN until they are rebuilt from the access nodes",
    "kill -9 leader": "as a status node's death; another leader ends the resize",
    "kill -9 source": "as a status node's death; the resize ends",
    "kill -9 target": "nothing if it owned nothing yet; the resize ends",
    "kill -9 at move": "sends to the shard are tried again until one process has it",
    "SIGSTOP access": "its clients notice that it is silent and connect to another node",
    "SIGSTOP status": "UNKNOWN until others have its partitions; it answers nothing wrong when it goes on",
    "SIGSTOP im": "sends to its shards wait",
    "SIGSTOP scheduler": "another one answers",
    "SIGSTOP consul": "nothing",
    "Consul killed": "nothing; no resize, no move, no order",
    "Consul's data lost": "UNKNOWN for the time of a lease, as the table is put back",
    "access cut off": "its clients notice that it is silent and connect to another node",
    "access hears": "as cut off",
    "access is heard": "as cut off",
    "status cut off": "UNKNOWN until others have its partitions",
    "status hears": "UNKNOWN until it hears again: it seems to live, so nobody takes its partitions over",
    "status is heard": "UNKNOWN until others have its partitions",
    "im cut off": "sends to its shards wait",
    "im hears": "as cut off",
    "im is heard": "as cut off",
    "im clock": (
        "sends to its shards are tried again: when it is set back until another worker number is taken, when it is set "
        "right until that number's mark is moved on, 30 s at most"
    ),
    "im disk": "sends to its shards are refused, to be tried again; the others go on",
    "access clock +": "tickets are over at this node: the client asks for another one",
    "access clock -": "tickets are good for longer at this node",
    "scheduler clock -": "its tickets are over when it gives them: who asks it cannot connect until its clock is right",
}
"""What users see, by what a fault's name begins with; nothing of the others."""


class Times(msgspec.Struct, frozen=True):
    """Milliseconds until something was normal again."""

    p50: int
    max: int


class Row(msgspec.Struct, frozen=True):
    """A fault that was tried `n` times. `during`: from its start, of one that goes on; else from its end."""

    fault: str
    during: bool
    bound_ms: int
    n: int
    times: dict[str, Times]
    wrong: int


class Figures(msgspec.Struct, frozen=True):
    """All that was measured, and where. `rolling`: latencies (ms) and what was not normal, by who was restarted."""

    machine: str
    rows: list[Row]
    rolling: dict[str, dict[str, dict[str, float]]]


def summarised(lines: Iterable[bytes], machine: str) -> Figures:
    """Return the figures of a file of results."""
    outcomes: defaultdict[str, list[Outcome]] = defaultdict(list)
    rolling: dict[str, dict[str, dict[str, float]]] = {}
    for line in lines:
        found: dict[str, Any] = msgspec.json.decode(line)
        if "fault" in found:
            outcome = msgspec.convert(found, Outcome)
            outcomes[outcome.fault].append(outcome)
        else:
            rolling[found.pop("rolling restart")] = found
    rows: list[Row] = []
    for fault, tried in sorted(outcomes.items()):
        if tried[0].lasted_ms:
            rows.append(_row(fault, tried, [one.meanwhile_ms for one in tried], during=True))
        rows.append(_row(fault, tried, [one.recovery_ms for one in tried], during=False))
    return Figures(machine, rows, rolling)


def _row(fault: str, tried: Sequence[Outcome], times: Sequence[dict[str, int]], *, during: bool) -> Row:
    by_kind = {kind: sorted(one[kind] for one in times) for kind in KINDS}
    return Row(
        fault=fault,
        during=during,
        bound_ms=tried[0].bound_ms,
        n=len(tried),
        times={kind: Times(found[(len(found) - 1) // 2], found[-1]) for kind, found in by_kind.items()},
        wrong=sum(one.wrong for one in tried),
    )


def page(figures: Figures) -> str:
    """Return the page, Markdown."""
    lasting = {row.fault for row in figures.rows if row.during}
    lines = [
        "# Recovery times\n",
        "<!-- Made from recovery-times.json by `python -m tests.process.faults.table`. -->\n",
        "How long after a fault the last answer was not normal, in a cluster of processes on Consul with clients that",
        "talk all the time: p50 / max of n tries, ms. *Lookups*: a status was unknown, or out of date, at any status",
        "node. *Sends*: an acknowledgement took more than a second. *Clients*: one that was thrown out was not yet",
        "connected again. *Assignments*: no scheduler answered. 0: nobody noticed. Of a fault that goes on for a while",
        "there are two lines: from its start, and from its end. Wrong statuses, lost, doubled and reordered messages:",
        "none in all of them, or the suite (`tests/process/faults`) fails.\n",
        "Clients were pinged every 1.5 s and positions audited every second (defaults: 25 and 10 s). As a clock goes",
        "wrong some clients lose their connections; if it is a scheduler's, all clients ask that one.\n",
        f"Measured on {figures.machine}.\n",
        "| fault | what users see | bound | n | lookups | sends | clients | assignments |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in figures.rows:
        when = (", from its start" if row.during else ", after its end") if row.fault in lasting else ""
        bound = f"{row.bound_ms:,}" if row.bound_ms else "-"
        times = [f"{row.times[kind].p50:,} / {row.times[kind].max:,}" for kind in KINDS]
        sees = "as before" if row.fault in lasting and not row.during else _seen(row.fault)
        lines.append(f"| {row.fault}{when} | {sees} | {bound} | {row.n} | {' | '.join(times)} |")
    lines += [
        "\n## Restarting every process in order\n",
        "One node after the other is stopped and started, shards of messages are moved away before and back after it.",
        "Latencies in ms, p50 / p99 / max.\n",
        "| restarted | lookups | sends | assignments | not normal |",
        "|---|---|---|---|---|",
    ]
    for what, figure in figures.rolling.items():
        cells = [
            f"{figure[kind]['p50']:,} / {figure[kind]['p99']:,} / {figure[kind]['max']:,}"
            for kind in (LOOKUPS, SENDS, ASSIGNMENTS)
        ]
        odd = ", ".join(f"{name} {count:g}" for name, count in figure["not normal"].items()) or "-"
        lines.append(f"| {what} | {' | '.join(cells)} | {odd} |")
    return "\n".join(lines) + "\n"


def _seen(fault: str) -> str:
    return next((sees for start, sees in SEEN.items() if fault.startswith(start)), "nothing")


def main() -> None:
    """See the module."""
    data = FOLDER / f"{NAME}.json"
    if len(sys.argv) > 1:
        figures = summarised(Path(sys.argv[1]).read_bytes().splitlines(), sys.argv[2])
        data.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n")
    (FOLDER / f"{NAME}.md").write_text(page(msgspec.json.decode(data.read_bytes(), type=Figures)))


if __name__ == "__main__":
    main()
