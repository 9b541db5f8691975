"""How the registry's terms are written in Consul: keys, indexes, what others find, and the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.config import Section, load
from base.core.registry import Entry, ServiceInstance
from base.errors import ConfigError
from base.registry.config import RegistryConfig
from base.registry.consul.codec import (
    Keys,
    Name,
    ViewIndex,
    decode_instance,
    decode_name,
    encode,
    entry_of,
    meta_of,
    told_index,
)

FILES = ("consul_token_file", "consul_ca_file", "consul_certificate", "consul_key")


class Root(Section, frozen=True, kw_only=True):
    registry: RegistryConfig = RegistryConfig()


def faults(*flags: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(Root, env={}, flags=[f"registry.{flag}" for flag in flags])
    return caught.value.errors


def test_keys_stand_below_the_prefix_and_come_back_as_they_were() -> None:
    """The port's keys are kept as they are; registrations stand beside them, out of sight."""
    keys = Keys("roadstead")
    assert keys.full("status/table") == "roadstead/status/table"
    assert keys.short("roadstead/status/table") == "status/table"
    assert keys.consul_name("access") == "roadstead-access"
    for full, is_ours in (
        ("roadstead/status/table", True),
        ("roadstead/alive", True),
        (keys.name("access-1"), False),
        (keys.instance("access", "access-1"), False),
        ("other/status/table", False),
    ):
        assert keys.is_ours(full) is is_ours
    assert keys.instance("access", "a").startswith(keys.instances("access"))
    assert not keys.instance("access-2", "a").startswith(keys.instances("access"))


@pytest.mark.parametrize("key", ["live/names/a", "a//b", "a/../b", "./a", "/a", "a/.."])
def test_keys_that_consul_would_take_for_others_are_our_bug(key: str) -> None:
    """Paths that an HTTP server cleans, and the place of registrations."""
    with pytest.raises(AssertionError):
        Keys("roadstead").full(key)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2)), min_size=1, max_size=12))
def test_a_reader_never_misses_a_view_nor_gets_one_twice(seen: list[tuple[int, int]]) -> None:
    """Of the indexes that Consul tells, with outages between some, a reader is told a new one where it must be.

    Within one life that is whenever Consul's differs; over an outage always, and then one below what the reader knows.
    """
    lives = [object() for _ in range(3)]
    after: int = -1
    before: tuple[int, int] | None = None
    for index, life in seen:
        told = told_index(index, after, lives[life])
        assert told.seen == index
        if before is not None and before[1] != life:
            assert told < after
        elif before is not None:
            assert (told == after) == (before[0] == index)
        after, before = told, (index, life)


def test_a_plain_number_is_taken_at_its_word() -> None:
    """Who begins anew, or kept only a number, is told what there is."""
    life = object()
    told = told_index(7, 9, life)
    assert (told, told.seen, told.life) == (7, 7, life)
    assert isinstance(told, ViewIndex)


def test_an_entry_may_be_empty_and_unlocked() -> None:
    """Consul tells an empty value as none."""
    item = {"Value": None, "ModifyIndex": 5, "Flags": 1}
    assert entry_of(item, "k") == Entry("k", b"", 5, None)
    assert entry_of({**item, "Value": b"x", "Session": "s"}, "k") == Entry("k", b"x", 5, "s")


def test_instances_come_back_with_their_notes_and_rubbish_as_nothing() -> None:
    """What somebody else wrote under our keys is none of ours."""
    node = ServiceInstance(id="a", service="s", url="http://a", incarnation=2, meta={"k": "v"}, note=bytes(range(256)))
    assert decode_instance(encode(node)) == node
    assert decode_name(encode(Name("s", 2, "check"))) == Name("s", 2, "check")
    for rubbish in (None, b"", b"{", b"[]", b'{"service": 1}', b"\xff"):
        assert decode_instance(rubbish) is None
        assert decode_name(rubbish) is None


def test_others_find_the_address_and_what_metadata_fits() -> None:
    """Consul bounds names and values of metadata; ours are in the instance, as long as they are."""
    node = ServiceInstance(
        id="a", service="s", url="https://a.example", incarnation=2, meta={"zone": "z", "a b": "x", "long": "x" * 513}
    )
    assert meta_of(node) == ("a.example", 443, {"zone": "z", "url": "https://a.example", "incarnation": "2"})
    assert meta_of(ServiceInstance(id="a", service="s", url="http://[::1]:7000", incarnation=1))[:2] == ("::1", 7000)


def test_the_configuration_names_what_does_not_fit_together(tmp_path: Path) -> None:
    """Each fault by itself, and several at once; a configuration without any is taken."""
    assert load(Root, env={}).registry.backend == "consul"
    load(Root, env={}, flags=["registry.backend=peer", "registry.peer_url=http://10.0.0.1:7600"])
    load(Root, env={}, flags=["registry.consul_url=https://consul.example/"])
    for flag, said in (
        ("backend=peer", "peer_url"),
        ("consul_url=ftp://127.0.0.1", "consul_url"),
        ("consul_url=http://127.0.0.1:8500/v1", "consul_url"),
        ("consul_url=http://127.0.0.1:x", "consul_url"),
        ("consul_url=http://user@127.0.0.1", "consul_url"),
        ("prefix=A/B", "prefix"),
        *((f"{name}={tmp_path / 'missing'}", name) for name in FILES),
    ):
        assert any(said in fault for fault in faults(flag)), flag
    key = tmp_path / "key"
    key.write_text("")
    assert len(faults(f"consul_key={key}", f"consul_ca_file={key}")) == 2
