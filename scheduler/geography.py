"""The files behind the locators: read at the start, and again when they change. One that is no good leaves the old one.

Reading is done in a thread: a database may have many megabytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from base.clock import Clock
from base.errors import ConfigError
from base.log import logger
from scheduler.config import SchedulerConfig
from scheduler.core.locating import Database, Locator
from scheduler.core.networks import Networks, parse_networks
from scheduler.core.regions import Regions
from scheduler.core.request import Location
from scheduler.core.rtt import RttTable

__all__ = ["Geography"]

_Stamp = tuple[tuple[str, int, int], ...]
"""(path, time of change in ns, size) of each file."""


class _Maps(NamedTuple):
    stamp: _Stamp
    networks: Networks
    databases: tuple[Database, ...]


class Geography:
    """Where clients are. Nothing is known before `open`."""

    def __init__(self, config: SchedulerConfig, clock: Clock, regions: Regions, *, node: str) -> None:
        self._config = config
        self._clock = clock
        self._regions = regions
        self._known: frozenset[str] = frozenset(region.name for region in regions.all)
        self._rtts = RttTable(self._known)
        self._maps = _Maps((), Networks(), ())
        self._locator = self._build()
        self._log = logger(node=node)

    async def open(self) -> None:
        """Read the files. Raises ConfigError with everything that is wrong with any of them."""
        self._maps = await asyncio.to_thread(_read, self._config)
        self._locator = self._build()

    async def run(self) -> None:
        """Read the files again when they change, until cancelled."""
        while True:
            await asyncio.sleep(self._config.geo_reload_ms / 1000)
            if await asyncio.to_thread(_stamp, self._config) == self._maps.stamp:
                continue
            try:
                self._maps = await asyncio.to_thread(_read, self._config)
            except ConfigError as error:
                self._log.warning("maps_not_reloaded", error=str(error))
            else:
                self._locator = self._build()
                self._log.info("maps_reloaded")

    def serve(self, regions: Collection[str]) -> None:
        """Regions in which there are nodes are regions too, described or not."""
        known = frozenset(region.name for region in self._regions.all) | (frozenset(regions) - {""})
        if known != self._known:
            self._known = known
            self._rtts.retain(known)
            self._locator = self._build()

    def locate(self, user: str, address: str, hint: str, rtts: Mapping[str, int]) -> Location:
        """Return where a client is, and learn from the round-trip times that it measured (ms, by region)."""
        now = self._clock.monotonic()
        if rtts and self._config.learn_rtt:
            self._locator.report(address, user, rtts, now)
        return self._locator.locate(address, now, hint=hint)

    def statistics(self) -> dict[str, int]:
        """Return sizes, and how often a database could not be read."""
        locator = self._locator
        return {
            "addresses_remembered": len(locator),
            "prefixes_measured": len(self._rtts),
            "databases": len(self._maps.databases),
            "faults": locator.faults.total(),
        }

    def _build(self) -> Locator:
        from scheduler.geo.iptocc import country  # its table takes memory: only where it is used

        return Locator(
            regions=self._known,
            places=self._regions.by_place,
            default=self._regions.default,
            networks=self._maps.networks,
            rtts=self._rtts,
            databases=self._maps.databases,
            country=country if self._config.geo_country and self._regions.by_place else None,
        )


def _files(config: SchedulerConfig) -> Sequence[str]:
    networks = (config.networks_file,) if config.networks_file else ()
    return (*networks, *config.geo_databases, *config.ip2region_files)


def _stamp(config: SchedulerConfig) -> _Stamp:
    stamps = []
    for name in _files(config):
        try:
            found = Path(name).stat()
        except OSError:
            continue
        stamps.append((name, found.st_mtime_ns, found.st_size))
    return tuple(stamps)


def _read(config: SchedulerConfig) -> _Maps:
    from scheduler.geo.ip2region import Ip2RegionDatabase
    from scheduler.geo.mmdb import MmdbDatabase

    stamp = _stamp(config)
    errors: list[str] = []
    databases: list[Database] = []
    kinds: tuple[tuple[type[MmdbDatabase | Ip2RegionDatabase], tuple[str, ...]], ...] = (
        (MmdbDatabase, config.geo_databases),
        (Ip2RegionDatabase, config.ip2region_files),
    )
    for kind, names in kinds:
        if names:
            try:
                databases.append(kind.open([Path(name) for name in names]))
            except ConfigError as error:
                errors.extend(error.errors)
    networks = Networks()
    if config.networks_file:
        try:
            parsed = parse_networks(Path(config.networks_file).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            errors.append(f"{config.networks_file}: {getattr(error, 'strerror', None) or error}")
        else:
            if isinstance(parsed, Networks):
                networks = parsed
            else:
                errors.extend(f"{config.networks_file}, line {fault.line}: {fault.message}" for fault in parsed)
    if errors:
        raise ConfigError(errors)
    return _Maps(stamp, networks, tuple(databases))
