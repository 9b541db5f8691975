"""The keys and certificates of a process: loaded from the files that `[security]` names, or fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from base.credentials import Credentials
from base.errors import ConfigError
from base.keys import KeyList, KeyRing
from base.reload import Loadable, follow
from base.trust import RELOAD_MS, SecurityConfig, Trust
from roadstead.faults import Noted

__all__ = ["Keys"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """What a node proves itself with, and what it believes of others. A role has those that it needs."""

    node: str
    trust: Trust
    credentials: Credentials
    ticket_keys: KeyRing | None = None
    user_keys: KeyList | None = None
    reload_ms: int = RELOAD_MS

    @classmethod
    def load(cls, config: SecurityConfig, *, node: str, needs: Sequence[str] = ()) -> Keys:
        """Read the files.

        Args:
            config: names them.
            node: whose they are.
            needs: which of `ticket_keys` and `user_keys` the role needs.

        Raises:
            ConfigError: with every fault of every file.
        """
        tickets = KeyRing(config.ticket_keys_file, setting="security.ticket_keys_file")
        users = KeyList(config.user_keys_file, setting="security.user_keys_file")
        credentials = Credentials(file=config.api_keys_file, setting="security.api_keys_file")
        keys: dict[str, Loadable] = {"ticket_keys": tickets, "user_keys": users}
        wanted = [keys[name] for name in needs]
        wanted += [credentials] if config.api_keys_file else []
        faults: list[str] = []
        trust = None
        with Noted(faults):
            trust = Trust.load(config)
        for item in wanted:
            with Noted(faults):
                item.load()
        if faults or trust is None:
            raise ConfigError(faults)
        return cls(
            node=node,
            trust=trust,
            credentials=credentials,
            ticket_keys=tickets if "ticket_keys" in needs else None,
            user_keys=users if "user_keys" in needs else None,
            reload_ms=config.reload_ms,
        )

    async def follow(self) -> None:
        """Load what changed, until cancelled."""
        own = (self.credentials, self.ticket_keys, self.user_keys)
        items: list[Loadable] = [*self.trust.parts, *(item for item in own if item is not None)]
        await follow(items, interval_s=self.reload_ms / 1000, node=self.node)
