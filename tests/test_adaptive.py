"""The adaptive length takes what pays, never costs much, and comes back when text turns easy."""

import math
import random
from dataclasses import replace
from itertools import cycle, pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.speculative import adaptive
from paceline.speculative.acceptance import MAX_POSITIONS, MarginCurve, Profiles
from paceline.speculative.adaptive import (
    CREDIT_RATE,
    FIRST_CREDIT,
    PROBE_FIRST,
    PROBE_LAST,
    REFRESH_FIRST,
    REFRESH_LAST,
    AdaptiveDraftLength,
    best_length,
    margin_bounds,
    shared_lengths,
)
from paceline.speculative.controller import (
    DraftContext,
    FixedDraftLength,
    RoundCost,
    RoundOutcome,
    plan_round,
)
from paceline.speculative.costs import CostModel, Curve
from paceline.speculative.simulation import FixedByKind, Machine, linear, made_up, simulate

ALL_KEPT = (1.0,) * MAX_POSITIONS
MACHINE = Machine(name="cheap rows", passes=linear(0.04), draft_step=0.015)
COSTLY = Machine(name="costly rows", passes=linear(0.35), draft_step=0.1)
EASY, HARD, NEVER = (0.95,), (0.1, 0.05), (0.0,)


def curve_of(passes, *, step=0.1, fixed=0.0, overhead=0.0):
    return Curve(
        passes=tuple(passes), draft_fixed=fixed, draft_step=step, overhead=overhead, version=0
    )


def survivals_of(chances):
    found = [1.0]
    for chance in chances:
        found.append(found[-1] * chance)
    return found


def policy(machine=MACHINE, profiles=None):
    costs = machine.calibrated()
    costs.has_drafted = True
    return AdaptiveDraftLength(costs, profiles or Profiles())


def context(room=15, kind="text", length=100):
    return DraftContext(room=room, context_length=length, kind=kind)


def outcome(plan, accepted, machine=MACHINE, *, drafted=None, **fields):
    """Of a round alone in its pass, with the costs of a machine."""
    drafted = plan.max_draft_tokens if drafted is None else drafted
    steps = drafted + (drafted < plan.max_draft_tokens)
    cost = RoundCost(
        num_sequences=1,
        num_rows=1 + drafted,
        context_length=100,
        num_drafts=int(steps > 0),
        num_draft_steps=steps,
        num_tokens=1 + accepted,
        draft_s=machine.draft_s(steps),
        verify_s=machine.verify_s(1 + drafted),
        overhead_s=machine.overhead_s,
    )
    return RoundOutcome(
        num_draft_tokens=drafted,
        num_verified_tokens=drafted,
        num_accepted_tokens=accepted,
        num_draft_steps=steps,
        plan=plan,
        cost=cost,
        **fields,
    )


def run(policy, accepts, rounds, machine=MACHINE, **fields):
    """The lengths that are planned, where `accepts(length)` tokens are accepted."""
    lengths = []
    for _ in range(rounds):
        plan = policy.plan(context(**fields))
        lengths.append(plan.max_draft_tokens)
        policy.observe(outcome(plan, accepts(plan.max_draft_tokens), machine))
    return lengths


def parked(machine=COSTLY):
    """A policy that has seen nothing but wrong drafts."""
    found = policy(machine)
    run(found, lambda length: 0, 60, machine)
    return found


# --- The rule -----------------------------------------------------------------------------------

chances = st.lists(st.floats(0.01, 1.0), min_size=4, max_size=8)
costs = st.lists(st.floats(0.0, 0.5), min_size=8, max_size=8)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(chances, chances, costs, st.floats(0.0, 0.3), st.floats(0.0, 0.2), st.floats(0.0, 5.0))
def test_the_best_length_is_that_of_the_definition(taken, kept, rows, step, fixed, others):
    room = min(len(taken), len(kept))
    passes = [1.0]
    for row in rows:
        passes.append(passes[-1] + row)
    curve = curve_of(passes, step=step, fixed=fixed, overhead=0.01)

    def rate(length):
        tokens = 1.0 + others
        seconds = curve.plain + (fixed if length else 0.0)
        for k in range(length):
            reached = math.prod(kept[:k])
            seconds += reached * step + reached * kept[k] * rows[k]
            tokens += math.prod(kept[: k + 1]) * math.prod(taken[: k + 1])
        return tokens / seconds

    found = best_length(survivals_of(taken), kept, curve, room, others)
    best = max(range(room + 1), key=rate)
    if rate(best) > adaptive.LEAST_GAIN * rate(0) * 1.000001:
        assert rate(found.length) == pytest.approx(rate(best))
    else:
        assert found.length == 0
    assert found.rate == pytest.approx(rate(found.length))
    assert found.rate * found.seconds == pytest.approx(found.tokens + others)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(st.lists(st.floats(0.01, 1.0), max_size=3), min_size=1, max_size=3), costs)
def test_shared_rows_go_where_they_are_most_likely_accepted(texts, rows):
    """Against all ways to share them. Without a fixed part of drafts the rule is exact."""
    passes = [1.0]
    for row in rows + [0.1] * 8:
        passes.append(passes[-1] + row)
    curve, count = curve_of(passes, step=0.02), len(texts) + 1
    members = [(survivals_of(chances), ALL_KEPT, len(chances)) for chances in texts]

    def rate(lengths):
        tokens = count + sum(
            sum(survivals[1 : 1 + n]) for (survivals, _, _), n in zip(members, lengths, strict=True)
        )
        return tokens / (passes[2 + sum(lengths)] + 0.02 * sum(lengths))

    found = shared_lengths(members, curve, count, fixed_rows=2)
    lengths = [forecast.length for forecast in found]
    best = max(rate(each) for each in product(*(range(len(t) + 1) for t in texts)))
    plain = rate([0] * len(texts))
    expected = best if best > adaptive.LEAST_GAIN * plain * 1.000001 else plain
    assert rate(lengths) == pytest.approx(expected)
    assert {round(forecast.rate, 9) for forecast in found} == {round(rate(lengths), 9)}


def test_a_sequence_alone_shares_with_nobody():
    survivals = survivals_of((0.9, 0.8, 0.7, 0.6, 0.5))
    curve = curve_of((1, 1.1, 1.2, 1.4, 1.8, 2.5), step=0.02, fixed=0.05)
    assert shared_lengths([(survivals, ALL_KEPT, 5)], curve, 1, 0)[0] == pytest.approx(
        best_length(survivals, ALL_KEPT, curve, 5)
    )


def margins(slope=1.0, intercept=0.0, curve=None):
    """What a few thousand tokens teach of such a line."""
    curve, generator = curve or MarginCurve(), random.Random(1)
    for _ in range(64 * 40):
        margin = generator.expovariate(0.5)
        curve.observe((margin,), generator.random() < chance_of(margin, slope, intercept))
    return curve


def chance_of(margin, slope, intercept):
    return 1 / (1 + math.exp(-(slope * margin + intercept)))


def test_a_bound_is_where_the_chance_pays_for_the_row():
    curve = curve_of((1.0, 1.3))
    known = margins(1.5, -1.0)
    [bound] = margin_bounds(1, survivals_of((0.5,)), ALL_KEPT, curve, 2.0, known)
    assert chance_of(bound, known.slope, known.intercept) == pytest.approx(2.0 * 0.3)


def test_bounds_rise_with_the_rate_the_depth_and_the_cost_of_what_follows():
    survivals = survivals_of((0.7,) * 6)
    curve, known = curve_of([1 + 0.1 * n for n in range(7)], step=0.02), margins(1.0, -2.0)

    def bounds(rate=1.2, curve=curve, length=6):
        return margin_bounds(length, survivals, ALL_KEPT, curve, rate, known)

    assert all(a < b for a, b in pairwise(bounds()[3:]))
    assert all(a < b for a, b in zip(bounds(), bounds(rate=1.8), strict=True))
    costly = curve_of([1 + 0.2 * n for n in range(7)], step=0.02)
    assert all(a < b for a, b in zip(bounds(), bounds(curve=costly), strict=True))
    assert margin_bounds(3, survivals, ALL_KEPT, curve, 1.2, MarginCurve()) == ()


def test_bounds_are_margins_whatever_the_costs():
    flat = margins(0.15, 2.0)
    assert 0 < flat.slope < 0.3
    for rate in (0.0, 1e-9, 1.0, 1e9):
        curve = curve_of((1.0, 1.0, 2.0))
        bounds = margin_bounds(2, survivals_of((1e-9, 1e-9)), ALL_KEPT, curve, rate, flat)
        assert all(0.0 <= bound < math.inf for bound in bounds)


# --- One sequence -------------------------------------------------------------------------------


def test_easy_text_gets_long_drafts_and_hard_text_none():
    assert run(policy(), lambda length: length, 40)[-1] >= 12
    hard = run(policy(COSTLY), lambda length: 0, 40, COSTLY)
    assert sum(hard[10:]) <= 3
    assert run(policy(COSTLY), lambda length: min(1, length), 40, COSTLY)[-1] in (1, 2)


@pytest.mark.parametrize("room", [0, 1, 2, 7])
def test_a_draft_fits_into_the_room(room):
    lengths = run(policy(), lambda length: length, 40, room=room)
    assert max(lengths) == room
    limited = AdaptiveDraftLength(MACHINE.calibrated(), Profiles(), limit=room)
    assert max(run(limited, lambda length: length, 40)) == room


def test_before_the_costs_are_known_nothing_is_drafted():
    unknown = AdaptiveDraftLength(CostModel(), Profiles())
    lengths = run(unknown, lambda length: 0, 6)
    assert lengths[:3] == [0, 0, 0]
    assert lengths[3] > 0


def test_a_plan_says_what_it_expects():
    found = policy()
    run(found, lambda length: length, 60)
    plan = found.plan(context())
    assert 8 < plan.expected_tokens < 16
    assert plan.plain_s == pytest.approx(MACHINE.pass_s * 1.01, rel=0.02)
    assert plan.predicted_gain == pytest.approx(
        plan.expected_tokens * plan.plain_s / plan.expected_s
    )
    assert plan.predicted_gain > 5
    plain = found.plan(context(room=0))
    assert (plain.max_draft_tokens, plain.expected_tokens, plain.predicted_gain) == (0, 1.0, 1.0)


def test_what_texts_drafted_teaches_nothing_about_the_drafter():
    one, other = policy(), policy()
    one.costs.observe(outcome(one.plan(context(room=0)), 0).cost)
    for _ in range(20):
        plan = one.plan(context())
        one.observe(outcome(plan, 0, source="suffix"))
        other.plan(context())
    assert one.plan(context()).max_draft_tokens == other.plan(context()).max_draft_tokens
    assert one.credit == FIRST_CREDIT  # nor is it paid for
    assert one.costs.rounds_since_plain(100) == 20  # but its rows are rows


def test_a_draft_that_was_held_back_whole_is_a_draft():
    """The drafter ran and kept nothing: `source` is then "none"."""
    found = policy()
    run(found, lambda length: length, 3)
    margins(curve=found.profiles.of("text").curve)
    plan = found.plan(context())
    assert plan.min_confidences
    found.observe(outcome(plan, 0, drafted=0, source="none"))
    assert found._model.kept[0] < 1.0


def test_kinds_of_text_are_kept_apart():
    found = policy()
    run(found, lambda length: 0, 60, kind="prose")
    run(found, lambda length: length, 60, kind="code")
    assert found.plan(context(kind="prose")).max_draft_tokens <= 1  # a probe at most
    assert found.plan(context(kind="code")).max_draft_tokens > 8
    again = policy(profiles=found.profiles)  # the next sequence starts from there
    lengths = {kind: again.plan(context(kind=kind)).max_draft_tokens for kind in ("prose", "code")}
    assert lengths["code"] > lengths["prose"] + 3


# --- Never slower -------------------------------------------------------------------------------


def loss_to_off(found, machine, real=None, tokens=200, profile=NEVER):
    """Tokens that plain decoding would have made in the time that was lost."""
    real = real or machine
    text = made_up(profile, tokens, 3)
    off = simulate(FixedByKind({"text": 0}), text, real).seconds
    return (simulate(found, text, real).seconds - off) / (off / tokens)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.floats(0.0, 0.8), st.floats(0.0, 0.5), st.floats(0.0, 0.3), st.integers(20, 400))
def test_an_always_wrong_drafter_costs_no_more_than_the_credit(row, step, fixed, tokens):
    machine = Machine(name="any", passes=linear(row), draft_step=step, draft_fixed=fixed)
    lost = loss_to_off(policy(machine), machine, tokens=tokens)
    assert lost <= FIRST_CREDIT + CREDIT_RATE * tokens + 0.1


@pytest.mark.parametrize("machine", [MACHINE, COSTLY], ids=lambda machine: machine.name)
@pytest.mark.parametrize("slowness", [1, 10])
def test_a_slow_and_wrong_drafter_costs_two_percent_at_most(machine, slowness):
    """As slow as measured, or ten times slower than the calibration says."""
    real = replace(machine, draft_step=slowness * machine.draft_step)
    new = AdaptiveDraftLength(machine.calibrated(), Profiles())
    assert loss_to_off(new, machine, real) <= 0.02 * 200


def test_it_is_the_credit_that_limits_the_loss(monkeypatch):
    monkeypatch.setattr(adaptive, "FIRST_CREDIT", 1000.0)
    monkeypatch.setattr(adaptive, "MOST_CREDIT", 1000.0)
    assert loss_to_off(policy(COSTLY), COSTLY) > 0.02 * 200


def test_what_drafting_wins_can_be_lost_again_but_not_more(monkeypatch):
    found = policy(COSTLY)
    run(found, lambda length: length, 100, COSTLY)
    assert found.credit == adaptive.MOST_CREDIT
    run(found, lambda length: 0, 2000, COSTLY)
    assert 0 <= found.credit <= FIRST_CREDIT + 1


@pytest.mark.parametrize("hiccup", [3.0, 50.0])
def test_a_hiccup_of_the_clock_ends_no_drafting(hiccup):
    """One round in twelve takes three or fifty times as long."""
    found = policy()
    lengths = []
    for number in range(200):
        plan = found.plan(context())
        lengths.append(plan.max_draft_tokens)
        told = outcome(plan, plan.max_draft_tokens)
        if number % 12 == 5:
            cost = told.cost._replace(verify_s=hiccup * told.cost.verify_s)
            told = told._replace(cost=cost)
        found.observe(told)
    assert sum(length >= 8 for length in lengths) > 180


def test_plain_decoding_is_measured_again_and_again():
    lengths = run(policy(), lambda length: length, 2000)
    places = [place for place, length in enumerate(lengths) if length == 0]
    gaps = [b - a for a, b in pairwise(places)]
    assert REFRESH_FIRST < max(gaps) <= REFRESH_LAST + 1
    assert len(places) / len(lengths) < 0.008


def test_two_hiccups_of_plain_rounds_make_no_drafts_pay():
    """A plain round that seems three times as slow would make every draft look like a gain."""
    found = policy(COSTLY)
    run(found, lambda length: 0, 12, COSTLY)
    for _ in range(2):
        plan = found.plan(context())
        told = outcome(plan, 0, COSTLY)
        cost = told.cost._replace(verify_s=3 * told.cost.verify_s)
        found.observe(told._replace(cost=cost))
    assert sum(run(found, lambda length: 0, 200, COSTLY)) <= 5


def test_a_calibration_under_a_load_that_ended_is_soon_forgotten():
    """It made plain decoding look four times as slow as it is, and drafts that fail a gain."""
    points = {rows: COSTLY.verify_s(rows) for rows in (1, 2, 3, 5, 8, 16)}
    points |= {1: 4 * points[1], 2: 2 * points[2]}
    draft = COSTLY.pass_s * COSTLY.draft_fixed, COSTLY.pass_s * COSTLY.draft_step
    found = AdaptiveDraftLength(CostModel(points, draft, COSTLY.overhead_s), Profiles())
    taken = cycle((1, 0, 0, 0, 0))
    lengths = run(found, lambda length: min(length, next(taken)), 150, COSTLY)
    assert any(lengths[:30])
    assert sum(map(bool, lengths[60:])) < 9


# --- Parked -------------------------------------------------------------------------------------


def test_probes_back_off(monkeypatch):
    monkeypatch.setattr(adaptive, "PROBE_SHARE", 1e-9)  # as if they were dear
    found = parked()
    found.credit = FIRST_CREDIT
    lengths = run(found, lambda length: 0, 2500, COSTLY)
    places = [place for place, length in enumerate(lengths) if length]
    gaps = [b - a for a, b in pairwise(places)]
    assert set(lengths) == {0, 1}
    assert all(b == min(PROBE_LAST, 2 * a) or a < 8 for a, b in pairwise(gaps))
    assert gaps[-1] == PROBE_LAST


def test_cheap_probes_are_not_rare():
    """Rows cost 2 %: one every ten rounds or so costs next to nothing."""
    machine = Machine(name="free rows", passes=linear(0.01), draft_step=0.005)
    found = policy(machine)
    run(found, lambda length: 0, 200, machine)
    found.credit = FIRST_CREDIT
    lengths = run(found, lambda length: 0, 400, machine)
    assert sum(map(bool, lengths)) >= 30


def test_a_probe_that_wins_ends_parking():
    found = parked()
    found.credit = FIRST_CREDIT
    lengths = run(found, lambda length: length, 150, COSTLY)
    first = next(place for place, length in enumerate(lengths) if length)
    assert sum(map(bool, lengths[first : first + 10])) >= 8
    assert max(lengths) >= 3


def test_another_kind_of_text_is_tried_soon():
    found = parked()
    found.credit = FIRST_CREDIT
    found.profiles.probing("text").interval = PROBE_LAST
    found.plan(context(kind="code"))
    assert found.profiles.probing("code").interval == PROBE_FIRST


def test_a_probe_looks_at_the_margin_first():
    found = parked()
    margins(1.0, -2.0, found.profiles.of("text").curve)
    found.credit = FIRST_CREDIT
    probes = []
    for _ in range(400):
        plan = found.plan(context())
        drafted = 0
        if plan.max_draft_tokens:
            probes.append(plan.min_confidences)
            drafted = int(not plan.min_confidences)  # the margin is below every bound
        found.observe(outcome(plan, 0, COSTLY, drafted=drafted))
    with_bounds = [bounds for bounds in probes if bounds]
    assert len(with_bounds) > 4 * (len(probes) - len(with_bounds)) > 0
    assert all(0 < bound < 10 for [bound] in with_bounds)


# --- Several rounds at once ---------------------------------------------------------------------


def test_rounds_that_are_learned_together_count_as_they_do_in_turn():
    together, in_turn = policy(), policy()
    told = {}
    for found in (together, in_turn):
        run(found, lambda length: length, 3)
        plan = found.plan(context())
        told[found] = [outcome(plan, accepted) for accepted in (plan.max_draft_tokens, 1, 2)]
    together.observe_all(told[together])
    for each in told[in_turn]:
        in_turn.observe(each)
    assert together.credit == pytest.approx(in_turn.credit)
    assert together.plan(context()).expected_tokens == pytest.approx(
        in_turn.plan(context()).expected_tokens, rel=0.3
    )


def test_of_several_rounds_it_is_not_the_slow_last_one_whose_cost_counts():
    """Where time ends a decision, slow rounds are the last ones more often than others."""
    found = policy()
    for _ in range(20):
        plan = found.plan(context())
        told = [outcome(plan, plan.max_draft_tokens) for _ in range(5)]
        slow = told[-1].cost._replace(verify_s=5 * told[-1].cost.verify_s)
        found.observe_all([*told[:-1], told[-1]._replace(cost=slow)])
    rows = 1 + plan.max_draft_tokens
    known = found.costs.curve(100).passes[rows - 1]
    assert known == pytest.approx(MACHINE.verify_s(rows), rel=0.02)


def test_a_draft_that_is_cut_to_the_credit_is_weighed_anew():
    """What one token brings, not what the draft would have brought that cannot be paid for."""
    found = policy(COSTLY)
    run(found, lambda length: length, 60, COSTLY)
    margins(1.0, 0.0, found.profiles.of("text").curve)
    found.credit = 2.2 * found.decision.outlook.loss(1)
    plan = found.plan(context())
    assert plan.max_draft_tokens == 1
    assert plan.expected_tokens <= 2.0
    assert all(bound < 3.0 for bound in plan.min_confidences)


# --- Several sequences --------------------------------------------------------------------------


def shared(machine, *levels):
    """Policies of one engine, whose texts are as easy as these levels of the profile say."""
    costs, profiles = machine.calibrated(), Profiles()
    costs.has_drafted = True
    policies = []
    for level in levels:
        found = AdaptiveDraftLength(costs, profiles)
        found.plan(context())  # turns to its kind of text
        found._model.weights = [float(n == level) for n in range(len(found._model.weights))]
        found._num_drafts = 100
        policies.append(found)
    return policies


def test_rows_of_a_pass_go_to_the_easier_text():
    policies = shared(MACHINE, 4, 12)
    lengths = [p.max_draft_tokens for p in plan_round(policies, [context()] * 2)]
    assert lengths[1] > lengths[0] + 3
    # Costly rows leave the hard text nothing.
    policies = shared(COSTLY, 4, 12)
    policies[0]._probing.num_parked = 0
    plans = plan_round(policies, [context()] * 2)
    assert plans[0].max_draft_tokens == 0 < plans[1].max_draft_tokens
    assert plans[0].expected_s == plans[0].plain_s == plans[1].plain_s < plans[1].expected_s


def test_a_batch_drafts_less_for_each_than_a_sequence_alone():
    """With rows that share the cost of a pass, others' rows are already paid for."""
    machine = Machine(
        name="full at eight rows",
        passes=((1, 1.0), (8, 1.1), (16, 3.0)),
        draft_step=0.01,
    )
    [alone] = plan_round(shared(machine, 11), [context()])
    together = plan_round(shared(machine, *[11] * 6), [context()] * 6)
    assert alone.max_draft_tokens >= 5
    assert sum(plan.max_draft_tokens for plan in together) <= 6


def test_others_plan_for_themselves_and_count():
    policies = shared(MACHINE, 11)
    fixed, elsewhere = FixedDraftLength(6, 15), policy()
    plans = plan_round([fixed, *policies, elsewhere], [context()] * 3)
    assert plans[0].max_draft_tokens == 6
    assert plans[1].max_draft_tokens > 0
    assert plans[2].max_draft_tokens > 0
    assert elsewhere.decision.plan is plans[2]
    long = FixedDraftLength(40, 40)
    plans = plan_round([long, *shared(MACHINE, 11)], [context(room=40), context()])
    assert [plans[0].max_draft_tokens, plans[1].max_draft_tokens > 0] == [40, True]


def test_room_zero_and_unknown_costs_in_a_batch():
    policies = shared(MACHINE, 11, 11)
    plans = plan_round(policies, [context(room=0), context()])
    assert plans[0].max_draft_tokens == 0 < plans[1].max_draft_tokens
    costs, profiles = CostModel(), Profiles()
    unknown = [AdaptiveDraftLength(costs, profiles) for _ in range(3)]
    assert {p.max_draft_tokens for p in plan_round(unknown, [context()] * 3)} == {0}


def batch_outcomes(plans, accepted, machine):
    rows = len(plans) + sum(plan.max_draft_tokens for plan in plans)
    steps = rows - len(plans)
    cost = RoundCost(
        num_sequences=len(plans),
        num_rows=rows,
        context_length=100,
        num_drafts=sum(plan.max_draft_tokens > 0 for plan in plans),
        num_draft_steps=steps,
        num_tokens=len(plans) + sum(accepted),
        draft_s=machine.draft_s(steps),
        verify_s=machine.verify_s(rows),
        overhead_s=machine.overhead_s,
    )
    return [
        RoundOutcome(
            num_draft_tokens=plan.max_draft_tokens,
            num_verified_tokens=plan.max_draft_tokens,
            num_accepted_tokens=taken,
            plan=plan,
            cost=cost,
        )
        for plan, taken in zip(plans, accepted, strict=True)
    ]


def test_a_batch_with_a_drafter_that_is_always_wrong_loses_little():
    machine = Machine(name="batch", passes=((1, 1.0), (64, 10.0)), draft_step=0.05)
    costs, profiles = machine.calibrated(), Profiles()
    policies = [AdaptiveDraftLength(costs, profiles) for _ in range(4)]
    seconds = 0.0
    for _ in range(200):
        plans = plan_round(policies, [context()] * 4)
        outcomes = batch_outcomes(plans, [0] * 4, machine)
        cost = outcomes[0].cost
        seconds += cost.draft_s + cost.verify_s + cost.overhead_s
        for found, told in zip(policies, outcomes, strict=True):
            found.observe(told)
    assert seconds <= 1.02 * 200 * (machine.verify_s(4) + machine.overhead_s)


def test_a_batch_measures_plain_decoding_too():
    policies = shared(MACHINE, 12, 12)
    plain = 0
    for _ in range(600):
        plans = plan_round(policies, [context()] * 2)
        plain += sum(plan.max_draft_tokens for plan in plans) == 0
        told = batch_outcomes(plans, [plan.max_draft_tokens for plan in plans], MACHINE)
        for found, each in zip(policies, told, strict=True):
            found.observe(each)
    assert 1 <= plain <= 20
