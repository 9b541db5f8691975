"""A conversation at a server of its own, for tests of the view model: a log, what is told of it, and the answers."""

from __future__ import annotations

from typing import Any

from base.clock import Instant
from roadstead.client.conversation import GAP_WAIT_MS
from roadstead.client.view import PAGE, AskList, Effect, Pull, PullOlder, ViewModel

ME, BOB = "ann", "bob"
CID = "7"
NOW = Instant(1_000)
LATER = Instant(NOW + GAP_WAIT_MS)


class Log:
    """A conversation's log, as the services keep it."""

    def __init__(self, cid: str = CID, *, is_group: bool = False) -> None:
        self.cid = cid
        self.is_group = is_group
        self.entries: list[dict[str, Any]] = []
        self.fan_out = "write"
        self.read_seq = 0
        self.first_seq = 1

    def message(self, sender: str = BOB, body: Any = None, **more: Any) -> dict[str, Any]:
        seq = len(self.entries) + 1
        cseq = sum(entry["kind"] == "message" for entry in self.entries) + 1
        to = "" if self.is_group else ME if sender == BOB else BOB
        key = more.pop("client_msg_id", f"{sender}-{seq}")
        body = f"body {seq}" if body is None else body
        return self._add("message", sender, mid=f"m{seq}", cseq=cseq, to=to, client_msg_id=key, body=body, **more)

    def edit(self, target: int, body: Any = "edited", **more: Any) -> dict[str, Any]:
        return self._add("edit", self.entries[target - 1]["from"], target=target, body=body, **more)

    def recall(self, target: int) -> dict[str, Any]:
        return self._add("recall", self.entries[target - 1]["from"], target=target)

    def event(self, event: str, *users: str, by: str = BOB, **body: Any) -> dict[str, Any]:
        body.setdefault("fan_out", self.fan_out)
        self.fan_out = body["fan_out"]
        return self._add("group", by, body={"event": event, "users": list(users), **body})

    def _add(self, kind: str, sender: str, **more: Any) -> dict[str, Any]:
        seq = len(self.entries) + 1
        self.entries.append({"kind": kind, "cid": self.cid, "seq": seq, "from": sender, "at": 1_000 + seq, **more})
        return self.entries[-1]

    def shown(self, since: int = 1) -> list[tuple[int, Any]]:
        """What is to be seen in the end: seq and body of each message, None for a recalled one, and of each event."""
        seen: dict[int, Any] = {}
        for entry in self.entries:
            if entry["kind"] == "message":
                seen[entry["seq"]] = entry["body"]
            elif entry["kind"] == "edit" and seen[entry["target"]] is not None:
                seen[entry["target"]] = entry["body"]
            elif entry["kind"] == "recall":
                seen[entry["target"]] = None
            elif entry["kind"] == "group" and entry["body"]["event"] != "fan_out":
                seen[entry["seq"]] = entry["body"]
        return [(seq, body) for seq, body in seen.items() if seq >= since]

    def unread(self) -> int:
        mine = [e["seq"] for e in self.entries if e["kind"] == "message" and e["from"] == ME]
        floor = max([self.read_seq, *mine])
        recalled = {e["target"] for e in self.entries if e["kind"] == "recall"}
        return sum(e["kind"] == "message" and e["seq"] > floor and e["seq"] not in recalled for e in self.entries)

    def as_read(self, seqs: range) -> list[dict[str, Any]]:
        """Entries as history tells them: with what covers them, as of now."""
        covers: dict[int, dict[str, Any]] = {}
        for entry in self.entries:
            if entry["kind"] == "edit":
                covers[entry["target"]] = {"edited": entry["seq"], "body": entry["body"]}
            elif entry["kind"] == "recall":
                covers[entry["target"]] = {"recalled": entry["seq"], "body": None}
        page = [self.entries[seq - 1] for seq in seqs if self.first_seq <= seq <= len(self.entries)]
        return [entry | covers.get(entry["seq"], {}) for entry in page]

    def document(self, **more: Any) -> dict[str, Any]:
        """How the list has it."""
        head = len(self.entries)
        last = self.as_read(range(head, head + 1))
        return {
            "cid": self.cid,
            "kind": "group" if self.is_group else "single",
            "peer": "" if self.is_group else BOB,
            "fan_out": self.fan_out,
            "channel": "inbox",
            "last": last[0] if last else None,
            "max_seq": head,
            "read_seq": self.read_seq,
            "unread": self.unread(),
            **more,
        }


class Server:
    """Answers what a view asks for, and counts it."""

    def __init__(self, view: ViewModel, *logs: Log) -> None:
        self.view = view
        self.logs = {log.cid: log for log in logs}
        self.pulls: list[Pull] = []
        self.lists = 0
        self.effects: list[Effect] = []

    def answer(self, effects: list[Effect], now: Instant) -> None:
        waiting = list(effects)
        while waiting:
            effect = waiting.pop(0)
            self.effects.append(effect)
            match effect:
                case Pull(cid, after):
                    self.pulls.append(effect)
                    entries = self.logs[cid].as_read(range(after + 1, after + PAGE + 1))
                    waiting += self.view.page(cid, entries, len(self.logs[cid].entries), now)
                case PullOlder(cid, before):
                    entries = self.logs[cid].as_read(range(max(1, before - PAGE), before))
                    self.view.older(cid, before, entries, is_all=len(entries) < PAGE)
                case AskList():
                    self.lists += 1
                    waiting += listed(self.view, *(log.document() for log in self.logs.values()), now=now)
                case _:
                    pass

    def settle(self, now: Instant) -> Instant:
        """Let time pass until nothing is to be asked for any more."""
        while (due := self.view.due) is not None:
            now = Instant(max(now, due))
            self.answer(self.view.advance(now), now)
        self.view.check_invariants()
        return now


def listed(
    view: ViewModel, *documents: dict[str, Any], now: Instant, is_last: bool = True, hidden: int = 0
) -> list[Effect]:
    """Give a page of the list to the view; `hidden`: where hidden conversations end that a sync version counts."""
    direct = sum(one["max_seq"] for one in documents if (one["fan_out"], one["channel"]) == ("read", "inbox"))
    return view.listed(documents, now, is_last=is_last, counted=direct + hidden)


def seen(view: ViewModel, cid: str = CID) -> list[tuple[int, Any]]:
    """Seq and body of what the view shows."""
    conversation = view.conversation(cid)
    assert conversation is not None
    return [(row.seq, row.data["body"]) for row in conversation.rows()]


def begun(log: Log, *, appends: bool = True, entries_max: int = 200) -> tuple[ViewModel, Server]:
    """A view that has read the list when the log was as it is."""
    view = ViewModel(ME, appends=appends, entries_max=entries_max)
    server = Server(view, log)
    server.answer(view.ask_list(), NOW)
    return view, server


def feed(view: ViewModel, *entries: dict[str, Any], now: Instant = NOW) -> list[Any]:
    effects = [effect for entry in entries for effect in view.apply(entry, now)]
    view.check_invariants()
    return effects


def note(kind: str, cid: str = CID, **body: Any) -> dict[str, Any]:
    return {"kind": kind, "cid": cid, "body": body}
