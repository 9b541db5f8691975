"""Forwarded addresses: what a client writes itself must not count, whatever it is."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.forwarded import client_address, forwarded_for, listed

PROXIES = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


@pytest.mark.parametrize(
    ("peer", "entries", "client"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["1.1.1.1", "198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["1.1.1.1", "198.51.100.7", "10.9.9.9", "fd00::1"], "198.51.100.7"),
        ("10.0.0.1", ["10.0.0.3", "10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["1.1.1.1", "unknown"], "10.0.0.1"),
        ("10.0.0.1", ["1.1.1.1", "_hidden", "10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["1.1.1.1", ""], "10.0.0.1"),
        ("::ffff:10.0.0.1", ["::ffff:198.51.100.7"], "198.51.100.7"),
        ("fd00::1", ["2001:DB8:0::1"], "2001:db8::1"),
        ("fe80::1%eth0", [], "fe80::1"),
        ("fd00::1", ["fe80::1%\nx"], "fe80::1"),
        ("/run/socket", ["198.51.100.7"], "/run/socket"),
        ("", ["198.51.100.7"], ""),
    ],
)
def test_whose_address_counts(peer: str, entries: list[str], client: str) -> None:
    """The first from the end that no trusted proxy has."""
    assert client_address(peer, entries, PROXIES) == client


@pytest.mark.parametrize(
    ("entry", "client"),
    [
        ("198.51.100.7:4711", "198.51.100.7"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[::ffff:198.51.100.7]:1", "198.51.100.7"),
        ("198.51.100.7:4711:1", "10.0.0.1"),
        ("[", "10.0.0.1"),
        (":80", "10.0.0.1"),
        ("198.51.100.999", "10.0.0.1"),
    ],
)
def test_ports_and_brackets(entry: str, client: str) -> None:
    """Are taken away; nonsense is nobody."""
    assert client_address("10.0.0.1", [entry], PROXIES) == client


def test_nothing_counts_where_nobody_is_trusted() -> None:
    """And a chain without an end is not followed for ever."""
    assert client_address("10.0.0.1", ["198.51.100.7"], []) == "10.0.0.1"
    assert client_address("10.0.0.1", ["198.51.100.7", *["10.0.0.2"] * 32], PROXIES) == "10.0.0.2"


def test_entries_of_a_header() -> None:
    """Of the de-facto header."""
    assert listed(" 192.0.2.1, ,10.0.0.1:80 ,") == ["192.0.2.1", "10.0.0.1:80"]
    assert listed("") == []


@pytest.mark.parametrize(
    ("header", "entries"),
    [
        ("for=192.0.2.60;proto=http;by=203.0.113.43", ["192.0.2.60"]),
        ('For="[2001:db8:cafe::17]:4711"', ["[2001:db8:cafe::17]:4711"]),
        ("for=192.0.2.43, FOR = 198.51.100.17", ["192.0.2.43", "198.51.100.17"]),
        ("by=203.0.113.43; for=192.0.2.60", ["192.0.2.60"]),
        ("for=192.0.2.43, proto=https, , for=_x", ["192.0.2.43", "", "_x"]),
        ("before=1.1.1.1;fort=2.2.2.2", [""]),
        ("", []),
    ],
)
def test_elements_of_the_standard_header(header: str, entries: list[str]) -> None:
    """RFC 7239, section 4 and 6; an element that names nobody is one all the same."""
    assert forwarded_for(header) == entries


written = st.text(st.sampled_from('for=";,[]: .1\\\t'), max_size=30)


@given(written, st.sampled_from(["203.0.113.5", "203.0.113.5:99", '"[2001:db8::5]:99"']))
def test_what_a_client_writes_before_changes_nothing(forged: str, element: str) -> None:
    """Open quotes, empty elements, whatever: the last element is the proxy's."""
    expected = "2001:db8::5" if "db8" in element else "203.0.113.5"
    assert client_address("10.0.0.1", forwarded_for(f"{forged}, for={element}"), PROXIES) == expected
    if '"' not in element:
        assert client_address("10.0.0.1", listed(f"{forged}, {element}"), PROXIES) == expected


@given(written, written)
def test_an_untrusted_peer_is_who_it_is(forged: str, other: str) -> None:
    """Whatever it writes."""
    assert client_address("192.0.2.9", [*forwarded_for(forged), *listed(other)], PROXIES) == "192.0.2.9"
