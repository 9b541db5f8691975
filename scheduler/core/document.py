"""What an operator's document says, as values that know their lines, or everything that is wrong with it.

A document is one YAML 1.2 text, or JSON, which is a subset. It becomes a tree whose nodes know their line and their
path (`steps[1].hold`); `scheduler.core.fields` turns them into values. Nobody stops at the first fault: an operator
gets them all at once, each with its line.

YAML is read strictly. Its versions do not agree on what `on`, `1:30`, `0755` or `2024-01-01` are, and tools of both
are in use: such words must be quoted. So must text that looks like a number: a version `2.40` would be 2.4 to most.
Aliases, tags beyond the core ones, keys that are not text and duplicate keys are refused. Of JSON it does not read
pairs of escapes for one character: YAML has one escape for it, or the character itself.

Bounds: SIZE_MAX bytes, DEPTH_MAX collections in each other, FAULTS_MAX faults. Reading is linear in the size, and never
recursive while the text is parsed.

Source: YAML 1.2.2, section 10.3 (core schema); YAML 1.1 types (bool, int, float, timestamp); RFC 8259.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, TypeAlias

import yaml
from yaml.resolver import Resolver

__all__ = ["FAULTS_MAX", "Fault", "Faults", "Items", "Mapping", "Node", "Scalar", "read_tree", "render_faults", "shown"]

SIZE_MAX: Final = 65_536
DEPTH_MAX: Final = 20
FAULTS_MAX: Final = 100

# Not `SafeLoader` alone: for 60 kB it takes some 210 ms, the C library 50 ms.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Printable, without the line breaks that only YAML 1.1 knows and the marks that reorder text on the screen.
_REFUSED_CHARACTER = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]|[\u2028-\u202e\u2066-\u2069]"
)
_LINE_BREAK = re.compile("\r\n|\r|\n")
# Numbers as JSON writes them, and with "+". Bounded, so that no exponent becomes a million digits.
_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})(\.[0-9]{1,18})?([eE][-+]?[0-9]{1,2})?")
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_TRUTHS = frozenset({"true", "True", "TRUE", "false", "False", "FALSE"})
# Read otherwise by YAML 1.1's specification or by YAML 1.2's; the rest of YAML 1.1 is known to the library.
_DISPUTED = re.compile(r"[yYnN]|[-+]?0[ox][0-9a-fA-F]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_YAML_1_1 = Resolver()
_TAG = "tag:yaml.org,2002:"
_TEXT_TAG = _TAG + "str"
_SCALAR_TAGS: Final[dict[str, frozenset[str]]] = {
    _TAG + "null": frozenset({"null"}),
    _TAG + "bool": frozenset({"bool"}),
    _TAG + "int": frozenset({"number"}),
    _TAG + "float": frozenset({"number"}),
}


# ---------------------------------------------------------------- faults


class Fault(NamedTuple):
    """Something wrong in a document. `line` counts from 1."""

    line: int
    message: str


class Faults:
    """Collects what is wrong with one document: at most FAULTS_MAX faults, and whether there are more."""

    __slots__ = ("_found", "_more")

    def __init__(self) -> None:
        self._found: dict[Fault, None] = {}
        self._more = 0

    def __len__(self) -> int:
        return len(self._found) + self._more

    def add(self, line: int, message: str) -> None:
        """Add one; the same one twice counts once."""
        if len(self._found) < FAULTS_MAX:
            self._found[Fault(line, message)] = None
        else:
            self._more = 1

    def listed(self) -> tuple[Fault, ...]:
        """Return the faults by line, those of one line as they were found. The last may say that there are more."""
        listed = sorted(self._found, key=lambda fault: fault.line)
        if self._more:
            listed.append(Fault(listed[-1].line, f"and more: only {FAULTS_MAX} faults are listed"))
        return tuple(listed)


def render_faults(faults: Iterable[Fault], source: str = "") -> str:
    """Return one line for each fault, `source:line: message` as compilers write it, or `line N: message`."""
    if source:
        return "\n".join(f"{source}:{fault.line}: {fault.message}" for fault in faults)
    return "\n".join(f"line {fault.line}: {fault.message}" for fault in faults)


def shown(value: str) -> str:
    """Return the value in quotes for a message, cut if it is long."""
    cut = value if len(value) <= 40 else value[:39] + "…"
    return '"' + cut.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r") + '"'


# ---------------------------------------------------------------- the tree


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value as it stands in the text; a reader decides what it is worth.

    `unclear`: YAML readers do not agree on it. `refused`: its fault is known already.
    """

    line: int
    path: str
    kind: Literal["null", "bool", "number", "text", "unclear", "refused"]
    text: str


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    line: int
    path: str
    nodes: list[Node] = field(default_factory=list)


class Entry(NamedTuple):
    """A value in a mapping, and the line of its key."""

    line: int
    node: Node


@dataclass(frozen=True, slots=True)
class Mapping:
    """Keys and values, in the order of the text."""

    line: int
    path: str
    entries: dict[str, Entry] = field(default_factory=dict)


Node: TypeAlias = Scalar | Items | Mapping


class _Open:
    """A collection that is being read, and in a mapping the key whose value comes next."""

    __slots__ = ("is_value_next", "key", "key_line", "node")

    def __init__(self, node: Items | Mapping) -> None:
        self.node = node
        self.key: str | None = None
        """None while its key is still to come, and for a key that was refused: the value is dropped then."""
        self.key_line = 0
        self.is_value_next = False

    def path_inside(self) -> str:
        if isinstance(self.node, Items):
            return f"{self.node.path}[{len(self.node.nodes)}]"
        key = (self.key or "?")[:40]
        return f"{self.node.path}.{key}" if self.node.path else key


class _Builder:
    """Makes the tree from the parser's events."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.root: Node | None = None
        self._open: list[_Open] = []

    def take(self, event: yaml.Event, line: int) -> bool:
        """Take the next event; return whether to go on."""
        path = self._open[-1].path_inside() if self._open else ""
        match event:
            case yaml.DocumentStartEvent() if self.root is not None:
                self.faults.add(line, "a second document begins here; one text is one document")
                return False
            case yaml.AliasEvent():
                self.faults.add(line, f"*{event.anchor}: aliases are not allowed; write the value out")
                self._place(Scalar(line, path, "refused", ""))
            case yaml.ScalarEvent():
                self._place(self._scalar(event, line, path))
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                if len(self._open) >= DEPTH_MAX:
                    self.faults.add(line, f"more than {DEPTH_MAX} levels")
                    return False
                is_list = isinstance(event, yaml.SequenceStartEvent)
                if event.tag not in {None, _TAG + ("seq" if is_list else "map")}:
                    self._refuse_tag(event.tag, line)
                self._open.append(_Open(Items(line, path) if is_list else Mapping(line, path)))
            case yaml.CollectionEndEvent():
                self._place(self._open.pop().node)
            case _:
                pass  # where the stream and the document begin and end
        return True

    def _scalar(self, event: yaml.ScalarEvent, line: int, path: str) -> Scalar:
        refused = _REFUSED_CHARACTER.search(event.value)
        if refused:  # by an escape: the text itself has none
            self.faults.add(line, f"a value has the character U+{ord(refused[0]):04X}, which is not allowed")
            return Scalar(line, path, "refused", "")
        kind = _kind(event.value) if event.implicit[0] or event.tag in _SCALAR_TAGS else "text"
        if event.tag not in {None, _TEXT_TAG} and kind not in _SCALAR_TAGS.get(event.tag, ()):
            self._refuse_tag(event.tag, line)
            return Scalar(line, path, "refused", "")
        return Scalar(line, path, kind, event.value)

    def _refuse_tag(self, tag: str, line: int) -> None:
        self.faults.add(line, f"the tag {shown(tag.replace(_TAG, '!!'))} is not allowed here")

    def _place(self, node: Node) -> None:
        """Put the node where it belongs: into the innermost open collection."""
        if not self._open:
            self.root = node
            return
        within = self._open[-1]
        if isinstance(within.node, Items):
            within.node.nodes.append(node)
        elif within.is_value_next:
            within.is_value_next = False
            if within.key is not None:
                within.node.entries[within.key] = Entry(within.key_line, node)
                within.key = None
        else:
            within.is_value_next = True
            within.key, within.key_line = self._key(node, within.node), node.line

    def _key(self, node: Node, mapping: Mapping) -> str | None:
        if isinstance(node, Scalar) and node.kind == "refused":
            return None
        if not isinstance(node, Scalar) or node.kind != "text":
            what = f"{shown(node.text)} is not" if isinstance(node, Scalar) else "a collection is not"
            self.faults.add(node.line, f"a key must be text: {what}; quote it if it is meant")
            return None
        if node.text in mapping.entries:
            first = mapping.entries[node.text].line
            self.faults.add(node.line, f"{shown(node.text)} is there already, in line {first}")
            return None
        return node.text


def _kind(value: str) -> Literal["null", "bool", "number", "text", "unclear"]:
    """Return what a plain scalar is to readers of YAML 1.2, or `unclear` if those of YAML 1.1 see something else."""
    if value in _NULLS:
        return "null"
    if value in _TRUTHS:
        return "bool"
    if _NUMBER.fullmatch(value):
        return "number"
    is_text = _YAML_1_1.resolve(yaml.ScalarNode, value, (True, False)) == _TEXT_TAG  # type: ignore[no-untyped-call]
    return "text" if is_text and not _DISPUTED.fullmatch(value) else "unclear"


def read_tree(source: str | bytes, faults: Faults) -> Node | None:
    """Return the document's tree, or None if there is none; what is wrong so far is in `faults`.

    A tree comes with faults if the rest of it can be read; whoever reads it must look at `faults` in the end.
    """
    checked = _checked(source, faults)
    if checked is None:
        return None
    builder = _Builder(faults)
    last_line = len(_LINE_BREAK.findall(checked.rstrip("\r\n"))) + 1
    line = 1
    try:
        for event in yaml.parse(checked, Loader=LOADER):
            assert event.start_mark is not None, "what is parsed from text has marks"
            line = min(event.start_mark.line + 1, last_line)
            if not builder.take(event, line):
                return None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        faults.add(min(mark.line + 1, last_line) if mark else line, f"this is not YAML: {error.problem}")
        return None
    except (ValueError, OverflowError):  # an escape of no character, as the parser without the C library says it
        faults.add(line, "this is not YAML: an escape stands for no character")
        return None
    if builder.root is None:
        faults.add(1, "the document is empty")
    return builder.root


def _checked(source: str | bytes, faults: Faults) -> str | None:
    """Return the text if it is one, of a size and of characters that are read."""
    size = len(source) if isinstance(source, bytes) else len(source.encode(errors="surrogatepass"))
    if size > SIZE_MAX:
        faults.add(1, f"the document has {size:,} bytes; at most {SIZE_MAX:,} are read")
        return None
    if isinstance(source, bytes):
        try:
            source = source.decode()
        except UnicodeDecodeError as error:
            faults.add(error.object.count(b"\n", 0, error.start) + 1, "this is not UTF-8")
            return None
    source = source.removeprefix("\ufeff")
    refused = _REFUSED_CHARACTER.search(source)
    if refused:
        line = len(_LINE_BREAK.findall(source, 0, refused.start())) + 1
        faults.add(line, f"the character U+{ord(refused[0]):04X} is not allowed")
        return None
    return source
