"""The shape of a wire type as data: to write down, to compare with a later one, and to build the type anew from.

A shape is JSON:

    "int", {"int": {"ge": 1}}      a scalar, without and with what it is bounded by
    {"list": S}                    a list, set or tuple of any length
    {"row": [S, ...]}              a tuple of that length
    {"dict": [S, S]}               a mapping
    {"any": [S, ...]}              one of several
    {"literal": [value, ...]}      one of these values
    {"struct": NAME}               what `structs` has under the name:
                                   {"form", "tag", "fields": [[name, S, is_required], ...]}

The form of a struct says how it travels: "array" (fields by position, later ones ignored), "map" (by name, others
ignored) or "row" (by position, no more than these). A type that was built anew from a shape reads as a node of that
time does: what it does not read, such a node does not read.
"""

from __future__ import annotations

from collections import namedtuple
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from msgspec import inspect as mi

__all__ = ["Shape", "Structs", "alternatives", "expanded", "faults", "rebuilt", "shape_of"]

Shape = Any
Structs = dict[str, dict[str, Any]]

_SCALARS: dict[type[mi.Type], tuple[str, type]] = {
    mi.AnyType: ("anything", object),
    mi.NoneType: ("none", type(None)),
    mi.BoolType: ("bool", bool),
    mi.IntType: ("int", int),
    mi.FloatType: ("float", float),
    mi.StrType: ("str", str),
    mi.BytesType: ("bytes", bytes),
    mi.RawType: ("raw", msgspec.Raw),
}
_PYTHON: dict[str, Any] = dict(_SCALARS.values()) | {"anything": Any}
_LOWER, _UPPER, _SAME = ("ge", "gt", "min_length"), ("le", "lt", "max_length"), ("pattern", "multiple_of")
_LISTS = (mi.ListType, mi.VarTupleType, mi.SetType, mi.FrozenSetType)
_STRUCTS = (mi.StructType, mi.DataclassType, mi.NamedTupleType)


def _bounds(info: mi.Type) -> dict[str, Any]:
    names = (*_LOWER, *_UPPER, *_SAME)
    return {name: value for name in names if (value := getattr(info, name, None)) is not None}


def alternatives(info: mi.Type) -> tuple[mi.Type, ...]:
    """Return the types of a union; of anything else, itself."""
    return info.types if isinstance(info, mi.UnionType) else (info,)


# ---------------------------------------------------------------- writing down


def shape_of(info: mi.Type, structs: Structs) -> Shape:
    """Return the shape of a type as `msgspec.inspect` describes it; what it is made of is added to `structs`."""
    if isinstance(info, mi.UnionType):
        return {"any": [shape_of(each, structs) for each in info.types]}
    if isinstance(info, mi.LiteralType):
        return {"literal": sorted(info.values)}
    if isinstance(info, mi.EnumType):
        return {"literal": sorted(member.value for member in info.cls)}
    if isinstance(info, mi.TupleType):
        return {"row": [shape_of(each, structs) for each in info.item_types]}
    if isinstance(info, mi.DictType):
        return {"dict": [shape_of(info.key_type, structs), shape_of(info.value_type, structs)]}
    if isinstance(info, _STRUCTS):
        return {"struct": _struct(info, structs)}
    if isinstance(info, _LISTS):
        shape: Shape = {"list": shape_of(info.item_type, structs)}
        return shape | bounds if (bounds := _bounds(info)) else shape
    name, _ = _SCALARS[type(info)]
    bounds = _bounds(info)
    return {name: bounds} if bounds else name


def _struct(info: Any, structs: Structs) -> str:
    name = f"{info.cls.__module__}.{getattr(info.cls, '__qualname__', None) or info.cls.__origin__.__qualname__}"
    if name not in structs:
        shape = structs[name] = {"form": _form(info), "tag": getattr(info, "tag", None), "fields": []}
        for field in info.fields:
            shape["fields"].append([field.encode_name, shape_of(field.type, structs), field.required])
    return name


def _form(info: Any) -> str:
    if isinstance(info, mi.NamedTupleType):
        return "row"
    if isinstance(info, mi.DataclassType):
        return "map"
    assert not info.forbid_unknown_fields, f"{info.cls} would refuse what a newer node appends"
    return "array" if info.array_like else "map"


def expanded(shape: Shape, structs: Structs) -> Shape:
    """Return the shape with each struct in place of its name: equal exactly for types that travel alike."""
    if isinstance(shape, list):
        return [expanded(each, structs) for each in shape]
    if not isinstance(shape, dict):
        return shape
    if "struct" in shape:
        struct = structs[shape["struct"]]
        fields = [[name, expanded(inner, structs), required] for name, inner, required in struct["fields"]]
        return struct | {"fields": fields}
    return {kind: expanded(inner, structs) for kind, inner in shape.items()}


# ---------------------------------------------------------------- comparing


def faults(old: Shape, old_structs: Structs, new: Shape, new_structs: Structs, where: str = "") -> list[str]:
    """Return why nodes of the two shapes would not understand each other, a line a reason; empty if they do."""
    if isinstance(old, dict) and isinstance(new, dict) and (kind := next(iter(old))) == next(iter(new)):
        if kind == "struct":
            return _struct_faults(old_structs, old["struct"], new_structs, new["struct"], where)
        if kind == "any":
            return _choice_faults((old[kind], old_structs), (new[kind], new_structs), where)
        if kind in {"list", "row", "dict"}:
            return _inner_faults((old, old_structs), (new, new_structs), kind, where)
    (name, old_bounds), (new_name, new_bounds) = _scalar(old), _scalar(new)
    return _bound_faults(old_bounds, new_bounds, where) if name == new_name else [f"{where}: was {old}, is {new}"]


def _inner_faults(old: tuple[Shape, Structs], new: tuple[Shape, Structs], kind: str, where: str) -> list[str]:
    if kind == "list":
        found = faults(old[0][kind], old[1], new[0][kind], new[1], f"{where}[]")
        return found + _bound_faults(old[0], new[0], where)
    if len(old[0][kind]) != len(new[0][kind]):
        return [f"{where}: was {old[0]}, is {new[0]}"]
    pairs = zip(old[0][kind], new[0][kind], strict=True)
    return [line for before, now in pairs for line in faults(before, old[1], now, new[1], f"{where}[]")]


def _scalar(shape: Shape) -> tuple[str, dict[str, Any]]:
    if isinstance(shape, str):
        return shape, {}
    kind, bounds = next(iter(shape.items()))
    return (kind, bounds) if isinstance(bounds, dict) else (str(shape), {})


def _bound_faults(old: dict[str, Any], new: dict[str, Any], where: str) -> list[str]:
    # Either side may be the one that reads, so that bounds may not become wider either.
    names = (*_LOWER, *_UPPER, *_SAME)
    different = [name for name in names if old.get(name) != new.get(name)]
    return [f"{where}: {name} was {old.get(name)}, is {new.get(name)}" for name in different]


def _choice_faults(old: tuple[list[Any], Structs], new: tuple[list[Any], Structs], where: str) -> list[str]:
    if len(old[0]) != len(new[0]):
        return [f"{where}: was one of {old[0]}, is one of {new[0]}"]
    unmet = list(new[0])
    for choice in old[0]:
        for other in unmet:
            if not faults(choice, old[1], other, new[1]):
                unmet.remove(other)
                break
        else:
            return [f"{where}: nothing stands for {choice} any more; there is {unmet}"]
    return []


def _struct_faults(old_structs: Structs, old_name: str, new_structs: Structs, new_name: str, where: str) -> list[str]:
    old, new = old_structs[old_name], new_structs[new_name]
    found = [f"{where}: {key} was {old[key]}, is {new[key]}" for key in ("form", "tag") if old[key] != new[key]]
    before, now = old["fields"], new["fields"]
    if old["form"] == "map":
        order = {name: place for place, (name, _, _) in enumerate(before)}
        now = sorted(now, key=lambda field: order.get(field[0], len(order)))
    if [name for name, _, _ in before] != [name for name, _, _ in now[: len(before)]]:
        names = [name for name, _, _ in before], [name for name, _, _ in now]
        return [*found, f"{where}: fields were {names[0]}, are {names[1]}"]
    if old["form"] == "row" and len(now) > len(before):
        found.append(f"{where}: a row cannot grow")
    for (name, shape, was_required), (_, new_shape, is_required) in zip(before, now, strict=False):
        found += faults(shape, old_structs, new_shape, new_structs, f"{where}.{name}")
        if is_required and not was_required:
            found.append(f"{where}.{name}: has no default any more")
    return found + [
        f"{where}.{name}: is new and has no default" for name, _, required in now[len(before) :] if required
    ]


# ---------------------------------------------------------------- building anew


def rebuilt(shape: Shape, structs: Structs) -> Any:
    """Return a type that reads what the type of the shape read."""
    return _Builder(structs).build(shape)


class _Builder:
    def __init__(self, structs: Structs) -> None:
        self._structs = structs
        self._built: dict[str, Any] = {}

    def build(self, shape: Shape) -> Any:
        if isinstance(shape, str):
            return _PYTHON[shape]
        kind, value = next(iter(shape.items()))
        if kind == "struct":
            if value not in self._built:
                self._built[value] = self._struct(value)
            return self._built[value]
        if kind == "any":
            return reduce(or_, [self.build(each) for each in value])
        if kind == "literal":
            return Literal[tuple(value)]
        if kind == "row":
            return tuple[tuple(self.build(each) for each in value)]  # type: ignore[misc]
        if kind == "dict":
            return dict[self.build(value[0]), self.build(value[1])]  # type: ignore[misc]
        if kind == "list":
            bounds = {name: bound for name, bound in shape.items() if name != "list"}
            # A tuple, since what is in a set or names a value must not change.
            found: Any = tuple[self.build(value), ...]  # type: ignore[misc]
            return Annotated[found, Meta(**bounds)] if bounds else found
        return Annotated[_PYTHON[kind], Meta(**value)]

    def _struct(self, name: str) -> Any:
        shape = self._structs[name]
        short = name.rpartition(".")[2]
        fields = [(field, self.build(inner), is_required) for field, inner, is_required in shape["fields"]]
        if shape["form"] == "row":
            made = namedtuple(short, [field for field, _, _ in fields])  # noqa: PYI024 - made of what a file says
            made.__annotations__ = {field: kind for field, kind, _ in fields}
            return made
        wanted: list[Any] = [
            (field, kind) if is_required else (field, kind | UnsetType, UNSET) for field, kind, is_required in fields
        ]
        is_array = shape["form"] == "array"
        return msgspec.defstruct(
            short, wanted, array_like=is_array, tag=shape["tag"], frozen=True, kw_only=not is_array
        )
