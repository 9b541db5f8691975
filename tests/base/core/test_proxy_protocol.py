"""The PROXY protocol: tables from the specification, its published checksums, then random bytes and a built-up twin."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.core.proxy_protocol import HEADER_BYTES_MAX, V2_START, Header, Malformed, _crc32c, parse

FOUR = bytes([192, 0, 2, 1, 198, 51, 100, 2, 0xDC, 0x04, 0x01, 0xBB])
SIX = IPv6Address("2001:db8::1").packed + IPv6Address("2001:db8::2").packed + FOUR[8:]
UNIX = bytes(216)
SOURCE_FOUR = ("192.0.2.1", 56_324)
SOURCE_SIX = ("2001:db8::1", 56_324)

LOCAL, PROXY = 0x20, 0x21
ALPN, AUTHORITY, CRC32C, NOOP, SSL, CUSTOM = 1, 2, 3, 4, 0x20, 0xE5


def v2(block: bytes = b"", *, command: int = PROXY, kind: int = 0x11, length: int | None = None) -> bytes:
    announced = len(block) if length is None else length
    return V2_START + bytes([command, kind]) + announced.to_bytes(2) + block


def tlv(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + len(value).to_bytes(2) + value


def with_checksum(before: bytes, after: bytes = b"") -> bytes:
    """A header whose CRC32C stands between `before` and `after`, computed as a sender does."""
    blank = v2(before + tlv(CRC32C, bytes(4)) + after)
    return v2(before + tlv(CRC32C, bitwise_crc32c(blank).to_bytes(4)) + after)


def bitwise_crc32c(data: bytes) -> int:
    """The twin: division of polynomials, bit by bit, on numbers instead of a table."""
    crc = 0xFFFFFFFF
    for byte in data:
        for bit in range(8):
            out = (crc ^ byte >> bit) & 1
            crc >>= 1
            if out:
                crc ^= 0x82F63B78
    return crc ^ 0xFFFFFFFF


WHOLE: list[tuple[bytes, tuple[str, int] | None, bool]] = [
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n", SOURCE_FOUR, False),
    (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", ("255.255.255.255", 65_535), False),
    (b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", ("0.0.0.0", 0), False),  # noqa: S104 - nothing is bound
    (b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n", SOURCE_SIX, False),
    (b"PROXY TCP6 2001:0DB8:0000:0000:0000:0000:0000:0001 ::1 56324 443\r\n", SOURCE_SIX, False),
    (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", ("192.0.2.1", 1), False),
    (b"PROXY UNKNOWN\r\n", None, False),
    (b"PROXY UNKNOWN any\rthing\xff\n at all\r\n", None, False),
    (b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n", None, False),
    (v2(FOUR), SOURCE_FOUR, False),
    (v2(SIX, kind=0x21), SOURCE_SIX, False),
    (v2(bytes(10) + b"\xff\xff" + SIX[:16] + SIX[:4] + FOUR[8:], kind=0x21), ("32.1.13.184", 56_324), False),
    (v2(FOUR, kind=0x12), None, False),
    (v2(SIX, kind=0x22), None, False),
    (v2(UNIX, kind=0x31), None, False),
    (v2(UNIX, kind=0x32), None, False),
    (v2(UNIX + tlv(SSL, b"\x01" + bytes(4)), kind=0x31), None, True),
    (v2(kind=0x00), None, False),
    (v2(b"what an unknown sender says", kind=0x00), None, False),
    (v2(b"odd", kind=0x10), None, False),
    (v2(b"odd", kind=0x02), None, False),
    (v2(command=LOCAL, kind=0x00), None, False),
    (v2(b"skipped", command=LOCAL, kind=0x11), None, False),
    (v2(b"skipped", command=LOCAL, kind=0xFF), None, False),
    (v2(FOUR + tlv(SSL, b"\x01" + bytes(4))), SOURCE_FOUR, True),
    (v2(FOUR + tlv(SSL, b"\x07\0\0\0\0" + tlv(0x21, b"TLSv1.3"))), SOURCE_FOUR, True),
    (v2(FOUR + tlv(SSL, b"\x06" + bytes(4))), SOURCE_FOUR, False),
    (v2(FOUR + tlv(SSL, b"\x01" + bytes(4)) + tlv(SSL, bytes(5))), SOURCE_FOUR, True),
    (v2(FOUR + tlv(ALPN, b"h2") + tlv(NOOP, b"") + tlv(CUSTOM, b"\x03") + tlv(AUTHORITY, b"a")), SOURCE_FOUR, False),
    (v2(FOUR + tlv(NOOP, bytes(HEADER_BYTES_MAX - 16 - 12 - 3))), SOURCE_FOUR, False),
    (with_checksum(FOUR), SOURCE_FOUR, False),
    (with_checksum(FOUR + tlv(SSL, b"\x01" + bytes(4)), tlv(NOOP, b"..")), SOURCE_FOUR, True),
]


@pytest.mark.parametrize(("header", "source", "tls"), WHOLE)
def test_a_whole_header_says_who_it_is_and_where_the_client_begins(
    header: bytes, source: tuple[str, int] | None, *, tls: bool
):
    """Whatever follows it, another header too."""
    expected = Header(source, len(header), tls)
    assert parse(header) == expected
    for rest in (b"\r\n", b"GET / HTTP/1.1\r\n\r\n", header):
        assert parse(header + rest) == expected


@pytest.mark.parametrize("header", [header for header, _, _ in WHOLE])
def test_every_prefix_of_a_header_is_incomplete(header: bytes):
    """TCP may bring it a byte at a time."""
    assert [length for length in range(len(header)) if parse(header[:length]) is not None] == []


BROKEN = [
    b"GET / HTTP/1.1\r\n",
    b"PROXY\r\n",
    b"PROXZ",
    b"proxy TCP4 192.0.2.1 198.51.100.2 56324 443\r\n",
    b"PROXY  TCP4 192.0.2.1 198.51.100.2 56324 443\r\n",
    b"PROXY TCP4  192.0.2.1 198.51.100.2 56324 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443 \r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 56324\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443 9\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\n\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\rx\r\n",
    b"PROXY TCP4 192.0.2.01 198.51.100.2 56324 443\r\n",
    b"PROXY TCP4 192.0.2.256 198.51.100.2 56324 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100 56324 443\r\n",
    b"PROXY TCP4 192.0.2.1 \xd9\xa1.1.1.1 56324 443\r\n",
    b"PROXY TCP4 ::1 ::2 56324 443\r\n",
    b"PROXY TCP6 192.0.2.1 198.51.100.2 56324 443\r\n",
    b"PROXY TCP6 fe80::1%eth0 ::1 56324 443\r\n",
    b"PROXY TCP6 1:2:3:4:5:6:7:8:9 ::1 56324 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 1 65536\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 056 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 +5 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2  443\r\n",
    b"PROXY TCP4\r\n",
    b"PROXY UDP4 192.0.2.1 198.51.100.2 56324 443\r\n",
    b"PROXY UNKNOWNS\r\n",
    b"PROXY \r\n",
    b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n",
    b"PROXY TCP4 " + b"1" * 96,
    b"\r\n\r\n\x00\r\nQUIT\r",
    v2(FOUR, command=0x22),
    v2(FOUR, command=0x11),
    v2(FOUR, command=0x31),
    v2(command=0x2F),
    v2(FOUR, kind=0x41),
    v2(FOUR, kind=0x13),
    v2(kind=0xFF),
    v2(FOUR[:11]),
    v2(SIX[:35], kind=0x21),
    v2(UNIX[:215], kind=0x31),
    v2(FOUR + b"\x04"),
    v2(FOUR + b"\x04\x00"),
    v2(FOUR + b"\x04\x00\x01"),
    v2(FOUR + tlv(NOOP, b"..") + b"\x04\x00\x03.."),
    v2(FOUR + tlv(SSL, b"\x01\0\0\0")),
    v2(FOUR + tlv(CRC32C, b"\0\0\0")),
    v2(FOUR + tlv(CRC32C, bytes(5))),
    v2(FOUR + tlv(CRC32C, bytes(4))),
    v2(UNIX + tlv(CRC32C, bytes(4)), kind=0x31),
    with_checksum(FOUR, tlv(CRC32C, bytes(4))),
    with_checksum(FOUR + tlv(CRC32C, b"1234")),
    v2(bytes(HEADER_BYTES_MAX - 15), command=LOCAL),
    v2(FOUR, length=0xFFFF),
]


@pytest.mark.parametrize("data", BROKEN)
def test_what_is_no_header_is_malformed(data: bytes):
    """Whatever follows; and it says why."""
    outcome = parse(data)
    assert isinstance(outcome, Malformed)
    assert outcome.reason
    assert parse(data + b"\r\n") == outcome


@pytest.mark.parametrize(
    ("data", "judged_at"),
    [
        (b"GET / HTTP/1.1\r\n", 1),
        (b"PROXY\tTCP4", 6),
        (b"PROXY TCP4 " + b"1" * 96, 107),
        (v2(FOUR, command=0x22), 13),
        (v2(FOUR, kind=0x41), 14),
        (v2(FOUR[:11]), 16),
        (v2(length=HEADER_BYTES_MAX - 15), 16),
        (v2(FOUR, command=LOCAL, length=0xFFFF), 16),
    ],
)
def test_what_cannot_become_a_header_is_not_waited_for(data: bytes, judged_at: int):
    """It is malformed at the first byte that shows it, so that the sender is dropped at once."""
    assert parse(data[: judged_at - 1]) is None
    assert isinstance(parse(data[:judged_at]), Malformed)


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"", 0),
    ],
)
def test_checksums_are_the_published_ones(data: bytes, crc: int):
    """RFC 3720, appendix B.4, and the polynomial's customary check value."""
    assert _crc32c(data) == bitwise_crc32c(data) == crc


@given(st.binary(max_size=64))
def test_checksums_are_those_of_the_bitwise_twin(data: bytes):
    """Any bytes."""
    assert _crc32c(data) == bitwise_crc32c(data)


@given(st.integers(0, 8 * len(with_checksum(FOUR, tlv(NOOP, b"..."))) - 1))
def test_one_wrong_bit_is_never_taken_for_a_header_with_that_checksum(bit: int):
    """Unless it turned the command into LOCAL, or the family into one of which nothing is read."""
    whole = with_checksum(FOUR, tlv(NOOP, b"..."))
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    outcome = parse(bytes(damaged))
    if isinstance(outcome, Header):
        assert outcome.source is None or bit // 8 == 16 + 12  # the checksum's own type was damaged
        assert not outcome.tls


@given(st.binary(max_size=300), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ::1 ", v2()[:12]]))
def test_any_bytes_have_an_outcome_that_more_bytes_do_not_change(data: bytes, start: bytes):
    """Never an exception; what was decided on a part holds for the whole, however it was cut."""
    data = start + data
    whole = parse(data)
    for length in range(len(data) + 1):
        part = parse(data[:length])
        assert part is None or part == whole
    if isinstance(whole, Header):
        assert whole.length <= len(data)


@given(st.sampled_from([0x11, 0x12, 0x21, 0x31, 0x00]), st.binary(max_size=260))
def test_any_block_after_a_good_start_has_an_outcome(kind: int, block: bytes):
    """The block is all there, so there is nothing to wait for."""
    outcome = parse(v2(block, kind=kind))
    assert isinstance(outcome, Malformed) or (outcome is not None and outcome.length == 16 + len(block))


ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6).filter(lambda address: not address.ipv4_mapped))
PORTS = st.integers(0, 65_535)
TLVS = st.lists(st.tuples(st.integers(4, 255).filter(lambda kind: kind != SSL), st.binary(max_size=40)), max_size=4)


@given(source=ADDRESSES, port=PORTS, tlvs=TLVS, tls=st.none() | st.booleans())
def test_what_a_sender_wrote_is_read(
    source: IPv4Address | IPv6Address, port: int, tlvs: list[tuple[int, bytes]], *, tls: bool | None
):
    """Both versions, any address, any further TLVs, with and without a checksum."""
    is_four = isinstance(source, IPv4Address)
    line = f"PROXY TCP{4 if is_four else 6} {source} {source} {port} 1\r\n".encode()
    assert parse(line) == Header((str(source), port), len(line))
    block = source.packed * 2 + port.to_bytes(2) + b"\0\1" + b"".join(tlv(kind, value) for kind, value in tlvs)
    if tls is not None:
        block += tlv(SSL, bytes([tls]) + bytes(4))
    binary = v2(block, kind=0x11 if is_four else 0x21)
    assert parse(binary) == Header((str(source), port), len(binary), bool(tls))
    if is_four:
        checked = with_checksum(block)
        assert parse(checked) == Header((str(source), port), len(checked), bool(tls))
