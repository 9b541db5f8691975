"""How bad the weather is in a simulated history.

The defaults are bad on purpose: several faults at any moment, tails far beyond every timeout. A history that holds
here holds in a data centre. They are one level for all: a history that needs worse replaces single fields.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Faults"]


@dataclass(frozen=True, slots=True)
class Faults:
    """Intensities. Times are ms of true time, chances are per thousand messages, and 0 switches a fault off."""

    delay_ms_min: int = 1
    """The fastest that any link ever is."""
    delay_ms_max: int = 40
    """The slowest that a link ordinarily is; each link draws its own range within min..max."""
    tail_permille: int = 20
    """Messages that take far longer, as retransmissions do; with them comes most of the reordering."""
    tail_ms_max: int = 3_000
    """The longest that such a message takes."""
    loss_permille: int = 30
    """Messages that never arrive."""
    duplicate_permille: int = 30
    """Messages that arrive twice, each copy with its own delay."""
    cut_every_ms: int = 4_000
    """Mean time between partitions, half of which stop one direction only."""
    cut_ms_max: int = 3_000
    """The longest that a partition lasts."""
    crash_every_ms: int = 4_000
    """Mean time between crashes of a host."""
    down_ms_max: int = 1_500
    """The longest that a crashed host stays down; many return at once, while their past is still in flight."""
    stall_every_ms: int = 4_000
    """Mean time between stalls of a host: it handles nothing, then everything that waited."""
    stall_ms_min: int = 250
    """The shortest stall; what is shorter passes for delay."""
    stall_ms_max: int = 2_500
    """The longest stall."""
    drift_ppm_max: int = 45_000
    """How fast or slow a host's clock runs at most; quartz does 100, this is what makes clocks a fault."""

    def healed(self) -> Faults:
        """Return the same network without its faults. Clocks keep drifting: they cannot be repaired."""
        return replace(
            self,
            tail_permille=0,
            loss_permille=0,
            duplicate_permille=0,
            cut_every_ms=0,
            crash_every_ms=0,
            stall_every_ms=0,
        )
