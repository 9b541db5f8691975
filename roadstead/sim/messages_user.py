"""What the user of a device does: all that the message services can be asked for, at random."""

from __future__ import annotations

from dataclasses import dataclass

from base.clock import Instant
from roadstead.client.conversation import Conversation
from roadstead.sim.messages_client import Item, Phone

__all__ = ["User"]

SHOWN_MAX = 12
"""Messages of a conversation that somebody changes, from its end."""


@dataclass(slots=True)
class User:
    """How often, and with whom. `silent` users are in groups, and have no devices."""

    peers: list[str]
    silent: list[str]
    every_ms: int
    members_max: int
    is_reader: bool
    """Who reads more than it writes."""

    def act(self, phone: Phone, now: Instant) -> int:
        """Do one thing; return how many ms to wait until the next one."""
        dice = phone.host.dice
        kind = dice.between(0, 99)
        conversations = phone.conversations()
        if not any(not one.peer for one in conversations) and dice.chance(80):
            self._create(phone, now)
        elif not conversations or (kind < 45 and not (self.is_reader and dice.chance(700))):
            self._send(phone, now)
        elif kind < 45 or 55 <= kind < 67:
            self._mark(phone, dice.pick(conversations), now)
        elif kind < 55:
            self._revise(phone, now)
        elif kind < 70:
            cid = int(dice.pick(conversations).cid)
            phone.write(Item(method="hide", place=f"view {cid}", arguments=(cid, dice.chance(500))), now)
        elif kind < 72:
            self._create(phone, now)
        elif kind < 87:
            self._change(phone, now)
        elif kind < 90:
            phone.go_offline(now, dice.between(500, 5_000))
        elif kind < 94:
            phone.show(phone.view.open(dice.pick(conversations)), now)
        elif kind < 96:
            phone.call("unread", (), lambda _answer, _now: None, now)
        elif kind < 98:
            phone.show(phone.view.ask_list(), now)
        else:
            phone.record.shown(dice.pick(conversations))
        return dice.between(1, 2 * self.every_ms)

    def _send(self, phone: Phone, now: Instant) -> None:
        """Send something, or several things to several places at once."""
        dice = phone.host.dice
        conversations = phone.conversations()
        groups = [one for one in conversations if not one.peer]
        places: list[str | Conversation] = [*self.peers, *conversations]
        for _ in range(4 if dice.chance(150) else 1):
            place = dice.pick(groups if groups and dice.chance(500) else places)
            key = phone.kept.next_key()
            to, cid = (place, None) if isinstance(place, str) else ("", int(place.cid))
            is_group = isinstance(place, Conversation) and not place.peer
            peer = to or (place.peer if isinstance(place, Conversation) else "")
            body, is_queued = f"{phone.kept.user}/{key}", dice.chance(500 if is_group else 200)
            phone.write(
                Item(
                    method="send",
                    op="send",
                    place=f"to {peer}" if peer else f"in {cid}",
                    key=key,
                    cid=cid,
                    to=to,
                    body=body,
                    arguments=(to, cid or 0, key, f'"{body}"'.encode(), is_queued),
                ),
                now,
            )

    def _revise(self, phone: Phone, now: Instant) -> None:
        """Edit or recall something that is shown: mostly one's own."""
        dice = phone.host.dice
        conversation = dice.pick(phone.conversations())
        rows = [row for row in conversation.rows()[-SHOWN_MAX:] if row.seq and row.data["kind"] == "message"]
        mine = [row for row in rows if row.data["from"] == phone.kept.user]
        chosen = mine if mine and dice.chance(800) else rows
        if not chosen:
            return
        row, cid, key = dice.pick(chosen), int(conversation.cid), phone.kept.next_key()
        is_recall = dice.chance(400)
        body = "" if is_recall else f"{phone.kept.user}/{key} edited"
        phone.write(
            Item(
                method="recall" if is_recall else "edit",
                op="recall" if is_recall else "edit",
                place=f"to {conversation.peer}" if conversation.peer else f"in {cid}",
                key=key,
                cid=cid,
                body=body,
                ref=row.seq,
                arguments=(cid, row.seq, key, b"" if is_recall else f'"{body}"'.encode()),
            ),
            now,
        )

    def _mark(self, phone: Phone, conversation: Conversation, now: Instant) -> None:
        """Say what was read; sometimes less than what was said before."""
        dice = phone.host.dice
        if not conversation.hi or conversation.last_seq:
            return
        least = 1 if dice.chance(400) else max(1, conversation.hi - SHOWN_MAX)
        cid, seq = int(conversation.cid), dice.between(least, conversation.hi)
        phone.show(phone.view.read(conversation.cid, seq, now), now)
        key = phone.kept.next_key()
        item = Item(method="mark", op="mark_read", place=f"view {cid}", key=key, cid=cid, ref=seq, arguments=(cid, seq))
        phone.write(item, now)

    def _create(self, phone: Phone, now: Instant) -> None:
        dice = phone.host.dice
        key = phone.kept.next_key()
        members = [peer for peer in self.peers if dice.chance(600)]
        if dice.chance(400):
            members += self.silent[: dice.between(1, self.members_max)]
        settings = (
            ("who_joins", dice.pick(("invited", "anybody", "anybody"))),
            ("history", dice.pick(("joined", "all"))),
        )
        arguments = (key, f"group {key}", tuple(members), settings)
        phone.write(Item(method="create", op="create", place=f"make {key}", key=key, arguments=arguments), now)

    def _change(self, phone: Phone, now: Instant) -> None:
        """Do something to a group, or come back to one."""
        dice = phone.host.dice
        groups = [one for one in phone.conversations() if not one.peer and one.cid]
        if not groups:
            return
        group = dice.pick(groups)
        action = dice.pick(_ACTIONS) if not group.last_seq else "join"
        users = [peer for peer in self.peers if dice.chance(400)]
        if action in {"invite", "kick"} and self.silent and dice.chance(300):
            users += self.silent[: dice.between(1, self.members_max)]
        value = {"rename": f"name {now}", "mute_all": dice.pick(("true", "false")), "role": "admin"}.get(action, "")
        if action == "mute":
            value = str(dice.pick((0, 1_700_010_000_000)))
        arguments = (int(group.cid), action, tuple(users[:1] if action == "transfer" else users), value)
        phone.write(Item(method="change", place=f"in {group.cid}", arguments=arguments), now)


_ACTIONS = (*("invite",) * 4, *("kick",) * 3, *("leave",) * 3, "join", "role", "transfer", "rename", "mute", "mute_all")
"""Nobody dissolves a group here but the last one who leaves it."""
