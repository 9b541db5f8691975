"""Configuration: sources, precedence, and every error at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import pytest
from msgspec import Meta

from base.config import Section, field_docs, load
from base.errors import ConfigError


class Inner(Section, frozen=True, kw_only=True):
    low: Annotated[int, Meta(ge=1, description="The low bound.")] = 1
    high: int = 10
    names: tuple[str, ...] = ()
    is_on: bool = False

    def problems(self) -> Iterable[str]:
        if self.low > self.high:
            yield "low is above high"


class Root(Section, frozen=True, kw_only=True):
    inner: Inner = Inner()
    title: str = "x"


class Needy(Section, frozen=True, kw_only=True):
    must: int


def written(folder: Path, text: str) -> Path:
    file = folder / "config.toml"
    file.write_text(text)
    return file


def errors_of(kind: type[Section], **sources: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(kind, **{"env": {}, **sources})  # type: ignore[arg-type]
    return caught.value.errors


def test_defaults_stand_when_nothing_is_said() -> None:
    """No file, no environment, no flags."""
    assert load(Root, env={}) == Root()


def test_the_file_yields_to_the_environment_and_that_to_flags(tmp_path: Path) -> None:
    """Each source overrides the one before, field by field."""
    file = written(tmp_path, "title = 'file'\n[inner]\nlow = 2\nhigh = 20\n")
    env = {"ROADSTEAD_INNER__LOW": "3", "ROADSTEAD_INNER__HIGH": "30", "ROADSTEAD_DATA": "ignored", "HOME": "/"}
    built = load(Root, file=file, env=env, flags=["inner.high=40", "inner.is_on=true", 'inner.names=["a","b"]'])
    assert built == Root(inner=Inner(low=3, high=40, is_on=True, names=("a", "b")), title="file")


def test_every_error_is_reported_at_once_with_its_source(tmp_path: Path) -> None:
    """A bad type, a bound, an unknown key and a malformed flag in one go."""
    file = written(tmp_path, "[inner]\nlow = 0\nhihg = 3\n[other]\na = 1\n")
    env = {"ROADSTEAD_INNER__HIGH": "many"}
    found = errors_of(Root, file=file, env=env, flags=["title"])
    text = "\n".join(found)
    assert len(found) == 5
    assert "inner.hihg; did you mean inner.high?" in text
    assert f"{file}: inner.low: Expected `int` >= 1" in text
    assert "environment ROADSTEAD_INNER__HIGH: inner.high: Expected `int`" in text
    assert "unknown key other" in text
    assert "--set title: write it as section.field=value" in text


def test_rules_between_fields_are_checked(tmp_path: Path) -> None:
    """problems() of a section is asked once its fields are good."""
    assert errors_of(Root, file=written(tmp_path, "[inner]\nlow = 30\n")) == ["inner: low is above high"]


def test_bad_toml_names_file_and_line(tmp_path: Path) -> None:
    """The parser's line goes into the message."""
    (error,) = errors_of(Root, file=written(tmp_path, "title = \n"))
    assert "bad TOML" in error
    assert "line 1" in error


def test_a_missing_file_and_bytes_that_are_no_text_are_errors(tmp_path: Path) -> None:
    """Neither is silently ignored."""
    assert "cannot be read" in errors_of(Root, file=tmp_path / "absent.toml")[0]
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in errors_of(Root, file=tmp_path / "bytes.toml")[0]


def test_a_section_given_as_a_value_is_refused(tmp_path: Path) -> None:
    """Inner = 3 is not a table."""
    assert "inner is a section" in errors_of(Root, file=written(tmp_path, "inner = 3\n"))[0]


def test_a_required_field_must_be_set() -> None:
    """A field without default names itself."""
    assert errors_of(Needy) == ["must is required and set nowhere"]
    assert load(Needy, env={}, flags=["must=1"]).must == 1


def test_broken_json_in_a_flag_is_taken_as_text() -> None:
    """Text that only starts like a list stays text, and then fails its type."""
    assert "inner.names" in errors_of(Root, flags=["inner.names=[a"])[0]


def test_the_reference_lists_every_leaf_with_default_and_meaning() -> None:
    """field_docs feeds the generated page."""
    docs = {doc.path: doc for doc in field_docs(Root)}
    assert list(docs) == ["inner.low", "inner.high", "inner.names", "inner.is_on", "title"]
    assert (docs["inner.low"].default, docs["inner.low"].meaning) == ("1", "The low bound.")
    assert docs["inner.names"].default == "[]"
    assert next(iter(field_docs(Needy))).default == "(required)"


# ---------------------------------------------------------------- arrays of tables


class Many(Section, frozen=True, kw_only=True):
    inners: Annotated[tuple[Inner, ...], Meta(description="Any number.")] = ()
    names: tuple[str, ...] = ()


def test_an_array_of_tables_is_read_and_replaced_as_a_whole(tmp_path: Path) -> None:
    """Each table is a section with its defaults; a flag or the environment gives all of them, as JSON."""
    file = written(tmp_path, "[[inners]]\nlow = 2\n[[inners]]\nhigh = 30\n")
    assert load(Many, file=file, env={}).inners == (Inner(low=2), Inner(high=30))
    assert load(Many, file=file, env={}, flags=['inners=[{"low": 3}]']).inners == (Inner(low=3),)
    assert load(Many, file=file, env={}, flags=["inners=[]"]).inners == ()


def test_each_table_of_an_array_is_checked_as_a_section_is(tmp_path: Path) -> None:
    """Types, unknown keys and rules between fields, each with its place in the array."""
    file = written(tmp_path, "[[inners]]\nlow = 0\n[[inners]]\nlwo = 1\n[[inners]]\nlow = 30\n")
    assert errors_of(Many, file=file) == [
        f"{file}: inners[0].low: Expected `int` >= 1",
        f"{file}: unknown key inners[1].lwo; did you mean inners[1].low?",
        "inners[2]: low is above high",
    ]


def test_what_is_no_array_of_tables_is_refused(tmp_path: Path) -> None:
    """One table, or a list of something else."""
    assert errors_of(Many, file=written(tmp_path, "inners = 3\n"))[0].endswith("write [[inners]]")
    assert "inners[0] is a section" in errors_of(Many, file=written(tmp_path, "inners = [3]\n"))[0]


def test_the_reference_lists_the_fields_of_tables() -> None:
    """Under the array's name, so that each has its own line."""
    docs = {doc.path: doc for doc in field_docs(Many)}
    assert list(docs) == ["inners", "inners[].low", "inners[].high", "inners[].names", "inners[].is_on", "names"]
    assert (docs["inners"].type_name, docs["inners"].default, docs["inners"].meaning) == ("tables", "[]", "Any number.")
