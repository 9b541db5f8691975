"""Strategies by size, and that growing is final."""

from __future__ import annotations

from typing import Any

import pytest

from im.core.fan_out import PRESETS, FanOutPolicy


@pytest.mark.parametrize(("members", "current", "expected"), [
    (1, None, "write"), (6, None, "write"), (7, None, "read"),
    (6, "write", "write"), (7, "write", "read"), (1, "read", "read"),
])  # fmt: skip
def test_a_group_that_has_grown_stays_with_reading(members: int, current: Any, expected: str):
    """Or one that shrinks a little and grows again would switch to and fro."""
    policy = FanOutPolicy(single="write", write_members_max=6, members_max=8)
    assert policy.of_group(members, current) == expected


@pytest.mark.spec("FO-07", "MI-10", "WX-02")
def test_presets_are_within_their_own_bounds():
    """What is written is never more than a group may have; single conversations of `qq` alone are read."""
    assert all(0 <= one.write_members_max <= one.members_max for one in PRESETS.values())
    assert {name for name, one in PRESETS.items() if one.single == "read"} == {"qq"}
    assert PRESETS["qq"].of_group(2) == PRESETS["dingtalk"].of_group(2) == "read"
    assert PRESETS["hybrid"].of_group(500) == PRESETS["wechat"].of_group(500) == "write"
    assert PRESETS["hybrid"].of_group(501) == "read"
