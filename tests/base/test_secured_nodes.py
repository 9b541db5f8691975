"""Nodes with mutual TLS and key files, on real sockets: who gets in, and that changes of the files need no restart."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from aiohttp import ClientSession, web
from structlog.testing import capture_logs

from base import http
from base.clock import SystemClock
from base.credentials import Credentials, Role
from base.errors import PeerUnavailable, Unauthenticated
from base.http import json_response
from base.ids import Incarnation, NodeId
from base.node import Node
from base.peer import Method, PeerClient
from base.peer.upgrade import connect
from base.registry.memory import MemoryRegistry
from base.reload import follow
from base.site import NodeConfig, Site
from base.trust import SecurityConfig, Trust
from roadstead.api import call_api
from tests.support.certificates import Authority

SOON_S = 10.0
HOST = "127.0.0.1"
ECHO = Method("test.echo", str, str)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("ca"))
    for name in ("access-1", "status-1", "status-2"):
        made.issue(name)
    return made


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another CA, which issues for the same names."""
    made = Authority(tmp_path_factory.mktemp("strangers"))
    made.issue("access-1")
    return made


class Served(NamedTuple):
    """A node that runs, and how it is asked."""

    node: Node
    trust: Trust

    @property
    def url(self) -> str:
        return self.node.http.url

    def dropped(self) -> dict[str, float]:
        """How many connections were, by reason."""
        samples = [line for line in self.node.metrics.render().decode().splitlines() if "http_dropped_total{" in line]
        return {line.split('reason="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1]) for line in samples}


@asynccontextmanager
async def serving(
    config: SecurityConfig, name: str = "status-1", *, credentials: Credentials | None = None
) -> AsyncIterator[Served]:
    trust = Trust.load(config)
    credentials = credentials or Credentials()
    site = Site(
        name=NodeId(name),
        incarnation=Incarnation(1),
        host=HOST,
        port=0,
        registry=MemoryRegistry(SystemClock()),
        clock=SystemClock(),
        trust=trust,
        credentials=credentials,
        config=NodeConfig(),
    )
    node = Node(site, "status", statistics=dict)
    node.peers.serve(ECHO, lambda text, peer: f"{peer}: {text}")

    async def for_viewers(request: web.Request) -> web.Response:
        credentials.require(request, Role.VIEWER)
        return json_response({"seen": True})

    node.http.app.router.add_get("/seen", for_viewers)
    await node.listen()
    async with asyncio.TaskGroup() as tasks:
        parts = [part for part in (*trust.parts, credentials) if part.files]
        following = tasks.create_task(follow(parts, interval_s=config.reload_ms / 1000, node=name))
        try:
            yield Served(node, trust)
        finally:
            following.cancel()
            await node.close()


@asynccontextmanager
async def connected(url: str, trust: Trust, name: str = "access-1") -> AsyncIterator[PeerClient]:
    client = PeerClient(url, peer="status-1", node=name, trust=trust)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(client.run())
        following = tasks.create_task(follow(trust.parts, interval_s=0.01, node="access-1"))
        try:
            yield client
        finally:
            running.cancel()
            following.cancel()


async def shown(url: str, authority: Authority) -> bytes:
    """What a new connection to the node is shown."""
    parts = urlsplit(url)
    _, writer = await asyncio.open_connection(HOST, parts.port, ssl=authority.client())
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return der


def replace(file: Path, text: str) -> None:
    """As somebody careful changes a file that others read."""
    fresh = file.with_suffix(".fresh")
    fresh.write_text(text)
    fresh.replace(file)


# ---------------------------------------------------------------- who gets in


async def test_nodes_talk_over_mutual_tls(authority: Authority) -> None:
    """In frames of any size, both ways, under the name that the certificate says."""
    client_trust = Trust.load(authority.config("access-1"))
    async with serving(authority.config("status-1")) as served, connected(served.url, client_trust) as client:
        assert served.url.startswith("https://127.0.0.1:")
        for text in ("hello", "x" * 3_000_000):
            assert await client.call(ECHO, text, deadline_ms=5_000) == f"access-1: {text}"
        many = [client.call(ECHO, str(number), deadline_ms=5_000) for number in range(500)]
        assert await asyncio.gather(*many) == [f"access-1: {number}" for number in range(500)]


async def test_a_node_cannot_speak_for_another(authority: Authority) -> None:
    """Though it has the cluster's key and a certificate: the name is another node's. Others are told nothing."""
    trust = Trust.load(authority.config("access-1"))
    async with serving(authority.config("status-1")) as served:
        with capture_logs() as logged, pytest.raises(Unauthenticated):
            await connect(served.url, node="status-2", trust=trust)
        refusals = [event for event in logged if event["event"] == "peer_stream_refused"]
        assert [(event["peer"], event["log_level"]) for event in refusals] == [("status-2", "warning")]


async def test_a_key_without_a_certificate_opens_no_stream(authority: Authority) -> None:
    """A stolen key alone is worth nothing; and nothing is a certificate alone."""
    async with serving(authority.config("status-1")) as served:
        for name, key in (("", "a-peer-key-of-the-tests"), ("access-1", "another-key-of-somebody")):
            async with ClientSession() as session:
                headers = {
                    "Authorization": f"Bearer {key}",
                    "X-Roadstead-Node": "access-1",
                    "Connection": "Upgrade",
                    "Upgrade": "roadstead.peer.v2",
                }
                url = f"{served.url}/peer"
                async with session.get(url, headers=headers, ssl=authority.client(name)) as answer:
                    assert answer.status == 401


async def test_operators_need_no_certificate(authority: Authority) -> None:
    """They believe the cluster's CA, and show a key."""
    async with serving(authority.config("status-1")) as served:
        answer = await call_api("GET", f"{served.url}/healthz", tls=authority.client())
        assert answer == {"status": "ok"}
        with pytest.raises(PeerUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await call_api("GET", f"{served.url}/healthz")


async def test_whoever_agrees_on_no_tls_is_one_line_and_one_count(
    authority: Authority, strangers: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """Another CA's certificate, and no TLS at all: no traceback, and the port goes on to serve."""
    forger = strangers.client("access-1")
    forger.load_verify_locations(authority.ca.file)
    with caplog.at_level(logging.INFO), capture_logs() as logged:
        async with serving(authority.config("status-1")) as served, asyncio.timeout(SOON_S):
            parts = urlsplit(served.url)
            reader, writer = await asyncio.open_connection(HOST, parts.port)
            writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
            await reader.read()
            writer.close()
            reader, forged = await asyncio.open_connection(HOST, parts.port, ssl=forger)
            assert await reader.read() == b""  # by TLS 1.3 a client learns it after its own handshake
            forged.close()
            while served.dropped().get("tls") != 2:  # noqa: ASYNC110 - the other end of a socket
                await asyncio.sleep(0.005)
            assert await shown(served.url, authority)
    drops = [event for event in logged if event["event"] == "connection_dropped"]
    assert [(event["reason"], event["node"]) for event in drops] == [("tls", "status-1")] * 2
    assert all(event["detail"].startswith("from 127.0.0.1: ") for event in drops)
    assert not caplog.records


async def test_half_a_handshake_is_not_waited_for_long_nor_by_many(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is slow is dropped, and so are too many at once, of one address half of all."""
    monkeypatch.setattr(http, "HANDSHAKE_S", 0.2)
    monkeypatch.setattr(http, "HANDSHAKES_MAX", 4)
    async with serving(authority.config("status-1")) as served, asyncio.timeout(SOON_S), AsyncExitStack() as stack:
        for _ in range(3):
            reader, writer = await asyncio.open_connection(HOST, urlsplit(served.url).port)
            stack.callback(writer.close)
        assert await reader.read() == b""  # the last one, at once
        while served.dropped() != {"too_many": 1, "tls": 2}:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.005)
        assert await shown(served.url, authority)


async def test_a_node_with_tls_shows_its_key_to_no_server_without(authority: Authority, strangers: Authority) -> None:
    """Nor to one of another CA, whatever the registry says about where a peer is."""
    trust = Trust.load(authority.config("access-1"))
    keys = SecurityConfig(peer_keys_file=str(authority.folder / "peer-keys"))
    async with serving(keys) as plain:
        with pytest.raises(PeerUnavailable, match="without TLS"):
            await connect(plain.url, node="access-1", trust=trust)
    async with serving(strangers.config("access-1")) as strange:
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(strange.url, node="access-1", trust=trust)


async def test_a_node_of_another_ca_learns_what_may_be_wrong(authority: Authority, strangers: Authority) -> None:
    """It believes the server and is not believed, which TLS 1.3 tells after the handshake, if at all."""
    both = authority.folder / "both.pem"
    both.write_bytes(authority.ca.file.read_bytes() + strangers.ca.file.read_bytes())
    trust = Trust.load(strangers.config("access-1", tls_ca=str(both)))
    async with serving(authority.config("status-1")) as served, asyncio.timeout(SOON_S):
        with pytest.raises((PeerUnavailable, OSError), match="(?i)certificate|alert|lost|reset"):  # noqa: RUF043
            await connect(served.url, node="access-1", trust=trust)


# ---------------------------------------------------------------- changes without a restart


async def test_a_certificate_is_renewed_while_nodes_talk(authority: Authority) -> None:
    """New connections see the new one, at both ends; streams that are open stay so."""
    client_trust = Trust.load(authority.config("access-1"))
    async with (
        serving(authority.config("status-1")) as served,
        connected(served.url, client_trust) as client,
        asyncio.timeout(SOON_S),
    ):
        assert await client.call(ECHO, "a", deadline_ms=5_000) == "access-1: a"
        stream = served.node.peers.stream_of("access-1")
        shows, old = client_trust.client_ssl, await shown(served.url, authority)
        new = authority.issue("status-1")
        authority.issue("access-1")
        assert new != old
        while await shown(served.url, authority) != new or client_trust.client_ssl is shows:  # noqa: ASYNC110 - a file
            await asyncio.sleep(0.005)
        assert await client.call(ECHO, "b", deadline_ms=5_000) == "access-1: b"
        assert served.node.peers.stream_of("access-1") is stream
        async with connected(served.url, client_trust) as another:
            assert await another.call(ECHO, "c", deadline_ms=5_000) == "access-1: c"


async def test_a_peer_key_is_changed_at_all_nodes_while_they_talk(tmp_path: Path) -> None:
    """Added everywhere, made the first everywhere, the old one removed: streams stay up throughout."""
    old, new = "the-old-peer-key-1", "the-new-peer-key-2"
    files = {name: tmp_path / name for name in ("access-1", "status-1")}
    for file in files.values():
        file.write_text(f"{old}\n")
    configs = {name: SecurityConfig(peer_keys_file=str(file), reload_ms=10) for name, file in files.items()}
    client_trust = Trust.load(configs["access-1"])
    async with (
        serving(configs["status-1"]) as served,
        connected(served.url, client_trust) as client,
        asyncio.timeout(SOON_S),
    ):
        await client.call(ECHO, "a", deadline_ms=5_000)
        stream = served.node.peers.stream_of("access-1")
        for keys in ([old, new], [new, old], [new]):
            for name, trust in (("status-1", served.trust), ("access-1", client_trust)):
                replace(files[name], "".join(f"{key}\n" for key in keys))
                while trust.peer_key != keys[0] or trust.accepts(old) is not (old in keys):  # noqa: ASYNC110 - a file
                    await asyncio.sleep(0.005)
                transport, _ = await connect(served.url, node="access-9", trust=client_trust)
                transport.abort()
        assert await client.call(ECHO, "b", deadline_ms=5_000) == "access-1: b"
        assert served.node.peers.stream_of("access-1") is stream
        with pytest.raises(Unauthenticated):
            await connect(served.url, node="access-1", trust=Trust.of_key(old))


async def test_an_api_key_is_changed_while_the_node_runs(tmp_path: Path) -> None:
    """Both are accepted meanwhile; the old one is refused once it is removed."""
    (tmp_path / "peer-keys").write_text("a-peer-key-of-the-tests\n")
    file = tmp_path / "api-keys"
    old, new = "the-old-api-key-1", "the-new-api-key-2"
    file.write_text(f"viewer {old} prometheus\n")
    credentials = Credentials(file=str(file), setting="security.api_keys_file")
    credentials.load()
    config = SecurityConfig(peer_keys_file=str(tmp_path / "peer-keys"), reload_ms=10)
    async with serving(config, credentials=credentials) as served, asyncio.timeout(SOON_S):

        async def accepted(key: str) -> bool:
            with suppress(Unauthenticated):
                return bool(await call_api("GET", f"{served.url}/seen", credential=key))
            return False

        for keys in ([old], [old, new], [new]):
            replace(file, "".join(f"viewer {key} prometheus\n" for key in keys))
            while [key for key in (old, new) if await accepted(key)] != keys:  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.005)
