"""Which broker serves a channel, by the channel's name."""

from __future__ import annotations

from access.channels import Channels
from access.client import Client
from access.conversations import CHANNEL_PREFIX as CONVERSATION_PREFIX
from access.conversations import Conversations
from access.inboxes import CHANNEL_PREFIX as INBOX_PREFIX
from access.inboxes import Inboxes
from access.ports import Broker
from access.presence import CHANNEL_PREFIX as PRESENCE_PREFIX
from access.presence import Presences

__all__ = ["Brokers"]


class Brokers:
    """All of a node's brokers."""

    def __init__(
        self, *, inboxes: Inboxes, conversations: Conversations, presences: Presences, channels: Channels
    ) -> None:
        self.inboxes = inboxes
        self.conversations = conversations
        self.presences = presences
        self.channels = channels
        self._by_prefix: dict[str, Broker] = {
            INBOX_PREFIX: inboxes,
            CONVERSATION_PREFIX: conversations,
            PRESENCE_PREFIX: presences,
        }
        self._all: tuple[Broker, ...] = (*self._by_prefix.values(), channels)

    def of(self, channel: str) -> Broker:
        """Return the broker of a channel: one of the reserved namespaces, or the application's own."""
        prefix = channel[: channel.find(":") + 1]
        return self._by_prefix.get(prefix, self.channels)

    def by_server(self, client: Client) -> tuple[str, ...]:
        """Return the application's channels that the server subscribes each client of a user to."""
        return self.channels.by_server(client.user)

    def gone(self, client: Client) -> None:
        """End all of a client's subscriptions."""
        for broker in self._all:
            broker.gone(client)
