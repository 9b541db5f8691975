"""The recording is what the plan takes it for."""

from __future__ import annotations

from itertools import pairwise

import pytest

from base.errors import ConfigError
from roadstead.replay import dataset


def test_the_chats_are_all_there_in_order() -> None:
    """So many as its authors say; one or two speakers each, and time never goes back."""
    chats = dataset.read()
    assert (len(chats), sum(len(chat.said) for chat in chats)) == (7_168, 258_145)
    for chat in chats:
        assert len({said.sender for said in chat.said}) in {1, 2}
        assert all(before.at <= after.at for before, after in pairwise(chat.said))


def test_a_missing_package_is_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no traceback."""
    monkeypatch.setattr(dataset, "PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(ConfigError) as raised:
        dataset.read()
    assert "roadstead[replay]" in str(raised.value)
