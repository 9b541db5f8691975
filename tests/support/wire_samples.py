"""Values of wire types with something in every field, and what they say, by name.

Samples are made of the types alone, always the same ones, so that a method that nobody thought of has its own too. No
two numbers and no two texts of a sample are equal: what lands in another field is noticed.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, get_origin

import msgspec
from msgspec import inspect as mi

from tests.support.wire_shapes import alternatives

__all__ = ["agrees", "meaning", "samples"]

_SAMPLES_MAX = 8


def samples(kind: Any) -> list[Any]:
    """Return values of the type: one with all defaults, then as many as show each alternative of each choice."""
    info = mi.type_info(kind)
    made = [_Maker(None).make(info)]
    turn, wanted = 0, 1
    while turn < min(wanted, _SAMPLES_MAX):
        maker = _Maker(turn)
        value = maker.make(info)
        if value not in made:
            made.append(value)
        wanted = max(wanted, maker.widest)
        turn += 1
    return made


class _Maker:
    """Makes the sample in which each choice is the one whose turn it is; turn None is for defaults."""

    def __init__(self, turn: int | None) -> None:
        self.widest = 1
        self._turn = turn
        self._number = 0

    def make(self, info: mi.Type) -> Any:
        if isinstance(info, mi.Metadata):
            return self.make(info.type)
        if isinstance(info, mi.UnionType):
            # Whatever is more than nothing comes first.
            choices = sorted(alternatives(info), key=lambda each: isinstance(each, mi.NoneType))
            return self.make(self._choose(choices))
        if isinstance(info, mi.LiteralType):
            return self._choose(info.values)
        if isinstance(info, mi.EnumType):
            return self._choose(tuple(info.cls))
        if isinstance(info, mi.StructType | mi.DataclassType | mi.NamedTupleType):
            wanted = [field for field in info.fields if field.required or self._turn is not None]
            kind: Any = get_origin(info.cls) or info.cls
            return kind(**{field.name: self.make(field.type) for field in wanted})
        return self._several(info)

    def _several(self, info: mi.Type) -> Any:
        if isinstance(info, mi.TupleType):
            return tuple(self.make(each) for each in info.item_types)
        if isinstance(info, mi.DictType):
            return {self.make(info.key_type): self.make(info.value_type)}
        if isinstance(info, mi.ListType):
            return [self.make(info.item_type)]
        if isinstance(info, mi.VarTupleType):
            return (self.make(info.item_type),)
        if isinstance(info, mi.SetType | mi.FrozenSetType):
            return frozenset({self.make(info.item_type)})
        return self._scalar(info)

    def _choose(self, choices: Any) -> Any:
        self.widest = max(self.widest, len(choices))
        return choices[(self._turn or 0) % len(choices)]

    def _scalar(self, info: mi.Type) -> Any:
        self._number += 1
        number = self._number
        if isinstance(info, mi.BoolType):
            return number % 2 == 1
        if isinstance(info, mi.IntType):
            # The whole range of lengths on the wire; what is bounded stays within.
            low = max(info.ge or 0, -1 if info.gt is None else info.gt + 1)
            number = low + number if number % 3 else low + (number << 33)
            return number if info.le is None or number <= info.le else low + self._number
        if isinstance(info, mi.FloatType):
            return number + 0.5
        if isinstance(info, mi.BytesType):
            return number.to_bytes(2, "little")
        if isinstance(info, mi.StrType):
            return str(number) if info.pattern else f"text-{number}"
        if isinstance(info, mi.RawType):
            return msgspec.Raw(msgspec.msgpack.encode(number))
        return None if isinstance(info, mi.NoneType) else {"number": number}


def meaning(value: Any) -> Any:
    """Return what a decoded value says as JSON has it: fields by name, bytes in hexadecimal digits."""
    if isinstance(value, msgspec.Struct):
        kind = type(value).__struct_config__.tag
        found = {} if kind is None else {"": kind}
        for name, sent_as in zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True):
            if (field := getattr(value, name)) is not msgspec.UNSET:
                found[sent_as] = meaning(field)
        return found
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: meaning(getattr(value, name)) for name in value._fields}
    if hasattr(value, "__dataclass_fields__"):
        return {name: meaning(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, bytes | memoryview | bytearray):
        return {"hex": bytes(value).hex()}
    if isinstance(value, dict):
        return [[meaning(key), meaning(each)] for key, each in value.items()]
    if isinstance(value, list | tuple):
        return [meaning(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(meaning(each) for each in value)
    return value.value if isinstance(value, Enum) else value


def agrees(said: Any, understood: Any) -> bool:
    """Return whether a meaning is another one, field by field; what is understood may have fields more."""
    if isinstance(said, dict) and isinstance(understood, dict):
        return all(name in understood and agrees(value, understood[name]) for name, value in said.items())
    if isinstance(said, list) and isinstance(understood, list):
        return len(said) == len(understood) and all(map(agrees, said, understood))
    return type(said) is type(understood) and bool(said == understood)
