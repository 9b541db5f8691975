"""What the processes of a local cluster are started with: keys, certificates, a configuration each, as in production.

DIR/cluster/
    cluster.json     the plan: names and ports
    keys/            the key files that `[security]` names
    ca/              a CA for development; NAME.pem and NAME.key beside it are the nodes' certificates
    NAME.toml        a node's configuration, written at each start
    consul/          Consul's configuration and data
    logs/            what the processes wrote
    control.sock     how other terminals talk to the supervisor, while it runs
DIR/im-N             the message services' data

Settings are changed by `--set` of `cluster up`, or in files of one's own: these here are written anew.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from base.clock import SystemClock
from base.config import load
from base.errors import ConfigError
from roadstead.ca import CertificateAuthority
from roadstead.cluster.plan import Plan, PlannedNode
from roadstead.config import Config
from roadstead.deployment import DataFolder, Secrets
from roadstead.ports import LOOPBACK

__all__ = ["ClusterFiles"]

SHARDS = 8
OPERATOR = "operator"
"""Who looks at the nodes from outside, as `roadstead doctor` does."""
STOP_DRAIN_MS = 2_000
"""Shorter than in production: here somebody waits for it."""


class ClusterFiles:
    """The folder of one cluster. Methods raise ConfigError for what cannot be read or written."""

    def __init__(self, data: DataFolder) -> None:
        self.data = data
        self.folder = data.path.absolute() / "cluster"
        self.logs = self.folder / "logs"
        self.consul = self.folder / "consul"
        self._keys = self.folder / "keys"
        self._ca = self.folder / "ca"

    def config_of(self, name: str) -> Path:
        """Return the file with a node's configuration."""
        return self.folder / f"{name}.toml"

    def operator_config(self) -> Config:
        """Return the configuration by which to look at the nodes from outside."""
        return load(Config, file=self.config_of(OPERATOR), env={})

    def former_plan(self) -> Plan | None:
        """Return the plan of the last start, None before the first, or after one of another version."""
        try:
            return msgspec.json.decode((self.folder / "cluster.json").read_bytes(), type=Plan)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        except OSError as error:
            raise ConfigError([f"{self.folder} cannot be read: {error.strerror}"]) from error

    def write(self, plan: Plan, secrets: Secrets, *, consul_url: str, log_level: str, log_format: str) -> None:
        """Write everything that the processes need."""
        try:
            for folder in (self.folder, self.logs, self.consul, self._keys):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._write("cluster.json", msgspec.json.format(msgspec.json.encode(plan)).decode())
            for name, lines in _key_files(secrets).items():
                self._write(f"keys/{name}", lines)
            if plan.has_tls:
                self._certify(plan)
            common = {"registry": {"consul_url": consul_url}, "log": {"level": log_level, "format": log_format}}
            for node in (*plan.nodes, PlannedNode(OPERATOR, "")):
                self._write(f"{node.name}.toml", _toml(common | self._settings(plan, node)))
        except OSError as error:
            raise ConfigError([f"{error.filename or self.folder} cannot be written: {error.strerror}"]) from error

    def _certify(self, plan: Plan) -> None:
        """Have a CA, and a new certificate for each node: they are short-lived, and nothing waits for them yet."""
        now = SystemClock().realtime()
        if self.data.ca.exists():
            authority = CertificateAuthority.open(self._ca)
        else:
            authority = CertificateAuthority.create(self._ca, now=now)
        for name in (*(node.name for node in plan.nodes), OPERATOR):
            authority.issue(name, now=now)

    def _settings(self, plan: Plan, node: PlannedNode) -> dict[str, dict[str, Any]]:
        """What stands in a node's file, by section."""
        security: dict[str, Any] = {
            **{f"{name.replace('-', '_')}_file": str(self._keys / name) for name in _KEY_FILES},
            **(self._tls(node) if plan.has_tls else {}),
            "audit_file": str(self.logs / f"{node.name}.audit.log"),
        }
        settings: dict[str, dict[str, Any]] = {
            "node": {"name": node.name, "host": LOOPBACK, "port": node.port},
            "security": security,
            "status": {"bootstrap_nodes": plan.count("status")},
            "im": {"shards": SHARDS, "first_nodes": [other.name for other in plan.nodes if other.role == "im"]},
        }
        if node.role == "im":
            settings["im"]["data"] = str(self.folder.parent / node.name)
        if node.role == "access":
            settings["access"] = {"client_port": node.client_port, "stop_drain_ms": STOP_DRAIN_MS}
            if plan.has_tls:
                settings["access"] |= {name: security[name] for name in ("tls_certificate", "tls_key")}
        return settings

    def _tls(self, node: PlannedNode) -> dict[str, str]:
        return {
            "tls_certificate": str(self._ca / f"{node.name}.pem"),
            "tls_key": str(self._ca / f"{node.name}.key"),
            "tls_ca": str(self._ca / "ca.pem"),
        }

    def _write(self, name: str, text: str) -> None:
        """Replace a file as a whole, readable for its owner alone."""
        partial = self.folder / f"{name}.partial"
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        partial.replace(self.folder / name)


_KEY_FILES = ("peer-keys", "api-keys", "ticket-keys", "user-keys")


def _key_files(secrets: Secrets) -> dict[str, str]:
    """The content of each key file, in the order of `_KEY_FILES`."""
    lines = (
        secrets.peer_key,
        f"admin {secrets.api_key} local",
        f"{secrets.ticket_kid} {secrets.ticket_key}",
        secrets.user_key,
    )
    return {name: f"{line}\n" for name, line in zip(_KEY_FILES, lines, strict=True)}


def _toml(settings: dict[str, dict[str, Any]]) -> str:
    """Write sections of plain values. TOML's strings, numbers, booleans and lists of them are those of JSON."""
    lines = ["# Written by `roadstead cluster up` at each start.", ""]
    for section, fields in settings.items():
        lines += [
            f"[{section}]",
            *(f"{name} = {msgspec.json.encode(value).decode()}" for name, value in fields.items()),
        ]
        lines.append("")
    return "\n".join(lines)
