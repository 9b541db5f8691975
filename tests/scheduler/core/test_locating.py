"""The chain of sources: each link by example, then all of them against a chain without memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.clock import Instant
from scheduler.core.locating import Locator
from scheduler.core.networks import Address, Networks, parse_networks
from scheduler.core.places import NOTHING, Found, widening
from scheduler.core.request import Location
from scheduler.core.rtt import Learned, RttTable

NOW = Instant(1_000)
REGIONS = ("sh", "bj", "us", "sg")
PLACES = {"CN-SH": "sh", "CN": "bj", "US": "us", "HK": "sg"}
CLIENT = "8.8.8.8"
SIX = "2400:3200::1"


class Table:
    """A database of a few addresses; None is what cannot be read. It counts what it is asked."""

    def __init__(self, name: str, rows: dict[str, Found | None]) -> None:
        self.name = name
        self.rows = rows
        self.asked: list[str] = []

    def find(self, address: Address) -> Found | None:
        self.asked.append(address.text)
        return self.rows.get(address.text, NOTHING)


def networks_of(text: str) -> Networks:
    networks = parse_networks(text)
    assert isinstance(networks, Networks)
    return networks


def locator(*databases: Table, **changes: Any) -> Locator:
    settings = {"regions": REGIONS, "places": PLACES, "default": "sg", "databases": databases}
    return Locator(**(settings | changes))


def measured(locator: Locator, address: str, times: dict[str, int]) -> None:
    for number in range(5):
        locator.report(address, f"u{number}", times, NOW)


# ---------------------------------------------------------------- each source


def test_a_hint_decides_before_all_others():
    """If it names a region of the operator's; place and carrier are still those of the address."""
    chain = locator(Table("mmdb", {CLIENT: Found("CN-SH", "CT")}), networks=networks_of("8.0.0.0/8 us"))
    assert chain.locate(CLIENT, NOW, hint="bj") == Location("bj", "CN-SH", "CT", "hint")
    assert chain.locate("", NOW, hint="bj") == Location("bj", "", "", "hint")
    assert chain.locate(CLIENT, NOW, hint="mars") == Location("us", "CN-SH", "CT", "networks")
    assert Locator().locate(CLIENT, NOW, hint="") == Location(source="default")


def test_the_map_of_networks_decides_next():
    """Even over round-trip times. Its carrier counts before that of a database, private addresses are in it too."""
    database = Table("mmdb", {CLIENT: Found("CN-SH", "CT")})
    chain = locator(database, networks=networks_of("8.8.8.0/24 us CU\n8.8.4.0/24 bj\n10.0.0.0/8 sh CM\n"))
    database.rows["8.8.4.4"] = Found("US", "AS15169")
    measured(chain, CLIENT, {"sh": 5, "us": 500})
    assert chain.locate(CLIENT, NOW) == Location("us", "CN-SH", "CU", "networks")
    assert chain.locate("8.8.4.4", NOW) == Location("bj", "US", "AS15169", "networks")
    assert chain.locate("10.1.2.3", NOW) == Location("sh", "", "CM", "networks")
    assert chain.learned(CLIENT, NOW) is None


def test_round_trip_times_decide_over_databases():
    """At once, though the address is remembered; place and carrier stay what the database says."""
    chain = locator(Table("mmdb", {CLIENT: Found("US", "AS15169")}), rtts=RttTable(REGIONS))
    assert chain.locate(CLIENT, NOW) == Location("us", "US", "AS15169", "mmdb")
    assert chain.learned(CLIENT, NOW) is None
    measured(chain, CLIENT, {"us": 180, "sh": 25})
    assert chain.locate(CLIENT, NOW) == Location("sh", "US", "AS15169", "rtt")
    assert chain.locate("8.8.8.200", NOW) == Location("sh", "", "", "rtt"), "the whole prefix learns"
    assert chain.locate("8.8.9.8", NOW).source == "default"
    assert chain.learned(CLIENT, NOW) == Learned("sh", 25, 5, "us", 180)
    assert chain.locate(CLIENT, Instant(NOW + 3_600_000)).source == "mmdb"


def test_round_trip_times_that_agree_leave_the_place_its_source():
    """A measurement that is as good as the table says nothing against it."""
    chain = locator(Table("mmdb", {CLIENT: Found("US", "")}), rtts=RttTable(REGIONS))
    measured(chain, CLIENT, {"us": 20, "sh": 15})
    assert chain.locate(CLIENT, NOW) == Location("us", "US", "", "mmdb")


def test_databases_are_asked_in_order_until_region_and_carrier_are_known():
    """The place is that of the one that decides; the carrier of the first that knows it."""
    first, second, third = Table("mmdb", {}), Table("ip2region", {}), Table("last", {})
    chain = locator(first, second, third)
    first.rows = {"8.8.8.1": Found("CN-SH", "CT"), "8.8.8.2": Found("CN", ""), "8.8.8.3": Found("FR", "AS3215")}
    second.rows = {"8.8.8.2": Found("US", "CU"), "8.8.8.3": Found("CN-SH", "CM"), "8.8.8.4": Found("", "CM")}
    third.rows = {"8.8.8.4": Found("HK", "CT")}
    assert chain.locate("8.8.8.1", NOW) == Location("sh", "CN-SH", "CT", "mmdb")
    assert chain.locate("8.8.8.2", NOW) == Location("bj", "CN", "CU", "mmdb")
    assert chain.locate("8.8.8.3", NOW) == Location("sh", "CN-SH", "AS3215", "ip2region")
    assert chain.locate("8.8.8.4", NOW) == Location("sg", "HK", "CM", "last")
    assert (second.asked, third.asked) == (["8.8.8.2", "8.8.8.3", "8.8.8.4"], ["8.8.8.4"])


def test_the_country_comes_after_the_databases():
    """It is asked for where none of them gave a region."""
    countries = {"8.8.8.8": "US", "8.8.8.2": "FR", "8.8.8.3": "CN"}
    database = Table("mmdb", {"8.8.8.3": Found("FR-75", "AS3215"), "8.8.8.4": Found("CN-SH", "")})
    chain = locator(database, country=lambda address: countries.get(address, ""))
    assert chain.locate("8.8.8.8", NOW) == Location("us", "US", "", "country")
    assert chain.locate("::ffff:8.8.8.8", NOW) == Location("us", "US", "", "country")
    assert chain.locate("8.8.8.3", NOW) == Location("bj", "CN", "AS3215", "country")
    assert chain.locate("8.8.8.4", NOW) == Location("sh", "CN-SH", "", "mmdb")
    assert chain.locate("8.8.8.2", NOW) == Location("sg", "FR", "", "default")
    assert chain.locate("8.8.8.1", NOW) == Location("sg", "", "", "default")


def test_a_place_that_no_region_serves_is_still_told():
    """The first that was found, with the default region."""
    chain = locator(Table("a", {CLIENT: Found("FR-75", "")}), Table("b", {CLIENT: Found("DE", "AS1")}))
    assert chain.locate(CLIENT, NOW) == Location("sg", "FR-75", "AS1", "default")


@pytest.mark.parametrize("address", ["", "unix:", "10.1.2.3", "127.0.0.1", "192.168.1.1", "::1", "fd00::1", "nonsense"])
def test_databases_are_asked_for_public_addresses_only(address: str):
    """I3: what has no place is in the default region."""
    asked: list[str] = []
    database = Table("mmdb", {address: Found("CN-SH", "CT")})
    chain = locator(database, country=lambda text: asked.append(text) or "CN")
    assert chain.locate(address, NOW) == Location("sg", "", "", "default")
    assert asked == database.asked == []


def test_clients_of_a_private_network_teach_as_others_do():
    """A company's sites have private prefixes. What has no address has no prefix."""
    chain = locator(rtts=RttTable(REGIONS))
    for address in ("10.1.2.3", ""):
        measured(chain, address, {"sg": 180, "sh": 25})
    assert chain.locate("10.1.2.99", NOW) == Location("sh", "", "", "rtt")
    assert chain.locate("", NOW) == Location("sg", "", "", "default")
    assert chain.learned("", NOW) is None


def test_what_cannot_be_read_costs_its_answer_alone():
    """I3: it is counted, and the next one is asked."""
    broken, good = Table("mmdb", {CLIENT: None, SIX: None}), Table("ip2region", {CLIENT: Found("CN-SH", "CT")})
    chain = locator(broken, good)
    assert chain.locate(CLIENT, NOW) == Location("sh", "CN-SH", "CT", "ip2region")
    assert chain.locate(SIX, NOW) == Location("sg", "", "", "default")
    chain.check_invariants()
    assert chain.faults == {"mmdb": 2}


# ---------------------------------------------------------------- memory


def test_an_address_is_looked_up_once():
    """Until it was not asked for longer than the others that fit."""
    database = Table("mmdb", {})
    chain = locator(database, remembered_max=2)
    for address in ("8.8.8.1", "8.8.8.2", "8.8.8.1", "8.8.8.1", "8.8.8.3", "8.8.8.1", "8.8.8.2"):
        chain.locate(address, NOW)
    assert database.asked == ["8.8.8.1", "8.8.8.2", "8.8.8.3", "8.8.8.2"]
    assert len(chain) == 2


def test_another_locator_begins_without_memory_and_keeps_the_learned_times():
    """So a change of a map is seen at the next request."""
    rtts = RttTable(REGIONS)
    old = locator(networks=networks_of("8.8.8.0/24 us"), rtts=rtts)
    measured(old, "8.8.4.4", {"us": 180, "sh": 25})
    assert old.locate(CLIENT, NOW).region == "us"
    new = locator(networks=networks_of("8.8.8.0/24 bj"), rtts=rtts)
    assert new.locate(CLIENT, NOW).region == "bj"
    assert new.locate("8.8.4.4", NOW).region == "sh"


ADDRESSES = ("8.8.8.8", "8.8.8.9", "::ffff:8.8.8.8", SIX, "10.0.0.1", "", "x")
FOUND = st.none() | st.builds(
    Found, st.sampled_from(["", "CN-SH", "CN-GD", "US", "FR", "HK"]), st.sampled_from(["", "CT"])
)
ROWS = st.dictionaries(st.sampled_from(["8.8.8.8", "8.8.8.9", SIX]), FOUND)
MAPS = st.sampled_from(["", "8.8.8.9/32 us", "8.8.8.9/32 us CU\n10.0.0.0/8 sh", "::/0 bj"])
ASKED = st.lists(st.tuples(st.sampled_from(ADDRESSES), st.sampled_from(["", "sh", "mars"])), max_size=30)


def plainly(text: str, hint: str, rows: list[dict[str, Found | None]], networks: Networks) -> Location:
    """The chain as a list of (source, region, place, carrier) of all who know something."""
    text = text.removeprefix("::ffff:")
    public = text in {"8.8.8.8", "8.8.8.9", SIX}
    said: list[tuple[str, Found | None]] = [(f"db{n}", row.get(text, NOTHING)) for n, row in enumerate(rows) if public]
    found = [(source, each) for source, each in said if each is not None] + [("country", Found("CN"))] * public
    serving = [
        (source, PLACES[key], each.place) for source, each in found for key in widening(each.place) if key in PLACES
    ]
    source, region, place = serving[0] if serving else ("default", "sg", "")
    carrier = next((each.carrier for _, each in found if each.carrier), "")
    for name, address in (("us", "8.8.8.9"), ("sh", "10.0.0.1"), ("bj", SIX)):
        network = next((network for network in networks if network.region == name), None)
        if network is not None and text == address:
            source, region, carrier = "networks", name, network.carrier or carrier
    if hint == "sh":
        source, region = "hint", "sh"
    return Location(region, place, carrier, source)


@given(st.lists(ROWS, max_size=3), MAPS, ASKED)
@settings(max_examples=200, deadline=None)
def test_the_chain_with_memory_answers_as_one_without(
    rows: list[dict[str, Found | None]], text: str, asked: list[tuple[str, str]]
):
    """I1, I2: whatever was asked before, and however little is remembered."""
    networks = networks_of(text)
    chain = locator(
        *(Table(f"db{number}", row) for number, row in enumerate(rows)),
        networks=networks,
        country=lambda _: "CN",
        remembered_max=2,
    )
    for address, hint in asked:
        assert chain.locate(address, NOW, hint=hint) == plainly(address, hint, rows, networks)
        chain.check_invariants()
