"""What ends when its process is silent: a Consul session that lives as long as a TTL check at the agent is passed.

A session's own TTL is 10 s at least, and Consul takes up to twice that. A check's TTL is exact, and may be short: the
agent sees it run out, and the session that depends on it ends with that very write. So each life is a Consul service
with a TTL check, which operators see, and a session upon it. To renew it costs no write: the agent notes that the
check was passed, and the leader is asked whether the session is there.

The session's own TTL is for an agent that ended with its machine, when nobody sees checks run out: then a life ends
within twice 10 s, or twice its TTL where that is longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from consul.exceptions import ACLPermissionDenied  # type: ignore[import-untyped]
from structlog.typing import FilteringBoundLogger

from base.clock import Clock, Instant
from base.errors import SessionLost, StoreUnavailable
from base.ids import new_uuid
from base.registry.consul.client import CALL_DEADLINE_MS, ConsulClient

__all__ = ["Life", "Lives"]

SESSION_TTL_MIN_MS = 10_000
SESSION_TTL_MAX_MS = 86_400_000
LOCK_DELAY_MAX_MS = 60_000
FORGET_AFTER = "1m"
"""How long a service stays listed as critical, as short as Consul allows."""
SYNC_FIRST_MS = 5
SYNC_MAX_MS = 200


@dataclass(frozen=True, slots=True)
class Life:
    """One life. `check` is its Consul service's id too."""

    session: str
    check: str


class Lives:
    """Begins, renews and ends lives."""

    def __init__(self, client: ConsulClient, clock: Clock, log: FilteringBoundLogger) -> None:
        self._client = client
        self._clock = clock
        self._log = log

    async def begin(
        self,
        service: str,
        name: str,
        *,
        ttl_ms: int,
        behavior: str,
        lock_delay_ms: int = 0,
        ends_with_machine: bool = False,
        fields: Mapping[str, Any] | None = None,
    ) -> Life:
        """Begin a life.

        Args:
            service: name of the Consul service.
            name: what its id and its session's name begin with.
            ttl_ms: how long it lasts without being renewed (ms).
            behavior: what becomes of the keys that the session holds: `release` or `delete`.
            lock_delay_ms: for how long nobody gets a key that it held when it ended (ms).
            ends_with_machine: end it as soon as the agents see that this one is gone, which takes them seconds.
            fields: of the Consul service.
        """
        check = f"{name}-{new_uuid()[:8]}"
        definition = {
            "CheckID": check,
            "Name": "heard of within its TTL",
            "TTL": f"{ttl_ms}ms",
            "Status": "passing",
            "DeregisterCriticalServiceAfter": FORGET_AFTER,
        }
        session = {
            "Name": name,
            "NodeChecks": ["serfHealth"] if ends_with_machine else [],
            "ServiceChecks": [{"ID": check}],
            "Behavior": behavior,
            "LockDelay": f"{min(lock_delay_ms, LOCK_DELAY_MAX_MS)}ms",
            "TTL": f"{min(max(ttl_ms, SESSION_TTL_MIN_MS), SESSION_TTL_MAX_MS)}ms",
        }
        await self._client.register_service(service, check, check=definition, **(fields or {}))
        try:
            return Life(await self._open(session), check)
        except BaseException:
            await self.forget(check)
            raise

    async def renew(self, life: Life) -> None:
        """Renew it for another TTL, counted from the asking. Raises SessionLost when it ended."""
        # In this order: a check that ran out before can be passed again, and its session is gone nevertheless.
        is_known = await self._client.pass_check(life.check)
        if not is_known or not await self._client.renew_session(life.session):
            await self.forget(life.check)
            raise SessionLost(f"session {life.session} ended", session=life.session)

    async def end(self, life: Life) -> None:
        """End it now, and free or delete what it holds."""
        try:
            await self._client.end_session(life.session)
        finally:
            await self.forget(life.check)

    async def abandon(self, life: Life) -> None:
        """End it if that can be done now; otherwise its TTL does."""
        try:
            await self.end(life)
        except StoreUnavailable as error:
            self._log.debug("consul_session_left", session=life.session, error=str(error))

    async def forget(self, check: str) -> None:
        """Take a life's service from this machine's agent, if it is there; a minute after its TTL it goes by itself."""
        try:
            await self._client.deregister_service(check)
        except StoreUnavailable as error:
            self._log.debug("consul_service_left", service=check, error=str(error))

    async def _open(self, session: Mapping[str, Any]) -> str:
        """Open the session. It needs its check in the catalogue, where the agent writes it within milliseconds."""
        give_up = self._clock.monotonic() + CALL_DEADLINE_MS
        pause_ms = SYNC_FIRST_MS
        while True:
            try:
                return await self._client.open_session(session)
            except StoreUnavailable as error:
                is_refused = isinstance(error.__cause__, ACLPermissionDenied)
                if is_refused or self._clock.monotonic() + pause_ms > give_up:
                    raise
            await self._clock.sleep_until(Instant(self._clock.monotonic() + pause_ms))
            pause_ms = min(pause_ms * 2, SYNC_MAX_MS)
