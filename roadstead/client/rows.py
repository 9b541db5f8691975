"""What a conversation's window shows: publications with what covers them, and how they come to be seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Changed", "Publication", "Row", "RowState", "Shown", "covered", "is_row", "row_of"]

Publication = dict[str, Any]
"""What the server tells, as decoded JSON."""

RowState = Literal["stored", "sending", "queued", "failed"]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a conversation's window: a message, or an event of a group. `seq` is 0 until the server gave one.

    `data` is the publication with what covers it applied; of a recalled message the body is None. For a message of
    this client that the server has not told yet, it is what was sent; `error` says why it failed.
    """

    seq: int
    key: str
    """The client_msg_id of a message, also of another sender's; "" for an event."""
    data: Publication
    state: RowState = "stored"
    error: Any = None


@dataclass(frozen=True, slots=True)
class Shown:
    """The row is new: at the end of the window, where there is one."""

    cid: str
    row: Row


@dataclass(frozen=True, slots=True)
class Changed:
    """The row, found by its seq, or its key while it has none, is to be seen so from here on."""

    cid: str
    row: Row


def is_row(entry: Publication) -> bool:
    """Return whether an entry of a log is to be seen; a switch of the fan-out is not: it makes no difference."""
    return bool(entry["kind"] == "message" or (entry["kind"] == "group" and entry["body"]["event"] != "fan_out"))


def row_of(entry: Publication) -> Row:
    """Return the row of an entry."""
    return Row(entry["seq"], entry.get("client_msg_id", ""), entry)


def covered(message: Publication, cover: Publication | None) -> Publication:
    """Return a message under an edit or a recall, unless what it is under already counts more."""
    if cover is None or message.get("recalled") or message["kind"] != "message":
        return message
    if cover["kind"] == "recall":
        return {**message, "body": None, "mentions": [], "recalled": cover["seq"]}
    if message.get("edited", 0) >= cover["seq"] or cover.get("edited"):
        return message  # a later edit has taken the place of this one
    return {**message, "body": cover["body"], "mentions": cover.get("mentions") or [], "edited": cover["seq"]}
