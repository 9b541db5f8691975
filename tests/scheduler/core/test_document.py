"""Documents: against the JSON and YAML libraries as twins, then what is refused, line by line, with either parser."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core import document
from scheduler.core.document import (
    FAULTS_MAX,
    Fault,
    Faults,
    Items,
    Mapping,
    Node,
    Scalar,
    read_tree,
    render_faults,
    shown,
)

C_PARSER = document.LOADER
PARSERS = [pytest.param(C_PARSER, id="libyaml"), pytest.param(yaml.SafeLoader, id="python")]

TEXTS = st.text(
    st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]) | st.sampled_from("\t\n"), max_size=8
)
NUMBERS = st.integers(-(10**17), 10**17) | st.decimals(-1000, 1000, places=3).map(float)
KINDS = {
    "unclear": "on off yes no On OFF y N 1:30 12:30:45 0755 0o755 0xff +0x1f 0b11 1_000 .5 5. .inf -.INF .nan << = "
    "2024-01-01 2024-01-01T10:00:00Z",
    "text": "2.4.0 30s 200/s +15% -0.2% <5.0 none nope 1e999 10.0.0.0/8 one-two",
    "number": "0 -1 +3 2.4 0.995 1e3 1.5E-3 -0 999999999999999999",
    "bool": "true True TRUE false False FALSE",
}
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=8
)


def tree(source: str | bytes) -> Node:
    faults = Faults()
    node = read_tree(source, faults)
    assert not faults, faults.listed()
    assert node is not None
    return node


def faults_of(source: str | bytes) -> tuple[Fault, ...]:
    faults = Faults()
    read_tree(source, faults)
    return faults.listed()


def value_of(node: Node) -> Any:
    """What the node is to a reader who has no schema."""
    if isinstance(node, Items):
        return [value_of(each) for each in node.nodes]
    if isinstance(node, Mapping):
        return {key: value_of(entry.node) for key, entry in node.entries.items()}
    match node.kind:
        case "null":
            return None
        case "bool":
            return node.text.lower() == "true"
        case "number":
            return Decimal(node.text)
        case _:
            assert node.kind == "text"
            return node.text


def exact(value: Any) -> Any:
    """The same value with its numbers as decimals."""
    if isinstance(value, dict):
        return {key: exact(each) for key, each in value.items()}
    if isinstance(value, list):
        return [exact(each) for each in value]
    return Decimal(repr(value)) if isinstance(value, int | float) and not isinstance(value, bool) else value


def scalars(node: Node) -> list[Scalar]:
    if isinstance(node, Scalar):
        return [node]
    nodes = node.nodes if isinstance(node, Items) else [entry.node for entry in node.entries.values()]
    return [scalar for each in nodes for scalar in scalars(each)]


# ---------------------------------------------------------------- what is read


@given(VALUES, st.sampled_from([None, 1]))
@settings(max_examples=50)
def test_every_json_text_means_what_json_says(value: Any, indent: int | None):
    """The whole of RFC 8259, but for characters that nobody sees and pairs of escapes for one character."""
    assert value_of(tree(json.dumps(value, indent=indent, ensure_ascii=False))) == exact(value)


@given(VALUES, st.sampled_from([False, True]))
@settings(max_examples=50)
def test_every_tree_that_yaml_writes_is_read_back(value: Any, is_flow: object):
    """In block and in flow style; what YAML writes bare is clear to us, or said to be unclear."""
    source = yaml.safe_dump(value, default_flow_style=bool(is_flow), allow_unicode=True, sort_keys=False)
    faults = Faults()
    node = read_tree(source, faults)
    if node is not None and not faults and all(each.kind != "unclear" for each in scalars(node)):
        assert value_of(node) == exact(value)
    else:
        assert any(word in source for word in ("y", "Y", "n", "N", "0o", "0x", "inf", "nan", "."))


@given(st.text("0123456789:_-+.eExXobnyoNYufaltrisTZ~ ", min_size=1, max_size=10))
@settings(max_examples=200)
def test_text_without_quotes_is_the_same_text_to_a_yaml_1_1_reader(word: str):
    """Whatever else it could be is not text here."""
    node = read_tree(f"k: {word}", Faults())
    if isinstance(node, Mapping) and isinstance(scalar := node.entries["k"].node, Scalar) and scalar.kind == "text":
        assert yaml.safe_load(f"k: {word}") == {"k": scalar.text}


@pytest.mark.parametrize(
    ("word", "kind"),
    [(word, kind) for kind, words in KINDS.items() for word in words.split()]
    + [(word, "null") for word in ("~", "null", "Null", "NULL", "")],
)
def test_a_bare_word_is_what_all_readers_agree_on(word: str, kind: str):
    """Or it is unclear."""
    assert value_kind(f"[{word}, x]" if word else "[~, x]") == kind
    assert value_kind(f"- {word}") == kind


def value_kind(source: str) -> str:
    node = tree(source)
    assert isinstance(node, Items)
    assert isinstance(node.nodes[0], Scalar)
    return node.nodes[0].kind


@pytest.mark.parametrize("source", ['"on"', "'2.4'", "!!str 2.4", "|-\n  no", ">-\n  1:30", '!!str "x"'])
def test_in_quotes_or_as_a_block_everything_is_text(source: str):
    """And with the tag of text."""
    node = tree(source)
    assert isinstance(node, Scalar)
    assert node.kind == "text"


@pytest.mark.parametrize(
    ("source", "kind"),
    [("!!int 3", "number"), ('!!float "0.5"', "number"), ("!!bool true", "bool"), ("!!null", "null")],
)
def test_core_tags_are_taken_if_the_value_is_such(source: str, kind: str):
    """With quotes too, as YAML has it."""
    node = tree(source)
    assert isinstance(node, Scalar)
    assert node.kind == kind


def test_collections_may_have_their_core_tags():
    """They say nothing new."""
    assert value_of(tree("!!map {a: !!seq [b]}")) == {"a": ["b"]}


@given(st.lists(st.lists(st.sampled_from(["w", "[", "{"]), max_size=4), min_size=1, max_size=6))
@settings(max_examples=30)
def test_every_value_knows_its_line_and_its_path(rows: list[list[str]]):
    """Each word is unique, so that its line is where it stands; the path leads to it."""
    count = iter(range(1_000))

    def fill(kinds: list[str]) -> Any:
        words = [f"w{next(count)}" for _ in kinds]
        return {
            f"k{at}": {"w": word, "[": [word], "{": {"in": word}}[kind]
            for at, (kind, word) in enumerate(zip(kinds, words, strict=True))
        }

    source = json.dumps([fill(row) for row in rows], indent=2)
    lines = source.split("\n")
    root = tree(source)
    for scalar in scalars(root):
        assert f'"{scalar.text}"' in lines[scalar.line - 1]
        at: Any = value_of(root)
        for part in scalar.path.replace("[", ".[").strip(".").split("."):
            at = at[int(part[1:-1])] if part.startswith("[") else at[part]
        assert at == scalar.text


def test_a_mark_of_byte_order_is_no_part_of_the_text():
    """Editors of one system write it."""
    assert value_of(tree("\ufeffa: b")) == value_of(tree(b"\xef\xbb\xbfa: b")) == {"a": "b"}


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(
    ("source", "line", "words"),
    [
        ("", 1, "empty"),
        ("# nothing\n", 1, "empty"),
        ("a: 1\n---\nb: 2\n", 2, "second document"),
        ("a: &x 1\nb: *x\n", 2, "aliases"),
        ("a: [&x [1], *x]", 1, "aliases"),
        ("a: 1\nb: 2\na: 3\n", 3, "already, in line 1"),
        ("a: 1\n2: b\n", 2, "a key must be text"),
        ("on: 1\n", 1, "a key must be text"),
        ("null: 1\n", 1, "a key must be text"),
        ("? [a]\n: b\n", 1, "a key must be text: a collection"),
        ("&k k: 1\n*k : 2\n", 2, "aliases"),
        ("a: 1\nb: !mine 2\n", 2, '"!mine" is not allowed'),
        ("a: !!binary aGk=\n", 1, '"!!binary" is not allowed'),
        ("a: !!int x\n", 1, '"!!int" is not allowed'),
        ('a: !!bool "no"\n', 1, '"!!bool" is not allowed'),
        ("a: ! x\n", 1, '"!" is not allowed'),
        ("a: !!set {x, z}\n", 1, '"!!set" is not allowed'),
        ("a: !!omap [x]\n", 1, '"!!omap" is not allowed'),
        ("a: 1\nb: [\n", 2, "not YAML"),
        ("a: 1\n b: 2\n", 2, "not YAML"),
        ("a: 'x\n", 1, "not YAML"),
        ("a: 1\n\tb: 2\n", 2, "not YAML"),
        ('a: "\\U00110000"\n', 1, "not YAML"),
        ('a: "\\UFFFFFFFF"\n', 1, "not YAML"),
        ("a: x\nb: \x00\n", 2, "U+0000"),
        ("a: x\r\nb: \x1b[1m\n", 2, "U+001B"),
        ("a: x\rb: \x85\n", 2, "U+0085"),
        ("a: \u202e\n", 1, "U+202E"),
        ("a: \u2028\n", 1, "U+2028"),
        ("a: \ufeff\n", 1, "U+FEFF"),
        ("a: \ud800\n", 1, "U+D800"),
        ('a: 1\nb: "\\0"\n', 2, "U+0000"),
        ('a: "\\u202E"\n', 1, "U+202E"),
        ('"\\e": 1\n', 1, "U+001B"),
        (b"a: 1\nb: \xff\n", 2, "UTF-8"),
        ("\n".join("  " * depth + "- " for depth in range(21)), 21, "more than 20 levels"),
        ("x" * 65_537, 1, "65,537 bytes"),
        (b"\xff" * 65_537, 1, "65,537 bytes"),
        ("é" * 32_769, 1, "65,538 bytes"),
    ],
)
def test_what_is_refused_is_named_with_its_line(
    parser: Any, source: str | bytes, line: int, words: str, monkeypatch: pytest.MonkeyPatch
):
    """Once, and the same whichever parser is installed."""
    monkeypatch.setattr(document, "LOADER", parser)
    (fault,) = faults_of(source)
    assert fault.line == line
    assert words in fault.message


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("escape", ["\\ud800", "\\ud83d\\ude00"])
def test_surrogates_by_escapes_are_refused(parser: Any, escape: str, monkeypatch: pytest.MonkeyPatch):
    """The one parser sees no YAML, the other characters that are not allowed."""
    monkeypatch.setattr(document, "LOADER", parser)
    (fault,) = faults_of(f'\na: "{escape}"')
    assert fault.line == 2


def test_faults_do_not_hide_each_other():
    """What stands beside a faulty part is read."""
    source = "a: *x\nb: !mine 1\nc: {d: 1, d: 2}\n? {e: f}\n: [g]\nh: ok\n"
    faults = Faults()
    node = read_tree(source, faults)
    assert [fault.line for fault in faults.listed()] == [1, 2, 3, 4]
    assert isinstance(node, Mapping)
    assert list(node.entries) == ["a", "b", "c", "h"]


@pytest.mark.parametrize(
    "source", ["[" * 65_000, "{" * 65_000, "? " * 32_000, "- " * 32_000, "a: " * 20_000, "'" * 65_001, "&a [*a]"]
)
def test_texts_made_to_cost_much_are_refused(source: str):
    """Each in milliseconds, and without recursion."""
    assert faults_of(source)


@given(
    st.one_of(
        st.text(max_size=60),
        st.text("abk:-?&*!{}[],'\"|>%#\\\n\t \r~<=0", max_size=60),
        st.binary(max_size=40),
    ),
    st.sampled_from([C_PARSER, yaml.SafeLoader]),
)
@settings(max_examples=150)
def test_any_text_gives_a_tree_or_faults_with_lines_that_it_has(source: str | bytes, parser: Any):
    """And no exception."""
    before, document.LOADER = document.LOADER, parser
    try:
        faults = Faults()
        node = read_tree(source, faults)
    finally:
        document.LOADER = before
    assert node is not None or faults
    text = source if isinstance(source, str) else source.decode(errors="replace")
    count = len(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    assert all(1 <= fault.line <= count for fault in faults.listed())


# ---------------------------------------------------------------- faults


def test_faults_are_listed_by_line_and_once():
    """Those of one line stay in the order in which they were found."""
    faults = Faults()
    for line, message in [(3, "c"), (1, "b"), (3, "c"), (1, "a")]:
        faults.add(line, message)
    assert faults.listed() == ((1, "b"), (1, "a"), (3, "c"))
    assert len(faults) == 3


def test_a_list_of_faults_ends_and_says_so():
    """However faulty a text is."""
    faults = Faults()
    for line in range(FAULTS_MAX + 50):
        faults.add(line + 1, "x")
    listed = faults.listed()
    assert len(listed) == len(faults) == FAULTS_MAX + 1
    assert "more" in listed[-1].message


def test_faults_are_written_as_compilers_write_them():
    """So that editors find the line."""
    faults = (Fault(1, "a"), Fault(20, "b"))
    assert render_faults(faults) == "line 1: a\nline 20: b"
    assert render_faults(faults, "x.yaml") == "x.yaml:1: a\nx.yaml:20: b"


def test_a_value_is_shown_on_one_line_and_cut():
    """It may be 64 kB of text."""
    assert shown("a\n\t\rb") == '"a\\n\\t\\rb"'
    assert len(shown("x" * 1_000)) == 42
