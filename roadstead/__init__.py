"""The composition root and public face: the `roadstead` command, `up`, the Python client, the simulator.

Tour: `up` puts all services into one process, `deployment` is how commands find a running system, `client` connects an
application, `cli` has a module a command, `sim` runs whole-cluster histories on simulated time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from roadstead.client import Client, Incoming, Position

__all__ = ["Client", "Incoming", "Position"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the client when it is first asked for: commands and the simulator start without its SDK."""
    if name in __all__:
        from roadstead import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
