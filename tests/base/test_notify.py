"""What the service manager is told: one datagram a state, and nothing where nobody asked."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from base.notify import notify


def test_a_manager_gets_each_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """At a path, or at a name without a file."""
    for address, name in (
        (str(tmp_path / "notify"), str(tmp_path / "notify")),
        (f"\0roadstead-{os.getpid()}", f"@roadstead-{os.getpid()}"),
    ):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(address)
            manager.settimeout(5)
            monkeypatch.setenv("NOTIFY_SOCKET", name)
            notify("READY=1")
            notify("STOPPING=1")
            assert (manager.recv(100), manager.recv(100)) == (b"READY=1", b"STOPPING=1")


def test_nobody_is_told_where_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without a manager it does nothing; one that is away is no failure, and is noted."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    with capture_logs() as logs:
        notify("READY=1")
    assert [(line["event"], line["state"]) for line in logs] == [("service_manager_not_told", "READY=1")]
