"""Files that count anew when they change, so that keys and certificates are renewed without a restart.

What is made from files can be loaded again; `follow` looks at the files and does so. A file that cannot be used is told
in the log and changes nothing: half of a renewal is there before the other half.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from base.errors import ConfigError
from base.log import logger

__all__ = ["Loadable", "follow", "lines_of"]

_Stamp = tuple[int, int, int] | None
"""What differs after a change of a file: time and size, and the inode, since one is best replaced as a whole."""


class Loadable(ABC):
    """Something that is made from files."""

    def __init__(self, *files: str) -> None:
        """Nothing is read yet. No files: it is fixed."""
        self.files = tuple(map(Path, files))
        self._stamps: list[_Stamp] = []

    def load(self) -> None:
        """Read the files. Raises ConfigError when they cannot be used; what was loaded before stays in use."""
        self._stamps = self._look()  # first: what is changed meanwhile is read again
        self._read()

    def has_changed(self) -> bool:
        """Return whether the files are other ones than when they were read last, with success or without."""
        return self._look() != self._stamps

    @abstractmethod
    def _read(self) -> None:
        """Do what `load` says."""

    def _look(self) -> list[_Stamp]:
        return [_stamp(file) for file in self.files]


def lines_of(file: Path, setting: str) -> list[tuple[str, list[str]]]:
    """Read a file of words: return where each line stands, for messages, and its words.

    Empty lines, and lines that begin with `#`, are left out. Raises ConfigError, which never quotes what it read.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{setting}: {file} cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{setting}: {file} is not UTF-8 text"]) from error
    numbered = ((number, line.split()) for number, line in enumerate(text.splitlines(), start=1))
    return [(f"{setting}: {file}, line {number}", words) for number, words in numbered if words and words[0][0] != "#"]


async def follow(items: Iterable[Loadable], *, interval_s: float, node: str) -> None:
    """Load each item whenever one of its files changed, until cancelled. Each change is one line in the log."""
    items = [item for item in items if item.files]
    log = logger(node=node)
    while True:
        await asyncio.sleep(interval_s)
        for item in items:
            if not item.has_changed():
                continue
            names = [str(file) for file in item.files]
            try:
                item.load()
            except ConfigError as error:
                log.error("files_not_loaded", files=names, error=str(error))  # noqa: TRY400 - a traceback says no more
            else:
                log.info("files_loaded", files=names)


def _stamp(file: Path) -> _Stamp:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
