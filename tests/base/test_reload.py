"""Files that count anew when they change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from base.errors import ConfigError
from base.reload import Loadable, follow, lines_of

INTERVAL_S = 0.005
Events = list[MutableMapping[str, Any]]


class Words(Loadable):
    """Something that is made from files, which must have words."""

    def __init__(self, *files: Path) -> None:
        super().__init__(*map(str, files))
        self.loaded: list[str] = []
        if files:
            self.load()

    def _read(self) -> None:
        text = "".join(file.read_text() for file in self.files if file.exists())
        if not text:
            raise ConfigError(["no words"])
        self.loaded.append(text)


@asynccontextmanager
async def following(*items: Words) -> AsyncIterator[Events]:
    with capture_logs() as events:
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            follower = tasks.create_task(follow(items, interval_s=INTERVAL_S, node="access-1"))
            yield events
            follower.cancel()


async def next_event(events: Events) -> MutableMapping[str, Any]:
    """Wait for a line that was not there yet."""
    known = len(events)
    while len(events) == known:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(INTERVAL_S)
    return events[known]


async def test_a_changed_file_is_loaded_once(tmp_path: Path) -> None:
    """However it was changed: written to, replaced, or one of several; the others are let alone."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a")
    two.write_text("b")
    both, other, fixed = Words(one, two), Words(two), Words()
    async with following(both, other, fixed) as events:
        with one.open("a") as file:
            file.write("c")
        event = await next_event(events)
        assert (event["event"], event["files"], event["node"]) == (
            "files_loaded",
            [str(one), str(two)],
            "access-1",
        )
        fresh = tmp_path / "fresh"
        fresh.write_text("de")  # as long as what is there
        fresh.replace(one)
        await next_event(events)
        await asyncio.sleep(4 * INTERVAL_S)
    assert both.loaded == ["ab", "acb", "deb"]
    assert (other.loaded, fixed.loaded) == (["b"], [])


async def test_what_cannot_be_loaded_is_told_once_and_tried_again_when_it_changes(tmp_path: Path) -> None:
    """Half of a renewal, or a file that is away for a moment."""
    file = tmp_path / "one"
    file.write_text("a")
    words = Words(file)
    async with following(words) as events:
        file.unlink()
        event = await next_event(events)
        assert (event["event"], event["log_level"], event["error"]) == ("files_not_loaded", "error", "no words")
        await asyncio.sleep(4 * INTERVAL_S)
        assert len(events) == 1
        file.write_text("b")
        while (await next_event(events))["event"] != "files_loaded":
            pass
    assert words.loaded == ["a", "b"]


def test_lines_are_words_without_comments(tmp_path: Path) -> None:
    """Each says where it stands."""
    file = tmp_path / "keys"
    file.write_text("\n# of today\n  a\tb c \n\nd\n")
    assert lines_of(file, "security.x") == [
        (f"security.x: {file}, line 3", ["a", "b", "c"]),
        (f"security.x: {file}, line 5", ["d"]),
    ]


@pytest.mark.parametrize(("content", "says"), [(None, "cannot be read"), (b"\xff", "is not UTF-8")])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, says: str) -> None:
    """With the setting that names it."""
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"security\.x: {file} {says}"):
        lines_of(file, "security.x")
