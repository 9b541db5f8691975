"""Where a client is: the slowest of all locators answers in 20 us, at its 99th percentile.

Each locator is asked for random addresses, one lookup at a time by the clock; what the clock itself costs is in the
details and not taken off. So is what the reader of MaxMind DBs takes by itself for a City record: it makes objects of
all names in all languages, which is most of the slowest locator. Databases are made up, as large as they get
in a few seconds of writing; their records have the size of real ones. Nine in ten addresses are IPv4.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import pairwise
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import maxminddb

from base.clock import Instant
from bench.geo_data import write_mmdb, write_xdb
from bench.result import Options, Result, percentile
from scheduler.core.locating import Locator
from scheduler.core.networks import Address, Network, Networks, parse_address
from scheduler.core.places import PROVINCES
from scheduler.core.rtt import RttTable, prefix_of
from scheduler.geo import iptocc
from scheduler.geo.ip2region import Ip2RegionDatabase
from scheduler.geo.mmdb import MmdbDatabase

__all__ = ["run"]

NOW = Instant(1_000)
REGIONS = ("sh", "bj", "gz", "sg")
IPV6 = (0x2400, 0x2408, 0x240E, 0x2600, 0x2A00)
"""The /16 of IPv6 that are asked for."""
PREFIXES = 10_000
LOCALES = ("de", "en", "es", "fr", "ja", "pt-BR", "ru", "zh-CN")
T = TypeVar("T")


def run(options: Options) -> Result:
    """Measure, see the module."""
    random = Random(7)
    bits, ranges, lookups = (9, 10_000, 5_000) if options.quick else (12, 200_000, 100_000)
    texts = [_public(random) for _ in range(lookups)]
    addresses = [_parsed(text) for text in texts]
    networks = _networks(random, PREFIXES)
    rtts = _rtts(addresses)
    with TemporaryDirectory() as directory:
        mmdb = _mmdb(Path(directory), random, bits)
        reader = maxminddb.open_database(Path(directory) / "city")
        ip2region = _ip2region(Path(directory), random, ranges)
    chain = Locator(
        regions=REGIONS,
        places={"CN": "sh", "US": "sg"},
        default="sg",
        networks=networks,
        rtts=rtts,
        databases=[mmdb, ip2region],
        country=iptocc.country,
        remembered_max=lookups,
    )
    measured: dict[str, dict[str, float]] = {
        "networks": _measure(networks.lookup, addresses),
        "rtt": _measure(lambda address: rtts.learned(prefix_of(address), "sg", NOW), addresses),
        "mmdb": _measure(mmdb.find, addresses),
        "ip2region": _measure(ip2region.find, addresses),
        "country": _measure(iptocc.country, texts),
        "chain, first time": _measure(lambda text: chain.locate(text, NOW), texts),
        "chain, remembered": _measure(lambda text: chain.locate(text, NOW), texts),
    }
    links = ("networks", "rtt", "mmdb", "ip2region", "country")
    slowest = max(links, key=lambda name: measured[name]["p99_us"])
    return Result(
        name="schedule_geo",
        value=measured[slowest]["p99_us"],
        unit="us, p99 of the slowest locator",
        goal=20.0,
        better="lower",
        details={
            "slowest": slowest,
            "locators": measured,
            "mmdb_reader_alone": _measure(reader.get, texts),
            "timer_us": _measure(lambda text: text, texts)["p50_us"],
            "sizes": {"prefixes": PREFIXES, "mmdb_networks": 1 << bits, "xdb_ranges": ranges, "learned": len(rtts)},
        },
    )


def _measure(lookup: Callable[[T], object], asked: Sequence[T]) -> dict[str, float]:
    """Time single lookups. The collector works, but not on what was built before."""
    took: list[int] = []
    clock = time.perf_counter_ns
    gc.collect()
    gc.freeze()
    for each in asked:
        begun = clock()
        lookup(each)
        took.append(clock() - begun)
    took.sort()
    return {
        "per_s": round(len(took) / sum(took) * 1e9),
        "p50_us": percentile(took, 50) / 1_000,
        "p99_us": percentile(took, 99) / 1_000,
    }


def _public(random: Random) -> str:
    if random.random() < 0.1:
        return str(IPv6Address(random.choice(IPV6) << 112 | random.getrandbits(112)))
    while True:
        address = IPv4Address(random.getrandbits(32))
        if address.is_global and not address.is_multicast:
            return str(address)


def _parsed(text: str) -> Address:
    address = parse_address(text)
    assert address is not None
    return address


def _networks(random: Random, count: int) -> Networks:
    """Prefixes of all lengths from 12 to 32, and a tenth of IPv6 from 32 to 64."""
    cidrs: dict[IPv4Network | IPv6Network, None] = {}
    while len(cidrs) < count:
        if len(cidrs) % 10:
            cidrs[IPv4Network((random.getrandbits(32), random.randrange(12, 33)), strict=False)] = None
        else:
            number = 0x24 << 120 | random.getrandbits(120)
            cidrs[IPv6Network((number, random.randrange(32, 65)), strict=False)] = None
    return Networks(Network(cidr, random.choice(REGIONS)) for cidr in cidrs)


def _rtts(addresses: Sequence[Address]) -> RttTable:
    """A full table: of the first 20,000 prefixes, five users have measured two regions."""
    rtts = RttTable(REGIONS)
    for address in addresses[:20_000]:
        for user in range(5):
            rtts.report(prefix_of(address), f"u{user}", {"sh": 20, "sg": 70}, NOW)
    return rtts


def _mmdb(directory: Path, random: Random, bits: int) -> MmdbDatabase:
    """A City and an ASN file: all of IPv4 in networks of that many bits, and the IPv6 that is asked for."""
    cidrs = [str(IPv4Network((number << 32 - bits, bits))) for number in range(1 << bits)]
    cidrs += [f"{first:x}::/16" for first in IPV6]
    write_mmdb(directory / "city", "GeoLite2-City", {cidr: _city(random) for cidr in cidrs})
    systems = {
        cidr: {"autonomous_system_number": number, "autonomous_system_organization": f"Network {number}"}
        for number, cidr in enumerate(cidrs, 1)
    }
    write_mmdb(directory / "asn", "GeoLite2-ASN", systems)
    return MmdbDatabase.open([directory / "city", directory / "asn"])


def _city(random: Random) -> dict[str, Any]:
    """A record as a City database has it: one city in five has a name in all eight languages, all else has."""

    def names(text: str) -> dict[str, str]:
        return {locale: f"{text} ({locale})" for locale in LOCALES}

    province = random.choice(PROVINCES)
    identity = random.getrandbits(20)
    city = names(f"City {identity}") if random.random() < 0.2 else {"en": f"City {identity}"}
    country = {"geoname_id": 1_814_991, "iso_code": "CN", "names": names("China")}
    return {
        "city": {"geoname_id": identity, "names": city},
        "continent": {"code": "AS", "geoname_id": 6_255_147, "names": names("Asia")},
        "country": country,
        "location": {"accuracy_radius": 50, "latitude": 31.2, "longitude": 121.4, "time_zone": "Asia/Shanghai"},
        "postal": {"code": f"{identity}"},
        "registered_country": country,
        "subdivisions": [{"geoname_id": province.number, "iso_code": province.code, "names": names(province.chinese)}],
    }


def _ip2region(directory: Path, random: Random, count: int) -> Ip2RegionDatabase:
    """A file of that many ranges of IPv4, half of them in a tenth of the addresses, and one of a quarter for IPv6."""
    rows = [
        f"中国|{province.chinese}省|0|{carrier}|CN" for province in PROVINCES for carrier in ("电信", "联通", "移动")
    ]
    starts = {0} | {random.getrandbits(32) for _ in range(count // 2)}
    starts |= {random.randrange(36 << 24, 62 << 24) for _ in range(count // 2)}
    write_xdb(directory / "v4", _ranges(sorted(starts), 1 << 32, random, rows))
    six = {random.choice(IPV6) << 112 | random.getrandbits(32) << 80 for _ in range(count // 4)}
    # The addresses between two of the /16 are nobody's, and would be a segment for each of the /16 between them.
    starts_six = sorted(six | {first << 112 for first in IPV6} | {first + 1 << 112 for first in IPV6})
    ranges = _ranges(starts_six, 1 << 128, random, rows)
    write_xdb(directory / "v6", (each for each in ranges if each[0] >> 112 in IPV6), bits=128)
    return Ip2RegionDatabase.open([directory / "v4", directory / "v6"])


def _ranges(starts: Sequence[int], end: int, random: Random, rows: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    for first, behind in pairwise([*starts, end]):
        yield first, behind - 1, random.choice(rows)
