"""What clients and backends read: timelines, histories, the list of conversations, what is unread, who has read what.

All of it is answered from the store, as of now. A page never begins before what the user may see, and ends with it: who
left a group reads up to the leaving.

Pages are bounded by bytes, too: a client that cannot be given a page could not be given anything after it either. One
entry is in each page, however long it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from base.errors import BadRequest, NotFound, NotMember, PositionLost, RoadsteadError
from im.core.arguments import (
    Conversations,
    ConversationsArguments,
    ConversationView,
    Entries,
    HistoryArguments,
    Members,
    MembersArguments,
    MemberView,
    Receipts,
    ReceiptsArguments,
    Search,
    SearchArguments,
    SyncArguments,
    SyncResult,
    Unread,
    UnreadArguments,
    UnreadPart,
    cid_of,
)
from im.core.book import DIRECT_MAX
from im.core.model import Conversation, FanOut, Message, Overlay, Role
from im.core.publications import shown
from im.core.unread import unread
from im.counting import Counting, pointers_of
from im.ports import ConversationPage, Listed, MessageStore, Visible

__all__ = ["Reading", "Searching", "overlays_told", "sync_version", "visible_of"]

Overlays = Mapping[tuple[int, int], Overlay]

READERS_MAX = 100
RECEIPT_MEMBERS_MAX = 1_000
PAGE_BYTES_MAX = 524_288
"""Of bodies and what is around them. Access nodes close a client for which more than twice that waits."""
FOUND_OF_LEFT = 100
"""Messages to look for at once for somebody who left, to whom some of them are not shown."""
NOTHING = Visible(1 << 63, 0, Role.MEMBER)
"""Of a conversation that nothing is known of."""
FILLED_AT_ONCE = 8
"""Conversations of a page whose newest messages are long, and read at once."""
AROUND_BYTES = 400
"""About as much as a publication has beside its body."""


class Searching(Protocol):
    """What finds messages by their words."""

    async def find(
        self, cid: int, query: str, *, first_seq: int, last_seq: int, before: int, limit: int
    ) -> Sequence[int]:
        """Return the seqs of the newest matches, descending; `last_seq` and `before` 0 are no bounds."""
        ...


class _Event(msgspec.Struct, frozen=True):
    """What the event of a group says of the group, as its body has it."""

    name: str = ""
    fan_out: FanOut = "read"


class Reading:
    """The reading methods."""

    def __init__(
        self,
        store: MessageStore,
        search: Searching,
        counting: Counting,
        *,
        sync_entries_max: int,
        has_previews: Callable[[], bool],
        has_direct: bool = True,
    ) -> None:
        """Read from the store.

        Args:
            store: has everything that the users of its shard may read.
            search: finds in the store's logs.
            counting: counts what is unread.
            sync_entries_max: of one page.
            has_previews: whether lists show the newest messages just now.
            has_direct: see `LedgerSettings`.
        """
        self._store = store
        self._search = search
        self._counting = counting
        self._sync_entries_max = sync_entries_max
        self._has_previews = has_previews
        self._has_direct = has_direct

    # ------------------------------------------------------------ timelines and logs

    async def sync(self, user: str, arguments: SyncArguments) -> SyncResult:
        """Return a page of the user's timeline.

        Raises:
            PositionLost: it is of another epoch, or beyond the end.
        """
        epoch = self._store.epoch
        if arguments.epoch not in ("", epoch):
            raise PositionLost("the position is of another epoch; begin from im.conversations", reason="epoch")
        since = arguments.since
        page = await self._store.timeline(user, since=since, limit=min(arguments.limit, self._sync_entries_max))
        if since > page.head:
            raise PositionLost("the position is beyond the end; begin from im.conversations", reason="beyond")
        if since < page.floor:
            return SyncResult(epoch, page.head, has_more=False, too_old=True, entries=[])
        overlays = await self.overlays_for(user, page.overlays)
        found = page.entries[: _fitting([entry.message for entry in page.entries], overlays)]
        entries = [
            {"offset": offset, "data": shown(message, overlays.get((message.cid, message.seq)))}
            for offset, message in ((entry.offset, entry.message) for entry in found)
        ]
        reached = found[-1].offset if found else since
        return SyncResult(epoch, page.head, has_more=reached < page.head, too_old=False, entries=entries)

    async def overlays_for(self, user: str, overlays: Overlays) -> Overlays:
        """Return those of a page of the user's timeline that the user may see.

        Of a conversation whose shard does not answer no edit is applied: who may see one has its entry as well.
        """
        edited = {cid for (cid, _), one in overlays.items() if one.body}
        if not edited:
            return overlays
        async with asyncio.TaskGroup() as tasks:
            asked = {cid: tasks.create_task(self._visible_or_nothing(cid, user)) for cid in edited}
        visible = {cid: task.result() for cid, task in asked.items()}
        return {place: one for place, one in overlays.items() if _may_be_told(one, visible.get(one.cid, NOTHING))}

    async def _visible_or_nothing(self, cid: int, user: str) -> Visible:
        try:
            return await self._store.membership(cid, user) or NOTHING
        except RoadsteadError:
            return NOTHING

    async def history(self, user: str, arguments: HistoryArguments) -> Entries:
        """Return a stretch of a conversation, as far as the user may see it.

        Raises:
            NotMember: the user sees nothing of it, or it does not exist.
        """
        cid = cid_of(arguments.cid)
        visible = await self.visible(cid, user)
        if arguments.after is not None and arguments.before is not None:
            raise BadRequest("give either after or before")
        if arguments.after is None:
            before = arguments.before or (1 << 62)
            if visible.last_seq:
                before = min(before, visible.last_seq + 1)
            page = await self._store.conversation_before(cid, before=before, limit=arguments.limit)
        else:
            since = max(arguments.after, visible.first_seq - 1)
            page = await self._store.conversation(cid, since=since, limit=arguments.limit)
        visible = await self.visible_still(cid, user, visible)
        head = min(page.head, visible.last_seq) if visible.last_seq else page.head
        seen, overlays = _seen(page, visible.first_seq, head), overlays_told(page.overlays, visible)
        if arguments.after is None:
            seen.reverse()  # the last ones are those that were asked for
            chosen = seen[: _fitting(seen, overlays)][::-1]
        else:
            chosen = seen[: _fitting(seen, overlays)]
        return Entries(self._store.epoch, head, visible.first_seq, _shown(chosen, overlays))

    async def visible(self, cid: int, user: str) -> Visible:
        """Return what the user may see of the conversation. Raises NotMember."""
        visible = await self._store.membership(cid, user)
        if visible is None:
            # In the same words when it does not exist: nobody can find out by asking.
            raise NotMember("there is no such conversation, or you are no member of it")
        return visible

    async def visible_still(self, cid: int, user: str, visible: Visible) -> Visible:
        """Return what the user may see of a page that was read after `visible` was found.

        The user may have left meanwhile, and what came then is in the page.
        """
        return visible if visible.last_seq else await self.visible(cid, user)

    async def present(self, cid: int, user: str) -> Visible:
        """Return what the user may see of a conversation that the user is in now. Raises NotMember."""
        visible = await self.visible(cid, user)
        if visible.last_seq:
            raise NotMember("you are no member of this conversation any more")
        return visible

    async def users(self, cid: int, user: str, *, at_most: int) -> Sequence[str]:
        """Return who is in the user's conversation, nobody if they are more than `at_most`. Raises NotMember."""
        users = await self._store.users(cid, at_most=at_most)
        if user not in users:
            await self.present(cid, user)
        return users

    async def search(self, user: str, arguments: SearchArguments) -> Search:
        """Return messages of a conversation that have all the words. Raises NotMember, BadRequest.

        What was edited after the user left is not found by any word: the search knows its newest text only.
        """
        cid = cid_of(arguments.cid)
        visible = await self.visible(cid, user)
        limit, before = arguments.limit, arguments.before or 0
        chosen: list[Message] = []
        overlays: dict[tuple[int, int], Overlay] = {}
        # Full pages, whatever was left out: one that is short by it would tell of the word.
        while len(chosen) < limit:
            wanted = FOUND_OF_LEFT if visible.last_seq else limit
            seqs = await self._search.find(
                cid,
                arguments.text,
                first_seq=visible.first_seq,
                last_seq=visible.last_seq,
                before=before,
                limit=wanted,
            )
            page = await self._store.messages(cid, sorted(seqs))
            visible = await self.visible_still(cid, user, visible)
            told = overlays_told(page.overlays, visible)
            untold = page.overlays.keys() - told.keys()
            seen = _seen(page, visible.first_seq, visible.last_seq or page.head)[::-1]
            chosen += [message for message in seen if (cid, message.seq) not in untold]
            overlays.update(told)
            if len(seqs) < wanted:
                break
            before = seqs[-1]
        chosen = chosen[:limit]
        return Search(_shown(chosen[: _fitting(chosen, overlays)], overlays))

    # ------------------------------------------------------------ conversations

    async def conversations(self, user: str, arguments: ConversationsArguments) -> Conversations:
        """Return a page of the user's list; hidden conversations are not in it."""
        (timeline,) = await self._store.heads([user])  # before the list: see `Conversations.timeline`
        listed = await self._store.conversations(user)
        pages = sorted((_order(one), one) for one in listed if _is_listed(one))
        total = sum(unread(pointers_of(one)) for one in listed)
        if arguments.after:
            after = _decoded(arguments.after)
            pages = [page for page in pages if page[0] > after]
        chosen = pages[: arguments.limit]
        has_previews = self._has_previews()
        if has_previews:
            chosen = await self._filled(user, chosen)
        return Conversations(
            self._store.epoch,
            timeline,
            sync_version(timeline, listed) if self._has_direct else timeline,
            total,
            [self._view(user, one, has_preview=has_previews) for _, one in chosen],
            _encoded(chosen[-1][0]) if len(pages) > len(chosen) else "",
        )

    async def _filled(self, user: str, chosen: Sequence[tuple[Order, Listed]]) -> list[tuple[Order, Listed]]:
        """Return as many of these conversations as a page may have, with whole heads."""
        page: list[tuple[Order, Listed]] = []
        size = 0
        for begin in range(0, len(chosen), FILLED_AT_ONCE):
            part = chosen[begin : begin + FILLED_AT_ONCE]
            briefs = [one.conversation.cid for _, one in part if _is_brief(one)]
            whole = {one.conversation.cid: one for one in await self._store.listed(user, briefs)} if briefs else {}
            part = [(order, whole.get(one.conversation.cid, one)) for order, one in part]
            size += sum(_size_of_last(one) for _, one in part)
            page += part
            if size > PAGE_BYTES_MAX:
                break
        return page[: _fitting_sizes([_size_of_last(one) for _, one in page])]

    async def unread(self, user: str, _arguments: UnreadArguments) -> Unread:
        """Return what the user has not read, by conversation and in total."""
        parts = [part for part in await self._counting.unread(user) if part.unread]
        return Unread(
            sum(part.unread for part in parts),
            sum(part.unread for part in parts if part.is_muted),
            [UnreadPart(str(part.cid), part.unread) for part in parts],
        )

    def _view(self, user: str, one: Listed, *, has_preview: bool) -> ConversationView:
        member, head = one.member, one.head
        visible = visible_of(one)
        last_seq = visible.last_seq
        conversation, members = (_as_left(one, last_seq), 0) if last_seq else (one.conversation, one.members)
        group = conversation.group
        pointed = pointers_of(one)
        # What still comes to who left, such as an invitation, comes there as well.
        is_direct = conversation.fan_out == "write" or last_seq > 0 or (members <= DIRECT_MAX and self._has_direct)
        last = None
        if head is not None and has_preview:
            overlay = one.head_overlay
            last = shown(head, overlay if overlay is not None and _may_be_told(overlay, visible) else None)
        return ConversationView(
            cid=str(conversation.cid),
            kind=conversation.kind,
            fan_out=conversation.fan_out,
            channel="inbox" if is_direct else "conv",
            max_seq=one.max_seq,
            max_cseq=one.max_cseq,
            read_seq=pointed.floor_seq,
            unread=unread(pointed),
            first_seq=visible.first_seq,
            members=members,
            peer="" if group is not None else conversation.hi if conversation.lo == user else conversation.lo,
            name=group.name if group is not None else "",
            role=Role(member.role).name.lower() if member is not None else "",
            last=last,
            last_seq=last_seq,
            mentioned_seq=0 if last_seq else one.mentioned_seq,  # by a later edit, maybe
            is_muted=one.view.is_muted,
            pinned_at=one.view.pinned_at,
            is_marked_unread=one.view.is_marked_unread,
            is_dissolved=group is not None and group.is_dissolved,
        )

    # ------------------------------------------------------------ members

    async def receipts(self, user: str, arguments: ReceiptsArguments) -> Receipts:
        """Return who has read an entry. Raises NotMember, NotFound."""
        cid = cid_of(arguments.cid)
        visible = await self.present(cid, user)
        (one,) = await self._store.listed(user, [cid])
        if not visible.first_seq <= arguments.seq <= one.max_seq:
            raise NotFound("there is no such message, or you may not see it")
        views = await self._store.views(cid, read_from=arguments.seq, limit=RECEIPT_MEMBERS_MAX)
        readers = [view.user for view in views if view.user != user]
        return Receipts(one.members - 1, len(readers), readers[:READERS_MAX])

    async def members(self, user: str, arguments: MembersArguments) -> Members:
        """Return a page of who is in a group. Raises NotMember."""
        cid = cid_of(arguments.cid)
        await self.present(cid, user)
        found = await self._store.members(cid, after=arguments.after, limit=arguments.limit)
        views = [
            MemberView(member.user, Role(member.role).name.lower(), member.join_seq, member.muted_until)
            for member in found
        ]
        return Members(views, views[-1].user if len(views) == arguments.limit else "")


def sync_version(timeline: int, listed: Sequence[Listed]) -> int:
    """Return the version of all that a user can see by direct pushes: it changes with each of them.

    It is where the timeline ends, plus where the small conversations with read fan-out end, which have no entries
    there. Those that the user left are not among them: how many others are in them now, nobody tells the user.
    """
    return timeline + sum(one.max_seq for one in listed if _is_pushed_only(one))


def visible_of(one: Listed) -> Visible:
    """Return what of a conversation its user may see."""
    member = one.member
    if member is None:
        return Visible(1, 0, Role.MEMBER)
    return Visible(member.first_seq, member.leave_seq, member.role)


def _as_left(one: Listed, leave_seq: int) -> Conversation:
    """Return a group as it was when the user left it with the event `leave_seq`: that is what the user saw last."""
    conversation, head = one.conversation, one.head
    group = conversation.group
    assert group is not None
    if group.version == leave_seq:
        return conversation
    # The event is what a list shows of it, but for the moment in which the list is read while it is stored.
    event = msgspec.json.decode(head.body, type=_Event) if head is not None and head.seq == leave_seq else _Event()
    group = msgspec.structs.replace(group, name=event.name, is_dissolved=False)
    return msgspec.structs.replace(conversation, fan_out=event.fan_out, group=group)


def _is_pushed_only(one: Listed) -> bool:
    has_left = one.member is not None and one.member.leave_seq > 0
    return one.conversation.fan_out == "read" and one.members <= DIRECT_MAX and not has_left


def _seen(page: ConversationPage, first_seq: int, last_seq: int) -> list[Message]:
    return [message for message in page.messages if first_seq <= message.seq <= last_seq]


def overlays_told(overlays: Overlays, visible: Visible) -> Overlays:
    """Return the overlays that somebody is shown to whom this part of a conversation is visible.

    No edit made after the user left is told, nor of a message from before the user came, or came back. What takes a
    body away is always told.
    """
    return {place: one for place, one in overlays.items() if _may_be_told(one, visible)}


def _may_be_told(overlay: Overlay, visible: Visible) -> bool:
    return not overlay.body or (
        overlay.seq >= visible.first_seq and (not visible.last_seq or overlay.version <= visible.last_seq)
    )


def _shown(messages: Sequence[Message], overlays: Overlays) -> list[object]:
    return [shown(message, overlays.get((message.cid, message.seq))) for message in messages]


def _fitting(messages: Sequence[Message], overlays: Overlays) -> int:
    """Return how many of the messages, from the first on, a page may have."""
    return _fitting_sizes([_size(message, overlays.get((message.cid, message.seq))) for message in messages])


def _fitting_sizes(sizes: Sequence[int]) -> int:
    left = PAGE_BYTES_MAX
    for count, size in enumerate(sizes):
        left -= size
        if left < 0 and count:
            return count
    return len(sizes)


def _size(message: Message, overlay: Overlay | None) -> int:
    covered = message if overlay is None else overlay
    return AROUND_BYTES + len(covered.body) + len(covered.mentions)


def _size_of_last(one: Listed) -> int:
    return AROUND_BYTES + (_size(one.head, one.head_overlay) if one.head is not None else 0)


def _is_brief(one: Listed) -> bool:
    """Return whether something of the head was left out: no body is empty by itself, unless it was recalled."""
    head, overlay = one.head, one.head_overlay
    if head is None or (overlay is not None and overlay.is_recalled):
        return False
    return not head.body or (overlay is not None and not overlay.body)


def _is_listed(one: Listed) -> bool:
    return one.max_seq > one.view.hidden_seq


Order = tuple[int, int, int]


def _order(one: Listed) -> Order:
    """Return what a list is sorted by: pinned ones, the latest pin first; then the newest entries."""
    at = one.head.at if one.head is not None else 0
    return (-one.view.pinned_at, -at, one.conversation.cid)


def _encoded(order: Order) -> str:
    return ".".join(map(str, order))


def _decoded(text: str) -> Order:
    try:
        pinned, at, cid = map(int, text.split("."))
    except ValueError as error:
        raise BadRequest("after is no `next` of a page") from error
    return (pinned, at, cid)
