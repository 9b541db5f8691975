"""The search index: one SQLite file with what `im.core.searchable` makes of the messages.

`doc` has the folded text of each message, `term` an FTS5 index of the messages by terms. What FTS5 is asked for and
told is made here from terms alone, so no user's text is ever FTS5 syntax, and its tokenizer has nothing to do but to
split at spaces. Each term begins with its conversation's number, so a search costs what the conversation has, not
what the whole store has; and a message has one more term, its address, by which edits and recalls find it. An FTS5
index takes new rows at the end, in any order of terms, and merges later: feeding it costs no random writes.

Positions of terms are not indexed (`detail = none`): what the terms find is checked against the text, which is quick
and makes the answer exact. The text is there anyway, because an index row can only be taken back by its terms.

FTS5's `trigram` tokenizer was measured beside this: 112 to 177 bytes for a message of 55 bytes, against 94 and the text
of 70; and it cannot find words of two characters, which most Chinese words are. Its `unicode61` takes 33 to 44 bytes,
and finds no part of a text without spaces.

Invariants:
    I1  The index has exactly what the log has up to `position`: edits have replaced texts, recalls have removed them.
        `feed` is one transaction, and the position is part of it.
    I2  A search returns exactly those messages whose folded text `matches`.

A power cut may take the last transactions, never a part of one: the log has what they were made of. What is recalled
leaves `doc` at once; its terms, without their order, leave the file when FTS5 merges the part that they are in.
"""

from __future__ import annotations

import sqlite3
import unicodedata
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import msgspec

from base.errors import StoreUnavailable
from im.core.model import Form, Message
from im.core.searchable import TEXT_KIND, Query, searchable, terms

__all__ = ["SEQ_END", "Found", "Position", "SearchIndex"]

INDEX_VERSION = 1
"""Changes with the schema, and with whatever changes what `fold` or `terms` return."""

SEQ_END = 2**63 - 1
"""SQLite's greatest integer, which no conversation reaches."""

_STEPS_BETWEEN_LOOKS = 10_000  # of SQLite's machine: less than a millisecond

_PRAGMAS = (
    "PRAGMA synchronous = NORMAL",
    "PRAGMA secure_delete = ON",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA cache_size = -16384",  # KiB
    "PRAGMA journal_size_limit = 67108864",  # bytes
)

_SCHEMA = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID",
    "CREATE TABLE doc (n INTEGER PRIMARY KEY, seq INTEGER NOT NULL, is_text INTEGER NOT NULL, text TEXT NOT NULL)",
    "CREATE VIRTUAL TABLE term USING fts5(terms, content='', columnsize=0, detail=none, tokenize='ascii')",
)

# All rows as one JSON document: `executemany` would give up and take back the interpreter lock for each.
_REMOVE_TERMS = """
INSERT INTO term (term, rowid, terms) SELECT 'delete', value ->> 0, value ->> 1 FROM json_each(?)"""
_ADD_TERMS = "INSERT INTO term (rowid, terms) SELECT value ->> 0, value ->> 1 FROM json_each(?)"
_PUT_DOCS = """
INSERT OR REPLACE INTO doc (n, seq, is_text, text)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?)"""
_FIND_DOC = "SELECT n, is_text, text FROM term CROSS JOIN doc ON n = term.rowid WHERE term MATCH ?"
_FIND_N = "SELECT rowid FROM term WHERE term MATCH ?"

_encode = msgspec.json.encode


class Position(msgspec.Struct, frozen=True):
    """How far an index has read the log: the entry's `n` and its mid as text; (0, "") when it has read nothing."""

    n: int
    mid: str


class Found(msgspec.Struct, frozen=True):
    """What a search found in the index."""

    seqs: list[int]
    """Newest first."""
    kinds: dict[int, bool]
    """Of the messages that were named: whether it is of the kind `text`. Those not in the index are left out."""


class _Doc(msgspec.Struct):
    """A message while a page is taken in."""

    n: int
    cid: int
    seq: int
    is_text: bool
    text: str
    was: str | None
    """Its text in the index; None: it is not there yet."""


class SearchIndex:
    """A connection to the file. One feeds, others search; each is used by one thread at a time.

    Methods raise `sqlite3.Error` when SQLite fails.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Use `open`."""
        self._connection = connection
        self.position = self._read_position()
        """As of the last `feed`, or of opening."""

    @classmethod
    def open(cls, path: Path, epoch: str) -> SearchIndex:
        """Open the index of the store of this epoch. One of another store, release or Unicode version is made anew.

        Raises:
            StoreUnavailable: the file system has no write-ahead log.
        """
        made_of = f"{INDEX_VERSION} {unicodedata.unidata_version} {epoch}"
        try:
            return cls(_connect(path, made_of))
        except _OtherIndex:
            remove(path)
            return cls(_connect(path, made_of))

    def feed(self, messages: Sequence[Message]) -> None:
        """Take in the next entries of the log, in its order. Those that were taken in before are left out."""
        fresh = [message for message in messages if message.n > self.position.n]
        if not fresh:
            return
        position = Position(fresh[-1].n, str(fresh[-1].mid))
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            self._put(self._changed(fresh))
            connection.execute("UPDATE meta SET value = ? WHERE name = 'n'", (position.n,))
            connection.execute("UPDATE meta SET value = ? WHERE name = 'mid'", (position.mid,))
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        self.position = position

    def search(
        self,
        cid: int,
        query: Query,
        *,
        first_seq: int,
        end_seq: int,
        limit: int,
        kinds_of: Collection[int] = (),
        is_late: Callable[[], bool] | None = None,
    ) -> Found:
        """Return the newest `limit` messages with `first_seq <= seq < end_seq` that match, and some kinds.

        Both are of one state of the index, that of some `feed`. Once `is_late` the search fails soon, with the code
        SQLITE_INTERRUPT.
        """
        connection = self._connection
        connection.set_progress_handler(is_late, _STEPS_BETWEEN_LOOKS)
        connection.execute("BEGIN")
        try:
            asked = " AND ".join(
                f'"{_conversation(cid)}{term}"{"*" if is_open else ""}' for term, is_open in query.terms
            )
            contains = " AND instr(text, ?)" * len(query.patterns)
            # Where the page before ended, if there is a message: what is newer need not be looked at.
            bound = connection.execute(_FIND_N, (_address(cid, end_seq),)).fetchone() if end_seq < SEQ_END else None
            rows = connection.execute(
                f"""SELECT seq FROM term CROSS JOIN doc ON n = term.rowid
                WHERE term MATCH ? AND term.rowid < ? AND seq >= ? AND seq < ?{contains}
                ORDER BY term.rowid DESC LIMIT ?""",  # noqa: S608 - constants
                (asked, bound[0] if bound else SEQ_END, first_seq, end_seq, *query.patterns, limit),
            ).fetchall()
            found = ((seq, connection.execute(_FIND_DOC, (_address(cid, seq),)).fetchone()) for seq in kinds_of)
            kinds = {seq: bool(row[1]) for seq, row in found if row is not None}
        finally:
            if connection.in_transaction:
                connection.execute("COMMIT")
        return Found([seq for (seq,) in rows], kinds)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _read_position(self) -> Position:
        meta = dict(self._connection.execute("SELECT name, value FROM meta").fetchall())
        return Position(meta["n"], meta["mid"])

    def _changed(self, messages: Sequence[Message]) -> list[_Doc]:
        """Return what these entries make of the messages that they are, or are about, in the order of the log."""
        docs: dict[tuple[int, int], _Doc] = {}
        for message in messages:
            if message.form == Form.MESSAGE:
                text = searchable(message.kind, message.body)
                docs[message.cid, message.seq] = _Doc(
                    message.n, message.cid, message.seq, message.kind == TEXT_KIND, text, None
                )
            elif message.form in {Form.EDIT, Form.RECALL}:
                place = (message.cid, message.ref)
                doc = docs.get(place) or self._find(*place)
                if doc is not None:
                    docs[place] = doc
                    # A recall has no body.
                    doc.text = searchable(TEXT_KIND if doc.is_text else "", message.body)
        return sorted((doc for doc in docs.values() if doc.text != doc.was), key=lambda doc: doc.n)

    def _find(self, cid: int, seq: int) -> _Doc | None:
        row = self._connection.execute(_FIND_DOC, (_address(cid, seq),)).fetchone()
        return None if row is None else _Doc(row[0], cid, seq, bool(row[1]), row[2], row[2])

    def _put(self, docs: Sequence[_Doc]) -> None:
        """Write the rows. In ascending order: FTS5 begins a new part of its index whenever a row comes out of order."""
        removed = [(doc.n, _row_terms(doc, doc.was)) for doc in docs if doc.was is not None]
        if removed:
            self._connection.execute(_REMOVE_TERMS, (_encode(removed).decode(),))
        self._connection.execute(_ADD_TERMS, (_encode([(doc.n, _row_terms(doc, doc.text)) for doc in docs]).decode(),))
        rows = [(doc.n, doc.seq, int(doc.is_text), doc.text) for doc in docs]
        self._connection.execute(_PUT_DOCS, (_encode(rows).decode(),))


def remove(path: Path) -> None:
    """Remove an index that nobody has open, with the files that SQLite put beside it. None there is no error."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


class _OtherIndex(Exception):
    """The file is not the index that is wanted."""


def _connect(path: Path, made_of: str) -> sqlite3.Connection:
    # Opened, used and closed by different threads, one after the other.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        _prepare(connection, made_of)
    except sqlite3.DatabaseError as error:
        connection.close()
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}:
            raise _OtherIndex from error
        raise
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, made_of: str) -> None:
    mode: str = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StoreUnavailable(f"SQLite cannot keep a write-ahead log here (journal mode {mode})")
    for pragma in _PRAGMAS:
        connection.execute(pragma)
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not connection.execute("SELECT name FROM sqlite_master").fetchone():
            for statement in _SCHEMA:
                connection.execute(statement)
            meta = {"made_of": made_of, "n": 0, "mid": ""}
            connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        elif not connection.execute("SELECT name FROM sqlite_master WHERE name = 'meta'").fetchone():
            raise _OtherIndex
        if connection.execute("SELECT value FROM meta WHERE name = 'made_of'").fetchone() != (made_of,):
            raise _OtherIndex
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _conversation(cid: int) -> str:
    """How the conversation's terms begin: hexadecimal digits, then `x`, which is none."""
    return f"{cid:x}x"


def _address(cid: int, seq: int) -> str:
    """The term of the message itself; `y` where other terms have `x`."""
    return f"{cid:x}y{seq:x}"


def _row_terms(doc: _Doc, text: str) -> str:
    begin = _conversation(doc.cid)
    return " ".join([_address(doc.cid, doc.seq), *(begin + term for term in terms(text))])
