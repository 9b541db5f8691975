"""Writes a history down, and reads it back.

A recorder appends to one file of its own. Every event is handed to the operating system before the call returns: what
a client did is known even if its process is killed by the next instruction, and nothing is kept in memory. One event
costs some 3 us. Threads and tasks may share a recorder; each process has its own, on one machine.

Order is what a history is about, so: `invoke` before the first byte leaves, its outcome after the last byte came.
"""

from __future__ import annotations

import heapq
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import xxhash

from base.clock import Clock, SystemClock
from base.errors import BadRequest, StoreUnavailable
from roadstead.history.events import (
    Deliver,
    Display,
    DisplayEntry,
    Event,
    Failed,
    Failure,
    Fault,
    FinalLog,
    FinalTimeline,
    Form,
    Gap,
    Info,
    Invoke,
    LogEntry,
    Members,
    Mode,
    Ok,
    Op,
    Queued,
    Quiet,
    Read,
    ReadEntry,
    Subscribe,
    TimelineEntry,
    UnreadObs,
    UnreadPart,
)

__all__ = ["Recorder", "digest", "load"]

_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def digest(body: bytes) -> str:
    """Return 16 hex digits that stand for a body."""
    return xxhash.xxh3_64_hexdigest(body)


class Recorder:
    """Appends events to a new file. All methods but `invoke` return nothing and may be called from any thread.

    Raises:
        StoreUnavailable: from any method: the file cannot be made, or the disk is full. The history is then worthless.
    """

    __slots__ = ("_calls", "_clock", "_encoder", "_file", "_lock", "process")

    def __init__(self, path: Path, *, process: str, clock: Clock | None = None) -> None:
        """`process` names this recorder among those of one history; the file must not exist."""
        self.process = process
        self._clock = clock or SystemClock()
        self._encoder = msgspec.json.Encoder()
        self._lock = threading.Lock()
        self._calls = count(1)
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreUnavailable(f"{path}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the file. Nothing may be recorded after it."""
        os.close(self._file)

    def now(self) -> int:
        """Return the time of this history, ms: for `asked_at`."""
        return self._clock.monotonic()

    # ---------------------------------------------------------------- calls

    def invoke(
        self,
        op: Op,
        *,
        user: str,
        device: str,
        client_msg_id: str,
        cid: int | None = None,
        digest: str = "",
        ref: int = 0,
    ) -> int:
        """Say what is about to be called. Returns the call's number, for its outcome: exactly one of the next five."""
        call = next(self._calls)
        with self._lock:
            at = self._clock.monotonic()
            self._write(Invoke(at, self.process, call, op, user, device, client_msg_id, cid, digest, ref))
        return call

    def ok(self, call: int, *, cid: int, seq: int, mid: int = 0) -> None:
        """Say that the call was acknowledged as durable."""
        with self._lock:
            self._write(Ok(self._clock.monotonic(), self.process, call, cid, seq, mid))

    def fail(self, call: int, *, why: str = "") -> None:
        """Say that the call was refused, and certainly changed nothing."""
        with self._lock:
            self._write(Failed(self._clock.monotonic(), self.process, call, why))

    def info(self, call: int, *, why: str = "") -> None:
        """Say that nobody knows what became of the call."""
        with self._lock:
            self._write(Info(self._clock.monotonic(), self.process, call, why))

    def queued(self, call: int) -> None:
        """Say that the call was acknowledged as durably queued."""
        with self._lock:
            self._write(Queued(self._clock.monotonic(), self.process, call))

    def failure(self, *, user: str, device: str, client_msg_id: str, why: str = "") -> None:
        """Say that a failure notice for what was queued came."""
        with self._lock:
            self._write(Failure(self._clock.monotonic(), self.process, user, device, client_msg_id, why))

    # ---------------------------------------------------------------- devices

    def subscribe(self, *, user: str, device: str, channel: str, since: int, is_recovered: bool = False) -> None:
        """Say from which offset on a device is told of a channel."""
        with self._lock:
            at = self._clock.monotonic()
            self._write(Subscribe(at, self.process, user, device, channel, since, is_recovered))

    def deliver(
        self,
        *,
        user: str,
        device: str,
        channel: str,
        offset: int,
        cid: int,
        seq: int,
        mid: int,
        sender: str,
        client_msg_id: str,
        digest: str = "",
        form: Form = "message",
        ref: int = 0,
    ) -> None:
        """Say that a device got a publication."""
        with self._lock:
            at = self._clock.monotonic()
            place = user, device, channel, offset, cid, seq, mid
            self._write(Deliver(at, self.process, *place, sender, client_msg_id, digest, form, ref))

    def read(
        self,
        *,
        user: str,
        device: str,
        channel: str,
        since: int,
        head: int,
        entries: Sequence[ReadEntry],
        cid: int | None = None,
        reached: int | None = None,
    ) -> None:
        """Say what a page held. `reached`: by default the last entry's offset, or `head` for a page without any.

        For a page read backwards give `reached` yourself: what it ends at, while `since` is before its first entry.
        """
        if reached is None:
            reached = entries[-1].offset if entries else max(since, head)
        with self._lock:
            at = self._clock.monotonic()
            self._write(Read(at, self.process, user, device, channel, since, reached, head, tuple(entries), cid))

    def gap(self, *, user: str, device: str, cid: int, after: int, before: int) -> None:
        """Say that a device knows what it has not loaded."""
        with self._lock:
            self._write(Gap(self._clock.monotonic(), self.process, user, device, cid, after, before))

    def display(
        self, *, user: str, device: str, cid: int, entries: Sequence[DisplayEntry], is_sorted: bool = True
    ) -> None:
        """Say what a device shows of a conversation."""
        with self._lock:
            self._write(Display(self._clock.monotonic(), self.process, user, device, cid, tuple(entries), is_sorted))

    def unread_obs(
        self, *, user: str, device: str, total: int, parts: Sequence[UnreadPart], asked_at: int | None = None
    ) -> None:
        """Say what counts a device was told; `asked_at` from `now`."""
        with self._lock:
            at = self._clock.monotonic()
            self._write(UnreadObs(at, self.process, user, device, total, tuple(parts), asked_at))

    # ---------------------------------------------------------------- the world around

    def fault(self, kind: str, *, target: str = "") -> None:
        """Say that something was broken or mended. A crash is written down when the process is dead, not before."""
        with self._lock:
            self._write(Fault(self._clock.monotonic(), self.process, kind, target))

    def members(self, *, cid: int, user: str, join_seq: int = 1, leave_seq: int | None = None) -> None:
        """Say what a user may see of a conversation."""
        with self._lock:
            self._write(Members(self._clock.monotonic(), self.process, cid, user, join_seq, leave_seq))

    def quiet(self, *, devices: Sequence[tuple[str, str]]) -> None:
        """Say that these (user, device) are connected and had the time to catch up, and that nothing is broken."""
        with self._lock:
            self._write(Quiet(self._clock.monotonic(), self.process, tuple(devices)))

    def final_log(
        self,
        *,
        cid: int,
        entries: Sequence[LogEntry],
        mode: Mode = "continuous",
        channel: str = "",
        first: int = 1,
    ) -> None:
        """Say what a conversation's log held at the end, or the next page of it."""
        with self._lock:
            at = self._clock.monotonic()
            self._write(FinalLog(at, self.process, cid, tuple(entries), mode, channel, first))

    def final_timeline(
        self,
        *,
        user: str,
        channel: str,
        entries: Sequence[TimelineEntry],
        mode: Mode = "continuous",
        first: int = 1,
    ) -> None:
        """Say what a user's timeline held at the end, or the next page of it."""
        with self._lock:
            at = self._clock.monotonic()
            self._write(FinalTimeline(at, self.process, user, channel, tuple(entries), mode, first))

    # ---------------------------------------------------------------- inside

    def _write(self, event: Event) -> None:
        """Append a line. The lock is held from before the time was read, so that a file's times never go back."""
        line = self._encoder.encode(event) + b"\n"
        try:
            written = os.write(self._file, line)
            while written < len(line):
                line = line[written:]
                written = os.write(self._file, line)
        except OSError as error:
            raise StoreUnavailable(f"the history cannot be written: {error.strerror}") from error


def load(paths: Iterable[Path]) -> Iterator[Event]:
    """Read the files of one history, and yield their events as one, by time; a process's keep their order.

    A last line without its end is left out: its writer was killed.

    Raises:
        BadRequest: a line is no event, times go back, or two files are of the same process.
        StoreUnavailable: a file cannot be read.
    """
    files_of: dict[str, Path] = {}
    return heapq.merge(*(_events(path, files_of) for path in paths), key=_at)


_at = attrgetter("at")


def _events(path: Path, files_of: dict[str, Path]) -> Iterator[Event]:
    decode = _decoder.decode
    at, process = 0, None
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    event = decode(line)
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    raise BadRequest(f"{path}:{number}: {error}") from error
                if event.at < at:
                    raise BadRequest(f"{path}:{number}: time goes back")
                if event.process != process:
                    process = event.process
                    if files_of.setdefault(process, path) is not path:
                        raise BadRequest(f"{path}:{number}: process {process} has another file, {files_of[process]}")
                at = event.at
                yield event
    except OSError as error:
        raise StoreUnavailable(f"{path}: {error.strerror}") from error
