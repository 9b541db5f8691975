"""What of a message can be searched for, what a query asks for, and whether the one has the other.

A text becomes *words*: runs of letters, marks and digits, without regard to case, diacritics and compatibility forms.
Whatever else there is parts words. Scripts that are written without spaces (Chinese, Japanese, Korean particles,
Thai, Lao, Khmer, Burmese) have no words that a program could tell apart without a dictionary, and neither have
pictures such as emoji: a run of their characters is found by any part of it, which costs a false match here and there
and never misses one.

The folded text is one string, with a space before and after each word and each run. So the question whether a text
has what a query asks for is whether it contains a few strings, which have spaces where a word must begin or end.

A query is words; all of them must occur, in any order. `"two words"` must occur side by side, and so must the parts
of what is written without spaces (`3.14`, `don't`). A final `*` lets a word go on: `mess*` finds "message".

An index narrows a search down by `terms`: a word is one, and a run has one for each of its characters, together with
the next one. A text that has all strings of a query has all its terms, but not the other way round.

Source: Unicode Standard, chapter 3.13 (caseless matching), UAX #15 (normal forms), UAX #44 (combining classes).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from base.errors import BadRequest

__all__ = [
    "DEPTH_MAX",
    "QUERY_CHARS_MAX",
    "QUERY_TERMS_MAX",
    "TEXT_CHARS_MAX",
    "TEXT_KIND",
    "WORD_CHARS_MAX",
    "Query",
    "fold",
    "matches",
    "parse",
    "searchable",
    "terms",
]

TEXT_KIND = "text"
"""Messages of this kind are text whatever fields their bodies have."""

TEXT_CHARS_MAX = 16_384
"""Of a text, before and after it is folded; the rest cannot be found."""

DEPTH_MAX = 8
"""Strings that are nested deeper in a body cannot be found."""

QUERY_CHARS_MAX = 256

QUERY_TERMS_MAX = 16
"""More terms would hardly narrow a search down further."""

WORD_CHARS_MAX = 32
"""A longer word has the term of its beginning."""

_RUN_BEGIN = "\x1f"
_RUN_END = "\x1e"
_CHARACTERS_REMEMBERED_MAX = 65_536
_PIECE_CHARS_MAX = 256

# The blocks of scripts that are written without spaces, first and last character of each.
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1100, 0x11FF),  # Hangul letters
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # radicals
    (0x3000, 0x9FFF),  # kana, bopomofo, Hangul letters, Han
    (0xA960, 0xA97F),  # Hangul letters
    (0xA9E0, 0xA9FF),  # Myanmar
    (0xAA60, 0xAA7F),  # Myanmar
    (0xAC00, 0xD7FF),  # Hangul
    (0xF900, 0xFAFF),  # Han
    (0x1AFF0, 0x1B16F),  # kana
    (0x20000, 0x3FFFF),  # Han
)

# Letters with strokes and the like, which Unicode does not take apart. All are lower case: they are folded before.
_PLAIN = {"ø": "o", "ł": "l", "đ": "d", "ħ": "h", "ŧ": "t", "\u0131": "i", "æ": "ae", "œ": "oe"}

# Marks of no combining class, and symbols, by how their names begin, that only vary how another character looks.
_UNSEEN = ("VARIATION SELECTOR", "COMBINING GRAPHEME JOINER", "MONGOLIAN FREE VARIATION", "EMOJI MODIFIER")

_PIECE = re.compile(r'"([^"]*)"(\*?)|([^\s"]+)')
_QUOTES = str.maketrans(dict.fromkeys("\u201c\u201d\u201e\u201f\uff02", '"'))  # what keyboards of phones write


class Query(msgspec.Struct, frozen=True):
    """What is searched for."""

    patterns: tuple[str, ...]
    """The folded text must contain each of these."""
    terms: tuple[tuple[str, bool], ...]
    """(term, whether it may go on). The text's terms must have each of these."""


def searchable(kind: str, body: bytes) -> str:
    """Return the folded text of a message with this body, "" if it has none.

    That is all strings under the field `text`; if there is no such field, all strings of the body of a message of the
    kind `text`. They are joined by spaces in the order of the body. `kind` is the message's, also for an edit of it.
    """
    if not body:
        return ""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""  # what senders may send is checked elsewhere; nothing that is stored may stop an index
    if isinstance(value, dict) and "text" in value:
        value = value["text"]
    elif kind != TEXT_KIND:
        return ""
    return fold(value if isinstance(value, str) else " ".join(_strings(value, DEPTH_MAX)))


def fold(text: str) -> str:
    """Return the text's words and runs, each with one space before and after it; "" if there are none."""
    text = text[:TEXT_CHARS_MAX]
    text = text.lower() if text.isascii() else "".join(map(_plain, _pieces(text)))
    words = " ".join(text.translate(_CHARACTERS).replace(_RUN_END + _RUN_BEGIN, "").split())
    return f" {words[:TEXT_CHARS_MAX].rstrip()} " if words else ""


def parse(query: str) -> Query:
    """Return what the query asks for.

    Raises:
        BadRequest: it asks for nothing, has a quote that does not end, or is too long.
    """
    if len(query) > QUERY_CHARS_MAX:
        raise BadRequest(f"a query has up to {QUERY_CHARS_MAX} characters")
    query = query.translate(_QUOTES)
    if query.count('"') % 2:
        raise BadRequest("the query has a quote that does not end")
    patterns: dict[str, None] = {}
    wanted: dict[tuple[str, bool], None] = {}
    for quoted, star, word in _PIECE.findall(query):
        stem = word.rstrip("*") or quoted
        text = fold(stem)
        if text:
            is_open = bool(star) or word.endswith("*")
            patterns[_pattern(text, is_open=is_open)] = None
            wanted.update(dict.fromkeys(_query_terms(text, is_open=is_open)))
    if not patterns:
        raise BadRequest("the query has no word to search for")
    # The ones that narrow down most come first: whole words, and long ones.
    best = sorted(wanted, key=lambda term: (term[1], -len(term[0])))
    return Query(tuple(patterns), tuple(best[:QUERY_TERMS_MAX]))


def matches(text: str, query: Query) -> bool:
    """Return whether the folded text has what the query asks for: the definition that any index must keep."""
    return all(pattern in text for pattern in query.patterns)


def terms(text: str) -> list[str]:
    """Return the terms of a folded text, each once. They have no spaces, and ASCII only in lower case and digits."""
    found: dict[str, None] = {}
    for word in text.split():
        if _is_run(word):
            for i in range(len(word)):
                found[word[i : i + 2]] = None
        else:
            found[word[:WORD_CHARS_MAX]] = None
    return list(found)


def _pieces(text: str) -> Iterator[str]:
    """Cut the text where nothing that belongs together is parted, if there is such a place.

    Putting marks in order takes the square of their number in a row, which a sender may choose. Bounded, a hostile
    text costs 20 ms at most; others have a letter now and then.
    """
    begin = 0
    while len(text) - begin > _PIECE_CHARS_MAX:
        end = begin + _PIECE_CHARS_MAX
        while end > begin + _PIECE_CHARS_MAX // 2 and not _is_beginning(text[end]):
            end -= 1
        yield text[begin:end]
        begin = end
    yield text[begin:]


def _is_beginning(character: str) -> bool:
    """Whether it never belongs to the character before it, as marks and the inner letters of Hangul do."""
    return unicodedata.category(character)[0] != "M" and not "\u1160" <= character <= "\u11ff"


def _plain(text: str) -> str:
    """Return the text in lower case, without diacritics and compatibility forms."""
    # Case folding may bring marks of its own, and taking apart may bring capitals.
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return unicodedata.normalize("NFC", text.translate(_MARKS))


def _is_ignored(character: str) -> bool:
    """Whether it is a diacritic, encloses another character, or is unseen.

    Marks that make another letter stay: vowels and tones of Asian scripts, and the sound marks of kana (class 8).
    """
    if unicodedata.category(character) in {"Cf", "Me"}:
        return True
    mark = unicodedata.combining(character)
    is_diacritic = mark == 1 or 10 <= mark <= 36 or mark >= 200
    return is_diacritic or unicodedata.name(character, "").startswith(_UNSEEN)


def _mark(character: str) -> str:
    """Return what is left of a character of a text that was taken apart."""
    return "" if _is_ignored(character) else character


def _character(character: str) -> str:
    """Return what becomes of a folded character: a part of a word or of a run, or what parts them."""
    category = unicodedata.category(character)
    if category == "So":
        return _RUN_BEGIN + character + _RUN_END
    if category[0] not in "LMN":
        return " "
    code = ord(character)
    if any(first <= code <= last for first, last in _UNSPACED):
        return _RUN_BEGIN + character + _RUN_END
    return _PLAIN.get(character, character)


class _Table(dict[int, str]):
    """What `str.translate` makes of each character: looked up in Unicode's tables once."""

    def __init__(self, make: Callable[[str], str]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, code: int) -> str:
        made = self._make(chr(code))
        if len(self) < _CHARACTERS_REMEMBERED_MAX:  # a sender has a million to choose from
            self[code] = made
        return made


_MARKS = _Table(_mark)
_CHARACTERS = _Table(_character)


def _is_run(word: str) -> bool:
    """Whether this part of a folded text is a run; then all its characters are of that sort."""
    return not word.isascii() and _CHARACTERS[ord(word[0])][0] == _RUN_BEGIN


def _pattern(text: str, *, is_open: bool) -> str:
    """Return what a text must contain to have this one: a run begins and ends anywhere, an open word ends anywhere."""
    words = text.split()
    if _is_run(words[0]):
        text = text[1:]
    return text[:-1] if is_open or _is_run(words[-1]) else text


def _query_terms(text: str, *, is_open: bool) -> Iterator[tuple[str, bool]]:
    """Yield the terms that a text with this one has."""
    words = text.split()
    for i, word in enumerate(words):
        if not _is_run(word):
            # A longer word's term is cut, so that it is whole already.
            yield word[:WORD_CHARS_MAX], is_open and i == len(words) - 1 and len(word) < WORD_CHARS_MAX
        elif len(word) == 1:
            yield word, True
        else:
            for k in range(len(word) - 1):
                yield word[k : k + 2], False


def _strings(value: Any, depth: int) -> Iterator[str]:
    """Yield the strings in a JSON value, in its order; names of fields are none."""
    if isinstance(value, str):
        yield value
    elif depth > 0 and isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part, depth - 1)
