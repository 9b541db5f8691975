"""Lists and rings of keys: what a file may hold, and that a bad one changes nothing."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from base.errors import ConfigError
from base.keys import KeyList, KeyRing

A, B = "a" * 16, "b" * 43
PUBLIC = "ed25519:" + base64.urlsafe_b64encode(bytes(31) + b"\x01").decode().rstrip("=")
PRIVATE = "ed25519-private:" + base64.urlsafe_b64encode(bytes(32)).decode().rstrip("=")


def keys(tmp_path: Path, text: str) -> KeyList:
    file = tmp_path / "keys"
    file.write_text(text)
    return KeyList(str(file), setting="security.user_keys_file", verifies=True)


def ring(tmp_path: Path, text: str) -> KeyRing:
    file = tmp_path / "ring"
    file.write_text(text)
    return KeyRing(str(file), setting="security.ticket_keys_file")


def test_the_first_key_is_used_and_all_are_accepted(tmp_path: Path) -> None:
    """Of a file as of a fixed list; the order is the file's."""
    made = keys(tmp_path, f"{B}\n{A} \n{B}\n{PUBLIC}\n")
    made.load()
    assert (made.first, made.all) == (B, (B, A, PUBLIC))
    assert KeyList.of("short", "keys").all == ("short", "keys")
    assert (len(made.files), KeyList.of("x").files, KeyRing.of({"k": "x"}).files) == (1, (), ())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no key"),
        ("# none\n", "has no key"),
        (f"{A}\ntoo-short\n", "line 2: the key has under 16"),
        (f"k1 {A}\n", "line 1: write one key a line"),
        (f"{A}é\n", "line 1: the key has characters"),
        ("ed25519:AAAAAAAAAAAAAAAA\n", "line 1: a key `ed25519:` needs 32 bytes"),
    ],
)
def test_a_bad_list_is_refused_and_the_former_one_stays(tmp_path: Path, text: str, says: str) -> None:
    """The fault says where, and quotes no key."""
    made = keys(tmp_path, f"{B}\n")
    made.load()
    keys(tmp_path, text)
    with pytest.raises(ConfigError, match=says) as caught:
        made.load()
    assert A not in str(caught.value)
    assert made.all == (B,)


def test_a_ring_signs_with_its_first_key_that_can(tmp_path: Path) -> None:
    """And tells its users of each change, the first of which is that they came."""
    made = ring(tmp_path, f"p {PUBLIC}\ns {PRIVATE}\nk1 {A}\n")
    made.load()
    made.require_signing()
    assert made.signing == ("s", PRIVATE)
    seen: list[list[str]] = []
    made.on_change(lambda: seen.append(list(made.keys)))
    ring(tmp_path, f"k2 {B}\nk1 {A}\n")
    made.load()
    assert made.signing == ("k2", B)
    assert seen == [["p", "s", "k1"], ["k2", "k1"]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no key"),
        (f"k1 {A}\n{B}\n", "line 2: write it as KID KEY"),
        (f"k1 {A}\nk1 {B}\n", "line 2: the id k1 is there twice"),
        ("k1 ed25519:AAAAAAAAAAAAAAAA\n", "line 1: a key `ed25519:` needs"),
        (f"p {PUBLIC}\n", "must have a key that signs"),
    ],
)
def test_a_bad_ring_is_refused_and_the_former_one_stays(tmp_path: Path, text: str, says: str) -> None:
    """Nobody is told of it, either."""
    made = ring(tmp_path, f"k1 {B}\n")
    made.load()
    made.require_signing()
    told: list[str] = []
    made.on_change(lambda: told.append("changed"))
    ring(tmp_path, text)
    with pytest.raises(ConfigError, match=says) as caught:
        made.load()
    assert A not in str(caught.value)
    assert (dict(made.keys), told) == ({"k1": B}, ["changed"])


def test_several_faults_are_told_at_once(tmp_path: Path) -> None:
    """Whoever mends a file mends it once."""
    with pytest.raises(ConfigError) as caught:
        ring(tmp_path, "k1\nk1 short\n").load()
    assert len(caught.value.errors) == 2


def test_a_ring_of_public_keys_cannot_be_required_to_sign() -> None:
    """A scheduler says so at its start."""
    public = KeyRing.of({"p": PUBLIC})
    assert public.signing is None
    with pytest.raises(ConfigError, match="must have a key that signs"):
        public.require_signing()


@pytest.mark.parametrize("kind", [KeyList, KeyRing])
def test_a_file_must_be_named(kind: type[KeyList | KeyRing]) -> None:
    """The fault names the setting."""
    with pytest.raises(ConfigError, match=r"security\.x must name a file"):
        kind("", setting="security.x").load()
