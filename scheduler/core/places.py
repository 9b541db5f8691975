"""How the many names of a place and of a carrier become one: "CN-SH", "CT".

A place is a country (ISO 3166-1 alpha-2) or one of its subdivisions (ISO 3166-2). Hong Kong, Macao and Taiwan have a
code in both; here they are the country's, as in the data of the address registries: "HK", not "CN-HK". Whoever looks a
place up asks for all of `widening(place)`, so that a map may say either.

A carrier is a short name where its network is one in which it matters to be (CT, CU, CM, ...), else its autonomous
system ("AS13335"), else "".

Databases are read leniently: what has another shape than documented says nothing, and never fails.

Sources: ISO 3166-2:CN; GB/T 2260 for the numbers; the documented fields of the GeoIP2 and GeoLite2 databases, those of
IPinfo's, and both field orders of ip2region.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

__all__ = [
    "NOTHING",
    "PROVINCES",
    "Found",
    "Province",
    "carrier_in_mmdb",
    "carrier_of",
    "carrier_of_as",
    "from_ip2region",
    "has_country_code",
    "place_in_mmdb",
    "place_of",
    "province_of",
    "widening",
]


REMEMBERED = 8_192
"""A database has the same few thousand names for all its addresses."""


class Found(NamedTuple):
    """What a database knows of an address; "" for what it does not."""

    place: str = ""
    carrier: str = ""


NOTHING = Found()


class Province(NamedTuple):
    """A subdivision of China. `names` are in lower-case Latin letters without spaces, apart from the code."""

    code: str
    number: int
    chinese: str
    names: tuple[str, ...]


PROVINCES = (
    Province("BJ", 11, "北京", ("beijing", "peking")),
    Province("TJ", 12, "天津", ("tianjin",)),
    Province("HE", 13, "河北", ("hebei",)),
    Province("SX", 14, "山西", ("shanxi",)),
    Province("NM", 15, "内蒙古", ("innermongolia", "neimenggu", "neimongol")),
    Province("LN", 21, "辽宁", ("liaoning",)),
    Province("JL", 22, "吉林", ("jilin",)),
    Province("HL", 23, "黑龙江", ("heilongjiang",)),
    Province("SH", 31, "上海", ("shanghai",)),
    Province("JS", 32, "江苏", ("jiangsu",)),
    Province("ZJ", 33, "浙江", ("zhejiang",)),
    Province("AH", 34, "安徽", ("anhui",)),
    Province("FJ", 35, "福建", ("fujian",)),
    Province("JX", 36, "江西", ("jiangxi",)),
    Province("SD", 37, "山东", ("shandong",)),
    Province("HA", 41, "河南", ("henan",)),
    Province("HB", 42, "湖北", ("hubei",)),
    Province("HN", 43, "湖南", ("hunan",)),
    Province("GD", 44, "广东", ("guangdong", "canton")),
    Province("GX", 45, "广西", ("guangxi", "guangxizhuang", "guangxizhuangzu")),
    Province("HI", 46, "海南", ("hainan",)),
    Province("CQ", 50, "重庆", ("chongqing",)),
    Province("SC", 51, "四川", ("sichuan",)),
    Province("GZ", 52, "贵州", ("guizhou",)),
    Province("YN", 53, "云南", ("yunnan",)),
    Province("XZ", 54, "西藏", ("tibet", "xizang")),
    Province("SN", 61, "陕西", ("shaanxi",)),
    Province("GS", 62, "甘肃", ("gansu",)),
    Province("QH", 63, "青海", ("qinghai",)),
    Province("NX", 64, "宁夏", ("ningxia", "ningxiahui", "ningxiahuizu")),
    Province("XJ", 65, "新疆", ("xinjiang", "xinjianguygur", "xinjianguyghur")),
    Province("TW", 71, "台湾", ("taiwan",)),
    Province("HK", 81, "香港", ("hongkong", "xianggang")),
    Province("MO", 82, "澳门", ("macao", "macau", "aomen")),
)
_COUNTRIES_TOO = frozenset({"HK", "MO", "TW"})
_CHINESE_SUFFIX = re.compile("(省|市|特别行政区|(壮族|回族|维吾尔)?自治区)$")
_ENGLISH_SUFFIX = re.compile("(province|municipality|autonomousregion|zizhiqu|sheng|shi|sar)$")
_NO_LETTER = re.compile(r"[\W_]+")
_COUNTRY = re.compile("[A-Z]{2}")
_SUBDIVISION = re.compile("[A-Z0-9]{1,3}")


def _simple(name: str) -> str:
    """Return a name without case, spaces and punctuation."""
    return _NO_LETTER.sub("", name).lower()


def _province_names() -> dict[str, str]:
    names: dict[str, str] = {}
    for province in PROVINCES:
        place = province.code if province.code in _COUNTRIES_TOO else f"CN-{province.code}"
        own = (province.chinese, province.code, f"CN{province.code}", str(province.number), f"CN{province.number}")
        for name in own + province.names:
            assert _simple(name) not in names
            names[_simple(name)] = place
    return names | {"臺灣": "TW", "澳門": "MO"}


_PROVINCE_NAMES = _province_names()


def province_of(name: str) -> str:
    """Return the place that is called so in China: "上海市", "Shanghai", "SH", "CN-SH" and "31" are "CN-SH".

    "" if there is none.
    """
    simple = _simple(name)
    for suffix in (_CHINESE_SUFFIX, _ENGLISH_SUFFIX):
        if simple in _PROVINCE_NAMES:
            break
        simple = suffix.sub("", simple)
    return _PROVINCE_NAMES.get(simple, "")


@lru_cache(REMEMBERED)
def place_of(country: str, subdivision: str) -> str:
    """Return the place of a country's code and a subdivision's code (in China: or name), either of which may be "".

    A subdivision that cannot be named leaves its country; without a country there is no place.
    """
    if not _COUNTRY.fullmatch(country):
        return ""
    if country == "CN":
        return province_of(subdivision) or country
    if country in _COUNTRIES_TOO or not _SUBDIVISION.fullmatch(subdivision):
        return country
    return f"{country}-{subdivision}"


def widening(place: str) -> tuple[str, ...]:
    """Return the keys under which a map may have the place, the most specific first: "CN-SH", then "CN"."""
    if place in _COUNTRIES_TOO:
        return place, f"CN-{place}", "CN"
    country, dash, _ = place.partition("-")
    return (place, country) if dash else (place,)


# ---------------------------------------------------------------- carriers

_CARRIERS = {
    "CT": ("电信", "中国电信", "电信CN2", "China Telecom", "Chinanet", "CT"),
    "CU": ("联通", "中国联通", "网通", "中国网通", "China Unicom", "CNC", "CU", "CUCC"),
    # Tietong's network has been a part of China Mobile since 2016.
    "CM": ("移动", "中国移动", "铁通", "中国铁通", "China Mobile", "CM", "CMCC", "CMNET", "China Tietong"),
    "CBN": ("广电", "广电网", "中国广电", "China Broadnet", "CBN"),
    "CERNET": ("教育网", "中国教育网", "中国教育和科研计算机网", "CERNET"),
    "CSTNET": ("科技网", "中国科技网", "CSTNET"),
    "DRPENG": ("鹏博士", "长城宽带", "电信通", "宽带通", "Dr.Peng", "DRPENG"),
    "GEHUA": ("歌华", "歌华有线", "GEHUA"),
    "WASU": ("华数", "华数传媒", "WASU"),
}
_CARRIER_NAMES = {_simple(name): carrier for carrier, names in _CARRIERS.items() for name in names}

_IN_ORGANISATIONS = (
    ("chinaunicom", "CU"),
    ("chinanet", "CT"),
    ("chinatelecom", "CT"),
    ("chinamobile", "CM"),
    ("tietong", "CM"),
    ("chinabroadnet", "CBN"),
    ("chinaeducationandresearchnetwork", "CERNET"),
    ("中国电信", "CT"),
    ("中国联通", "CU"),
    ("中国移动", "CM"),
    ("中国铁通", "CM"),
    ("中国广电", "CBN"),
)
"""Parts of the names of organisations, which have "Jiangsu Province Network" and the like around them."""

_AUTONOMOUS_SYSTEMS = {
    **dict.fromkeys((4134, 4809, 4811, 4812, 4847, 23724, 58466, 58563, 63835), "CT"),
    **dict.fromkeys((4808, 4837, 9929, 10099, 17621, 17622, 17623, 17816), "CU"),
    **dict.fromkeys((9394, 9808, 24400, 24444, 24445, 24547, 58453, 58807, 132525, 134810), "CM"),
    **dict.fromkeys(range(56040, 56049), "CM"),
    **dict.fromkeys((4538, 23910, 24348, 24349), "CERNET"),
    7497: "CSTNET",
}


@lru_cache(REMEMBERED)
def carrier_of(name: str) -> str:
    """Return the short name of the carrier of that name or organisation; "" if it has none here."""
    simple = _simple(name)
    known = _CARRIER_NAMES.get(simple)
    if known is not None:
        return known
    for part, carrier in _IN_ORGANISATIONS:
        if part in simple:
            return carrier
    return ""


def carrier_of_as(number: int) -> str:
    """Return the short name of the carrier whose autonomous system that is, else "AS" and the number.

    0 is none (RFC 7607), and "".
    """
    if number <= 0:
        return ""
    return _AUTONOMOUS_SYSTEMS.get(number) or f"AS{number}"


# ---------------------------------------------------------------- what databases say


def has_country_code(row: str) -> bool:
    """Return whether the last field of an ip2region row looks like a country's code. Some carriers' names do, too."""
    return _COUNTRY.fullmatch(row.rpartition("|")[2]) is not None


def from_ip2region(row: str, *, has_codes: bool) -> Found:
    """Read a row of ip2region.

    Args:
        row: `country|province|city|carrier|code`, or of older files `country|area|province|city|carrier`. "0" and ""
            stand for what is not known.
        has_codes: whether the file is of the first kind. Rows of Chinese provinces show it by themselves.
    """
    fields = row.split("|")
    if len(fields) != 5:
        return NOTHING
    province = ""
    if fields[0] == "中国":
        if province := province_of(fields[1]):
            has_codes = True
        elif province := province_of(fields[2]):
            has_codes = has_country_code(row)
    if not has_codes:
        return Found(province or ("CN" if fields[0] == "中国" else ""), carrier_of(fields[4]))
    return Found(province or place_of(fields[4], ""), carrier_of(fields[3]))


def place_in_mmdb(record: Mapping[str, object]) -> str:
    """Read the place in a record of a MaxMind DB: of a City, Country or Enterprise database, or of IPinfo's; or ""."""
    # Where the address was assigned counts if nobody knows where it is in use. IPinfo has names and codes.
    fields = ("country", "country_code", "registered_country")
    codes = (_code(record.get(field)) for field in fields)
    country = next((code for code in codes if _COUNTRY.fullmatch(code)), "")
    subdivisions = record.get("subdivisions")
    if isinstance(subdivisions, list) and subdivisions:
        return place_of(country, _code(subdivisions[0]))
    return place_of(country, _text(record.get("region_code")) or _text(record.get("region")))


def carrier_in_mmdb(record: Mapping[str, object]) -> str:
    """Read the carrier in a record of a MaxMind DB: of an ISP, ASN or Enterprise database, or of IPinfo's; or ""."""
    traits = record.get("traits")
    if isinstance(traits, dict):
        record = traits
    for field in ("isp", "autonomous_system_organization", "as_name", "organization"):
        if carrier := carrier_of(_text(record.get(field))):
            return carrier
    number = record.get("autonomous_system_number")
    if isinstance(number, int):
        return carrier_of_as(number)
    digits = _text(record.get("asn")).removeprefix("AS")
    return carrier_of_as(int(digits)) if digits.isdecimal() and len(digits) <= 10 else ""


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _code(value: object) -> str:
    """Return a code that stands there by itself or in a map of names."""
    return _text(value.get("iso_code") if isinstance(value, dict) else value)
