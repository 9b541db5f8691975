"""The audit log of a port: which requests are in it, what an entry says, and what becomes of its file."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession, web
from structlog.testing import capture_logs
from yarl import URL

from base.audit import BODY_BYTES_MAX, Audit
from base.clock import SimClock
from base.errors import ConfigError, NotFound
from base.http import Credentials, HttpServer, Role, json_body, json_response
from base.metrics import Metrics

KEYS = {"viewer": Role.VIEWER, "backend": Role.BACKEND, "operator": Role.OPERATOR, "admin": Role.ADMIN}


class Site:
    """A port with a route of each kind."""

    def __init__(self, audit: Audit) -> None:
        self.credentials = Credentials(KEYS)
        self.http = HttpServer("access-1", Metrics("n"), statistics=dict, credentials=self.credentials, audit=audit)
        self.entered = asyncio.Event()
        router = self.http.app.router
        router.add_post("/v1/admin/drain/{what}", self._drain)
        router.add_get("/v1/admin/secrets", self._read)
        router.add_post("/v1/admin/documents", self._trial)
        router.add_post("/v1/messages", self._send)
        router.add_post("/v1/admin/slow", self._slow)

    async def _drain(self, request: web.Request) -> web.Response:
        self.credentials.require(request, Role.OPERATOR)
        if request.match_info["what"] == "nothing":
            raise NotFound("there is nothing")
        return json_response(await json_body(request, dict[str, Any]) if request.can_read_body else {})

    async def _read(self, request: web.Request) -> web.Response:
        self.credentials.require(request, Role.OPERATOR)
        return json_response({})

    async def _trial(self, request: web.Request) -> web.Response:
        self.credentials.require(request, Role.VIEWER)
        self.credentials.require(request, Role.VIEWER if "dry" in request.query else Role.OPERATOR)
        return json_response({})

    async def _send(self, request: web.Request) -> web.Response:
        self.credentials.require(request, Role.BACKEND)
        return json_response({})

    async def _slow(self, request: web.Request) -> web.Response:
        self.credentials.require(request, Role.OPERATOR)
        self.entered.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def ask(self, method: str, path: str | URL, key: str = "operator", **more: Any) -> int:
        headers = {"Authorization": f"Bearer {key}"} | more.pop("headers", {})
        async with (
            ClientSession(self.http.url) as session,
            session.request(method, path, headers=headers, **more) as r,
        ):
            return r.status


@asynccontextmanager
async def site(file: Path | None = None) -> AsyncIterator[Site]:
    audit = Audit(str(file) if file is not None else "", clock=SimClock(epoch_ms=1_700_000_000_000))
    audit.open()
    made = Site(audit)
    await made.http.listen("127.0.0.1", 0)
    try:
        yield made
    finally:
        await made.http.close()
        audit.close()


def entries(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def test_an_entry_says_who_did_what_and_what_came_of_it(tmp_path: Path) -> None:
    """In the file as in the log; secrets among the parameters are not told."""
    file = tmp_path / "audit"
    with capture_logs() as logged:
        async with site(file) as asked:
            status = await asked.ask(
                "POST",
                "/v1/admin/drain/access-1?force=1&token=abc",
                headers={"X-Operator": "ann"},
                json={"over_ms": 5, "nested": [{"password": "abc"}]},
            )
    assert status == 200
    fingerprint = hashlib.sha256(b"operator").hexdigest()[:8]
    expected = {
        "at": "2023-11-14T22:13:20.000+00:00",
        "node": "access-1",
        "who": {"role": "operator", "key": fingerprint, "name": ""},
        "operator": "ann",
        "peer": "127.0.0.1",
        "method": "POST",
        "path": "/v1/admin/drain/access-1",
        "query": {"force": "1", "token": "***"},
        "body": {"over_ms": 5, "nested": [{"password": "***"}]},
        "needed": "operator",
        "status": 200,
        "error": "",
    }
    assert entries(file) == [expected]
    (event,) = [event for event in logged if event["event"] == "audit"]
    assert {name: event[name] for name in expected} == expected
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("asked", "key", "status", "told"),
    [
        ("POST /v1/admin/drain/a", "admin", 200, "admin"),
        ("POST /v1/admin/drain/nothing", "operator", 404, "operator"),
        ("POST /v1/admin/drain/a", "backend", 403, "backend"),
        ("POST /v1/admin/drain/a", "unknown", 401, None),
        ("GET /v1/admin/secrets", "viewer", 403, "viewer"),
        ("GET /v1/admin/secrets", "operator", 200, "-"),
        ("POST /v1/admin/documents", "unknown", 401, None),
        ("POST /v1/admin/documents", "viewer", 403, "viewer"),
        ("POST /v1/admin/documents", "operator", 200, "operator"),
        ("POST /v1/admin/documents?dry", "viewer", 200, "-"),
        ("POST /v1/messages", "backend", 200, "-"),
        ("POST /v1/messages", "viewer", 403, "-"),
        ("GET /healthz", "unknown", 200, "-"),
        ("POST /v1/admin/none", "operator", 404, "-"),
    ],
)
async def test_operators_changes_and_refusals_are_audited(
    tmp_path: Path, asked: str, key: str, status: int, told: str | None
) -> None:
    """And not what is read, tried, or done by backends, which would be most of the file. A dash: no entry."""
    file = tmp_path / "audit"
    method, _, path = asked.partition(" ")
    async with site(file) as port:
        assert await port.ask(method, path, key) == status
    written = entries(file)
    if told == "-":
        assert written == []
        return
    (entry,) = written
    assert entry["status"] == status
    assert entry["error"] == {404: "not_found", 403: "permission_denied", 401: "unauthenticated"}.get(status, "")
    assert (entry["who"] or {"role": None})["role"] == told


async def test_a_change_that_nobody_was_answered_is_audited(tmp_path: Path) -> None:
    """The port was closed meanwhile: what came of it is not known."""
    file = tmp_path / "audit"
    async with site(file) as asked, asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(asked.ask("POST", "/v1/admin/slow"))
        await asked.entered.wait()
        await asked.http.close()
        asking.cancel()
    assert [(entry["path"], entry["status"]) for entry in entries(file)] == [("/v1/admin/slow", 0)]


@pytest.mark.parametrize("body", [b"x" * (BODY_BYTES_MAX + 1), b"no JSON", b'{"a":"\xff"}', b"[" * 2_000])
async def test_what_is_long_or_no_json_is_told_by_its_hash(tmp_path: Path, body: bytes) -> None:
    """So that it can be compared with a document that somebody shows."""
    file = tmp_path / "audit"
    async with site(file) as asked:
        assert await asked.ask("POST", "/v1/admin/drain/a", data=body) == 400
    assert entries(file)[0]["body"] == {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}


async def test_a_body_of_who_was_refused_is_not_read(tmp_path: Path) -> None:
    """It is none of ours."""
    file = tmp_path / "audit"
    async with site(file) as asked:
        assert await asked.ask("POST", "/v1/admin/drain/a", "viewer", json={"a": 1}) == 403
    assert entries(file)[0]["body"] is None


async def test_an_entry_stays_one_line(tmp_path: Path) -> None:
    """Whatever somebody asks for who has no key: nobody writes lines of others."""
    file = tmp_path / "audit"
    with capture_logs() as logged:
        async with site(file) as asked:
            url = URL("/v1/admin/drain/a%0Ab%1B%5B2J", encoded=True)
            assert await asked.ask("POST", url, "unknown") == 401
    (entry,) = entries(file)
    (event,) = [event for event in logged if event["event"] == "audit"]
    assert entry["path"] == event["path"] == "/v1/admin/drain/a%0Ab%1B%5B2J"


async def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    """Which is how logs are rotated."""
    file, moved = tmp_path / "audit", tmp_path / "audit.1"
    async with site(file) as asked:
        await asked.ask("POST", "/v1/admin/drain/a")
        file.rename(moved)
        await asked.ask("POST", "/v1/admin/drain/b")
        (tmp_path / "other").touch()
        (tmp_path / "other").rename(file)
        await asked.ask("POST", "/v1/admin/drain/c")
    assert [entry["path"][-1] for entry in entries(moved)] == ["a"]
    assert [entry["path"][-1] for entry in entries(file)] == ["c"]


async def test_a_file_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    """What operators do in an emergency goes on; the log has the entry, and says that the file has not."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with capture_logs() as logged:
        async with site(folder / "audit") as asked:
            (folder / "audit").unlink()
            folder.rmdir()
            assert await asked.ask("POST", "/v1/admin/drain/a") == 200
    assert [event["event"] for event in logged if event["event"].startswith("audit")] == ["audit", "audit_not_written"]


def test_a_file_that_cannot_be_opened_is_told_at_the_start(tmp_path: Path) -> None:
    """Rather than at the first change."""
    with pytest.raises(ConfigError, match=r"security\.audit_file: .* cannot be written"):
        Audit(str(tmp_path / "none" / "audit")).open()


async def test_without_a_file_there_is_the_log() -> None:
    """Refusals are louder there."""
    with capture_logs() as logged:
        async with site() as asked:
            await asked.ask("POST", "/v1/admin/drain/a")
            await asked.ask("POST", "/v1/admin/drain/a", "viewer")
    assert [event["log_level"] for event in logged if event["event"] == "audit"] == ["info", "warning"]
    assert msgspec.json.encode([event for event in logged if event["event"] == "audit"])
