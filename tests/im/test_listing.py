"""Lists of conversations whose newest messages are long: from a file, in brief, and page by page."""

from __future__ import annotations

from pathlib import Path

import msgspec

from base.clock import SimClock, Timestamp
from base.metrics import Metrics
from im.core.arguments import ConversationsArguments
from im.core.commands import ChangeGroup, CreateGroup, Draft, Revise
from im.core.publications import shown
from im.counting import Counting
from im.metrics import ImMetrics
from im.reading import PAGE_BYTES_MAX, Reading
from im.search.search import Search
from im.store.sqlite import SqliteMessageStore

NOW = Timestamp(1_000)
LONG = b'"' + b"x" * 65_000 + b'"'
MEMBERS = tuple(f"member-{n}-{'x' * 20}" for n in range(100))
GROUP, LONG_EDITED, SHORTENED, RECALLED, UNSHOWN = 1, 2, 3, 4, 5


async def written(path: Path, *, long: int) -> SqliteMessageStore:
    """A store of which next to nothing is in memory: heads of each kind, then plain long ones."""
    store = await SqliteMessageStore.open(path, lag_max=1)
    await store.execute([CreateGroup(1, "ann", "phone", "g", "friends", ("bob", *MEMBERS), NOW)])
    for n in range(4 + long):
        body = b"1" if n == 0 else LONG
        await store.execute([Draft(n, "ann", "phone", f"peer-{n}", 0, f"k{n}", "text", body, NOW)])
    await store.execute([Revise(11, "ann", "phone", LONG_EDITED, 1, "e1", False, LONG, NOW)])
    await store.execute([Revise(12, "ann", "phone", SHORTENED, 1, "e2", False, b"2", NOW)])
    await store.execute([Revise(13, "ann", "phone", RECALLED, 1, "r1", True, b"", NOW)])
    await store.execute([Draft(14, "ann", "phone", "", UNSHOWN, "k", "text", b"3", NOW)])
    await store.execute([Revise(15, "ann", "phone", UNSHOWN, 2, "e3", False, LONG, NOW)])
    await store.execute([ChangeGroup(16, "bob", "phone", GROUP, "leave", NOW)])
    for n in range(100, 120):
        await store.execute([Draft(n, "xeno", "phone", "xeno", 0, f"k{n}", "text", b"1", NOW)])
    return store


async def settled() -> None:
    """Nothing is under way."""


async def test_a_list_of_all_holds_little_of_what_is_said(tmp_path: Path):
    """Neither long messages nor long edits, while counts and ends are those of the whole."""
    store = await written(tmp_path / "messages.db", long=20)
    listed = {one.conversation.cid: one for one in await store.conversations("ann")}
    assert len(listed) == 1 + 4 + 20
    bodies = [part.body for one in listed.values() for part in (one.head, one.head_overlay) if part is not None]
    assert sum(map(len, bodies)) < 20_000
    for whole in await store.listed("ann", list(listed)):
        brief = listed[whole.conversation.cid]
        assert whole.head is not None
        assert brief.head is not None
        assert msgspec.structs.replace(brief, head=whole.head, head_overlay=whole.head_overlay) == whole
        assert brief.head == msgspec.structs.replace(whole.head, body=brief.head.body)
        assert brief.head.body in {whole.head.body, b""}
    await store.close()


async def test_pages_of_a_list_have_long_messages_whole(tmp_path: Path):
    """As many as fit a page, of every kind; events are never cut, since who left a group is shown it as they say."""
    store = await written(tmp_path / "messages.db", long=20)
    search = await Search.open(tmp_path / "search.db", store, SimClock())
    counting = Counting(store, ImMetrics(Metrics({})), settle=settled, interval_ms=60_000)
    reading = Reading(store, search, counting, sync_entries_max=50, has_previews=lambda: True)
    for user, count in (("ann", 1 + 4 + 20), ("bob", 1)):
        whole = {str(one.conversation.cid): one for one in await store.listed(user, range(1, 26))}
        after, pages = "", []
        while after or not pages:
            page = await reading.conversations(user, ConversationsArguments(limit=9, after=after))
            assert len(msgspec.json.encode(page)) < PAGE_BYTES_MAX + 2 * len(LONG)
            after = page.next
            pages.append(page.conversations)
        views = [view for page in pages for view in page]
        assert sorted(view.cid for view in views) == sorted(whole)
        assert len(views) == count
        for view in views:
            one = whole[view.cid]
            assert one.head is not None
            assert view.last == shown(one.head, one.head_overlay)
            assert view.name == ("friends" if view.kind == "group" else "")
    await search.close()
    await store.close()
