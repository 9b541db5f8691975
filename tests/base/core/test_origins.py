"""Origins: a table of who is allowed by what, then random hosts against the words of the rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.core.origins import Origins, origin_problems


@pytest.mark.parametrize("patterns", [[], ["https://app.example.com"], ["*"], ["null"]])
def test_a_program_that_is_no_browser_is_allowed(patterns: list[str]):
    """It sends no origin; and whom it pretends to be is no secret."""
    assert Origins(patterns).allows(None)


def test_an_empty_list_lets_in_no_browser():
    """Nothing is allowed that nobody wrote down."""
    assert not Origins([]).allows("https://app.example.com")
    assert not Origins([]).allows("null")


ALLOWED = [
    ("https://app.example.com", "https://app.example.com"),
    ("https://app.example.com", "https://app.example.com:443"),
    ("https://app.example.com:443", "https://app.example.com"),
    ("http://app.example.com", "http://app.example.com:80"),
    ("HTTPS://App.Example.COM", "https://app.example.com"),
    ("https://app.example.com", "HTTPS://APP.example.com"),
    ("https://app.example.com:8443", "https://app.example.com:8443"),
    ("http://localhost:3000", "http://localhost:3000"),
    ("http://10.0.0.1", "http://10.0.0.1"),
    ("https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443"),
    ("https://[2001:0DB8:0:0::1]", "https://[2001:db8::1]"),
    ("capacitor://localhost", "capacitor://localhost"),
    ("chrome-extension://abcdefgh", "chrome-extension://abcdefgh"),
    ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
    ("https://*.example.com", "https://app.example.com"),
    ("https://*.example.com", "https://a.b.c.example.com:443"),
    ("https://*.example.com", "https://APP.EXAMPLE.com"),
    ("https://*.example.com:8443", "https://app.example.com:8443"),
    ("*", "https://anything.example"),
    ("*", "http://localhost:1"),
    ("null", "null"),
]


@pytest.mark.parametrize(("pattern", "origin"), ALLOWED)
def test_an_origin_that_the_pattern_means_is_allowed(pattern: str, origin: str):
    """Alone and among others."""
    assert Origins([pattern]).allows(origin)
    assert Origins(["https://other.example", pattern, "https://*.other.example"]).allows(origin)


REFUSED = [
    ("https://app.example.com", "http://app.example.com"),
    ("https://app.example.com", "https://app.example.com:8443"),
    ("https://app.example.com", "https://app.example.com:80"),
    ("https://app.example.com:8443", "https://app.example.com"),
    ("https://app.example.com", "https://example.com"),
    ("https://app.example.com", "https://app.example.com.evil.example"),
    ("https://app.example.com", "https://evil-app.example.com"),
    ("https://app.example.com", "https://appxexample.com"),
    ("https://app.example.com", "https://app.example.com."),
    ("capacitor://localhost", "capacitor://localhost:80"),
    ("https://*.example.com", "https://example.com"),
    ("https://*.example.com", "https://evilexample.com"),
    ("https://*.example.com", "https://app.example.com.evil.example"),
    ("https://*.example.com", "http://app.example.com"),
    ("https://*.example.com", "https://app.example.com:8443"),
    ("https://*.example.com", "https://*.example.com"),
    ("*", "null"),
    ("*", ""),
    ("*", "https://"),
    ("*", "app.example.com"),
    ("*", "https://app.example.com/"),
    ("*", "https://app.example.com/path"),
    ("*", "https://user@app.example.com"),
    ("*", "https://app.example.com:65536"),
    ("*", "https://app.example.com:"),
    ("*", "https://app.example.com:0443"),
    ("*", "https://app.example.com:\u0664"),
    ("*", "https://b\u00fccher.example"),
    ("*", "https://[::1"),
    ("*", "https://[1:2]"),
    ("*", "https://a.example https://b.example"),
    ("*", "https://a.example, https://b.example"),
    ("*", "https://app.example.com\n"),
    ("*", " https://app.example.com"),
    ("null", "https://app.example.com"),
    ("null", "NULL"),
]


@pytest.mark.parametrize(("pattern", "origin"), REFUSED)
def test_every_other_origin_is_refused(pattern: str, origin: str):
    """What is no single origin in its text form is refused even where everything is allowed."""
    assert not Origins([pattern]).allows(origin)


@pytest.mark.parametrize(
    ("pattern", "advice"),
    [
        ("", "is no origin: write scheme://host"),
        ("app.example.com", "is no origin"),
        ("https://", "is no origin"),
        ("https://*.", "is no origin"),
        ("https://user@app.example.com", "is no origin"),
        ("https://app.example.com:99999", "is no origin"),
        ("https://app.example.com:https", "is no origin"),
        ("https://[1:2]", "is no origin"),
        ("NULL", "is no origin"),
        ("wss://app.example.com", "an origin is that of the page"),
        ("WS://app.example.com", "an origin is that of the page"),
        ("https://app.example.com/", "an origin has no path"),
        ("https://app.example.com/chat", "an origin has no path"),
        ("https://b\u00fccher.example", "ASCII form"),
        ("*.example.com", "a wildcard stands for the first labels"),
        ("https://*", "a wildcard stands for the first labels"),
        ("https://app.*.com", "a wildcard stands for the first labels"),
        ("https://*.*.com", "a wildcard stands for the first labels"),
        ("https://app*.example.com", "a wildcard stands for the first labels"),
        ("https://app.example.com:*", "a wildcard stands for the first labels"),
        ("*://app.example.com", "a wildcard stands for the first labels"),
    ],
)
def test_a_bad_pattern_is_named_and_corrected(pattern: str, advice: str):
    """The text is what an operator reads, good patterns beside it or not."""
    with pytest.raises(ValueError) as failure:
        Origins(["https://app.example.com", pattern, "*"])
    assert str(failure.value).startswith(repr(pattern))
    assert advice in str(failure.value)


LABEL = st.text("ab", min_size=1, max_size=2)
HOST = st.lists(LABEL, min_size=1, max_size=4)
PORT = st.sampled_from(["", ":80", ":443", ":8443"])
SCHEME = st.sampled_from(["http", "https"])


TRIPLE = st.tuples(SCHEME, HOST, PORT)


@given(meant=TRIPLE, sent=TRIPLE, below=st.booleans())
def test_scheme_host_and_port_must_all_be_meant(
    meant: tuple[str, list[str], str], sent: tuple[str, list[str], str], *, below: bool
):
    """The twin compares lists of labels, and ports as they are written out."""
    (scheme, host, port), (asked_scheme, asked, asked_port) = meant, sent
    pattern = f"{scheme}://{'*.' if below else ''}{'.'.join(host)}{port}"
    written_out = {"http": ":80", "https": ":443"}
    is_meant = (
        scheme == asked_scheme
        and (port or written_out[scheme]) == (asked_port or written_out[asked_scheme])
        and (asked[-len(host) :] == host and len(asked) > len(host) if below else asked == host)
    )
    assert Origins([pattern]).allows(f"{asked_scheme}://{'.'.join(asked)}{asked_port}") is is_meant


@given(st.text(max_size=40))
def test_any_text_has_an_answer(text: str):
    """A header is whatever the client sends."""
    assert Origins(["https://*.example.com", "*"]).allows(text) in {True, False}
    assert not Origins(["https://*.example.com"]).allows(text)


def test_the_problems_of_a_setting_name_each_bad_pattern():
    """All at once, and none for patterns that are good."""
    assert list(origin_problems("origins", ["https://a.example", "*"])) == []
    told = list(origin_problems("origins", ["a.example", "*", "https://a.example/path"]))
    assert len(told) == 2
    assert all(line.startswith("origins: ") for line in told)
