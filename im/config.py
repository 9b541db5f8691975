"""Configuration of the message services."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from msgspec import Meta

from base.config import Section
from im.core.book import LedgerSettings
from im.core.fan_out import PRESETS, FanOutPolicy
from im.core.ids import MessageIdKind
from im.core.lanes import LaneKey
from im.core.quotas import QuotaSettings
from im.core.shards import SHARDS_MAX

__all__ = ["ImConfig"]

QUOTA_KEYS_MAX = 100_000


class ImConfig(Section, frozen=True, kw_only=True):
    """The `[im]` section."""

    data: Annotated[
        str, Meta(description="Folder of a process' own shards. `roadstead up` has them in its data folder.")
    ] = ""
    shards: Annotated[
        int,
        Meta(
            ge=1,
            le=SHARDS_MAX,
            description="How many shards the system's messages are in. It counts when the system first starts, and "
            "stays: take more than there will be im processes.",
        ),
    ] = 1
    first_nodes: Annotated[
        tuple[str, ...],
        Meta(
            description="Names of the im processes that share the shards when the system first starts, the same for "
            "all; without any, the first one to start has all of them."
        ),
    ] = ()
    preset: Annotated[
        Literal["hybrid", "wechat", "qq", "dingtalk"],
        Meta(
            description="Which conversations are fanned out by writing into timelines and which by reading logs: small "
            "by write and large by read (`hybrid`), all by write with groups of 500 (`wechat`), all by read (`qq`), or "
            "single ones by write and groups by read (`dingtalk`). It is for new conversations: those that there are "
            "keep what they have."
        ),
    ] = "hybrid"
    message_ids: Annotated[
        MessageIdKind, Meta(description="Ids of new messages. All kinds may stand in one store.")
    ] = "snowflake"
    conversation_ids: Annotated[
        Literal["counted", "special"],
        Meta(
            description="Ids of new conversations: `counted`, or `special`, which makes those of two users that are "
            "numbers of 32 bits from the numbers."
        ),
    ] = "counted"
    ingress_key: Annotated[
        LaneKey,
        Meta(
            description="What has messages that wait keep their order. With anything but `sender` a sender's messages "
            "to different receivers may be stored out of order."
        ),
    ] = "sender"
    body_bytes_max: Annotated[
        int,
        Meta(
            ge=1,
            le=262_144,
            description="Longest message body (bytes of JSON), else error 406. Clients' frames are bounded by "
            "`access.frame_bytes_max`, which has to be larger.",
        ),
    ] = 65_536
    recall_window_ms: Annotated[
        int, Meta(ge=0, description="How long after sending a message its sender may recall it (ms).")
    ] = 120_000
    edit_window_ms: Annotated[
        int, Meta(ge=0, description="How long after sending a message its sender may edit it (ms).")
    ] = 900_000
    groups_of_user_max: Annotated[
        int,
        Meta(
            ge=1,
            description="Groups that one user may be in, of each shard; a list of conversations is read as a whole. "
            "One in ten is not for other users to fill.",
        ),
    ] = 1_000
    timeline_keep: Annotated[
        int,
        Meta(
            ge=0,
            description="Entries of a timeline that are kept, a tenth more at times; 0 for all. Whoever is further "
            "behind begins from a snapshot. Conversations keep all their entries.",
        ),
    ] = 100_000
    user_calls_per_second: Annotated[
        float, Meta(ge=0, description="Calls that change something, of one user, in the long run; 0 for no limit.")
    ] = 20.0
    user_calls_burst: Annotated[int, Meta(ge=1, description="Such calls of one user at once.")] = 200
    device_calls_per_second: Annotated[
        float, Meta(ge=0, description="Such calls of one device in the long run; 0 for no limit.")
    ] = 10.0
    device_calls_burst: Annotated[int, Meta(ge=1, description="Such calls of one device at once.")] = 100
    conversation_calls_per_second: Annotated[
        float,
        Meta(
            ge=0,
            description="Such calls about one conversation that is named by its cid, in the long run; 0: no limit.",
        ),
    ] = 200.0
    conversation_calls_burst: Annotated[int, Meta(ge=1, description="Such calls about one conversation at once.")] = (
        1_000
    )
    append_wait_max_ms: Annotated[
        int,
        Meta(
            ge=10,
            description="How long a message may have to wait to be stored (ms). As waiting comes near to that, typing, "
            "receipts and previews are dropped, in this order, and messages refused last, with error 102.",
        ),
    ] = 5_000
    offline_items_max: Annotated[
        int,
        Meta(
            ge=1, description="Messages kept for `GET /v1/offline`, at about 600 bytes each; the oldest are forgotten."
        ),
    ] = 100_000
    unread_compare_ms: Annotated[
        int, Meta(ge=1, description="How often one user's unread counters are compared with the pointers (ms).")
    ] = 1_000
    sync_entries_max: Annotated[
        int,
        Meta(ge=1, le=10_000, description="Most entries in one page of `im.sync`; a client asks for the next page."),
    ] = 500
    append_queue_max: Annotated[
        int,
        Meta(
            ge=1,
            description="Messages that may wait to be stored; beyond, sends are refused with error 102. Raising it "
            "takes longer bursts and makes the last one of a burst wait longer.",
        ),
    ] = 10_000
    append_lane_max: Annotated[
        int, Meta(ge=1, description="Of these, messages of one lane (see `ingress_key`): one sender's, as a rule.")
    ] = 1_000
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

    @property
    def policy(self) -> FanOutPolicy:
        """The preset's fan-out."""
        return PRESETS[self.preset]

    @property
    def has_small_read_fan_out(self) -> bool:
        """Whether small conversations have read fan-out, so that their users need sync versions."""
        return self.policy.single == "read" or self.policy.write_members_max == 0

    def problems(self) -> Iterable[str]:
        """Not all goes with several shards."""
        if self.shards > 1 and self.policy.single == "read":
            yield f"preset {self.preset} needs shards = 1: nobody would tell a user of a new conversation"
        if self.shards > 1 and self.conversation_ids != "counted":
            yield f"conversation_ids {self.conversation_ids} needs shards = 1: a cid must name its shard"

    @property
    def quota_settings(self) -> QuotaSettings:
        """How often one may call."""
        return QuotaSettings(
            user_rate=self.user_calls_per_second,
            user_burst=self.user_calls_burst,
            device_rate=self.device_calls_per_second,
            device_burst=self.device_calls_burst,
            conversation_rate=self.conversation_calls_per_second,
            conversation_burst=self.conversation_calls_burst,
            keys_max=QUOTA_KEYS_MAX,
        )

    def ledger_settings(self, shard: int = 0, shards: int = 1) -> LedgerSettings:
        """What the store of a shard decides by."""
        return LedgerSettings(
            policy=self.policy,
            conversation_ids=self.conversation_ids,
            recall_window_ms=self.recall_window_ms,
            edit_window_ms=self.edit_window_ms,
            groups_of_user_max=self.groups_of_user_max,
            shard=shard,
            shards=shards,
        )
