"""What a user makes of a conversation: read up to here, muted, pinned, hidden.

Pointers go forward only, so that marks may come late, twice, or from several devices. A view that changed is told to
the user's other devices by notes in the user's own timeline: they say what is so now, not what was done.
"""

from __future__ import annotations

import msgspec

from im.core.book import DIRECT_MAX, Book, Log
from im.core.commands import Cause, Mark, Marked, Refused
from im.core.model import View

__all__ = ["mark"]

_json = msgspec.json.Encoder()


def mark(book: Book, command: Mark) -> Marked | Refused:
    """Change the user's view. Who has left a group still has settings there, but reads no further."""
    log = book.logs.get(command.cid)
    if log is None:
        return Refused(Cause.NO_CONVERSATION)
    reads = command.read_seq is not None or command.delivered_seq is not None
    if not log.has(command.user):
        member = (command.cid, command.user)
        if reads or (member not in book.facts.members and member not in book.changes.members):
            return Refused(Cause.NO_CONVERSATION)
    place = (command.user, command.cid)
    before = book.changes.views.get(place) or book.facts.views.get(place) or View(*place)
    view = _marked(book, before, command, log)
    if view == before:
        return Marked(view, is_new=False)
    book.changes.views[place] = view
    for kind, said in _NOTES:
        if said(view) != said(before):
            body = _json.encode(said(view))
            book.note(command.user, kind, body, cid=command.cid, device=command.device, at=command.at)
    if not reads or len(log.users) > DIRECT_MAX:
        return Marked(view, is_new=True)
    return Marked(view, is_new=True, receivers=tuple(user for user in log.users if user != command.user))


def _marked(book: Book, view: View, command: Mark, log: Log) -> View:
    fields: dict[str, object] = {}
    read = (view.read_seq, view.read_cseq)
    if command.delivered_seq is not None:
        fields["delivered_seq"] = max(view.delivered_seq, min(command.delivered_seq, log.max_seq))
    if command.read_seq is not None:
        read = max(read, _position(book, command.cid, command.read_seq, log))
        fields["is_marked_unread"] = False
    if command.is_marked_unread is not None:
        fields["is_marked_unread"] = command.is_marked_unread
    if command.is_muted is not None:
        fields["is_muted"] = command.is_muted
    if command.is_pinned is not None:
        fields["pinned_at"] = (view.pinned_at or command.at) if command.is_pinned else 0
    if command.is_hidden is True:
        fields |= {"hidden_seq": log.max_seq, "hidden_cseq": log.max_cseq}
    elif command.is_hidden is False and view.hidden_seq:
        # Listed again, but not unread again.
        read = max(read, (view.hidden_seq, view.hidden_cseq))
        fields |= {"hidden_seq": 0, "hidden_cseq": 0}
    return msgspec.structs.replace(view, read_seq=read[0], read_cseq=read[1], **fields)


def _position(book: Book, cid: int, seq: int, log: Log) -> tuple[int, int]:
    """Return the seq, at most the log's end, and the cseq there."""
    if seq >= log.max_seq:
        return log.max_seq, log.max_cseq
    if seq <= 0:
        return 0, 0
    entry = book.fresh.get((cid, seq)) or book.facts.messages[cid, seq]
    return seq, entry.cseq


def _reading(view: View) -> dict[str, object]:
    return {"read_seq": view.read_seq, "is_marked_unread": view.is_marked_unread}


def _settings(view: View) -> dict[str, object]:
    return {"is_muted": view.is_muted, "pinned_at": view.pinned_at, "hidden_seq": view.hidden_seq}


_NOTES = (("read", _reading), ("settings", _settings))
"""Kinds of the notes about a view, and what they say."""
