"""Who talks with whom, and what is done beside talking: the script of all devices of a history.

Most messages go between two users; there are groups with write fan-out whose members come and go, groups with read
fan-out, and groups that are switched from one to the other while everybody writes. Once in a while a message is edited
or recalled, a conversation marked as read, or an acknowledged send is repeated.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import defaultdict, deque
from random import Random
from typing import Literal

import msgspec

from roadstead.client import Client, Incoming, Position
from roadstead.history.recorder import Recorder, digest
from tests.process.message_clients import Call, LightDevice
from tests.process.message_witness import Entry, Witness

__all__ = ["Group", "GroupKind", "SdkDevice", "Traffic"]

GroupKind = Literal["open", "read", "switched"]
REMEMBERED = 50
PAUSE_S = 0.01


class Group(msgspec.Struct, frozen=True):
    """A group of the history. `open`: members come and go; `read`: some go; `switched`: its fan-out changes."""

    cid: int
    kind: GroupKind
    owner: str
    members: tuple[str, ...]


class _Stored(msgspec.Struct, frozen=True):
    call: Call
    cid: int
    seq: int


class Traffic:
    """The script. It ends when so many messages were begun."""

    def __init__(self, target: int, random: Random) -> None:
        self.target = target
        self.begun = 0
        self.pause_s = PAUSE_S
        """How long a device with the SDK rests after a message, on average."""
        self.written: dict[tuple[str, str], str] = {}
        """Digest of every body, by its key."""
        self.peers: dict[str, list[str]] = {}
        self.groups: dict[int, Group] = {}
        self.random = random
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._sent: defaultdict[LightDevice, deque[_Stored]] = defaultdict(lambda: deque(maxlen=REMEMBERED))

    @property
    def is_over(self) -> bool:
        """Whether nothing more is going to be begun."""
        return self.begun >= self.target

    # ---------------------------------------------------------------- what a device does

    def next(self, device: LightDevice) -> Call | None:
        """See `Script`."""
        if self.begun >= self.target:
            return None
        roll, sent = self.random.random(), self._sent[device]
        if roll < 0.004:
            device.ask_unread()
        elif roll < 0.006:
            device.look_back(self.random.choice(sorted(self.groups.keys() - device.groups)))
        elif roll < 0.016 and sent:
            return self._revision(device, self.random.choice(sent))
        elif roll < 0.026 and device.latest[0]:
            cid, seq = device.latest
            arguments = {"cid": str(cid), "read_seq": seq}
            return Call("mark_read", self._key(device.user, device.name), "mark", arguments, cid=cid, ref=seq)
        elif roll < 0.031 and sent:
            return self._again(self.random.choice(sent).call)
        elif roll < 0.042:
            change = self._change(device)
            if change is not None:
                return change
        return self._message(device)

    def stored(self, device: LightDevice, call: Call, *, cid: int, seq: int) -> None:
        """See `Script`."""
        if call.op == "send":
            self._sent[device].append(_Stored(call, cid, seq))

    def body(self, user: str, device: str) -> tuple[str, str, str]:
        """Return a new message's key, its body, and the digest of that."""
        self.begun += 1
        key = self._key(user, device)
        body = f"{key} says {self.random.random()}"
        return key, body, self.write(user, key, body)

    def write(self, user: str, key: str, body: str) -> str:
        """Remember what stands under the key, and return its digest."""
        self.written[user, key] = written = digest(msgspec.json.encode(body))
        return written

    def _key(self, user: str, device: str) -> str:
        self._counts[user] += 1
        return f"{device}-{self._counts[user]}"

    def _message(self, device: LightDevice) -> Call:
        key, body, written = self.body(device.user, device.name)
        arguments = {"client_msg_id": key, "body": body}
        roll = self.random.random()
        if roll < 0.01:
            arguments["ack"] = "queued"
        if roll > 0.9 and device.groups:
            cid = self.random.choice(sorted(device.groups))
        elif roll < 0.004:
            cid = self.random.choice(sorted(self.groups))  # which may be one that the user is not in
        else:
            to = self.random.choice(self.peers[device.user])
            return Call("send", key, "send", arguments | {"to": to}, digest=written)
        return Call("send", key, "send", arguments | {"cid": str(cid)}, cid=cid, digest=written)

    def _revision(self, device: LightDevice, of: _Stored) -> Call:
        key = self._key(device.user, device.name)
        arguments = {"cid": str(of.cid), "seq": of.seq, "client_msg_id": key}
        if self.random.random() < 0.4:
            self.written[device.user, key] = ""
            return Call("recall", key, "recall", arguments, cid=of.cid, ref=of.seq)
        body = f"{key} corrects {of.call.key}"
        written = self.write(device.user, key, body)
        return Call("edit", key, "edit", arguments | {"body": body}, cid=of.cid, digest=written, ref=of.seq)

    def _again(self, call: Call) -> Call:
        again = Call(call.op, call.key, call.method, {}, cid=call.cid, digest=call.digest, ref=call.ref)
        again.data = call.data
        return again

    def _change(self, device: LightDevice) -> Call | None:
        own = [group for group in self.groups.values() if group.owner == device.user and group.kind != "switched"]
        if not own:
            return None
        group = self.random.choice(own)
        user = self.random.choice(group.members[1:])
        key = self._key(device.user, device.name)
        arguments = {"cid": str(group.cid), "users": [user]}
        # Who comes back to a group with read fan-out may not read what it missed before it was put out.
        if group.kind == "open" and self.random.random() < 0.5:
            return Call("join", key, "group_change", arguments | {"action": "invite"}, cid=group.cid)
        if group.kind == "read" and self.random.random() < 0.9:
            return None
        return Call("kick", key, "group_change", arguments | {"action": "kick"}, cid=group.cid)


class SdkDevice:
    """A device with the Python client: what it was handed, and what its view shows."""

    def __init__(
        self,
        user: str,
        *,
        front: str,
        credential: str,
        tls: ssl.SSLContext,
        recorder: Recorder,
        traffic: Traffic,
        has_view: bool,
    ) -> None:
        self.user = user
        self.name = "sdk"
        self.has_view = has_view
        self.sent = 0
        self.ends: list[Exception] = []
        self._last = (0, "", 0)
        """The offset that it was told last, and what is there."""
        self._witness = Witness(recorder, user, self.name)
        self._traffic = traffic
        self._recorder = recorder
        self.client = Client(
            front,
            user=user,
            credential=credential,
            tls=tls,
            device=self.name,
            on_message=self._take,
            on_end=self.ends.append,
            on_update=_ignore if has_view else None,
            position=Position(),
        )

    @property
    def groups(self) -> list[int]:
        """The groups that it stays in."""
        groups = self._traffic.groups.values()
        return [group.cid for group in groups if group.kind == "switched" and self.user in group.members]

    def is_behind(self, cid: int, head: int) -> bool:
        """Whether its view does not have all of a conversation."""
        conversation = self.client.view.conversation(str(cid))
        return conversation is None or conversation.hi < head

    async def run(self) -> None:
        """Send one message after the other, each until it is acknowledged."""
        traffic, random, recorder = self._traffic, self._traffic.random, self._recorder
        while not traffic.is_over:
            key, body, written = traffic.body(self.user, self.name)
            to, cid = random.choice(traffic.peers[self.user]), ""
            if self.groups and random.random() < 0.3:
                to, cid = "", str(random.choice(self.groups))
            while True:
                call = recorder.invoke(
                    "send",
                    user=self.user,
                    device=self.name,
                    client_msg_id=key,
                    cid=int(cid) if cid else None,
                    digest=written,
                )
                try:
                    stored = await self.client.send(to, body, cid=cid, client_msg_id=key)
                except Exception as error:  # noqa: BLE001 - whatever it is, it goes into the history
                    recorder.info(call, why=repr(error))
                    await asyncio.sleep(0.2)
                else:
                    recorder.ok(call, cid=int(stored["cid"]), seq=stored["seq"], mid=int(stored["mid"]))
                    break
            self.sent += 1
            await asyncio.sleep(random.uniform(0, 2 * traffic.pause_s))

    async def _take(self, incoming: Incoming) -> None:
        if incoming.is_start or "mid" not in incoming.data:
            return  # where it begins; or only of the moment
        entry, offset = _entry(msgspec.json.encode(incoming.data)), incoming.position.offset
        place = offset, entry.cid, entry.seq
        if offset == self._last[0] and place != self._last:
            return  # pushed beside the timeline, where it has no place
        self._last = place
        self._witness.told(incoming.channel, offset, entry)


_entry = msgspec.json.Decoder(Entry).decode


def _ignore(_update: object) -> None:
    """The view is looked at in the end."""
