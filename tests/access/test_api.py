"""What other services read of an access node: its registration and its note, of whatever version it is."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from access.api import NodeReport, capacity_of, report_of
from access.core.issuers import Issuers
from base.core.histogram import BOUNDARIES, Histogram
from scheduler.api import ISSUER_BYTES_MAX

NOTE_BYTES_MAX = 4_096
FIRST_FIELDS = [7, 12_000, False, 1, 2, 3, 4, 5, 6, "roadstead 0.1"]
"""As the first version reported."""


def encoded(fields: object) -> bytes:
    return msgspec.msgpack.encode(fields)


def test_a_note_is_short_whatever_happened():
    """It is written once a second, and read by everybody: with every issuer and every duration there is."""
    durations = Histogram([(1 << 28) - 1] * (len(BOUNDARIES) + 1)).encode()
    issuers = Issuers()
    for number in range(200):
        issuers.count(f"{number:_>{ISSUER_BYTES_MAX}}")
    admitted = dict.fromkeys(issuers.counts(), (1 << 32) - 1)
    report = NodeReport(
        number=1 << 40,
        connections=1 << 24,
        accepted=1 << 40,
        closed=1 << 40,
        resident_bytes=1 << 40,
        version="v" * 64,
        handshakes=durations,
        pushes=durations,
        admitted=admitted,
        uptime_ms=1 << 40,
    )
    note = encoded(report)
    assert len(note) < NOTE_BYTES_MAX
    assert report_of(note) == report
    assert Histogram.decode(report.pushes).total == (len(BOUNDARIES) + 1) * ((1 << 28) - 1)


@pytest.mark.parametrize("count", range(len(FIRST_FIELDS) + 1))
def test_an_older_note_says_less(count: int):
    """What it does not say is as of a node that has just started."""
    report = report_of(encoded(FIRST_FIELDS[:count]))
    assert list(msgspec.structs.astuple(report))[:count] == FIRST_FIELDS[:count]
    assert msgspec.structs.astuple(report)[count:] == msgspec.structs.astuple(NodeReport())[count:]


def test_a_newer_note_says_more():
    """What nobody here knows yet is passed over."""
    newer = [*msgspec.structs.astuple(NodeReport(number=3, admitted={"s": 1})), {"more": [1]}, None]
    assert report_of(encoded(newer)) == NodeReport(number=3, admitted={"s": 1})


def test_a_node_that_has_not_reported_counts_as_empty():
    """It is let in then, rather than waited for."""
    assert report_of(b"") == NodeReport()


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=16) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
)


@example(note=encoded([*FIRST_FIELDS[:9], "x"])[:-1] + b"\xff")
@given(note=st.binary(min_size=1, max_size=40) | JUNK.map(encoded))
def test_a_note_that_is_none_counts_as_draining(note: bytes):
    """Nobody is sent there; whoever reads the registry goes on."""
    report = report_of(note)
    try:
        expected = msgspec.msgpack.decode(note, type=NodeReport)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        assert report == NodeReport(is_draining=True)
    else:
        assert report == expected


@pytest.mark.parametrize(
    ("said", "number"), [("10", 10), ("", 0), ("many", 0), ("-1", 0), ("1.5", 0), ("²", 0), (None, 0)]
)
def test_a_capacity_that_is_no_number_is_none(said: str | None, number: int):
    """Registered by another version, or by mistake."""
    assert capacity_of({} if said is None else {"capacity": said}) == number
