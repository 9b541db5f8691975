"""Metrics of the message services."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import Gauge

from base.metrics import Metrics

__all__ = ["ImMetrics"]

_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class OverShards:
    """A gauge to which each shard of the process adds its part."""

    def __init__(self, gauge: Gauge, combine: Callable[[Iterable[int]], int]) -> None:
        self._parts: dict[object, Callable[[], int]] = {}
        gauge.set_function(lambda: combine([part() for part in self._parts.values()] or [0]))

    def add(self, part: Callable[[], int]) -> Callable[[], None]:
        """Count what `part` returns from now on; call what is returned to end that."""
        key = object()
        self._parts[key] = part

        def forget() -> None:
            self._parts.pop(key, None)

        return forget


class ImMetrics:
    """Declared once; each line's help text is its documentation."""

    def __init__(self, metrics: Metrics) -> None:
        self.stored = metrics.counter("im_messages_stored", "Messages made durable.")
        self.repeats = metrics.counter(
            "im_messages_repeated", "Sends whose key had been stored before; nothing was written."
        )
        self.conflicts = metrics.counter(
            "im_messages_conflicting", "Sends refused: their key was used for another message."
        )
        self.batches = metrics.histogram("im_commit_messages", "Messages in one commit.", buckets=_BATCH_BUCKETS)
        self.sends = metrics.histogram("im_send_seconds", "From a send's arrival to its durable acknowledgement.")
        self.pushes = metrics.counter("im_pushes", "Timeline entries sent to access nodes.")
        self.push_failures = metrics.counter(
            "im_push_failures", "Timeline entries that could not be sent; told again later."
        )
        self.absent = metrics.counter("im_push_absent", "Entries sent to an access node that the user had just left.")
        self.conversation_pushes = metrics.counter(
            "im_conversation_pushes", "Messages sent to access nodes that follow their conversation."
        )
        self.conversation_push_failures = metrics.counter(
            "im_conversation_push_failures",
            "Messages that could not be sent to an access node that follows their conversation; its audit finds them.",
        )
        self.followed = metrics.gauge(
            "im_followed_conversations", "Conversations that access nodes follow, each counted once a node."
        )
        self.follows_refused = metrics.counter(
            "im_follows_refused", "Conversations that could not be followed, because too many are."
        )
        self.calls = metrics.histogram(
            "im_call_seconds", "From the arrival of a client's call, other than a send, to its answer."
        )
        self.rate_limited = metrics.counter("im_calls_rate_limited", "Calls refused with error 107.")
        self.overloaded = metrics.counter("im_calls_overloaded", "Calls refused with error 102 under pressure.")
        self.crowded = metrics.counter(
            "im_fan_outs_refused",
            "Messages and changes refused with error 102, since too much of their group waits for its timelines.",
        )
        self.dropped_work = OverShards(
            metrics.gauge(
                "im_dropped_work",
                "What is dropped under pressure: 0 nothing, 1 typing, 2 a level at which nothing more is left out, "
                "3 also receipts, 4 also previews, 5 also messages. Of the shard that drops most.",
            ),
            max,
        )
        self.missed = metrics.counter(
            "im_offline_messages", "Messages that found their receiver offline, or whose session ended in silence."
        )
        self.drift = metrics.counter(
            "im_unread_drift", "Conversations whose unread counter was wrong when it was compared with the pointers."
        )
        self.counted = OverShards(
            metrics.gauge("im_unread_counters", "Conversations of users whose unread messages are counted."), sum
        )
        self.search_lag = OverShards(
            metrics.gauge("im_search_lag", "Entries that the search indexes have not read yet."), sum
        )
        self.reads_waiting = OverShards(metrics.gauge("im_reads_waiting", "Reads waiting for the user's others."), sum)
        self.behind = OverShards(metrics.gauge("im_push_behind", "Users waiting to be told again."), sum)
        self.taken_over = metrics.counter(
            "im_entries_taken_over", "Timeline entries that came from other shards' logs."
        )
        self.outgoing = OverShards(
            metrics.gauge("im_outgoing", "Entries that wait for another shard to take them over."), sum
        )
        self.forwarded = metrics.counter(
            "im_calls_forwarded", "Calls for shards of other processes, passed on to them."
        )
        self.shards = metrics.gauge("im_shards", "Shards that this process has.")
