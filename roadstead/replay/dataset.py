"""Reads the recording: the chats of the Chit-Chat Challenge, 258,145 messages of 1,315 people in 2018.

It is the package `chitchat-dataset` (MIT), which comes with the extra `replay`.
"""

from __future__ import annotations

from datetime import datetime
from importlib.resources import files

import msgspec

from base.errors import ConfigError
from roadstead.replay.core.day import Conversation, Said

__all__ = ["read"]

PACKAGE, FILE = "chitchat_dataset", "dataset.json"


class _Said(msgspec.Struct, gc=False):
    text: str
    timestamp: datetime
    sender: str


class _Chat(msgspec.Struct):
    messages: list[list[_Said]]
    """Turns: what one person says until another one does."""


def read() -> list[Conversation]:
    """Return all conversations. Raises ConfigError when the package is not there."""
    try:
        content = (files(PACKAGE) / FILE).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise ConfigError(
            ["the chats come with the package chitchat-dataset; the extra `replay` installs it: roadstead[replay]"]
        ) from error
    chats = msgspec.json.decode(content, type=dict[str, _Chat])
    return [Conversation(name, _said(chat)) for name, chat in chats.items()]


def _said(chat: _Chat) -> tuple[Said, ...]:
    return tuple(Said(int(one.timestamp.timestamp()), one.sender, one.text) for turn in chat.messages for one in turn)
