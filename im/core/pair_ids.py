"""What the id of a direct conversation can be computed from, and what must be counted instead.

If users are numbered with 32 bits, two of them make a conversation id without asking anybody: the smaller number in
the upper half of 64 bits, the greater one in the lower half. It is the *special rule*. It ends with the first user who
does not fit, which is why nothing here depends on it: such a pair gets the next number of a counter, and a table
remembers which. Numbers of the counter stay below 2**32, computed ids begin above it, so that both live in one column:

    0                 2**32                                                   2**63
    |---- counted ----|---- smaller << 32 | greater, 0 < smaller < 2**31 -------|

The smaller number stays below 2**31 since a signed 64-bit integer would be negative from there on.

How a system moves from 32-bit to 64-bit users: computed ids stay what they are, new pairs with a large number in them
are counted, no message moves. A store looks into its table first and computes only for a pair that is not in it; then
the rule may be turned on or off at any time, since a pair keeps the id that it has.

Invariants:
    I1  `pair_cid` of (a, b) and of (b, a) is the same.
    I2  `users_of` gives the pair back: no two pairs have the same id.
    I3  A computed id is greater than `COUNTED_MAX` and fits a signed 64-bit integer.
"""

from __future__ import annotations

__all__ = ["COUNTED_MAX", "pair_cid", "users_of"]

HALF_BITS = 32
COUNTED_MAX = (1 << HALF_BITS) - 1
"""The greatest number that the counter may give: 4,294,967,295 conversations."""
NUMBER_MAX = (1 << HALF_BITS) - 1
SMALLER_MAX = (1 << 31) - 1
DIGITS_MAX = len(str(NUMBER_MAX))


def pair_cid(one: str, other: str, /) -> int | None:
    """Return the id of the conversation of two users by the special rule; None: take a counted one.

    A user counts as numbered if its key is the number as one writes it: ASCII digits without leading zeros. `07` is
    another user than `7` and must not get its conversations.
    """
    smaller, greater = _number(one), _number(other)
    if smaller > greater:
        smaller, greater = greater, smaller
    if 0 < smaller <= SMALLER_MAX and greater <= NUMBER_MAX:
        return smaller << HALF_BITS | greater
    return None


def users_of(cid: int) -> tuple[str, str] | None:
    """Return the two users of a computed id, the smaller number first; None if it was not computed."""
    smaller, greater = cid >> HALF_BITS, cid & NUMBER_MAX
    if 0 < smaller <= SMALLER_MAX and smaller <= greater:
        return str(smaller), str(greater)
    return None


def _number(user: str) -> int:
    """Return the user's number, 0 if it has none of up to ten digits."""
    if len(user) > DIGITS_MAX or not user.isdecimal() or not user.isascii() or user[0] == "0":
        return 0
    return int(user)
