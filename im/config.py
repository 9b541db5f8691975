"""Configuration of the message services."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from base.config import Section

__all__ = ["ImConfig"]


class ImConfig(Section, frozen=True, kw_only=True):
    """The `[im]` section."""

    body_bytes_max: Annotated[
        int, Meta(ge=1, le=48_000, description="Longest message body (bytes of JSON), else error 106.")
    ] = 16_384
    sync_entries_max: Annotated[
        int,
        Meta(ge=1, le=10_000, description="Most entries in one page of `im.sync`; a client asks for the next page."),
    ] = 500
    append_queue_max: Annotated[
        int,
        Meta(
            ge=1,
            description="Messages that may wait to be stored; beyond, sends are refused with error 111. Raising it "
            "takes longer bursts and makes the last one of a burst wait longer.",
        ),
    ] = 10_000
    push_retry_ms: Annotated[
        int,
        Meta(ge=100, description="How long after a failed push the receiver's access node is told again (ms)."),
    ] = 500
    followed_max: Annotated[
        int,
        Meta(
            ge=1,
            description="Conversations that access nodes follow, each counted once a node, at about 200 bytes. What is "
            "beyond is not pushed: the access node's audit finds it.",
        ),
    ] = 1_000_000
    push_behind_max: Annotated[
        int,
        Meta(
            ge=1,
            description="Users whose push failed and who are told again; beyond, their access node's audit finds them.",
        ),
    ] = 100_000
