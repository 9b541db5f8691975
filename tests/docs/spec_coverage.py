"""Makes the page that says what of the article is there, and which tests and benchmarks show it.

    python -m tests.docs.spec_coverage

It reads `docs/spec-coverage.toml`, which has the rows with their states, and what bears a row's id: tests marked
`@pytest.mark.spec("CC-03")`, test modules with such a mark in `pytestmark`, benchmarks with a constant
`SPEC = ("MI-01",)`. Nothing is imported for that. It writes `docs/spec-coverage.md`.
"""

from __future__ import annotations

import ast
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

import msgspec

__all__ = ["PAGE", "Row", "Section", "Shown", "collected", "faults", "page", "sections", "shown_in"]

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "docs/spec-coverage.toml"
PAGE = ROOT / "docs/spec-coverage.md"
SHOWING = ("tests", "bench")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
ARTICLE = "How to design an IM system with hundreds of millions of messages"

State = Literal["done", "partly", "not done"]


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"as_": "as"}):
    """One thing that the article asks for."""

    id: str
    asks: str
    state: State
    as_: str = ""
    """In which other form it is shown, of one that is done."""
    missing: str = ""
    """What is not there, of any other."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows that belong together."""

    title: str
    rows: list[Row]


class Shown(msgspec.Struct, frozen=True, order=True):
    """Where an id was found: a file of the repository, and the test there; "" is all of the file."""

    file: str
    test: str


def sections() -> list[Section]:
    """Return all rows. Raises `msgspec.ValidationError` if one has no state, or fields that nobody knows."""
    return msgspec.convert(tomllib.loads(ROWS.read_text())["section"], list[Section])


# ---------------------------------------------------------------- what shows a row


def shown_in(file: str, text: str) -> Iterator[tuple[str, Shown]]:
    """Yield (id, where) for each id in one file of tests or benchmarks.

    Raises:
        ValueError: there is a mark where it would not be found, or one that is not made of texts.
    """
    tree = ast.parse(text)
    found = 0
    for node in ast.walk(tree):
        if isinstance(node, DEFINITIONS) and node.name.lower().startswith("test"):
            name, marks = node.name, _marks(node.decorator_list)
        elif isinstance(node, ast.Assign) and node in tree.body and _is_named(node, "pytestmark"):
            name, marks = "", _marks(ast.walk(node.value))
        elif isinstance(node, ast.Assign) and node in tree.body and _is_named(node, "SPEC"):
            yield from ((row, Shown(file, "")) for row in _texts(file, node.value))
            continue
        else:
            continue
        found += len(marks)
        for mark in marks:
            yield from ((row, Shown(file, name)) for argument in mark.args for row in _texts(file, argument))
    if found != sum(_is_mark(node) for node in ast.walk(tree)):
        raise ValueError(f"{file}: a mark of a row stands on a test or in pytestmark, nowhere else")


def _is_named(node: ast.Assign, name: str) -> bool:
    return [ast.unparse(target) for target in node.targets] == [name]


def _is_mark(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and ast.unparse(node) == "pytest.mark.spec"


def _marks(nodes: Iterable[ast.AST]) -> list[ast.Call]:
    return [node for node in nodes if isinstance(node, ast.Call) and _is_mark(node.func)]


def _texts(file: str, node: ast.expr) -> list[str]:
    value = ast.literal_eval(node)
    ids = [value] if isinstance(value, str) else list(value)
    if not all(isinstance(one, str) for one in ids):
        raise ValueError(f"{file}: ids of rows are texts, not {ast.unparse(node)}")
    return ids


@cache
def collected() -> Mapping[str, Sequence[Shown]]:
    """Return what shows each row, by its id."""
    by_row: defaultdict[str, set[Shown]] = defaultdict(set)
    for path in chain.from_iterable(sorted((ROOT / folder).rglob("*.py")) for folder in SHOWING):
        text = path.read_text()
        if "mark.spec" in text or "\nSPEC = " in text:  # to parse them all would take seconds
            for row, shown in shown_in(path.relative_to(ROOT).as_posix(), text):
                by_row[row].add(shown)
    return {row: sorted(found) for row, found in by_row.items()}


# ---------------------------------------------------------------- what is wrong


def faults(all_sections: Sequence[Section], shown: Mapping[str, Sequence[Shown]]) -> list[str]:
    """Return a sentence for each claim that does not hold, and for each mark that claims nothing."""
    rows = [row for section in all_sections for row in section.rows]
    unknown = shown.keys() - {row.id for row in rows}
    wrong = [f"{one}: {shown[one][0].file} bears an id that no row has" for one in sorted(unknown)]
    wrong += [f"{row} is there {count} times" for row, count in Counter(row.id for row in rows).items() if count > 1]
    wrong += list(_gaps(rows))
    for row in rows:
        is_shown = bool(shown.get(row.id))
        if row.state == "not done" and is_shown:
            wrong.append(f"{row.id} is said to be not done, but {shown[row.id][0].file} shows something of it")
        if row.state != "not done" and not is_shown:
            wrong.append(f"{row.id} is said to be {row.state}, but nothing shows it")
        if (row.state == "done") == bool(row.missing):
            wrong.append(f"{row.id} is said to be {row.state}, and what is missing is {row.missing or 'not told'}")
        if row.as_ and row.state != "done":
            wrong.append(f"{row.id} is not done, in whatever form")
    return wrong


def _gaps(rows: Iterable[Row]) -> Iterator[str]:
    """Numbers begin with 1 and have no gaps, so that no row is forgotten without a trace."""
    last: Counter[str] = Counter()
    for row in rows:
        letters, _, number = row.id.partition("-")
        if int(number) not in {last[letters], last[letters] + 1}:
            yield f"{row.id} comes after {letters}-{last[letters]:02}"
        last[letters] = int(number)


# ---------------------------------------------------------------- the page


def page(all_sections: Sequence[Section], shown: Mapping[str, Sequence[Shown]]) -> str:
    """Return the page, Markdown."""
    states = get_args(State)
    lines = [
        "# The article, row by row\n",
        "<!-- Made from spec-coverage.toml and the marks in tests and benchmarks by",
        "`python -m tests.docs.spec_coverage`. -->\n",
        f"Roadstead is built after an article, *{ARTICLE}*.",
        "Every mechanism, alternative and figure of it is a row here, in our words, and has an id, which the tests and",
        "benchmarks bear that show it. *Done*: they show that it does what it shall, and can fail. *Partly*: they show",
        "some of it, and it is said what is missing. *Not done*: nothing is shown.\n",
        f"| | {' | '.join(states)} |",
        "|---|---:|---:|---:|",
    ]
    total: Counter[str] = Counter()
    for section in all_sections:
        counts = Counter(row.state for row in section.rows)
        total += counts
        link = section.title.lower().replace(" ", "-")
        lines.append(f"| [{section.title}](#{link}) | {' | '.join(str(counts[state]) for state in states)} |")
    lines.append(f"| all | {' | '.join(str(total[state]) for state in states)} |")
    for section in all_sections:
        lines += [f"\n## {section.title}\n", "| id | what is asked for | state | shown by |", "|---|---|---|---|"]
        for row in section.rows:
            more = row.as_ or row.missing
            state = f"**{row.state}**" + (f": {more}" if more else "")
            lines.append(f"| {row.id} | {row.asks} | {state} | {_evidence(shown.get(row.id, ()))} |")
    return "\n".join(lines) + "\n"


def _evidence(shown: Iterable[Shown]) -> str:
    by_file: defaultdict[str, list[str]] = defaultdict(list)
    for one in shown:
        by_file[one.file].append(one.test.removeprefix("test_").replace("_", " "))
    cells = []
    for file, names in sorted(by_file.items()):
        link = f"[{file.removeprefix('tests/').removesuffix('.py')}](../{file})"
        cells.append(f"{link}: {', '.join(names)}" if all(names) else link)
    return "<br>".join(cells)


def main() -> None:
    """See the module."""
    PAGE.write_text(page(sections(), collected()))


if __name__ == "__main__":
    main()
