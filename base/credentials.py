"""API keys: who may do what over HTTP, from a mapping or from a file that can be loaded again.

A file has lines of `ROLE KEY [NAME]`. Several keys of a role may be valid at once, so that a key is changed by adding
the new one, using it everywhere, and removing the old one. The name says in the audit log whose key it was.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from enum import IntEnum

import msgspec
from aiohttp import web

from base.errors import ConfigError, PermissionDenied, Unauthenticated
from base.keys import faults_of
from base.reload import Loadable, lines_of

__all__ = ["OPERATOR_HEADER", "Caller", "Credentials", "Role", "bearer", "credential_of", "required_of"]

OPERATOR_HEADER = "X-Operator"


class Role(IntEnum):
    """What an API key allows; each role includes those before it."""

    VIEWER = 1
    """Read nodes, statuses and metrics."""
    BACKEND = 2
    """Act for users: send messages, ask for tickets."""
    OPERATOR = 3
    """Drain, resize, roll out."""
    ADMIN = 4
    """Everything."""

    @property
    def label(self) -> str:
        """The role's name in files and messages."""
        return self.name.lower()

    def require(self, role: Role) -> None:
        """Raises PermissionDenied when this role is too low."""
        if self < role:
            raise PermissionDenied(f"this needs the role {role.label}, the key has {self.label}")


_REQUIRED = web.RequestKey("required_role", Role)


class Caller(msgspec.Struct, frozen=True):
    """Who asks: the key's role, its fingerprint and its name in the file, and how the person calls themselves.

    A fingerprint is the first 8 hex digits of the key's SHA-256. What a person says, in the header `X-Operator`, is a
    courtesy and no proof.
    """

    role: Role
    fingerprint: str
    name: str = ""
    operator: str = ""

    def __str__(self) -> str:
        named = " as ".join(part for part in (self.name, self.operator) if part)
        return f"{self.role.label} {self.fingerprint}{f' ({named})' if named else ''}"


class _Key(msgspec.Struct, frozen=True):
    secret: bytes
    role: Role
    name: str = ""


class Credentials(Loadable):
    """API keys and what they allow. Compared in constant time."""

    def __init__(self, keys: Mapping[str, Role] | None = None, *, file: str = "", setting: str = "") -> None:
        """Take fixed keys, or a file's once it is loaded.

        Args:
            keys: secret -> role.
            file: of lines `ROLE KEY [NAME]`.
            setting: the name of the option that names the file, for messages.
        """
        super().__init__(*([file] if file else []))
        self._setting = setting
        self._keys = tuple(_Key(key.encode(), role) for key, role in (keys or {}).items())

    def _read(self) -> None:
        faults: list[str] = []
        keys: dict[bytes, _Key] = {}
        for where, words in lines_of(self.files[0], self._setting):
            if not 2 <= len(words) <= 3 or words[0].upper() not in Role.__members__:
                faults.append(f"{where}: write it as ROLE KEY [NAME]; roles: {', '.join(role.label for role in Role)}")
                continue
            role, secret, name = words[0], words[1], "".join(words[2:])
            faults += faults_of(where, secret)
            if secret.encode() in keys:
                faults.append(f"{where}: the key is there twice")
            keys[secret.encode()] = _Key(secret.encode(), Role[role.upper()], name)
        if faults:
            raise ConfigError(faults)
        self._keys = tuple(keys.values())

    def require(self, request: web.Request, role: Role) -> None:
        """Raises Unauthenticated without a known key, PermissionDenied when its role is too low."""
        request[_REQUIRED] = role
        offered = bearer(request)
        if offered is None:
            raise Unauthenticated("send an API key as `Authorization: Bearer KEY`")
        held = self.role_of(offered)
        if held is None:
            raise Unauthenticated("unknown API key")
        held.require(role)

    def role_of(self, offered: str) -> Role | None:
        """Return the key's role, None for an unknown key."""
        found = self._find(offered)
        return None if found is None else found.role

    def who(self, request: web.Request) -> str:
        """Return who asks, for logs. Raises Unauthenticated without a known key."""
        caller = self.caller(request)
        if caller is None:
            raise Unauthenticated("unknown API key")
        return str(caller)

    def caller(self, request: web.Request) -> Caller | None:
        """Return who asks, None without a known key."""
        offered = bearer(request) or ""
        found = self._find(offered)
        if found is None:
            return None
        fingerprint = hashlib.sha256(found.secret).hexdigest()[:8]
        operator = "".join(c for c in request.headers.get(OPERATOR_HEADER, "") if c.isprintable())[:64]
        return Caller(found.role, fingerprint, found.name, operator)

    def _find(self, offered: str) -> _Key | None:
        found = None
        raw = offered.encode(errors="surrogateescape")
        for key in self._keys:
            # No early exit: the time must not tell which key came close.
            if hmac.compare_digest(key.secret, raw):
                found = key
        return found


def required_of(request: web.Request) -> Role | None:
    """Return the role that answering the request needed, None where none was asked for."""
    return request.get(_REQUIRED)


def bearer(request: web.Request) -> str | None:
    """Return the bearer credential of a request, None when it has none."""
    return credential_of(request.headers.get("Authorization", ""))


def credential_of(authorization: str) -> str | None:
    """Return the bearer credential in the value of an `Authorization` header, None when it has none."""
    kind, _, value = authorization.partition(" ")
    return value.strip() or None if kind.lower() == "bearer" else None
