"""Messages, edits and recalls: each becomes the next entry of its conversation's log, or is refused."""

from __future__ import annotations

import msgspec

from im.core import groups
from im.core.book import Book, Log
from im.core.commands import Appended, Cause, Draft, KeyConflict, Outcome, Refused, Revise
from im.core.model import Form, Message, Overlay

__all__ = ["BUSY", "busy", "place", "repeated", "revise"]

BUSY = Refused(Cause.BUSY, {"what": "fan_out", "retry_after_ms": 500})


def busy(book: Book, cid: int, user: str) -> Refused | None:
    """Return why the user may add nothing to the conversation just now; None: nothing of it is in the way."""
    log = book.logs.get(cid)
    return BUSY if log is not None and log.has(user) and book.timelines.is_full(cid) else None


def place(book: Book, draft: Draft) -> Appended | Refused:
    """Append a message whose key is new."""
    sender = draft.sender
    if draft.to:
        if draft.ref and not book.has_single(sender, draft.to):
            return Refused(Cause.NO_MESSAGE)  # and no conversation is made
        log = book.single(sender, draft.to)
    else:
        found = book.logs.get(draft.cid)
        if found is None or not found.has(sender):
            return Refused(Cause.NO_CONVERSATION)
        log = found
        if log.conversation.group is not None:
            refused = groups.may_send(log.conversation, log.members[sender], draft.at)
            if refused is not None:
                return refused
    if draft.ref and not log.first_seq(sender) <= draft.ref <= log.max_seq:
        return Refused(Cause.NO_MESSAGE)
    message = book.message(log, draft)
    if draft.mentions:
        book.mention(log, message, message.seq)
    book.tell(log, message)
    return Appended(message, is_new=True)


def repeated(draft: Draft, existing: Message) -> Outcome:
    """Return what is due for a key that was used: another device or time of sending is no other message."""
    if existing.form == Form.NOTE:
        # Of what failed only the key and the place were kept.
        if (existing.recipient, existing.cid) != (draft.to, draft.cid):
            return KeyConflict(existing)
        failure = msgspec.json.decode(existing.body)
        return Refused(Cause[failure["cause"]], failure["detail"])
    is_there = existing.recipient == draft.to if draft.to else existing.cid == draft.cid
    is_same = (
        is_there
        and existing.form == Form.MESSAGE
        and draft.body == existing.body
        and draft.kind == existing.kind
        and draft.ref == existing.ref
        and draft.mentions == existing.mentions
    )
    return Appended(existing, is_new=False) if is_same else KeyConflict(existing)


def revise(book: Book, command: Revise) -> Outcome:
    """Append the edit or the recall of a message, and cover the message with it."""
    existing = book.facts.messages_by_key.get((command.sender, command.client_msg_id))
    form = Form.RECALL if command.is_recall else Form.EDIT
    if existing is not None:
        is_same = (existing.form, existing.cid, existing.ref, existing.body, existing.mentions) == (
            form,
            command.cid,
            command.seq,
            command.body,
            command.mentions,
        )
        return Appended(existing, is_new=False) if is_same else KeyConflict(existing)
    log = book.logs.get(command.cid)
    if log is None or not log.has(command.sender):
        return Refused(Cause.NO_CONVERSATION)
    if book.timelines.is_full(command.cid):
        return BUSY
    place_of = (command.cid, command.seq)
    target = book.fresh.get(place_of) or book.facts.messages.get(place_of)
    if target is None:
        return Refused(Cause.NO_MESSAGE)
    if (refused := _may_revise(book, log, target, command)) is not None:
        return refused
    overlay = book.changes.overlays.get(place_of) or book.facts.overlays.get(place_of)
    if overlay is not None and overlay.is_recalled:
        return Refused(Cause.RECALLED)
    entry = _cover(book, log, target, command, form)
    if overlay is not None:
        # The edit before stays in the log and says nothing any more: what was recalled must not be read there.
        before = (target.cid, overlay.version)
        book.changes.overlays[before] = Overlay(*before, entry.seq, False, target.cseq, b"", b"")
    return Appended(entry, is_new=True)


def _may_revise(book: Book, log: Log, target: Message, command: Revise) -> Refused | None:
    user, member = command.sender, log.members.get(command.sender)
    if command.is_recall:
        window_ms = book.settings.recall_window_ms
        return groups.may_recall(log.conversation, user, member, target, command.at, window_ms=window_ms)
    window_ms = book.settings.edit_window_ms
    return groups.may_edit(log.conversation, user, member, target, command.at, window_ms=window_ms)


def _cover(book: Book, log: Log, target: Message, command: Revise, form: Form) -> Message:
    entry = book.entry(
        log,
        form,
        "recall" if command.is_recall else "edit",
        mid=command.mid,
        sender=command.sender,
        device=command.device,
        client_msg_id=command.client_msg_id,
        body=command.body,
        at=command.at,
        ref=target.seq,
        mentions=command.mentions,
    )
    book.changes.overlays[target.cid, target.seq] = Overlay(
        target.cid, target.seq, entry.seq, command.is_recall, target.cseq, command.body, command.mentions
    )
    if command.mentions:
        book.mention(log, entry, target.seq)
    book.tell(log, entry)
    return entry
