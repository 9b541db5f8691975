"""`roadstead replay decisions`: a recording is decided again, by the same policy to the last bit, or by another one.

The file is read as it goes; memory does not grow with its length.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random  # noqa: TID251 - the engine's dice, from the recorded seed
from typing import IO, NamedTuple

import click
import msgspec
import rich.progress
from rich.console import Console
from rich.table import Table

from base.errors import BadRequest
from roadstead.cli.common import EXIT_FAILED, json_option, print_json, print_table
from roadstead.cli.explain import stages_table
from roadstead.cli.policy import difference_table
from roadstead.cli.rollout import fail_with
from scheduler.core.engine import Decision, Engine
from scheduler.core.explanation import explain
from scheduler.core.policy import Policy, parse_policy
from scheduler.core.recording import Decided, Record, Replay, records
from scheduler.core.shadow import Comparison

__all__ = ["command"]

CHUNK_BYTES = 1 << 20
_path = click.Path(path_type=Path, exists=True, dir_okay=False)


class _Other(NamedTuple):
    """The first decision that came out otherwise: its number in the recording, as it was, and as it is now."""

    number: int
    recorded: Decision
    replayed: Decision


@click.command("decisions")
@click.option("--policy", "policy_file", type=_path, metavar="FILE", help="Decide by this document instead.")
@click.option("--explain", "explained", type=click.IntRange(1), metavar="N", help="Explain the N-th decision.")
@json_option
@click.argument("file", type=_path)
def command(as_json: bool, policy_file: Path | None, explained: int | None, file: Path) -> None:
    """Decide a recording again.

    Without --policy: all must come out the same to the last bit; exit code 1 if one does not. With it: show what would
    have been different.
    """
    if policy_file is not None and explained is not None:
        raise click.UsageError("--explain is about the recorded decisions; it does not go with --policy")
    policy = _policy(policy_file) if policy_file is not None else None
    try:
        if explained is not None:
            _explain(file, explained, as_json=as_json)
        elif policy is not None:
            _compare(file, policy, as_json=as_json)
        else:
            _verify(file, as_json=as_json)
    except ValueError as error:
        raise BadRequest(f"{file}: {error}") from error


def _policy(file: Path) -> Policy:
    parsed = parse_policy(file.read_bytes())
    if isinstance(parsed, tuple):
        fail_with(file, parsed)
    return parsed


def _told(file: Path) -> Iterator[Record]:
    console = Console(stderr=True)
    with rich.progress.open(
        file, "rb", description="replaying", console=console, transient=True, disable=not console.is_terminal
    ) as stream:
        is_empty = True
        for record in records(_chunks(stream)):
            is_empty = False
            yield record
    if is_empty:
        raise ValueError("this is no recording: it has no record")


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK_BYTES):
        yield chunk


# ---------------------------------------------------------------- the same again


def _verify(file: Path, *, as_json: bool) -> None:
    replay = Replay(Random)
    decisions, other = 0, None
    for record in _told(file):
        made = replay.tell(record)
        if made is not None:
            assert isinstance(record, Decided)
            decisions += 1
            if made != record.decision:
                other = _Other(decisions, record.decision, made)
                break
    if as_json:
        print_json({"decisions": decisions, "is_identical": other is None, "first_difference": other})
    elif other is None:
        click.echo(f"{decisions:,} decisions, all the same to the last bit")
    else:
        click.echo(f"decision {other.number:,} is different; the {other.number - 1:,} before it are the same")
        print_table(_side_by_side(other))
    if other is not None:
        raise click.exceptions.Exit(EXIT_FAILED)


def _side_by_side(other: _Other) -> Table:
    table = Table("", "recorded", "replayed", box=None, pad_edge=False)
    for field in Decision.__struct_fields__:
        was, now = getattr(other.recorded, field), getattr(other.replayed, field)
        if was != now:
            table.add_row(field, str(was), str(now))
    return table


# ---------------------------------------------------------------- another policy


def _compare(file: Path, policy: Policy, *, as_json: bool) -> None:
    # The recorded decisions need no engine that makes them again, only its snapshots: they name the nodes.
    real, other = Replay(Random), Replay(Random, policy=policy)
    comparison = Comparison()
    for record in _told(file):
        made = other.tell(record)
        if not isinstance(record, Decided):
            real.tell(record)
            continue
        assert made is not None
        comparison.add(_engine(real), record.decision, _engine(other), made)
    difference = comparison.difference()
    if as_json:
        print_json(difference)
    else:
        found = msgspec.structs.asdict(difference)
        print_table(difference_table(found, policy.name, "as recorded"))


def _engine(replay: Replay) -> Engine:
    assert replay.engine is not None
    return replay.engine


# ---------------------------------------------------------------- one of them


def _explain(file: Path, number: int, *, as_json: bool) -> None:
    replay = Replay(Random)
    decisions = 0
    for record in _told(file):
        made = replay.tell(record)
        decisions += made is not None
        if decisions == number:
            break
    else:
        raise ValueError(f"it has {decisions:,} decisions, none of number {number:,}")
    assert isinstance(record, Decided)
    engine = _engine(replay)
    stages = msgspec.to_builtins(explain(engine.snapshot, engine.policy, record.request, record.decision))
    if as_json:
        print_json({"number": number, "request": record.request, "decision": record.decision, "stages": stages})
        return
    click.echo(f"decision {number:,}, for {record.request.user}")
    print_table(stages_table(stages), folds=True)
