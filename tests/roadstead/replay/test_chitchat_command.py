"""`roadstead replay chitchat`: how it ends, and what it refuses, without a running system."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from roadstead.cli import replay
from roadstead.replay.core.day import Conversation, Said
from roadstead.replay.core.figures import Happened, Mark
from roadstead.replay.core.plan import Plan
from roadstead.replay.core.proof import GONE, Entry, Place, Seen, Shown, Unread, digest, prove
from roadstead.replay.run import Outcome
from tests.support.command import exit_code

CHAT = Conversation("chat", tuple(Said(place * 60, "ab"[place % 2], f"text {place}") for place in range(6)))


def seen_of(plan: Plan) -> Seen:
    """What a right system would have answered; all is one conversation."""
    log = [
        Entry(Place(1, seq, seq), one.key, one.sender, digest(one.text))
        for seq, one in enumerate(plan.conversations[0], start=1)
    ]
    return Seen(
        acknowledged={entry.key: entry.place for entry in log},
        logs={1: log},
        devices={(one.user, device): list(log) for one in plan.people for device in one.devices},
        unread={"a": Unread(1, {1: 1}), "b": Unread(0, {})},
        there={one.user: Shown("online", tuple(sorted(one.devices))) for one in plan.people},
        gone={one.user: GONE for one in plan.people},
    )


run = partial(exit_code, "replay", "chitchat")


class Played:
    """Stands for the system: every message is stored, and then somebody tampers with what was seen."""

    def __init__(self) -> None:
        self.loses: str | None = None
        self.marks: list[Mark] = []
        self.plan: Plan | None = None

    async def __call__(self, plan: Plan, *_: Any, **__: Any) -> Outcome:
        self.plan = plan
        seen = seen_of(plan)
        if self.loses is not None:
            got = seen.devices["b", "phone"]
            got[:] = [entry for entry in got if entry.key != self.loses]
        happened = Happened(sends=[(10 * number, 3) for number in range(6)])
        return Outcome(prove(plan, seen), happened, [], self.marks, 50)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    """The command, with one chat and without a system."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(replay, "read", lambda: [CHAT])
    made = Played()
    monkeypatch.setattr(replay, "_run", made)
    return made


def test_all_is_well_is_the_last_line_and_exit_code_0(played: Played, capsys: pytest.CaptureFixture[str]) -> None:
    """With how much there was."""
    assert played.loses is None
    assert run("--no-operations") == 0
    said = capsys.readouterr().out
    assert "6 of 6 acknowledged" in said
    assert said.splitlines()[-1] == "every message is at every device, once and in order"


def test_a_message_that_one_device_lacks_is_named_and_fails(played: Played, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 and the message's id; also for programs."""
    played.loses = "chat/3"
    assert run() == 1
    said = capsys.readouterr().out
    assert "missing: b/phone in conversation 1: chat/3" in said
    assert said.splitlines()[-1] == "not as it should be"
    assert run("--json") == 1
    assert json.loads(capsys.readouterr().out)["proof"]["violations"][0]["messages"] == ["chat/3"]


def test_an_operation_that_failed_fails_the_command(played: Played, capsys: pytest.CaptureFixture[str]) -> None:
    """Even if nothing was lost by it."""
    played.marks = [Mark("resize 3 to 5", 1, 2, "no", is_done=False)]
    assert run() == 1
    assert capsys.readouterr().out.splitlines()[-1] == "failed: resize 3 to 5"


def test_a_window_and_a_speed_are_what_the_plan_is_made_of(played: Played) -> None:
    """A minute of the day is half a second at that speed."""
    assert run("--day", "1970-01-01", "--from", "00:01", "--to", "00:04", "--speed", "120") == 0
    assert played.plan is not None
    assert [one.at_ms for one in played.plan.conversations[0]] == [1_000, 1_500, 2_000]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--day", "1980-01-01"], "no message on that day"),
        (["--from", "25:00"], "no time of day"),
        (["--speed", "0"], "--speed"),
    ],
)
def test_what_makes_no_sense_is_refused(
    played: Played, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    """Exit code 2, before anything is started."""
    assert run(*arguments) == 2
    assert says in capsys.readouterr().err
    assert played.plan is None


def test_charts_that_cannot_be_drawn_are_said_before_the_replay(
    played: Played, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One line with the extra to install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run("--report", str(tmp_path)) == 2
    assert "roadstead[replay]" in capsys.readouterr().err
    assert played.plan is None
