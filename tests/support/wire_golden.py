"""Recorded frames: what each version says to other nodes, as bytes, with what they mean written beside them.

    .venv/bin/python -m tests.support.wire_golden NAME

adds the folder `tests/wire/golden/NUMBER-NAME` with whatever is not recorded yet as it is now: methods that are new, or
whose types have more fields than before. Nothing that is there is ever written again: it is what other nodes say.

A file for the methods of each service, one for the frames themselves and the errors, one for what nodes leave to each
other in the registry.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect as mi

from base.errors import Code
from base.peer import upgrade, wire
from base.peer.wire import Method
from tests.support.wire_samples import meaning, samples
from tests.support.wire_shapes import Shape, Structs, expanded, shape_of

__all__ = ["GOLDEN", "NOTES", "Codec", "Recorded", "codecs", "decoded_frame", "envelopes", "methods", "newest_shapes"]
__all__ += ["record", "recorded", "shape_now", "spelled"]

LINE = 110
ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/wire/golden"
PACKAGES = ("base", "scheduler", "status", "access", "im", "roadstead")
NOTES = {
    "status/table": ("status.core.partitions", "PartitionTable", "msgpack"),
    "status/wish": ("status.table", "Wish", "msgpack"),
    "status entry": ("status.api", "SessionView", "msgpack"),
    "consul instance": ("base.core.registry", "ServiceInstance", "json"),
    "consul name": ("base.registry.consul.codec", "Name", "json"),
    "access note": ("access.api", "NodeReport", "msgpack"),
    "ticket": ("scheduler.api", "Ticket", "json"),
    "scheduler/cordons/": ("scheduler.orders", "Cordon", "json"),
    "scheduler/rollouts/": ("scheduler.core.rollout_record", "RolloutRecord", "json"),
    "scheduler/policy": ("scheduler.orders", "PolicyRecord", "json"),
    "scheduler/rebalance": ("scheduler.orders", "RebalanceRecord", "json"),
    "scheduler/moves": ("scheduler.orders", "MovesRecord", "json"),
    "im/table": ("im.core.shards", "ShardTable", "json"),
    "im/workers/": ("im.workers", "Mark", "json"),
}
"""What one node leaves for others outside of calls: where, of which type, and how it is encoded."""


class Codec(NamedTuple):
    """One direction of a method, or a note: its type, and how it becomes bytes and is read again."""

    kind: Any
    encoding: str
    is_framed: bool

    def encode(self, value: Any, name: str) -> bytes:
        """Return the bytes on the wire: a whole frame for a call."""
        if not self.is_framed:
            return msgspec.json.encode(value) if self.encoding == "json" else msgspec.msgpack.encode(value)
        is_request = self.encoding == "request"
        body = wire.encode_request(7, name, 2_000, value) if is_request else wire.encode_reply(7, value)
        return wire.encode_frame([body])

    def decode(self, data: bytes, kind: Any = None) -> Any:
        """Return the value in them, read as another type if one is given."""
        kind = kind or self.kind
        if not self.is_framed:
            return (msgspec.json if self.encoding == "json" else msgspec.msgpack).decode(data, type=kind)
        [envelope] = decoded_frame(data)
        method = Method(getattr(envelope, "method", "reply"), kind, kind)
        return (method.decode_request if self.encoding == "request" else method.decode_reply)(envelope.body)


class Recorded(NamedTuple):
    """What a version said of one thing: the shape of its type, and frames as (bytes, meaning)."""

    version: str
    name: str
    part: str
    shape: Shape
    structs: Structs
    frames: list[tuple[bytes, Any]]


def decoded_frame(data: bytes) -> list[Any]:
    """Return the envelopes of one frame."""
    [batch] = wire.FrameReader().feed(data)
    return list(wire.decode_batch(batch))


# ---------------------------------------------------------------- what there is now


def methods() -> dict[str, Method[Any, Any]]:
    """Return every peer method that is declared anywhere, by name."""
    found: dict[str, Method[Any, Any]] = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            if " = Method(" in file.read_text():
                module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
                found |= {each.name: each for each in vars(module).values() if isinstance(each, Method)}
    return dict(sorted(found.items()))


def notes() -> dict[str, Codec]:
    """Return the codecs of `NOTES`."""
    return {
        name: Codec(getattr(importlib.import_module(module), kind), encoding, is_framed=False)
        for name, (module, kind, encoding) in NOTES.items()
    }


def codecs() -> Iterator[tuple[str, str, str, Codec]]:
    """Yield (file, name, part, codec) of everything."""
    for name, method in methods().items():
        yield name.partition(".")[0], name, "request", Codec(method._request.type, "request", is_framed=True)
        yield name.partition(".")[0], name, "reply", Codec(method._reply.type, "reply", is_framed=True)
    for name, codec in notes().items():
        yield "notes", name, "value", codec


def shape_now(codec: Codec) -> tuple[Shape, Structs]:
    """Return the shape of its type as it is now."""
    structs: Structs = {}
    return shape_of(mi.type_info(codec.kind), structs), structs


def envelopes() -> dict[str, bytes]:
    """Return frames that show the envelopes, by what they show; errors are there by code."""
    request = wire.encode_request(1, "some.method", 1_500, ["body"])
    large = wire.encode_request((1 << 32) + 1, "some.method", 86_400_000, {"name": b"\x00\xff"})
    shown = {
        "keepalive": wire.KEEPALIVE,
        "request": wire.encode_frame([request]),
        "request, large numbers": wire.encode_frame([large]),
        "reply": wire.encode_frame([wire.encode_reply(1, ["body"])]),
        "push": wire.encode_frame([wire.encode_push("some.method", ["body"])]),
        "batch of all": wire.encode_frame(
            [request, wire.encode_reply(2, None), wire.encode_failure(3, 104, "later", {}), wire.encode_push("a.b", 1)]
        ),
        "batch of 16": wire.encode_frame([wire.encode_push("some.method", number) for number in range(16)]),
    }
    for code in Code:
        failure = wire.encode_failure(9, code.number, code.label, {"owner": "status-2", "epoch": 7, "limit": None})
        shown[f"error {code.label}"] = wire.encode_frame([failure])
    return shown


# ---------------------------------------------------------------- what was recorded


def recorded(folder: Path = GOLDEN) -> list[Recorded]:
    """Return all that was recorded, the oldest first, but for the bare envelopes."""
    found: list[Recorded] = []
    for version in sorted(folder.iterdir()):
        for file in sorted(version.glob("*.json")):
            content = json.loads(file.read_text())
            for name, parts in content.get("methods", {}).items():
                for part, said in parts.items():
                    frames = [(bytes.fromhex(each["hex"]), each["means"]) for each in said["frames"]]
                    found.append(Recorded(version.name, name, part, said["shape"], content["structs"], frames))
    return found


def newest_shapes(folder: Path = GOLDEN) -> dict[tuple[str, str], Shape]:
    """Return of each name and part the shape that was recorded last, expanded."""
    return {(each.name, each.part): expanded(each.shape, each.structs) for each in recorded(folder)}


def record(name: str, folder: Path = GOLDEN) -> Path | None:
    """Write what is not recorded as it is now into a new folder. Return it, or None if there is nothing to write."""
    newest = newest_shapes(folder)
    files: dict[str, Any] = {}
    for file, method, part, codec in codecs():
        shape, structs = shape_now(codec)
        if newest.get((method, part)) == expanded(shape, structs):
            continue
        content = files.setdefault(file, {"structs": {}, "methods": {}})
        content["structs"] |= structs
        frames = [{"hex": codec.encode(value, method).hex(), "means": meaning(value)} for value in samples(codec.kind)]
        content["methods"].setdefault(method, {})[part] = {"shape": shape, "frames": frames}
    if not any(folder.iterdir()):
        shown = {name: {"hex": frame.hex(), "means": spelled(frame)} for name, frame in envelopes().items()}
        files["envelopes"] = {"protocol": upgrade.PROTOCOL, "frames": shown}
    if not files:
        return None
    made = folder / f"{len(list(folder.iterdir())) + 1:04}-{name}"
    made.mkdir()
    for file, content in files.items():
        (made / f"{file}.json").write_text(_text(content) + "\n")
    return made


def spelled(frame: bytes) -> list[Any]:
    """Return the meaning of each envelope of a frame, with that of its body as anything has it."""
    return [meaning(msgspec.msgpack.decode(msgspec.msgpack.encode(each))) for each in decoded_frame(frame)]


def _text(value: Any, indent: int = 0) -> str:
    """Return JSON in which what fits is one line, so that a difference can be read."""
    line = json.dumps(value)
    if len(line) + indent <= LINE or not isinstance(value, dict | list) or not value:
        return line
    is_map = isinstance(value, dict)
    inner = [
        (f"{json.dumps(key)}: " if is_map else "") + _text(value[key], indent + 1)
        for key in (value if is_map else range(len(value)))
    ]
    pad = "\n" + " " * (indent + 1)
    start, end = "{}" if is_map else "[]"
    return start + pad + f",{pad}".join(inner) + "\n" + " " * indent + end


if __name__ == "__main__":
    print(record(sys.argv[1]) or "all is recorded as it is")  # noqa: T201 - for who calls it
