"""What a run prints is read again as it was."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.report_record import Environment, Outcome, look_around, read
from bench.result import Comparison, Result, Series

PLAIN = Result("plain", 1, "ms", 2, "lower", {})

names = st.text(max_size=10)
figures = st.floats(allow_nan=False, allow_infinity=False, width=32)
comparisons = st.builds(
    Comparison,
    unit=names,
    better=st.sampled_from(["lower", "higher"]),
    ours=figures,
    others=st.dictionaries(names, figures, min_size=1, max_size=3),
    what=names,
)
all_series = st.builds(
    Series,
    of=names,
    over=names,
    lines=st.dictionaries(names, st.lists(st.tuples(figures, figures), max_size=3), max_size=3),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | figures | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=4,
)
results = st.builds(
    Result,
    name=names,
    value=figures,
    unit=names,
    goal=figures,
    better=st.sampled_from(["lower", "higher"]),
    details=st.dictionaries(names, values, max_size=3),
    comparison=st.none() | comparisons,
    series=st.none() | all_series,
)
seconds = st.none() | st.floats(0, 1e4)
ran = st.tuples(results, seconds).map(lambda both: Outcome(name=both[0].name, result=both[0], seconds=both[1]))
failed = st.builds(Outcome, name=names, failed=st.text(min_size=1, max_size=10), said=names, seconds=seconds)


@settings(max_examples=30)
@given(st.lists(ran | failed, max_size=3, unique_by=lambda outcome: outcome.name))
def test_what_is_printed_is_read_as_it_was(outcomes: list[Outcome]) -> None:
    """Whatever is in it, a line each."""
    lines = [outcome.to_json() for outcome in outcomes]
    assert not any("\n" in line for line in lines)
    assert read(lines).outcomes == outcomes


def test_a_result_keeps_the_promised_keys() -> None:
    """And has others only where there is something to say."""
    keys = {"name", "value", "unit", "goal", "better", "ok", "details"}
    assert set(json.loads(PLAIN.to_json())) == keys
    compared = Comparison(unit="ms", better="lower", ours=1, others={"peer": 2})
    grown = Series(of="ms", over="nodes", lines={"a": [(1, 2)]})
    both = Result("both", 1, "ms", 2, "lower", {}, comparison=compared, series=grown)
    assert set(json.loads(both.to_json())) == keys | {"comparison", "series"}
    assert set(json.loads(Outcome(name="both", result=both, seconds=2.5).to_json())) == keys | {
        "comparison",
        "series",
        "seconds",
    }


def test_a_line_of_a_single_benchmark_takes_the_place_of_an_older_one() -> None:
    """As it was printed, without a time; blank lines do not matter."""
    older = Outcome(name="plain", failed="exit code 1", seconds=3.0)
    seen = read([older.to_json(), "\n", Outcome(name="other", result=PLAIN).to_json(), PLAIN.to_json()])
    assert seen.outcomes == [Outcome(name="plain", result=PLAIN)]


@pytest.mark.parametrize(
    "line", ["no JSON", "[]", "{}", '{"name": "x"}', '{"name": "x", "value": null}', '{"environment": {}}']
)
def test_a_line_of_something_else_is_named(line: str) -> None:
    """By its number."""
    with pytest.raises(ValueError, match="line 2 is no result of a benchmark: "):
        read([PLAIN.to_json(), line])


def test_the_machine_is_what_it_is() -> None:
    """As the kernel tells it, and it is read again as it was."""
    found = look_around(quick=True)
    assert found.cores >= 1
    assert found.memory_bytes > 100_000_000
    assert found.cpu
    assert found.kernel.startswith("Linux ")
    assert found.began.endswith("+00:00")
    line = json.dumps({"environment": {name: getattr(found, name) for name in Environment.__struct_fields__}})
    assert read([line]).environments == [found]


def test_those_without_a_figure_are_not_compared() -> None:
    """And there is no comparison with nobody."""
    others = {"a": None, "b": 2.0}
    seen = Comparison.of_known(unit="ms", better="lower", ours=1.0, others=others)
    assert seen == Comparison(unit="ms", better="lower", ours=1.0, others={"b": 2.0})
    assert Comparison.of_known(unit="ms", better="lower", ours=None, others=others) is None
    assert Comparison.of_known(unit="ms", better="lower", ours=1.0, others={"a": None}) is None
