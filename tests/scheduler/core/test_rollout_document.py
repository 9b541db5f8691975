"""Rollout documents: a whole one, every fault by its line, and a good document changed at every place."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.conditions import AppIn, Listed
from scheduler.core.document import Faults, Items, Mapping, Node, Scalar, read_tree
from scheduler.core.rollout import Analysis, Check, OnFailure, Rollout, Segment, Step
from scheduler.core.rollout_document import Fault, parse_rollout, render_faults

DOCUMENT = """\
rollout: access-2.4.0
pool: {version: 2.4.0, max_share_of_capacity: 0.9}
seed: access-2.4.0
bucket_by: user
segments:
  - {name: staff, when: {user: {in: staff}}, to: canary}
  - {name: old-apps, when: {app: "<5.0"}, to: stable}
steps:
  - {percent: 1, hold: 10m, min_sample: {connects: 500}}
  - {percent: 10, hold: 30m}
  - {pause: manual}
  - {percent: 50, migrate: {rate: 200/s}}
  - {percent: 100}
analysis:
  interval: 30s
  failure_limit: 3
  inconclusive: pause
  checks:
    - {metric: connect_success, min: 0.995, vs_stable: -0.2%}
    - {metric: handshake_p99_ms, max: 400, vs_stable: +15%}
    - {metric: abnormal_close_rate, vs_stable: +20%}
    - {metric: promql, query: "...", max: 0.01}
on_failure: {assign: stop, move: {rate: 300/s, deadline: 120s}}
"""
ROLLOUT = Rollout(
    name="access-2.4.0",
    version="2.4.0",
    seed="access-2.4.0",
    steps=(
        Step(percent=1_000, hold_ms=600_000, connects_min=500),
        Step(percent=10_000, hold_ms=1_800_000),
        Step(is_pause=True),
        Step(percent=50_000, move_per_s=200.0),
        Step(percent=100_000),
    ),
    bucket_by="user",
    max_share_of_capacity=0.9,
    segments=(
        Segment("staff", Listed("user", "staff"), "canary"),
        Segment("old-apps", AppIn("<5.0"), "stable"),
    ),
    analysis=Analysis(
        interval_ms=30_000,
        failure_limit=3,
        inconclusive="pause",
        checks=(
            Check("connect_success", min=0.995, vs_stable=-0.002),
            Check("handshake_p99_ms", max=400.0, vs_stable=0.15),
            Check("abnormal_close_rate", vs_stable=0.2),
            Check("promql", max=0.01, query="..."),
        ),
    ),
    on_failure=OnFailure(300.0, 120_000),
)
MINIMAL = 'rollout: a\npool: {version: "2"}\nsteps: [{percent: 100}]\n'


def faults_of(document: str | bytes) -> tuple[Fault, ...]:
    faults = parse_rollout(document)
    assert isinstance(faults, tuple), "this should have been refused"
    assert faults
    return faults


def test_a_whole_document_is_its_rollout():
    """As text, and as bytes from the registry."""
    assert parse_rollout(DOCUMENT) == ROLLOUT
    assert parse_rollout(DOCUMENT.encode()) == ROLLOUT


def test_the_least_document_has_a_name_a_version_and_one_step():
    """Its seed is its name; nothing is judged, nobody is moved."""
    assert parse_rollout(MINIMAL) == Rollout(name="a", version="2", seed="a", steps=(Step(percent=100_000),))


@pytest.mark.parametrize(
    ("change", "values"),
    [
        (("percent: 1,", "percent: 0,"), {"percent": 0}),
        (("percent: 1,", "percent: 0.001,"), {"percent": 1}),
        (("percent: 1,", "percent: 5%,"), {"percent": 5_000}),
        (("hold: 10m, ", ""), {"hold_ms": 0}),
        (("hold: 10m", "migrate: {rate: 30/m}"), {"hold_ms": 0, "move_per_s": 0.5}),
    ],
)
def test_steps_may_be_written_in_several_ways(change: tuple[str, str], values: dict[str, Any]):
    """A first step of nothing lets segments go before all others."""
    rollout = parse_rollout(DOCUMENT.replace(*change, 1))
    assert isinstance(rollout, Rollout)
    assert {name: getattr(rollout.steps[0], name) for name in values} == values


def test_a_failed_rollout_need_not_move_anybody():
    """And may say so."""
    rollout = parse_rollout(DOCUMENT.replace(", move: {rate: 300/s, deadline: 120s}", ""))
    assert isinstance(rollout, Rollout)
    assert rollout.on_failure == OnFailure(0.0)


# ---------------------------------------------------------------- every fault, by its line

STEP_1 = "{percent: 1, hold: 10m, min_sample: {connects: 500}}"
CLOSES = "{metric: abnormal_close_rate, vs_stable: +20%}"


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        (("rollout: access-2.4.0", "rollout: Access"), 1, "is not a name"),
        (("rollout: access-2.4.0\n", ""), 1, "rollout is missing"),
        (("rollout: access-2.4.0", "rollout: stable"), 1, "stable is what everything else is called"),
        (
            ("2.4.0, max", "2.4, max"),
            2,
            'pool.version: must be text, which 2.4 is not to YAML: write it in quotes, "2.4"',
        ),
        (("version: 2.4.0, ", ""), 2, "pool: version is missing"),
        (("version: 2.4.0", f"version: {'v' * 129}"), 2, "more than 128 characters"),
        (("0.9}", "0}"), 2, "from 0.01 to 1"),
        (("0.9}", "90%}"), 2, "is not a number"),
        (("pool: {", "pool: [{"), 3, "not YAML"),
        (("seed: access-2.4.0", "seed:"), 3, "seed: has no value"),
        (("seed: access-2.4.0", "sed: x"), 3, "did you mean seed?"),
        (("bucket_by: user", "bucket_by: users"), 4, "did you mean user?"),
        (("name: old-apps", "name: staff"), 7, "staff is a name already, in line 6"),
        (("to: stable", "to: canry"), 7, "did you mean canary?"),
        (('when: {app: "<5.0"}, ', ""), 7, "segments[1]: when is missing"),
        (("<5.0", "<=5.0"), 7, "write all three numbers"),
        (("{user: {in: staff}}", "{}"), 6, "needs at least one of"),
        ((STEP_1, "{pause: manual}"), 9, "a pause cannot come first"),
        (("percent: 1,", "percent: 10,"), 10, "shares must rise, and 10 % was in line 9 already"),
        (("percent: 10,", "percent: 0.5,"), 10, "shares must rise, and 1 % was in line 9 already"),
        (("percent: 50,", "percent: 10,"), 12, "shares must rise, and 10 % was in line 10 already"),
        (("percent: 10,", "percent: 10.0001,"), 10, "three decimals"),
        (("percent: 10,", "percent: 101,"), 10, "from 0 to 100"),
        (("percent: 10, ", ""), 10, "percent is missing"),
        (("hold: 30m", "hold: 1:30"), 10, "must be a duration"),
        (("hold: 30m", "hold: 31d"), 10, "from 0s to 30d"),
        (("hold: 30m", "hold: -1s"), 10, "must be a duration"),
        (("pause: manual", "pause: 10m"), 11, "it must be manual"),
        (("pause: manual", "pause: manual, hold: 10m"), 11, '"hold" is not known here'),
        (("200/s", "0/s"), 12, "rate above 0"),
        (("percent: 100", "percent: 99.999"), 13, "the last share must be 100"),
        (("connects: 500", "connects: 0"), 9, "whole number from 1"),
        (("connects: 500", "connect: 500"), 9, "connects is missing"),
        (("interval: 30s", "interval: 30"), 15, "must be a duration"),
        (("interval: 30s", "interval: 500ms"), 15, "from 1s to 1h"),
        (("failure_limit: 3", "failure_limit: 0"), 16, "whole number from 1"),
        (("inconclusive: pause", "inconclusive: abort"), 17, "it must be pause or continue"),
        (("min: 0.995, vs", "min: 99.5, vs"), 19, "from 0 to 1"),
        (("min: 0.995, vs", "max: 0.995, vs"), 19, "good when it is high: it needs min, not max"),
        (("-0.2%", "+0.2%"), 19, "good when it is high: vs_stable is from -100% to 0%"),
        (("-0.2%", "-101%"), 19, "vs_stable is from -100% to 0%"),
        (("-0.2%", "-0.002"), 19, "difference in percent"),
        (("max: 400", "min: 400"), 20, "good when it is low: it needs max, not min"),
        (("max: 400", "max: -1"), 20, "from 0 to"),
        (("+15%", "-15%"), 20, "good when it is low: vs_stable is 0% or more"),
        ((", vs_stable: +20%", ""), 21, "a check needs a bound"),
        (
            (", vs_stable: +20%", ", vs_stable: +20%, query: x"),
            21,
            "query is for promql, and not for abnormal_close_rate",
        ),
        (("metric: abnormal_close_rate", "metric: abnormal_close"), 21, "did you mean abnormal_close_rate?"),
        (("metric: abnormal_close_rate, ", ""), 21, "metric is missing"),
        ((', query: "..."', ""), 22, "promql needs a query"),
        ((', query: "..."', ', query: ""'), 22, "must not be empty"),
        (("max: 0.01", "max: 0.01, vs_stable: +1%"), 22, "vs_stable is not for promql"),
        (("max: 0.01", "max: 0.01, min: 0.02"), 22, "max 0.01 is below min 0.02"),
        ((", max: 0.01", ""), 22, "a check needs a bound"),
        (("assign: stop", "assign: go"), 23, "it must be stop"),
        (("rate: 300/s, ", ""), 23, "on_failure.move: rate is missing"),
        (("deadline: 120s", "deadline: 0s"), 23, "from 1s to 1d"),
    ],
)
def test_every_fault_is_named_with_its_line_and_alone(change: tuple[str, str], line: int, words: str):
    """Nothing else is complained of, but for an unknown key where a needed one is missing."""
    assert change[0] in DOCUMENT
    found = [fault for fault in faults_of(DOCUMENT.replace(*change, 1)) if words in fault.message]
    others = [fault for fault in faults_of(DOCUMENT.replace(*change, 1)) if words not in fault.message]
    assert [fault.line for fault in found] == [line]
    assert all("is not known here" in fault.message and fault.line == line for fault in others)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("steps: []", "0 entries"),
        ("steps: {percent: 100}", "needs a list"),
        ("steps: [" + "{percent: 1}, " * 101 + "]", "101 entries"),
        ("steps: [100]", "needs keys and values"),
        ("analysis: {interval: 30s}", "checks is missing"),
        ("analysis: {checks: []}", "0 entries"),
        ("segments: []", "0 entries"),
        ("segments: {name: a}", "needs a list"),
        ("segments: [1]", "needs keys and values"),
        ("on_failure: stop", "needs keys and values"),
        ("on_failure: {move: 300/s}", "needs keys and values"),
        ("pool: 2.4.0", "needs keys and values"),
    ],
)
def test_a_part_that_is_missing_or_of_another_kind_is_named(section: str, words: str):
    """Once, and without what would have been in it."""
    key = section.partition(":")[0]
    lines = [section, *(line for line in MINIMAL.splitlines() if not line.startswith(key))]
    (fault,) = faults_of("\n".join(lines))
    assert fault.line == 1
    assert words in fault.message


def test_pauses_alone_are_no_steps():
    """There would be nothing to do."""
    first, last = faults_of(MINIMAL.replace("percent: 100", "pause: manual"))
    assert "a pause cannot come first" in first.message
    assert "the last share must be 100" in last.message


def test_all_faults_are_found_in_one_pass():
    """Those between parts too, beside those within."""
    document = DOCUMENT
    for change in [
        ("2.4.0, max", "2.4, max"),
        ("to: canary", "to: canry"),
        ("percent: 10,", "percent: 60,"),
        ("hold: 10m", "hold: ten"),
        ("max: 400", "min: 400"),
        ("120s", "2 minutes"),
    ]:
        document = document.replace(*change, 1)
    assert [fault.line for fault in faults_of(document)] == [2, 6, 9, 12, 20, 23]


def test_a_faulty_last_step_does_not_make_the_one_before_it_the_last():
    """Nor a faulty first one a pause the first."""
    assert [fault.line for fault in faults_of(DOCUMENT.replace("percent: 100", "percent: all"))] == [13]
    bad = DOCUMENT.replace(STEP_1, "{percent: x}").replace("{percent: 10, hold: 30m}", "{pause: manual}")
    assert [fault.line for fault in faults_of(bad)] == [9]


def test_faults_are_rendered_line_by_line():
    """For a terminal and for the answer to whoever sent the document."""
    assert render_faults(faults_of("rollout: A\n" + MINIMAL.partition("\n")[2]), "a.yaml").startswith(
        "a.yaml:1: rollout: "
    )


# ---------------------------------------------------------------- changed documents


def places(node: Node) -> list[Scalar]:
    if isinstance(node, Scalar):
        return [node]
    nodes = node.nodes if isinstance(node, Items) else [entry.node for entry in node.entries.values()]
    return [scalar for each in nodes for scalar in places(each)]


def all_places() -> list[Scalar]:
    root = read_tree(DOCUMENT, Faults())
    assert isinstance(root, Mapping)
    return places(root)


BAD = ["{}", "[]", "[x]", "{x: y}", "~", "on", "0x10", '""', "*a", "!x y", '"\\0"', "-7", "1e30", "2024-01-01"]
GOOD = {("segments[0].when.user.in", "[x]"), ("analysis.checks[3].max", "-7")}
"""What happens to be right at its place."""


@pytest.mark.parametrize("place", all_places(), ids=lambda place: place.path)
def test_a_bad_value_at_any_place_is_a_fault_at_its_line(place: Scalar):
    """And nowhere else: what is wrong at one place makes nothing else wrong."""
    lines = DOCUMENT.split("\n")
    key = place.path.rpartition(".")[2]
    for bad in BAD:
        written = re.compile(rf'\b{key}: "?{re.escape(place.text)}"?(?=[,}}]|$)')
        changed, count = written.subn(lambda _, bad=bad: f"{key}: {bad}", lines[place.line - 1], count=1)
        assert count == 1
        result = parse_rollout("\n".join([*lines[: place.line - 1], changed, *lines[place.line :]]))
        if (place.path, bad) in GOOD:
            assert isinstance(result, Rollout)
        else:
            assert isinstance(result, tuple)
            assert {fault.line for fault in result} == {place.line}, (bad, result)


LINES = DOCUMENT.splitlines()


@pytest.mark.parametrize("number", range(len(LINES)))
def test_an_unknown_key_in_any_line_is_a_fault_at_that_line(number: int):
    """In mappings in braces and in those by indentation."""
    line = LINES[number]
    if "{" in line:
        changed = line.replace("{", "{zzz: 1, ", 1)
    else:
        changed = f"{line[: len(line) - len(line.lstrip())]}zzz: 1\n{line}"
    (fault,) = faults_of("\n".join([*LINES[:number], changed, *LINES[number + 1 :]]))
    assert fault.line == number + 1
    assert '"zzz" is not known here' in fault.message


@pytest.mark.parametrize("number", range(len(LINES)))
def test_a_line_that_is_repeated_is_a_fault_at_the_second_one(number: int):
    """Or at those behind it that it does not fit to: a check that is made twice is no fault."""
    result = parse_rollout("\n".join([*LINES[: number + 1], *LINES[number:]]))
    if "metric:" in LINES[number] or "pause: manual" in LINES[number]:
        assert isinstance(result, Rollout)
    else:
        assert isinstance(result, tuple)
        assert number + 2 in {fault.line for fault in result}


@given(st.integers(0, len(DOCUMENT)), st.integers(0, 12), st.text("abz09.:-{}[],'\"#&*!|>% \n\t", max_size=6))
@settings(max_examples=100)
def test_a_document_that_is_torn_anywhere_is_a_rollout_or_has_faults_in_its_lines(at: int, cut: int, put: str):
    """And raises nothing."""
    document = DOCUMENT[:at] + put + DOCUMENT[at + cut :]
    result = parse_rollout(document)
    if not isinstance(result, Rollout):
        assert result
        assert all(1 <= fault.line <= document.count("\n") + 1 for fault in result)
