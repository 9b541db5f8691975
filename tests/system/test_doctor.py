"""What `roadstead doctor` says of a leader, and of status nodes that are not led."""

from __future__ import annotations

from typing import Any

import pytest

from base.errors import RoadsteadError
from roadstead.cli import doctor
from roadstead.deployment import Endpoints
from tests.system.conftest import System

NOWHERE = Endpoints(0, {}, {}, {}, {})


def node(name: str, granter: str = "leader", *, partitions: int = 1, **more: Any) -> dict[str, Any]:
    """What a status node says of itself."""
    said = {"node": name, "granter": granter, "partitions": partitions, "is_leading": False}
    return {**said, "is_registry_reachable": True, **more}


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "AGREE_PAUSE_S", 0)


def say(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, Any]) -> None:
    async def said(_endpoints: Endpoints) -> list[dict[str, Any]]:
        return list(nodes)

    monkeypatch.setattr(doctor, "_status_nodes", said)


async def test_a_running_system_has_a_leader(system: System, capsys: pytest.CaptureFixture[str]) -> None:
    """That is one line of the table; the whole command is run in tests/process."""
    found = await doctor._checked("a leader", lambda: doctor._leases(system.endpoints), doctor.LEASES_ADVICE)
    assert (found.is_ok, found.is_warning, found.seen.endswith(" leads")) == (True, False, True)
    doctor._show([found])
    assert capsys.readouterr().out.splitlines()[1].split() == ["ok", "a", "leader", *found.seen.split()]


@pytest.mark.parametrize(
    ("nodes", "seen"),
    [
        ([node("s1", is_leading=True), node("s2"), node("spare", "nobody", partitions=0)], "s1 leads"),
        ([node("s1"), node("s2")], "a node of another process leads"),
        ([{"node": "s1", "partitions": 0}], "this status backend needs none"),
    ],
)
async def test_who_leads_is_told(monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, Any]], seen: str) -> None:
    """A spare needs no lease, and another backend no leader."""
    say(monkeypatch, *nodes)
    assert await doctor._leases(NOWHERE) == seen


async def test_what_is_degraded_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything is served: no failure, but a line that says what is away and what to do."""
    say(monkeypatch, node("s1", "peers"), node("s2", "peers", is_registry_reachable=False), node("s3"))
    warned = await doctor._checked("status nodes have a leader", lambda: doctor._leases(NOWHERE), doctor.LEASES_ADVICE)
    assert (warned.is_ok, warned.is_warning) == (True, True)
    assert warned.seen == "s1, s2: by the grants of a majority of the nodes only; s2: cannot read the registry"
    monkeypatch.setenv("COLUMNS", "300")
    doctor._show([warned])
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("warn  status nodes have a leader")
    assert "bring the registry back" in line


async def test_a_node_that_may_not_answer_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its users are unknown."""
    say(monkeypatch, node("s1", "peers"), node("s2", "nobody"))
    with pytest.raises(RoadsteadError, match=r"^s2: may not answer") as caught:
        await doctor._leases(NOWHERE)
    assert not isinstance(caught.value, doctor.Degraded)
