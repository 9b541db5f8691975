"""Whether entries are written into timelines or read from logs, a client sees the same: one trace, every strategy.

The trace is of 50,000 events among single chats and groups of 3 to 130 members. What a few clients are told goes into
the view model of the Python client, as a connection would bring it; what they show in the end is compared between the
strategies, and with the logs.
"""

from __future__ import annotations

import pytest

from base.clock import Instant, Timestamp
from im.core.book import LedgerSettings
from im.core.fan_out import FanOutPolicy
from im.reading import Reading
from im.store.memory import MemoryMessageStore
from tests.im.traces import BATCH, POLICIES, WATCHED, Seen, Trace, Watcher, expected, tell

EVENTS = 50_000


async def play(policy: FanOutPolicy) -> tuple[dict[str, Seen], dict[str, Seen]]:
    """Play the trace; return what the watchers have shown, and what the logs say that they should have."""
    store = MemoryMessageStore(settings=LedgerSettings(policy=policy, recall_window_ms=10**9, edit_window_ms=10**9))
    reading = Reading(
        store,
        None,  # type: ignore[arg-type] - nothing is searched
        None,  # type: ignore[arg-type] - nor counted
        sync_entries_max=1_000,
        has_previews=lambda: True,
    )
    watchers = {user: Watcher(user, store, reading) for user in WATCHED}
    for watcher in watchers.values():
        await watcher.begin()
    trace = Trace()
    commands = trace.groups()
    is_made = False
    for number in range(EVENTS // BATCH + 1):
        now = Instant(1_000 * (number + 1))
        executed = await store.execute(commands)
        deliveries = executed.deliveries
        while store.has_work:
            deliveries += (await store.execute([])).deliveries
        if not is_made:
            trace.made(executed.outcomes)
            is_made = True
        for delivery in deliveries:
            await tell(delivery, watchers, now)
        for watcher in watchers.values():
            await watcher.do(watcher.view.advance(now), now)
        commands = trace.batch(Timestamp(number))
    return {user: watcher.seen for user, watcher in watchers.items()}, {
        user: await expected(store, user) for user in WATCHED
    }


@pytest.mark.spec("CC-10", "FO-08")
async def test_clients_show_the_same_whatever_the_strategy() -> None:
    """Every entry between joining and leaving, in order, once, edited and recalled as it is now.

    Between the strategies only the events of groups differ, which name the strategy.
    """
    plain = []
    for policy in POLICIES.values():
        shown, logs = await play(policy)
        assert shown == logs
        plain.append(
            {
                user: {cid: [row for row in rows if isinstance(row[2], str | None)] for cid, rows in seen.items()}
                for user, seen in shown.items()
            }
        )
    assert plain[0] == plain[1] == plain[2]
    assert sum(len(rows) for seen in plain[0].values() for rows in seen.values()) > EVENTS // 2
