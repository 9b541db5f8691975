"""Where a simulated fleet's chance comes from: one seeded stream for each kind of event.

Streams are separate so that runs of one seed under different policies meet the same clients: which client comes when,
and how long it takes to connect, does not depend on where it was sent.
"""

from __future__ import annotations

from math import exp, log, sqrt
from random import Random  # noqa: TID251 - the generators of a simulation, seeded by its caller

__all__ = ["Chance", "stream"]

KNUTH_MAX = 30.0


def stream(seed: int, name: str) -> Chance:
    """Return the stream of that name; equal names and seeds give equal streams, on every machine."""
    return Chance(f"{seed}/{name}")


class Chance(Random):
    """A seeded generator with the draws that a fleet needs."""

    def poisson(self, mean: float) -> int:
        """Return how many of many independent, rare events happened, `mean` being expected.

        Exact up to a mean of 30 by Knuth's method, beyond it the rounded normal distribution.
        """
        if mean <= 0.0:
            return 0
        if mean > KNUTH_MAX:
            return max(0, round(self.gauss(mean, sqrt(mean))))
        draw = self.random
        floor = exp(-mean)
        product = draw()
        count = 0
        while product > floor:
            product *= draw()
            count += 1
        return count

    def delay(self, mean: float) -> int:
        """Return a time to connect in ms: the sum of two exponential ones (an Erlang distribution), few near 0."""
        return int(-log((1.0 - self.random()) * (1.0 - self.random())) * mean * 0.5)

    def spread(self, center_ms: int, part: float) -> int:
        """Return a time within `part` of `center_ms`, evenly."""
        return int(center_ms * (1.0 + part * (2.0 * self.random() - 1.0)))
