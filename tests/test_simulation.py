"""The simulator counts what a policy would take, and the adaptive length is close to the oracle."""

import statistics
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import simulate_controller as report
from paceline.speculative.acceptance import Profiles
from paceline.speculative.adaptive import AdaptiveDraftLength
from paceline.speculative.controller import DraftPlan
from paceline.speculative.simulation import (
    CONTEXT_LENGTH,
    MAX_DRAFT_TOKENS,
    FixedByKind,
    Machine,
    Text,
    Unlabelled,
    best_fixed,
    joined,
    linear,
    made_up,
    simulate,
    total_s,
)

MACHINE = Machine(name="a machine", passes=linear(0.1), draft_step=0.05, draft_fixed=0.02)


class Recorder:
    """Asks for the lengths of a list, over and over, and notes what came of it."""

    def __init__(self, lengths, bounds=()):
        self.lengths, self.bounds = lengths, bounds
        self.contexts, self.outcomes = [], []

    def plan(self, context):
        self.contexts.append(context)
        length = self.lengths[len(self.outcomes) % len(self.lengths)]
        return DraftPlan(max_draft_tokens=length, min_confidences=self.bounds)

    def observe(self, outcome):
        self.outcomes.append(outcome)


def text_of(rows, margins=None):
    """A text whose draft from place t meets the t-th row."""
    taken = np.zeros((len(rows), MAX_DRAFT_TOKENS), bool)
    for place, row in enumerate(rows):
        taken[place, : len(row)] = row
    if margins is None:
        margins = np.ones(taken.shape)
    return Text(taken=taken, margins=margins)


# --- One text -----------------------------------------------------------------------------------


def test_rounds_are_those_of_the_text():
    policy = Recorder([2, 0, 3])
    text = text_of([[1, 0], [], [], [1, 1, 1], [], [], [], [], []])
    run = simulate(policy, text, MACHINE)
    counts = [(o.num_draft_tokens, o.num_accepted_tokens) for o in policy.outcomes]
    assert counts == [(2, 1), (0, 0), (3, 3), (1, 0), (0, 0)]
    assert [c.context_length - CONTEXT_LENGTH for c in policy.contexts] == [0, 2, 3, 7, 8]
    assert [c.room for c in policy.contexts] == [8, 6, 5, 1, 0]
    assert (run.tokens, run.lengths) == (9, (2, 0, 3, 1, 0))
    rows = [3, 1, 4, 2, 1]
    assert [o.cost.num_rows for o in policy.outcomes] == rows
    assert run.seconds == pytest.approx(
        sum(MACHINE.verify_s(n) + MACHINE.draft_s(n - 1) + MACHINE.overhead_s for n in rows)
    )
    assert [o.cost.num_tokens for o in policy.outcomes] == [2, 1, 4, 1, 1]


def test_a_token_below_its_bound_is_held_back_but_paid_for():
    margins = np.ones((4, MAX_DRAFT_TOKENS))
    margins[0, 2] = 0.4
    policy = Recorder([5], bounds=(0.5, 0.5, 0.5))
    simulate(policy, text_of([[1, 1, 1], [], [], []], margins), MACHINE)
    first = policy.outcomes[0]
    assert (first.num_draft_tokens, first.num_accepted_tokens) == (2, 2)
    assert (first.cost.num_draft_steps, first.cost.num_rows) == (3, 3)
    assert first.confidences == (1.0, 1.0)
    assert first.cost.draft_s == pytest.approx(MACHINE.draft_s(3))


def test_costs_of_a_machine():
    assert MACHINE.verify_s(1) == MACHINE.pass_s
    assert MACHINE.verify_s(3) == pytest.approx(1.2 * MACHINE.pass_s)
    assert MACHINE.draft_s(0) == 0.0
    assert MACHINE.draft_s(4) == pytest.approx(0.22 * MACHINE.pass_s)
    curve = MACHINE.calibrated().curve(100)
    assert curve.passes[5] == pytest.approx(MACHINE.verify_s(6))
    assert curve.draft_fixed + 4 * curve.draft_step == pytest.approx(MACHINE.draft_s(4))


def test_noise_is_seen_by_the_policy_and_not_counted():
    noisy = replace(MACHINE, noise=0.3, hiccups=0.2)
    text, quiet, loud = made_up((0.5,), 60, 1), Recorder([2]), Recorder([2])
    assert simulate(quiet, text, MACHINE) == simulate(loud, text, noisy, seed=3)
    seen = [o.cost.verify_s / noisy.verify_s(o.cost.num_rows) for o in loud.outcomes]
    assert max(seen) > 2 > 1 > min(seen)
    again = Recorder([2])
    simulate(again, text, noisy, seed=3)
    assert again.outcomes == loud.outcomes
    other = Recorder([2])
    simulate(other, text, noisy, seed=4)
    assert other.outcomes != loud.outcomes


# --- Made-up texts ------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", report.PROFILES.values(), ids=report.PROFILES)
def test_a_made_up_text_has_the_acceptance_of_its_profile(profile):
    text = made_up(profile, 20_000, 5)
    expected = [profile[min(k, len(profile) - 1)] for k in range(MAX_DRAFT_TOKENS)]
    assert text.taken.mean(axis=0) == pytest.approx(expected, abs=0.015)
    assert (made_up(profile, 50, 5).taken == made_up(profile, 50, 5).taken).all()


def chance_that_a_taken_token_has_the_larger_margin(text):
    margins, taken = text.margins[:, 0], text.taken[:, 0]
    ranks = np.argsort(np.argsort(margins))
    count, others = taken.sum(), (~taken).sum()
    return (ranks[taken].sum() - count * (count - 1) / 2) / (count * others)


def test_margins_tell_taken_tokens_from_others_where_they_are_to():
    profile = report.PROFILES["chat"]
    told = chance_that_a_taken_token_has_the_larger_margin(made_up(profile, 20_000, 6))
    assert 0.85 < told < 0.9
    untold = made_up(profile, 20_000, 6, informative=False)
    assert chance_that_a_taken_token_has_the_larger_margin(untold) == pytest.approx(0.5, abs=0.02)
    assert (untold.margins >= 0).all()


def test_joined_texts_keep_their_kinds():
    one, other = made_up((0.5,), 10, 1), replace(made_up((0.9,), 5, 2), kinds=("code",))
    text = joined([one, other])
    assert (len(text), text.kind(9), text.kind(10), text.kind(14)) == (15, "text", "code", "code")
    assert (text.taken[10:] == other.taken).all()


# --- Oracles ------------------------------------------------------------------------------------


def test_the_best_fixed_length_is_the_one_that_takes_least_time():
    texts = [made_up(report.PROFILES["chat"], 200, n) for n in range(6)]
    length, seconds = best_fixed(texts, MACHINE)
    assert 1 <= length <= 4
    for other in range(16):
        fixed = total_s(lambda n=other: FixedByKind({"text": n}), texts, MACHINE)
        assert fixed >= seconds
        assert (fixed == seconds) == (other == length)


def test_an_unlabelled_policy_is_not_told_the_kind():
    policy = Recorder([1])
    simulate(Unlabelled(policy), replace(made_up((0.5,), 9, 1), kinds=("code",)), MACHINE)
    assert {context.kind for context in policy.contexts} == {""}
    assert len(policy.contexts) == len(policy.outcomes)


# --- The adaptive length against the oracle -----------------------------------------------------
# `python benchmarks/simulate_controller.py` runs the same on more texts, and prints all of it.


def test_the_regret_of_steady_texts_is_small():
    found = report.summary(report.grid(report.MACHINES[:3], 16, 300))
    assert found["cold"]["mean_regret"] < 0.03, found
    assert found["cold"]["worst_regret"] < 0.06, found
    assert found["warm"]["mean_regret"] < 0.015, found
    assert found["warm"]["worst_regret"] < 0.06, found


def test_the_regret_of_changing_texts_is_small():
    """Against an oracle that knows the best length of each kind and where kinds change."""
    found = report.summary(report.changes(report.MACHINES[:3], 4, 600))
    for answer in ("cold", "warm"):
        assert found[answer]["mean_regret"] < 0.03, found
        assert found[answer]["worst_regret"] < 0.06, found


def test_wrong_and_slow_drafters_cost_two_percent_at_most():
    for adversity in report.adversities(report.MACHINES, 6):
        assert adversity.mean_loss < 0.02, adversity
        assert adversity.worst_loss < 0.022, adversity  # noise moves single texts


def test_margins_that_tell_nothing_do_no_harm():
    regrets = []
    for machine in report.MACHINES[1:4]:
        for name in ("chat", "hard"):
            profile = report.PROFILES[name]
            texts = [made_up(profile, 300, (8, n), informative=False) for n in range(12)]
            new = partial(AdaptiveDraftLength, machine.calibrated(), Profiles())
            regrets.append(total_s(new, texts, machine) / best_fixed(texts, machine)[1] - 1)
    assert statistics.fmean(regrets) < 0.03, regrets
    assert max(regrets) < 0.06, regrets


def test_the_report_is_whole(tmp_path):
    cells = report.grid(report.MACHINES[:1], 1, 60)
    assert [cell.text for cell in cells] == list(report.PROFILES)
    lines = report.table(cells).splitlines()
    assert len(lines) == 1 + len(cells)
    report.draw(cells, tmp_path / "one.svg")
    report.draw(cells, tmp_path / "two.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
