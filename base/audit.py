"""The audit log: who changed what by the HTTP APIs of operators, when, and what came of it; and who was refused.

Each entry is the event `audit` in the log and, where a file is configured, a line of JSON there. The file is appended
to, and opened anew when it was moved away, which is how log rotation works.

    at        when it was answered, UTC, ISO 8601
    node      which node was asked
    who       the key's role, fingerprint and name; null without a known key
    operator  how the person calls themselves (`X-Operator`): a courtesy and no proof
    peer      the address that the request came from
    method, path, query, body
    needed    the role that it takes
    status    of the answer
    error     the name of its code, empty for none

Secrets are masked in `query` and `body`. A body over `BODY_BYTES_MAX` is told by its length and SHA-256.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from base.clock import Clock, SystemClock
from base.credentials import Caller, Credentials, Role, required_of
from base.errors import Code, ConfigError
from base.log import SECRET_KEYS, logger

__all__ = ["BODY_BYTES_MAX", "FAILED", "Audit", "Entry", "audited"]

BODY_BYTES_MAX = 4_096
FAILED = web.RequestKey("failed", Code)
"""Where a request that failed keeps its `Code`, for whoever is further out."""
OPERATORS_PATH = "/v1/admin/"
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_REFUSALS = frozenset({401, 403})


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line, see the module; the time and the node are added."""

    who: Caller | None
    peer: str
    method: str
    path: str
    query: Mapping[str, str]
    body: Any
    needed: Role
    status: int
    error: str


class Audit:
    """Where entries go."""

    def __init__(self, file: str = "", *, clock: Clock | None = None) -> None:
        """`file`: empty for the log alone."""
        self._path = Path(file) if file else None
        self._clock = clock or SystemClock()
        self._descriptor = -1
        self._log = logger()

    def open(self) -> None:
        """Open the file. Raises ConfigError when it cannot be appended to."""
        if self._path is None:
            return
        try:
            self._reopen(self._path)
        except OSError as error:
            raise ConfigError([f"security.audit_file: {self._path} cannot be written: {error.strerror}"]) from error

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def record(self, entry: Entry, *, node: str) -> None:
        """Write an entry. A file that cannot be written is told in the log, where the entry is too."""
        at = datetime.fromtimestamp(self._clock.realtime() / 1000, UTC).isoformat(timespec="milliseconds")
        who = entry.who
        line = {
            "at": at,
            "node": node,
            "who": None if who is None else {"role": who.role.label, "key": who.fingerprint, "name": who.name},
            "operator": "" if who is None else who.operator,
            "peer": entry.peer,
            "method": entry.method,
            "path": entry.path,
            "query": _shown(entry.query),
            "body": entry.body,
            "needed": entry.needed.label,
            "status": entry.status,
            "error": entry.error,
        }
        say = self._log.warning if entry.status in _REFUSALS else self._log.info
        say("audit", **line)
        if self._path is not None:
            try:
                self._write(self._path, msgspec.json.encode(line) + b"\n")
            except OSError as error:
                self._log.error("audit_not_written", file=str(self._path), error=error.strerror)

    def _write(self, path: Path, line: bytes) -> None:
        if self._descriptor < 0 or _is_moved(path, self._descriptor):
            self._reopen(path)
        os.write(self._descriptor, line)

    def _reopen(self, path: Path) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.close()
        self._descriptor = descriptor


def audited(audit: Audit, credentials: Credentials, *, node: str) -> Middleware:
    """Return the middleware of a port that records what has to be, outside of that which answers errors."""

    @web.middleware
    async def record(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        status = 0  # nobody was answered: the port was closed meanwhile
        try:
            response = await handler(request)
            status = response.status
        finally:
            needed = required_of(request)
            if needed is not None and _is_audited(request, needed, status):
                failed = request.get(FAILED)
                entry = Entry(
                    who=credentials.caller(request),
                    peer=request.remote or "",
                    method=request.method,
                    path=request.rel_url.raw_path,  # escaped: a line of text must stay one
                    query=request.query,
                    # Who was refused is not listened to. What was too long is not there, though the handler asked.
                    body=shown_body(None if status in _REFUSALS else getattr(request, "_read_bytes", None)),
                    needed=needed,
                    status=status,
                    error=failed.label if failed is not None else "",
                )
                audit.record(entry, node=node)
        return response

    return record


def _is_audited(request: web.Request, needed: Role, status: int) -> bool:
    changes = request.method not in _READING
    is_refused = status in _REFUSALS
    if needed >= Role.OPERATOR:
        return changes or is_refused
    # A change may ask for less while it does not know yet whether it is only a trial.
    return changes and is_refused and request.path.startswith(OPERATORS_PATH)


def _is_moved(path: Path, descriptor: int) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return True
    return not os.path.samestat(there, os.fstat(descriptor))


def _shown(value: object) -> object:
    """Return what may be written of a request's parameters: all but secrets."""
    if isinstance(value, Mapping):
        return {key: "***" if str(key).lower() in SECRET_KEYS else _shown(held) for key, held in value.items()}
    if isinstance(value, list):
        return [_shown(held) for held in value]
    return value


def shown_body(raw: bytes | None) -> object:
    """Return what may be written of a request's body; None where there is none or nobody read it."""
    if not raw:
        return None
    if len(raw) <= BODY_BYTES_MAX:
        try:
            return _shown(msgspec.json.decode(raw))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass  # it was refused, or is no JSON
    return {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
