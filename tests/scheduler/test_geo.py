"""Databases of addresses: files as their makers write them, read by the real libraries, asked through the locator."""

from __future__ import annotations

import struct
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from base.clock import Instant
from base.errors import ConfigError
from bench.geo_data import write_mmdb, write_xdb
from scheduler.core.locating import Locator
from scheduler.core.networks import Address, parse_address
from scheduler.core.places import NOTHING, Found
from scheduler.geo import iptocc
from scheduler.geo.ip2region import Ip2RegionDatabase
from scheduler.geo.mmdb import MmdbDatabase

CITIES = {
    "101.80.0.0/12": {
        "country": {"iso_code": "CN", "names": {"en": "China"}},
        "subdivisions": [{"iso_code": "SH", "names": {"en": "Shanghai"}}],
        "location": {"latitude": 31.2, "longitude": 121.4},
    },
    "203.80.96.0/20": {"country": {"iso_code": "HK"}},
    "2400:3200::/32": {"country": {"iso_code": "CN"}, "subdivisions": [{"iso_code": "ZJ"}]},
}
SYSTEMS = {
    "101.80.0.0/12": {"autonomous_system_number": 4812, "autonomous_system_organization": "China Telecom Group"},
    "203.80.96.0/20": {"autonomous_system_number": 9269, "autonomous_system_organization": "Hong Kong Broadband"},
}
CURRENT = {
    "1.0.1.0/24": "中国|福建省|福州市|电信|CN",
    "8.8.8.0/24": "United States|California|0|Google LLC|US",
    "10.0.0.0/8": "0|0|Reserved|Reserved|Reserved",
    "36.96.0.0/11": "中国|上海市|上海市|电信|CN",
    "81.128.0.0/12": "United Kingdom|0|London|BT|GB",
    "103.224.0.0/16": "中国|香港特别行政区|0|0|CN",
}
OLDER = {
    "1.0.1.0/24": "中国|0|福建省|福州市|电信",
    "8.8.8.0/24": "美国|0|0|0|谷歌",
    "81.128.0.0/12": "英国|0|0|0|BT",
    "106.0.0.0/12": "中国|0|0|0|移动",
}


def address(text: str) -> Address:
    parsed = parse_address(text)
    assert parsed is not None
    return parsed


def xdb(path: Path, rows: dict[str, str], *, bits: int = 32) -> Path:
    kind = IPv4Network if bits == 32 else IPv6Network
    networks = {kind(cidr): row for cidr, row in rows.items()}
    ranges = [(int(cidr[0]), int(cidr[-1]), row) for cidr, row in sorted(networks.items())]
    write_xdb(path, ranges, bits=bits)
    return path


# ---------------------------------------------------------------- MaxMind DBs


def test_several_mmdb_files_are_one_database(tmp_path: Path):
    """The City file knows the place and the ASN file the carrier, whichever is named first; IPv6 too."""
    city, asn = tmp_path / "city.mmdb", tmp_path / "asn.mmdb"
    write_mmdb(city, "GeoLite2-City", CITIES)
    write_mmdb(asn, "GeoLite2-ASN", SYSTEMS, ip_version=4)
    for paths in ([city, asn], [asn, city]):
        database = MmdbDatabase.open(paths)
        assert database.find(address("101.81.2.3")) == Found("CN-SH", "CT")
        assert database.find(address("203.80.96.1")) == Found("HK", "AS9269")
        assert database.find(address("::ffff:203.80.96.1")) == Found("HK", "AS9269")
        assert database.find(address("2400:3200::1")) == Found("CN-ZJ", "")
        assert database.find(address("8.8.8.8")) == NOTHING


def test_an_mmdb_file_is_asked_for_what_its_type_says(tmp_path: Path):
    """The first that knows it counts. One of the operator's own is asked for everything."""
    network = "101.80.0.0/16"
    both = {"country": {"iso_code": "US"}, "isp": "China Unicom"}
    for kind in ("GeoIP2-ISP", "GeoIP2-Enterprise", "Our-Own", "DBIP-Country-Lite"):
        write_mmdb(tmp_path / kind, kind, {network: both})
    write_mmdb(tmp_path / "city", "DBIP-City-Lite", CITIES)
    asked = address("101.80.2.3")

    def find(*names: str) -> Found | None:
        return MmdbDatabase.open([tmp_path / name for name in names]).find(asked)

    assert find("GeoIP2-ISP") == Found("", "CU")
    assert find("DBIP-Country-Lite") == Found("US", "")
    assert find("GeoIP2-Enterprise") == find("Our-Own") == Found("US", "CU")
    assert find("city", "Our-Own") == Found("CN-SH", "CU")
    assert find("Our-Own", "city") == Found("US", "CU")
    assert find("GeoIP2-ISP", "city") == Found("CN-SH", "CU")
    assert find() == NOTHING


def test_an_mmdb_file_may_be_overwritten_while_it_is_open(tmp_path: Path):
    """What was opened stays what it was; a truncated mapping would be a bus error."""
    path = tmp_path / "city.mmdb"
    write_mmdb(path, "GeoLite2-City", CITIES)
    database = MmdbDatabase.open([path])
    path.write_bytes(b"")
    assert database.find(address("101.81.2.3")) == Found("CN-SH", "")


def test_what_an_mmdb_file_has_in_another_form_is_told_as_unreadable(tmp_path: Path):
    """Damage inside is met at a lookup only; a record that is no map is as bad."""
    path = tmp_path / "list.mmdb"
    write_mmdb(path, "GeoLite2-City", {"101.80.0.0/12": ["CN"], "8.8.8.0/24": {"country": {"iso_code": "US"}}})
    database = MmdbDatabase.open([path])
    assert database.find(address("101.81.2.3")) is None
    assert database.find(address("8.8.8.8")) == Found("US", "")
    content = path.read_bytes()
    damaged = content.replace(b"iso_code", b"\xff" * 8)
    assert damaged != content
    path.write_bytes(damaged)
    chain = Locator(databases=[MmdbDatabase.open([path])], regions=["us"], places={"US": "us"}, country=iptocc.country)
    assert chain.locate("8.8.8.8", Instant(0)).source == "country"
    assert chain.faults == {"mmdb": 1}


def test_every_mmdb_file_that_cannot_be_used_is_named(tmp_path: Path):
    """In one error, a line each."""
    text, good, missing = tmp_path / "text.mmdb", tmp_path / "good.mmdb", tmp_path / "missing.mmdb"
    text.write_text("not a database")
    write_mmdb(good, "GeoLite2-City", CITIES)
    with pytest.raises(ConfigError) as raised:
        MmdbDatabase.open([text, good, missing, tmp_path])
    assert len(raised.value.errors) == 3
    assert raised.value.errors[0].startswith(f"{text}: this is no MaxMind DB, or it is damaged")
    assert raised.value.errors[1] == f"{missing}: No such file or directory"
    assert raised.value.errors[2] == f"{tmp_path}: Is a directory"


# ---------------------------------------------------------------- ip2region


def test_the_current_order_of_ip2region_is_read(tmp_path: Path):
    """Provinces and carriers of China, countries of the others; a carrier called BT makes no Bhutan."""
    database = Ip2RegionDatabase.open([xdb(tmp_path / "v4.xdb", CURRENT)])
    asked = ("1.0.1.0", "1.0.1.255", "8.8.8.8", "10.1.2.3", "36.127.255.255", "81.130.0.1", "103.224.9.9", "1.0.2.0")
    assert [database.find(address(text)) for text in asked] == [
        Found("CN-FJ", "CT"),
        Found("CN-FJ", "CT"),
        Found("US", ""),
        NOTHING,
        Found("CN-SH", "CT"),
        Found("GB", ""),
        Found("HK", ""),
        NOTHING,
    ]
    assert database.find(address("2400:3200::1")) == NOTHING, "there is no file for IPv6"


def test_the_older_order_of_ip2region_is_read(tmp_path: Path):
    """Its countries have no codes, and its carriers stand where the codes are now."""
    database = Ip2RegionDatabase.open([xdb(tmp_path / "v4.xdb", OLDER)])
    asked = ("1.0.1.7", "8.8.8.8", "81.130.0.1", "106.1.2.3")
    assert [database.find(address(text)) for text in asked] == [
        Found("CN-FJ", "CT"),
        NOTHING,
        NOTHING,
        Found("CN", "CM"),
    ]


def test_ip2region_has_a_file_for_ipv6(tmp_path: Path):
    """Both files are one database; ranges begin and end where they say."""
    rows = {"2408:8000::/20": "中国|北京市|北京市|联通|CN", "240e:100::/24": "中国|广东省|深圳市|电信|CN"}
    rows["2a00:1450::/32"] = "Ireland|0|Dublin|Google LLC|IE"
    paths = [xdb(tmp_path / "v6.xdb", rows, bits=128), xdb(tmp_path / "v4.xdb", CURRENT)]
    database = Ip2RegionDatabase.open(paths)
    last = str(IPv6Address(int(IPv6Address("240e:200::")) - 1))
    asked = ("2408:8000::1", "240e:100::", last, "240e:200::", "2a00:1450:4001::", "1.0.1.7")
    assert [database.find(address(text)) for text in asked] == [
        Found("CN-BJ", "CU"),
        Found("CN-GD", "CT"),
        Found("CN-GD", "CT"),
        NOTHING,
        Found("IE", ""),
        Found("CN-FJ", "CT"),
    ]


def test_damage_in_an_xdb_file_is_told_as_unreadable(tmp_path: Path):
    """A row that is no text, and an index that leads out of the file."""
    path = xdb(tmp_path / "v4.xdb", CURRENT)
    content = path.read_bytes()
    for damaged in (
        content.replace("福".encode(), b"\xff\xff\xff"),
        content[:256] + b"\xff" * 524_288 + content[256 + 524_288 :],
    ):
        path.write_bytes(damaged)
        assert Ip2RegionDatabase.open([path]).find(address("1.0.1.7")) is None


def test_every_xdb_file_that_cannot_be_used_is_named(tmp_path: Path):
    """In one error, a line each: no such file, another file, one cut short, one of the future, one too many."""
    good, other = xdb(tmp_path / "good.xdb", CURRENT), xdb(tmp_path / "other", OLDER)
    content = good.read_bytes()
    faulty = {"text": b"not a database", "short": content[:-1], "future": b"\x04" + content[1:], "empty": b""}
    faulty["ipv5"] = content[:16] + struct.pack("<H", 5) + content[18:]
    paths = [tmp_path / "missing", good, other, *(tmp_path / name for name in faulty)]
    for name, damaged in faulty.items():
        (tmp_path / name).write_bytes(damaged)
    with pytest.raises(ConfigError) as raised:
        Ip2RegionDatabase.open(paths)
    said = {Path(line.partition(": ")[0]).name: line.partition(": ")[2] for line in raised.value.errors}
    assert said.keys() == {"missing", "other", *faulty}
    assert said["missing"] == "No such file or directory"
    assert said["other"] == "another file for addresses of 32 bits is named before"
    assert said["future"].endswith("(its structure has version 4)")
    assert said["ipv5"].endswith("(it is for IP version 5)")
    assert said["short"].endswith("(its index is not where its header says)")


# ---------------------------------------------------------------- labelled prefixes

LABELLED = {
    "AU": ("1.1.1.1", "2001:8000::1"),
    "BR": ("200.160.0.1", "2804:14c::1"),
    "CN": ("114.114.114.114", "223.5.5.5", "119.29.29.29", "180.76.76.76", "202.96.209.133", "2400:3200::1"),
    "DE": ("194.25.0.1", "53.1.2.3", "2003::1"),
    "FR": ("80.10.246.2", "2a01:e00::1"),
    "GB": ("25.1.2.3", "212.58.244.1", "2a00:23c0::1"),
    "HK": ("203.80.96.10", "202.45.84.58"),
    "IN": ("117.192.0.1", "2405:200::1"),
    "JP": ("133.1.2.3", "202.12.27.33", "2001:200::1", "2400:4000::1"),
    "KR": ("168.126.63.1", "164.124.101.2", "2001:220::1"),
    "NL": ("193.0.6.139", "2001:610::1"),
    "RU": ("77.88.8.8", "2a02:6b8::1"),
    "SE": ("192.36.148.17", "2001:6b0::1"),
    "SG": ("165.21.83.88", "203.116.1.1"),
    "TW": ("168.95.1.1", "2001:b000::1"),
    "US": ("8.8.8.8", "9.9.9.9", "12.1.2.3", "17.1.2.3", "208.67.222.222", "2001:4860:4860::8888", "2600::1"),
    "ZA": ("196.25.1.1", "2001:4200::1"),
}
REGION_OF = {"CN": "east", "HK": "hk", "TW": "hk", "JP": "tokyo", "KR": "tokyo", "US": "west", "BR": "west"}
REGION_OF |= dict.fromkeys(("DE", "FR", "GB", "NL", "RU", "SE", "ZA"), "europe") | dict.fromkeys(
    ("SG", "IN", "AU"), "sg"
)


def test_known_networks_are_in_the_right_region():
    """99 % of addresses whose countries everybody can look up, with nothing but what comes with the package."""
    chain = Locator(regions=set(REGION_OF.values()), places=REGION_OF, country=iptocc.country)
    labelled = [(text, REGION_OF[country]) for country, texts in LABELLED.items() for text in texts]
    located = [(text, region, chain.locate(text, Instant(0))) for text, region in labelled]
    wrong = [(text, region, location) for text, region, location in located if location.region != region]
    assert len(wrong) <= len(labelled) // 100, wrong
    assert {location.source for _, _, location in located} == {"country"}


def test_addresses_that_nobody_was_given_have_no_country():
    """Nor have texts that are none."""
    assert [iptocc.country(text) for text in ("10.1.2.3", "240.0.0.1", "", "nonsense")] == [""] * 4
