"""Which processes a local cluster has, and on which ports: free ones, and the same again as long as they are."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from base.errors import ConfigError
from roadstead import ports
from roadstead.cluster.plan import ROLES, Counts, Plan, made_plan
from roadstead.ports import LOOPBACK, free_ports


def ports_of(plan: Plan) -> list[int]:
    return [port for node in plan.nodes for port in (node.port, node.client_port) if port]


def test_a_plan_has_as_many_nodes_of_each_role_as_are_asked_for():
    """In the order of starting, each on a port of its own, access nodes with one for clients."""
    plan = made_plan(Counts(status=3, im=1, access=2, scheduler=1), has_tls=True, former=None)
    assert [node.name for node in plan.nodes] == [
        *("status-1", "status-2", "status-3", "im-1", "access-1", "access-2", "scheduler-1")
    ]
    assert [role for role in ROLES for _ in range(plan.count(role))] == [node.role for node in plan.nodes]
    assert {node.role for node in plan.nodes if node.client_port} == {"access"}
    assert len(set(ports_of(plan))) == len(plan.nodes) + 2


def test_ports_are_kept_unless_they_are_taken():
    """Also when the cluster grows; what somebody has meanwhile is replaced."""
    former = made_plan(Counts(), has_tls=False, former=None)
    same = made_plan(Counts(), has_tls=False, former=former)
    assert same == former
    grown = made_plan(Counts(access=3), has_tls=False, former=former)
    assert set(ports_of(former)) < set(ports_of(grown))
    with socket.socket() as taken:
        taken.bind((LOOPBACK, former.nodes[0].port))
        moved = made_plan(Counts(), has_tls=False, former=former)
    assert moved.nodes[0].port != former.nodes[0].port
    assert moved.nodes[1:] == former.nodes[1:]


def test_free_ports_are_none_that_the_system_gives_away():
    """So that no client has one while its node restarts; no port is found twice."""
    found = free_ports([0] * 50)
    assert len(set(found)) == 50
    assert all(ports.FIRST <= port < ports._first_ephemeral() for port in found)


def test_a_machine_without_free_ports_is_an_error(monkeypatch: pytest.MonkeyPatch):
    """It says where it looked."""
    with ExitStack() as stack:
        taken = stack.enter_context(socket.socket())
        taken.bind((LOOPBACK, 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports, "FIRST", port)
        monkeypatch.setattr(ports, "_first_ephemeral", lambda: port + 1)
        with pytest.raises(ConfigError, match=f"no free port was found on {LOOPBACK} from {port} to {port}"):
            free_ports([port])


@pytest.mark.parametrize("text", [None, "", "1024 65535", "words"])
def test_a_range_that_is_unknown_or_is_all_is_not_relied_on(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Then the usual one is taken."""
    file = tmp_path / "range"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(ports, "EPHEMERAL", file)
    assert ports._first_ephemeral() == ports.EPHEMERAL_FIRST
