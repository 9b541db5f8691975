"""Needs and changes are empty only when nothing is in them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from im.core.facts import Changes, Needs

BESIDE_OTHERS = {"mentions", "outcomes", "deliveries", "outgoing"}
"""What a transaction has only beside something else, or does not write."""


def filled(of: type[Any], name: str) -> Any:
    """One with this field not empty."""
    one = of()
    value = getattr(one, name)
    setattr(one, name, 1 if isinstance(value, int) else {1: 1} if isinstance(value, dict) else [1])
    return one


@pytest.mark.parametrize("name", [one.name for one in fields(Needs)])
def test_each_need_is_one(name: str):
    """A forgotten one would be a fact that is not asked for."""
    assert not Needs()
    assert filled(Needs, name)


@pytest.mark.parametrize("name", [one.name for one in fields(Changes)])
def test_each_change_is_to_be_written(name: str):
    """A forgotten one would be lost."""
    assert not Changes()
    assert bool(filled(Changes, name)) == (name not in BESIDE_OTHERS)
