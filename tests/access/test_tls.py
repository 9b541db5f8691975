"""The certificate of the clients' port, with real ones: what a client is shown after each change of the files."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from access.tls import Certificate
from base.errors import ConfigError

INTERVAL_S = 0.01
NAMES = ("old", "new")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs, `old` and `new`, and the key of the first one under a password."""
    openssl = shutil.which("openssl")
    assert openssl is not None
    folder = tmp_path_factory.mktemp("certificates")

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], check=True, capture_output=True, cwd=folder)

    for name in NAMES:
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        files = ("-keyout", f"{name}.key", "-out", f"{name}.pem")
        run("req", "-x509", *curve, *files, "-days", "2", "-subj", f"/CN={name}.example")
    run("ec", "-in", "old.key", "-aes256", "-passout", "pass:secret", "-out", "encrypted.key")
    return folder


class Files:
    """The two files that the node is configured with, and what they are replaced with."""

    def __init__(self, folder: Path, made: Path) -> None:
        self.chain = folder / "chain.pem"
        self.key = folder / "key.pem"
        self._made = made
        self._changes = 0

    def put(self, chain: str, key: str) -> None:
        """Replace both, chain first, with a newer time: a real renewal is minutes later, not microseconds."""
        self._changes += 1
        for file, name in ((self.chain, f"{chain}.pem"), (self.key, f"{key}.key")):
            fresh = file.with_suffix(".fresh")
            fresh.write_bytes((self._made / name).read_bytes())
            os.utime(fresh, (self._changes, self._changes))
            fresh.replace(file)

    def der(self, name: str) -> bytes:
        """What a client is shown of the pair."""
        return ssl.PEM_cert_to_DER_cert((self._made / f"{name}.pem").read_text())


@pytest.fixture
def files(tmp_path: Path, made: Path) -> Files:
    files = Files(tmp_path, made)
    files.put("old", "old")
    return files


@pytest.fixture
def certificate(files: Files) -> Certificate:
    return Certificate(str(files.chain), str(files.key), node="access-1")


def handshake(server: ssl.SSLContext, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLObject:
    """Shake hands in memory; return the client's end."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.minimum_version = context.maximum_version = version
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [context.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)]
    waiting = list(ends)
    for _ in range(10):
        for end in list(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
    assert not waiting
    return ends[0]


def shown(server: ssl.SSLContext) -> bytes | None:
    """The certificate that a client is shown, in DER form."""
    return handshake(server).getpeercert(binary_form=True)


# ---------------------------------------------------------------- loading


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_clients_are_served_with_what_was_loaded(
    certificate: Certificate, files: Files, version: ssl.TLSVersion
) -> None:
    """By any version that is still thought safe, and for HTTP/1.1, which an upgrade needs."""
    certificate.load()
    client = handshake(certificate.context, version)
    assert client.getpeercert(binary_form=True) == files.der("old")
    assert client.selected_alpn_protocol() == "http/1.1"
    assert certificate.context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_changed_pair_is_served_by_the_same_context(certificate: Certificate, files: Files) -> None:
    """So that whoever listens with it notices nothing; a client that is connected keeps what it was shown."""
    certificate.load()
    context = certificate.context
    before = handshake(context)
    files.put("new", "new")
    certificate.load()
    assert certificate.context is context
    assert shown(context) == files.der("new")
    assert before.getpeercert(binary_form=True) == files.der("old")


@pytest.mark.parametrize("break_it", ["misfit", "encrypted", "missing", "garbage", "folder"])
def test_a_pair_that_cannot_be_loaded_is_an_error_that_names_it(
    certificate: Certificate, files: Files, break_it: str
) -> None:
    """Both files are named; what was loaded before is served. Nobody is asked for the password of a key."""
    certificate.load()
    damage(files, break_it)
    with pytest.raises(ConfigError) as caught:
        certificate.load()
    assert str(files.chain) in str(caught.value)
    assert str(files.key) in str(caught.value)
    assert shown(certificate.context) == files.der("old")


def damage(files: Files, how: str) -> None:
    match how:
        case "misfit":
            files.put("new", "old")
        case "encrypted":
            files.put("old", "encrypted")
        case "missing":
            files.key.unlink()
        case "garbage":
            files.chain.write_text("no certificate")
        case _:
            files.chain.unlink()
            files.chain.mkdir()


# ---------------------------------------------------------------- following


Events = list[MutableMapping[str, Any]]


@asynccontextmanager
async def following(certificate: Certificate) -> AsyncIterator[Events]:
    """Follow the files meanwhile; yields what is logged."""
    with capture_logs() as events:
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            follower = tasks.create_task(certificate.follow(INTERVAL_S))
            yield events
            follower.cancel()


async def next_event(events: Events) -> MutableMapping[str, Any]:
    """Wait for a line that was not there yet."""
    known = len(events)
    while len(events) == known:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(INTERVAL_S)
    return events[known]


async def test_changed_files_are_loaded_while_the_node_runs(certificate: Certificate, files: Files) -> None:
    """Once for each change, and it is logged."""
    certificate.load()
    async with following(certificate) as events:
        for name in ("new", "old"):
            files.put(name, name)
            event = await next_event(events)
            assert (event["event"], event["chain"]) == ("certificate_loaded", str(files.chain))
            assert shown(certificate.context) == files.der(name)
        await asyncio.sleep(10 * INTERVAL_S)
    assert [event["event"] for event in events] == ["certificate_loaded"] * 2


@pytest.mark.parametrize("break_it", ["misfit", "encrypted", "missing", "garbage", "folder"])
async def test_a_pair_that_cannot_be_loaded_is_logged_and_the_old_one_kept(
    certificate: Certificate, files: Files, break_it: str
) -> None:
    """Until it is mended: half of a renewal is there before the other half."""
    certificate.load()
    async with following(certificate) as events:
        damage(files, break_it)
        event = await next_event(events)
        assert (event["event"], event["log_level"]) == ("certificate_not_loaded", "error")
        assert str(files.chain) in event["error"] or str(files.key) in event["error"]
        assert shown(certificate.context) == files.der("old")
        if break_it == "folder":
            files.chain.rmdir()
        files.put("new", "new")
        while event["event"] != "certificate_loaded":
            event = await next_event(events)
        assert shown(certificate.context) == files.der("new")
