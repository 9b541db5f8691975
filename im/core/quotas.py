"""How often a user, a device and a conversation may send.

A command takes a token of each, or of none: one that a conversation's limit refuses has cost its user nothing. Users
are limited for the service's sake, devices so that a broken one leaves the user's others some, and conversations for
their readers' sake, whoever sends.

Limits are per node: a user's commands come through one node while its sessions stay where they are, but a
conversation's come through as many as its members do.
"""

from __future__ import annotations

import msgspec

from base.clock import Instant
from base.core.limits import KeyedBuckets

__all__ = ["QuotaSettings", "Quotas"]


class QuotaSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Rates in commands a second, in thousandths, and bursts in commands. A rate of 0 is no limit."""

    user_rate: float
    user_burst: int
    device_rate: float
    device_burst: int
    conversation_rate: float
    conversation_burst: int
    keys_max: int
    """Users, devices and conversations that may be known to have sent lately, each."""


class Quotas:
    """See the module."""

    __slots__ = ("_conversations", "_devices", "_users")

    def __init__(self, settings: QuotaSettings) -> None:
        keys_max = settings.keys_max
        self._users = KeyedBuckets(settings.user_rate, settings.user_burst, keys_max)
        self._devices = KeyedBuckets(settings.device_rate, settings.device_burst, keys_max)
        self._conversations = KeyedBuckets(settings.conversation_rate, settings.conversation_burst, keys_max)

    def take(self, now: Instant, user: str, device: str, cid: int) -> int:
        """Take one command's worth. Returns 0, or the ms until all have one again if nobody else takes it.

        `device` "" is none, a backend say; `cid` 0 is a conversation that is not known yet.
        """
        device_key = f"{user}\0{device}"  # names have no such character
        conversation_key = str(cid)
        wait_ms = self._users.wait(user, now)
        if device:
            wait_ms = max(wait_ms, self._devices.wait(device_key, now))
        if cid:
            wait_ms = max(wait_ms, self._conversations.wait(conversation_key, now))
        if wait_ms:
            return wait_ms
        self._users.take(user, now)
        if device:
            self._devices.take(device_key, now)
        if cid:
            self._conversations.take(conversation_key, now)
        return 0
