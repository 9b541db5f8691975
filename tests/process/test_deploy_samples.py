"""The samples in deploy/ are read without a complaint by the programs that they are for, where these are installed.

What a program does not see is looked at here: that the files belong together, and to this version.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from base.config import load
from base.http import HttpServer
from base.metrics import Metrics
from base.trust import Trust
from roadstead.config import Config
from roadstead.consul import find_consul
from roadstead.role import ROLES as PROCESS_ROLES
from roadstead.role import place_of
from tests.support.clients_port import CertificateFiles

DEPLOY = Path(__file__).parents[2] / "deploy"
ROLES = ("status", "im", "access", "scheduler")
UNITS = tuple(f"systemd/roadstead-{role}@.service" for role in ROLES)
VERIFY = ("systemd-analyze", "verify")
SAMPLES: Mapping[str, tuple[str, ...]] = {
    "haproxy/haproxy.cfg": ("haproxy", "-c", "-f"),
    "docker/haproxy.cfg": ("haproxy", "-c", "-f"),
    "prometheus/prometheus.yml": ("promtool", "check", "config"),
    "prometheus/alerts.yml": ("promtool", "check", "rules"),
    "envoy/envoy.yaml": ("envoy", "--mode", "validate", "--log-level", "error", "-c"),
    "keepalived/keepalived.conf": ("keepalived", "-t", "-f"),
    "systemd/roadstead.service": VERIFY,
    **dict.fromkeys(UNITS, VERIFY),
    "systemd/roadstead.target": VERIFY,
    "systemd/roadstead.slice": VERIFY,
    "systemd/sysusers.conf": ("systemd-sysusers", "--dry-run"),
    "consul/server.hcl": ("consul", "validate"),
    "consul/agent.hcl": ("consul", "validate"),
    "consul/install.sh": ("sh", "-n"),
    "docker/certificates.sh": ("sh", "-n"),
    "docker/rights.sh": ("sh", "-n"),
    "docker/Dockerfile": ("hadolint",),
    **{f"config/{role}.toml": ("roadstead", "check-config", "--config") for role in ROLES},
}
LOOKED_AT = {
    "consul/policy.hcl",  # test_deploy_consul
    "docker/Dockerfile.dockerignore",
    "docker/compose.yaml",
    "docker/healthcheck.py",
    "grafana/roadstead.json",  # test_monitoring
    "systemd/tmpfiles.conf",
    # test_deploy_kubernetes
    "kubernetes/kustomization.yaml",
    "kubernetes/namespace.yaml",
    "kubernetes/network.yaml",
    "kubernetes/certificates.yaml",
    *(f"kubernetes/{role}.yaml" for role in ROLES),
    *(f"kubernetes/config/{role}.toml" for role in ROLES),
}
"""What a test of its own is for."""
OWN = {"envoy", "hadolint", "roadstead"}
"""What comes with our own packages, and is not looked for elsewhere."""
PROGRAM = "/opt/roadstead/.venv/bin/roadstead"
"""What a unit starts has to be there for its check: something that is takes its place."""

pytestmark = pytest.mark.process


def place(sample: str, folder: Path) -> Path:
    """Copy a sample, with the files there that it names, for programs that look for them."""
    ca = CertificateFiles.make(folder, "ca").chain if "ca.pem" in (text := (DEPLOY / sample).read_text()) else None
    for named in set(re.findall(r"/etc/roadstead/[\w/.-]+", text)) if sample.startswith("config/") else ():
        there = folder / named.lstrip("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text("")
        text = text.replace(f'"{named}"', f'"{there}"')
    for rules in re.findall(r"^rule_files: \[(\S+)\]", text, flags=re.MULTILINE):
        shutil.copy((DEPLOY / sample).parent / rules, folder)
    file = folder / Path(sample).name
    file.write_text(text.replace(PROGRAM, sys.executable).replace("/etc/haproxy/tls/ca.pem", str(ca)))
    return file


def check(sample: str, file: Path) -> subprocess.CompletedProcess[str]:
    """Let the program look at a file."""
    program, *arguments = SAMPLES[sample]
    if program == "consul":
        found: str | None = str(find_consul())
    else:
        found = shutil.which(program, path=str(Path(sys.executable).parent) if program in OWN else None)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return subprocess.run(
        [found, *arguments, str(file)], capture_output=True, text=True, timeout=60, check=False, cwd=file.parent
    )


@pytest.mark.spec("AL-04")
@pytest.mark.parametrize("sample", SAMPLES)
def test_a_sample_is_good(sample: str, tmp_path: Path) -> None:
    """Its own program has nothing against it."""
    ran = check(sample, place(sample, tmp_path))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "warning" not in (ran.stdout + ran.stderr).lower()


@pytest.mark.parametrize(
    ("sample", "word"),
    [
        ("haproxy/haproxy.cfg", "retries"),
        ("docker/haproxy.cfg", "resolvers"),
        ("prometheus/prometheus.yml", "scrape_interval"),
        ("prometheus/alerts.yml", "annotations"),
        ("envoy/envoy.yaml", "connect_timeout"),
        ("consul/server.hcl", "raft_multiplier"),
        ("config/access.toml", "client_port"),
        ("docker/Dockerfile", "HEALTHCHECK"),
    ],
)
def test_the_check_would_see_a_slip(sample: str, word: str, tmp_path: Path) -> None:
    """A key that does not exist is found, so that the test above can fail."""
    file = place(sample, tmp_path)
    text = file.read_text()
    assert word in text
    file.write_text(text.replace(word, f"{word}_x"))
    assert check(sample, file).returncode != 0


def test_every_sample_is_named_in_the_list() -> None:
    """deploy/README.md says what each is for, and each is checked here."""
    page = (DEPLOY / "README.md").read_text()
    files = {str(file.relative_to(DEPLOY)) for file in DEPLOY.rglob("*") if file.is_file() and file.suffix != ".md"}
    files -= {name for name in files if "__pycache__" in name}
    assert files == set(SAMPLES) | LOOKED_AT
    for name in files:
        assert f"({name})" in page, name


# ---------------------------------------------------------------- systemd


def unit(role: str) -> dict[str, str]:
    """The settings of a role's unit, and the section that each stands in does not matter: no name is in two."""
    lines = (DEPLOY / f"systemd/roadstead-{role}@.service").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_the_units_of_the_roles_differ_where_the_roles_do() -> None:
    """Whatever is hardened in one is in all; each starts its own role, named by the unit, and waits for its end."""
    units = {role: unit(role) for role in ROLES}
    own = {"Description", "TimeoutStopSec", "LimitNOFILE"}
    common = [{name: value for name, value in units[role].items() if name not in own} for role in ROLES]
    assert all(settings == common[0] for settings in common)
    assert common[0]["ExecStart"] == f"{PROGRAM} %j --config /etc/roadstead/%j-%i.toml"
    assert (common[0]["Type"], common[0]["Restart"], common[0]["Slice"]) == ("notify", "always", "roadstead.slice")
    access = load(Config, file=DEPLOY / "config/access.toml", env={}, flags=["registry.consul_token_file="]).access
    drain_s = (access.stop_drain_ms + access.drain_grace_ms) / 1_000
    assert int(units["access"]["TimeoutStopSec"]) > 2 * drain_s
    assert int(units["access"]["LimitNOFILE"]) > access.capacity
    assert int(common[0]["TimeoutStartSec"]) > Config().node.start_deadline_ms / 1_000


@pytest.mark.parametrize("role", ROLES)
def test_a_unit_is_hardened(role: str, tmp_path: Path) -> None:
    """By the service manager's own measure, from 0 for confined to 10 for anything goes."""
    if (program := shutil.which("systemd-analyze")) is None:
        pytest.skip("systemd-analyze is not installed")
    file = place(f"systemd/roadstead-{role}@.service", tmp_path)
    command = [program, "security", "--offline=true", "--threshold=20", "--no-pager", str(file)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "exposure level" in ran.stdout


def test_user_and_folders_are_made_for_the_units(tmp_path: Path) -> None:
    """Keys can be read by the user, and by nobody else."""
    if (users := shutil.which("systemd-sysusers")) is None or (folders := shutil.which("systemd-tmpfiles")) is None:
        pytest.skip("systemd is not installed")
    (tmp_path / "etc").mkdir()
    root = f"--root={tmp_path}"
    subprocess.run([users, root, DEPLOY / "systemd/sysusers.conf"], check=True, capture_output=True, timeout=20)
    name, _, _, group, *_ = (tmp_path / "etc/passwd").read_text().splitlines()[-1].split(":")
    assert name == unit("im")["User"] == unit("im")["Group"]
    command = [folders, root, "--create", DEPLOY / "systemd/tmpfiles.conf"]
    subprocess.run(command, check=True, capture_output=True, timeout=20)
    keys = (tmp_path / "etc/roadstead/keys").stat()
    assert (keys.st_mode & 0o777, keys.st_uid, keys.st_gid) == (0o750, 0, int(group))


# ---------------------------------------------------------------- keys and certificates


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the containers' script makes: certificates of a node of each role, and keys."""
    folder = tmp_path_factory.mktemp("deploy") / "secrets"
    certify(folder, *(f"{role}-1" for role in ROLES))
    return folder


def certify(folder: Path, *names: str) -> None:
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["/bin/sh", DEPLOY / "docker/certificates.sh", folder, *names]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)
    assert ran.returncode == 0, ran.stderr


def of_sample(role: str, secrets: Path, **settings: str) -> Config:
    """The configuration of a role's sample, with the files of its container."""
    token = secrets / "consul/token"
    token.write_text("00000000-0000-0000-0000-000000000000")
    env = {
        "ROADSTEAD_REGISTRY__CONSUL_TOKEN_FILE": str(token),
        "ROADSTEAD_SECURITY__PEER_KEYS_FILE": str(secrets / f"keys/{role}/peer-keys"),
        "ROADSTEAD_SECURITY__API_KEYS_FILE": str(secrets / f"keys/{role}/api-keys"),
        "ROADSTEAD_SECURITY__TLS_CERTIFICATE": str(secrets / f"nodes/{role}-1/node.pem"),
        "ROADSTEAD_SECURITY__TLS_KEY": str(secrets / f"nodes/{role}-1/node.key"),
        "ROADSTEAD_SECURITY__TLS_CA": str(secrets / f"nodes/{role}-1/ca.pem"),
        "ROADSTEAD_SECURITY__TICKET_KEYS_FILE": str(secrets / f"keys/{role}/ticket-keys"),
        "ROADSTEAD_SECURITY__USER_KEYS_FILE": str(secrets / f"keys/{role}/user-keys"),
    }
    return load(Config, file=DEPLOY / f"config/{role}.toml", env=env | settings)


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_starts_with_its_sample_and_the_keys_of_its_containers(role: str, secrets: Path) -> None:
    """They are enough for it; a sample names no keys that its role does not read."""
    config = of_sample(role, secrets)
    found = place_of(role, config)
    assert found.name == f"{role}-1"
    assert found.keys.trust.server_ssl is not None
    await found.registry.registry.close()
    named = (DEPLOY / f"config/{role}.toml").read_text()
    assert ("ticket_keys_file" in named) == ("ticket_keys" in PROCESS_ROLES[role].keys)
    assert ("user_keys_file" in named) == ("user_keys" in PROCESS_ROLES[role].keys)


def test_keys_stay_and_certificates_are_new_at_each_start(secrets: Path) -> None:
    """Nobody but their owner can read any of them, and each role has the keys that it needs and no others."""
    keys = {file: file.read_text() for file in secrets.glob("keys/*/*")}
    assert {str(file.relative_to(secrets / "keys")) for file in keys} == {
        *(f"{role}/{name}" for role in ROLES for name in ("peer-keys", "api-keys")),
        *(f"{role}/ticket-keys" for role in ("access", "scheduler")),
        "scheduler/user-keys",
    }
    assert len({text for file, text in keys.items() if file.name == "peer-keys"}) == 1
    ca, node = secrets / "ca/ca.pem", secrets / "nodes/im-1/node.pem"
    before = ca.read_text(), node.read_text()
    certify(secrets, "im-1")
    assert {file: file.read_text() for file in keys} == keys
    assert ca.read_text() == before[0]
    assert node.read_text() != before[1]
    assert all(file.stat().st_mode & 0o077 == 0 for file in secrets.rglob("*.key"))
    assert all(file.stat().st_mode & 0o077 == 0 for file in keys)


async def test_a_containers_health_is_whether_its_node_is_ready(secrets: Path, tmp_path: Path) -> None:
    """Over TLS, by the node's own configuration. A node that is not there is not healthy either."""
    config = of_sample("im", secrets, ROADSTEAD_NODE__HOST="127.0.0.1")
    server = HttpServer("im-1", Metrics("im-1"), statistics=dict)
    trust = Trust.load(config.security)
    url = await server.listen("127.0.0.1", 0, tls=trust.server_ssl)
    file = tmp_path / "node.toml"
    file.write_text(f"[node]\nport = 1\n[security]\ntls_ca = {config.security.tls_ca!r}\n")
    env = {"ROADSTEAD_CONFIG": str(file), "ROADSTEAD_NODE__PORT": url.rpartition(":")[2]}

    async def asked() -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", DEPLOY / "docker/healthcheck.py", env=env, stderr=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(10):
            return await process.wait()

    try:
        assert await asked() == 1
        server.is_ready = True
        assert await asked() == 0
    finally:
        await server.close()
    assert await asked() == 1


# ---------------------------------------------------------------- containers


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((DEPLOY / "docker/compose.yaml").read_text())
    return document


def nodes(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: service for name, service in compose["services"].items() if name.rpartition("-")[0] in ROLES}


def test_the_compose_file_is_of_the_specification(compose: dict[str, Any]) -> None:
    """Every name in it, and every value, by a reader of the specification."""
    if importlib.util.find_spec("compose_spec") is None:
        pytest.skip("compose-spec is not installed")
    from compose_spec import PyCompose

    assert set(PyCompose.from_yaml(yaml.safe_dump(compose)).service_names()) == set(compose["services"])
    slip = yaml.safe_dump(compose).replace("cap_drop", "cap_drop_x")
    with pytest.raises(ValueError, match="cap_drop_x"):
        PyCompose.from_yaml(slip)


def test_each_container_is_a_node_of_its_own(compose: dict[str, Any], tmp_path: Path) -> None:
    """Its settings are good for this version; it has its own name, address and certificate, and its role's keys."""
    found = nodes(compose)
    counted = [sum(name.startswith(f"{role}-") for name in found) for role in ROLES]
    assert counted == [3, 2, 2, 2]
    assert compose["services"]["certificates"]["command"] == list(found)
    token = tmp_path / "token"
    token.write_text("")
    for name, service in found.items():
        role = name.rpartition("-")[0]
        assert service["command"] == [role, "--config", "/etc/roadstead/node.toml"]
        env = service["environment"] | {"ROADSTEAD_REGISTRY__CONSUL_TOKEN_FILE": str(token)}
        config = load(Config, file=DEPLOY / f"config/{role}.toml", env=env)
        assert config.node.name == name
        assert config.node.advertise_url == f"https://{name}:{config.node.port}"
        mounted = {
            volume["target"]: volume["volume"]["subpath"] for volume in service["volumes"] if isinstance(volume, dict)
        }
        assert mounted == {
            "/etc/roadstead/consul": "secrets/consul",
            "/etc/roadstead/keys": f"secrets/keys/{role}",
            "/etc/roadstead/tls": f"secrets/nodes/{name}",
        }
        assert f"../config/{role}.toml:/etc/roadstead/node.toml:ro" in service["volumes"]
        stop_s = int(service["stop_grace_period"].removesuffix("s"))
        assert stop_s >= int(unit(role)["TimeoutStopSec"])
        if role == "im":
            assert config.im.data == f"/var/lib/roadstead/{name}"
            assert f"{name}:/var/lib/roadstead" in service["volumes"]
            assert set(config.im.first_nodes) == {other for other in found if other.startswith("im-")}
        if role == "status":
            assert config.status.bootstrap_nodes == 3


def test_nobody_reaches_the_containers_but_through_the_proxy(compose: dict[str, Any]) -> None:
    """Which publishes what it listens on, on loopback. All of ours run without rights and without a way out."""
    services = compose["services"]
    assert [name for name, service in services.items() if "ports" in service] == ["haproxy"]
    bound = re.findall(r"^    bind :(\d+)$", (DEPLOY / "docker/haproxy.cfg").read_text(), flags=re.MULTILINE)
    assert services["haproxy"]["ports"] == [f"127.0.0.1:{port}:{port}" for port in bound]
    assert compose["networks"]["inside"]["internal"] is True
    for name, service in services.items():
        if name == "certificates":
            assert service["network_mode"] == "none"
        elif name != "haproxy":
            assert service["networks"] == ["inside"], name
        if name != "consul":
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name
    for name, node in nodes(compose).items():
        wanted = {"certificates", "rights"}
        assert {each for each, how in node["depends_on"].items() if "completed" in how["condition"]} == wanted, name


def test_what_is_mounted_into_containers_is_there(compose: dict[str, Any]) -> None:
    """Every file of ours that the compose file names."""
    named = [
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if isinstance(volume, str) and volume.startswith(".")
    ]
    assert len(named) > len(ROLES)
    for file in named:
        assert (DEPLOY / "docker" / file).is_file(), file


def test_the_image_has_all_packages_and_no_root() -> None:
    """What is copied exists, is not kept out, and is what the wheel is made of; the last user is a number."""
    text = (DEPLOY / "docker/Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (?!--)(.*) \S+$", text, flags=re.MULTILINE) for word in line.split()]
    let_in = re.findall(r"^!(.*)$", (DEPLOY / "docker/Dockerfile.dockerignore").read_text(), flags=re.MULTILINE)
    assert sorted(word.rstrip("/") for word in copied) == sorted(let_in)
    root = DEPLOY.parent
    assert all((root / word).exists() for word in copied)
    packages = re.search(r"^packages = \[(\"base\".*)\]$", (root / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert packages is not None
    assert {word.rstrip("/") for word in copied if word.endswith("/")} == set(re.findall(r"\w+", packages[1]))
    assert re.findall(r"^USER (\S+)$", text, flags=re.MULTILINE) == ["10001:10001"]
    assert "--require-hashes -r requirements.lock" in text
    assert "/opt/roadstead/healthcheck.py" in text[text.index("HEALTHCHECK") :]
