"""The commands that stand in the documents: where each is, and whether the program would take it as it is written."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import click
import msgspec

from bench.__main__ import NAMES
from roadstead.cli.main import _cli

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LANGUAGES = ("", "console", "sh", "bash")
OURS = ("roadstead ", "curl ", "python -m ", "make ")
_FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", flags=re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:roadstead|python -m|make) [^`\n]+)`")
_PLACEHOLDER = re.compile(r"[A-Z]+(=[A-Z]+)?")


class Command(NamedTuple):
    """A command of a page, which stands behind `$` or begins a line. `shown` is what the page shows below it."""

    page: str
    line: int
    text: str
    shown: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def fenced(page: Path) -> list[Command]:
    """Return the commands of a page's blocks, in their order."""
    text, found = page.read_text(), []
    for block in _FENCED.finditer(text):
        if block[2] not in LANGUAGES:
            continue
        number = text.count("\n", 0, block.start(3)) + 1
        body = "\n".join(line.removeprefix(block[1]) for line in block[3].splitlines())
        has_prompts = body.startswith("$ ")
        for offset, command, shown in _parts(body, has_prompts=has_prompts):
            if has_prompts or command.startswith(OURS):
                found.append(Command(str(page.relative_to(ROOT)), number + offset, command, shown))
    return found


def _parts(body: str, *, has_prompts: bool) -> list[tuple[int, str, str]]:
    """(line, command, output): a command goes on in the next line after a backslash."""
    parts: list[tuple[int, str, str]] = []
    goes_on = False
    for number, line in enumerate(body.splitlines()):
        begins = line.startswith("$ ") if has_prompts else True
        if goes_on or begins:
            command = line.removeprefix("$ ") if begins else line
            is_open = command.endswith("\\")
            command = command.removesuffix("\\").strip()
            if goes_on:
                at, before, _ = parts.pop()
                parts.append((at, f"{before} {command}", ""))
            else:
                parts.append((number, command, ""))
            goes_on = is_open
        elif parts:
            at, command, shown = parts.pop()
            parts.append((at, command, f"{shown}{line}\n"))
    return [part for part in parts if part[1]]


def inline(page: Path) -> list[Command]:
    """Return the commands that stand between backticks in a page's sentences and tables."""
    text = page.read_text()
    return [
        Command(str(page.relative_to(ROOT)), text.count("\n", 0, found.start()) + 1, found[1])
        for found in _INLINE.finditer(text)
    ]


# ---------------------------------------------------------------- would it be taken?


def fault_of(command: Command, *, is_whole: bool) -> str:
    """Return what is wrong with a command as it is written, or nothing. `is_whole`: no part of it may be left out."""
    words = shlex.split(command.text, comments=True)
    if words[:1] == ["roadstead"]:
        return _fault_of_ours(words[1:], is_whole=is_whole)
    if words[:1] == ["curl"]:
        return _fault_of_curl(words[1:])
    if words[:2] == ["python", "-m"]:
        return _fault_of_module(words[2:])
    if words[:1] == ["make"]:
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
        unknown = [word for word in words[1:] if "=" not in word and word not in targets]
        return f"no target {unknown[0]}" if unknown else ""
    return "" if command.text.startswith("KEY=") else "it is none of our commands"


def _fault_of_ours(words: list[str], *, is_whole: bool) -> str:
    words = words[: next((place for place, word in enumerate(words) if word in {"<", ">", "|"}), len(words))]
    command: click.Command = _cli
    parent = None
    try:
        while True:
            context = click.Context(command, parent=parent, info_name=command.name)
            given, rest, _ = command.make_parser(context).parse_args(list(words))
            _check_values(command, context, given, is_whole=is_whole)
            if not isinstance(command, click.Group) or not rest:
                break
            name, *words = rest
            below = command.get_command(context, name)
            if below is None:
                return f"there is no `{context.command_path} {name}`"
            command, parent = below, context
    except click.BadOptionUsage as error:  # its value is missing
        return error.format_message() if is_whole else ""
    except click.ClickException as error:
        return error.format_message()
    is_group_alone = isinstance(command, click.Group) and not command.invoke_without_command
    return f"`{context.command_path}` needs a command" if is_whole and is_group_alone else ""


def _check_values(command: click.Command, context: click.Context, given: dict[str, object], *, is_whole: bool) -> None:
    """Raise click.ClickException if a value cannot be one, or one is missing. Files need not be there."""
    for param in command.get_params(context):
        value = given.get(param.name or "")
        if value in (None, (), []):
            if is_whole and param.required:
                raise click.MissingParameter(ctx=context, param=param)
            continue
        is_placeholder = isinstance(value, str) and _PLACEHOLDER.fullmatch(value)
        if not isinstance(param.type, click.Path) and not (is_placeholder and not is_whole):
            param.type_cast_value(context, value)


def _fault_of_curl(words: list[str]) -> str:
    """An URL whose path is in the OpenAPI document, with the method that curl would use."""
    urls = [word for word in words if re.match(r"https?://", word)]
    if len(urls) != 1:
        return "it has not one URL"
    paths = msgspec.json.decode((DOCS / "reference/openapi.json").read_bytes())["paths"]
    asked = urlsplit(urls[0]).path.split("/")
    method = words[words.index("-X") + 1].lower() if "-X" in words else "post" if "-d" in words else "get"
    for path, methods in paths.items():
        parts = path.split("/")
        if len(parts) == len(asked) and all(a == b or b[:1] == "{" for a, b in zip(asked, parts, strict=True)):
            return "" if method in methods else f"{path} has no {method}"
    return f"no path is {urls[0]}"


def _fault_of_module(words: list[str]) -> str:
    module, *arguments = words
    if importlib.util.find_spec(module) is None:
        return f"there is no module {module}"
    if module == "bench" and arguments and not arguments[0].startswith("-"):
        name = arguments[0]
        return "" if name in {*NAMES, "all"} or _PLACEHOLDER.fullmatch(name) else f"there is no benchmark {name}"
    return ""
