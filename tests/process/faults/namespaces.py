"""A network of its own for one process, as Linux has them: a machine apart that shares nothing but files and the clock.

Needs the right to make them (CAP_SYS_ADMIN, as root has it). The network is gone with its last process and socket.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Namespace"]

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1
IFREQ = "16sh14x"
"""An interface's name and its flags. Source: netdevice(7)."""
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """See the module. Nothing is in it but a loopback."""

    def __init__(self) -> None:
        """Raises OSError if this process may not make one."""
        self._file = _in_thread(_made)

    def close(self) -> None:
        """Forget it."""
        os.close(self._file)

    def enter(self) -> None:
        """Move the calling thread into it: for a new process, before it becomes what it shall be."""
        _check(_libc.setns(self._file, CLONE_NEWNET))

    def listener(self, port: int) -> socket.socket:
        """Return a socket that listens in it on loopback."""
        return self._made(lambda: socket.create_server(("127.0.0.1", port)))

    def socket(self) -> socket.socket:
        """Return a TCP socket that connects in it, non-blocking."""
        made = self._made(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        made.setblocking(False)
        return made

    def _made(self, make: Callable[[], T]) -> T:
        def inside() -> T:
            self.enter()
            return make()

        return _in_thread(inside)


def _made() -> int:
    """Make one in this thread, with its loopback up; return the file that stands for it."""
    _check(_libc.unshare(CLONE_NEWNET))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack(IFREQ, b"lo", IFF_UP))
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"a network namespace cannot be used: {os.strerror(number)}")


def _in_thread(work: Callable[[], T]) -> T:
    """Do it in a thread that ends then: a thread that has changed its network is of no use for anything else."""
    results: list[T] = []
    errors: list[OSError] = []

    def run() -> None:
        try:
            results.append(work())
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
