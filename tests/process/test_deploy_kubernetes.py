"""The manifests in deploy/kubernetes are of the API's schemas, belong together, and are good for this version.

No cluster runs here: what one does with them is not shown. What it is given is.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from click.testing import CliRunner

import roadstead
from access.service import DRAIN_SPARE_S
from base.clock import SystemClock
from base.config import load
from base.service import STOP_DEADLINE_S
from roadstead.ca import CertificateAuthority
from roadstead.cli.check_config import command as check_config
from roadstead.config import Config
from scheduler.core.access_head import PATH
from tests.support.clients_port import CertificateFiles

ROOT = Path(__file__).parents[2]
HERE = ROOT / "deploy/kubernetes"
ROLES = ("status", "im", "scheduler", "access")
VERSIONS = ("1.30", "1.37")
"""Of Kubernetes: the oldest that they are for, and the newest that there are schemas of."""
OTHERS = ("cert-manager.io/v1", "kustomize.config.k8s.io/v1beta1")
"""What has no schema there, and is looked at by hand."""
COMPONENT = "app.kubernetes.io/component"
NAMESPACE = "kubernetes.io/metadata.name"
CSI = "csi.cert-manager.io/"
DRAIN_S = 10.0
"""How long a role may take to drain that says nothing else: `base.node`."""
TLS_CONNECTION_BYTES = 46_000
KEYS = {
    "peer-keys": "0123456789abcdef0123456789abcdef",
    "api-keys": "admin 0123456789abcdef0123456789abcdea ann",
    "ticket-keys": "t1 0123456789abcdef0123456789abcdeb",
    "user-keys": "0123456789abcdef0123456789abcdec",
    "consul-token": "00000000-0000-0000-0000-000000000000",
}

pytestmark = pytest.mark.process

Object = dict[str, Any]


def objects_of(text: str) -> dict[tuple[str, str], Object]:
    """Kubernetes' objects by kind and name."""
    read: list[Object] = list(yaml.safe_load_all(text))
    found = {(each["kind"], each["metadata"]["name"]): each for each in read}
    assert len(found) == len(read)
    return found


KUSTOMIZATION: Object = yaml.safe_load((HERE / "kustomization.yaml").read_text())
OBJECTS = objects_of("\n---\n".join((HERE / file).read_text() for file in KUSTOMIZATION["resources"]))


def stateful(role: str) -> Object:
    spec: Object = OBJECTS["StatefulSet", role]["spec"]
    return spec


def pod(role: str) -> Object:
    spec: Object = stateful(role)["template"]["spec"]
    return spec


def node(role: str) -> Object:
    (container,) = pod(role)["containers"]
    assert isinstance(container, dict)
    return container


def volumes(role: str) -> dict[str, Object]:
    return {volume["name"]: volume for volume in pod(role)["volumes"]}


def mounts(role: str) -> dict[str, Path]:
    """Where each volume is."""
    return {mount["name"]: Path(mount["mountPath"]) for mount in node(role)["volumeMounts"]}


def names(role: str) -> list[str]:
    return [f"{role}-{number}" for number in range(stateful(role)["replicas"])]


def environment(role: str, name: str) -> dict[str, str]:
    """What a pod's process is given. A value can name what stands before it, and nothing else."""
    facts = {"metadata.name": name, "metadata.namespace": KUSTOMIZATION["namespace"], "status.hostIP": "10.0.0.7"}
    found: dict[str, str] = {}
    for each in node(role)["env"]:
        if "valueFrom" in each:
            found[each["name"]] = facts[each["valueFrom"]["fieldRef"]["fieldPath"]]
        else:
            found[each["name"]] = re.sub(r"\$\((\w+)\)", lambda match: found[match[1]], each["value"])
    return found


def certificate(role: str, name: str) -> dict[str, str]:
    """What is asked of the CSI driver for a pod's certificate."""
    csi = volumes(role)["tls"]["csi"]
    assert csi["driver"] == CSI.rstrip("/")
    values = {"${POD_NAME}": name, "${POD_NAMESPACE}": KUSTOMIZATION["namespace"]}
    return {
        key.removeprefix(CSI): re.sub(r"\$\{\w+\}", lambda match: values[match[0]], value)
        for key, value in csi["volumeAttributes"].items()
    }


def config(role: str, name: str | None = None) -> Config:
    env = environment(role, name or f"{role}-0")
    flags = ["registry.consul_token_file="]
    return load(Config, file=HERE / f"config/{role}.toml", env=env, flags=flags)


# ---------------------------------------------------------------- schemas


@pytest.mark.parametrize("version", VERSIONS)
def test_each_object_is_of_its_schema(version: str) -> None:
    """Nothing is named that does not exist, and each value is of its type."""
    validator = pytest.importorskip("kubernetes_validate")
    checked = [each for each in OBJECTS.values() if each["apiVersion"] not in OTHERS]
    assert len(checked) > 20
    for each in checked:
        assert validator.validate(each, version, strict=True) == version


@pytest.mark.parametrize(("right", "wrong"), [("podManagementPolicy", "podManagement"), ("replicas: 3", "replicas: x")])
def test_the_schemas_would_see_a_slip(right: str, wrong: str) -> None:
    """A name that does not exist, and a value of another type."""
    validator = pytest.importorskip("kubernetes_validate")
    text = (HERE / "status.yaml").read_text()
    assert right in text
    slip = objects_of(text.replace(right, wrong))["StatefulSet", "status"]
    with pytest.raises(validator.ValidationError):
        validator.validate(slip, VERSIONS[-1], strict=True)


def test_the_kustomization_has_every_file() -> None:
    """And the image of this very version."""
    named = {"kustomization.yaml", *KUSTOMIZATION["resources"]}
    named |= {file.partition("=")[2] for made in KUSTOMIZATION["configMapGenerator"] for file in made["files"]}
    assert named == {str(file.relative_to(HERE)) for file in HERE.rglob("*") if file.is_file()}
    (image,) = KUSTOMIZATION["images"]
    assert image["newTag"] == roadstead.__version__
    assert {node(role)["image"] for role in ROLES} == {image["name"]}
    assert ("Namespace", KUSTOMIZATION["namespace"]) in OBJECTS
    assert not any("namespace" in each["metadata"] for each in OBJECTS.values())


def test_kustomize_builds_it() -> None:
    """All objects are in the namespace, and each role reads the configuration that was made for it."""
    if (program := shutil.which("kubectl")) is None:
        pytest.skip("kubectl is not installed")
    told = subprocess.run([program, "version", "--client"], capture_output=True, text=True, timeout=20, check=False)
    if "Kustomize Version: v5" not in told.stdout:
        pytest.skip("kubectl is an old one")
    validator = pytest.importorskip("kubernetes_validate")
    ran = subprocess.run([program, "kustomize", HERE], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    built = objects_of(ran.stdout)
    assert len(built) == len(OBJECTS) + len(ROLES)
    for (kind, _), each in built.items():
        if each["apiVersion"] not in OTHERS:
            validator.validate(each, VERSIONS[-1], strict=True)
        assert kind == "Namespace" or each["metadata"]["namespace"] == KUSTOMIZATION["namespace"]
    for role in ROLES:
        spec = built["StatefulSet", role]["spec"]["template"]["spec"]
        (name,) = [volume["configMap"]["name"] for volume in spec["volumes"] if "configMap" in volume]
        made = built["ConfigMap", name]
        assert made["data"] == {"node.toml": (HERE / f"config/{role}.toml").read_text()}
        assert made["metadata"]["labels"][COMPONENT] == role
        assert name != f"{role}-config", "without a hash in its name a change would roll nothing"


def test_certificates_are_of_the_cas_that_there_are() -> None:
    """What cert-manager is given: its own schemas are not here."""
    for (kind, _), each in OBJECTS.items():
        if kind == "Certificate":
            known = {"isCA", "commonName", "dnsNames", "secretName", "duration", "privateKey", "issuerRef"}
            assert set(each["spec"]) <= known
            issuer = each["spec"]["issuerRef"]
            assert issuer["kind"] == "ClusterIssuer" or (issuer["kind"], issuer["name"]) in OBJECTS
    nodes, ca = OBJECTS["Issuer", "nodes"]["spec"], OBJECTS["Certificate", "ca"]["spec"]
    assert nodes == {"ca": {"secretName": ca["secretName"]}}
    assert ca["isCA"] is True
    assert ca["privateKey"]["rotationPolicy"] == "Never"
    issuer = OBJECTS["Issuer", ca["issuerRef"]["name"]]
    assert issuer["spec"] == {"selfSigned": {}}


# ---------------------------------------------------------------- nodes


def test_the_roles_differ_where_they_must() -> None:
    """Whatever is hardened in one is in all."""
    own = {"replicas", "minReadySeconds", "persistentVolumeClaimRetentionPolicy", "volumeClaimTemplates"}
    own_of_node = {"args", "env", "ports", "lifecycle", "resources", "volumeMounts"}
    common = []
    for role in ROLES:
        text = yaml.safe_dump({name: value for name, value in stateful(role).items() if name not in own})
        spec = yaml.safe_load(text.replace(f": {role}\n", ": ROLE\n"))
        inner = spec["template"]["spec"]
        del inner["terminationGracePeriodSeconds"], inner["volumes"]
        inner["containers"] = [{k: v for k, v in node(role).items() if k not in own_of_node}]
        common.append(spec)
    assert all(each == common[0] for each in common)
    assert common[0]["podManagementPolicy"] == "Parallel"
    assert common[0]["template"]["spec"]["enableServiceLinks"] is False


@pytest.mark.parametrize("role", ROLES)
def test_a_pod_may_do_nothing_that_it_need_not(role: str) -> None:
    """As the namespace demands (restricted), and with a root that cannot be written."""
    spec, container = pod(role), node(role)
    assert spec["automountServiceAccountToken"] is False
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "deploy/docker/Dockerfile").read_text(), flags=re.MULTILINE)
    assert user is not None
    context = spec["securityContext"]
    assert context["runAsNonRoot"] is True
    assert [str(context[name]) for name in ("runAsUser", "runAsGroup", "fsGroup")] == [user[1], user[2], user[2]]
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    kinds = {next(kind for kind in volume if kind != "name") for volume in spec["volumes"]}
    assert kinds <= {"configMap", "secret", "csi", "emptyDir"}
    secrets = [volume["secret"] for volume in spec["volumes"] if "secret" in volume]
    assert all(secret["defaultMode"] == 0o440 for secret in secrets)
    assert certificate(role, f"{role}-0")["fs-group"] == user[2]
    level = OBJECTS["Namespace", KUSTOMIZATION["namespace"]]["metadata"]["labels"]
    assert level["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("role", ROLES)
def test_a_pod_is_reached_under_the_name_that_it_says(role: str) -> None:
    """The address that it registers is that of a Service that leads to it, before it is ready, too."""
    labels = stateful(role)["template"]["metadata"]["labels"]
    assert stateful(role)["selector"] == {"matchLabels": labels}
    own, for_others = OBJECTS["Service", role]["spec"], OBJECTS["Service", f"{role}-api"]["spec"]
    assert own["clusterIP"] == "None"
    assert own["publishNotReadyAddresses"] is True
    assert "publishNotReadyAddresses" not in for_others
    ports = {port["name"]: port["containerPort"] for port in node(role)["ports"]}
    for name in names(role):
        settings = config(role, name)
        assert settings.node.name == name
        url = f"https://{name}.{stateful(role)['serviceName']}.{KUSTOMIZATION['namespace']}.svc:{settings.node.port}"
        assert settings.node.advertise_url == url
        assert settings.registry.consul_url == "http://10.0.0.7:8500"
        assert ports["node"] == settings.node.port
    for service in (own, for_others):
        assert service["selector"].items() <= labels.items()
        assert service["ports"] == [{"name": "node", "port": ports["node"], "targetPort": "node"}]


@pytest.mark.parametrize("role", ROLES)
def test_a_configuration_is_good_in_its_pod(role: str, tmp_path: Path) -> None:
    """By our own check, with the pod's environment, and with the files that are mounted into it and no others."""
    name = f"{role}-0"
    wanted, places = certificate(role, name), mounts(role)
    host, *others = wanted["dns-names"].split(",")
    authority = CertificateAuthority.create(tmp_path / "ca", now=SystemClock().realtime())
    issued = authority.issue(host, now=SystemClock().realtime(), hosts=others)
    files = {
        places["tls"] / wanted["certificate-file"]: issued.certificate.read_text(),
        places["tls"] / wanted["privatekey-file"]: issued.key.read_text(),
        places["tls"] / wanted["ca-file"]: authority.file.read_text(),
    }
    for item in volumes(role)["keys"]["secret"]["items"]:
        files[places["keys"] / item["path"]] = KEYS[item["key"]]
    if "clients-tls" in places:
        for_clients = CertificateFiles.make(tmp_path, "clients")
        files[places["clients-tls"] / "tls.crt"] = Path(for_clients.chain).read_text()
        files[places["clients-tls"] / "tls.key"] = Path(for_clients.key).read_text()
    text = (HERE / f"config/{role}.toml").read_text()
    named = {Path(file) for file in re.findall(r'"(/etc/[^"]+)"', text)}
    assert named == set(files), "each file that is mounted is read, and the other way round"
    for file, content in files.items():
        there = tmp_path / file.relative_to("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text(content)
    in_force = tmp_path / "node.toml"
    in_force.write_text(text.replace('"/etc/', f'"{tmp_path}/etc/'))
    assert node(role)["args"] == [role, "--config", str(places["config"])]
    arguments = ["--role", role, "--config", str(in_force)]
    ran = CliRunner().invoke(check_config, arguments, env=environment(role, name))
    assert (ran.exit_code, ran.output) == (0, "the configuration is good\n"), ran.exception


@pytest.mark.parametrize("role", ROLES)
def test_a_pods_certificate_is_for_all_names_that_are_checked(role: str) -> None:
    """A node believes whoever has the node's name in it; who connects looks for the host. It is shown at both ends."""
    for name in names(role):
        wanted = certificate(role, name)
        hosts = wanted["dns-names"].split(",")
        assert name in hosts
        assert urlsplit(config(role, name).node.advertise_url).hostname in hosts
        assert f"{role}-api.{KUSTOMIZATION['namespace']}.svc" in hosts
        assert {"server auth", "client auth"} <= set(wanted["key-usages"].split(","))
        assert (wanted["issuer-kind"], wanted["issuer-name"]) in OBJECTS
        assert len(name) <= 64


@pytest.mark.parametrize("role", ROLES)
def test_a_pod_is_asked_whether_it_is_well_and_given_the_time_that_it_takes(role: str) -> None:
    """To start: longer than it waits itself. To end: longer than its drain and its stop."""
    container, settings = node(role), config(role)
    for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert container[probe]["httpGet"] == {"path": path, "port": "node", "scheme": "HTTPS"}
    start = container["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] > settings.node.start_deadline_ms / 1_000
    access = settings.access
    drains = {
        "status": DRAIN_S + settings.status.stop_handover_ms / 1_000,
        "access": (access.stop_drain_ms + access.drain_grace_ms + access.linger_ms) / 1_000 + DRAIN_SPARE_S,
    }
    before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert (before > 0) == (role == "scheduler")
    assert pod(role)["terminationGracePeriodSeconds"] > before + drains.get(role, DRAIN_S) + STOP_DEADLINE_S


def test_one_pod_of_a_role_is_taken_away_at_a_time() -> None:
    """Of each role, and each role is spread over machines."""
    for role in ROLES:
        selector = {"matchLabels": {COMPONENT: role}}
        budget = OBJECTS["PodDisruptionBudget", role]["spec"]
        assert (budget["maxUnavailable"], budget["selector"]) == (1, selector)
        spread = pod(role)["topologySpreadConstraints"]
        assert [each["topologyKey"] for each in spread] == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
        assert all(each["labelSelector"] == selector for each in spread)


def test_the_counts_of_pods_are_those_of_the_configurations() -> None:
    """So many status nodes as the first table waits for, and message services as have the first shards."""
    assert stateful("status")["replicas"] == config("status").status.bootstrap_nodes
    assert list(config("im").im.first_nodes) == names("im")
    (claim,) = stateful("im")["volumeClaimTemplates"]
    data = Path(config("im").im.data)
    assert mounts("im")[claim["metadata"]["name"]] in data.parents
    leases = {config(role).status.lease_ms for role in ("status", "im", "access")}
    assert len(leases) == 1


# ---------------------------------------------------------------- clients


def test_each_access_node_has_an_address_for_clients() -> None:
    """It leads to this pod alone, and is in the certificate that clients see."""
    addresses = {each: what["spec"] for (kind, each), what in OBJECTS.items() if kind == "Service"}
    assert [each for each, spec in addresses.items() if spec.get("type") == "LoadBalancer"] == names("access")
    ports = {port["name"]: port["containerPort"] for port in node("access")["ports"]}
    for name in names("access"):
        settings, service = config("access", name).access, addresses[name]
        assert service["selector"] == {"statefulset.kubernetes.io/pod-name": name}
        assert service["externalTrafficPolicy"] == "Local"
        assert service["publishNotReadyAddresses"] is True
        assert service["ports"] == [{"name": "clients", "port": 443, "targetPort": "clients"}]
        assert ports["clients"] == settings.client_port
        url = urlsplit(settings.client_url)
        annotations = OBJECTS["Service", name]["metadata"]["annotations"]
        assert (url.scheme, url.port) == ("https", None)
        assert annotations == {"external-dns.alpha.kubernetes.io/hostname": url.hostname}
        assert url.hostname is not None
        assert f"*.{url.hostname.partition('.')[2]}" in OBJECTS["Certificate", "clients"]["spec"]["dnsNames"]
    (secret,) = [each["secret"] for each in volumes("access").values() if each["name"] == "clients-tls"]
    assert secret["secretName"] == OBJECTS["Certificate", "clients"]["spec"]["secretName"]


def test_clients_find_the_schedulers_and_nothing_else_of_them() -> None:
    """By the path that clients ask, over TLS that is checked on both ways."""
    ingress = OBJECTS["Ingress", "scheduler"]
    (rule,), (tls,) = ingress["spec"]["rules"], ingress["spec"]["tls"]
    (path,) = rule["http"]["paths"]
    assert (path["path"], path["pathType"]) == (PATH, "Exact")
    backend = path["backend"]["service"]
    assert backend["port"]["name"] in {port["name"] for port in OBJECTS["Service", backend["name"]]["spec"]["ports"]}
    shown = OBJECTS["Certificate", "clients"]["spec"]
    assert tls == {"hosts": [rule["host"]], "secretName": shown["secretName"]}
    assert rule["host"] in shown["dnsNames"]
    ca = OBJECTS["Certificate", "ca"]["spec"]["secretName"]
    annotations = ingress["metadata"]["annotations"]
    assert annotations["haproxy.org/server-ca"] == f"{KUSTOMIZATION['namespace']}/{ca}"
    assert annotations["haproxy.org/server-ssl"] == "true"
    assert config("scheduler").scheduler.proxies


def test_an_access_node_refuses_clients_before_it_is_killed_for_its_memory() -> None:
    """With all that it may hold, it stays below the bound of its configuration, and that below the pod's."""
    settings, limit = config("access").access, node("access")["resources"]["limits"]["memory"]
    assert limit == "2Gi"
    full = settings.capacity * TLS_CONNECTION_BYTES + settings.queued_bytes_max
    assert full < 0.9 * settings.memory_bytes_max < settings.memory_bytes_max < 2 * 1024**3
    assert all("cpu" not in node(role)["resources"]["limits"] for role in ROLES)
    assert stateful("access")["minReadySeconds"] * 1_000 >= config("scheduler").scheduler.slow_start_ms


# ---------------------------------------------------------------- who talks to whom


def ends(peers: list[Mapping[str, Any]]) -> Iterator[str]:
    """Names of the ends of a rule: roles by themselves, others by what the table calls them."""
    others = {"monitoring": "Prometheus", "haproxy-controller": "ingress", "consul": "consul", "kube-system": "dns"}
    for peer in peers:
        if "namespaceSelector" in peer:
            labels = peer["namespaceSelector"]["matchLabels"]
            yield "backends" if labels == {"roadstead-backend": "true"} else others[labels[NAMESPACE]]
        elif "ipBlock" in peer:
            yield "machines"
        else:
            (role,) = peer["podSelector"]["matchLabels"].values()
            yield role


def let(direction: str, role: str) -> set[tuple[str, str, int]]:
    """What a role's policy lets in or out: from, to, port."""
    peers = "from" if direction == "ingress" else "to"
    found = set()
    for rule in OBJECTS["NetworkPolicy", role]["spec"][direction]:
        for other in ends(rule[peers]) if peers in rule else ["clients"]:
            for port in rule["ports"]:
                found.add((other, role, port["port"]) if direction == "ingress" else (role, other, port["port"]))
    return found


def table() -> set[tuple[str, str, int]]:
    """The table at the head of the file: who talks to whom."""
    lines = (HERE / "network.yaml").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if "to status 8710" in line)
    columns = [(match.start(), match[1], int(match[2])) for match in re.finditer(r"(\w+) (\d{4})", lines[start])]
    found = set()
    for line in lines[start + 1 :]:
        if line == "#":
            break
        who, *_ = line.removeprefix("#").split()
        for mark in re.finditer(r"\bx\b", line):
            _, to, port = min(columns, key=lambda column: abs(column[0] + 3 - mark.start()))
            found.add((who, to, port))
    return found


def test_the_network_lets_through_what_the_table_says() -> None:
    """What one role may send the other one lets in; and nothing is let through that is not in the table."""
    let_in = set().union(*(let("ingress", role) for role in ROLES))
    let_out = set().union(*(let("egress", role) for role in ROLES))
    for_all = {rule[1:] for rule in let_in if rule[0] == "clients"}
    assert let_in | {rule for rule in let_out if rule[1:] in for_all} == table()
    assert let_out == {rule for rule in table() if rule[0] in ROLES}
    ports = {(role, config(role).node.port) for role in ROLES} | {("access", config("access").access.client_port)}
    assert {(to, port) for _, to, port in let_in} == ports
    everything = OBJECTS["NetworkPolicy", "nothing-else"]["spec"]
    assert everything == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for role in ROLES:
        spec = OBJECTS["NetworkPolicy", role]["spec"]
        assert spec["podSelector"] == {"matchLabels": {COMPONENT: role}}
    common = OBJECTS["NetworkPolicy", "all-nodes"]["spec"]
    assert common["podSelector"]["matchLabels"].items() <= stateful("im")["template"]["metadata"]["labels"].items()
    wanted = {(end, port["port"]) for rule in common["egress"] for end in ends(rule["to"]) for port in rule["ports"]}
    assert wanted == {("dns", 53), ("machines", 8500), ("consul", 8500)}
    assert urlsplit(config("im").registry.consul_url).port == 8500


def dialled(role: str) -> set[str]:
    """Roles whose nodes those of a role open streams to, by its code: its own pools, and the other roles' clients."""
    found = set()
    for file in (ROOT / role).rglob("*.py"):
        text = file.read_text()
        if "PeerPool(site, ACCESS_SERVICE" in text:
            found.add("access")
        if "PeerPool(site, SERVICE" in text and file.name != "client.py":
            found.add(role)
        found |= {
            other
            for other in ROLES
            if f"from {other}.client import" in text and "PeerPool(" in (ROOT / other / "client.py").read_text()
        }
    return found


@pytest.mark.parametrize("role", ROLES)
def test_a_node_reaches_whom_its_code_calls(role: str) -> None:
    """And nobody else, but that operators' commands run in schedulers' pods."""
    reached = {to for _, to, _ in let("egress", role)}
    assert dialled(role)
    assert reached == (set(ROLES) if role == "scheduler" else dialled(role))


def test_the_keys_are_not_in_the_files() -> None:
    """Secrets are made by hand or by cert-manager; the guide tells of each that is named."""
    assert not [name for kind, name in OBJECTS if kind == "Secret"]
    page = (ROOT / "deploy/README.md").read_text()
    named = {volumes(role)["keys"]["secret"]["secretName"] for role in ROLES}
    assert len(named) == 1
    assert f"create secret generic {named.pop()}" in page
    for key in {item["key"] for role in ROLES for item in volumes(role)["keys"]["secret"]["items"]}:
        assert f"/{key}" in page, key
