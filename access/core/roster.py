"""Who follows a channel, as its owner knows it: which nodes have subscribers, and who these are.

A node joins a channel when its first client subscribes, and tells who its subscribers are. What is said about them may
get lost with a stream, so a node tells the digest of its members with each audit; where it differs, it says all of it
again. A node that dies takes its members with it.

Joins and leaves are announced at most once: a member that is told again is no news.

Invariants:
    I1  A client is a member of a channel at one node at most: the last one that said so.
    I2  The digest of a node's members is the exclusive or of the hashes of their ids.
    I3  `users` counts each member of the channel, under its user.
    I4  A channel is known as long as a node follows it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from xxhash import xxh3_64_intdigest

from access.peers import MemberInfo

__all__ = ["Roster", "digest_of"]


@dataclass(slots=True)
class _Channel:
    nodes: dict[str, int] = field(default_factory=dict)
    """The digest of the members of each node that follows the channel."""
    members: dict[str, tuple[str, MemberInfo]] = field(default_factory=dict)
    """Node and member, by client."""
    users: Counter[str] = field(default_factory=Counter)


class Roster:
    """All channels that other nodes, or this one, follow at this one."""

    def __init__(self) -> None:
        self._channels: dict[str, _Channel] = {}
        self._by_node: dict[str, set[str]] = {}

    def follow(self, channel: str, node: str) -> bool:
        """A node wants the channel's news from here on. Returns whether that is new."""
        found = self._channels.setdefault(channel, _Channel())
        if node in found.nodes:
            return False
        found.nodes[node] = 0
        self._by_node.setdefault(node, set()).add(channel)
        return True

    def part(self, channel: str, node: str) -> list[MemberInfo]:
        """A node wants no more news. Returns the members that left with it."""
        found = self._channels.get(channel)
        if found is None or node not in found.nodes:
            return []
        left = self._remove(found, [client for client, (at, _) in found.members.items() if at == node])
        del found.nodes[node]
        channels = self._by_node[node]
        channels.discard(channel)
        if not channels:
            del self._by_node[node]
        if not found.nodes:
            del self._channels[channel]
        return left

    def gone(self, node: str) -> list[tuple[str, list[MemberInfo]]]:
        """A node is dead. Returns its channels, and the members that left each."""
        return [(channel, self.part(channel, node)) for channel in sorted(self._by_node.get(node, ()))]

    def forget(self, channel: str) -> tuple[str, ...]:
        """This node is not the owner any more. Returns who followed the channel here."""
        followers = self.followers(channel)
        for node in followers:
            self.part(channel, node)
        return followers

    def enter(self, channel: str, node: str, members: Sequence[MemberInfo], *, restates: bool) -> list[MemberInfo]:
        """A node tells of its members. Returns those who were not there. `restates`: they are all that it has so far.

        Nobody enters by a node that does not follow the channel.
        """
        found = self._channels.get(channel)
        if found is None or node not in found.nodes:
            return []
        if restates:
            self._remove(found, [client for client, (at, _) in found.members.items() if at == node])
        # One that moved here from another node is no news.
        fresh = [member for member in members if member.client not in found.members]
        for member in members:
            self._remove(found, [member.client])
            found.members[member.client] = node, member
            found.users[member.user] += 1
            found.nodes[node] ^= digest_of(member.client)
        return fresh

    def leave(self, channel: str, node: str, clients: Iterable[str]) -> list[MemberInfo]:
        """Members left a node. Returns those that were there."""
        found = self._channels.get(channel)
        if found is None:
            return []
        there = [client for client in clients if client in found.members and found.members[client][0] == node]
        return self._remove(found, there)

    def followers(self, channel: str) -> tuple[str, ...]:
        """Return the nodes that get the channel's news."""
        found = self._channels.get(channel)
        return tuple(found.nodes) if found is not None else ()

    def nodes(self) -> tuple[str, ...]:
        """Return the nodes that follow anything here."""
        return tuple(self._by_node)

    def channels(self) -> tuple[str, ...]:
        """Return the channels that somebody follows here."""
        return tuple(self._channels)

    def digest(self, channel: str, node: str) -> int | None:
        """Return the digest of the node's members in the channel, None if it does not follow it."""
        found = self._channels.get(channel)
        return found.nodes.get(node) if found is not None else None

    def counts(self, channel: str) -> tuple[int, int]:
        """Return how many clients, and how many users, are in the channel."""
        found = self._channels.get(channel)
        return (len(found.members), len(found.users)) if found is not None else (0, 0)

    def members(self, channel: str) -> list[MemberInfo]:
        """Return who is in the channel."""
        found = self._channels.get(channel)
        return [member for _, member in found.members.values()] if found is not None else []

    def statistics(self) -> dict[str, int]:
        """Return a snapshot of sizes."""
        return {
            "channels": len(self._channels),
            "follows": sum(map(len, self._by_node.values())),
            "members": sum(len(channel.members) for channel in self._channels.values()),
        }

    def check_invariants(self) -> None:
        """Assert I2, I3 and I4."""
        follows = {(name, node) for name, channel in self._channels.items() for node in channel.nodes}
        assert follows == {(name, node) for node, names in self._by_node.items() for name in names}, "I4"
        assert all(channel.nodes for channel in self._channels.values()), "I4"
        assert all(self._by_node.values()), "I4"
        for channel in self._channels.values():
            digests = dict.fromkeys(channel.nodes, 0)
            for client, (node, _) in channel.members.items():
                digests[node] ^= digest_of(client)
            assert digests == channel.nodes, "I2"
            assert channel.users == Counter(member.user for _, member in channel.members.values()), "I3"

    def _remove(self, channel: _Channel, clients: list[str]) -> list[MemberInfo]:
        removed: list[MemberInfo] = []
        for client in clients:
            found = channel.members.pop(client, None)
            if found is None:
                continue
            node, member = found
            channel.nodes[node] ^= digest_of(client)
            channel.users[member.user] -= 1
            if not channel.users[member.user]:
                del channel.users[member.user]
            removed.append(member)
        return removed


def digest_of(client: str) -> int:
    """Return the hash of a client's id; a set of clients is told by the exclusive or of theirs."""
    return xxh3_64_intdigest(client.encode())
