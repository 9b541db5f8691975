"""Names as people order them."""

from __future__ import annotations

from base.ids import name_order


def test_names_are_ordered_by_the_numbers_in_them() -> None:
    """As text `status-10` would come before `status-2`."""
    names = ["status-10", "status-9", "b2-x", "status-2", "a", "b10", "status"]
    assert sorted(names, key=name_order) == ["a", "b2-x", "b10", "status", "status-2", "status-9", "status-10"]
