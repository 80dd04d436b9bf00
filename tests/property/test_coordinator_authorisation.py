"""The one decision on who may do what, over all roles and rules."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.api.method_policy import METHOD_POLICY
from coordinator.domain.authorisation import Bearer, Outsider, Ownership, Rule, is_allowed
from hansa.contract.directory import Role

BEARERS: list[Bearer] = [*Role, *Outsider]
ROLES = st.frozensets(st.sampled_from(BEARERS))
RULES = st.builds(Rule, any_owner=ROLES, own=ROLES, changes=st.booleans())
OWNERSHIPS = st.sampled_from(Ownership)


@given(RULES, OWNERSHIPS)
def test_nobody_without_a_role_may_do_anything(rule: Rule, ownership: Ownership) -> None:
    assert not is_allowed(frozenset(), rule, ownership)


@given(ROLES, ROLES, RULES, OWNERSHIPS)
def test_another_role_never_takes_a_right_away_and_gives_no_other_than_its_own(
    some: frozenset[Bearer], more: frozenset[Bearer], rule: Rule, ownership: Ownership
) -> None:
    together = is_allowed(some | more, rule, ownership)
    assert together == (is_allowed(some, rule, ownership) or is_allowed(more, rule, ownership))


@given(ROLES, RULES)
def test_who_may_act_on_others_things_may_act_on_their_own(roles: frozenset[Bearer], rule: Rule) -> None:
    if is_allowed(roles, rule, Ownership.OTHERS):
        assert is_allowed(roles, rule, Ownership.OWN)


@given(ROLES, RULES)
def test_who_may_act_on_nothing_is_refused_before_anything_is_looked_up(roles: frozenset[Bearer], rule: Rule) -> None:
    acts = any(is_allowed(roles, rule, ownership) for ownership in (Ownership.OWN, Ownership.OTHERS))
    assert is_allowed(roles, rule, Ownership.OPEN) == acts


@given(RULES, OWNERSHIPS)
def test_an_auditor_changes_nothing_whatever_the_rule_says(rule: Rule, ownership: Ownership) -> None:
    assert not (rule.changes and is_allowed({Role.AUDITOR}, rule, ownership))


@given(st.sampled_from(sorted(METHOD_POLICY)), st.frozensets(st.sampled_from(list(Role))))
def test_the_tables_rows_mean_what_they_name(method: str, roles: frozenset[Role]) -> None:
    rule = METHOD_POLICY[method].rule
    assert is_allowed(roles, rule, Ownership.OPEN) == bool(roles & rule.roles)
