"""Names of things, and the only place that draws unseeded randomness.

Ids that cross a boundary are checked where they enter (`checked_id`); ids that we make are drawn here, so that
a test or the simulator can pass a seeded source instead.
"""

from __future__ import annotations

import random
import re
import secrets
import uuid
from typing import NewType

from base.errors import BadRequest

__all__ = [
    "Epoch",
    "Incarnation",
    "NodeId",
    "UserKey",
    "checked_id",
    "entropy",
    "name_order",
    "new_epoch",
    "new_secret",
    "new_uuid",
]

NodeId = NewType("NodeId", str)
"""Name of a process in the cluster, stable over restarts: `access-1`."""

Incarnation = NewType("Incarnation", int)
"""Restart number of a node. A greater one fences all that came before it."""

Epoch = NewType("Epoch", int)
"""Ownership number (fencing token): who acts on an older one is refused."""

UserKey = NewType("UserKey", str)
"""An opaque key that the operator's own systems chose; 1 to 128 bytes of UTF-8."""

ID_BYTES_MAX = 128


def checked_id(value: str, what: str) -> str:
    """Return the id if it may cross our boundary.

    Raises:
        BadRequest: empty, over 128 bytes of UTF-8, or with control characters or lone surrogates in it.
    """
    if value.isascii() and value.isprintable() and 0 < len(value) <= ID_BYTES_MAX:
        return value  # nearly all are
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise BadRequest(f"{what} is not valid UTF-8") from error
    if not 0 < size <= ID_BYTES_MAX:
        raise BadRequest(f"{what} must have 1 to {ID_BYTES_MAX} bytes, it has {size}")
    if not value.isprintable():
        raise BadRequest(f"{what} must not contain control characters")
    return value


def name_order(name: str) -> tuple[tuple[int, str], ...]:
    """Return a key to sort names by as people count: `status-9` comes before `status-10`."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name))


def entropy() -> random.Random:
    """Return a randomly seeded source, for shells; cores get a seeded one from their caller."""
    return random.Random(secrets.randbits(128))  # noqa: S311 - jitter and choice, never keys


def new_uuid() -> str:
    """Return a random UUID (RFC 9562 version 4)."""
    return str(uuid.uuid4())


def new_epoch() -> str:
    """Return a name for one life of a stream of positions; positions of different epochs do not compare."""
    return secrets.token_urlsafe(6)


def new_secret() -> str:
    """Return 256 random bits for keys and tokens, safe in URLs and headers."""
    return secrets.token_urlsafe(32)
