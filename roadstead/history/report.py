"""The outcome of a check: what was found, and how much was looked at to find it."""

from __future__ import annotations

import msgspec

from roadstead.history.events import Key

__all__ = ["NEEDED", "Finding", "Findings", "Report", "Violation"]

NEEDED = frozenset({"I1", "I2", "I3", "I4", "I5"})
"""The invariants without which a history says nothing of a messaging system."""
KEPT_MAX = 200
"""Violations of one invariant that are kept; more are counted."""


class Violation(msgspec.Struct, frozen=True):
    """A promise that was broken.

    `kind` is the way in which it was ("lost" and "unobserved" are two ways to break I1), `mids` and `keys` the messages
    that it is about, as far as they are known, and `at` the times of the events that prove it, ms.
    """

    invariant: str
    kind: str
    says: str
    mids: tuple[int, ...] = ()
    keys: tuple[Key, ...] = ()
    at: tuple[int, ...] = ()


class Finding(msgspec.Struct, frozen=True):
    """What one invariant came to. `looked` counts the things of `what` that it judged: 0 proves nothing."""

    invariant: str
    looked: int
    what: str
    found: int
    violations: tuple[Violation, ...]
    """At most the first 200."""


class Findings:
    """Collects the violations of one invariant."""

    __slots__ = ("_found", "_invariant", "_kept", "_what", "looked")

    def __init__(self, invariant: str, what: str) -> None:
        """`what` is judged, in the plural."""
        self._invariant = invariant
        self._what = what
        self._found = 0
        self._kept: list[Violation] = []
        self.looked = 0

    def add(
        self,
        kind: str,
        says: str,
        *,
        mids: tuple[int, ...] = (),
        keys: tuple[Key, ...] = (),
        at: tuple[int, ...] = (),
    ) -> None:
        """Add a violation."""
        self._found += 1
        if len(self._kept) < KEPT_MAX:
            self._kept.append(Violation(self._invariant, kind, says, mids, keys, at))

    def done(self) -> Finding:
        """Return what it came to."""
        return Finding(self._invariant, self.looked, self._what, self._found, tuple(self._kept))


class Report(msgspec.Struct, frozen=True):
    """The whole outcome. `counts` says what is in the history, `blind` what would have had to be in it as well."""

    counts: dict[str, int]
    findings: tuple[Finding, ...]
    blind: tuple[str, ...]

    @property
    def violations(self) -> tuple[Violation, ...]:
        """All that were kept, by invariant."""
        return tuple(violation for finding in self.findings for violation in finding.violations)

    @property
    def violated(self) -> frozenset[str]:
        """The invariants that do not hold."""
        return frozenset(finding.invariant for finding in self.findings if finding.found)

    @property
    def vacuous(self) -> frozenset[str]:
        """The invariants that had nothing to look at."""
        return frozenset(finding.invariant for finding in self.findings if not finding.looked)

    def holds(self, needed: frozenset[str] = NEEDED) -> bool:
        """Return whether nothing is violated, nothing blind, and each of the invariants `needed` had something to look
        at: an empty history does not pass.
        """
        return not self.violated and not self.blind and not needed & self.vacuous
