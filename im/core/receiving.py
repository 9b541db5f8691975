"""Entries of other shards' logs, for timelines here: each is taken over once, in the order of the outbox there.

What an edit or a recall says of the message before it is taken over too, so that a timeline reads the same wherever the
log is: the message is covered, and so is the edit that was the newest one until now.
"""

from __future__ import annotations

from im.core.book import Book
from im.core.commands import Receive, Received, Sent
from im.core.facts import Needs
from im.core.model import Form, Message, Overlay

__all__ = ["need", "receive", "sent"]


def need(book: Book, command: Receive, needs: Needs) -> None:
    """Add what must be known before the command is carried out."""
    timelines = book.timelines
    for entry in command.entries:
        needs.users.extend(user for user in entry.users if timelines.needs(user))
        if entry.message.form in (Form.EDIT, Form.RECALL):
            needs.covered.append((entry.message.cid, entry.message.ref))


def receive(book: Book, command: Receive) -> Received:
    """Give the entries to their users, but for what was given before."""
    source = command.source
    through = book.received.get(source, 0)
    for entry in command.entries:
        if entry.position <= through:
            continue
        through = entry.position
        if entry.message.form in (Form.EDIT, Form.RECALL):
            _cover(book, entry.message)
        book.take_over(source, entry.message, entry.users)
    if through != book.received.get(source, 0):
        book.received[source] = book.changes.received[source] = through
    return Received(through)


def sent(book: Book, command: Sent) -> Received:
    """Forget what went out."""
    book.timelines.gave(command.through)
    book.changes.sent[command.shard] = max(command.through, book.changes.sent.get(command.shard, 0))
    return Received(command.through)


def _cover(book: Book, entry: Message) -> None:
    place = (entry.cid, entry.ref)
    before = book.changes.overlays.get(place) or book.facts.overlays.get(place)
    if before is not None and before.version >= entry.seq:
        return  # it came before, for other users
    if before is not None:
        covered = (entry.cid, before.version)
        book.changes.overlays[covered] = Overlay(*covered, entry.seq, False, 0, b"", b"")
    is_recall = entry.form == Form.RECALL
    # How much is unread is counted where the log is: here no message has a cseq.
    book.changes.overlays[place] = Overlay(*place, entry.seq, is_recall, 0, entry.body, entry.mentions)
