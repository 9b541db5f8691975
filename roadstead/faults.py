"""Several faults told at once: each step notes its own, and the next one is tried all the same."""

from __future__ import annotations

from types import TracebackType

from base.errors import ConfigError

__all__ = ["Noted"]


class Noted:
    """Adds the faults of a ConfigError that is raised within to a list."""

    def __init__(self, faults: list[str]) -> None:
        self._faults = faults

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not isinstance(error, ConfigError):
            return False
        self._faults += error.errors
        return True
