"""Certificates that are loaded anew, with real ones: what the other side is shown, and who it is, after a change."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from base.errors import ConfigError
from base.tls import ClientCertificate, ServerCertificate, names_of
from tests.support.certificates import Authority

WAYS = ["misfit", "encrypted", "missing", "garbage", "folder"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Two nodes' certificates, `old` and `new`, and the key of the first one under a password."""
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    authority.issue("old")
    authority.issue("new")
    key = load_pem_private_key((authority.folder / "old.key").read_bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (authority.folder / "encrypted.key").write_bytes(locked)
    return authority


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another CA of the same name, which has issued for `old` too."""
    authority = Authority(tmp_path_factory.mktemp("strangers"))
    authority.issue("old")
    return authority


class Files:
    """The files that a node is configured with, and what they are replaced with."""

    def __init__(self, folder: Path, made: Authority) -> None:
        self.chain = folder / "chain.pem"
        self.key = folder / "key.pem"
        self.ca = folder / "ca.pem"
        self._made = made

    def put(self, chain: str, key: str) -> None:
        self.chain.write_bytes((self._made.folder / f"{chain}.pem").read_bytes())
        self.key.write_bytes((self._made.folder / f"{key}.key").read_bytes())

    def trust(self, *authorities: Authority) -> None:
        self.ca.write_bytes(b"".join(authority.ca.file.read_bytes() for authority in authorities))

    def der(self, name: str) -> bytes:
        """What the other side is shown of a pair."""
        return ssl.PEM_cert_to_DER_cert((self._made.folder / f"{name}.pem").read_text())

    def damage(self, how: str) -> None:
        match how:
            case "misfit":
                self.put("new", "old")
            case "encrypted":
                self.put("old", "encrypted")
            case "missing":
                self.key.unlink()
            case "garbage":
                self.chain.write_text("no certificate")
            case _:
                self.chain.unlink()
                self.chain.mkdir()


@pytest.fixture
def files(tmp_path: Path, made: Authority) -> Files:
    files = Files(tmp_path, made)
    files.put("old", "old")
    files.trust(made)
    return files


@pytest.fixture
def plain(files: Files) -> ServerCertificate:
    """A port that asks nobody for a certificate."""
    certificate = ServerCertificate(str(files.chain), str(files.key), setting="access.tls_certificate")
    certificate.load()
    return certificate


@pytest.fixture
def mutual(files: Files) -> ServerCertificate:
    """A port that checks what it is shown."""
    certificate = ServerCertificate(str(files.chain), str(files.key), setting="t", ca=str(files.ca))
    certificate.load()
    return certificate


def handshake(
    server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Shake hands in memory, then send one byte each way; return both ends, the client's first."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1", session=session),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    waiting = list(ends)
    for _ in range(10):
        for end in list(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
    assert not waiting
    for sender, receiver in (ends, ends[::-1]):
        sender.write(b"x")
        assert receiver.read(1) == b"x"
    return ends


def anybody(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """A client that believes everybody and shows nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.minimum_version = context.maximum_version = version
    return context


def shown(server: ServerCertificate) -> bytes | None:
    """The certificate that a client is shown, in DER form."""
    return handshake(server.context, anybody())[0].getpeercert(binary_form=True)


# ---------------------------------------------------------------- the pair


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_clients_are_served_with_what_was_loaded(
    plain: ServerCertificate, files: Files, version: ssl.TLSVersion
) -> None:
    """By any version that is still thought safe, and for HTTP/1.1, which an upgrade needs."""
    client, _ = handshake(plain.context, anybody(version))
    assert client.getpeercert(binary_form=True) == files.der("old")
    assert client.selected_alpn_protocol() == "http/1.1"
    assert client.version() == version.name.replace("_", ".")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_an_older_version_is_not_spoken(plain: ServerCertificate) -> None:
    """TLS 1.1 is deprecated by RFC 8996."""
    with pytest.raises(ssl.SSLError):
        handshake(plain.context, anybody(ssl.TLSVersion.TLSv1_1))


def test_a_changed_pair_is_served_by_the_same_context(plain: ServerCertificate, files: Files) -> None:
    """So that whoever listens with it notices nothing; a client that is connected keeps what it was shown."""
    context = plain.context
    before, _ = handshake(context, anybody())
    files.put("new", "new")
    plain.load()
    assert plain.context is context
    assert shown(plain) == files.der("new")
    assert before.getpeercert(binary_form=True) == files.der("old")


@pytest.mark.parametrize("how", WAYS)
def test_a_pair_that_cannot_be_loaded_is_an_error_that_names_it(
    plain: ServerCertificate, files: Files, how: str
) -> None:
    """Both files are named; what was loaded before is served. Nobody is asked for the password of a key."""
    files.damage(how)
    with pytest.raises(ConfigError) as caught:
        plain.load()
    assert all(part in str(caught.value) for part in ("access.tls_certificate", str(files.chain), str(files.key)))
    assert shown(plain) == files.der("old")


@pytest.mark.parametrize("how", ["missing", "garbage"])
def test_a_bad_ca_is_an_error_that_names_it(mutual: ServerCertificate, files: Files, how: str) -> None:
    """The one before is believed on."""
    files.put("new", "new")
    files.ca.unlink() if how == "missing" else files.ca.write_text("no certificate")
    with pytest.raises(ConfigError, match=str(files.ca)):
        mutual.load()
    assert shown(mutual) == files.der("old")


# ---------------------------------------------------------------- whom the other side proves to be


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_may_show_a_certificate_and_need_not(
    mutual: ServerCertificate, made: Authority, version: ssl.TLSVersion
) -> None:
    """Nodes show theirs; operators and scrapers have none."""
    node = made.client("new")
    node.maximum_version = version
    _, server = handshake(mutual.context, node)
    assert names_of(server) == {"new", "localhost"}
    _, server = handshake(mutual.context, made.client())
    assert names_of(server) is None
    assert names_of(None) is None


def test_a_client_of_another_ca_is_refused(mutual: ServerCertificate, made: Authority, strangers: Authority) -> None:
    """Though that CA has the same name; a certificate that proves nothing is worse than none."""
    forger = strangers.client("old")
    forger.load_verify_locations(made.ca.file)
    with pytest.raises(ssl.SSLError):
        handshake(mutual.context, forger)


def test_a_ca_that_is_not_trusted_any_more_counts_at_once(
    mutual: ServerCertificate, files: Files, made: Authority, strangers: Authority
) -> None:
    """A change of the CA: both for a while, then the new one alone, without a restart."""
    files.trust(made, strangers)
    mutual.load()
    newcomer = strangers.client("old")
    newcomer.load_verify_locations(made.ca.file)
    for client in (made.client("new"), newcomer):
        assert names_of(handshake(mutual.context, client)[1]) is not None
    files.trust(strangers)
    mutual.load()
    assert names_of(handshake(mutual.context, newcomer)[1]) is not None
    with pytest.raises(ssl.SSLError):
        handshake(mutual.context, made.client("new"))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_no_client_comes_back_unchecked(
    mutual: ServerCertificate, files: Files, made: Authority, strangers: Authority, version: ssl.TLSVersion
) -> None:
    """A session from before is not resumed: what it proved then may not be believed now."""
    node = made.client("new")
    node.maximum_version = version
    before, _ = handshake(mutual.context, node)
    files.trust(strangers)
    mutual.load()
    with pytest.raises(ssl.SSLError):
        handshake(mutual.context, node)
    try:
        again, server = handshake(mutual.context, node, before.session)
    except ssl.SSLError:
        return
    assert again.session_reused  # by TLS 1.2, whose sessions OpenSSL remembers
    assert names_of(server) is None


def test_a_client_believes_the_servers_of_its_ca_by_their_hosts(
    files: Files, made: Authority, strangers: Authority
) -> None:
    """And shows its own certificate; after a change the next connection is made with the new one."""
    client = ClientCertificate(str(files.chain), str(files.key), str(files.ca), setting="t")
    client.load()
    servers = {}
    for authority in (made, strangers):
        paths = (str(authority.folder / "old.pem"), str(authority.folder / "old.key"))
        servers[authority] = ServerCertificate(*paths, setting="t", ca=str(made.ca.file))
        servers[authority].load()
    assert names_of(handshake(servers[made].context, client.context)[1]) == {"old", "localhost"}
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(servers[strangers].context, client.context)
    files.put("new", "new")
    client.load()
    assert names_of(handshake(servers[made].context, client.context)[1]) == {"new", "localhost"}
