"""Sends a message all the way: scheduler, access node, status cluster, store and push all take part."""

from __future__ import annotations

import asyncio

from base.errors import Unavailable
from base.ids import new_uuid
from im.api import SERVICE as IM
from roadstead.api import call_api
from roadstead.client import Client, Incoming, Position
from roadstead.systems import System
from scheduler.service import SERVICE as SCHEDULER

__all__ = ["DOCTOR", "round_trip"]

DOCTOR = "roadstead-doctor"
"""The user who writes to itself."""
ARRIVE_S = 10


async def round_trip(system: System) -> str:
    """Send one to oneself, and wait until it is there."""
    arrived = asyncio.Event()
    probe_id = new_uuid()

    async def take(incoming: Incoming) -> None:
        if incoming.data["client_msg_id"] == probe_id:
            arrived.set()

    schedulers = [node.url for node in system.of(SCHEDULER)]
    if not schedulers:
        raise Unavailable("there is no scheduler node")
    page = await call_api("GET", f"{system.url(IM)}/v1/users/{DOCTOR}/timeline", credential=system.api_key)
    client = Client(
        schedulers,
        user=DOCTOR,
        credential=system.api_key,
        on_message=take,
        device=probe_id,
        position=Position(page["epoch"], page["head"]),  # what earlier examinations sent is of no interest
    )
    try:
        async with asyncio.timeout(ARRIVE_S):
            await client.connect()
            await client.send(DOCTOR, "doctor", client_msg_id=probe_id)
            await arrived.wait()
    finally:
        await client.close()
    return "sent, stored, pushed and received"
