"""How much one client, or one address, may ask for: rates as token buckets, connections as counts and places.

A bucket holds up to `burst` tokens, gains `rate` a second, and each act takes one. It is kept as one number, the
instant at which it will be full again, so that filling costs nothing and a full bucket is the same as none:

    tokens = burst - (full_at - now) * rate        when full_at > now, else burst

Instants are scaled by the rate, so that a token is `TOKEN` and all arithmetic is on integers: nothing drifts, however
long a bucket lives. Rates are in thousandths of a token a second.

`KeyedBuckets` holds a bounded number of buckets, whoever comes. A bucket is forgotten when it is full, which changes no
answer. If all that are held have something missing, the one closest to full is forgotten for a newcomer: that gives
away the fewest tokens, while refusing newcomers would let whoever has many addresses lock out everybody else. Each key
has one place on a wheel of ticks, at or before the tick of its filling; the hand finds those who moved on and carries
them there. So taking costs O(1), amortised.

Invariants:
    I1  In any time t a bucket gives at most burst + rate * t, except that one forgotten before it was full begins anew.
    I2  At most `keys_max` buckets are held.
    I3  A bucket is forgotten before it is full only if all others held fill later, to a tick's exactness.
    I4  Every key held has one place on the wheel, at or before its filling.
    I5  A key's count is the entries less the leavings; a key without any is not held.
    I6  No more places are held than there are, and no more by one key than its share.

Source: the virtual-scheduling form of ITU-T I.371, annex A (GCRA), for the single number.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

from base.clock import Instant

__all__ = ["Counts", "KeyedBuckets", "Places", "TokenBucket", "address_key"]

TOKEN = 1_000_000
"""A token in micro-tokens: a rate of one thousandth a second fills by one of them each ms."""
SLOTS = 64
SHARE = 2
"""One key may hold one place in so many: half of them, as many clients may come from one address."""


def _refill(rate: float) -> int:
    """Return micro-tokens a ms for tokens a second."""
    assert rate >= 0
    refill = round(rate * 1_000)
    assert refill > 0 or rate == 0, "rates are in thousandths of a token a second"
    return refill


def _take(full_at: int, now: int, room: int) -> tuple[int, int]:
    """Take a token: return the bucket's new `full_at` and 0, or the old one and what is missing.

    All in micro-tokens. `room` is how empty the bucket may be before: a burst less one token.
    """
    missing = full_at - now
    if missing <= 0:
        return now + TOKEN, 0
    if missing <= room:
        return full_at + TOKEN, 0
    return full_at, missing - room


class TokenBucket:
    """One bucket, full at first. A rate of 0 is no limit."""

    __slots__ = ("_full_at", "_refill", "_room")

    def __init__(self, rate: float, burst: int) -> None:
        """`rate` in tokens a second, `burst` in tokens."""
        assert burst > 0
        self._refill = _refill(rate)
        self._room = (burst - 1) * TOKEN
        self._full_at = 0

    def take(self, now: Instant) -> int:
        """Take one token. Returns 0, or the ms until there is one if nobody else takes it."""
        if not self._refill:
            return 0
        self._full_at, missing = _take(self._full_at, now * self._refill, self._room)
        return -(-missing // self._refill)


class KeyedBuckets:
    """A bucket of the same size for each key: some 140 bytes, its key included, measured with IPv4 addresses.

    A rate of 0 is no limit, and nothing is kept then.
    """

    __slots__ = ("_full_at", "_hand", "_keys_max", "_refill", "_room", "_slots", "_tick")

    def __init__(self, rate: float, burst: int, keys_max: int) -> None:
        """`rate` in tokens a second, `burst` in tokens."""
        assert burst > 0
        assert keys_max > 0
        self._refill = _refill(rate)
        self._room = (burst - 1) * TOKEN
        self._keys_max = keys_max
        self._full_at: dict[str, int] = {}
        # One turn of the wheel is longer than the filling of an empty bucket, so that a slot is one tick.
        filling_ms = -(-burst * TOKEN // max(self._refill, 1))
        self._tick = -(-filling_ms // (SLOTS - 2)) * self._refill
        self._slots: list[list[str]] = [[] for _ in range(SLOTS)]
        self._hand = 0

    def __len__(self) -> int:
        return len(self._full_at)

    def wait(self, key: str, now: Instant) -> int:
        """Return what `take` would, and take nothing."""
        held = self._full_at.get(key)
        if held is None:
            return 0
        missing = held - now * self._refill - self._room
        return -(-missing // self._refill) if missing > 0 else 0

    def take(self, key: str, now: Instant) -> int:
        """Take one of the key's tokens. Returns 0, or the ms until there is one if nobody else takes it."""
        if not self._refill:
            return 0
        instant = now * self._refill
        tick_now = instant // self._tick
        if tick_now > self._hand:
            self._forget_full(tick_now)
        held = self._full_at.get(key)
        if held is None and len(self._full_at) >= self._keys_max:
            self._forget_fullest()
        full_at, missing = _take(held or 0, instant, self._room)
        self._full_at[key] = full_at
        if held is None:
            self._slots[-(-full_at // self._tick) % SLOTS].append(key)
        return -(-missing // self._refill)

    def check_invariants(self) -> None:
        """Assert I2 and I4."""
        assert len(self._full_at) <= self._keys_max, "I2"
        places = [
            (tick, key) for tick in range(self._hand + 1, self._hand + SLOTS + 1) for key in self._slots[tick % SLOTS]
        ]
        assert sorted(key for _, key in places) == sorted(self._full_at), "I4"
        assert all(tick <= self._filling(key) < self._hand + SLOTS for tick, key in places), "I4"

    def _filling(self, key: str) -> int:
        """Return the first tick at which the key's bucket is full."""
        return -(-self._full_at[key] // self._tick)

    def _forget_full(self, tick_now: int) -> None:
        # After a whole turn without a call everything is full: one turn of sweeping meets it all.
        for tick in range(self._hand + 1, min(tick_now, self._hand + SLOTS) + 1):
            keys, self._slots[tick % SLOTS] = self._slots[tick % SLOTS], []
            for key in keys:
                filling = self._filling(key)
                if filling <= tick_now:
                    del self._full_at[key]
                else:
                    self._slots[filling % SLOTS].append(key)
        self._hand = tick_now

    def _forget_fullest(self) -> None:
        """Forget the key whose bucket fills first. There is one."""
        tick = self._hand
        while True:
            tick += 1
            slot = self._slots[tick % SLOTS]
            while slot:
                key = slot.pop()
                filling = self._filling(key)
                if filling <= tick:
                    del self._full_at[key]
                    return
                self._slots[filling % SLOTS].append(key)


class Counts:
    """How many are there at once, by key. A limit of 0 is none, and nothing is kept then."""

    __slots__ = ("_counts", "_limit")

    def __init__(self, limit: int) -> None:
        assert limit >= 0
        self._limit = limit
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def is_full(self, key: str) -> bool:
        """Return whether nobody more should enter."""
        return 0 < self._limit <= self._counts.get(key, 0)

    def enter(self, key: str) -> None:
        """Count one more: whoever was let in, though it may be full by now."""
        if self._limit:
            self._counts[key] = self._counts.get(key, 0) + 1

    def leave(self, key: str) -> None:
        """Count one less. Only for whoever entered."""
        if not self._limit:
            return
        count = self._counts.pop(key)
        if count > 1:
            self._counts[key] = count - 1


class Places:
    """A bounded number of places, of which no key gets more than its share: so nobody takes them all alone."""

    __slots__ = ("_held", "_limit", "_of_key")

    def __init__(self, limit: int) -> None:
        """`limit`: how many there are."""
        assert limit > 0
        self._limit = limit
        self._held = 0
        self._of_key = Counts(-(-limit // SHARE))

    def __len__(self) -> int:
        return self._held

    def take(self, key: str | None) -> bool:
        """Take a place; None: for somebody who is not known yet. Returns False if there is none."""
        if self._held >= self._limit or (key is not None and self._of_key.is_full(key)):
            return False
        self._held += 1
        if key is not None:
            self._of_key.enter(key)
        return True

    def leave(self, key: str | None) -> None:
        """Give a place back. Only for whoever has one, by the same key."""
        assert self._held > 0
        self._held -= 1
        if key is not None:
            self._of_key.leave(key)


def address_key(host: str) -> str:
    """Return what one subscriber's addresses have in common: all of IPv4, the first 64 bits of IPv6.

    A subscriber of IPv6 is given a /64 at least and may use any address in it (RFC 6177). An IPv4 address in IPv6 form
    (`::ffff:192.0.2.1`) is that IPv4 address. What is no address, a Unix socket's peer say, is its own key.
    """
    try:
        address: IPv4Address | IPv6Address | None = ip_address(host)
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            prefix = IPv6Address(int(address) >> 64 << 64)
            return f"{prefix}/64"
        address = address.ipv4_mapped
    return str(address)
