"""Configuration of a status node."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta

from base.config import Section

__all__ = ["StatusConfig"]


class StatusConfig(Section, frozen=True, kw_only=True):
    """The `[status]` section."""

    lease_ms: Annotated[
        int,
        Meta(
            ge=500,
            description="How long an access node's sessions stay online without a heartbeat (ms). Raising it forgives "
            "longer silences and keeps the users of a crashed access node online for longer.",
        ),
    ] = 3_000
    bootstrap_nodes: Annotated[
        int,
        Meta(
            ge=1,
            le=1024,
            description="How many status nodes must be registered before the first partition table is written.",
        ),
    ] = 3

    def problems(self) -> Iterable[str]:
        """A lease must outlive two lost beats of a second each."""
        if self.lease_ms < 2_200:
            yield f"lease_ms is {self.lease_ms}; below 2200 two late heartbeats would show every user offline"
