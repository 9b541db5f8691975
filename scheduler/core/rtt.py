"""Which region is nearest to a prefix of addresses, as its own clients measured it.

Clients report round-trip times to regions. For each prefix (/24 of IPv4, /48 of IPv6) and region the last `REPORTS`
reports of different users count, and their median stands for the region. One that fewer than `REPORTERS_MIN` users
measured is not known.

A prefix has an opinion once it knows two regions: the nearest one. Against the region that would be taken without it,
it is given if that one is known to be slower by `MARGIN_MS` at least, so that noise overrules no table of places; or if
nobody measured that one, which then has no nodes to measure. While some did and too few, it is not. For the sake of
quiet, too, the nearest region stays the nearest until another one is faster by the margin.

A user has one voice for each prefix and region. One liar among five reporters leaves the median between the times of
the others: nothing that a single user sends makes a region the nearest that honest users agree is not. Whoever has many
users at hand reaches the prefix from which they come, and no other.

Invariants:
    I1  At most `prefixes_max` prefixes are held: those reported on or asked for last.
    I2  For a prefix and region at most REPORTS reports are held, each of another user, the newest ones.
    I3  No report older than `expiry_ms` counts.
    I4  What is given is a region that the operator has.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from base.clock import Instant
from scheduler.core.networks import Address

__all__ = ["MARGIN_MS", "REPORTERS_MIN", "REPORTS", "RTT_MAX_MS", "Learned", "RttTable", "prefix_of"]

REPORTS = 9
REPORTERS_MIN = 5
MARGIN_MS = 10
RTT_MAX_MS = 60_000
_AT = 16
"""A report is one integer, instant << _AT | ms, in which RTT_MAX_MS fits: small, and no work for the collector."""
_NEVER = 1 << 62


class Learned(NamedTuple):
    """An opinion and its reasons: medians in ms, -1 for the region `instead_of` if nobody measured it."""

    region: str
    rtt_ms: int
    reporters: int
    instead_of: str
    instead_of_ms: int


class _Prefix:
    """What is held of one prefix. The opinion is good before `until`."""

    __slots__ = ("medians", "nearest", "reports", "until")

    def __init__(self) -> None:
        self.reports: dict[str, dict[int, int]] = {}
        """Region to user to report, in the order in which they came."""
        self.medians: dict[str, int] = {}
        self.nearest = ""
        self.until = _NEVER


def prefix_of(address: Address) -> int:
    """Return the key of the address's prefix: what one site shares (RFC 6177 for IPv6)."""
    if address.bits == 32:
        return address.number >> 8
    return 1 << 48 | address.number >> 80


class RttTable:
    """The table. Its owner gives it what clients report, and asks."""

    __slots__ = ("_expiry_ms", "_prefixes", "_prefixes_max", "_regions")

    def __init__(
        self, regions: Collection[str] = (), *, prefixes_max: int = 20_000, expiry_ms: int = 3_600_000
    ) -> None:
        """`regions` are those that the operator has: times to others are not taken."""
        assert prefixes_max > 0
        assert expiry_ms > 0
        self._prefixes: OrderedDict[int, _Prefix] = OrderedDict()
        self._prefixes_max = prefixes_max
        self._expiry_ms = expiry_ms
        self._regions = frozenset(regions)

    def __len__(self) -> int:
        return len(self._prefixes)

    def retain(self, regions: Collection[str]) -> None:
        """Take these for the operator's regions from now on, and forget what was reported on others."""
        gone = self._regions.difference(regions)
        self._regions = frozenset(regions)
        if gone:
            for prefix in self._prefixes.values():
                for region in gone.intersection(prefix.reports):
                    del prefix.reports[region]
                    prefix.until = 0  # judged anew when asked for

    def report(self, prefix: int, user: str, rtts: Mapping[str, int], now: Instant) -> None:
        """Take a user's times to regions (ms, 0 to RTT_MAX_MS); they replace those that the user reported before."""
        known = {region: ms for region, ms in rtts.items() if region in self._regions}
        if not known:
            return
        held = self._prefixes.get(prefix)
        if held is None:
            if len(self._prefixes) >= self._prefixes_max:
                self._prefixes.popitem(last=False)
            held = self._prefixes[prefix] = _Prefix()
        else:
            self._prefixes.move_to_end(prefix)
        voice = xxh3_64_intdigest(user.encode())
        for region, ms in known.items():
            assert 0 <= ms <= RTT_MAX_MS
            reports = held.reports.setdefault(region, {})
            reports.pop(voice, None)
            if len(reports) >= REPORTS:
                del reports[next(iter(reports))]
            reports[voice] = now << _AT | ms
        self._judge(held, now)

    def learned(self, prefix: int, instead_of: str, now: Instant) -> Learned | None:
        """Return the prefix's opinion against the region that would be taken without it ("": none), if it has one."""
        held = self._prefixes.get(prefix)
        if held is None:
            return None
        if now >= held.until:
            self._judge(held, now)
            if not held.reports:
                del self._prefixes[prefix]
                return None
        self._prefixes.move_to_end(prefix)
        nearest = held.nearest
        if not nearest:
            return None
        ms = held.medians[nearest]
        other_ms = held.medians.get(instead_of, -1)
        if other_ms < 0:
            if instead_of in held.reports:
                return None
        elif other_ms < ms + MARGIN_MS:
            return None
        return Learned(nearest, ms, len(held.reports[nearest]), instead_of, other_ms)

    def check_invariants(self) -> None:
        """Assert I1, I2 and what of I4 can be seen."""
        assert len(self._prefixes) <= self._prefixes_max, "I1"
        for prefix in self._prefixes.values():
            assert self._regions.issuperset(prefix.reports), "I4"
            for reports in prefix.reports.values():
                assert 0 < len(reports) <= REPORTS, "I2"
                assert [*reports.values()] == sorted(reports.values(), key=lambda report: report >> _AT), "I2"

    def _judge(self, prefix: _Prefix, now: Instant) -> None:
        """Form the opinion out of the reports that have not expired."""
        oldest = now - self._expiry_ms
        prefix.until = _NEVER
        prefix.medians = {}
        for region, reports in [*prefix.reports.items()]:
            for voice in [voice for voice, report in reports.items() if report >> _AT <= oldest]:
                del reports[voice]
            if not reports:
                del prefix.reports[region]
                continue
            prefix.until = min(prefix.until, (next(iter(reports.values())) >> _AT) + self._expiry_ms)
            if len(reports) >= REPORTERS_MIN:
                times = sorted(report & (1 << _AT) - 1 for report in reports.values())
                prefix.medians[region] = times[(len(times) - 1) // 2]
        if len(prefix.medians) < 2:
            prefix.nearest = ""
            return
        # By name where two are equal, so that every scheduler says the same.
        best = min(prefix.medians, key=lambda region: (prefix.medians[region], region))
        if prefix.medians.get(prefix.nearest, RTT_MAX_MS + MARGIN_MS) - prefix.medians[best] >= MARGIN_MS:
            prefix.nearest = best
