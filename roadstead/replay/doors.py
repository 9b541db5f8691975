"""Where the users of a replay find the system: what an application would be given by its configuration."""

from __future__ import annotations

import msgspec

from roadstead.replay.core.plan import part_of

__all__ = ["Doors"]


class Doors(msgspec.Struct, frozen=True):
    """Base URLs, which are good in the end, too, and an API key, which may act for users."""

    schedulers: list[str]
    status_nodes: list[str]
    credential: str

    def scheduler_of(self, user: str) -> str:
        """Return the scheduler that a user asks, always the same one."""
        return self.schedulers[part_of(user, len(self.schedulers))]
