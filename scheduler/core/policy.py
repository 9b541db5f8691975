"""By which strategies a request is decided: the first rule that holds for it says so.

```yaml
policy: default
rules:
  - {name: halls, when: {ip: 10.0.0.0/8}, strategies: [sticky]}
  - {name: others, strategies: [canary, proximity, least_connections]}
```

Every rule names exactly one way to choose among nodes: `least_connections`, `weighted` (at random by capacity) or
`sticky` (the same user, the same nodes). It may add `canary` (rollouts count) and `proximity` (nearest region first).
The last rule has no condition, and only that one, so that each request has a rule and each rule may have requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, cast

import msgspec

from scheduler.core.condition_document import read_condition
from scheduler.core.conditions import Condition, Lists, Test, compile_condition, list_names
from scheduler.core.document import Fault, Faults, Node, read_tree
from scheduler.core.fields import Fields, Read, choice, entries, items, name, named_twice
from scheduler.core.request import Request

__all__ = ["DEFAULT_POLICY", "CompiledPolicy", "CompiledRule", "Pick", "Policy", "Rule", "Strategy", "parse_policy"]

RULES_MAX: Final = 100

Strategy = Literal["canary", "proximity", "least_connections", "weighted", "sticky"]
Pick = Literal["least_connections", "weighted", "sticky"]
PICKS: Final[tuple[Pick, ...]] = ("least_connections", "weighted", "sticky")


class Rule(msgspec.Struct, frozen=True):
    """What is done with requests that fulfil `when`; None: with all."""

    name: str
    strategies: frozenset[Strategy]
    when: Condition | None = None


class Policy(msgspec.Struct, frozen=True):
    """Rules in their order; the last is for whoever is left."""

    name: str
    rules: tuple[Rule, ...]


DEFAULT_POLICY: Final = Policy("default", (Rule("all", frozenset({"canary", "proximity", "least_connections"})),))


class CompiledRule(NamedTuple):
    """A rule as a decision asks for it."""

    by_canary: bool
    by_proximity: bool
    pick: Pick


class CompiledPolicy:
    """A policy that is ready to choose rules. Immutable."""

    __slots__ = ("_last", "_rules", "missing_lists", "policy")

    def __init__(self, policy: Policy, lists: Lists | None = None) -> None:
        """`lists` are those that conditions may name."""
        assert policy.rules, "documents without rules are refused"
        assert policy.rules[-1].when is None, "documents whose last rule has a condition are refused"
        known: Mapping[str, frozenset[str]] = lists or {}
        self.policy = policy
        self._rules: list[tuple[Test, tuple[int, CompiledRule]]] = []
        named: set[str] = set()
        for number, rule in enumerate(policy.rules):
            if rule.when is not None:
                self._rules.append((compile_condition(rule.when, known), (number, _compiled(rule))))
                named.update(list_names(rule.when))
        self._last = (len(policy.rules) - 1, _compiled(policy.rules[-1]))
        self.missing_lists = tuple(sorted(named - known.keys()))
        """Lists that conditions name and nobody has written: nobody is in them."""

    def rule_for(self, request: Request) -> tuple[int, CompiledRule]:
        """Return the first rule that holds, with its number in the policy."""
        for test, numbered in self._rules:
            if test(request):
                return numbered
        return self._last


def _compiled(rule: Rule) -> CompiledRule:
    (pick,) = (pick for pick in PICKS if pick in rule.strategies)
    return CompiledRule("canary" in rule.strategies, "proximity" in rule.strategies, pick)


# ---------------------------------------------------------------- from a document


def parse_policy(source: str | bytes) -> Policy | tuple[Fault, ...]:
    """Return the policy, or all that is wrong with the text, by line: at least one fault then."""
    faults = Faults()
    root = read_tree(source, faults)
    policy = None if root is None else _policy(root, faults)
    return policy if policy is not None and not faults else faults.listed()


def _policy(node: Node, faults: Faults) -> Policy | None:
    fields = Fields(node, faults)
    policy = Policy(fields.required("policy", name, ""), fields.required("rules", _rules, ()))
    return policy if fields.close() else None


def _rules(node: Node, faults: Faults) -> tuple[Rule, ...] | None:
    rules = entries(_rule, most=RULES_MAX)(node, faults)
    if rules is None:
        return None
    named_twice([(place, rule.name) for place, rule in rules if rule is not None], faults)
    for place, rule in rules[:-1]:
        if rule is not None and rule.when is None:
            faults.add(
                place.line, f"{place.path}: a rule without when takes every request: no rule after it is reached"
            )
    place, last = rules[-1]
    if last is not None and last.when is not None:
        faults.add(place.line, f"{place.path}: the last rule must not have when: somebody must decide the rest")
    return tuple(rule for _, rule in rules if rule is not None)


_WHEN: Final[Read[Condition]] = read_condition
_STRATEGY: Final = choice("canary", "proximity", *PICKS)


def _rule(node: Node, faults: Faults) -> Rule | None:
    fields = Fields(node, faults)
    rule_name = fields.required("name", name, "")
    when = fields.optional("when", _WHEN, None)
    strategies = fields.required("strategies", items(_STRATEGY, most=5), ())
    if not fields.close():
        return None
    if len(set(strategies)) < len(strategies):
        fields.fault("strategies", "a strategy is named twice")
    if len(set(PICKS).intersection(strategies)) != 1:
        fields.fault("strategies", f"exactly one of {', '.join(PICKS)} is needed")
    rule = Rule(rule_name, cast("frozenset[Strategy]", frozenset(strategies)), when)
    return rule if fields.is_good else None
