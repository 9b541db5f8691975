"""The `roadstead` command, run to its end in this process."""

from __future__ import annotations

from pathlib import Path

from roadstead.cli.main import main

__all__ = ["exit_code"]


def exit_code(*arguments: str | Path) -> int:
    """Run the command with these arguments; return its exit code."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0
