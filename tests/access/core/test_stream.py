"""One channel's past: against a dumb twin that keeps everything and looks at all of it."""

from __future__ import annotations

from random import Random

import pytest

from access.core import stream as module
from access.core.stream import RECOVERY_MAX, Draft, Entry, Stream
from base.clock import Timestamp

TTL_MS = 1_000


def entry(offset: int, *, at: int = 0, data: bytes = b"{}", key: str = "", **draft: object) -> Entry:
    return Entry(offset, Timestamp(at), Draft(data, key=key, **draft))  # type: ignore[arg-type]


def filled(count: int, *, size: int = 100) -> Stream:
    stream = Stream("e")
    for offset in range(1, count + 1):
        stream.append(entry(offset))
        stream.trim(Timestamp(0), size=size, ttl_ms=TTL_MS)
        stream.check_invariants()
    return stream


def offsets(entries: list[Entry] | None) -> list[int] | None:
    return None if entries is None else [one.offset for one in entries]


class Twin:
    """All that was ever published, and the bounds applied to all of it."""

    def __init__(self) -> None:
        self.all: list[Entry] = []
        self.first = 0
        """Index of the oldest that is kept."""

    def trim(self, now: int, size: int, ttl_ms: int) -> None:
        self.first = max(self.first, len(self.all) - size)
        while self.first < len(self.all) and self.all[self.first].time + ttl_ms <= now:
            self.first += 1

    def kept(self) -> list[Entry]:
        return self.all[self.first :]

    def page(self, after: int | None, limit: int, *, is_reverse: bool) -> list[Entry]:
        found = [
            one for one in self.kept() if after is None or (one.offset < after if is_reverse else one.offset > after)
        ]
        found = found[::-1] if is_reverse else found
        return found if limit < 0 else found[:limit]

    def recover(self, epoch: str, offset: int, limit: int) -> list[Entry] | None:
        missed = self.all[offset:]
        is_here = epoch == "e" or (epoch == "" and offset == 0)
        is_whole = offset <= len(self.all) and all(one in self.kept() for one in missed)
        return missed if is_here and is_whole and len(missed) <= limit else None


@pytest.mark.parametrize("seed", range(30))
def test_pages_and_recoveries_are_those_of_a_twin_that_keeps_everything(seed: int):
    """At any time, from any position, in both directions, with any limit."""
    random, twin, stream, now = Random(seed), Twin(), Stream("e"), 0
    for _ in range(150):
        now += random.choice((0, 0, 10, 300))
        if random.random() < 0.7:
            twin.all.append(entry(len(twin.all) + 1, at=now, key=random.choice(("", "k1", "k2"))))
            stream.append(twin.all[-1])
        size = random.choice((3, 10, 10, 10))
        stream.trim(Timestamp(now), size=size, ttl_ms=TTL_MS)
        twin.trim(now, size, TTL_MS)
        stream.check_invariants()
        assert stream.entries() == twin.kept()
        assert len(stream) == len(twin.kept())
        assert stream.last_time() == (twin.kept()[-1].time if twin.kept() else 0)
        after = random.choice((None, *range(len(twin.all) + 3)))
        limit = random.choice((-1, 0, 1, 5))
        for is_reverse in (False, True):
            expected = twin.page(after, limit, is_reverse=is_reverse)
            assert stream.page(after=after, limit=limit, is_reverse=is_reverse) == expected
        epoch, offset = random.choice((("e", after or 0), ("", after or 0), ("f", after or 0), ("", 0)))
        assert stream.recover(epoch, offset, limit=6) == twin.recover(epoch, offset, 6)
        for key in ("k1", "k2", "k3"):
            found = [one.offset for one in twin.kept() if one.draft.key == key]
            assert stream.find(key) == (found[-1] if found else None)


def test_a_recovery_is_never_a_part():
    """Of 150 publications 100 are kept: who has seen 50 gets all, who has seen 49 nothing."""
    stream = filled(150)
    assert offsets(stream.recover("e", 50)) == list(range(51, 151))
    assert stream.recover("e", 49) is None
    assert stream.recover("e", 150) == []
    assert stream.recover("e", 151) is None
    assert stream.recover("f", 150) is None


def test_a_recovery_is_bounded():
    """Who missed more than that begins anew."""
    stream = filled(RECOVERY_MAX + 2, size=RECOVERY_MAX * 2)
    assert len(stream.recover("e", 2) or ()) == RECOVERY_MAX
    assert stream.recover("e", 1) is None


def test_what_goes_to_a_client_at_once_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch):
    """A page ends earlier, but has one at least; a recovery that is too long is none."""
    stream = filled(10)
    three = entry(1).size() * 3
    monkeypatch.setattr(module, "PAGE_BYTES_MAX", three)
    assert offsets(stream.page(after=None, limit=-1, is_reverse=False)) == [1, 2, 3]
    assert offsets(stream.page(after=None, limit=-1, is_reverse=True)) == [10, 9, 8]
    assert offsets(stream.page(after=9, limit=-1, is_reverse=False)) == [10]
    assert offsets(stream.recover("e", 7, bytes_max=three)) == [8, 9, 10]
    assert stream.recover("e", 6, bytes_max=three) is None
    monkeypatch.setattr(module, "PAGE_BYTES_MAX", 1)
    assert offsets(stream.page(after=3, limit=2, is_reverse=False)) == [4]


def test_the_position_outlives_the_publications():
    """Quiet for long, and still known: who missed nothing recovers, others do not."""
    stream = filled(3)
    stream.trim(Timestamp(TTL_MS), size=100, ttl_ms=TTL_MS)
    assert (len(stream), stream.offset, stream.size) == (0, 3, 0)
    assert stream.recover("e", 3) == []
    assert stream.recover("e", 2) is None
    stream.append(entry(4))
    assert offsets(stream.recover("e", 3)) == [4]


def test_a_stream_goes_on_from_what_another_node_kept():
    """A copy is as good as the original."""
    original = filled(150)
    copy = Stream(original.epoch, offset=original.offset, entries=original.entries())
    copy.check_invariants()
    copy.append(entry(151))
    assert offsets(copy.recover("e", 149)) == [150, 151]
    assert copy.size == original.size + entry(151).size()


def test_the_bytes_of_a_channel_are_bounded(monkeypatch: pytest.MonkeyPatch):
    """The oldest go first, and the last one stays whatever its size."""
    monkeypatch.setattr(module, "STREAM_BYTES_MAX", 500)
    stream = Stream("e")
    for offset in range(1, 11):
        stream.append(entry(offset, data=b"x" * 80, tags={"a": "b"}, conn_info=b"i", chan_info=b"i"))
        stream.trim(Timestamp(0), size=100, ttl_ms=TTL_MS)
        assert stream.size <= 500
    assert offsets(stream.entries()) == [9 - 1, 9, 10]
    stream.append(entry(11, data=b"x" * 5_000))
    stream.trim(Timestamp(0), size=100, ttl_ms=TTL_MS)
    assert offsets(stream.entries()) == [11]
    stream.clear()
    assert (stream.entries(), stream.offset, stream.size) == ([], 11, 0)


def test_an_offset_is_never_skipped():
    """Our own bug, if it were."""
    with pytest.raises(AssertionError):
        Stream("e").append(entry(2))
