"""Configuration: frozen structs, filled from a TOML file, then the environment, then flags; all errors at once.

A section is a frozen `msgspec.Struct` whose fields are `Annotated[type, Meta(description=...)]` with a default; the
description says meaning, unit and what raising the value does, and the reference page is made from it. A struct may
have `problems(self) -> Iterable[str]` for rules between fields. A field of the type `tuple[ASection, ...]` is an array
of tables, `[[section.field]]`; a later source replaces it as a whole.

Sources, the later wins:
    1. the struct's defaults
    2. a TOML file, one table a section
    3. environment variables `ROADSTEAD_SECTION__FIELD` (two underscores between the levels)
    4. flags `--set section.field=value`

Unknown keys are errors, with the nearest known name. A list in the environment or a flag is written as JSON.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeGuard, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from base.errors import ConfigError

__all__ = ["ENV_PREFIX", "FieldDoc", "Section", "field_docs", "load"]

ENV_PREFIX = "ROADSTEAD_"


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every configuration struct: immutable, keyword-only, strict about names."""

    def problems(self) -> Iterable[str]:
        """Yield what is wrong between fields, one clear line each."""
        return ()


S = TypeVar("S", bound=Section)


class FieldDoc(msgspec.Struct, frozen=True):
    """One line of the generated reference: dotted path, type, default as text, meaning."""

    path: str
    type_name: str
    default: str
    meaning: str


def load(kind: type[S], *, file: Path | None = None, env: Mapping[str, str], flags: Iterable[str] = ()) -> S:
    """Build the configuration.

    Args:
        kind: the root struct.
        file: a TOML file, or None.
        env: the environment; only names like `ROADSTEAD_A__B` are read.
        flags: `path.to.field=value` items.

    Raises:
        ConfigError: with every fault of every source, each naming where it stands.
    """
    errors: list[str] = []
    tree: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for where, path, value in _sources(file, env, flags, errors):
        _plant(tree, path, value)
        origin[".".join(path)] = where
    built = _build(kind, tree, "", origin, errors)
    if errors or built is None:
        raise ConfigError(errors)
    return built


def field_docs(kind: type[Section], prefix: str = "") -> Iterator[FieldDoc]:
    """Walk the struct and yield a line for each leaf, in order of definition."""
    hints = get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        path = f"{prefix}{field.encode_name}"
        bare, meaning = _unwrap(hints[field.name])
        if _is_section(bare):
            yield from field_docs(bare, f"{path}.")
            continue
        if (element := _section_of_tables(bare)) is not None:
            yield FieldDoc(path, "tables", "[]", meaning)
            yield from field_docs(element, f"{path}[].")
            continue
        if field.default is not msgspec.NODEFAULT:
            default = json.dumps(msgspec.to_builtins(field.default))
        elif field.default_factory is not msgspec.NODEFAULT:
            default = json.dumps(msgspec.to_builtins(field.default_factory()))
        else:
            default = "(required)"
        yield FieldDoc(path, getattr(bare, "__name__", str(bare)), default, meaning)


def _sources(
    file: Path | None, env: Mapping[str, str], flags: Iterable[str], errors: list[str]
) -> Iterator[tuple[str, list[str], Any]]:
    if file is not None:
        yield from _file_items(file, errors)
    for name in sorted(env):
        if name.startswith(ENV_PREFIX) and "__" in name:
            path = name.removeprefix(ENV_PREFIX).lower().split("__")
            yield f"environment {name}", path, _text_value(env[name])
    for flag in flags:
        path_text, equals, text = flag.partition("=")
        if not equals or not path_text:
            errors.append(f"--set {flag}: write it as section.field=value")
            continue
        yield f"--set {path_text}", path_text.split("."), _text_value(text)


def _file_items(file: Path, errors: list[str]) -> Iterator[tuple[str, list[str], Any]]:
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        errors.append(f"{file}: cannot be read: {error.strerror}")
        return
    except UnicodeDecodeError:
        errors.append(f"{file}: is not UTF-8 text")
        return
    except tomllib.TOMLDecodeError as error:
        errors.append(f"{file}: bad TOML: {error}")
        return

    def walk(table: dict[str, Any], path: list[str]) -> Iterator[tuple[str, list[str], Any]]:
        for key, value in table.items():
            here = [*path, key]
            if isinstance(value, dict) and value:
                yield from walk(value, here)
            else:
                yield str(file), here, value

    yield from walk(document, [])


def _text_value(text: str) -> Any:
    """A value from the environment or a flag: JSON where it is a list or table, plain text otherwise."""
    if text[:1] in "[{" and text:
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _plant(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        below = tree.setdefault(key, {})
        if not isinstance(below, dict):
            below = tree[key] = {}
        tree = below
    tree[path[-1]] = value


def _build(kind: type[S], tree: Any, prefix: str, origin: dict[str, str], errors: list[str]) -> S | None:
    if not isinstance(tree, dict):
        errors.append(f"{_where(origin, prefix)}: {prefix.rstrip('.')} is a section, not a value")
        return None
    before = len(errors)
    hints = get_type_hints(kind, include_extras=True)
    known = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for name in tree:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known here: {', '.join(sorted(known))}"
            errors.append(f"{_where(origin, prefix + name)}: unknown key {prefix}{name}{hint}")
    values: dict[str, Any] = {}
    for name, field in known.items():
        bare, _ = _unwrap(hints[field.name])
        if _is_section(bare):
            values[field.name] = _build(bare, tree.get(name, {}), f"{prefix}{name}.", origin, errors)
        elif name in tree and (element := _section_of_tables(bare)) is not None:
            values[field.name] = _build_tables(element, tree[name], f"{prefix}{name}", origin, errors)
        elif name in tree:
            try:
                # strict=False reads "8080" and "true" where a number or boolean is meant, as the environment needs.
                values[field.name] = msgspec.convert(tree[name], hints[field.name], strict=False)
            except msgspec.ValidationError as error:
                errors.append(f"{_where(origin, prefix + name)}: {prefix}{name}: {error}")
        elif field.required:
            errors.append(f"{prefix}{name} is required and set nowhere")
    if len(errors) > before:
        return None
    built = kind(**values)
    errors.extend(f"{prefix.rstrip('.') or 'configuration'}: {problem}" for problem in built.problems())
    return built


def _build_tables(
    kind: type[Section], tables: Any, path: str, origin: dict[str, str], errors: list[str]
) -> tuple[Section | None, ...]:
    if not isinstance(tables, list):
        errors.append(f"{_where(origin, path)}: {path} is an array of tables: write [[{path}]]")
        return ()
    return tuple(_build(kind, table, f"{path}[{place}].", origin, errors) for place, table in enumerate(tables))


def _where(origin: dict[str, str], path: str) -> str:
    path = path.partition("[")[0]  # an array of tables comes from one source
    for known, where in origin.items():
        if known == path or known.startswith(f"{path}.") or path.startswith(f"{known}."):
            return where
    return "configuration"


def _is_section(bare: Any) -> TypeGuard[type[Section]]:
    return isinstance(bare, type) and issubclass(bare, Section)


def _section_of_tables(bare: Any) -> type[Section] | None:
    """Return S of `tuple[S, ...]`, None if that is not what it is."""
    element = next(iter(get_args(bare)), None) if get_origin(bare) is tuple else None
    return element if _is_section(element) else None


def _unwrap(hint: Any) -> tuple[Any, str]:
    """Split `Annotated[T, Meta(description=...)]` into T and the description."""
    if get_origin(hint) is Annotated:
        bare, *extras = get_args(hint)
        meaning = next((e.description for e in extras if isinstance(e, msgspec.Meta) and e.description), "")
        return bare, meaning
    return hint, ""
