"""Which conversations are fanned out by writing into each member's timeline, and which by reading the log.

Writing costs a row a member and makes reading one stretch; reading costs one row a message whatever the size, and the
readers look at each conversation that has news. So small conversations are written and large ones read (`hybrid`). The
other presets are what well-known systems do.

A group that grows beyond `write_members_max` switches to reading, which is final but for an operator's order: one that
shrinks a little and grows again would switch to and fro. Each switch is an entry of the log, so that members see one
sequence whatever the strategy.
"""

from __future__ import annotations

import msgspec

from im.core.model import FanOut

__all__ = ["PRESETS", "FanOutPolicy"]


class FanOutPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Strategies by class of conversation, and limits."""

    single: FanOut
    write_members_max: int
    """Members that a group with write fan-out may have."""
    members_max: int
    """Members that any group may have; more are refused."""

    def of_group(self, members: int, current: FanOut | None = None) -> FanOut:
        """Return the strategy of a group with so many members; `current` is what it has, None for a new one."""
        return "read" if current == "read" or members > self.write_members_max else "write"


PRESETS = {
    "hybrid": FanOutPolicy(single="write", write_members_max=500, members_max=100_000),
    "wechat": FanOutPolicy(single="write", write_members_max=500, members_max=500),
    "qq": FanOutPolicy(single="read", write_members_max=0, members_max=3_000),
    "dingtalk": FanOutPolicy(single="write", write_members_max=0, members_max=10_000),
}
