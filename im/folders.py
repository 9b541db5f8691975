"""Where a process has the files of its shards: one folder a shard, or, of a system with one shard, the folder itself.

messages.db             logs and timelines (SQLite)
messages-search.db      the search index, which is made anew from the messages if it is missing
shard-0003/             the same, of one shard of several
shard-0003.incoming/    the same, while the shard is moved here
lock                    held by the process that uses the folder
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from base.errors import ConfigError

__all__ = ["MESSAGES", "SEARCH", "SHARD_FILES", "claim", "incoming_folder", "shard_folder"]

MESSAGES: Final = "messages.db"
SEARCH: Final = "messages-search.db"
SHARD_FILES: Final = (MESSAGES, SEARCH)


def shard_folder(folder: Path, shard: int, shards: int) -> Path:
    """Return where a shard's files are."""
    return folder if shards == 1 else folder / f"shard-{shard:04}"


def incoming_folder(folder: Path, shard: int) -> Path:
    """Return where a shard's files come to, until the shard table names this process."""
    return folder / f"shard-{shard:04}.incoming"


def claim(folder: Path) -> None:
    """Have the folder for this process alone, until it ends; it is made if it is missing.

    Raises:
        ConfigError: another process has it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError([f"im.data {folder} cannot be used: {error.strerror}"]) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back by the system when the process ends, however
    except BlockingIOError as error:
        os.close(lock)
        raise ConfigError([f"im.data {folder} is in use by another process"]) from error
