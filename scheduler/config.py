"""Configuration of a scheduler."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta

from base.config import Section
from base.core.origins import origin_problems

__all__ = ["SchedulerConfig"]


class SchedulerConfig(Section, frozen=True, kw_only=True):
    """The `[scheduler]` section."""

    candidates: Annotated[
        int,
        Meta(ge=1, le=16, description="How many access nodes an answer names; the client falls back along them."),
    ] = 3
    ticket_ttl_ms: Annotated[
        int,
        Meta(
            ge=1_000,
            le=3_600_000,
            description="How long a ticket is good for (ms). Raising it helps slow clients and lengthens the time in "
            "which a stolen ticket is of use.",
        ),
    ] = 60_000
    backoff_base_ms: Annotated[
        int, Meta(ge=10, description="First ceiling of the wait that clients are told to keep between rounds (ms).")
    ] = 200
    backoff_ceiling_ms: Annotated[int, Meta(ge=100, description="Last ceiling of that wait (ms).")] = 20_000
    origins: Annotated[
        tuple[str, ...],
        Meta(
            description="Web pages that may ask for access from a browser: `https://app.example.com`, "
            "`https://*.example.com`, or `*` for all. A client that is no browser names no origin."
        ),
    ] = ("*",)

    def problems(self) -> Iterable[str]:
        """Origins must be such."""
        yield from origin_problems("origins", self.origins)
