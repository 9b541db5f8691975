"""Which address places a client, and what its ticket says to a program that is not ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from msgspec.structs import replace

from access.config import AccessConfig
from base.clock import SystemClock, Timestamp
from scheduler.tokens import mint_user_token
from tests.system.conftest import eventually
from tests.system.fleet import CANARY, QUICK, STABLE, USER_KEY, Fleet, clients_of, fleet_of
from tests.system.test_faults import TICKET_KEY

NETWORKS = """\
127.0.0.0/8 sh        # whoever asks without a proxy
203.0.113.0/24 bj
"""
ROLLOUT = f"""\
rollout: next
pool: {{version: {CANARY}}}
steps:
  - {{percent: 0, hold: 1h}}
  - {{percent: 100, migrate: {{rate: 100/s}}}}
"""
TRUSTING, STRICT, DIRECT = 1, 2, 3
"""Schedulers: our peer is its proxy; another machine is; it has none."""


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    (tmp_path / "networks").write_text(NETWORKS)
    config = replace(QUICK, networks_file=str(tmp_path / "networks"), geo_country=False)
    access = {f"access-{region}": AccessConfig(region=region) for region in ("sh", "bj")}
    proxies: tuple[tuple[str, ...], ...] = (("127.0.0.1/32",), ("10.0.0.0/8",), ())
    async with fleet_of(access, *[replace(config, proxies=networks) for networks in proxies]) as made:
        yield made


async def asked(fleet: Fleet, number: int, forwarded: str, *, method: str = "GET") -> dict[str, Any]:
    """What a client with a token of its own is told by a scheduler, when the header says so."""
    later = Timestamp(SystemClock().realtime() + 60_000)
    token = mint_user_token("ann", key=USER_KEY, expires_at=later)
    headers = {"Authorization": f"Bearer {token}", "X-Forwarded-For": forwarded}
    query = {"device": "phone", "platform": "ios", "app": "5.1.0"}
    named = {"params": query} if method == "GET" else {"json": query}
    url = f"{fleet.url(f'scheduler-{number}')}/v1/access"
    async with aiohttp.ClientSession(headers=headers) as http, http.request(method, url, **named) as answer:
        assert answer.status == 200, await answer.text()
        found: dict[str, Any] = await answer.json()
        return found


async def test_only_a_trusted_proxy_says_where_a_client_is(fleet: Fleet) -> None:
    """What anybody else writes into the header, the client before the proxy too, changes nothing."""
    for number, forwarded, region in (
        (TRUSTING, "203.0.113.7", "bj"),
        (TRUSTING, "198.51.100.1, 203.0.113.7", "bj"),  # the client wrote the first one
        (TRUSTING, "203.0.113.7, 127.0.0.9", "sh"),
        (TRUSTING, "nonsense", "sh"),
        (STRICT, "203.0.113.7", "sh"),
        (STRICT, "203.0.113.7, 10.0.0.1", "sh"),
        (DIRECT, "203.0.113.7", "sh"),
    ):
        for method in ("GET", "POST"):
            answer = await asked(fleet, number, forwarded, method=method)
            assert answer["region"] == region, (number, forwarded)
            assert answer["candidates"][0]["id"] == f"access-{region}"


async def test_nobody_is_moved_to_a_canary_that_is_far_away() -> None:
    """It has a node in one region only: the other region's users stay where they are, as newcomers would."""
    access = {
        "access-sh": AccessConfig(region="sh", version=STABLE),
        "access-bj": AccessConfig(region="bj", version=STABLE),
        "access-new": AccessConfig(region="sh", version=CANARY),
    }
    async with fleet_of(access, QUICK) as fleet, clients_of(fleet) as clients:
        await fleet.admin("POST", "/v1/admin/rollouts", {"document": ROLLOUT})
        await fleet.until_state("next", percent=0)
        for region in ("sh", "bj"):
            await clients.join([f"{region}-{number}" for number in range(10)], region=region)
            assert {client.node for client in clients.all[-10:]} == {f"access-{region}"}

        async def all_are_known() -> bool:
            return fleet.live("next") == (0, 20)

        await eventually(all_are_known)
        await fleet.admin("POST", "/v1/admin/rollouts/next/step")
        await fleet.until_state("next", phase="complete")
        wanted = {"sh": "access-new", "bj": "access-bj"}
        assert all(client.node == wanted[client.user[:2]] for client in clients.all)
        for region, node in wanted.items():
            answer = await clients.ask("ann", "scheduler-1", region=region)
            assert answer["candidates"][0]["id"] == node


async def test_a_ticket_is_a_standard_token(fleet: Fleet) -> None:
    """Another library verifies it, and reads for whom, for where, and for how long it is."""
    answer = await asked(fleet, DIRECT, "")
    kid, key = TICKET_KEY
    assert jwt.get_unverified_header(answer["ticket"]) == {"alg": "HS256", "typ": "JWT", "kid": kid}
    required = {"require": ["aud", "exp", "iat", "sub", "jti"]}
    claims = jwt.decode(answer["ticket"], key, algorithms=["HS256"], audience="roadstead-access", options=required)
    assert claims["exp"] - claims["iat"] == answer["ttl_ms"] // 1_000
    assert (claims["sub"], claims["device"], claims["platform"], claims["app"]) == ("ann", "phone", "ios", "5.1.0")
    assert claims["nodes"] == [candidate["id"] for candidate in answer["candidates"]]
    assert claims["jti"] == answer["decision"] == f"{claims['sid']}-{claims['seq']:x}"
    with pytest.raises(jwt.InvalidAudienceError):
        jwt.decode(answer["ticket"], key, algorithms=["HS256"], audience="another")
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(answer["ticket"], key[::-1], algorithms=["HS256"], audience="roadstead-access")
