"""The samples for Consul, in use: a server of the sample's configuration, and a token of the sample's rights."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from base.clock import SystemClock
from base.core.registry import ServiceInstance
from base.errors import StoreError, StoreUnavailable
from base.registry.config import RegistryConfig
from base.registry.consul import ConsulRegistry
from roadstead.consul import find_consul
from roadstead.ports import free_ports

DEPLOY = Path(__file__).parents[2] / "deploy"
POLICY = DEPLOY / "consul/policy.hcl"
RULE = re.compile(r'^\w+_prefix "[^"]*" {\n.*\n}$', flags=re.MULTILINE)

pytestmark = pytest.mark.process


def run(command: Sequence[str | Path], url: str, token: str = "") -> str:
    """Run a command that asks the Consul at `url`, and has to succeed; return what it printed."""
    path = f"{find_consul().parent}:{os.environ['PATH']}"
    env = os.environ | {"CONSUL_HTTP_ADDR": url, "CONSUL_HTTP_TOKEN": token, "PATH": path}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False, env=env)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[str]:
    """One server with the sample's configuration, but alone and on loopback. Yields its URL once it leads."""
    http, rpc, serf = free_ports([0, 0, 0])
    url = f"http://127.0.0.1:{http}"
    ports = f"ports {{ http = {http} server = {rpc} serf_lan = {serf} serf_wan = -1 dns = -1 grpc = -1 }}"
    alone = f"{ports}\nbootstrap_expect = 1\ndisable_update_check = true\n"
    (tmp_path / "alone.hcl").write_text(alone)
    sample = (DEPLOY / "consul/server.hcl").read_text()
    # A list in a later file is added to that of an earlier one.
    (tmp_path / "server.hcl").write_text(re.sub(r"^retry_join = .*$", "", sample, flags=re.MULTILINE))
    files = ["-config-file", tmp_path / "server.hcl", "-config-file", tmp_path / "alone.hcl"]
    arguments = ["-bind", "127.0.0.1", "-data-dir", str(tmp_path / "data")]
    log = (tmp_path / "consul.log").open("wb")
    process = subprocess.Popen(  # noqa: ASYNC220 - a fork, no more
        [find_consul(), "agent", *files, *arguments],
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(15):
            while "cluster leadership acquired" not in (tmp_path / "consul.log").read_text():
                assert process.poll() is None, (tmp_path / "consul.log").read_text()
                await asyncio.sleep(0.05)
        yield url
    finally:
        process.kill()
        process.wait()
        log.close()


async def use(url: str, token: Path, *, prefix: str = "roadstead") -> None:
    """Do everything that nodes do with the registry."""
    config = RegistryConfig(consul_url=url, consul_token_file=str(token), prefix=prefix)
    registry = ConsulRegistry(config, SystemClock(), node="im-1")
    instance = ServiceInstance(id="im-1", service="im", url="http://127.0.0.1:8720", incarnation=1)
    try:
        index = await registry.put("some/key", b"1", expect=0)
        assert (await registry.scan("some/")).index >= index
        assert await registry.delete("some/key", expect=index)
        await registry.register(instance, ttl_ms=10_000)
        await registry.heartbeat("im-1", 1, b"note")
        assert [each.note for each in (await registry.services("im")).items] == [b"note"]
        session = await registry.open_session("im-1", ttl_ms=10_000)
        await registry.renew_session(session)
        assert await registry.acquire("some/lock", session, b"") is not None
        assert await registry.release("some/lock", session)
        await registry.close_session(session)
        await registry.deregister("im-1", 1)
    finally:
        await registry.close()


async def test_the_tokens_rights_are_enough_and_no_rule_is_too_much(server: str, tmp_path: Path) -> None:
    """Made as for the containers, twice over: all that nodes do is allowed, and without any of the rules it is not.

    Nor is anything of another prefix, as that of a second system at the same Consul.
    """
    management, token = tmp_path / "management", tmp_path / "token"
    made: list[str] = []
    for _ in range(2):
        run(["/bin/sh", DEPLOY / "docker/rights.sh", POLICY, management, token], server)
        made.append(token.read_text())
        assert (token.stat().st_mode & 0o777, management.stat().st_mode & 0o777) == (0o600, 0o600)
    assert made[0] == made[1]
    await use(server, token)
    with pytest.raises(StoreUnavailable, match=r"(?i)permission|403"):
        await use(server, token, prefix="other")

    text = POLICY.read_text()
    rules = RULE.findall(text)
    assert len(rules) == text.count("policy =")
    needless: list[str] = []
    for number, rule in enumerate(rules):
        less = tmp_path / f"less-{number}.hcl"
        less.write_text(text.replace(rule, ""))
        top = management.read_text().strip()
        run(["consul", "acl", "policy", "create", "-name", less.stem, "-rules", f"@{less}"], server, top)
        told = run(["consul", "acl", "token", "create", "-policy-name", less.stem], server, top)
        token.write_text(re.findall(r"SecretID: +(\S+)", told)[0])
        try:
            await use(server, token)
        except StoreError:
            continue
        needless.append(rule)
    assert not needless
