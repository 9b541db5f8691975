"""What any recorded version says to other nodes is understood now, and what is said now is understood by it.

Each frame in `golden` was written by the code of its time, with what it means beside it. The types of that time are
built anew from what is written there, so that both directions are tried.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import pytest
from msgspec import inspect as mi

from base.errors import Code, ConfigError, from_wire
from base.peer import upgrade
from base.peer.wire import Failure
from status.core.records import Kind, packed
from tests.support.wire_golden import (
    GOLDEN,
    Codec,
    Recorded,
    codecs,
    decoded_frame,
    envelopes,
    methods,
    newest_shapes,
    record,
    recorded,
    shape_now,
    spelled,
)
from tests.support.wire_samples import agrees, meaning, samples
from tests.support.wire_shapes import Structs, expanded, faults, rebuilt, shape_of

HOW = "say `python -m tests.support.wire_golden NAME` and commit what it adds (docs/explanation/wire-compatibility.md)"
NOW = {(name, part): codec for _, name, part, codec in codecs()}
RECORDED = recorded()
each_recorded = pytest.mark.parametrize("old", RECORDED, ids=lambda old: f"{old.version}-{old.name}-{old.part}")


def present(old: Recorded) -> Codec:
    """What it is now. Who takes a method away does so a version after its last caller, with its recorded frames."""
    assert (old.name, old.part) in NOW, f"{old.name} is gone: nodes of {old.version} still call it"
    return NOW[old.name, old.part]


@each_recorded
def test_a_recorded_frame_means_what_it_meant(old: Recorded) -> None:
    """Every field says the same; only fields that are new since may be there besides."""
    codec = present(old)
    for data, said in old.frames:
        assert agrees(said, meaning(codec.decode(data))), said


@each_recorded
def test_what_is_sent_now_is_read_by_the_types_of_then(old: Recorded) -> None:
    """They read all fields that they had, and step over the others."""
    codec = present(old)
    then = rebuilt(old.shape, old.structs)
    for value in samples(codec.kind):
        understood = codec.decode(codec.encode(value, old.name), then)
        assert agrees(meaning(understood), meaning(value)), value


@each_recorded
def test_fields_are_only_appended_and_have_defaults(old: Recorded) -> None:
    """Order, types, bounds and choices stay: whatever the samples do not show is compared here."""
    shape, structs = shape_now(present(old))
    assert not faults(old.shape, old.structs, shape, structs, old.name)


def test_everything_is_recorded_as_it_is_now() -> None:
    """A method or a field that is not cannot be kept compatible by the next version."""
    newest = newest_shapes()
    missing = [key for key, codec in NOW.items() if newest.get(key) != expanded(*shape_now(codec))]
    assert not missing, HOW
    assert {name for name, part in NOW if part == "request"} == set(methods())


def test_the_types_of_then_can_be_told_from_others() -> None:
    """Rebuilt from its shape, a type has that very shape: what reads old frames here reads them as was then."""
    for old in RECORDED:
        structs: Structs = {}
        again = shape_of(mi.type_info(rebuilt(old.shape, old.structs)), structs)
        assert expanded(again, structs) == expanded(old.shape, old.structs), old.name


# ---------------------------------------------------------------- envelopes, errors, entries


DETAIL = {"owner": "status-2", "epoch": 7, "limit": None}
SHOWN = json.loads((GOLDEN / "0001-one-process/envelopes.json").read_text())


def test_envelopes_are_what_they_were() -> None:
    """Bytes and meaning: the frames of one protocol differ in nothing, in either direction."""
    assert SHOWN["protocol"] == upgrade.PROTOCOL, "another protocol has frames of its own, and these are over"
    frames = envelopes()
    for name, shown in SHOWN["frames"].items():
        assert frames[name].hex() == shown["hex"], name
        assert spelled(bytes.fromhex(shown["hex"])) == shown["means"], name


def test_errors_keep_their_numbers_and_fields() -> None:
    """What was a `not_owner` then is one now, with its owner and epoch."""
    labels = {code.label: code for code in Code}
    seen = 0
    for name, shown in SHOWN["frames"].items():
        if name.startswith("error "):
            [envelope] = decoded_frame(bytes.fromhex(shown["hex"]))
            assert isinstance(envelope, Failure)
            error = from_wire(envelope.code, envelope.message, envelope.detail)
            assert error.code is labels[name.removeprefix("error ")]
            assert error.detail == ({"errors": ["config_invalid"]} if isinstance(error, ConfigError) else DETAIL)
            seen += 1
    assert seen >= 30


def test_the_header_of_a_packed_entry_is_what_it_was() -> None:
    """Access nodes pack entries, status nodes keep and copy them, readers unpack them: maybe of three versions."""
    assert packed(0x010203040506, 0x0A0B0C0D0E0F, Kind.HIDDEN, b"\xaa").hex() == "0102030405060a0b0c0d0e0f05aa"
    assert [kind.value for kind in Kind] == [1, 2, 3, 4, 5]


# ---------------------------------------------------------------- the recorder, and that the tests above can fail


def test_recording_adds_what_is_new_and_leaves_the_rest(tmp_path: Path) -> None:
    """Once all is recorded there is nothing to add; without one method, that one is added, and no file is touched."""
    folder = tmp_path / "golden"
    shutil.copytree(GOLDEN, folder)
    record("now", folder)
    assert record("again", folder) is None
    for file in folder.glob("*/im.json"):
        content = json.loads(file.read_text())
        content["methods"].pop("im.heads", None)
        file.write_text(json.dumps(content))
    before = {file: file.read_bytes() for file in folder.rglob("*.json")}
    made = record("again", folder)
    assert made is not None
    assert [file.name for file in made.iterdir()] == ["im.json"]
    assert set(json.loads((made / "im.json").read_text())["methods"]) == {"im.heads"}
    assert {file: file.read_bytes() for file in before} == before
    assert record("once-more", folder) is None


class Inner(NamedTuple):
    left: int
    right: int = 0


class Old(msgspec.Struct, array_like=True):
    first: int
    second: str = ""
    kind: Literal["a", "b"] = "a"
    pair: Inner = Inner(1)
    limit: Annotated[int, msgspec.Meta(ge=1, le=10)] = 1
    choice: int | str | None = None


class Appended(Old, array_like=True):
    third: bytes = b""


class AppendedWithoutDefault(msgspec.Struct, array_like=True):
    first: int
    second: str
    kind: Literal["a", "b"]
    pair: Inner
    limit: Annotated[int, msgspec.Meta(ge=1, le=10)]
    choice: int | str | None
    third: bytes


def changed(**fields: Any) -> Any:
    """`Old` with other types of some fields, in the same order, or without those that are None."""
    info = mi.type_info(Old)
    assert isinstance(info, mi.StructType)
    defaults = {field.name: field.default for field in info.fields}
    kinds = Old.__annotations__ | {
        "first": int,
        "second": str,
        "kind": Literal["a", "b"],
        "pair": Inner,
        "limit": Annotated[int, msgspec.Meta(ge=1, le=10)],
        "choice": int | str | None,
    }
    wanted = [(name, fields.get(name, kinds[name])) for name in kinds if fields.get(name, "") is not None]
    made = [(name, kind) if name == "first" else (name, kind, defaults[name]) for name, kind in wanted]
    return msgspec.defstruct("Old", made, array_like=fields.get("array_like", True), tag=fields.get("tag"))


def shape(kind: Any) -> tuple[Any, Structs]:
    structs: Structs = {}
    return shape_of(mi.type_info(kind), structs), structs


class Longer(NamedTuple):
    left: int
    right: int = 0
    more: int = 0


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (AppendedWithoutDefault, "third: is new and has no default"),
        (changed(second=None), "fields were"),
        (changed(second=int), "second: was str, is int"),
        (changed(kind=Literal["a", "b", "c"]), "kind: was {'literal': "),
        (changed(kind=Literal["a"]), "kind: was {'literal': "),
        (changed(pair=Longer), "pair: a row cannot grow"),
        (changed(pair=tuple[int, int]), "pair: was"),
        (changed(limit=Annotated[int, msgspec.Meta(ge=2, le=10)]), "limit: ge was 1, is 2"),
        (changed(limit=int), "limit: ge was 1, is None"),
        (changed(choice=int | None), "choice: was one of"),
        (changed(choice=int | bytes | None), "choice: nothing stands for str"),
        (changed(array_like=False), "form was array, is map"),
        (changed(tag="o"), "tag was None, is o"),
        (list[int], "was"),
    ],
)
def test_a_change_that_others_would_not_understand_is_named(new: Any, said: str) -> None:
    """Each way to break the wire that the rules know."""
    assert any(said in line for line in faults(*shape(Old), *shape(new), "old"))


def test_what_the_rules_allow_is_no_fault() -> None:
    """The same type under another name, and one with a field more that has a default."""
    assert faults(*shape(Old), *shape(changed())) == []
    assert faults(*shape(Old), *shape(Appended)) == []


def test_fields_that_change_places_are_seen_by_what_they_say() -> None:
    """Two of one type: their shapes are alike but for the names, and the frame means something else."""

    class Before(msgspec.Struct, array_like=True):
        told: int
        refused: int

    class After(msgspec.Struct, array_like=True):
        refused: int
        told: int

    then, now = Codec(Before, "reply", is_framed=True), Codec(After, "reply", is_framed=True)
    [first, *_] = samples(Before)
    assert not agrees(meaning(first), meaning(now.decode(then.encode(first, "a.b"))))
    assert faults(*shape(Before), *shape(After))


def test_samples_show_every_choice() -> None:
    """Each alternative of a union and each value of a literal is in one of them, the defaults in the first."""
    made = samples(Old)
    assert made[0] == Old(made[0].first)
    assert {type(each.choice) for each in made} == {int, str, type(None)}
    assert {each.kind for each in made} == {"a", "b"}
