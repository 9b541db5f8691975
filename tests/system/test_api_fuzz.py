"""Whatever input the OpenAPI document lets schemathesis think of, the services answer as the document says.

Input comes from the document, the same in every run: boundary values of each field, and random values. Most of it names
users and conversations that there are not, so a narrowed document, which knows only those that there are, is tried too.
"""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.config import SchemathesisConfig

from im.http import WAIT_MS_MAX
from roadstead.openapi import document
from roadstead.openapi.schemas import ref
from tests.system.people import Town, town

CID_PATTERNS = {"^[1-9][0-9]{0,18}$", "^([1-9][0-9]{0,18})?$"}
SEQ_MAX = 2**63 - 1
USERS, SINGLE, GROUP, SEQS = ["alice", "bob", "carol"], "1", "2", 4
ENDLESS = {"/v1/events/stream", "/v1/admin/recording"}
SHORT_WAIT_MS, CALL_S = 20, 30.0
LINE_BYTES_MAX = 8_000
RANDOM_EXAMPLES, NARROWED_EXAMPLES = 4, 16
OWN_ONLY = ("/im/edit", "/im/recall", "/im/group_change")
WITHOUT_INPUT, NOWHERE_TO_MOVE = "GET /v1/admin/im/shards", "POST /v1/admin/im/shards/{shard}/move"
OWN_TIMES = 4
"""So many times as many: it is by chance that somebody may do it there, to a message of its own say."""
BOTH = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
Document = dict[str, Any]
Seen = dict[str, Counter[int]]

load_all_checks()
CHECKED = CHECKS.get_by_names(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
    ]
)


def of_role(role: str, methods: set[str]) -> Document:
    """The document, of one role's operations."""
    made = copy.deepcopy(document())
    for path, item in list(made["paths"].items()):
        for method in item.keys() - {"servers"}:
            if role not in item[method]["tags"] or method not in methods or path in ENDLESS:
                del item[method]
        if item.keys() == {"servers"}:
            del made["paths"][path]
    return made


def narrowed(whole: Document) -> Document:
    """The same, with the users and conversations that there are: what fits this fits the whole document too."""
    made = copy.deepcopy(whole)
    schemas = made["components"]["schemas"]
    for schema in nested(made):
        if schema.get("pattern") in CID_PATTERNS:
            schema["enum"] = [SINGLE, GROUP, *([""] if "?" in schema["pattern"] else [])]
            del schema["pattern"]
        if schema.get("maximum") == SEQ_MAX:
            schema["maximum"] = SEQS
        if schema.get("properties", {}).get("client_msg_id") == ref("Id"):
            schema["properties"]["client_msg_id"] = {"type": "string", "pattern": "^[a-z0-9]{1,16}$"}
    schemas["Id"] = {"type": "string", "enum": USERS}
    schemas["CreateGroupArguments"]["properties"]["name"]["pattern"] = "^[a-z ]+$"
    for name in ("Send", "ServerSend"):
        schemas[name]["properties"]["to"]["enum"] = ["", *USERS]
    changes = made["paths"]["/v1/conversations/{cid}/changes"]["post"]
    for change in (schemas["ChangeGroupArguments"], schemas["ConversationChange"]):
        change["properties"]["action"]["enum"].remove("dissolve")  # the rest would be answered by that alone
        change["properties"]["users"]["minItems"] = 1
        change["properties"]["value"]["enum"] = ["crew", "admin", "member", "true", "false", "0"]
        change["required"].append("users")
    of_group = {"type": "string", "const": GROUP}
    schemas["ChangeGroupArguments"]["properties"]["cid"] = of_group
    changes["parameters"][0]["schema"] = of_group
    return made


def nested(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a document."""
    if isinstance(value, dict):
        yield value
    for below in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nested(below)


def fuzz(described: Document, url: str, key: str, modes: list[GenerationMode], examples: int = RANDOM_EXAMPLES) -> Seen:
    """Call each operation with all that comes to mind; return how often it gave which status."""
    config = SchemathesisConfig.from_dict({"generation": {"deterministic": True, "with-security-parameters": False}})
    schema = schemathesis.openapi.from_dict(described, config=config)
    seen: Seen = {}
    with requests.Session() as session:
        session.trust_env = False

        def call(case: Case) -> None:
            shorten_wait(case.query)
            headers = {"Authorization": f"Bearer {key}"}
            answer = case.call(url, session=session, headers=headers, timeout=CALL_S)
            if len(answer.request.path_url) > LINE_BYTES_MAX:
                return  # refused before it is looked at, in plain text
            seen.setdefault(case.operation.label, Counter())[answer.status_code] += 1
            case.validate_response(answer, checks=CHECKED)

        for result in schema.get_all_operations():
            operation = result.ok()
            generation = schema.config.generation_for(operation=operation)
            for case in schema.iter_coverage_cases(operation, generation_modes=modes, generation_config=generation):
                call(case)
            takes_any = bool(operation.body) or any(True for _ in operation.iter_parameters())
            more = OWN_TIMES if operation.path.endswith(OWN_ONLY) else 1
            for mode in modes if takes_any else ():
                randomly(operation, mode, call, examples * more)
    return seen


def shorten_wait(query: dict[str, Any]) -> None:
    """Make a wait short if it is one that may be asked for; of several, the first counts."""
    asked = query.get("wait_ms")
    first = asked[0] if isinstance(asked, list) and asked else asked
    if str(first).isdecimal() and SHORT_WAIT_MS < int(first) <= WAIT_MS_MAX:
        query["wait_ms"] = [SHORT_WAIT_MS, *asked[1:]] if isinstance(asked, list) else SHORT_WAIT_MS


def randomly(
    operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode, call: Callable[[Case], None], examples: int
) -> None:
    """Call an operation with random input."""

    @given(operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def run(case: Case) -> None:
        call(case)

    with suppress(Unsatisfiable):  # where any text is good, none is bad
        run()


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Town]:
    """A system in which the users of the narrowed document have a single conversation and a group, 1 and 2."""
    async with town(tmp_path) as made:
        await made.backend("alice", "send", to="bob", client_msg_id="first", body="hi")
        group = await made.backend("alice", "group_create", client_msg_id="team", name="team", members=USERS[1:])
        for user in USERS:
            await made.backend(user, "send", cid=group["cid"], client_msg_id=f"of {user}", body="hi all")
        assert group["cid"] == GROUP
        yield made


async def test_any_input_of_the_message_services_is_answered_as_described(small: Town) -> None:
    """And what the document does not allow is refused."""
    described = of_role("im", {"get", "post"})
    seen = await asyncio.to_thread(fuzz, described, small.system.im, small.system.key, BOTH)
    assert len(seen) == len(described["paths"])
    assert [name for name, statuses in seen.items() if not statuses[400]] == [WITHOUT_INPUT], seen


async def test_input_about_what_there_is_gets_results_as_described(small: Town) -> None:
    """Every operation succeeds with some of it."""
    described, modes = narrowed(of_role("im", {"get", "post"})), [GenerationMode.POSITIVE]
    seen = await asyncio.to_thread(fuzz, described, small.system.im, small.system.key, modes, NARROWED_EXAMPLES)
    assert len(seen) == len(described["paths"])
    assert [name for name, statuses in seen.items() if not statuses[200]] == [NOWHERE_TO_MOVE], seen


async def test_what_only_reads_in_the_other_roles_is_answered_as_described(small: Town) -> None:
    """Of the scheduler, the status cluster and the access nodes."""
    ends = small.system.endpoints
    for role, urls in (("scheduler", ends.scheduler), ("status", ends.status), ("access", ends.access)):
        described = of_role(role, {"get"})
        seen = await asyncio.to_thread(fuzz, described, next(iter(urls.values())), small.system.key, BOTH)
        assert len(seen) == len(described["paths"])
