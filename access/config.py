"""Configuration of an access node."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta

from base.config import Section

__all__ = ["AccessConfig"]


class AccessConfig(Section, frozen=True, kw_only=True):
    """The `[access]` section."""

    region: Annotated[str, Meta(description="Region of this node, as the scheduler compares it.")] = "local"
    capacity: Annotated[
        int,
        Meta(ge=1, description="Most connections this node takes; one more is refused with 503 before the upgrade."),
    ] = 15_000
    frame_bytes_max: Annotated[
        int, Meta(ge=1_024, description="Longest frame a client may send (bytes); a longer one closes with 1009.")
    ] = 65_536
    write_bytes_max: Annotated[
        int,
        Meta(
            ge=65_536,
            description="Most bytes that may wait for one client; beyond, it is closed with 3008 and recovers. "
            "Raising it forgives slower clients and costs that much memory for each of them.",
        ),
    ] = 1_048_576
    connect_deadline_ms: Annotated[
        int, Meta(ge=100, description="Time from the accepted socket to the connect command (ms), else close 3502.")
    ] = 10_000
    ping_interval_ms: Annotated[int, Meta(ge=1_000, description="How often a client is pinged (ms).")] = 25_000
    pong_deadline_ms: Annotated[
        int, Meta(ge=500, description="Time for the answer to a ping (ms), else close 3012 and the session ends.")
    ] = 10_000
    inflight_max: Annotated[
        int, Meta(ge=1, description="Commands of one client that may be under way at once, else error 111.")
    ] = 64
    recovery_entries_max: Annotated[
        int,
        Meta(
            ge=1,
            le=10_000,
            description="Most entries that a recovery sends; a client further behind is told so and pages `im.sync`.",
        ),
    ] = 1_000
    recovery_bytes_max: Annotated[
        int, Meta(ge=4_096, description="Most bytes that a recovery sends, with the same consequence.")
    ] = 524_288
    audit_interval_ms: Annotated[
        int,
        Meta(
            ge=500,
            description="How often every session's position is compared with its timeline (ms): the longest time that "
            "a lost last push stays unnoticed.",
        ),
    ] = 10_000
    publish_deadline_ms: Annotated[
        int,
        Meta(
            ge=50,
            description="How long a connect waits for the status cluster to confirm the session (ms). After that the "
            "client is let in all the same, and its messages come by the audit until the status cluster is back.",
        ),
    ] = 1_000

    presence_channels_max: Annotated[
        int, Meta(ge=0, description="Presence channels of one client, else error 106.")
    ] = 500
    watches_max: Annotated[
        int,
        Meta(
            ge=0,
            le=200_000,
            description="Users whom this node watches for its clients, however many of them look at the same one; one "
            "more is refused with 106. Each costs about 1 kB here and at the status node that owns the user.",
        ),
    ] = 100_000

    def problems(self) -> Iterable[str]:
        """A recovery must fit into what may wait for one client."""
        if self.recovery_bytes_max >= self.write_bytes_max:
            yield (
                f"recovery_bytes_max ({self.recovery_bytes_max}) must be below write_bytes_max "
                f"({self.write_bytes_max}), or a full recovery would close its own client"
            )
