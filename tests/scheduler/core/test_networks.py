"""The map of networks: tables, then lookups against a scan of the whole map."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.document import Fault
from scheduler.core.networks import Address, Network, Networks, is_public, parse_address, parse_networks


def address(text: str) -> Address:
    parsed = parse_address(text)
    assert parsed is not None
    return parsed


def lookup(networks: Networks, text: str) -> str:
    network = networks.lookup(address(text))
    return network.region if network else ""


def networks_of(text: str) -> Networks:
    networks = parse_networks(text)
    assert isinstance(networks, Networks), networks
    return networks


def test_the_longest_prefix_decides():
    """Whatever the order of the lines; 0.0.0.0/0 is the last resort, of IPv4 only."""
    networks = networks_of("0.0.0.0/0 any\n10.1.0.0/16 campus\n10.1.2.3/32 desk\n10.0.0.0/8 corp\n2001:db8::/32 six\n")
    assert [lookup(networks, text) for text in ("10.1.2.3", "10.1.2.4", "10.2.0.0", "11.0.0.0")] == [
        "desk",
        "campus",
        "corp",
        "any",
    ]
    assert [lookup(networks, text) for text in ("2001:db8::1", "2001:db9::1")] == ["six", ""]
    assert networks.regions == {"any", "campus", "desk", "corp", "six"}


def test_an_ipv4_address_in_ipv6_form_is_the_ipv4_address():
    """In the map and in what is asked, either way."""
    networks = networks_of("::ffff:192.0.2.0/120 mapped\n198.51.100.0/24 plain\n::ffff:0:0/96 all-v4")
    assert lookup(networks, "192.0.2.7") == "mapped"
    assert lookup(networks, "::ffff:192.0.2.7") == "mapped"
    assert lookup(networks, "::ffff:198.51.100.7") == "plain"
    assert lookup(networks, "203.0.113.1") == "all-v4"
    assert lookup(networks, "2001:db8::1") == ""
    assert address("::ffff:192.0.2.7") == Address("192.0.2.7", 32, 0xC0000207)


def test_a_line_is_network_region_and_perhaps_carrier():
    """Comments and empty lines are nothing; a carrier's name becomes the short one, an unknown one stays."""
    networks = networks_of(
        "# the office\n\n  192.0.2.0/24\tsh  电信 # by line\n198.51.100.9 bj OurOwn\n2001:db8::/48 gz\n"
    )
    assert sorted(networks, key=lambda network: network.region) == [
        Network(IPv4Network("198.51.100.9/32"), "bj", "OurOwn"),
        Network(IPv6Network("2001:db8::/48"), "gz", ""),
        Network(IPv4Network("192.0.2.0/24"), "sh", "CT"),
    ]


def test_every_fault_is_told_with_its_line():
    """All at once, and nothing of the map is used then."""
    text = (
        "192.0.2.0/24 sh\n192.0.2.1/24 sh\nhere sh\n198.51.100.0/24\n10.0.0.0/8 sh CT fast\n::ffff:192.0.2.0/120 bj\n"
    )
    assert parse_networks(text) == (
        Fault(2, "192.0.2.1/24 has bits set behind its prefix: 192.0.2.0/24 is the network around it"),
        Fault(3, '"here" is no network in CIDR form, such as 192.0.2.0/24 or 2001:db8::/32'),
        Fault(4, "a region must follow 198.51.100.0/24"),
        Fault(5, '"fast" is one word too many: a line is `CIDR region [carrier]`'),
        Fault(6, "192.0.2.0/24 stands on line 1 already"),
    )


def test_the_empty_map_knows_nothing():
    """It is a good map."""
    networks = networks_of("# nothing yet\n")
    assert [*networks] == []
    assert lookup(networks, "192.0.2.1") == ""


def test_a_network_twice_is_our_own_bug():
    """The parser has refused it before."""
    network = Network(IPv4Network("192.0.2.0/24"), "sh")
    with pytest.raises(AssertionError):
        Networks([network, network])


@pytest.mark.parametrize(
    "text", ["", "somewhere", "unix:", "1.2.3", "1.2.3.4.5", "256.1.1.1", "1.2.3.4/8", "1::2::3", ":"]
)
def test_what_is_no_address_is_none(text: str):
    """A peer on a Unix socket has none either."""
    assert parse_address(text) is None


def test_a_zone_is_left_out():
    """It means something on one machine only."""
    assert address("fe80::1%eth0") == address("fe80::1")


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("8.8.8.8", True),
        ("114.114.114.114", True),
        ("2400:3200::1", True),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("127.0.0.1", False),
        ("169.254.1.1", False),
        ("192.0.2.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("2001:db8::1", False),
    ],
)
def test_special_addresses_are_not_public(text: str, *, public: bool):
    """Private, shared, loopback, link-local, documentation, multicast, broadcast."""
    assert is_public(address(text)) is public


def cidrs(bits: int) -> st.SearchStrategy[str]:
    kind = IPv4Network if bits == 32 else IPv6Network
    # Few distinct leading bits, so that networks lie in each other.
    numbers = st.integers(0, 15).map(lambda number: number << bits - 4) | st.integers(0, 2**bits - 1)
    return st.tuples(numbers, st.integers(0, bits)).map(lambda pair: str(kind(pair, strict=False)))


@given(st.lists(cidrs(32) | cidrs(128), unique=True, max_size=30), st.data())
def test_lookups_are_those_of_a_scan(texts: list[str], data: st.DataObject):
    """The smallest network of all that hold the address, at its borders and elsewhere."""
    networks = networks_of("\n".join(f"{text} r{number}" for number, text in enumerate(texts)))
    held = [(network.cidr, network.region) for network in networks]
    assert len(held) == len(texts)
    border = [str(edge) for cidr, _ in held for edge in (cidr.network_address, cidr.broadcast_address)]
    any_address = st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(str)
    text = data.draw(st.sampled_from(border) | any_address if border else any_address)
    ip = ip_address(text)
    ip = getattr(ip, "ipv4_mapped", None) or ip
    holding = [(cidr.prefixlen, region) for cidr, region in held if cidr.version == ip.version and ip in cidr]
    assert lookup(networks, text) == (max(holding)[1] if holding else "")
