"""Configuration of a scheduler."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network
from typing import Annotated, Literal

from msgspec import Meta

from base.config import Section
from base.core.origins import origin_problems
from scheduler.core.regions import Region, Regions
from scheduler.core.snapshot import Settings

__all__ = ["RegionConfig", "SchedulerConfig"]


class RegionConfig(Section, frozen=True, kw_only=True):
    """A `[[scheduler.regions]]` table: a region, the places whose clients it serves, and where they go when it is full.

    Access nodes say their region themselves (`access.region`). One that has no table here serves whoever has no other.
    """

    name: Annotated[str, Meta(min_length=1, max_length=64, description="As access nodes name it.")]
    places: Annotated[
        tuple[str, ...],
        Meta(
            description="Countries (`CN`) and subdivisions (`CN-SH`, ISO 3166) whose clients come here; the more exact "
            "one wins."
        ),
    ] = ()
    latitude: Annotated[
        Annotated[float, Meta(ge=-90, le=90)] | None,
        Meta(description="Where it is, to order the other regions by distance (degrees)."),
    ] = None
    longitude: Annotated[
        Annotated[float, Meta(ge=-180, le=180)] | None, Meta(description="The same, east positive (degrees).")
    ] = None
    spill: Annotated[
        tuple[str, ...],
        Meta(description="Regions to try first when this one is full, in order; then all others by distance."),
    ] = ()


class SchedulerConfig(Section, frozen=True, kw_only=True):
    """The `[scheduler]` section."""

    # ---------------------------------------------------------------- the answer

    candidates: Annotated[
        int,
        Meta(ge=1, le=16, description="How many access nodes an answer names; the client falls back along them."),
    ] = 3
    ticket_ttl_ms: Annotated[
        int,
        Meta(
            ge=1_000,
            le=3_600_000,
            description="How long a ticket is good for (ms). Raising it helps slow clients and lengthens the time in "
            "which a stolen ticket is of use.",
        ),
    ] = 60_000
    backoff_base_ms: Annotated[
        int, Meta(ge=10, description="First ceiling of the wait that clients are told to keep between rounds (ms).")
    ] = 200
    backoff_ceiling_ms: Annotated[int, Meta(ge=100, description="Last ceiling of that wait (ms).")] = 20_000
    lifetime_ms: Annotated[
        int,
        Meta(
            ge=0,
            description="How long a client should stay before it asks again and moves (ms): connections then even out "
            "by themselves. 0: for ever.",
        ),
    ] = 0
    lifetime_jitter_ms: Annotated[
        int, Meta(ge=0, description="By how much each client's lifetime is shorter at most, at random (ms).")
    ] = 180_000
    probe_regions: Annotated[
        int,
        Meta(
            ge=0,
            le=8,
            description="How many regions, the nearest first, a client is asked to measure its round trip to. What it "
            "reports with its next request corrects the map. 0: none.",
        ),
    ] = 0
    origins: Annotated[
        tuple[str, ...],
        Meta(
            description="Web pages that may ask for access from a browser: `https://app.example.com`, "
            "`https://*.example.com`, or `*` for all. A client that is no browser names no origin."
        ),
    ] = ("*",)

    # ---------------------------------------------------------------- where clients are

    regions: Annotated[
        tuple[RegionConfig, ...], Meta(description="The regions. Without any, all clients belong to the default one.")
    ] = ()
    default_region: Annotated[
        str, Meta(description="Region of clients whom no locator knows; empty: they go wherever there is room.")
    ] = ""
    networks_file: Annotated[
        str,
        Meta(description="File with a line `CIDR REGION [CARRIER]` for each network that you know better; or empty."),
    ] = ""
    geo_databases: Annotated[
        tuple[str, ...],
        Meta(description="MaxMind DB files (`.mmdb`: city, country, ASN, ISP), asked together."),
    ] = ()
    ip2region_files: Annotated[
        tuple[str, ...], Meta(description="ip2region files (`.xdb`), one for IPv4 and one for IPv6 at most.")
    ] = ()
    geo_country: Annotated[
        bool,
        Meta(description="Whether the registries' own country of an address is used where no database knows it."),
    ] = True
    geo_reload_ms: Annotated[
        int,
        Meta(ge=1_000, description="How often the files are looked at (ms). One that is no good leaves the old one."),
    ] = 60_000
    learn_rtt: Annotated[
        bool, Meta(description="Whether round trips that clients report may correct where their network belongs.")
    ] = True
    proxies: Annotated[
        tuple[str, ...],
        Meta(
            description="Networks of the proxies in front, such as `10.0.0.0/8`; only what these write in "
            "`address_header` is believed. Empty: clients connect directly."
        ),
    ] = ()
    proxy_protocol: Annotated[
        bool,
        Meta(
            description="Whether those proxies name each client by the PROXY protocol, version 1 or 2. Then every "
            "connection must come from one of them and begin with that header, and any other is dropped, those of "
            "operators and of Prometheus too. What stands in `address_header` still counts if a proxy connected."
        ),
    ] = False
    address_header: Annotated[
        Literal["X-Forwarded-For", "Forwarded"],
        Meta(description="The header in which the proxies name the client. The other one is never read."),
    ] = "X-Forwarded-For"

    # ---------------------------------------------------------------- load

    slow_start_ms: Annotated[
        int, Meta(ge=0, description="Over which time a new access node comes to its full part of newcomers (ms).")
    ] = 60_000
    slow_start_floor_percent: Annotated[
        int, Meta(ge=1, le=100, description="Which part of that it gets in the beginning (%).")
    ] = 10
    overprovision_percent: Annotated[
        int,
        Meta(
            ge=100,
            le=1_000,
            description="A region is left for the next one when its connections times this (%) exceed its capacity: "
            "140 keeps it below 71 %, and what is left for the clients of a region that is lost.",
        ),
    ] = 140
    sticky_excess_percent: Annotated[
        int,
        Meta(
            ge=0,
            description="By how much (%) a user's node may be above its pool's mean load before the strategy `sticky` "
            "goes to the user's next node. Raising it moves fewer users and evens out less.",
        ),
    ] = 25
    accepts_per_second: Annotated[
        int,
        Meta(
            ge=0,
            description="New connections a second of an access node that does not name its own bound; beyond, clients "
            "are told to wait for their slot. 0: no limit.",
        ),
    ] = 0
    accepts_burst_ms: Annotated[
        int, Meta(ge=0, le=60_000, description="As many of them at once as come in this time (ms).")
    ] = 1_000
    slot_horizon_ms: Annotated[
        int,
        Meta(ge=1_000, description="How long a client may be told to wait for its slot at most (ms), else 503."),
    ] = 600_000
    connect_window_ms: Annotated[
        int,
        Meta(
            ge=1_000,
            description="In which time nearly all clients have connected after they were assigned (ms); those who have "
            "not are not counted on any longer.",
        ),
    ] = 10_000
    report_fresh_ms: Annotated[
        int,
        Meta(
            ge=1_000,
            description="A report older than the newest by more than this (ms) is doubted: the node is then drawn by "
            "weight more than compared by load.",
        ),
    ] = 15_000
    report_expiry_ms: Annotated[
        int, Meta(ge=2_000, description="A report older than the newest by this (ms) tells nothing.")
    ] = 180_000
    panic_percent: Annotated[
        int,
        Meta(
            ge=0,
            le=100,
            description="If fewer than this part (%) of the access nodes are left at once, it is taken for a failure "
            "of the registry, and all of them go on being used. 0: never.",
        ),
    ] = 50
    panic_hold_ms: Annotated[
        int, Meta(ge=0, description="After which time they are taken for dead all the same (ms).")
    ] = 600_000

    # ---------------------------------------------------------------- rollouts, standards

    prometheus_url: Annotated[
        str, Meta(description="Base URL of the Prometheus server that a rollout's PromQL checks ask; or empty.")
    ] = ""
    prometheus_deadline_ms: Annotated[int, Meta(ge=100, description="How long it may take to answer (ms).")] = 5_000
    agent_check_port: Annotated[
        int,
        Meta(
            ge=-1,
            le=65_535,
            description="Port of HAProxy's agent-check, which follows our drains and weights. 0: a free one; -1: none.",
        ),
    ] = -1
    agent_check_proxies: Annotated[
        int,
        Meta(ge=1, description="How many HAProxies share the nodes: each is told its part of a node's connections."),
    ] = 1
    remembered_decisions: Annotated[
        int, Meta(ge=0, description="How many of the last decisions can be explained by their id.")
    ] = 10_000

    def problems(self) -> Iterable[str]:
        """Origins, networks and regions must be such."""
        yield from origin_problems("origins", self.origins)
        for network in self.proxies:
            try:
                ip_network(network)
            except ValueError as error:
                yield f"proxies: {error}"
        if self.proxy_protocol and not self.proxies:
            yield "proxy_protocol needs proxies: without any nobody could connect"
        if self.report_expiry_ms <= self.report_fresh_ms:
            yield f"report_expiry_ms ({self.report_expiry_ms}) must be above report_fresh_ms ({self.report_fresh_ms})"
        names = [region.name for region in self.regions]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"regions: {name} is named twice"
        places: dict[str, str] = {}
        for region in self.regions:
            for place in region.places:
                if places.setdefault(place, region.name) != region.name:
                    yield f"regions: {place} belongs to both {places[place]} and {region.name}"
            if (region.latitude is None) != (region.longitude is None):
                yield f"regions: {region.name} needs both a latitude and a longitude, or none"

    def settings(self) -> Settings:
        """Return what the engine goes by."""
        return Settings(
            candidates=self.candidates,
            slow_start_ms=self.slow_start_ms,
            slow_start_floor=self.slow_start_floor_percent / 100,
            overprovision=self.overprovision_percent / 100,
            report_fresh_ms=self.report_fresh_ms,
            report_expiry_ms=self.report_expiry_ms,
            connect_window_ms=self.connect_window_ms,
            accepts_per_s=float(self.accepts_per_second),
            burst_ms=self.accepts_burst_ms,
            slot_horizon_ms=self.slot_horizon_ms,
            sticky_excess=self.sticky_excess_percent / 100,
            panic_percent=self.panic_percent,
            panic_hold_ms=self.panic_hold_ms,
        )

    def known_regions(self) -> Regions:
        """Return the regions."""
        regions = [Region(one.name, one.places, one.latitude, one.longitude, one.spill) for one in self.regions]
        return Regions(regions, default=self.default_region)
