"""A decision stands as long as it is worth its time, and no longer than it is good."""

from dataclasses import replace
from itertools import groupby

import pytest

from paceline.speculative.acceptance import Profiles
from paceline.speculative.adaptive import KNOWN_CREDIT, AdaptiveDraftLength
from paceline.speculative.controller import DraftContext, FixedDraftLength, plan_round
from paceline.speculative.costs import TRUSTED_PASSES, CostModel
from paceline.speculative.pace import (
    KNOWN_DRAFTS,
    MOST_ROUNDS,
    OPENING_USES,
    PATIENCE,
    PacedDraftLength,
)
from paceline.speculative.simulation import Machine, linear, made_up, simulate
from test_adaptive import context, outcome, run

LONG = Machine(name="rounds of 50 ms", passes=linear(0.04), draft_step=0.015)
SHORT = replace(LONG, name="rounds of 0.2 ms", pass_s=0.0002)


def paced(machine, costs=None, profiles=None, openings=None):
    inner = AdaptiveDraftLength(costs or machine.calibrated(), profiles or Profiles())
    return PacedDraftLength(inner, openings)


def stood(machine, accepts, rounds, found=None):
    """For how many rounds each plan stood."""
    found, plans = found or paced(machine), []
    for _ in range(rounds):
        plans.append(found.plan(context()))
        found.observe(outcome(plans[-1], accepts(plans[-1].max_draft_tokens), machine))
    return [len([*group]) for _, group in groupby(plans, key=id)]


def test_where_rounds_are_long_each_is_decided_for():
    assert set(stood(LONG, lambda length: length, 100)) == {1}


def test_with_long_rounds_it_decides_as_without_a_pace():
    text = made_up((0.8, 0.7, 0.6), 300, 5)
    alone = AdaptiveDraftLength(LONG.calibrated(), Profiles())
    assert simulate(paced(LONG), text, LONG).lengths == simulate(alone, text, LONG).lengths


def test_where_rounds_are_short_a_decision_stands_for_several():
    times = stood(SHORT, lambda length: length, 400)
    assert MOST_ROUNDS - 5 <= max(times) <= MOST_ROUNDS
    assert len(times) < 400 / 8


def with_a_fresh_decision(machine):
    """A policy that has just decided to draft in easy text, and its plan."""
    found = paced(machine)
    run(found, lambda length: length, 200, machine)
    found.learn()
    while not found.plan(context()).max_draft_tokens:
        found.observe(outcome(found.plan(context()), 0, machine))
        found.learn()
    return found, found.plan(context())


def test_wrong_drafts_end_a_decision_before_they_lose_much():
    found, plan = with_a_fresh_decision(SHORT)
    wrong = outcome(plan, 0, SHORT)
    extra_s = wrong.cost.draft_s + wrong.cost.verify_s - SHORT.verify_s(1)
    loss = extra_s / (SHORT.verify_s(1) + SHORT.overhead_s)
    lost = 0.0
    while found.plan(context()) is plan:
        found.observe(wrong)
        lost += loss
    assert PATIENCE < lost < PATIENCE + loss + 0.1


def test_a_decision_that_wins_less_than_expected_stands():
    """Only what loses to plain decoding ends it early."""
    found, plan = with_a_fresh_decision(SHORT)
    assert plan.expected_tokens > 3.0
    for _ in range(MOST_ROUNDS // 2):
        assert found.plan(context()) is plan
        found.observe(outcome(plan, 1, SHORT))


def test_an_always_wrong_drafter_costs_two_percent_at_most():
    text = made_up((0.0,), 200, 3)
    taken = simulate(paced(SHORT), text, SHORT).seconds
    plain_s = SHORT.verify_s(1) + SHORT.overhead_s
    assert taken <= 1.02 * 200 * plain_s


def test_what_stands_ends_with_the_kind_of_text_and_is_taken_up_again():
    found = paced(SHORT)
    run(found, lambda length: length, 20, SHORT)
    plan = found.plan(context())
    assert found.plan(context()) is plan
    code = found.plan(context(kind="code"))
    assert code is not plan
    assert found.plan(context()) is plan


def test_a_decision_that_disappointed_is_not_taken_up_again():
    found = paced(SHORT)
    run(found, lambda length: length, 20, SHORT)
    plan = found.plan(context())
    while found.plan(context()) is plan:
        found.observe(outcome(plan, 0, SHORT))
    found.plan(context(kind="code"))
    assert found.plan(context()) is not plan


def test_nothing_stands_before_costs_are_known():
    """Else an engine that was not calibrated would take a hundred rounds to know its machine."""
    found = PacedDraftLength(AdaptiveDraftLength(CostModel(), Profiles()))
    run(found, lambda length: length, TRUSTED_PASSES, SHORT)
    assert found.policy.costs.is_known


def test_what_was_not_yet_learned_is_learned_at_the_end():
    found = paced(SHORT)
    run(found, lambda length: length, 60, SHORT)
    found.learn()
    found.plan(context())
    before = found.policy._model.survivals()
    run(found, lambda length: length, 3, SHORT)
    assert found.policy._model.survivals() == before
    found.learn()
    assert found.policy._model.survivals() != before


def test_a_batch_learns_first_and_is_decided_for_each_round():
    costs, profiles = SHORT.calibrated(), Profiles()
    policies = [paced(SHORT, costs, profiles) for _ in range(2)]
    for found in policies:
        run(found, lambda length: length, 40, SHORT)
    assert any(found._told for found in policies)
    plans = plan_round([*policies, FixedDraftLength(3, 8)], [context()] * 3)
    assert not any(found._told for found in policies)
    assert plans[2].max_draft_tokens == 3
    assert plans[:2] == [found.policy.decision.plan for found in policies]


def test_a_batch_after_a_parked_round_learns_from_its_drafts():
    """Some of its rounds have a draft, whatever was decided when the sequence was alone."""
    costs, profiles = SHORT.calibrated(), Profiles()
    policies = [paced(SHORT, costs, profiles) for _ in range(2)]
    for found in policies:
        assert found.plan(context(room=0)).max_draft_tokens == 0
        found.observe(outcome(found.plan(context(room=0)), 0, SHORT))
    plans = plan_round(policies, [context()] * 2)
    assert all(plan.max_draft_tokens for plan in plans)
    for found, plan in zip(policies, plans, strict=True):
        before = found.policy._model.survivals()
        found.observe(outcome(plan, plan.max_draft_tokens, SHORT))
        found.learn()
        assert found.policy._model.survivals()[1] > before[1]


# --- Openings -----------------------------------------------------------------------------------


def answers(count, machine, openings, costs, profiles):
    """The first plans of several answers to which everything is accepted."""
    plans = []
    for _ in range(count):
        found = paced(machine, costs, profiles, openings)
        plans.append(found.plan(context()))
        run(found, lambda length: length, 12, machine)
        found.learn()
    return plans


@pytest.mark.parametrize(("machine", "shared"), [(SHORT, True), (LONG, False)])
def test_answers_of_short_rounds_begin_with_one_decision(machine, shared):
    costs, profiles, openings = machine.calibrated(), Profiles(), {}
    answers(30, machine, openings, costs, profiles)
    assert profiles.of("text").counts[0] > KNOWN_DRAFTS
    plans = answers(2 * OPENING_USES, machine, openings, costs, profiles)
    assert (len({id(plan) for plan in plans}) <= 8) == shared


def test_an_unknown_kind_of_text_has_no_opening():
    openings = {}
    answers(1, SHORT, openings, SHORT.calibrated(), Profiles())
    assert openings == {}


def test_an_answer_that_begins_with_an_opening_learns_from_it():
    costs, profiles, openings = SHORT.calibrated(), Profiles(), {}
    answers(32, SHORT, openings, costs, profiles)
    assert openings["text"].uses_left > 0
    found = paced(SHORT, costs, profiles, openings)
    plan = found.plan(DraftContext(room=15, context_length=100, kind="text"))
    assert plan is openings["text"].decision.plan
    before = found.policy._model.survivals()
    found.observe(outcome(plan, 0, SHORT))
    found.learn()
    assert found.policy._model.survivals()[1] < before[1]
    assert found.policy.credit < KNOWN_CREDIT


def test_an_opening_ends_with_the_first_decision_against_drafts():
    costs, profiles, openings = SHORT.calibrated(), Profiles(), {}
    answers(32, SHORT, openings, costs, profiles)
    assert "text" in openings
    found = paced(SHORT, costs, profiles, openings)
    for _ in range(60):
        plan = found.plan(context())
        found.observe(outcome(plan, 0, SHORT))
    assert "text" not in openings
