"""One log of many processes: names in front for people, as a field for programs, and a file for each."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from base.errors import ConfigError
from roadstead.cluster.view import LogView


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(folder: Path, stream: io.StringIO, *, as_json: bool) -> list[str]:
    view = LogView(folder, ["im-1", "access-10"], stream=stream, as_json=as_json)
    view.write("im-1", "hello")
    view.write("access-10", '{"event": "ended", "code": 1}')
    view.write("im-1", "[1]")
    view.close()
    return stream.getvalue().splitlines()


def test_lines_for_people_have_the_name_in_front(tmp_path: Path):
    """In one column, and in a colour of its own on a terminal only."""
    plain = written(tmp_path, io.StringIO(), as_json=False)
    assert plain == ["im-1      | hello", 'access-10 | {"event": "ended", "code": 1}', "im-1      | [1]"]
    assert (tmp_path / "all.log").read_text().splitlines() == plain
    assert (tmp_path / "im-1.log").read_text() == "hello\n[1]\n"
    coloured = written(tmp_path, Terminal(), as_json=False)
    assert all(line.startswith("\x1b[") for line in coloured)
    assert [line.endswith(text) for line, text in zip(coloured, ("hello", "}", "[1]"), strict=True)] == [True] * 3
    assert (tmp_path / "all.log").read_text().splitlines() == plain, "begun anew, and without colours"


def test_lines_for_programs_stay_json(tmp_path: Path):
    """Also on a terminal, and also what was none."""
    lines = [json.loads(line) for line in written(tmp_path, Terminal(), as_json=True)]
    assert lines == [
        {"process": "im-1", "line": "hello"},
        {"process": "access-10", "event": "ended", "code": 1},
        {"process": "im-1", "line": "[1]"},
    ]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path):
    """It names the file."""
    with pytest.raises(ConfigError, match=r"im-1\.log cannot be written"):
        LogView(tmp_path / "absent", ["im-1"], stream=io.StringIO(), as_json=False)
