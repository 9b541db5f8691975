"""The rollout and policy documents in docs/: examples are good, faults are those that the parsers find."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from base.config import load
from roadstead.config import Config
from scheduler.core import condition_document, document, fields, policy, rollout_document, versions
from scheduler.core.policy import DEFAULT_POLICY, Policy, parse_policy
from scheduler.core.rollout import Rollout
from scheduler.core.rollout_document import parse_rollout, render_faults

DOCS = Path(__file__).parents[2] / "docs"
REFERENCE = DOCS / "reference"
PARSERS = (document, fields, condition_document, versions, rollout_document, policy)
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def blocks(file: Path) -> list[tuple[str, str]]:
    """(language, text) of a page's fenced blocks."""
    return _FENCED.findall(file.read_text())


def documents(first: str) -> list[object]:
    """All YAML blocks in docs/ that begin with that key, named by their page."""
    return [
        pytest.param(text, id=f"{file.relative_to(DOCS)}-{number}")
        for file in sorted(DOCS.rglob("*.md"))
        for number, (language, text) in enumerate(blocks(file))
        if language == "yaml" and text.startswith(f"{first}:")
    ]


@pytest.mark.parametrize("text", documents("rollout"))
def test_a_rollout_in_the_documents_is_good(text: str) -> None:
    """It parses without a fault."""
    parsed = parse_rollout(text)
    assert isinstance(parsed, Rollout), render_faults(parsed)


@pytest.mark.parametrize("text", documents("policy"))
def test_a_policy_in_the_documents_is_good(text: str) -> None:
    """It parses without a fault."""
    parsed = parse_policy(text)
    assert isinstance(parsed, Policy), render_faults(parsed)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(text, id=f"{file.name}-{number}")
        for file in sorted((DOCS / "howto").glob("*.md"))
        for number, (language, text) in enumerate(blocks(file))
        if language == "toml"
    ],
)
def test_settings_in_the_how_tos_are_good(text: str, tmp_path: Path) -> None:
    """They are read as a configuration file without an error."""
    file = tmp_path / "roadstead.toml"
    file.write_text(text)
    assert load(Config, file=file, env={}) != Config()


def test_the_references_begin_with_a_complete_example() -> None:
    """Every field of a rollout, and every strategy of a policy, is in the example of its page."""
    rollout = blocks(REFERENCE / "rollout-document.md")[0][1]
    for name in rollout_fields():
        assert re.search(rf"\b{name}:", rollout), name
    example = blocks(REFERENCE / "policy-document.md")[0][1]
    for strategy in ("canary", "proximity", "least_connections", "sticky"):
        assert strategy in example


def rollout_fields() -> set[str]:
    """The names that the parser of rollouts asks for."""
    asked = re.findall(r'fields\.(?:required|optional)\(\s*"(\w+)"', Path(rollout_document.__file__).read_text())
    assert len(asked) > 20
    return set(asked)


def test_every_field_of_a_rollout_is_explained() -> None:
    """In a table of the reference."""
    page = (REFERENCE / "rollout-document.md").read_text()
    explained = "\n".join(line for line in page.splitlines() if line.startswith("|"))
    for name in rollout_fields():
        assert re.search(rf"`[^`]*\b{name}\b[^`]*`", explained), name


def test_the_built_in_policy_is_the_one_that_is_shown() -> None:
    """The last example of the page is what is in force without a document."""
    shown = [text for language, text in blocks(REFERENCE / "policy-document.md") if language == "yaml"][-1]
    assert parse_policy(shown) == DEFAULT_POLICY


def test_the_faults_of_the_bad_example_are_those_that_are_shown() -> None:
    """Line by line, as the commands print them."""
    found = blocks(REFERENCE / "rollout-document.md")
    place = next(place for place, (_, text) in enumerate(found) if text.startswith("# bad.yaml\n"))
    faults = parse_rollout(found[place][1])
    assert not isinstance(faults, Rollout)
    assert render_faults(faults, "bad.yaml") == found[place + 1][1].rstrip("\n")


@pytest.mark.parametrize("page", ["rollout-document.md", "policy-document.md"])
def test_messages_that_are_documented_exist(page: str) -> None:
    """What a table says that a parser says stands in a parser; `...` is what differs."""
    sources = "".join(Path(str(module.__file__)).read_text() for module in PARSERS)
    sources = re.sub(r'"\s*\n\s*f?"', "", sources)  # strings that go on in the next line
    sources = sources.replace("{', '.join(PICKS)}", ", ".join(policy.PICKS))
    section = (REFERENCE / page).read_text().partition("## What is refused")[2].partition("\n## ")[0]
    messages = [
        message
        for line in section.splitlines()
        if line.startswith("|")
        for message in re.findall(r"`([^`]+)`", line.replace("`when`", ""))
        if " " in message
    ]
    assert len(messages) >= 4
    for message in messages:
        for part in message.split("..."):
            assert part.strip(" ,?") in sources, message


def test_the_limits_that_are_documented_are_those_of_the_code() -> None:
    """Numbers of the reference that the code names."""
    page = (REFERENCE / "rollout-document.md").read_text()
    for limit in (
        document.SIZE_MAX,
        document.DEPTH_MAX,
        document.FAULTS_MAX,
        rollout_document.SEGMENTS_MAX,
        rollout_document.STEPS_MAX,
        rollout_document.CHECKS_MAX,
        rollout_document.TEXT_MAX,
        condition_document.VALUES_MAX,
        condition_document.PARTS_MAX,
    ):
        assert re.search(rf"\b{limit:,}\b", page), limit
