"""One log of all processes: each line with the name of the process in front, on the terminal and in files.

    logs/NAME.log   what one process wrote, as it wrote it
    logs/all.log    what all wrote, in the order of arrival, with names

Lines of JSON stay lines of JSON: the name is their first field.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

import click
import msgspec

from base.errors import ConfigError

__all__ = ["ALL", "LogView"]

ALL = "all"
FILE_BYTES_MAX = 64_000_000
"""A longer file becomes `NAME.log.1`, whose former content is forgotten."""
COLOURS = ("cyan", "green", "yellow", "blue", "magenta", "bright_cyan", "bright_green", "bright_yellow", "bright_blue")


class LogView:
    """See the module."""

    def __init__(self, folder: Path, names: Iterable[str], *, stream: TextIO, as_json: bool) -> None:
        """Begin the files in the folder anew.

        Args:
            folder: where the files are; it exists.
            names: of the processes.
            stream: what people look at; coloured if it is a terminal.
            as_json: whether the processes write JSON.

        Raises:
            ConfigError: a file cannot be written.
        """
        self._stream = stream
        self._as_json = as_json
        self._has_colours = stream.isatty()
        try:
            self._files = {name: _opened(folder / f"{name}.log") for name in (*names, ALL)}
        except OSError as error:
            raise ConfigError([f"{error.filename} cannot be written: {error.strerror}"]) from error
        self._width = max(map(len, self._files))

    def write(self, name: str, line: str) -> None:
        """Take one line of a process."""
        self._keep(name, line)
        told = _with_name(name, line) if self._as_json else f"{name:<{self._width}} | {line}"
        self._keep(ALL, told)
        if self._has_colours and not self._as_json:
            prefix = click.style(f"{name:<{self._width}} |", fg=COLOURS[zlib.crc32(name.encode()) % len(COLOURS)])
            told = f"{prefix} {line}"
        click.echo(told, file=self._stream)

    def close(self) -> None:
        """Close the files."""
        for handler in self._files.values():
            handler.close()

    def _keep(self, name: str, line: str) -> None:
        self._files[name].emit(logging.makeLogRecord({"msg": line}))


def _opened(file: Path) -> RotatingFileHandler:
    file.unlink(missing_ok=True)
    return RotatingFileHandler(file, maxBytes=FILE_BYTES_MAX, backupCount=1, encoding="utf-8")


def _with_name(name: str, line: str) -> str:
    """A line of JSON with the name of its process; a line that is no JSON, such as of a traceback, becomes one."""
    try:
        fields = msgspec.json.decode(line)
    except msgspec.MsgspecError:
        fields = {"line": line}
    if not isinstance(fields, dict):
        fields = {"line": line}
    return msgspec.json.encode({"process": name, **fields}).decode()
