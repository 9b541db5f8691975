"""What opens connections between nodes: the section, and what is read from it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from base.config import load
from base.errors import ConfigError
from base.reload import follow
from base.trust import SecurityConfig, Trust, require_safe
from roadstead.config import Config
from tests.support.certificates import Authority

OLD, NEW = "the-old-peer-key", "the-new-peer-key"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def test_a_fixed_key_is_trust_without_tls() -> None:
    """As `up` and tests have it."""
    trust = Trust.of_key("key")
    assert (trust.peer_key, trust.server_ssl, trust.client_ssl) == ("key", None, None)
    assert trust.accepts("key")
    assert not any(trust.accepts(offered) for offered in ("", "ke", "keyy", "\udcff"))


async def test_a_peer_key_is_changed_while_the_node_runs(tmp_path: Path) -> None:
    """Added, made the first, and the old one removed."""
    file = tmp_path / "peer-keys"
    file.write_text(f"{OLD}\n")
    trust = Trust.load(SecurityConfig(peer_keys_file=str(file), reload_ms=10))
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        follower = tasks.create_task(follow(trust.parts, interval_s=0.01, node="access-1"))
        for keys in ([OLD, NEW], [NEW, OLD], [NEW]):
            fresh = tmp_path / "fresh"
            fresh.write_text("".join(f"{key}\n" for key in keys))
            fresh.replace(file)
            while (  # noqa: ASYNC110 - there is no event to wait for
                trust.peer_key,
                [key for key in (OLD, NEW) if trust.accepts(key)],
            ) != (keys[0], sorted(keys)[::-1]):
                await asyncio.sleep(0.005)
        follower.cancel()


def test_with_a_certificate_both_ends_have_tls(authority: Authority) -> None:
    """The server's context is one for ever, the client's is a new one after each change."""
    trust = Trust.load(authority.config("access-1"))
    server, client = trust.server_ssl, trust.client_ssl
    assert server is not None
    assert client is not None
    for part in trust.parts:
        part.load()
    assert trust.server_ssl is server
    assert trust.client_ssl is not client


def test_every_fault_of_the_files_is_told_at_once(authority: Authority, tmp_path: Path) -> None:
    """Once each, though both ends of TLS find the same one."""
    with pytest.raises(ConfigError) as caught:
        Trust.load(authority.config("access-1", peer_keys_file="", tls_ca=str(tmp_path / "none")))
    assert len(caught.value.errors) == 2
    assert "security.peer_keys_file must name a file" in caught.value.errors


def test_half_of_tls_is_a_fault(tmp_path: Path) -> None:
    """It would be a node that looks safe."""
    file = tmp_path / "node.toml"
    file.write_text('[security]\ntls_certificate = "a.pem"\n')
    with pytest.raises(ConfigError, match="security: tls_key and tls_ca must be set too"):
        load(Config, file=file, env={})
    assert not SecurityConfig().has_tls
    assert not list(SecurityConfig(tls_certificate="a", tls_key="b", tls_ca="c").problems())


def test_nothing_beyond_loopback_without_tls_unless_somebody_says_so(authority: Authority) -> None:
    """One clear error, which says what to set."""
    for host in ("127.0.0.1", "::1", "localhost"):
        require_safe(SecurityConfig(), host=host, allow_remote=False)
    require_safe(SecurityConfig(), host="10.0.0.1", allow_remote=True)
    require_safe(authority.config("access-1"), host="10.0.0.1", allow_remote=False)
    for host in ("10.0.0.1", "::", "node.example"):
        with pytest.raises(ConfigError, match=r"security\.tls_certificate.*node\.allow_remote"):
            require_safe(SecurityConfig(), host=host, allow_remote=False)
