"""Looks at each node: whether it is there, of which version, what its clock says, what it accepts, what it lacks."""

from __future__ import annotations

import asyncio
import resource
import shutil
import ssl
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509

from access.api import SERVICE as ACCESS
from base.clock import Clock, Timestamp
from base.errors import LimitExceeded, RoadsteadError, Unauthenticated, Unavailable
from base.peer.upgrade import connect
from im.api import SERVICE as IM
from roadstead.doctor.findings import Degraded
from roadstead.doctor.message import DOCTOR
from roadstead.systems import Node, System
from scheduler.service import SERVICE as SCHEDULER
from status.api import SERVICE as STATUS

__all__ = [
    "FILES_WANTED",
    "api_key_accepted",
    "certificates",
    "clocks",
    "disk_space",
    "file_limits",
    "is_ready",
    "peer_key_accepted",
    "versions",
]

FILES_WANTED = 16_384
CLOCK_WARN_MS = 500
CLOCK_BAD_MS = 5_000
EXPIRY_WARN_DAYS = 14
DAY_MS = 86_400_000
CONNECT_S = 3.0
DISK_WARN = 0.10
DISK_BAD = 0.01
PROBES = {
    SCHEDULER: "/v1/admin/access/nodes",
    STATUS: f"/v1/users/{DOCTOR}/status",
    ACCESS: "/v1/admin/access",
    IM: f"/v1/users/{DOCTOR}/timeline",
}
"""What takes a key of each service, and changes nothing."""


async def is_ready(system: System, node: Node) -> str:
    """The node says that it takes work, and others can find it."""
    answer = await system.call(node, "/readyz", answers=(HTTPStatus.SERVICE_UNAVAILABLE,))
    if answer["status"] != "ready":
        raise Unavailable(f"{node.url} is {answer['status']}")
    if node.instance is None and system.registry_failure is None:
        raise Unavailable(f"{node.url} is ready, and not registered: the others do not find it")
    return node.url


async def versions(system: System) -> str:
    """All nodes are of one version, as far as they say; during an upgrade they are not."""
    said: dict[str, list[str]] = {}
    for node in system.nodes:
        if node.instance is not None:
            said.setdefault(node.instance.meta.get("roadstead", "unknown"), []).append(node.name)
    if len(said) > 1:
        raise Degraded("; ".join(f"{version}: {', '.join(names)}" for version, names in sorted(said.items())))
    return f"all are {next(iter(said), 'unknown')}"


async def clocks(system: System, clock: Clock) -> str:
    """No node's wall clock is far from that of this machine, as seen by an answer's way there and back."""
    offsets: dict[str, int] = {}

    async def look(node: Node) -> None:
        asked = clock.realtime()
        try:
            told = (await system.call(node, "/debug/statistics"))["time_ms"]
        except (RoadsteadError, KeyError):
            return  # it is told elsewhere that it does not answer
        offsets[node.name] = _offset(asked, told, clock.realtime())

    for node in system.nodes:  # one after another: whoever waits for its turn would look late
        await look(node)
    far = {name: offset for name, offset in offsets.items() if abs(offset) > CLOCK_WARN_MS}
    worst = max((abs(offset) for offset in offsets.values()), default=0)
    if not far:
        return f"within {worst} ms of this machine's"
    seen = ", ".join(f"{name} is {abs(ms)} ms {'ahead' if ms > 0 else 'behind'}" for name, ms in sorted(far.items()))
    if worst > CLOCK_BAD_MS:
        raise LimitExceeded(seen, what="clock_offset_ms")
    raise Degraded(seen)


def _offset(asked: Timestamp, told: int, answered: Timestamp) -> int:
    """How far a clock is off at least (ms): it was read somewhere between asking and the answer."""
    if told > answered:
        return told - answered
    return min(0, told - asked)


async def file_limits(system: System) -> str:
    """Each process of this machine may have as many open files as a node needs."""
    local = {node.name for node in system.nodes if system.is_local(node)}
    answers, _ = await system.statistics()
    pids = {answer["pid"]: name for name, answer in answers.items() if name in local and "pid" in answer}
    limits: dict[str, int] = {}
    for pid, name in sorted(pids.items()):
        try:
            limits[name] = resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
        except (ProcessLookupError, PermissionError):
            continue  # it ended meanwhile, or is another user's
    if not limits:
        return "no process of this machine and user; not looked at"
    low = {name: limit for name, limit in limits.items() if 0 <= limit < FILES_WANTED}
    if low:
        raise LimitExceeded(", ".join(f"{limit} for {name}" for name, limit in low.items()), what="open_files")
    return f"{min(limits.values())} or more for {', '.join(limits)}"


async def disk_space(system: System) -> str:
    """There is room where messages are stored, as far as that is on this machine."""
    folders = [folder for folder in system.im_folders if folder.is_dir()]
    if not folders:
        return "no folder of messages on this machine; not looked at"
    seen: dict[Path, tuple[float, str]] = {}
    for folder in folders:
        usage = shutil.disk_usage(folder)
        free = usage.free / usage.total
        seen[folder] = (free, f"{usage.free / 1e9:.1f} GB ({free:.0%}) free in {folder}")
    least, text = min(seen.values())
    if least < DISK_BAD:
        raise LimitExceeded(text, what="disk")
    if least < DISK_WARN:
        raise Degraded(text)
    return text


async def certificates(system: System, clock: Clock) -> str:
    """No listener shows a certificate that is over, or will be soon."""
    urls = {node.name: node.url for node in system.nodes}
    urls |= {f"{node.name} for clients": node.client_url for node in system.nodes if node.client_url}
    urls = {name: url for name, url in urls.items() if url.startswith("https:")}
    if not urls:
        return "no listener has TLS"
    left: dict[str, float] = {}
    for name, url in urls.items():
        try:
            left[name] = (await _expiry(url) - clock.realtime()) / DAY_MS
        except OSError:
            continue  # it is told elsewhere that it does not answer
    over = [name for name, days in left.items() if days <= 0]
    soon = {name: days for name, days in left.items() if 0 < days < EXPIRY_WARN_DAYS}
    if over:
        raise RoadsteadError(f"expired: {', '.join(over)}")
    if soon:
        raise Degraded(", ".join(f"{name}: {days:.0f} days left" for name, days in soon.items()))
    return f"{len(left)} listeners, {min(left.values(), default=0):.0f} days left or more"


async def _expiry(url: str) -> int:
    """Return until when a listener's certificate is valid (ms since the Unix epoch). Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # one that is over could not be read else; nothing secret is sent
    parts = urlsplit(url)
    async with asyncio.timeout(CONNECT_S):
        _, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
    try:
        connection = writer.get_extra_info("ssl_object")
        shown = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True))
        return int(shown.not_valid_after_utc.timestamp() * 1000)
    finally:
        writer.transport.abort()


async def api_key_accepted(system: System) -> str:
    """The key that this examination is made with is good everywhere, as a key that was handed out must be."""

    async def offer(node: Node) -> None:
        await system.call(node, PROBES[node.service])

    return await _accepted(system.of(*PROBES), offer)


async def peer_key_accepted(system: System) -> str:
    """Every node lets a stream in that is opened with the key, and the certificate, of this examination."""

    async def offer(node: Node) -> None:
        async with asyncio.timeout(CONNECT_S):
            transport, _ = await connect(node.url, node=system.node, trust=system.trust)
        transport.abort()

    return await _accepted(system.nodes, offer)


async def _accepted(nodes: Iterable[Node], offer: Callable[[Node], Awaitable[None]]) -> str:
    """Offer something to each node; say how many took it. Raises Unauthenticated naming those that refuse it."""
    accepting, refusing = 0, []
    for node in nodes:
        try:
            await offer(node)
        except Unauthenticated:
            refusing.append(node.name)
        except (OSError, RoadsteadError):
            continue  # it is told elsewhere that it does not answer
        else:
            accepting += 1
    if refusing:
        raise Unauthenticated(f"refused by {', '.join(refusing)}")
    return f"by {accepting} nodes"
