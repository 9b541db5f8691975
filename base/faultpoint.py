"""Named points at which a process can be made to die, for tests of what a crash there costs.

A shell calls `reach` where a crash would be most awkward: after a decision was made and before anybody was told. With
`ROADSTEAD_CRASH_AT` set to that name the process kills itself there, by SIGKILL, as a power cut would. Without it, and
nobody sets it but tests, a point costs a comparison.
"""

from __future__ import annotations

import os
import signal

__all__ = ["CRASH_AT", "reach"]

CRASH_AT = "ROADSTEAD_CRASH_AT"
_armed = os.environ.get(CRASH_AT)


def reach(point: str) -> None:
    """Die here if this is the armed point."""
    if point == _armed:
        os.kill(os.getpid(), signal.SIGKILL)
