"""The house rules that no linter knows: sizes, headers, dead files, links, names that must not leak in."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("base", "scheduler", "status", "access", "im", "roadstead", "bench")
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
BLOB_BYTES_MAX = 400_000
ENTRY_POINTS = {"__main__", "__init__"}
LOADED_BY_NAME = ("roadstead.cli.", "bench.")  # see the command group and the list of benchmarks


def tracked(*suffixes: str) -> list[Path]:
    """Files that git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    files = [ROOT / name for name in listed if not suffixes or name.endswith(suffixes)]
    return [file for file in files if file.exists()]


def sources() -> list[Path]:
    return [file for file in tracked(".py") if file.relative_to(ROOT).parts[0] in PACKAGES]


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("file", tracked(".py"), ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_stay_readable(file: Path) -> None:
    """At most 600 lines a file and 70 a function: what is longer parts where responsibilities part."""
    text = file.read_text()
    assert len(text.splitlines()) <= FILE_LINES_MAX
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(ROOT)))
def test_every_module_says_what_it_is(file: Path) -> None:
    """A header for each; a core that keeps state lists its invariants and can check them."""
    tree = ast.parse(file.read_text())
    header = ast.get_docstring(tree) or ""
    assert header, "a module docstring is missing"
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    methods = {item.name for node in classes for item in node.body if isinstance(item, ast.FunctionDef)}
    if "core" in file.parts and "check_invariants" in methods:
        assert "Invariants:" in header


def test_no_module_is_dead() -> None:
    """Each module is imported by another one, is an entry point, or is loaded by name."""
    names = {module_name(file) for file in sources()}
    imported: set[str] = set()
    for file in [*sources(), *tracked(".py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module)
                imported.update(f"{node.module}.{alias.name}" for alias in node.names)
    dead = {
        name
        for name in names - imported
        if name.rsplit(".", 1)[-1] not in ENTRY_POINTS
        and not name.startswith(LOADED_BY_NAME)
        and '__name__ == "__main__"' not in (ROOT / (name.replace(".", "/") + ".py")).read_text()
    }
    assert not dead


def test_architecture_decisions_are_numbered_without_a_gap() -> None:
    """docs/adr/0001-..., 0002-..., each in the form status, context, decision, consequences."""
    files = sorted((ROOT / "docs/adr").glob("[0-9]*.md"))
    assert [int(file.name[:4]) for file in files] == list(range(1, len(files) + 1))
    for file in files:
        text = file.read_text()
        for heading in ("## Status", "## Context", "## Decision", "## Consequences"):
            assert heading in text, f"{file.name} lacks {heading}"


@pytest.mark.parametrize("file", tracked(".md"), ids=lambda file: str(file.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(file: Path) -> None:
    """Every relative link names a file that exists."""
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", file.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (file.parent / target).exists(), f"{target} does not exist"


def test_nothing_large_and_no_other_place_is_committed() -> None:
    """No blobs, and no path of one machine in what is committed."""
    for file in tracked():
        assert file.stat().st_size <= BLOB_BYTES_MAX, f"{file} is large"
    home = re.compile(r"(/home/\w+|/root/|/Users/\w+|/work/\w+)")
    for file in tracked(".py", ".md", ".toml", ".yaml", ".cfg", "Makefile"):
        if file != Path(__file__):
            assert not home.search(file.read_text()), f"{file} names a path of one machine"
