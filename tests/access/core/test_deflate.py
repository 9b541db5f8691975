"""The compression extension: the examples of RFC 7692, all combinations of parameters, and streams bent every way."""

from __future__ import annotations

import itertools
import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from access.core.deflate import (
    Deflate,
    DeflateTerms,
    Extension,
    Inflate,
    InflateFault,
    agree,
    negotiate,
    parse_extensions,
)

SERVER_FORGETS = "server_no_context_takeover"
CLIENT_FORGETS = "client_no_context_takeover"
SERVER_BITS = "server_max_window_bits"
CLIENT_BITS = "client_max_window_bits"


def parsed(header: str) -> tuple[Extension, ...]:
    extensions = parse_extensions(header)
    assert extensions is not None
    return extensions


# ---------------------------------------------------------------- the header


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", []),
        (" , ,", []),
        ("a", [("a", ())]),
        ("a, b", [("a", ()), ("b", ())]),
        (",a,\t,b ,", [("a", ()), ("b", ())]),
        ("a;b;c=1", [("a", (("b", None), ("c", "1")))]),
        ('a ; b = "1" ;\tc=2 , d', [("a", (("b", "1"), ("c", "2"))), ("d", ())]),
        ("a;b;b", [("a", (("b", None), ("b", None)))]),
        ("permessage-foo; use_y, permessage-foo", [("permessage-foo", (("use_y", None),)), ("permessage-foo", ())]),
    ],
)
def test_the_elements_of_the_header_are_found(header: str, expected: list[tuple[str, tuple[tuple[str, str | None]]]]):
    """The grammar of RFC 6455 (9.1), with the empty elements that every list of HTTP may have."""
    assert parse_extensions(header) == tuple(expected)


@pytest.mark.parametrize(
    "header", [";", "a;", "a;=1", "a;b=", "a b", 'a;b="', 'a;b=""', 'a;b="1 2"', "a=1", "é", "a;b=1=2"]
)
def test_a_malformed_header_has_no_elements_at_all(header: str):
    """The RFC wants the connection refused, so that it is not the same as an empty one."""
    assert parse_extensions(header) is None
    assert parse_extensions(f"b, {header}") is None


@given(header=st.text(alphabet='ab;=," \té', max_size=20))
def test_any_header_is_parsed_or_refused(header: str):
    """Never an exception; what is parsed means the same when written plainly."""
    extensions = parse_extensions(header)
    if extensions is not None:
        plain = ",".join(
            ";".join([name, *(key if value is None else f"{key}={value}" for key, value in parameters)])
            for name, parameters in extensions
        )
        assert parse_extensions(plain) == extensions


# ---------------------------------------------------------------- the server chooses


@pytest.mark.parametrize("server_bits", [None, *range(8, 16)])
@pytest.mark.parametrize("client_bits", [None, "", *range(8, 16)])
def test_every_legal_offer_is_answered_legally(server_bits: int | None, client_bits: int | str | None):
    """The answer keeps what was asked of the server, and says nothing about the client's window."""
    for forgets in itertools.product((False, True), repeat=2):
        parts = ["permessage-deflate"]
        parts += [name for name, is_asked in zip((SERVER_FORGETS, CLIENT_FORGETS), forgets, strict=True) if is_asked]
        parts += [] if server_bits is None else [f"{SERVER_BITS}={server_bits}"]
        parts += [] if client_bits is None else [f"{CLIENT_BITS}={client_bits}".removesuffix("=")]
        terms = negotiate(parsed("; ".join(parts)))
        keeping = negotiate(parsed("; ".join(parts)), keeps_context=True)
        if server_bits == 8:
            assert terms is keeping is None  # zlib cannot write it
            continue
        window = server_bits or 15
        asks = server_bits is not None
        assert terms == DeflateTerms(server_max_window_bits=window, names_server_window=asks)
        assert keeping == DeflateTerms(
            server_no_context_takeover=forgets[0],
            client_no_context_takeover=forgets[1],
            server_max_window_bits=window,
            names_server_window=asks,
        )
        assert terms.is_shared is (window == 15)
        assert keeping.is_shared is (window == 15 and forgets[0])
        for answer in (terms, keeping):
            [element] = parsed(answer.encode())
            assert (SERVER_BITS in dict(element.parameters)) is asks  # 7.1.2.1: whoever asks for one is told one
            assert agree(DeflateTerms(*forgets), element) is not None


@pytest.mark.parametrize(
    "parameter",
    [
        f"{SERVER_FORGETS}=1",
        f"{CLIENT_FORGETS}=true",
        f"{SERVER_FORGETS}; {SERVER_FORGETS}",
        SERVER_BITS,
        f"{SERVER_BITS}=7",
        f"{SERVER_BITS}=16",
        f"{SERVER_BITS}=010",
        f"{SERVER_BITS}=1.5",
        f"{SERVER_BITS}=10; {SERVER_BITS}=11",
        f"{CLIENT_BITS}=0",
        f"{CLIENT_BITS}=-9",
        "unknown",
        "unknown=9",
    ],
)
def test_an_offer_that_cannot_be_kept_is_passed_over(parameter: str):
    """Alone there is no compression; before another offer, that one is taken."""
    bad = f"permessage-deflate; {parameter}"
    assert negotiate(parsed(bad)) is None
    assert negotiate(parsed(f"{bad}, x-other, permessage-deflate")) == DeflateTerms()
    assert negotiate(parsed(f"permessage-deflate; {SERVER_BITS}=9, {bad}")) == DeflateTerms(
        server_max_window_bits=9, names_server_window=True
    )


def test_without_an_offer_there_is_no_compression():
    """None at all, or of another extension only."""
    assert negotiate(()) is None
    assert negotiate(parsed("permessage-bzip2, x-webkit-deflate-frame")) is None


def test_the_terms_are_written_as_the_rfc_shows_them():
    """All parameters, and none."""
    assert DeflateTerms().encode() == f"permessage-deflate; {SERVER_FORGETS}; {CLIENT_FORGETS}"
    assert DeflateTerms(False, False).encode() == "permessage-deflate"
    assert DeflateTerms(False, False, 10, 11).encode() == f"permessage-deflate; {SERVER_BITS}=10; {CLIENT_BITS}=11"


# ---------------------------------------------------------------- the client checks


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (f"permessage-deflate; {SERVER_FORGETS}; {CLIENT_FORGETS}", DeflateTerms()),
        (f"permessage-deflate; {SERVER_FORGETS}", DeflateTerms()),
        (f"permessage-deflate; {SERVER_FORGETS}; {SERVER_BITS}=8", DeflateTerms(server_max_window_bits=8)),
        ("permessage-deflate", None),
        (f"permessage-deflate; {SERVER_FORGETS}; {CLIENT_BITS}=9", None),
        (f"permessage-deflate; {SERVER_FORGETS}; {CLIENT_BITS}", None),
        (f"permessage-deflate; {SERVER_FORGETS}; {SERVER_BITS}", None),
        (f"permessage-deflate; {SERVER_FORGETS}; unknown", None),
        ("x-other", None),
    ],
)
def test_a_client_takes_only_an_answer_to_its_offer(answer: str, expected: DeflateTerms | None):
    """It offered that nobody remembers, and did not say that its window can be set."""
    [element] = parsed(answer)
    assert agree(DeflateTerms(), element) == expected


def test_a_client_that_limits_the_server_is_not_overruled():
    """The server may narrow its window further, not widen it."""
    [narrower] = parsed(f"permessage-deflate; {SERVER_FORGETS}; {SERVER_BITS}=9")
    [wider] = parsed(f"permessage-deflate; {SERVER_FORGETS}; {SERVER_BITS}=11")
    offer = DeflateTerms(server_max_window_bits=10)
    assert agree(offer, narrower) == DeflateTerms(server_max_window_bits=9)
    assert agree(offer, wider) is None


# ---------------------------------------------------------------- messages

TERMS = [
    DeflateTerms(*forgets, *bits)
    for forgets in itertools.product((False, True), repeat=2)
    for bits in itertools.product((9, 12, 15), repeat=2)
]


@pytest.mark.parametrize("terms", TERMS, ids=lambda terms: terms.encode())
@pytest.mark.parametrize("is_server", [True, False])
def test_what_one_side_deflates_the_other_inflates(terms: DeflateTerms, *, is_server: bool):
    """Short, empty, repeated, long and random messages, in one stream."""
    deflate = terms.deflate(is_server=is_server)
    inflate = terms.inflate(is_server=not is_server)
    noise = random.Random(1).randbytes(70_000)
    for message in (b"Hello", b"Hello", b"", noise, noise, b"abc" * 20_000, b"", b"x" * 511, b"x" * 512):
        assert inflate.message(deflate.message(message), len(message)) == message


@pytest.mark.parametrize("is_server", [True, False])
def test_only_a_side_that_may_remember_does(*, is_server: bool):
    """The second time, a message is shorter: then and only then. Each side goes by its own half of the terms."""
    for server_forgets, client_forgets in itertools.product((False, True), repeat=2):
        deflate = DeflateTerms(server_forgets, client_forgets).deflate(is_server=is_server)
        once, again = (deflate.message(b"the quick brown fox jumps over the lazy dog") for _ in range(2))
        forgets = server_forgets if is_server else client_forgets
        assert (again == once) if forgets else (len(again) < len(once))


def test_a_window_is_kept_to():
    """What repeats itself farther away than the window reaches is written again."""
    noise = random.Random(2).randbytes(2000)
    narrow, wide = (len(Deflate(bits).message(noise * 2)) for bits in (9, 15))
    assert wide < 2100
    assert narrow > 3900
    assert Inflate(9).message(Deflate(9).message(noise * 2), 4000) == noise * 2


EXAMPLES = {
    "one block": "f248cdc9c90700",
    "without compression": "000500faff48656c6c6f00",
    "a last block": "f348cdc9c9070000",
    "two blocks": "f248050000 00ffffcac9c90700".replace(" ", ""),
    "empty": "00",
}


@pytest.mark.parametrize("keeps_context", [False, True])
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_payloads_of_the_rfc_are_inflated(name: str, *, keeps_context: bool):
    """Section 7.2.3; afterwards the stream goes on."""
    inflate = Inflate(keeps_context=keeps_context)
    expected = b"" if name == "empty" else b"Hello"
    for _ in range(2):
        assert inflate.message(bytes.fromhex(EXAMPLES[name]), 5) == expected
    assert inflate.message(bytes.fromhex(EXAMPLES["one block"]), 5) == b"Hello"


def test_a_message_refers_to_an_earlier_one_if_the_context_is_kept():
    """Section 7.2.3.2: `Hello` again, as a reference."""
    first, second = bytes.fromhex("f248cdc9c90700"), bytes.fromhex("f200110000")
    keeping, forgetting = Inflate(keeps_context=True), Inflate()
    assert keeping.message(first, 5) == forgetting.message(first, 5) == b"Hello"
    assert keeping.message(second, 5) == b"Hello"
    assert forgetting.message(second, 5) is InflateFault.CORRUPT


# ---------------------------------------------------------------- what can be wrong


@pytest.mark.parametrize("keeps_context", [False, True])
@pytest.mark.parametrize("size", [0, 1, 100, 40_000])
def test_a_message_is_as_large_as_allowed_and_no_larger(size: int, *, keeps_context: bool):
    """To the byte."""
    payload = Deflate().message(b"x" * size)
    assert Inflate(keeps_context=keeps_context).message(payload, size) == b"x" * size
    over = Deflate().message(b"x" * (size + 1))
    assert Inflate(keeps_context=keeps_context).message(over, size) is InflateFault.TOO_LARGE


def test_a_bomb_is_not_inflated_beyond_the_limit():
    """20 MB in 20 kB take no more memory than a message of 1,000 bytes does, and the window."""
    bomb = Deflate().message(bytes(20_000_000))
    assert len(bomb) < 30_000
    tracemalloc.start()
    try:
        assert Inflate().message(bomb, 1000) is InflateFault.TOO_LARGE
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000


@pytest.mark.parametrize("keeps_context", [False, True])
@pytest.mark.parametrize(
    "payload", ["ff", "07", "f348cdc9c907", "f348cdc9c907000000", "01", "f348cdc9c90700f248cdc9c90700"]
)
def test_what_is_no_deflate_stream_is_corrupt(payload: str, *, keeps_context: bool):
    """A bad block, and last blocks after which something else comes than the RFC says."""
    assert Inflate(keeps_context=keeps_context).message(bytes.fromhex(payload), 100) is InflateFault.CORRUPT


@pytest.mark.parametrize("message", [b"Hello, Hello, Hello", b"".join(b"%d, " % (n * n) for n in range(150))])
def test_a_message_whose_compressed_block_is_cut_anywhere_is_corrupt(message: bytes):
    """A block with the codes that are always there, and one that brings its own."""
    payload = Deflate().message(message)
    assert Inflate().message(payload, 1000) == message
    for end in range(len(payload)):
        assert Inflate().message(payload[:end], 1000) is InflateFault.CORRUPT, end


@given(payload=st.binary(max_size=60), keeps_context=st.booleans())
def test_any_bytes_are_a_message_or_a_fault(payload: bytes, *, keeps_context: bool):
    """Never an exception, never more than allowed."""
    inflate = Inflate(keeps_context=keeps_context)
    for _ in range(2):
        message = inflate.message(payload, 50)
        assert isinstance(message, InflateFault) or len(message) <= 50
