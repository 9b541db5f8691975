"""Texts and queries: tables, then a twin that compares lists of words, and terms against the definition."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import im.core.searchable as core
from base.errors import BadRequest
from im.core.searchable import (
    DEPTH_MAX,
    QUERY_CHARS_MAX,
    QUERY_TERMS_MAX,
    TEXT_CHARS_MAX,
    WORD_CHARS_MAX,
    Query,
    fold,
    matches,
    parse,
    searchable,
    terms,
)

ALPHABET = "ab Aé世界学が人น้ำ👍\u200d\u0301🏽-.\n"
TEXTS = st.one_of(st.text(alphabet=ALPHABET, max_size=24), st.text(max_size=24))
CLAUSES = st.lists(
    st.tuples(st.text(alphabet=ALPHABET, max_size=5), st.booleans(), st.booleans()), min_size=1, max_size=3
)


def has(text: str, query: str) -> bool:
    return matches(fold(text), parse(query))


def is_unspaced(word: str) -> bool:
    return not word.isascii() and unicodedata.category(word[0]) in {"Lo", "So", "Mn"}


def twin(text: str, clause: str, *, is_open: bool) -> bool:
    """Whether the clause's words stand side by side somewhere in the text, word by word."""
    wanted, words = fold(clause).split(), fold(text).split()
    if not wanted:
        return True
    return any(
        all(
            fits(
                words[i + k],
                part,
                # Only the ends of a clause may be inside something.
                begins_anywhere=k == 0 and is_unspaced(part),
                ends_anywhere=k == len(wanted) - 1 and (is_open or is_unspaced(part)),
            )
            for k, part in enumerate(wanted)
        )
        for i in range(len(words) - len(wanted) + 1)
    )


def fits(word: str, part: str, *, begins_anywhere: bool, ends_anywhere: bool) -> bool:
    if begins_anywhere and ends_anywhere:
        return part in word
    if begins_anywhere:
        return word.endswith(part)
    return word.startswith(part) if ends_anywhere else word == part


def written(clauses: list[tuple[str, bool, bool]]) -> str:
    """The query of these clauses: text, whether it is quoted, whether it is open."""
    parts = []
    for text, is_quoted, is_open in clauses:
        stem = text if is_quoted else "".join(text.split())
        parts.append((f'"{stem}"' if is_quoted else stem) + "*" * is_open)
    return " ".join(parts)


# ---------------------------------------------------------------- folding


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("", ""),
        (" \t\n--!?", ""),
        ("Hello, World", " hello world "),
        ("don't 3.14 foo_bar", " don t 3 14 foo bar "),
        ("STRASSE straße", " strasse strasse "),
        ("Ångström naïve ŁÓDŹ Øre İstanbul ILIK \u0131l\u0131k", " angstrom naive lodz ore istanbul ilik ilik "),
        ("e\u0301te\u0301", " ete "),
        ("ΣΊΣΥΦΟΣ σίσυφος", " σισυφοσ σισυφοσ "),
        ("ёлка Ёлка", " елка елка "),
        ("ﬁnance ①②", " finance 12 "),
        ("\uff21\uff22\uff23\u3000\uff11\uff12\uff13", " abc 123 "),
        ("مُحَمَّد", " محمد "),
        ("שָׁלוֹם", " שלום "),
        ("हिन्दी", " हिन्दी "),
        ("世界。hello世界foo", " 世界 hello 世界 foo "),
        ("か\u3099 ｶﾞ ガ が", " が ガ ガ が "),
        ("\u1112\u1161\u11ab\u1100\u116e\u11a8 한국", " 한국 한국 "),
        ("ภาษาไทย", " ภาษาไทย "),
        ("ok👍🏽👍\ufe0fok", " ok 👍👍 ok "),
        ("👨\u200d👩\u200d👧", " 👨👩👧 "),
        ("co\u00adop 1\ufe0f\u20e3", " coop 1 "),
        ("a\x00b\x1fc\x1ed\ud800e\ue000f", " a b c d e f "),
    ],
)
def test_texts_are_folded_as_the_table_says(text: str, folded: str):
    """Case, diacritics and compatibility forms go; what makes another letter stays."""
    assert fold(text) == folded


@pytest.mark.parametrize("first", range(0, 0x40000, 0x8000))
def test_whatever_character_comes_folding_is_final(first: int):
    """A sample of each block: folded once is folded, and ASCII is what an index's tokenizer leaves alone."""
    for code in range(first, first + 0x8000, 17):
        folded = fold(f"x{chr(code)}")
        assert fold(folded) == folded
        assert all(not c.isascii() or c == " " or c.isdigit() or c.islower() for c in folded)
        assert not folded or (folded[0], folded[-1]) == (" ", " ")


def test_long_texts_are_cut_before_and_after_folding():
    """One character may become eighteen."""
    assert len(fold("a" * (TEXT_CHARS_MAX + 5))) == TEXT_CHARS_MAX + 2
    assert len(fold("\ufdfa" * TEXT_CHARS_MAX)) <= TEXT_CHARS_MAX + 2
    assert not has("a " * TEXT_CHARS_MAX + "end", "end")


@pytest.mark.parametrize("size", [1, 255, 256, 257, 1_000])
def test_long_texts_are_folded_as_short_ones(size: int):
    """Pieces are cut where nothing belongs together."""
    for part in ("e\u0301", "\u1112\u1161\u11ab", "か\u3099"):
        assert fold(part * size) == f" {fold(part).strip() * size} "


def test_a_text_of_nothing_but_marks_is_cut_all_the_same():
    """It costs a sender as much as anybody else's text does."""
    marks = "\u0e48\u0e38" * (TEXT_CHARS_MAX // 2)
    assert len(fold(marks)) == TEXT_CHARS_MAX + 2


def test_characters_beyond_what_is_remembered_are_folded_too(monkeypatch: pytest.MonkeyPatch):
    """Somebody who sends all characters gets no more memory than the rest."""
    fold("é世")
    monkeypatch.setattr(core, "_CHARACTERS_REMEMBERED_MAX", 0)
    size = len(core._CHARACTERS), len(core._MARKS)
    assert fold("\U00031234\U0001e900\U000e01ef") == " \U00031234 \U0001e922 "
    assert (len(core._CHARACTERS), len(core._MARKS)) == size


# ---------------------------------------------------------------- bodies


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        ("text", '{"text": "Hi there"}', " hi there "),
        ("text", '{"text": "hi", "style": "bold"}', " hi "),
        ("text", '{"content": {"a": ["One", 2, null, "three"]}, "b": "Four"}', " one three four "),
        ("text", '"bare"', " bare "),
        ("text", '["a", "b"]', " a b "),
        ("text", "7", ""),
        ("image", '{"url": "u", "text": "Caption"}', " caption "),
        ("image", '{"text": {"en": "one", "zh": "世界"}}', " one 世界 "),
        ("image", '{"url": "u"}', ""),
        ("image", '"bare"', ""),
        ("text", "", ""),
        ("text", "{", ""),
        ("text", '{"text": "\\ud800"}', ""),
        ("text", "[" * 5_000 + "]" * 5_000, ""),
    ],
)
def test_texts_of_bodies_are_as_the_table_says(kind: str, body: str, text: str):
    """The field `text`, or all strings if the kind is `text`; a body that is no JSON has none."""
    assert searchable(kind, body.encode()) == text


def test_a_body_that_is_not_utf_8_has_no_text():
    """What was stored may be anything; nothing may stop an index."""
    assert searchable("text", b'"\xff"') == ""


def test_strings_that_are_nested_too_deep_are_left_out():
    """Eight levels are found, nine are not."""
    for depth, text in ((DEPTH_MAX, " deep "), (DEPTH_MAX + 1, "")):
        assert searchable("text", json.dumps("deep").join(["[" * depth, "]" * depth]).encode()) == text


# ---------------------------------------------------------------- queries


@pytest.mark.parametrize(
    ("text", "query", "is_found"),
    [
        ("The Message", "message", True),
        ("The Message", "MESSAGE the", True),
        ("the message", "mess", False),
        ("the message", "mess*", True),
        ("the message", "*age", False),
        ("the message", "mess**", True),
        ("the message", "message missing", False),
        ("new york city", '"york city"', True),
        ("new york city", '"new city"', False),
        ("new york city", '"new yo"*', True),
        ("new york city", '"ork city"', False),
        ("new york city", "\u201cnew york\u201d", True),
        ("pi is 3.14", "3.14", True),
        ("3 apples and 14 pears", "3.14", False),
        ("i don't", "don't", True),
        ("今天去学校看书", "学校", True),
        ("今天去学校看书", "学", True),
        ("今天去学校看书", "看书 学校", True),
        ("今天去学校看书", "学看", False),
        ("大学 校长", "学校", False),
        ("学生 校门 学校", "学校*", True),
        ("東京タワーへ", "タワー", True),
        ("학교에서", "학교", True),
        ("ไปโรงเรียน", "โรงเรียน", True),
        ("nice 👍🏽", "👍", True),
        ("买iphone手机", "iphone手机", True),
        ("买iphone手机", "iphone", True),
        ("x", 'x OR "y"', False),
        ("x", "x NOT y", False),
        ("x", "x -- & ' ; *", True),
        ("NEAR(a b)", "near(a", True),
    ],
)
def test_queries_find_what_the_table_says(text: str, query: str, *, is_found: bool):
    """Words, phrases, beginnings; whatever else a query has is no syntax."""
    assert has(text, query) is is_found


@pytest.mark.parametrize("query", ["", "   ", "*", "-- !", '""', '"', 'a "b', "a" * (QUERY_CHARS_MAX + 1)])
def test_queries_that_ask_for_nothing_are_refused(query: str):
    """Outcomes of a caller's mistake have a clear text."""
    with pytest.raises(BadRequest, match="quer"):
        parse(query)


def test_a_query_is_parsed_into_strings_and_terms():
    """Terms that narrow down most come first; those of open words last."""
    assert parse('say* "two words" 世界人 学') == Query(
        (" say", " two words ", "世界人", "学"),
        (("words", False), ("two", False), ("世界", False), ("界人", False), ("say", True), ("学", True)),
    )


def test_terms_of_queries_are_bounded():
    """A long query is narrowed down by some of its terms and checked in full."""
    query = parse("".join(chr(0x4E00 + i) for i in range(100)))
    assert len(query.terms) == QUERY_TERMS_MAX


def test_long_words_have_the_term_of_their_beginning():
    """In texts and queries alike; then it is whole."""
    word = "x" * WORD_CHARS_MAX
    assert terms(fold(word + "y")) == [word]
    assert parse(word + "y*").terms == ((word, False),)
    assert parse(word[1:] + "*").terms == ((word[1:], True),)
    assert not has(word + "y", word)


@settings(max_examples=100, deadline=None)
@given(TEXTS, CLAUSES)
@example("世 a", [("世 a", True, False)])
@example("a世界", [("a世", False, True)])
def test_a_text_matches_as_if_words_were_compared(text: str, clauses: list[tuple[str, bool, bool]]):
    """Twin: lists of words instead of one string."""
    query = written(clauses)
    parts = [(stem if is_quoted else "".join(stem.split()), is_open) for stem, is_quoted, is_open in clauses]
    if not any(fold(part) for part, _ in parts):
        with pytest.raises(BadRequest):
            parse(query)
        return
    assert has(text, query) == all(twin(text, part, is_open=is_open) for part, is_open in parts)


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.data())
def test_what_matches_has_the_querys_terms(text: str, data: st.DataObject):
    """An index may look for the terms alone: parts of the text itself are always found by them."""
    begin = data.draw(st.integers(0, len(text)))
    part = text[begin : data.draw(st.integers(begin, len(text)))].replace('"', "")
    try:
        query = parse(f'"{part}"*')
    except BadRequest:
        return
    if matches(fold(text), query):
        found = terms(fold(text))
        for term, is_open in query.terms:
            assert any(each.startswith(term) if is_open else each == term for each in found)


def test_terms_are_each_named_once_without_spaces():
    """A run's last character has a term of its own."""
    assert terms(fold("a b a 世界人 世界")) == ["a", "b", "世界", "界人", "人", "界"]
    assert terms("") == []
