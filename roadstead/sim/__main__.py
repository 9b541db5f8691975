"""The simulator's command line: many histories of one kind, seed after seed.

Prints one line per batch. At the first violation it prints the seed, the command that replays it and what happened
just before, and exits with 1. `--without` removes a guard, to see that the checker notices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import NamedTuple

import click

from base.clock import SystemClock
from roadstead.sim import leases, messages, messages_guards, resize, resize_hosts
from roadstead.sim.lease_hosts import Guards
from roadstead.sim.report import Report, Violation

__all__ = ["HISTORIES", "History", "main"]

BATCH = 50


class History(NamedTuple):
    """A kind of history: `run(seed, without)` raises `Violation`, `guards` can be removed."""

    run: Callable[[int, Collection[str]], Report]
    guards: tuple[str, ...]


HISTORIES: dict[str, History] = {
    "leases": History(leases.run, Guards.names()),
    "messages": History(messages.run, messages_guards.Guards.names()),
    "resize": History(resize.run, resize_hosts.Guards.names()),
}


@click.command()
@click.option("--history", "name", type=click.Choice(sorted(HISTORIES)), default="leases", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The first seed.")
@click.option("--count", type=click.IntRange(min=1), default=1, show_default=True, help="How many seeds.")
@click.option("--without", multiple=True, metavar="GUARD", help="Remove a guard; may be repeated.")
def main(name: str, seed: int, count: int, without: tuple[str, ...]) -> None:
    """Run whole-cluster histories on simulated time and a simulated network."""
    history = HISTORIES[name]
    unknown = sorted(set(without) - set(history.guards))
    if unknown:
        raise click.BadParameter(f"{name} has no guard {unknown[0]}; it has {', '.join(history.guards)}")
    for first in range(seed, seed + count, BATCH):
        _run_batch(name, range(first, min(first + BATCH, seed + count)), without)


def _run_batch(name: str, seeds: range, without: tuple[str, ...]) -> None:
    clock = SystemClock()
    began = clock.stopwatch()
    totals: Counter[str] = Counter()
    digest = ""
    for seed in seeds:
        try:
            report = HISTORIES[name].run(seed, without)
        except Violation as violation:
            _tell(name, violation, without)
            raise SystemExit(1) from None
        totals.update({"events": report.events, "checks": report.checks, **report.counts})
        digest = report.digest
    counts = ", ".join(f"{totals[what]} {what}" for what in sorted(totals))
    # The digest of the batch's last history, to compare runs by.
    click.echo(f"{name} {seeds[0]}..{seeds[-1]}: 0 violations, {counts}, {digest}, {clock.stopwatch() - began:.1f} s")


def _tell(name: str, violation: Violation, without: tuple[str, ...]) -> None:
    removed = "".join(f" --without {guard}" for guard in without)
    click.echo("\n".join(violation.trace))
    click.echo(f"violation: {violation}")
    click.echo(f"replay: python -m roadstead.sim --history {name} --seed {violation.seed}{removed}")


if __name__ == "__main__":
    main()
