"""Is this user in the canary? Rollouts as feature flags, by the OpenFeature Remote Evaluation Protocol.

So an application asks with any OpenFeature SDK and decides as the scheduler does, the same users in the same order:

    POST /ofrep/v1/evaluate/flags/NAME    one rollout
    POST /ofrep/v1/evaluate/flags         all of them, with an ETag; 304 for who has that answer already

    {"context": {"targetingKey": "alice", "platform": "ios", "app": "5.1.0", "device": "d1", "ip": "...", "region": ""}}

`targetingKey` is the user; what else the context has is ignored. The value is true for the canary. The reason says how:

    TARGETING_MATCH   a segment of the rollout decided
    SPLIT             the user's bucket did
    DEFAULT           there was nothing to take a bucket of, such as no device: stable
    DISABLED          the rollout failed or was aborted: stable

This tells where the rollout puts the user. The scheduler itself may still send a client elsewhere, where the canary has
no node nearby or no room.

Source: OFREP's OpenAPI document, 0.3.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import xxhash
from aiohttp import ETag, web

from base.errors import BadRequest
from base.http import Credentials, Role, body_of, json_response
from base.ids import checked_id
from scheduler.core.cohorts import ActiveRollout, Cohort
from scheduler.core.request import Location, Request

__all__ = ["PATH", "Flag", "Ofrep"]

PATH = "/ofrep/v1/evaluate/flags"
_encode = msgspec.json.Encoder().encode


class _Asked(msgspec.Struct):
    context: dict[str, Any] = {}


_decode = msgspec.json.Decoder(_Asked).decode


class Flag(msgspec.Struct, frozen=True):
    """How one rollout places one user."""

    key: str
    value: bool
    reason: str
    variant: str
    metadata: Mapping[str, str | int | float]


class _Flags(msgspec.Struct):
    flags: list[Flag]


class _Fault(msgspec.Struct, omit_defaults=True, rename="camel"):
    """An error as the protocol has it."""

    error_code: str
    error_details: str
    key: str = ""


class _BadContext(Exception):
    def __init__(self, code: str, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


class Ofrep:
    """The routes."""

    def __init__(
        self,
        *,
        rollouts: Callable[[], Sequence[ActiveRollout]],
        locate: Callable[[str, str], Location],
        credentials: Credentials,
    ) -> None:
        """Nothing is served before `add_to`.

        Args:
            rollouts: as the scheduler goes by them; the same objects as long as they stand as they are.
            locate: where a client is, of its IP address and the region that it names itself; "" for either.
            credentials: a backend's key is asked for.
        """
        self._rollouts = rollouts
        self._compiled: dict[str, tuple[ActiveRollout, Cohort]] = {}
        self._locate = locate
        self._credentials = credentials

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Serve on the router."""
        router.add_post(PATH, self._evaluate_all)
        router.add_post(f"{PATH}/{{key}}", self._evaluate)

    async def _evaluate(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.BACKEND)
        key = request.match_info["key"]
        found = self._cohorts().get(key)
        if found is None:
            fault = _Fault("FLAG_NOT_FOUND", f"there is no rollout {key}", key)
            return json_response(fault, status=404)
        try:
            asked = self._read(await body_of(request))
        except _BadContext as error:
            return json_response(_Fault(error.code, error.details, key), status=400)
        return json_response(_flag(*found, asked))

    async def _evaluate_all(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.BACKEND)
        try:
            asked = self._read(await body_of(request))
        except _BadContext as error:
            return json_response(_Fault(error.code, error.details), status=400)
        body = _encode(_Flags([_flag(*found, asked) for found in self._cohorts().values()]))
        tag = ETag(xxhash.xxh3_64_hexdigest(body))
        is_known = any(known.value in {tag.value, "*"} for known in request.if_none_match or ())
        answer = web.Response(status=304) if is_known else web.Response(body=body, content_type="application/json")
        answer.etag = tag
        return answer

    def _cohorts(self) -> Mapping[str, tuple[ActiveRollout, Cohort]]:
        """The rollouts by name, compiled anew where they changed."""
        compiled = {}
        for active in self._rollouts():
            known = self._compiled.get(active.rollout.name)
            if known is None or known[0] is not active:
                known = active, Cohort(active)
            compiled[active.rollout.name] = known
        self._compiled = compiled
        return compiled

    def _read(self, body: bytes) -> Request:
        """Return the client that the body describes. Raises _BadContext."""
        try:
            context = _decode(body).context
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise _BadContext("PARSE_ERROR", f"bad JSON body: {error}") from error
        user = _text(context, "targetingKey")
        if not user:
            raise _BadContext("TARGETING_KEY_MISSING", "the context has no targetingKey: the user")
        address = _text(context, "ip")
        if address:
            try:
                address = str(ipaddress.ip_address(address))
            except ValueError as error:
                raise _BadContext("INVALID_CONTEXT", "ip is not an IP address") from error
        return Request(
            user=user,
            device=_text(context, "device"),
            platform=_text(context, "platform"),
            app=_text(context, "app"),
            address=address,
            location=self._locate(address, _text(context, "region")),
        )


def _text(context: Mapping[str, Any], name: str) -> str:
    """Return a value of the context, "" if there is none. Raises _BadContext for what is no id."""
    value = context.get(name)
    if value is None or value == "":
        return ""
    if not isinstance(value, str):
        raise _BadContext("INVALID_CONTEXT", f"{name} must be a string")
    try:
        return checked_id(value, name)
    except BadRequest as error:
        raise _BadContext("INVALID_CONTEXT", error.message) from error


def _flag(active: ActiveRollout, cohort: Cohort, request: Request) -> Flag:
    rollout = active.rollout
    placed = cohort.place(request)
    if active.is_failed:
        reason = "DISABLED"
    elif placed.segment:
        reason = "TARGETING_MATCH"
    else:
        reason = "SPLIT" if placed.bucket >= 0 else "DEFAULT"
    return Flag(
        key=rollout.name,
        value=placed.is_canary,
        reason=reason,
        variant="canary" if placed.is_canary else "stable",
        metadata={
            "rollout": rollout.name,
            "version": rollout.version,
            "percent": active.percent / 1000,
            "bucket": placed.bucket,
            "segment": placed.segment,
        },
    )
