"""Policies: which rule decides, against a walk over the rules, and what their documents must say."""

from __future__ import annotations

from itertools import combinations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.conditions import AddressIn, FieldIn, Listed
from scheduler.core.policy import DEFAULT_POLICY, PICKS, CompiledPolicy, Policy, Rule, parse_policy
from scheduler.core.request import Request

DOCUMENT = """\
policy: halls
rules:
  - name: halls
    when: {ip: 10.0.0.0/8}
    strategies: [sticky]
  - {name: staff, when: {user: {in: staff}}, strategies: [weighted, canary]}
  - {name: others, strategies: [canary, proximity, least_connections]}
"""
POLICY = Policy(
    "halls",
    (
        Rule("halls", frozenset({"sticky"}), AddressIn(("10.0.0.0/8",))),
        Rule("staff", frozenset({"weighted", "canary"}), Listed("user", "staff")),
        Rule("others", frozenset({"canary", "proximity", "least_connections"})),
    ),
)
LISTS = {"staff": frozenset({"alice"})}


def parsed(document: str) -> Policy:
    policy = parse_policy(document)
    assert isinstance(policy, Policy), policy
    return policy


# ---------------------------------------------------------------- choosing


@given(st.lists(st.sampled_from("abc"), max_size=4), st.sampled_from("abcd"))
def test_the_first_rule_that_holds_decides(users: list[str], user: str):
    """The last is for whoever is left."""
    rules = [Rule(f"r{at}", frozenset({"weighted"}), FieldIn("user", (each,))) for at, each in enumerate(users)]
    policy = CompiledPolicy(Policy("p", (*rules, Rule("rest", frozenset({"sticky"})))))
    number, rule = policy.rule_for(Request(user))
    assert number == (users.index(user) if user in users else len(users))
    assert rule.pick == ("weighted" if user in users else "sticky")


def test_a_rule_is_handed_out_as_its_strategies():
    """What a decision asks for on the hot path."""
    policy = CompiledPolicy(POLICY, LISTS)
    assert policy.rule_for(Request("x", address="10.1.1.1")) == (0, (False, False, "sticky"))
    assert policy.rule_for(Request("alice")) == (1, (True, False, "weighted"))
    assert policy.rule_for(Request("bob")) == (2, (True, True, "least_connections"))
    assert policy.policy is POLICY


def test_lists_that_nobody_wrote_are_named():
    """Nobody is in them."""
    assert CompiledPolicy(POLICY).missing_lists == ("staff",)
    assert CompiledPolicy(POLICY, LISTS).missing_lists == ()
    assert CompiledPolicy(POLICY).rule_for(Request("alice"))[0] == 2


def test_without_a_document_all_that_is_common_is_done():
    """Rollouts count, the nearest region comes first, the less loaded node is taken."""
    assert CompiledPolicy(DEFAULT_POLICY).rule_for(Request("a")) == (0, (True, True, "least_connections"))


@pytest.mark.parametrize("rules", [(), (Rule("a", frozenset({"sticky"}), FieldIn("user", ("a",))),)])
def test_a_policy_that_decides_nothing_for_some_is_our_own_bug(rules: tuple[Rule, ...]):
    """Documents with such a one are refused."""
    with pytest.raises(AssertionError):
        CompiledPolicy(Policy("p", rules))


# ---------------------------------------------------------------- documents


def test_a_document_is_its_policy():
    """As text, and as bytes from the registry."""
    assert parsed(DOCUMENT) == POLICY
    assert parse_policy(DOCUMENT.encode()) == POLICY
    assert msgspec.json.decode(msgspec.json.encode(POLICY), type=Policy) == POLICY


def test_every_set_of_strategies_needs_exactly_one_way_to_choose():
    """All thirty-one of them."""
    every = ["canary", "proximity", *PICKS]
    for size in range(1, 6):
        for strategies in combinations(every, size):
            policy = parse_policy(f"{{policy: p, rules: [{{name: a, strategies: [{', '.join(strategies)}]}}]}}")
            is_good = len(set(strategies) & set(PICKS)) == 1
            assert isinstance(policy, Policy) is is_good, strategies
            if isinstance(policy, Policy):
                assert policy.rules[0].strategies == set(strategies)


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        (("policy: halls", "policy: Halls"), [(1, "is not a name")]),
        (("policy: halls\n", ""), [(1, "policy is missing")]),
        (("rules:", "rule:"), [(1, "rules is missing"), (2, "did you mean rules?")]),
        (("name: staff", "name: halls"), [(6, "halls is a name already, in line 3")]),
        (("name: staff, ", ""), [(6, "name is missing")]),
        (("when: {user: {in: staff}}, ", ""), [(6, "no rule after it is reached")]),
        (("name: others,", "name: others, when: {user: a},"), [(7, "last rule must not have when")]),
        (("[sticky]", "[stickky]"), [(5, "did you mean sticky?")]),
        (("[sticky]", "[sticky, weighted]"), [(5, "exactly one of least_connections, weighted, sticky")]),
        (("[sticky]", "[sticky, sticky]"), [(5, "named twice")]),
        (("[sticky]", "[]"), [(5, "0 entries")]),
        (("[weighted, canary]", "[canary]"), [(6, "exactly one of")]),
        (("ip: 10.0.0.0/8", "ip: 10.0.0.1/8"), [(4, "did you mean 10.0.0.0/8?")]),
        (("name: others", "nam: others"), [(7, "name is missing"), (7, "did you mean name?")]),
        (("policy: halls", "policy: *halls"), [(1, "aliases")]),
        (("policy: halls", "policy: halls\npolicy: halls"), [(2, "already")]),
    ],
)
def test_what_is_wrong_with_a_policy_is_named_with_its_line(change: tuple[str, str], faults: list[tuple[int, str]]):
    """Nothing else is complained of."""
    found = parse_policy(DOCUMENT.replace(*change))
    assert isinstance(found, tuple)
    assert [fault.line for fault in found] == [line for line, _ in faults]
    for fault, (_, words) in zip(found, faults, strict=True):
        assert words in fault.message


@pytest.mark.parametrize("document", ["", "[", "a", "rules: 1\npolicy: p", "{policy: p, rules: []}", b"\xff"])
def test_what_is_no_policy_at_all_is_refused(document: str | bytes):
    """With one fault or more."""
    faults = parse_policy(document)
    assert isinstance(faults, tuple)
    assert faults
