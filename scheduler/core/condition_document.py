"""Which condition a part of a document is.

```yaml
when:
  platform: ios                      # one value, or a list of them
  user: {in: staff}                  # in the list of that name
  device: {not_in: [d1, d2]}         # written out
  region: sh
  place: [CN-SH, JP]                 # a country holds its subdivisions
  carrier: CT
  app: ">=4.2 <5"                    # semantic versions
  ip: [10.0.0.0/8, "2001:db8::/32"]
  any: [{platform: web}, {not: {app: "<6"}}]
```

All fields of a mapping must hold; `all`, `any` and `not` put conditions together.

Source: ISO 3166-1 alpha-2 and ISO 3166-2 for places; RFC 4632 and RFC 4291 for networks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Final

from scheduler.core.conditions import AddressIn, All, AnyOf, AppIn, Condition, Field, FieldIn, Listed, Not, PlaceIn
from scheduler.core.document import Faults, Items, Mapping, Node, Scalar, shown
from scheduler.core.fields import Fields, Read, complain, items, name, text
from scheduler.core.versions import parse_range

__all__ = ["read_condition"]

VALUES_MAX: Final = 10_000
PARTS_MAX: Final = 100

_PLACE = re.compile(r"[A-Z]{2}(-[A-Z0-9]{1,3})?")

Make = Callable[[tuple[str, ...]], Condition]
Several = Callable[[tuple[Condition, ...]], Condition]


def read_condition(node: Node, faults: Faults) -> Condition | None:
    """Read a condition: every field that is named in it must hold, the cheapest is asked first."""
    fields = Fields(node, faults)
    found: list[Condition | None] = [fields.optional(key, read, None) for key, read in _READERS.items()]
    parts = tuple(part for part in found if part is not None)
    if fields.close() and not parts:
        complain(node, faults, f"needs at least one of {', '.join(_READERS)}")
    if not fields.is_good or not parts:
        return None
    if len(parts) == 1:
        return parts[0]
    return All(parts)


def _group(read_one: Read[str], make: Make, of_list: Callable[[str], Condition] | None) -> Read[Condition]:
    """Read `x`, `[x, y]`, `{in: [x, y]}`, `{not_in: [x, y]}`; if there are lists for it, `{in: name}` names one."""
    read_values = items(read_one, most=VALUES_MAX)

    def read_inline(node: Node, faults: Faults) -> Condition | None:
        if isinstance(node, Scalar):
            value = read_one(node, faults)
            return None if value is None else make((value,))
        values = read_values(node, faults)
        return None if values is None else make(values)

    def read_named(node: Node, faults: Faults) -> Condition | None:
        if of_list is None or isinstance(node, Items):
            return read_inline(node, faults)
        list_name = name(node, faults)
        return None if list_name is None else of_list(list_name)

    def read(node: Node, faults: Faults) -> Condition | None:
        if not isinstance(node, Mapping):
            return read_inline(node, faults)
        fields = Fields(node, faults)
        read_group: Read[Condition] = read_named
        inside = fields.optional("in", read_group, None)
        outside = fields.optional("not_in", read_group, None)
        if not fields.close():
            return None
        if outside is None:
            if inside is None:
                complain(node, faults, "needs in or not_in")
            return inside
        if inside is None:
            return Not(outside)
        return All((inside, Not(outside)))

    return read


def _place(node: Node, faults: Faults) -> str | None:
    value = text(node, faults)
    if value is None or _PLACE.fullmatch(value):
        return value
    complain(node, faults, f"{shown(value)} is not a country such as CN nor a subdivision such as CN-SH")
    return None


def _network(node: Node, faults: Faults) -> str | None:
    value = text(node, faults)
    if value is None:
        return None
    try:
        network = ip_network(value, strict=False)
    except ValueError:
        complain(node, faults, f"{shown(value)} is not a network such as 10.0.0.0/8 or 2001:db8::/32")
        return None
    if "%" in value or (network.version == 6 and network.network_address.ipv4_mapped):
        complain(node, faults, f"{shown(value)} holds no address that a client has; write IPv4 as IPv4, without a zone")
        return None
    given = value.partition("/")[0]
    if ip_address(given) != network.network_address:
        complain(node, faults, f"{shown(value)} has bits beyond its prefix; did you mean {network}?")
        return None
    return str(network)


def _range(node: Node, faults: Faults) -> Condition | None:
    value = text(node, faults)
    if value is None:
        return None
    bounds = parse_range(value.strip())
    if isinstance(bounds, str):
        complain(node, faults, bounds)
        return None
    return AppIn(value.strip())


def _not(node: Node, faults: Faults) -> Condition | None:
    inner = read_condition(node, faults)
    return None if inner is None else Not(inner)


def _several(make: Several) -> Read[Condition]:
    read_each: Read[Condition] = read_condition

    def read(node: Node, faults: Faults) -> Condition | None:
        conditions = items(read_each, most=PARTS_MAX)(node, faults)
        return None if conditions is None else make(conditions)

    return read


def _field(field: Field) -> Read[Condition]:
    return _group(text, partial(FieldIn, field), partial(Listed, field))


_READERS: Final[dict[str, Read[Condition]]] = {
    "user": _field("user"),
    "device": _field("device"),
    "platform": _field("platform"),
    "region": _field("region"),
    "carrier": _field("carrier"),
    "place": _group(_place, PlaceIn, None),
    "app": _range,
    "ip": _group(_network, AddressIn, None),
    "all": _several(All),
    "any": _several(AnyOf),
    "not": _not,
}
