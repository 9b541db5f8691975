"""Connections that do not begin with a request: behind a load balancer, with TLS, and with both."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import ssl
from collections.abc import AsyncIterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from base import accepting
from base.errors import ConfigError
from tests.support.clients_port import TEXT, CertificateFiles, Port, RawClient, frame, get, listening, request, until

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = ("127.0.0.1/32",)
V2 = b"\r\n\r\n\x00\r\nQUIT\n"
V1_HEADER = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"
V1_OTHER = V1_HEADER.replace(b"192.0.2.7", b"192.0.2.8")
V2_HEADER = V2 + b"\x21\x11\x00\x0c" + bytes([192, 0, 2, 7, 198, 51, 100, 1]) + b"\xdc\x04\x01\xbb"
V2_TLV = b"\x04\x00\x03abc"
V2_HEADER_WITH_TLV = V2_HEADER[:14] + b"\x00\x12" + V2_HEADER[16:] + V2_TLV
HELLO = frame(TEXT, b"hello")


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    async with listening(proxies=HERE) as made:
        yield made


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> CertificateFiles:
    return CertificateFiles.make(tmp_path_factory.mktemp("tls"), "first")


def tls(files: CertificateFiles) -> dict[str, str]:
    return {"tls_certificate": str(files.chain), "tls_key": str(files.key)}


async def echoes(client: RawClient) -> bool:
    client.send(HELLO)
    return await client.frame() == (TEXT, b"hello")


# ---------------------------------------------------------------- the PROXY header


@pytest.mark.parametrize(
    ("header", "address"),
    [
        (V1_HEADER, "192.0.2.7"),
        (b"PROXY TCP6 2001:db8:0::7 2001:db8::1 56324 443\r\n", "2001:db8::7"),
        (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 56324 443\r\n", "192.0.2.7"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
        (V2_HEADER, "192.0.2.7"),
        (V2_HEADER_WITH_TLV, "192.0.2.7"),
        (V2 + b"\x21\x21\x00\x24" + bytes.fromhex("20010db8" + "00" * 11 + "07") + bytes(20), "2001:db8::7"),
        (V2 + b"\x20\x00\x00\x00", "127.0.0.1"),
    ],
)
async def test_the_load_balancer_says_who_it_is(port: Port, header: bytes, address: str) -> None:
    """To the gateway, however much of the connection comes in the header's segment; else it is the socket's peer."""
    for segments in ([header + request() + HELLO], [header, request() + HELLO], [header + request(), HELLO]):
        client = await port.client()
        for segment in segments:
            client.send(segment)
            await asyncio.sleep(0.002)
        assert (await client.answer()).status == 101
        assert await client.frame() == (TEXT, b"hello")
    assert port.gate.addresses == [address] * 3


@pytest.mark.parametrize("header", [V1_HEADER, V2_HEADER_WITH_TLV])
async def test_the_header_may_be_cut_anywhere(port: Port, header: bytes) -> None:
    """Into two parts at each of its bytes, and into single bytes; what is behind it stays whole."""
    clients = [await port.client(header[:at]) for at in range(len(header))]
    await until(lambda: port.listener.arrivals == len(clients))
    for at, client in enumerate(clients):
        client.send(header[at:], request(), HELLO)
    single = await port.client()
    for byte in header:
        single.send(bytes([byte]))
        await asyncio.sleep(0)
    single.send(request(), HELLO)
    for client in (*clients, single):
        assert (await client.answer()).status == 101
        assert await client.frame() == (TEXT, b"hello")
    assert port.gate.addresses == ["192.0.2.7"] * (len(header) + 1)
    assert port.listener.arrivals == 0


@pytest.mark.parametrize(
    "start",
    [
        request(),
        b"PROXY TCP4 192.0.2.7 198.51.100.1 56324\r\n" + request(),
        b"PROXY TCP4 192.0.2.7 " + b"1" * 200,
        V2 + b"\x31\x11\x00\x0c",
        V2 + b"\x21\x11\xff\xff",
        b"\x16\x03\x01\x02\x00",
    ],
)
async def test_a_connection_without_a_right_header_is_dropped(port: Port, start: bytes) -> None:
    """Without a word, and counted; nobody is let in whose address is not known."""
    client = await port.client(start)
    assert await client.is_over() == b""
    assert port.counted("access_dropped") == {"bad_proxy_header": 1}
    assert (port.gate.addresses, port.listener.arrivals) == ([], 0)


async def test_nobody_else_may_name_an_address() -> None:
    """A connection from outside of the load balancers' networks is dropped, header or not."""
    async with listening(proxies=("192.0.2.0/24", "2001:db8::/32")) as port:
        for start in (V1_HEADER + request(), request(), b""):
            assert await (await port.client(start)).is_over() == b""
        assert port.counted("access_dropped") == {"unknown_proxy": 3}
        assert not port.gate.addresses


async def test_a_header_that_does_not_come_is_not_waited_for_long() -> None:
    """None at all, or only a part of one, and the one who hangs up meanwhile is forgotten at once."""
    async with listening(proxies=HERE, handshake_deadline_ms=200) as port:
        silent, slow = await port.client(), await port.client(V1_HEADER[:20])
        gone, half = await port.client(), await port.client(V2_HEADER[:20])
        half.writer.write_eof()
        await until(lambda: port.listener.arrivals == 3)
        gone.hang_up()
        await until(lambda: port.listener.arrivals == 2)
        assert await silent.is_over() == await slow.is_over() == await half.is_over() == b""
        assert port.counted("access_dropped") == {"slow": 2, "gone": 2}
        late = await port.client(V1_HEADER)
        assert await late.is_over() == b""
        assert port.counted("access_dropped") == {"slow": 3, "gone": 2}
        assert port.listener.arrivals == 0


async def test_a_connection_waits_without_costing_anything(port: Port) -> None:
    """With a part of its header in it, too: the loop is not woken until there is more."""
    client = await port.client(V1_HEADER[:20])
    await until(lambda: port.listener.arrivals == 1)
    await asyncio.sleep(0.05)
    began = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    await asyncio.sleep(0.3)
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - began < 20
    client.send(V1_HEADER[20:], request())
    assert (await client.answer()).status == 101


async def test_limits_by_address_are_those_of_the_named_one() -> None:
    """The load balancer's own address has no share in it, and one subscriber of IPv6 is one."""
    async with listening(proxies=HERE, address_connections_max=1) as port:
        answers = []
        for source in ("192.0.2.7", "192.0.2.8", "192.0.2.7", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"):
            family = "TCP6" if ":" in source else "TCP4"
            target = "::1" if ":" in source else "192.0.2.1"
            client = await port.client(f"PROXY {family} {source} {target} 1 2\r\n".encode(), request())
            answers.append((await client.answer()).status)
        assert answers == [101, 101, 503, 101, 503, 101]


async def test_http_behind_a_load_balancer(port: Port) -> None:
    """A request for health is served on the connection after its header, as often as it asks."""
    client = await port.client(V2_HEADER, get("/healthz"), get("/healthz"))
    assert [(await client.answer()).status for _ in range(2)] == [200, 200]


async def test_only_so_many_may_be_before_the_end_of_their_header() -> None:
    """Those who are in the head of their request count, too."""
    async with listening(proxies=HERE, arrivals_max=2) as port:
        first = await port.client(V1_HEADER, request()[:10])
        second = await port.client(V1_OTHER[:10])
        await until(lambda: port.listener.arrivals == 2)
        assert await (await port.client(V1_HEADER, request())).is_over() == b""
        assert port.counted("access_dropped") == {"too_many": 1}
        second.send(V1_OTHER[10:], request())
        assert (await second.answer()).status == 101
        await until(lambda: port.listener.arrivals == 1)
        assert (await (await port.client(V1_OTHER, request())).answer()).status == 101
        first.send(request()[10:])
        assert (await first.answer()).status == 101


async def test_one_client_leaves_places_to_others_behind_its_balancer() -> None:
    """Whom the header names counts, not the balancer, which may hold all places before the ends of its headers."""
    async with listening(proxies=HERE, arrivals_max=4) as port:
        held = [await port.client(V1_HEADER, request()[:10]) for _ in range(2)]
        await until(lambda: port.listener.arrivals == 2)
        assert await (await port.client(V1_HEADER, request())).is_over() == b""
        assert port.counted("access_dropped") == {"too_many": 1}
        assert (await (await port.client(V1_OTHER, request())).answer()).status == 101
        waiting = [await port.client() for _ in range(2)]
        await until(lambda: port.listener.arrivals == 4)
        waiting[0].send(V1_OTHER, request())
        assert (await waiting[0].answer()).status == 101
        held[0].send(request()[10:])
        assert (await held[0].answer()).status == 101


async def test_a_port_that_closes_drops_who_is_before_the_end_of_its_header(port: Port) -> None:
    """And takes nobody any more."""
    client = await port.client(V1_HEADER[:10])
    await until(lambda: port.listener.arrivals == 1)
    port.listener.stop_accepting()
    assert await client.is_over() == b""
    assert (port.counted("access_dropped"), port.listener.arrivals) == ({"closed": 1}, 0)
    with pytest.raises(OSError):
        await port.client()


@contextmanager
def _no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_process_without_file_descriptors_goes_on_when_it_has_some(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who connects meanwhile waits in the backlog; the loop neither spins nor fails."""
    rests = 0

    def resume(acceptor: accepting.Acceptor) -> None:
        nonlocal rests
        rests += 1
        real(acceptor)

    real = accepting.Acceptor._resume
    monkeypatch.setattr(accepting.Acceptor, "_resume", resume)
    client = await port.client(V1_HEADER)
    await until(lambda: port.listener.arrivals == 1)
    made = await _connected_without_accepting(port)
    assert 1 <= rests <= 4
    made.send(V1_HEADER, request())
    assert (await made.answer()).status == 101
    client.send(request())
    assert (await client.answer()).status == 101


async def _connected_without_accepting(port: Port) -> RawClient:
    connecting = asyncio.get_running_loop().create_task(port.client())
    await asyncio.sleep(0)  # it has its socket now, and waits for the connection
    with _no_descriptor_left():
        await asyncio.sleep(3 * accepting.PAUSE_S)
    return await connecting


# ---------------------------------------------------------------- TLS


async def test_tls_is_served_with_whatever_is_in_its_stream(certificate: CertificateFiles) -> None:
    """WebSockets with what is pipelined behind them, HTTP, and refusals."""
    async with listening(**tls(certificate), origins=("https://a.example.com",)) as port:
        assert port.url.startswith("https://127.0.0.1:")
        client = await port.client(request(), HELLO, tls=certificate.trusted())
        assert (await client.answer()).status == 101
        assert await client.frame() == (TEXT, b"hello")
        assert port.gate.addresses == ["127.0.0.1"]
        http = await port.client(get("/healthz"), get("/healthz"), tls=certificate.trusted())
        assert [(await http.answer()).status for _ in range(2)] == [200, 200]
        for head, status in (
            (request(Origin="https://b.example.com"), 403),
            (request(Sec_WebSocket_Version="8"), 426),
            (b"nonsense\r\n\r\n", 400),
        ):
            refused = await port.client(head, tls=certificate.trusted())
            assert (await refused.answer()).status == status
            assert await refused.is_over() == b""
        await until(lambda: port.listener.arrivals == 0)


async def test_a_violation_within_tls_is_told(certificate: CertificateFiles, caplog: pytest.LogCaptureFixture) -> None:
    """TLS cannot be half closed; the client that is still sending gets the close frame, and is not waited for."""
    async with listening(**tls(certificate)) as port:
        client = await port.upgraded(frame(TEXT, b"x" * 1_000_000), tls=certificate.trusted())
        assert await client.close_code() == 1009
        assert not port.gate.here
        assert await client.is_over() == b""
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_half_a_tls_handshake_is_not_waited_for_long(
    certificate: CertificateFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is what is none; whoever does that is counted, and writes nothing into the log."""
    async with listening(**tls(certificate), handshake_deadline_ms=300) as port:
        silent = await port.client()
        half = await port.client(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        await until(lambda: port.listener.arrivals == 2)
        plain = await port.client(request())
        await plain.is_over()
        gone = await port.client(b"\x16\x03\x01")
        gone.hang_up()
        assert await silent.is_over() == await half.is_over() == b""
        await until(lambda: port.listener.arrivals == 0)
        assert port.counted("access_dropped") == {"tls": 4}
        client = await port.client(request(), tls=certificate.trusted())
        assert (await client.answer()).status == 101
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_only_so_many_tls_handshakes_may_be_under_way(certificate: CertificateFiles) -> None:
    """One more is dropped before it costs anything."""
    async with listening(**tls(certificate), arrivals_max=2) as port:
        held = [await port.client(source=f"127.0.0.{n}") for n in (1, 2)]
        await until(lambda: port.listener.arrivals == 2)
        assert await (await port.client()).is_over() == b""
        assert port.counted("access_dropped") == {"too_many": 1}
        held.pop().hang_up()
        await until(lambda: port.listener.arrivals == 1)
        client = await port.client(request(), tls=certificate.trusted(), source="127.0.0.2")
        assert (await client.answer()).status == 101


async def test_one_address_leaves_tls_handshakes_to_others(certificate: CertificateFiles) -> None:
    """Those that do not go on count together with those that are through and send no request."""
    async with listening(**tls(certificate), arrivals_max=4) as port:
        await port.client()
        await port.client(tls=certificate.trusted())
        await until(lambda: port.listener.arrivals == 2)
        assert await (await port.client()).is_over() == b""
        assert port.counted("access_dropped") == {"too_many": 1}
        client = await port.client(request(), tls=certificate.trusted(), source="127.0.0.2")
        assert (await client.answer()).status == 101


async def test_a_port_that_closes_ends_the_handshakes(certificate: CertificateFiles) -> None:
    """They are not waited for."""
    async with listening(**tls(certificate)) as port:
        client = await port.client()
        await until(lambda: port.listener.arrivals == 1)
        port.listener.stop_accepting()
        assert await client.is_over() == b""
        await until(lambda: port.listener.arrivals == 0)


@pytest.mark.parametrize("header", [V1_HEADER, V2_HEADER])
async def test_the_header_comes_before_tls(certificate: CertificateFiles, header: bytes) -> None:
    """A load balancer that passes TLS through names the client ahead of it, in the clear."""
    async with listening(**tls(certificate), proxies=HERE) as port:
        loop = asyncio.get_running_loop()
        client = await port.client(header)
        transport = await loop.start_tls(
            client.writer.transport,
            client.writer.transport.get_protocol(),
            certificate.trusted(),
            server_hostname="127.0.0.1",
        )
        assert transport is not None
        transport.write(request() + HELLO)
        await until(lambda: port.gate.addresses)
        assert port.gate.addresses == ["192.0.2.7"]
        transport.abort()
        refused = await port.client(tls=None)
        refused.send(b"\x16\x03\x01\x02\x00")
        assert await refused.is_over() == b""
        assert port.counted("access_dropped") == {"bad_proxy_header": 1}


async def test_a_renewed_certificate_is_served_while_connections_are_open(tmp_path: Path) -> None:
    """They go on as they are; a pair that does not fit together changes nothing."""
    served = CertificateFiles.make(tmp_path, "served")
    renewed = CertificateFiles.make(tmp_path, "renewed")
    old = served.trusted()

    async def is_served(files: ssl.SSLContext) -> bool:
        try:
            return await echoes(await port.upgraded(tls=files))
        except ssl.SSLError:
            return False

    async with listening(**tls(served), tls_reload_ms=20) as port:
        open_before = await port.upgraded(tls=old)
        served.chain.write_bytes(renewed.chain.read_bytes())  # its key is not there yet
        await asyncio.sleep(0.1)
        assert await is_served(old)
        served.key.write_bytes(renewed.key.read_bytes())
        async with asyncio.timeout(5):
            while not await is_served(renewed.trusted()):  # noqa: ASYNC110 - seen as by clients
                await asyncio.sleep(0.01)
        assert not await is_served(old)
        assert await echoes(open_before)


async def test_a_certificate_that_cannot_be_loaded_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    """Before anything listens."""
    (tmp_path / "empty.pem").touch()
    with pytest.raises(ConfigError, match=r"access\.tls_certificate"):
        async with listening(tls_certificate=str(tmp_path / "empty.pem"), tls_key=str(tmp_path / "empty.pem")):
            pytest.fail("it listens")
