"""Configuration of an access node."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network
from typing import Annotated

from msgspec import Meta

from access.core.namespaces import ChannelSettings, Namespace, namespace_problems
from base.config import Section
from base.core.origins import origin_problems

__all__ = ["AccessConfig"]


class AccessConfig(Section, frozen=True, kw_only=True):
    """The `[access]` section."""

    region: Annotated[str, Meta(description="Region of this node, as the scheduler compares it.")] = "local"
    carrier: Annotated[
        str,
        Meta(
            description="Network carrier that this node's address belongs to, such as `CT`, if clients of the same one "
            "reach it better. Empty: all reach it equally well."
        ),
    ] = ""
    version: Annotated[
        str,
        Meta(
            max_length=128,
            description="Version of this node as a rollout's `pool` names it, such as `2.4.0`, for operators who name "
            "their builds. Empty: the program's own.",
        ),
    ] = ""

    # ---------------------------------------------------------------- where clients connect

    client_host: Annotated[
        str,
        Meta(description="Address that the clients' listener binds; empty for the same as the node's own."),
    ] = ""
    client_port: Annotated[
        int,
        Meta(
            ge=0,
            le=65_535,
            description="Port for clients, apart from the one for other nodes and operators; 0 picks a free one. Of "
            "several access nodes in one process, the others take the ports after it.",
        ),
    ] = 0
    client_url: Annotated[
        str,
        Meta(
            description="Base URL under which clients reach this node, such as `https://a1.example.com`, if it is not "
            "the address that is bound. The scheduler tells it to clients."
        ),
    ] = ""
    tls_certificate: Annotated[
        str, Meta(description="File with the certificate chain (PEM) for clients; empty to serve them without TLS.")
    ] = ""
    tls_key: Annotated[str, Meta(description="File with the certificate's private key (PEM).")] = ""
    tls_reload_ms: Annotated[
        int,
        Meta(
            ge=1_000,
            description="How often the two files are looked at (ms). A changed pair serves connections from then on; "
            "one that cannot be loaded is logged, and the old one kept.",
        ),
    ] = 10_000
    proxies: Annotated[
        tuple[str, ...],
        Meta(
            description="Networks of the load balancers in front, such as `10.0.0.0/8`, which name each client by the "
            "PROXY protocol, version 1 or 2. With any, a connection from elsewhere, or without that header, is "
            "dropped, so that nobody can claim an address. Empty: clients connect directly."
        ),
    ] = ()
    origins: Annotated[
        tuple[str, ...],
        Meta(
            description="Web pages that may connect: `https://app.example.com`, `https://*.example.com`, or `*` for "
            "all. A client that is no browser names no origin, and is not asked for one."
        ),
    ] = ("*",)
    compression: Annotated[
        bool,
        Meta(
            description="Whether to compress messages for clients that offer it (permessage-deflate, without context "
            "takeover). It saves bytes of long messages, and costs CPU once for each message and not for each client."
        ),
    ] = False
    token_key: Annotated[
        str,
        Meta(
            description="Key of the application's own connection and subscription tokens (JWT), for clients that "
            "connect without asking the scheduler: an HS256 secret, or `ed25519:` and the public key's 32 bytes in "
            "base64url. Empty: only tickets are taken."
        ),
    ] = ""

    # ---------------------------------------------------------------- who is refused

    capacity: Annotated[
        int,
        Meta(ge=1, description="Most connections this node takes; one more is refused with 503 before the upgrade."),
    ] = 15_000
    accepts_per_second: Annotated[
        int,
        Meta(
            ge=0,
            description="New connections a second, with a burst of twice as many; more are refused with 503 and told "
            "when to come back. Raising it shortens a storm and slows down those who are connected. 0: no limit.",
        ),
    ] = 1_000
    address_accepts_per_second: Annotated[
        int,
        Meta(ge=0, description="New connections a second from one address (IPv6: one /64), else 503. 0: no limit."),
    ] = 0
    address_connections_max: Annotated[
        int,
        Meta(ge=0, description="Connections from one address at a time, else 503. 0: no limit, as many share one."),
    ] = 0
    user_connections_max: Annotated[
        int, Meta(ge=1, description="Connections of one user at this node, else close 3504.")
    ] = 32
    memory_bytes_max: Annotated[
        int,
        Meta(
            ge=0,
            description="Resident memory of the process (bytes); from 90 % of it on new connections are refused with "
            "503 until it is below 85 %. 0: no limit.",
        ),
    ] = 0
    queued_bytes_max: Annotated[
        int,
        Meta(
            ge=1_048_576,
            description="Bytes that may wait for all clients together; beyond, the slowest are closed with 3008.",
        ),
    ] = 268_435_456
    handshake_deadline_ms: Annotated[
        int,
        Meta(
            ge=100,
            description="Time for the TLS handshake, and again for the request's head (ms); a client that is slower is "
            "dropped.",
        ),
    ] = 5_000
    arrivals_max: Annotated[
        int,
        Meta(
            ge=1,
            description="Connections that may be on their way through the handshake at once, at most half of them from "
            "one address (IPv6: one /64), else dropped. Behind a load balancer that does not name its clients "
            "(`access.proxies`) all have one address.",
        ),
    ] = 4_096

    # ---------------------------------------------------------------- what one client may do

    frame_bytes_max: Annotated[
        int, Meta(ge=1_024, description="Longest frame a client may send (bytes); a longer one closes with 1009.")
    ] = 98_304
    write_bytes_max: Annotated[
        int,
        Meta(
            ge=65_536,
            description="Most bytes that may wait for one client; beyond, it is closed with 3008 and recovers. "
            "Raising it forgives slower clients and costs that much memory for each of them.",
        ),
    ] = 1_048_576
    connect_deadline_ms: Annotated[
        int,
        Meta(
            ge=100,
            description="Time until a client is connected (ms), else close 3502, or 3004 if this side took so long.",
        ),
    ] = 10_000
    ping_interval_ms: Annotated[int, Meta(ge=1_000, description="How often a client is pinged (ms).")] = 25_000
    pong_deadline_ms: Annotated[
        int, Meta(ge=500, description="Time for the answer to a ping (ms), else close 3012 and the session ends.")
    ] = 10_000
    inflight_max: Annotated[
        int, Meta(ge=1, description="Commands of one client that may be under way at once, else error 111.")
    ] = 64
    recovery_entries_max: Annotated[
        int,
        Meta(
            ge=1,
            le=10_000,
            description="Most entries that a recovery sends; a client further behind is told so and pages `im.sync`.",
        ),
    ] = 1_000
    recovery_bytes_max: Annotated[
        int, Meta(ge=4_096, description="Most bytes that a recovery sends, with the same consequence.")
    ] = 524_288
    audit_interval_ms: Annotated[
        int,
        Meta(
            ge=500,
            description="How often every session's position is compared with its timeline (ms): the longest time that "
            "a lost last push stays unnoticed. It is compared at once, too, when a process of the message services is "
            "back.",
        ),
    ] = 10_000
    publish_deadline_ms: Annotated[
        int,
        Meta(
            ge=50,
            description="How long a connect waits for the status cluster to confirm the session (ms). After that the "
            "client is let in all the same, and its messages come by the audit until the status cluster is back.",
        ),
    ] = 1_000

    expired_deadline_ms: Annotated[
        int,
        Meta(
            ge=1_000,
            description="Time to renew a connection after its token expired (ms), else close 3005.",
        ),
    ] = 25_000
    drain_grace_ms: Annotated[
        int,
        Meta(
            ge=100,
            description="How long a client that was told to go elsewhere may take, before it is closed with 3001 (ms).",
        ),
    ] = 10_000
    linger_ms: Annotated[
        int,
        Meta(
            ge=0,
            le=2_000,
            description="How long the session of a client that went where it was sent is shown after it left this node "
            "(ms): so nobody sees it offline who connects to the next one only then.",
        ),
    ] = 1_500
    stop_drain_ms: Annotated[
        int,
        Meta(
            ge=0,
            description="Over which time clients are told to go elsewhere when the node is stopped by SIGTERM (ms). "
            "0, or no other node that takes them: all at once.",
        ),
    ] = 5_000
    subscribe_inbox: Annotated[
        bool,
        Meta(
            description="Whether the server subscribes each client to its user's inbox as it connects. If not, a "
            "client that wants its messages subscribes to `inbox:<user>` itself."
        ),
    ] = True
    channels: ChannelSettings = ChannelSettings()
    namespaces: Annotated[
        tuple[Namespace, ...],
        Meta(description="The application's channels, by what stands before the first `:` of their names."),
    ] = ()
    conversations_max: Annotated[
        int, Meta(ge=0, description="Conversations (`conv:`) that one client may follow at once, else error 106.")
    ] = 128
    presence_channels_max: Annotated[
        int, Meta(ge=0, description="Presence channels of one client, else error 106.")
    ] = 500
    watches_max: Annotated[
        int,
        Meta(
            ge=0,
            le=200_000,
            description="Users whom this node watches for its clients, however many of them look at the same one; one "
            "more is refused with 106. Each costs about 1 kB here and at the status node that owns the user.",
        ),
    ] = 100_000

    def problems(self) -> Iterable[str]:
        """A recovery must fit into what may wait for one client; files come in pairs."""
        if self.recovery_bytes_max >= self.write_bytes_max:
            yield (
                f"recovery_bytes_max ({self.recovery_bytes_max}) must be below write_bytes_max "
                f"({self.write_bytes_max}), or a full recovery would close its own client"
            )
        if bool(self.tls_certificate) != bool(self.tls_key):
            yield "tls_certificate and tls_key go together: name both, or none"
        if self.pong_deadline_ms + 500 > self.ping_interval_ms:
            yield (
                f"pong_deadline_ms ({self.pong_deadline_ms}) must be 500 ms below ping_interval_ms "
                f"({self.ping_interval_ms}), or a client would be pinged again before it must have answered"
            )
        yield from origin_problems("origins", self.origins)
        if self.client_url and not self.client_url.startswith(("http://", "https://")):
            yield f"client_url is {self.client_url!r}: write http:// or https://, which stands for WebSockets too"
        yield from namespace_problems(self.namespaces)
        for network in self.proxies:
            try:
                ip_network(network)
            except ValueError as error:
                yield f"proxies: {error}"
