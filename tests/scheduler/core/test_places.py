"""Names of places and carriers: tables of what databases and people write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.places import (
    NOTHING,
    PROVINCES,
    Found,
    Province,
    carrier_in_mmdb,
    carrier_of,
    carrier_of_as,
    from_ip2region,
    has_country_code,
    place_in_mmdb,
    place_of,
    province_of,
    widening,
)

SUFFIXES = {
    **dict.fromkeys(("BJ", "TJ", "SH", "CQ"), ("市", " Municipality")),
    **dict.fromkeys(("HK", "MO"), ("特别行政区", " SAR")),
    "NM": ("自治区", " Autonomous Region"),
    "XZ": ("自治区", " Autonomous Region"),
    "GX": ("壮族自治区", " Zhuangzu Zizhiqu"),
    "NX": ("回族自治区", " Huizu Zizhiqu"),
    "XJ": ("维吾尔自治区", " Uygur Autonomous Region"),
}


def test_there_are_34_provinces():
    """23 provinces, 5 autonomous regions, 4 municipalities, 2 special administrative regions."""
    assert len(PROVINCES) == len({province.code for province in PROVINCES}) == 34
    assert len({province.number for province in PROVINCES}) == 34


@pytest.mark.parametrize("province", PROVINCES, ids=lambda province: province.code)
def test_each_name_of_a_province_is_the_province(province: Province):
    """Chinese and Latin, with the suffix and without, code and number, in any case."""
    place = province.code if province.code in {"HK", "MO", "TW"} else f"CN-{province.code}"
    chinese, english = SUFFIXES.get(province.code, ("省", " Province"))
    names = [province.chinese, province.chinese + chinese, province.code, f"CN-{province.code}", str(province.number)]
    names += [f"CN-{province.number}", province.names[0] + english, *province.names]
    names += [name.upper() for name in province.names] + [province.names[0].title() + english.lower()]
    assert {name: province_of(name) for name in names} == dict.fromkeys(names, place)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("Inner Mongolia", "CN-NM"),
        ("Nei Mongol", "CN-NM"),
        ("Hong Kong", "HK"),
        ("臺灣省", "TW"),
        ("澳門特别行政区", "MO"),
        ("Shanxi", "CN-SX"),
        ("Shaanxi", "CN-SN"),
        ("上海市", "CN-SH"),
        ("", ""),
        ("0", ""),
        ("省", ""),
        ("California", ""),
        ("CN", ""),
        ("99", ""),
        ("内网IP", ""),
    ],
)
def test_names_that_are_written_in_other_ways(name: str, place: str):
    """And what is no province."""
    assert province_of(name) == place


@pytest.mark.parametrize(
    ("country", "subdivision", "place"),
    [
        ("CN", "SH", "CN-SH"),
        ("CN", "31", "CN-SH"),
        ("CN", "Shanghai", "CN-SH"),
        ("CN", "", "CN"),
        ("CN", "Atlantis", "CN"),
        ("CN", "HK", "HK"),
        ("HK", "", "HK"),
        ("TW", "TPE", "TW"),
        ("US", "CA", "US-CA"),
        ("US", "California", "US"),
        ("FR", "75", "FR-75"),
        ("", "CA", ""),
        ("USA", "CA", ""),
        ("us", "CA", ""),
        ("0", "", ""),
    ],
)
def test_a_country_and_a_subdivision_are_a_place(country: str, subdivision: str, place: str):
    """As ISO 3166-2 writes it."""
    assert place_of(country, subdivision) == place


def test_a_map_may_have_a_place_under_any_of_its_codes():
    """The most specific first. Hong Kong, Macao and Taiwan have two."""
    assert widening("CN-SH") == ("CN-SH", "CN")
    assert widening("US-CA") == ("US-CA", "US")
    assert widening("JP") == ("JP",)
    assert widening("HK") == ("HK", "CN-HK", "CN")


@pytest.mark.parametrize(
    ("name", "carrier"),
    [
        ("电信", "CT"),
        ("中国电信", "CT"),
        ("China Telecom", "CT"),
        ("CHINANET-SH", "CT"),
        ("CHINATELECOM JiangSu Nanjing IDC network", "CT"),
        ("IDC, China Telecommunications Corporation", "CT"),
        ("联通", "CU"),
        ("网通", "CU"),
        ("CHINA UNICOM China169 Backbone", "CU"),
        ("China Unicom Beijing Province Network", "CU"),
        ("移动", "CM"),
        ("铁通", "CM"),
        ("China Mobile Communications Group Co., Ltd.", "CM"),
        ("China TieTong Telecommunications Corporation", "CM"),
        ("中国移动通信集团", "CM"),
        ("cmcc", "CM"),
        ("教育网", "CERNET"),
        ("China Education and Research Network Center", "CERNET"),
        ("科技网", "CSTNET"),
        ("广电网", "CBN"),
        ("电信通", "DRPENG"),
        ("华数", "WASU"),
        ("歌华有线", "GEHUA"),
        ("CT", "CT"),
        # A part of the name is not enough.
        ("中华电信", ""),
        ("Deutsche Telekom AG", ""),
        ("T-Mobile USA", ""),
        ("Mobile Communication Company of Iran", ""),
        ("ACT Fibernet", ""),
        ("内网IP", ""),
        ("0", ""),
        ("", ""),
    ],
)
def test_carriers_have_one_short_name(name: str, carrier: str):
    """From ip2region, from registries of autonomous systems, from operators."""
    assert carrier_of(name) == carrier


@pytest.mark.parametrize(
    ("number", "carrier"),
    [
        (4134, "CT"),
        (4837, "CU"),
        (9808, "CM"),
        (56040, "CM"),
        (56048, "CM"),
        (56049, "AS56049"),
        (4538, "CERNET"),
        (7497, "CSTNET"),
        (13335, "AS13335"),
        (0, ""),
        (-1, ""),
    ],
)
def test_an_autonomous_system_is_a_carrier(number: int, carrier: str):
    """Its own, where nobody gave it a name."""
    assert carrier_of_as(number) == carrier


# ---------------------------------------------------------------- rows of ip2region

CURRENT = [
    ("中国|上海市|上海市|电信|CN", Found("CN-SH", "CT")),
    ("中国|广东省|深圳市|中国联通|CN", Found("CN-GD", "CU")),
    ("中国|西藏|拉萨市|移动|CN", Found("CN-XZ", "CM")),
    ("中国|香港特别行政区|0|0|CN", Found("HK", "")),
    ("中国|台湾省|0|中华电信|CN", Found("TW", "")),
    ("中国|台湾省|台北市|中华电信|TW", Found("TW", "")),
    ("中国|0|0|教育网|CN", Found("CN", "CERNET")),
    ("中国|0|上海市|电信|CN", Found("CN-SH", "CT")),
    ("United States|California|Los Angeles|Google LLC|US", Found("US", "")),
    ("Hong Kong|0|0|China Mobile|HK", Found("HK", "CM")),
    ("United Kingdom|0|London|BT|GB", Found("GB", "")),
    ("0|0|Reserved|Reserved|Reserved", NOTHING),
]
OLDER = [
    ("中国|0|上海|上海市|电信", Found("CN-SH", "CT")),
    ("中国|华东|江苏省|南京市|联通", Found("CN-JS", "CU")),
    ("中国|0|香港|0|0", Found("HK", "")),
    ("中国|0|0|0|移动", Found("CN", "CM")),
    # Its countries have no code: the registries of addresses know them.
    ("美国|0|加利福尼亚|洛杉矶|0", NOTHING),
    ("英国|0|0|0|BT", NOTHING),
    ("日本|0|东京都|东京|China Telecom", Found("", "CT")),
    ("0|0|0|内网IP|内网IP", NOTHING),
]


@pytest.mark.parametrize(("row", "found"), CURRENT)
def test_rows_of_the_current_order_are_read(row: str, found: Found):
    """country|province|city|carrier|code."""
    assert from_ip2region(row, has_codes=True) == found


@pytest.mark.parametrize(("row", "found"), OLDER)
def test_rows_of_the_older_order_are_read(row: str, found: Found):
    """country|area|province|city|carrier."""
    assert from_ip2region(row, has_codes=False) == found


def test_rows_of_chinese_provinces_show_their_order_themselves():
    """Whatever is thought of the file."""
    own = [row for row in CURRENT + OLDER if row[1].place.startswith("CN-") or row[1].place == "HK"]
    chinese = [(row, found) for row, found in own if row.startswith("中国")]
    assert len(chinese) == 8
    for row, found in chinese:
        assert from_ip2region(row, has_codes=True) == from_ip2region(row, has_codes=False) == found


def test_what_is_no_row_says_nothing():
    """The empty answer for an address that is not in the file, and texts of other makers."""
    for row in ("", "CN", "中国|上海", "a|b|c|d|e|f"):
        assert from_ip2region(row, has_codes=True) == from_ip2region(row, has_codes=False) == NOTHING


def test_the_last_field_tells_whether_there_are_codes():
    """Nearly: a carrier may have a name of two capitals."""
    rows = ("中国|0|0|移动|CN", "英国|0|0|0|BT", "中国|0|上海|上海市|电信", "美国|0|0|0|0", "")
    assert [has_country_code(row) for row in rows] == [True, True, False, False, False]


# ---------------------------------------------------------------- records of MaxMind DBs


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"country": {"iso_code": "CN"}, "subdivisions": [{"iso_code": "SH"}, {"iso_code": "X"}]}, ("CN-SH", "")),
        ({"country": {"iso_code": "CN"}, "subdivisions": [{"names": {"en": "Shanghai"}}]}, ("CN", "")),
        ({"country": {"iso_code": "US"}, "subdivisions": [{"iso_code": "CA"}]}, ("US-CA", "")),
        ({"country": {"iso_code": "DE"}, "registered_country": {"iso_code": "US"}}, ("DE", "")),
        ({"registered_country": {"iso_code": "HK"}, "subdivisions": []}, ("HK", "")),
        ({"continent": {"code": "AS"}}, ("", "")),
        ({"country": "CN", "region": "Guangdong", "asn": "AS4837", "as_name": "China169"}, ("CN-GD", "CU")),
        (
            {"country": "United States", "country_code": "US", "region": "California", "region_code": "CA"},
            ("US-CA", ""),
        ),
        ({"country_code": "US", "region": "California", "region_code": "CA"}, ("US-CA", "")),
        ({"autonomous_system_number": 4134, "autonomous_system_organization": "Chinanet"}, ("", "CT")),
        ({"autonomous_system_number": 4134, "autonomous_system_organization": "No. 31, Jin-rong"}, ("", "CT")),
        ({"autonomous_system_number": 13335, "autonomous_system_organization": "Cloudflare"}, ("", "AS13335")),
        ({"isp": "China Mobile", "autonomous_system_number": 7018, "organization": "x"}, ("", "CM")),
        ({"country": {"iso_code": "CN"}, "traits": {"isp": "China Unicom"}}, ("CN", "CU")),
        ({"traits": {"autonomous_system_number": 7018}}, ("", "AS7018")),
        ({"asn": "AS13335"}, ("", "AS13335")),
        ({"asn": "13335"}, ("", "AS13335")),
        ({"asn": ""}, ("", "")),
        ({"asn": "ASx"}, ("", "")),
        ({"asn": "AS" + "9" * 5_000}, ("", "")),
        ({}, ("", "")),
    ],
)
def test_records_are_read(record: dict[str, object], found: tuple[str, str]):
    """GeoLite2 and GeoIP2 City, Country, ASN, ISP and Enterprise; IPinfo's flat ones."""
    assert (place_in_mmdb(record), carrier_in_mmdb(record)) == found


FIELDS = [
    "country",
    "country_code",
    "registered_country",
    "subdivisions",
    "region",
    "region_code",
    "traits",
    "iso_code",
]
FIELDS += ["isp", "organization", "autonomous_system_organization", "autonomous_system_number", "as_name", "asn"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=8,
)


@given(record=st.dictionaries(st.sampled_from(FIELDS), VALUES), row=st.text(), has_codes=st.booleans())
def test_nothing_that_a_database_holds_makes_reading_fail(record: dict[str, object], row: str, *, has_codes: bool):
    """Values of other shapes say nothing."""
    for found in (
        Found(place_in_mmdb(record), carrier_in_mmdb(record)),
        from_ip2region(row, has_codes=has_codes),
    ):
        assert all(isinstance(text, str) for text in found)
        assert found.place == "" or found.place[:2].isupper()
