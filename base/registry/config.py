"""The `[registry]` section: where the cluster's memory is, for a process that is one of many."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta

from base.config import Section

__all__ = ["RegistryConfig"]


class RegistryConfig(Section, frozen=True, kw_only=True):
    """Consul, or the registry of a `roadstead up`."""

    backend: Annotated[
        Literal["consul", "peer"],
        Meta(description="`consul`: a Consul cluster. `peer`: the registry of a running `roadstead up`."),
    ] = "consul"
    peer_url: Annotated[
        str, Meta(description="Base URL of the node that serves the registry; for the backend `peer`.")
    ] = ""
    consul_url: Annotated[
        str,
        Meta(
            description="Base URL of a Consul agent: the one of this machine, so that it ends with the machine. "
            "`https://` speaks TLS."
        ),
    ] = "http://127.0.0.1:8500"
    consul_token_file: Annotated[
        str,
        Meta(
            description="File with the ACL token, alone on its line; read again when it changes. Empty: no token. "
            "The rights that it needs: docs/adr/0024-registry-on-consul.md."
        ),
    ] = ""
    consul_datacenter: Annotated[
        str,
        Meta(
            description="The datacenter of all nodes of the system, whose agents must be in it. "
            "Empty: the agent's own, unchecked."
        ),
    ] = ""
    consul_ca_file: Annotated[
        str,
        Meta(description="PEM file of the CA that signed the agent's certificate. Empty: what the OS trusts."),
    ] = ""
    consul_certificate: Annotated[
        str, Meta(description="PEM file of a client certificate, for agents that ask for one; with `consul_key`.")
    ] = ""
    consul_key: Annotated[str, Meta(description="PEM file of the client certificate's key.")] = ""
    prefix: Annotated[
        str,
        Meta(
            pattern="^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$",
            description="Begins all keys (`PREFIX/`) and names of services (`PREFIX-`) in Consul, "
            "so that several systems can share it. The same on all nodes of a system.",
        ),
    ] = "roadstead"

    def problems(self) -> Iterable[str]:
        """Yield what does not fit together."""
        if self.backend == "peer" and not _is_base_url(self.peer_url):
            yield "peer_url must be the base URL of a node, such as http://10.0.0.1:7600, for the backend `peer`"
        if not _is_base_url(self.consul_url):
            yield "consul_url must be a base URL, such as http://127.0.0.1:8500 or https://consul.example:8501"
        if bool(self.consul_certificate) != bool(self.consul_key):
            yield "consul_certificate and consul_key come together"
        is_tls = self.consul_url.startswith("https:")
        if (self.consul_ca_file or self.consul_certificate) and not is_tls:
            yield "consul_ca_file and consul_certificate are for a consul_url with https://"
        if self.backend == "consul":
            for name in ("consul_token_file", "consul_ca_file", "consul_certificate", "consul_key"):
                file = getattr(self, name)
                if file and not Path(file).is_file():
                    yield f"{name}: there is no file {file}"


def _is_base_url(url: str) -> bool:
    """Whether it is a scheme, a host and perhaps a port, and nothing beyond."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - it is read here for what it raises
    except ValueError:
        return False
    is_bare = parts.path in {"", "/"} and not parts.query and not parts.fragment and parts.username is None
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and is_bare
