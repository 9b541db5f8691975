"""The certificate authority of a folder: what it issues, as other programs see it, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from base.clock import SystemClock, Timestamp
from base.errors import ConfigError
from base.http import HttpServer
from base.metrics import Metrics
from base.trust import Trust
from roadstead.api import call_api, context_of, trust_ca
from roadstead.ca import NODE_DAYS, CertificateAuthority
from roadstead.cli.main import main
from tests.support.certificates import Authority

NOW = SystemClock().realtime()
DAY_MS = 86_400_000


@pytest.fixture
def ca(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.create(tmp_path / "ca", now=NOW)


def openssl(*arguments: str) -> str:
    found = shutil.which("openssl")
    assert found is not None
    done = subprocess.run([found, *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def loaded(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def test_what_is_issued_holds_by_the_strict_rules_of_openssl(ca: CertificateAuthority) -> None:
    """As a server's and as a client's; under the node's name, this machine's and those that were said."""
    made = ca.issue("access-1", now=NOW, hosts=["10.0.0.3", "a.example", "fd00::1", "localhost"])
    names = ("access-1", "localhost", "a.example", "127.0.0.1", "10.0.0.3", "fd00::1")
    assert made.hosts == names
    strict = ("verify", "-x509_strict", "-CAfile", str(ca.file))
    for purpose in ("sslserver", "sslclient"):
        assert "OK" in openssl(*strict, "-purpose", purpose, str(made.certificate))
    for host in ("access-1", "localhost", "a.example"):
        assert "OK" in openssl(*strict, "-verify_hostname", host, str(made.certificate))
    for address in ("127.0.0.1", "10.0.0.3", "fd00::1"):
        assert "OK" in openssl(*strict, "-verify_ip", address, str(made.certificate))
    assert "mismatch" in openssl(*strict, "-verify_hostname", "b.example", str(made.certificate))
    assert {file.stat().st_mode & 0o777 for file in ca.folder.iterdir()} == {0o600}


def test_a_node_can_issue_nothing(ca: CertificateAuthority) -> None:
    """Nor could a CA below this one: whoever steals a node's key has that node's."""
    certificate = loaded(ca.issue("access-1", now=NOW).certificate)
    limits = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (limits.value.ca, limits.critical) == (False, True)
    assert not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    root = loaded(ca.file).extensions
    assert root.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert root.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_each_certificate_has_its_own_serial_and_key(ca: CertificateAuthority) -> None:
    """Also one that is made anew, which then is the one that is there."""
    first = ca.issue("access-1", now=NOW)
    key = first.key.read_bytes()
    second = CertificateAuthority.open(ca.folder).issue("access-1", now=NOW)
    assert (first.certificate, first.key) == (second.certificate, second.key)
    assert first.serial != second.serial
    assert key != second.key.read_bytes()
    assert [(made.name, made.serial) for made in ca.listed()][1:] == [("access-1", second.serial)]


def test_a_certificate_ends_with_its_ca_at_the_latest(tmp_path: Path) -> None:
    """And none is made by a CA that is over."""
    ca = CertificateAuthority.create(tmp_path, now=NOW, days=10)
    until = NOW // 1000 * 1000 + 10 * DAY_MS
    assert ca.issue("a", now=NOW, days=9).not_after == until - DAY_MS
    assert ca.issue("b", now=NOW, days=90).not_after == until
    assert loaded(tmp_path / "a.pem").not_valid_before_utc < datetime.fromtimestamp(NOW / 1000, UTC)
    with pytest.raises(ConfigError, match="is over since"):
        ca.issue("c", now=Timestamp(until), days=1)


@pytest.mark.parametrize("name", ["ca", "", "a b", "../a", "-a", "é"])
def test_what_is_no_nodes_name_is_refused(ca: CertificateAuthority, name: str) -> None:
    """Files are named by it."""
    with pytest.raises(ConfigError, match="cannot be the name of a node"):
        ca.issue(name, now=NOW)


@pytest.mark.parametrize("host", ["", "a b", "bücher.example", "a\x00"])
def test_what_is_no_host_is_refused(ca: CertificateAuthority, host: str) -> None:
    """IDNA is the caller's."""
    with pytest.raises(ConfigError, match="neither a DNS name"):
        ca.issue("access-1", now=NOW, hosts=[host])


def _missing(folder: Path) -> None:
    (folder / "ca.key").unlink()


def _garbage_key(folder: Path) -> None:
    (folder / "ca.key").write_text("no key")


def _garbage_certificate(folder: Path) -> None:
    (folder / "ca.pem").write_text("no certificate")


def _another_key(folder: Path) -> None:
    other = CertificateAuthority.create(folder / "other", now=NOW)
    (other.folder / "ca.key").replace(folder / "ca.key")


def _folder(folder: Path) -> None:
    (folder / "ca.key").unlink()
    (folder / "ca.key").mkdir()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_missing, "has no CA; make one with `roadstead ca init"),
        (_garbage_key, "is no key that can be used"),
        (_garbage_certificate, "is no certificate in PEM"),
        (_another_key, "ca.key is not the key of ca.pem"),
        (_folder, "cannot be read"),
    ],
)
def test_a_damaged_ca_says_what_is_wrong(ca: CertificateAuthority, damage: Callable[[Path], None], says: str) -> None:
    """Rather than making certificates that nobody believes."""
    damage(ca.folder)
    with pytest.raises(ConfigError, match=says):
        CertificateAuthority.open(ca.folder)


def test_a_ca_is_not_made_twice(ca: CertificateAuthority) -> None:
    """All that it issued would be worth nothing."""
    with pytest.raises(ConfigError, match="has a CA already"):
        CertificateAuthority.create(ca.folder, now=NOW)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        CertificateAuthority.create(tmp_path / "file" / "ca", now=NOW)


# ---------------------------------------------------------------- the command


def test_the_command_makes_issues_and_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For people, and for programs with --json."""
    folder = str(tmp_path / "ca")
    main(["ca", "init", folder])
    assert "keep" in capsys.readouterr().out
    main(["ca", "issue", folder, "access-1", "--host", "10.0.0.3"])
    assert "for access-1, localhost, 127.0.0.1, 10.0.0.3" in capsys.readouterr().out
    main(["ca", "issue", folder, "im-1", "--days", "5", "--json"])
    issued = json.loads(capsys.readouterr().out)
    assert issued["certificate"] == f"{folder}/im-1.pem"
    main(["ca", "show", folder, "--json"])
    listed = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in listed] == ["ca", "access-1", "im-1"]
    days = [round((one["not_after"] - NOW) / DAY_MS) for one in listed]
    assert days[1:] == [NODE_DAYS, 5]
    main(["ca", "show", folder])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[:3]] == ["name", "ca", "access-1"]


def test_the_command_tells_what_to_do_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ca", "issue", str(tmp_path), "access-1"])
    assert ended.value.code == 2
    assert "roadstead ca init" in capsys.readouterr().err


# ---------------------------------------------------------------- whom our programs believe


async def test_a_program_believes_the_ca_that_it_was_told(tmp_path: Path) -> None:
    """For itself and what it starts, and nobody else in the process."""
    authority = Authority(tmp_path)
    http = HttpServer("n", Metrics("n"), statistics=dict)
    url = await http.listen("127.0.0.1", 0, tls=Trust.load(authority.config("n")).server_ssl)

    async def told() -> object:
        trust_ca(authority.ca.file)
        async with asyncio.TaskGroup() as tasks:
            return await tasks.create_task(call_api("GET", f"{url}/healthz"))

    try:
        async with asyncio.TaskGroup() as tasks:
            assert await tasks.create_task(told()) == {"status": "ok"}
        with pytest.raises(Exception, match="CERTIFICATE_VERIFY_FAILED"):
            await call_api("GET", f"{url}/healthz")
    finally:
        await http.close()
    with pytest.raises(ConfigError, match="no certificate of a CA"):
        context_of(tmp_path / "none.pem")
